"""Checks of the exercises of chapter 02."""

import numpy as np

from ... import functional as F
from . import exercise, need


def _same(got, want, what, shape=None):
    got = np.asarray(got)
    need(got.shape == want.shape, f"{what} has the shape {want.shape}; yours has {got.shape}")
    error = F.relative_error(got, want)
    need(error < 1e-11, f"this is not {what}: relative error {error:.0e}")


def _rms(u, eps=1e-5):
    return u * (F.row_means(u * u) + eps) ** -0.5


@exercise
def softplus_slope(answer):
    """A function of x: the derivative of log(1 + e^x)."""
    x = np.linspace(-3, 3, 7)
    _same(answer(x), F.complex_step(lambda u: np.log(1 + np.exp(u)).sum(), x), "the slope of softplus")


@exercise
def rms_norm_dx(answer):
    """A function of dxhat, xhat and rstd: the gradient of the input of RMS norm."""
    rng = np.random.default_rng(3)
    x, dxhat = rng.standard_normal((2, 4, 7))
    rstd = (F.row_means(x * x) + 1e-5) ** -0.5
    _same(answer(dxhat, x * rstd, rstd), F.complex_step(lambda u: np.sum(dxhat * _rms(u)), x), "dx")


@exercise
def normed_gate_dA(answer):
    """A function of dout, x, A, B and s: the gradient of A where the branch is s rms(x A^T) B^T."""
    rng = np.random.default_rng(5)
    x, dout = rng.standard_normal((4, 7)), rng.standard_normal((4, 5))
    A, B, s = rng.standard_normal((3, 7)), rng.standard_normal((5, 3)), 2.5
    want = F.complex_step(lambda A: np.sum(dout * (s * _rms(x @ A.T) @ B.T)), A)
    _same(answer(dout, x, A, B, s), want, "dA")


@exercise
def used_twice_dW(answer):
    """A function of dout, x, z and W: the gradient of W where z = x W^T and y = z W^T."""
    rng = np.random.default_rng(9)
    x, dout, W = rng.standard_normal((4, 7)), rng.standard_normal((4, 7)), rng.standard_normal((7, 7))
    _same(answer(dout, x, x @ W.T, W), F.complex_step(lambda u: np.sum(dout * (x @ u.T @ u.T)), W), "dW")


@exercise
def single_precision(answer):
    """A step for central differences in float32, at which the error is at most four times the least."""
    need(0 < float(answer) < 1, "expected a step between 0 and 1")
    steps = 10.0 ** np.arange(-4, 0, 0.25)
    least, mine = min(_error32(step) for step in steps), _error32(float(answer))
    need(mine <= 4 * least, f"at this step the error is {mine:.0e}; another one has {least:.0e}")


def _error32(step):
    """Mean (of logarithms) over eight inputs of the relative error of central differences of GELU in float32."""
    errors, step = [], np.float32(step)
    for seed in range(8):
        x, dout = np.random.default_rng(seed).standard_normal((2, 4, 7)).astype("f4")
        measured = np.zeros(x.shape)
        for i in np.ndindex(*x.shape):
            above, below = x.copy(), x.copy()
            above[i] += step
            below[i] -= step
            measured[i] = (np.sum(dout * F.gelu_tanh(above)[0]) - np.sum(dout * F.gelu_tanh(below)[0])) / (2 * step)
        errors.append(F.relative_error(measured, dout * F.gelu_tanh(x)[1]))
    return float(np.exp(np.mean(np.log(errors))))
