"""Cross entropy over a vocabulary, straight from hidden states: the logits of all rows never exist at once.

4,096 rows of Llama 3's 128,256 words would be 2 GB of logits, and as much again of their gradient. But loss and
gradient of a row need no other row: so rows go through the output matrix in chunks, and each chunk leaves its part of
the loss and its dh before the next begins (Hsu et al. 2024, Liger Kernel, arXiv:2410.10989).
"""

import math

import numpy as np

from ..backend import arange_like, array_namespace
from ..errors import InputError
from .softmax import shift

LOGITS = 6 << 20  # logits in a chunk: 24 MB in float32


def chunks(N, V):
    """Slices of the N rows, as many in each, with LOGITS logits at most, or with 32 rows: few rows wait for W."""
    n = math.ceil(N / max(32, LOGITS // max(1, V)))
    return [slice(i * N // n, (i + 1) * N // n) for i in range(n)]


def cross_entropy_(logits, labels, share=1.0):
    """(sum of -log softmax(logits)[label], dlogits of `share` times that). In place: logits become dlogits.

    logits (N, V), labels (N,) integers in 0 .. V - 1. With the sum Z of e^logits in a row,

        loss = sum_n (log Z_n - logits[n, label_n])      dlogits = share (e^logits / Z - onehot(label))
    """
    xp = array_namespace(logits, labels)
    N = labels.shape[0]
    top = shift(logits)
    picked = xp.take_along_axis(logits, labels[:, None], axis=-1) - top  # (N, 1)
    logits -= top
    if xp.__name__ == "array_api_strict":
        logits[...] = xp.exp(logits)
    else:
        xp.exp(logits, out=logits)
    total = xp.sum(logits, axis=-1, keepdims=True)
    loss = xp.sum(xp.log(total) - picked)
    logits *= share / total
    if xp.__name__ == "array_api_strict":
        logits -= xp.astype(labels[:, None] == arange_like(logits.shape[1], labels), logits.dtype) * share
    else:
        logits[arange_like(N, labels), labels] -= share
    return loss, logits


def language_loss(h, weight, labels, needs=("h",), share=1.0):
    """(mean of -log softmax(h W^T)[label] in nats, dh, dW), gradients of `share` times it; None unless in `needs`.

    h (N, d); weight W (V, d); labels (N,) integers in 0 .. V - 1: a row that is to predict nothing is not among them.
    From logits = h W^T:  dh = dlogits W,  dW = dlogits^T h. needs: of "h" and "weight"; () for the loss alone.
    """
    xp = array_namespace(h, weight, labels)
    check_labels(labels, h.shape[0], weight.shape[0])
    dh = xp.empty_like(h) if "h" in needs else None
    dW = xp.zeros_like(weight) if "weight" in needs else None
    loss, part = 0.0, share / h.shape[0]
    for rows in chunks(h.shape[0], weight.shape[0]):
        own, dlogits = cross_entropy_(h[rows, :] @ weight.T, labels[rows], part)
        loss = loss + own
        if dh is not None:
            dh[rows, :] = dlogits @ weight
        if dW is not None:
            dW += dlogits.T @ h[rows, :]
    return loss * (1 / h.shape[0]), dh, dW


def check_labels(labels, N, V):
    """Raise InputError unless these are N numbers of words of a vocabulary of V, and one at least."""
    xp = array_namespace(labels)
    if tuple(labels.shape) != (N,) or not N:
        raise InputError(f"expected a label for each of some rows (N,); got {tuple(labels.shape)} for {N} rows")
    if xp is np and not 0 <= labels.min() <= labels.max() < V:  # on a GPU this would wait for it
        raise InputError(f"labels must be from 0 to {V - 1}; got {labels.min()} to {labels.max()}")


def perplexity(loss):
    """e^loss: how many equally likely words would be as hard to tell apart. inf where that is no float."""
    return math.exp(loss) if loss < 700 else math.inf
