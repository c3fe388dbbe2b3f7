"""Attention, forward and backward, in blocks of heads whose scores fit the cache.

One array of scores has T x S numbers for every head of every text, in MiniLM with 128 tokens as many as q, k, v and o
together, and several passes go over it. So each block runs from scores to output before the next one begins. Scores
stand transposed, (S, T), with the keys in rows: maxima and sums then run along columns, where NumPy adds row to row.
They are never divided by their sums: the output is, which is d_head wide and not S (Dao et al. 2022, FlashAttention,
arXiv:2205.14135).
"""

import math

from ..backend import arange_like, array_namespace, bmm, contiguous, empty, exp_
from .reductions import row_sums
from .softmax import shift

SCORES = 1 << 18  # scores in a block: 1 MB in float32


def split_heads(x, heads):
    """(B, T, d) -> (B, heads, T, d / heads), a view."""
    B, T, d = x.shape
    xp = array_namespace(x)
    return xp.permute_dims(xp.reshape(x, (B, T, heads, d // heads)), (0, 2, 1, 3))


def merge_heads(x):
    """(B, heads, T, d_head) -> (B, T, heads d_head)."""
    B, heads, T, d_head = x.shape
    xp = array_namespace(x)
    return xp.reshape(xp.permute_dims(x, (0, 2, 1, 3)), (B, T, heads * d_head))


def causal_bias(T, like, S=None):
    """(T, S) to add to the scores of the first T of S tokens, default all: 0, or -huge where one would look ahead."""
    S = T if S is None else S
    return _bias(arange_like(S, like)[None, :] > arange_like(T, like)[:, None], like)


def padding_bias(mask, like):
    """(B, 1, 1, T) to add to the scores: 0, or -huge for padding. mask (B, T): 1, or True, for a token, 0 for none."""
    xp = array_namespace(mask)
    return _bias(~xp.astype(mask, xp.bool), like)[:, None, None, :]


def _bias(hidden, like):
    """-huge where `hidden`: half of the dtype's lowest number, so that two biases may be added without overflow."""
    xp = array_namespace(hidden, like)
    return xp.astype(hidden, like.dtype) * float(xp.finfo(like.dtype).min / 2)


def attention(q, k, v, heads, bias=None, keep=True, causal=False):
    """o = p v with p = softmax(q k^T / sqrt(d_head) + bias), in each head (Vaswani et al. 2017, arXiv:1706.03762).

    q (B, T, d), k and v (B, S, d) -> o (B, T, d). bias: None, or broadcastable to (B, heads, T, S). causal: query i
    sees the keys up to i only. Without `keep` nothing is kept for a backward pass.
    """
    xp = array_namespace(q, k, v, bias)
    o, caches = xp.empty_like(q, dtype=xp.result_type(q, k, v)), []
    q_, k_, v_, o_ = (split_heads(x, heads) for x in (q, k, v, o))  # views (B, heads, T or S, d_head)
    shape = (*q_.shape[:-1], k.shape[1])
    if bias is not None:
        bias = xp.broadcast_to(bias, shape)
    ahead = causal_bias(q.shape[1], q, k.shape[1]).mT if causal else None  # one for all texts and heads
    for block in _blocks(shape, xp):
        own = None if bias is None else bias[block]
        cache = _attend(q_[block], k_[block], v_[block], own, ahead, o_[block])
        if keep:
            caches.append((block, cache))
    return o, (caches, o, heads, k.shape[1])


def _attend(q, k, v, bias, ahead, o):
    """One block: writes o, and returns the cache. q, o (b, h, T, d_head), k, v (b, h, S, d_head), bias (b, h, T, S).

    ahead: what is added, (S, T), to hide later keys, or None.

    scores^T = c k q^T + bias^T, c = 1 / sqrt(d_head);  e = exp(scores^T - max);  inv = 1 / (1^T e);  o = (e^T v) inv^T
    """
    q, k, v = (contiguous(x) for x in (q, k, v))
    q = q * (1 / math.sqrt(q.shape[-1]))  # scaling q costs less than scaling q k^T
    e = bmm(k, q.mT)  # (b, h, S, T)
    if bias is not None:
        e += bias.mT
    if ahead is not None:
        e += ahead
    e -= shift(e, axis=-2)
    e = exp_(e)
    inv = 1 / array_namespace(e).sum(e, axis=-2, keepdims=True)  # (b, h, 1, T)
    o[...] = bmm(e.mT, v) * inv.mT
    return q, k, v, e, inv


def attention_backward(dout, cache):
    """Gradients dq (B, T, d), dk, dv (B, S, d) of `attention`, block by block.

    The row sums D_i = sum_j dp_ij p_ij that softmax needs are <do_i v^T, p_i> = <do_i, p_i v> = <do_i, o_i>: products
    of T x d_head numbers instead of T x S.
    """
    caches, o, heads, S = cache
    xp = array_namespace(dout, o)
    B, T, d = dout.shape
    D = row_sums(xp.reshape(dout * o, (B, T, heads, d // heads)))  # (B, T, heads)
    D = xp.permute_dims(D, (0, 2, 1))[:, :, None, :]  # (B, heads, 1, T)
    dq, dk, dv = xp.empty_like(dout), empty((B, S, d), dout), empty((B, S, d), dout)
    do_, dq_, dk_, dv_ = (split_heads(x, heads) for x in (dout, dq, dk, dv))  # views (B, heads, T or S, d_head)
    for block, own in caches:
        _attend_backward(do_[block], D[block], own, dq_[block], dk_[block], dv_[block])
    dq *= 1 / math.sqrt(d // heads)
    return dq, dk, dv


def _attend_backward(do, D, cache, dq, dk, dv):
    """One block: writes dq, dk, dv, with dq that of the cached q, which is c times the q that came in.

    With p^T = e * inv, * elementwise, inv and D one row for all keys: do = dp v + p dv, and softmax gives
    dscores = p * (dp - D), so, transposed as the scores are,

        dv        = p^T do             = e (inv^T do)
        dscores^T = p^T * (v do^T - D) = e * (v (inv^T do)^T - inv D)
        dq        = dscores k                                               dk = dscores^T q
    """
    q, k, v, e, inv = cache
    do = contiguous(do) * inv.mT  # inv^T do, (b, h, T, d_head)
    bmm(e, do, out=dv)
    dscores = bmm(v, do.mT)  # transposed, (b, h, S, T)
    dscores -= D * inv
    dscores *= e
    bmm(dscores.mT, k, out=dq)
    bmm(dscores, q, out=dk)


def _blocks(shape, xp):
    """Indices of texts and heads, with about SCORES of the (B, heads, T, S) each; on a GPU all is one block."""
    B, heads, T, S = shape
    fit = SCORES // max(1, T * S)  # heads, in a block
    b, h = max(1, min(B, fit // heads)), max(1, min(heads, fit))
    if xp.__name__ == "cupy":
        b, h = max(1, B), heads
    texts = [slice(i, min(i + b, B)) for i in range(0, B, b)]
    return [(text, slice(j, min(j + h, heads)), ...) for text in texts for j in range(0, heads, h)]
