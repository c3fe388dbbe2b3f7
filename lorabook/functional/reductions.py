"""Rows of an array of any number of axes, and sums along its last axis."""

import math

from ..backend import ones, reshape


def rows(x):
    """(..., d) -> (N, d): one big product is faster than a stack of small ones."""
    return x if x.ndim == 2 else reshape(x, (math.prod(x.shape[:-1]), x.shape[-1]))


def row_sums(x):
    """Sums along the last axis, (..., d) -> (...): a product with ones, several times faster than NumPy's sum."""
    return reshape(rows(x) @ ones(x.shape[-1:], x), x.shape[:-1])


def row_means(x):
    """Means along the last axis, which stays as an axis of length 1."""
    return row_sums(x)[..., None] * (1 / x.shape[-1])
