"""Forward and backward pairs: `y, cache = f(x, ...)`, then `f_backward(dout, cache)` returns the gradients.

Each docstring derives its backward pass by differentials: write dL = <dout, dy>, insert dy, and read off the factor of
each differential. Arrays are real, or complex in a complex-step check: so `.T` never conjugates, and shifts that only
serve stability are taken from the real part. Sums run over the batch; only losses divide.
"""

import math

import numpy as np

from .backend import arange_like, array_namespace, exp_, fuse, normal_cdf, ones
from .errors import InputError


def rows(x):
    """(..., d) -> (N, d): one big product is faster than a stack of small ones."""
    return array_namespace(x).reshape(x, (math.prod(x.shape[:-1]), x.shape[-1]))


# ---- linear ----------------------------------------------------------------------------------------------------------


def linear(x, weight, bias=None):
    """y = x W^T + b.  x (..., d_in), weight (d_out, d_in), bias (d_out,) or None -> y (..., d_out)."""
    xp = array_namespace(x, weight, bias)
    if x.shape[-1] != weight.shape[1]:
        raise InputError(
            f"x {tuple(x.shape)} has {x.shape[-1]} features; weight {tuple(weight.shape)} expects {weight.shape[1]}"
        )
    y = rows(x) @ weight.T  # (N, d_out)
    if bias is not None:
        y += bias
    return xp.reshape(y, (*x.shape[:-1], weight.shape[0])), (x, weight)


def linear_backward(dout, cache, needs=("x", "weight", "bias")):
    """Gradients of `linear`; those not named in `needs` are None and cost nothing: only dW reads the cached x.

    dy = dx W^T + x dW^T + 1 db^T, so with <P, Q R^T> = <P R, Q> = <P^T Q, R>:

        dx = dout W          (..., d_in)
        dW = dout^T x        (d_out, d_in)     the product that a frozen weight saves
        db = sum_n dout_n    (d_out,)
    """
    x, weight = cache
    xp = array_namespace(dout, x, weight)
    shape, dout = (*dout.shape[:-1], weight.shape[1]), rows(dout)  # (N, d_out)
    dx = xp.reshape(dout @ weight, shape) if "x" in needs else None
    dweight = dout.T @ rows(x) if "weight" in needs else None  # (d_out, d_in)
    dbias = xp.sum(dout, axis=0) if "bias" in needs else None
    return dx, dweight, dbias


# ---- activations: y = g(x), dy = g'(x) dx; forward stores g'(x), so that backward is one product -------------------
# `overwrite` tells each that x is needed no more: its memory may serve for g'(x).


def activation_backward(dout, slope, overwrite=False):
    """dx = dout * g'(x), elementwise; `slope` = g'(x) is the cache of every activation below.

    overwrite: dout is needed no more, and dx takes its memory.
    """
    if not overwrite:
        return dout * slope
    dout *= slope
    return dout


def relu(x, overwrite=False):
    """y = max(x, 0); g' = 1 where x > 0, else 0 (the subgradient 0 at the kink)."""
    xp = array_namespace(x)
    slope = xp.astype(x > 0, x.dtype)
    return x * slope, slope


GELU_C, GELU_A = math.sqrt(2 / math.pi), 0.044715


@fuse
def gelu_tanh(x):
    """GELU by its tanh approximation (Hendrycks and Gimpel 2016, arXiv:1606.08415).

    With t = tanh(c (x + a x^3)), c = sqrt(2 / pi), a = 0.044715, and t' = (1 - t^2) c (1 + 3 a x^2):

        y  = x (1 + t) / 2
        g' = (1 + t) / 2 + x t' / 2
    """
    xp = array_namespace(x)
    x2 = x * x  # x**3 would go through scalar pow, which is far slower
    t = xp.tanh(GELU_C * x * (1 + GELU_A * x2))
    half = 0.5 * (1 + t)
    return x * half, half + (0.5 * GELU_C) * x * (1 - t * t) * (1 + (3 * GELU_A) * x2)


@fuse
def gelu_erf(x):
    """GELU, exact: y = x Phi(x), Phi the standard normal distribution function (arXiv:1606.08415).

    Phi' = exp(-x^2 / 2) / sqrt(2 pi) is the density, so g' = Phi + x Phi'
    """
    cdf = normal_cdf(x)
    slope = array_namespace(x).exp(-0.5 * x * x)
    slope *= 1 / math.sqrt(2 * math.pi)
    slope *= x
    slope += cdf
    return x * cdf, slope


@fuse
def gelu_erf_value(x):
    """The y of `gelu_erf` alone, at two thirds of the cost: all that inference needs."""
    return (x * normal_cdf(x),)


@fuse
def silu(x):
    """y = x sigma(x), sigma(x) = 1 / (1 + e^-x) = (1 + tanh(x / 2)) / 2, which cannot overflow.

    sigma' = sigma (1 - sigma),    g' = sigma + x sigma' = sigma (1 + x (1 - sigma))
    """
    xp = array_namespace(x)
    sigma = 0.5 * (1 + xp.tanh(0.5 * x))
    return x * sigma, sigma * (1 + x * (1 - sigma))


def tanh(x, overwrite=False):
    """y = tanh(x), g' = 1 - y^2."""
    y = array_namespace(x).tanh(x)
    return y, 1 - y * y


VALUES = {"gelu": gelu_erf_value}  # where y alone costs less
ACTIVATIONS = {"relu": relu, "gelu_tanh": gelu_tanh, "gelu": gelu_erf, "silu": silu, "tanh": tanh}


# ---- softmax and layer norm: along the last axis ---------------------------------------------------------------------


def row_sums(x):
    """Sums along the last axis, (..., d) -> (...): a product with ones, several times faster than NumPy's sum."""
    return array_namespace(x).reshape(rows(x) @ ones(x.shape[-1:], x), x.shape[:-1])


def row_means(x):
    """Means along the last axis, which stays as an axis of length 1."""
    return row_sums(x)[..., None] * (1 / x.shape[-1])


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


def layer_norm(x, weight, bias, eps=1e-5):
    """y = weight * xhat + bias, xhat = (x - mean) / sqrt(var + eps) along the last axis.

    (Ba et al. 2016, arXiv:1607.06450.) x (..., d), weight and bias (d,). The variance divides by d, not d - 1.
    """
    xp = array_namespace(x, weight, bias)
    if not x.shape[-1:] == weight.shape == bias.shape:
        raise InputError(
            f"x has {x.shape[-1]} features (shape {tuple(x.shape)}); layer norm has weight {tuple(weight.shape)} "
            f"and bias {tuple(bias.shape)}, expected one entry per feature"
        )
    xhat = x - row_means(x)
    rstd = 1 / xp.sqrt(row_means(xhat * xhat) + eps)  # (..., 1)
    xhat *= rstd
    y = xhat * weight
    y += bias
    return y, (xhat, rstd, weight)


def layer_norm_backward(dout, cache, needs=("x", "weight", "bias")):
    """Gradients of `layer_norm`; those not named in `needs` are None.

    Write m(v) = sum_i v_i / d, and v = dL/dxhat = dout * weight.  xc = x - m(x) and rstd = (m(xc^2) + eps)^(-1/2) give
    drstd = -rstd^3 m(xc dxc) and dxhat = rstd dxc + xc drstd = rstd (dxc - xhat m(xhat dxc)).  m is symmetric,
    <v, m(w)> = <m(v), w>, and dxc = dx - m(dx), so

        dx = rstd (v - m(v) - xhat m(v xhat))      dweight = sum_n dout xhat      dbias = sum_n dout
    """
    xhat, rstd, weight = cache
    xp = array_namespace(dout, xhat)
    dx = dweight = dbias = None
    if "x" in needs:
        dx = dout * weight  # v
        along = row_means(dx * xhat)  # m(v xhat), (..., 1)
        dx -= row_means(dx)
        dx -= xhat * along
        dx *= rstd
    if "weight" in needs:
        dweight = xp.sum(rows(dout * xhat), axis=0)
    if "bias" in needs:
        dbias = xp.sum(rows(dout), axis=0)
    return dx, dweight, dbias


# ---- losses: the only place that divides by the batch ----------------------------------------------------------------


def softmax_cross_entropy(logits, labels):
    """Mean of -log softmax(logits)[label] in nats over the labels that count. logits (..., k), labels (...) integers.

    A label is in 0 .. k - 1; one below 0 (-100 by convention: padding, special tokens) does not count.
    """
    xp = array_namespace(logits, labels)
    k = logits.shape[-1]
    if labels.shape != logits.shape[:-1]:
        raise InputError(
            f"expected logits (..., k) and labels (...); got {tuple(logits.shape)} and {tuple(labels.shape)}"
        )
    if xp is np and not 0 <= (largest := labels.max(initial=-1)) < k:  # on a GPU this would wait for it
        raise InputError(
            f"labels must be from 0 to {k - 1}, or below 0 where they do not count, and one at least must count; "
            f"the largest of {labels.size} is {largest}"
        )
    counts = xp.astype(labels >= 0, logits.dtype)[..., None]  # (..., 1), 1 or 0
    n = xp.sum(counts)
    shifted = logits - shift(logits)
    p = xp.exp(shifted)
    total = xp.sum(p, axis=-1, keepdims=True)  # (..., 1)
    column = xp.maximum(labels, xp.zeros_like(labels))[..., None]  # any, where the label does not count
    picked = xp.take_along_axis(shifted, column, axis=-1)  # (..., 1)
    return xp.sum((xp.log(total) - picked) * counts) / n, (p / total, labels, counts / n)


def softmax_cross_entropy_backward(dloss, cache):
    """L = sum_n w_n (log sum_j e^{x_nj} - x_{n, label}), w_n = 1 / (how many labels count), or 0 for one that does not.

    The derivative of log sum_j e^{x_j} is p, so dlogits_n = w_n (p_n - onehot(label_n)), times dloss.
    """
    p, labels, w = cache
    xp = array_namespace(p, labels)
    onehot = labels[..., None] == arange_like(p.shape[-1], labels)  # (..., k)
    return (p - xp.astype(onehot, p.dtype)) * (dloss * w)


def mean_squared_error(y, target):
    """Mean over all entries of (y - target)^2."""
    xp = array_namespace(y, target)
    if y.shape != target.shape:
        raise InputError(f"y has shape {tuple(y.shape)}; target has {tuple(target.shape)}, expected the same")
    error = y - target
    return xp.mean(error * error), error


def mean_squared_error_backward(dloss, error):
    """L = <e, e> / n with e = y - target and n entries, so dL = 2 <e, dy> / n and dy = 2 e / n, times dloss."""
    return error * (2 * dloss / math.prod(error.shape))


LOSSES = {
    "cross_entropy": (softmax_cross_entropy, softmax_cross_entropy_backward),
    "mean_squared_error": (mean_squared_error, mean_squared_error_backward),
}
