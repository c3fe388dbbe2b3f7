"""The linear map y = x W^T + b, forward and backward."""

from ..backend import array_namespace, reshape
from ..errors import InputError
from .reductions import rows


def linear(x, weight, bias=None):
    """y = x W^T + b.  x (..., d_in), weight (d_out, d_in), bias (d_out,) or None -> y (..., d_out)."""
    array_namespace(x, weight, bias)  # complains of a mix
    if x.shape[-1] != weight.shape[1]:
        raise InputError(
            f"x {tuple(x.shape)} has {x.shape[-1]} features; weight {tuple(weight.shape)} expects {weight.shape[1]}"
        )
    x_ = rows(x)
    y = (weight @ x_[0, :])[None, :] if x_.shape[0] == 1 else x_ @ weight.T  # (N, d_out); one row is faster so
    if bias is not None:
        y += bias
    return reshape(y, (*x.shape[:-1], weight.shape[0])), (x, weight)


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
    dx = reshape(dout @ weight, shape) if "x" in needs else None
    dweight = dout.T @ rows(x) if "weight" in needs else None  # (d_out, d_in)
    dbias = xp.sum(dout, axis=0) if "bias" in needs else None
    return dx, dweight, dbias
