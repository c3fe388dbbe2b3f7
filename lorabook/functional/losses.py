"""Losses, forward and backward: the only place that divides by the batch."""

import math

import numpy as np

from ..backend import arange_like, array_namespace
from ..errors import InputError
from .softmax import shift


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
