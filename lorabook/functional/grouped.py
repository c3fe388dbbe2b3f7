"""Causal attention whose key and value heads are shared by groups of query heads, of Tq queries over Tk keys.

A long text has T x T scores a head. None of them is kept: forward leaves one number a row, the logarithm of its sum of
exponentials, from which backward makes the same probabilities again (Dao et al. 2022, FlashAttention,
arXiv:2205.14135; Ainslie et al. 2023, grouped queries, arXiv:2305.13245). Both go through the queries in tiles, whose
scores fit the second-level cache, over the keys that these can see: of a text, or a packed segment, no more than half.
Scores stand transposed, keys in rows, as in `attend`.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..backend import arange_like, array_namespace, bmm, contiguous, empty, exp_, reshape
from .attend import split_heads
from .reductions import row_sums
from .softmax import shift, softmax_

SCORES = 3 << 15  # scores in a tile: 384 KB in float32
DEVICE_SCORES = 1 << 26  # on a GPU, where few and large products are what is fast
ROWS, MOST = 32, 64  # queries in a tile: at least, and at most, as the last key of a tile is seen by its last query


@dataclass(frozen=True)
class Spans:
    """The keys that each query sees: those from `first` to before `stop`, (1 or B, Tq) integers, and not `hidden`.

    hidden: None, or (B, Tk) booleans; a single key between the two is seen all the same. Query i of Tq may see the
    first Tk - Tq + i + 1 keys at most, and must see one.
    """

    first: Any
    stop: Any
    hidden: Any = None


def causal_spans(T, like, mask=None, segments=None):
    """Spans in which a token sees itself and what stands before it, in its own segment, and no padding.

    Padding sees what a token in its place would; itself, where that is nothing. (A row of scores of which none counts
    has no logarithm of its sum.)

    like: an array of integers on the backend. mask (B, T): 0 for padding. segments (B, T) integers: a segment ends
    where they change. (Texts packed in one row: Krell et al. 2021, arXiv:2107.02027.)
    """
    i = arange_like(T, like)[None, :]  # (1, T)
    first, stop = 0 * i, i + 1
    xp = array_namespace(like)
    if segments is not None:
        begins = xp.concat([segments[:, :1] != segments[:, :1], segments[:, 1:] != segments[:, :-1]], axis=1)
        first = _running_max(xp.where(begins, i, 0 * i), xp)  # (B, T)
    if mask is None:
        return Spans(first, stop)
    real = xp.astype(mask, xp.bool)
    none = _running_max(xp.where(real, i, 0 * i - 1), xp) < first  # (B, T)
    if xp is not np:
        return Spans(xp.where(none, i, first), xp.where(none, i + 1, stop), ~real)
    if real.all():
        return Spans(first, stop)
    begin, end = np.argmax(real, axis=1)[:, None], T - np.argmax(real[:, ::-1], axis=1)[:, None]  # (B, 1)
    whole = np.sum(real, axis=1, keepdims=True) == end - begin
    first, stop = np.maximum(first, begin), np.minimum(stop, end)
    first, stop = np.where(none, i, first), np.where(none, i + 1, stop)
    return Spans(first, stop, None if whole.all() else ~real)


def _running_max(x, xp):
    """The largest of the entries up to each, along the last axis, in about log2(T) passes."""
    step, T = 1, x.shape[1]
    while step < T:
        x = xp.concat([x[:, :step], xp.maximum(x[:, step:], x[:, :-step])], axis=1)
        step *= 2
    return x


def grouped_attention(q, k, v, heads, kv_heads, spans, keep=True):
    """o = p v with p = softmax(q k^T / sqrt(d_head)) over the keys in `spans`, in each head.

    q (B, Tq, heads d_head), k and v (B, Tk, kv_heads d_head) -> o like q. Query heads g n .. g n + n - 1 ask the key
    head g, n = heads / kv_heads. Without `keep` nothing is kept for a backward pass.
    """
    xp = array_namespace(q, k, v)
    B, T, _ = q.shape
    n = heads // kv_heads
    if T == 1 and not keep:
        return _one_query(q, k, v, kv_heads, n, spans, xp), None
    o = xp.empty_like(q, dtype=xp.result_type(q, k, v))
    lse = empty((B, kv_heads, n, T), o) if keep else None
    q_, o_, k_, v_ = (
        _grouped(q, kv_heads, n),
        _grouped(o, kv_heads, n),
        split_heads(k, kv_heads),
        split_heads(v, kv_heads),
    )
    for block, tiles in _blocks(q_.shape, k.shape[1], spans, xp):
        kb, vb = contiguous(k_[block]), contiguous(v_[block])  # (b, g, Tk, d_head)
        for rows, keys, unseen in tiles:
            e = _scores(_tile(q_[block], rows), kb[:, :, keys, :], unseen)
            top = shift(e, axis=-2)
            e -= top
            e = exp_(e)
            total = xp.sum(e, axis=-2, keepdims=True)  # (b, g, 1, n t)
            own = bmm(e.mT, vb[:, :, keys, :])
            own *= (1 / total).mT
            target = o_[block][:, :, :, rows, :]
            target[...] = reshape(own, target.shape)
            if keep:
                target = lse[block][:, :, :, rows]
                target[...] = reshape(top + xp.log(total), target.shape)
    return o, (q, k, v, o, lse, spans) if keep else None


def _one_query(q, k, v, kv_heads, n, spans, xp):
    """o of one query a row, (B, 1, d), as generation asks: its scores fit the cache without tiles."""
    (B, _, d), S = q.shape, k.shape[1]
    k, v = split_heads(k, kv_heads), split_heads(v, kv_heads)  # (B, g, S, d_head)
    q = reshape(q, (B, kv_heads, n, -1))
    e = bmm(q * (1 / math.sqrt(q.shape[-1])), k.mT)  # (B, g, n, S)
    for keys, hidden in _unseen(spans, slice(None), slice(0, 1), slice(0, S), xp):  # (1 or B, keys, 1)
        e[..., keys] += (xp.astype(hidden.mT, e.dtype) * float(xp.finfo(e.dtype).min / 2))[:, None, :, :]
    return reshape(bmm(softmax_(e), v), (B, 1, d))


def grouped_attention_backward(dout, cache):
    """Gradients (dq, dk, dv) of `grouped_attention`, tile by tile.

    p = exp(c q k^T - lse), c = 1 / sqrt(d_head), is made again. With do = dp v + p dv and, from softmax, dscores =
    p * (dp - D), D_i = sum_j dp_ij p_ij = <do_i, o_i>, in each head

        dv = p^T do,    dp = do v^T,    dq = c dscores k,    dk = c dscores^T q

    and what the n query heads of a group give to their one dk and dv adds up: their queries are rows of one product.
    """
    q, k, v, o, lse, spans = cache
    xp = array_namespace(dout, q)
    B, kv_heads, n, T = lse.shape
    D = row_sums(reshape(dout * o, (B, T, kv_heads, n, -1)))  # (B, T, kv_heads, n)
    D = xp.permute_dims(D, (0, 2, 3, 1))  # (B, kv_heads, n, T)
    dq, dk, dv = empty(q.shape, dout), xp.zeros_like(k), xp.zeros_like(v)
    q_, do_, dq_ = (_grouped(x, kv_heads, n) for x in (q, dout, dq))
    k_, v_, dk_, dv_ = (split_heads(x, kv_heads) for x in (k, v, dk, dv))
    c = 1 / math.sqrt(q_.shape[-1])
    for block, tiles in _blocks(q_.shape, k.shape[1], spans, xp):
        kb, vb = contiguous(k_[block]), contiguous(v_[block])  # (b, g, Tk, d_head)
        dkb, dvb = xp.zeros_like(kb), xp.zeros_like(vb)
        for rows, keys, unseen in tiles:
            qt, do = _tile(q_[block], rows), reshape(do_[block][:, :, :, rows, :], (*kb.shape[:2], -1, kb.shape[-1]))
            p = _scores(qt, kb[:, :, keys, :], unseen)
            line = (*p.shape[:2], 1, p.shape[-1])
            p -= reshape(lse[block][:, :, :, rows], line)
            p = exp_(p)  # (b, g, keys, n t)
            dvb[:, :, keys, :] += bmm(p, do)
            dscores = bmm(vb[:, :, keys, :], do.mT)
            dscores -= reshape(D[block][:, :, :, rows], line)
            dscores *= p
            target = dq_[block][:, :, :, rows, :]
            target[...] = reshape(bmm(dscores.mT, kb[:, :, keys, :]), target.shape)
            dkb[:, :, keys, :] += bmm(dscores, qt)  # qt is c q
        dk_[block][...] = dkb
        dv_[block][...] = dvb
    dq *= c
    return dq, dk, dv


def _grouped(x, kv_heads, n):
    """(B, T, kv_heads n d_head) -> (B, kv_heads, n, T, d_head), a view."""
    B, T, d = x.shape
    xp = array_namespace(x)
    return xp.permute_dims(reshape(x, (B, T, kv_heads, n, d // (kv_heads * n))), (0, 2, 3, 1, 4))


def _tile(q, rows):
    """c q of some rows, those of the n heads one after another: (b, g, n, T, d_head) -> (b, g, n t, d_head)."""
    b, g, *_, d_head = q.shape
    q = q[:, :, :, rows, :] * (1 / math.sqrt(d_head))
    return reshape(q, (b, g, -1, d_head))


def _scores(q, k, unseen):
    """(b, g, keys, n t): k q^T, and -huge where a query does not see a key; unseen: of `_unseen`."""
    xp = array_namespace(q, k)
    e = bmm(k, q.mT)
    low = float(xp.finfo(e.dtype).min / 2)
    for keys, hidden in unseen:
        t = hidden.shape[-1]
        by_head = reshape(e, (*e.shape[:-1], e.shape[-1] // t, t))  # (b, g, keys, n, t), a view
        by_head[:, :, keys, :, :] += (xp.astype(hidden, e.dtype) * low)[:, None, :, None, :]
    return e


def _unseen(spans, texts, rows, keys, xp):
    """[(some of these keys, (1 or b, those, t) booleans: whether a query does not see one)]; the other keys all see.

    On NumPy the bounds are looked at: between the largest `first` and the smallest `stop` all is seen.
    """
    first, stop = (x if x.shape[0] == 1 else x[texts, :] for x in (spans.first, spans.stop))
    first, stop = first[:, None, rows], stop[:, None, rows]  # (1 or b, 1, t)
    edges = [(keys.start, keys.stop)]
    if xp is np and spans.hidden is None:
        edges = [
            (keys.start, min(int(first.max()), keys.stop)),
            (max(int(stop.min()), keys.start), keys.stop),
        ]
    found = []
    for a, b in edges:
        if a < b:
            j = arange_like(b, spans.first)[a:][:, None]  # (keys, 1)
            unseen = (j < first) | (j >= stop)  # (1 or b, keys, t)
            if spans.hidden is not None:
                unseen = unseen | (spans.hidden[texts, keys, None] & (stop - first != 1))
            found.append((slice(a - keys.start, b - keys.start), unseen))
    return found


def _blocks(shape, S, spans, xp):
    """[((texts, key heads, ...), [(rows, keys, `_unseen`)])]: slices: about SCORES scores a tile, or ROWS rows."""
    B, G, n, T, _ = shape
    t, fit = min(T, MOST), SCORES // max(1, n * min(T, MOST) * S)  # key heads in a tile, with t of their queries
    if not fit:
        t = min(T, max(ROWS, SCORES // max(1, n * S)))
    b, g = max(1, min(B, fit // G)), max(1, min(G, fit))
    if xp is not np:
        b, g, t = max(1, B), G, min(T, max(ROWS, DEVICE_SCORES // max(1, B * G * n * S)))
    same, tiles = spans.hidden is None and max(spans.first.shape[0], spans.stop.shape[0]) == 1, None
    for i in range(0, B, b):
        texts = slice(i, min(i + b, B))
        if tiles is None or not same:
            tiles = [_keys(slice(r, min(r + t, T)), texts, T, S, spans, xp) for r in range(0, T, max(1, t))]
        yield from (((texts, slice(j, min(j + g, G)), ...), tiles) for j in range(0, G, g))


def _keys(rows, texts, T, S, spans, xp):
    """(rows, the keys that any of these queries sees, which of them not all); not on NumPy: that one might see, as the
    host does not look.
    """
    keys = slice(0, S - T + rows.stop)
    if xp is np:
        first, last = (x if x.shape[0] == 1 else x[texts] for x in (spans.first, spans.stop))
        keys = slice(int(first[:, rows].min()), int(last[:, rows].max()))
    return rows, keys, _unseen(spans, texts, rows, keys, xp)
