"""NF4, 4-bit NormalFloat: 16 levels at quantiles of the normal distribution (Dettmers et al. 2023, arXiv:2305.14314).

Trained weights are close to normal, so levels at evenly spaced quantiles are used more evenly than evenly spaced
levels. Zero must have a code of its own (padding, pruned weights), and a code more would make one side asymmetric; so
the positive half takes 8 quantiles, the negative half 7, and zero is the sixteenth.
"""

from statistics import NormalDist

import numpy as np


def normal_levels(bits):
    """The 2^bits levels in float32, ascending from -1 to 1: quantiles of N(0, 1) divided by the largest. bits: >= 2.

    With n = 2^bits the outermost quantile is the mean of 1 - 1/(2 n) and 1 - 1/(2 (n - 1)), half a step inside of 1 for
    n and for n - 1 quantiles, as the authors' code has it. The quantile of 1 itself is infinite.
    """
    quantile, n = NormalDist().inv_cdf, 2**bits
    outermost = (2 - 1 / (2 * n) - 1 / (2 * (n - 1))) / 2
    positive = [quantile(p) for p in np.linspace(outermost, 0.5, n // 2 + 1)[:-1].tolist()]  # without that of 1/2, zero
    negative = [-quantile(p) for p in np.linspace(outermost, 0.5, n // 2)[:-1].tolist()]  # one less
    levels = np.array(sorted([*negative, 0.0, *positive]))
    return (levels / levels[-1]).astype("f4")


def nf4_levels():
    """The 16 levels (16,) of NF4 in float32, ascending from -1 to 1.

    >>> from lorabook.quantization import nf4_levels
    >>> nf4_levels().round(3).tolist()[6:10]
    [-0.09099999815225601, 0.0, 0.07999999821186066, 0.16099999845027924]
    """
    return normal_levels(4)
