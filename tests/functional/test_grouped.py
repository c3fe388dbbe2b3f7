"""Grouped causal attention against a loop over heads, by complex step, in tiles of any size, on every backend."""

import contextlib

import numpy as np
import pytest
from checks import TOLERANCES, assert_close, assert_lives_on, same_bits

from lorabook.functional import causal_spans, complex_step, grouped_attention, grouped_attention_backward
from lorabook.functional import grouped as G

B, T, HEADS, KV, D_HEAD = 3, 7, 6, 2, 4
SMOOTH = 1e-11
MASKS = {
    "none": None,
    "right": np.arange(T) < np.array([7, 4, 5])[:, None],
    "left": np.arange(T) >= np.array([0, 3, 2])[:, None],
    "holes": np.array([[1, 1, 0, 1, 1, 0, 1], [1, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 0]], bool),
}
SEGMENTS = np.array([[0, 0, 0, 1, 1, 2, 2], [5, 5, 4, 4, 4, 4, 4], [1, 1, 1, 1, 1, 1, 1]])
KINDS = [(mask, packed) for mask in MASKS for packed in (False, True) if (mask, packed) != ("left", True)]
EVERY_KIND = pytest.mark.parametrize(("mask", "packed"), KINDS)


@contextlib.contextmanager
def tiles_of(scores, rows=1):
    with pytest.MonkeyPatch.context() as patch:
        for name in ("SCORES", "DEVICE_SCORES"):
            patch.setattr(G, name, scores)
        patch.setattr(G, "ROWS", rows)
        yield


def drawn(rng, Tq=T, Tk=T):
    return [0.9 * rng.standard_normal((B, n, h * D_HEAD)) for n, h in ((Tq, HEADS), (Tk, KV), (Tk, KV), (Tq, HEADS))]


def seen(mask, packed):
    """(B, T, T): whether a query sees a key, by the definition."""
    see = np.broadcast_to(np.tril(np.ones((T, T), bool)), (B, T, T))
    see = see if not packed else see & (SEGMENTS[:, :, None] == SEGMENTS[:, None, :])
    return see if MASKS[mask] is None else see & MASKS[mask][:, None, :]


def reference(q, k, v, see):
    """One text, head and query after another; 0 where nothing is seen."""
    o, n = np.zeros(q.shape), HEADS // KV
    for b, h, i in np.ndindex(q.shape[0], HEADS, q.shape[1]):
        own, shared = slice(h * D_HEAD, (h + 1) * D_HEAD), slice(h // n * D_HEAD, (h // n + 1) * D_HEAD)
        weights = np.where(see[b, i], np.exp(k[b, :, shared] @ q[b, i, own] / D_HEAD**0.5), 0)
        if see[b, i].any():
            o[b, i, own] = weights / weights.sum() @ v[b, :, shared]
    return o


def spans_of(mask, packed, put=np.asarray):
    own = MASKS[mask] if MASKS[mask] is None else put(MASKS[mask].astype(int))
    return causal_spans(T, put(SEGMENTS), own, put(SEGMENTS) if packed else None)


@EVERY_KIND
@pytest.mark.parametrize("scores", [1, 90, 10**6])
def test_it_is_its_definition(put, rng, mask, packed, scores):
    q, k, v, _ = drawn(rng)
    with tiles_of(scores):
        o, _ = grouped_attention(put(q), put(k), put(v), HEADS, KV, spans_of(mask, packed, put))
    assert_lives_on(put(q), o)
    see = seen(mask, packed)
    real = see.any(axis=-1)
    assert_close(o * put(1.0 * real[..., None]), reference(q, k, v, see), 1e-14)


@EVERY_KIND
def test_gradients(rng, mask, packed):
    """By complex step in one tile; in tiles of one row, and of a few, the same."""
    *arrays, dout = drawn(rng)
    see, spans = seen(mask, packed), spans_of(mask, packed)
    dout *= see.any(axis=-1)[..., None]
    got = grouped_attention_backward(dout, grouped_attention(*arrays, HEADS, KV, spans)[1])
    for i, grad in enumerate(got):

        def loss(value, i=i):
            own = [value if j == i else part.astype(complex) for j, part in enumerate(arrays)]
            return np.sum(dout * grouped_attention(*own, HEADS, KV, spans, keep=False)[0])

        assert_close(grad, complex_step(loss, arrays[i]), SMOOTH)
    for scores in (1, 90):
        with tiles_of(scores):
            tiled = grouped_attention_backward(dout, grouped_attention(*arrays, HEADS, KV, spans)[1])
        for grad, own in zip(got, tiled, strict=True):
            assert_close(own, grad, 1e-13)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@EVERY_KIND
def test_gradients_on_every_backend(put, rng, dtype, mask, packed):
    arrays = drawn(rng)
    arrays[3] *= seen(mask, packed).any(axis=-1)[..., None]
    want = grouped_attention_backward(arrays[3], grouped_attention(*arrays[:3], HEADS, KV, spans_of(mask, packed))[1])
    device = [put(a, dtype) for a in arrays]
    with tiles_of(60):
        cache = grouped_attention(*device[:3], HEADS, KV, spans_of(mask, packed, put))[1]
        got = grouped_attention_backward(device[3], cache)
    assert_lives_on(device[0], *got)
    for a, b in zip(got, want, strict=True):
        assert_close(a, b, 3 * TOLERANCES[dtype])


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("mask", ["right", "left", "holes"])
@pytest.mark.parametrize("scores", [1, 10**6])
def test_a_query_that_sees_nothing_else_sees_itself(put, rng, mask, packed, scores):
    """On every backend, forward and backward: labels on padding are a slip, and have the same result everywhere."""
    *arrays, dout = drawn(rng)
    see = seen(mask, packed)
    lonely = ~see.any(axis=-1)
    see = see | (lonely[:, :, None] & np.eye(T, dtype=bool))
    want = reference(*arrays, see)
    with tiles_of(scores):
        o, cache = grouped_attention(*map(put, arrays), HEADS, KV, spans_of(mask, packed, put))
        grads = grouped_attention_backward(put(dout), cache)
    assert lonely.any() == (mask == "left" or (mask, packed) == ("holes", True))
    assert_close(o, want, 1e-14)
    for i, grad in enumerate(grads):

        def loss(value, i=i):
            own = [value if j == i else part.astype(complex) for j, part in enumerate(arrays)]
            return np.sum(dout * complex_reference(*own, see))

        assert_close(grad, complex_step(loss, arrays[i]), SMOOTH)


def complex_reference(q, k, v, see):
    """The reference, all texts and heads at once."""
    q, k, v = (x.reshape(B, T, -1, D_HEAD) for x in (q, k, v))
    k, v = (np.repeat(x, HEADS // KV, axis=2) for x in (k, v))
    e = np.where(see[:, None], np.exp(np.einsum("bihd,bjhd->bhij", q, k) / D_HEAD**0.5), 0)
    return np.einsum("bhij,bjhd->bihd", e / e.sum(-1, keepdims=True), v).reshape(B, T, -1)


def test_the_last_queries_over_all_keys(put, rng):
    """Tq queries over Tk keys: what the last Tq of Tk would see."""
    q, k, v, _ = drawn(rng)
    want, _ = grouped_attention(q, k, v, HEADS, KV, spans_of("none", False))
    place = np.arange(T - 3, T)[None, :]
    spans = G.Spans(put(0 * place), put(place + 1))
    got, _ = grouped_attention(put(q[:, -3:]), put(k), put(v), HEADS, KV, spans)
    assert_close(got, want[:, -3:], 1e-14)


def test_nothing_as_large_as_the_scores_is_kept(rng):
    n = 256
    q, k, v, dout = (rng.standard_normal((1, n, h * D_HEAD)) for h in (HEADS, KV, KV, HEADS))
    spans = causal_spans(n, np.zeros(1, int))
    _, cache = grouped_attention(q, k, v, HEADS, KV, spans)
    assert max(part.size for part in cache if isinstance(part, np.ndarray)) == n * HEADS * D_HEAD < HEADS * n * n / 8
    before = [part.copy() for part in (q, k, v, dout)]
    first, second = (grouped_attention_backward(dout, cache) for _ in range(2))
    assert all(same_bits(a, b) for a, b in zip(first, second, strict=True))
    assert all(same_bits(a, b) for a, b in zip((q, k, v, dout), before, strict=True))
    assert grouped_attention(q, k, v, HEADS, KV, spans, keep=False)[1] is None


def test_tiles_look_at_no_key_that_nobody_sees():
    spans = causal_spans(64, np.zeros(1, int), None, np.repeat([[0, 1, 2, 3]], 16, axis=1))
    with tiles_of(16 * 16, 16):
        ((_, tiles),) = G._blocks((1, 1, 1, 64, D_HEAD), 64, spans, np)
    assert [(rows.start, keys.start, keys.stop) for rows, keys, _ in tiles] == [
        (i, i, i + 16) for i in range(0, 64, 16)
    ]
