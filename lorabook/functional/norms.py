"""Normalisation along the last axis, forward and backward."""

from ..backend import array_namespace
from ..errors import InputError
from .reductions import row_means, rows


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


def rms_norm(x, weight, eps=1e-6):
    """y = weight * x / sqrt(m(x^2) + eps) along the last axis, m the mean (Zhang and Sennrich 2019, arXiv:1910.07467).

    x (..., d), weight (d,). x itself is kept for backward, and must not be written to until then.
    """
    xp = array_namespace(x, weight)
    if x.shape[-1:] != weight.shape:
        raise InputError(
            f"x has {x.shape[-1]} features (shape {tuple(x.shape)}); RMS norm has weight {tuple(weight.shape)}, "
            "expected one entry per feature"
        )
    rstd = 1 / xp.sqrt(row_means(x * x) + eps)  # (..., 1)
    cache = x, rstd, weight
    return rms_norm_again(cache), cache


def rms_norm_again(cache):
    """y of `rms_norm`, from what it kept."""
    x, rstd, weight = cache
    y = x * rstd
    y *= weight
    return y


def rms_norm_backward(dout, cache, needs=("x", "weight")):
    """Gradients of `rms_norm`; those not named in `needs` are None.

    Write v = dout * weight. rstd = (m(x^2) + eps)^(-1/2) gives drstd = -rstd^3 m(x dx), and dy = weight (rstd dx +
    x drstd). m is symmetric, <v, x m(w)> = <m(v x), w>, so

        dx = rstd v - rstd^3 m(v x) x      dweight = sum_n dout x rstd
    """
    x, rstd, weight = cache
    xp = array_namespace(dout, x)
    dx = dweight = None
    if "x" in needs:
        dx = dout * weight  # v
        along = row_means(dx * x) * (rstd * rstd)  # (..., 1)
        dx -= x * along
        dx *= rstd
    if "weight" in needs:
        dweight = xp.sum(rows(dout * (x * rstd)), axis=0)
    return dx, dweight
