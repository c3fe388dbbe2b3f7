"""Activations: y = g(x), dy = g'(x) dx; forward stores g'(x), so that backward is one product."""

import math

from ..backend import array_namespace, fuse, normal_cdf

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
