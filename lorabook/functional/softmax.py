"""Softmax along the last axis, forward and backward."""

from ..backend import array_namespace, exp_


def shift(x, axis=-1):
    """Maxima, of the real part in a complex-step check: subtracting them leaves softmax unchanged."""
    xp = array_namespace(x)
    return xp.max(xp.real(x) if xp.isdtype(x.dtype, "complex floating") else x, axis=axis, keepdims=True)


def softmax(x):
    """p_i = e^{x_i} / sum_j e^{x_j} along the last axis. x (..., d) -> p (..., d)."""
    p = softmax_(array_namespace(x).asarray(x, copy=True))
    return p, p


def softmax_(x):
    """`softmax` in place: x becomes p, and is returned."""
    x -= shift(x)
    x = exp_(x)
    x *= 1 / array_namespace(x).sum(x, axis=-1, keepdims=True)
    return x


def softmax_backward(dout, p):
    """From log p_i = x_i - log sum_j e^{x_j}:  dp_i = p_i (dx_i - sum_j p_j dx_j), so

    dx = p * (dout - sum_j dout_j p_j)
    """
    xp = array_namespace(dout, p)
    return p * (dout - xp.sum(dout * p, axis=-1, keepdims=True))
