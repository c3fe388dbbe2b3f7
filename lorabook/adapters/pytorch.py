"""Numbers that PyTorch draws on a CPU after manual_seed, bit for bit: PEFT's files name a seed in place of arrays."""

import numpy as np


def draws(seed, n):
    """(n,) the first 32-bit numbers of its generator, a Mersenne Twister."""
    return np.random.RandomState(seed % 2**32).randint(0, 2**32, n, dtype="u4")


def uniform_of(numbers, bound):
    """float32 ~ U(-bound, bound) as tensor.uniform_ makes it of these numbers: of the lowest 24 bits, rounded once."""
    low, high = np.float32(-bound), np.float32(bound)
    return (numbers % 2**24 * 2.0**-24 * float(high - low) + float(low)).astype("f4")
