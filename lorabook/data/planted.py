"""Planted problems: linear regression whose best update of every rank is known."""

from dataclasses import dataclass

import numpy as np

from ..errors import InputError


@dataclass(frozen=True)
class Planted:
    """y = x (W + delta)^T + noise. `weight` W (d_out, d_in) is the frozen base; the low-rank `delta` is to be found."""

    weight: np.ndarray
    delta: np.ndarray
    x: np.ndarray
    y: np.ndarray


def planted(d_out=24, d_in=32, rank=4, n=512, noise=0.0, condition=10.0, seed=0):
    """A Planted problem in float64, n rows.

    The singular values of delta fall from 1 to 1/2; the inputs' standard deviations along random orthogonal directions
    fall from 1 to 1 / condition. noise: standard deviation of the noise on y.
    """
    if not 1 <= rank <= min(d_out, d_in) or condition < 1 or noise < 0 or n < 1:
        expected = f"1 <= rank <= {min(d_out, d_in)}, condition >= 1, noise >= 0, n >= 1"
        raise InputError(f"expected {expected}; got {rank}, {condition}, {noise}, {n}")
    rng = np.random.default_rng(seed)

    def orthogonal(rows, columns):
        return np.linalg.qr(rng.standard_normal((rows, columns)))[0]

    weight = rng.standard_normal((d_out, d_in)) / np.sqrt(d_in)
    delta = orthogonal(d_out, rank) * np.linspace(1, 0.5, rank) @ orthogonal(d_in, rank).T
    x = rng.standard_normal((n, d_in)) * np.geomspace(1, 1 / condition, d_in) @ orthogonal(d_in, d_in).T
    y = x @ (weight + delta).T + noise * rng.standard_normal((n, d_out))
    return Planted(weight, delta, x, y)
