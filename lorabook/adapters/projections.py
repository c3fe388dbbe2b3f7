"""Random matrices that a whole model shares: the options, and the numbers, which are PyTorch's bit for bit."""

from dataclasses import dataclass

import numpy as np

from ..errors import check_integer
from .rank_config import RankConfig, check_flag


@dataclass(frozen=True, kw_only=True)
class ProjectionConfig(RankConfig):
    """projection_prng_key: the seed of the matrices. save_projection: whether the file holds them.

    Without them in the file they are drawn again, by PyTorch's generator, as PEFT draws them on a CPU.
    """

    projection_prng_key: int = 0
    save_projection: bool = True

    def __post_init__(self):
        super().__post_init__()
        self._set(projection_prng_key=check_integer("projection_prng_key", self.projection_prng_key, 0))
        check_flag("save_projection", self.save_projection)

    @property
    def saves_shared(self):
        return self.save_projection


def largest(sizes):
    """(d_out, d_in), each the largest of all sizes."""
    return tuple(max(side) for side in zip(*sizes, strict=True))


def draws(seed, *counts):
    """An array of so many 32-bit numbers for each count, one after another by torch.manual_seed(seed) on a CPU."""
    drawn = np.random.RandomState(seed % 2**32)._bit_generator.random_raw(sum(counts))
    return np.split(drawn, np.cumsum(counts)[:-1])


def uniform_of(numbers, bound):
    """float32 ~ U(-bound, bound) as tensor.uniform_ makes it of these numbers: of the lowest 24 bits, rounded once."""
    low, high = np.float32(-bound), np.float32(bound)
    return (numbers % 2**24 * 2.0**-24 * float(high - low) + float(low)).astype("f4")
