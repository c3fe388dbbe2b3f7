"""The norm of all gradients together, and clipping to it."""

import math

import numpy as np

from ..backend import array_namespace
from ..errors import NonFiniteError, check_number
from .optim import flat, groups


def squared_norm(grads):
    """Sum of the squares of all gradients, a float64 scalar where they live; Inf or NaN if one square is.

    Summed in the order of the names: the same bits whatever order the gradients come in. Squares are of the gradients'
    dtype, their sum is float64. So a gradient so large that its square overflows counts as not finite, since AdamW
    could not store the square; a sum of many squares does not overflow float32.
    """
    if not grads:
        return 0.0
    xp = array_namespace(*grads.values())
    vectors = (flat([grads[name] for name in names]) for names in groups(grads))
    with np.errstate(over="ignore", invalid="ignore"):  # whoever reads the result looks
        return sum(xp.sum(v * v, dtype=xp.float64) for v in vectors)


def grad_norm(grads):
    """Euclidean norm over all gradients, a Python float. Raises NonFiniteError, naming a gradient that is not finite.

    What is not finite, and the order of the sum: see `squared_norm`.
    """
    total = float(squared_norm(grads))  # here the host waits for a GPU
    if not math.isfinite(total):
        for name, grad in sorted(grads.items()):
            if not math.isfinite(float(squared_norm({name: grad}))):
                raise NonFiniteError(f"the gradient of {name} is not finite (NaN, Inf, or too large to square)")
        raise NonFiniteError("the norm of the gradients is too large")
    return math.sqrt(total)


def check_max_grad_norm(max_grad_norm):
    """`max_grad_norm` as a float, or None. Raises InputError unless it is above 0, or None."""
    return None if max_grad_norm is None else check_number("max_grad_norm", max_grad_norm, positive=True)


def clip_grad_norm(grads, max_grad_norm):
    """Scale all gradients in place to a common norm of at most `max_grad_norm` (None: any); returns the norm before."""
    max_grad_norm = check_max_grad_norm(max_grad_norm)
    norm = grad_norm(grads)
    if max_grad_norm is not None and norm > max_grad_norm:
        for grad in grads.values():
            grad *= max_grad_norm / norm
    return norm


def clip_factor(squares, max_grad_norm):
    """What `clip_grad_norm` would multiply by: a scalar where `squares`, the `squared_norm`, lives; None: nothing."""
    max_grad_norm = check_max_grad_norm(max_grad_norm)
    if max_grad_norm is None:
        return None
    xp = array_namespace(squares)
    norm = xp.sqrt(squares)
    return xp.where(norm > max_grad_norm, max_grad_norm / norm, xp.ones_like(norm))
