"""Attention against a loop over heads, by complex step, and in blocks of any size."""

import contextlib
import types
import warnings

import numpy as np
import pytest
from checks import MASK, TOLERANCES, assert_close, assert_lives_on, bias_of, run_of, same_bits

from lorabook.backend import to_numpy
from lorabook.functional import attend as A
from lorabook.functional import complex_step

B, T, D, HEADS = 3, 5, 8, 4  # T tokens ask, S are read
BIASES = ("none", "causal", "padding", "causal and padding")
EVERY_BIAS = pytest.mark.parametrize("kind", BIASES)
SMOOTH = 1e-11
SIZES = {  # scores in a block: 25 a head, 100 a text
    "a head": 1,
    "two heads": 50,
    "three heads and one": 75,
    "a text": 100,
    "two texts and one": 299,
}
EVERY_SIZE = pytest.mark.parametrize("scores", SIZES.values(), ids=SIZES)


@contextlib.contextmanager
def blocks_of(scores):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(A, "SCORES", scores)
        yield


def tokens(rng, n=T):
    return 0.7 * rng.standard_normal((B, n, D))


def both(q, k, v, dout, heads, bias, scores=A.SCORES, causal=False):
    """(o, dq, dk, dv)"""
    with blocks_of(scores):
        o, cache = A.attention(q, k, v, heads, bias, causal=causal)
        return o, *A.attention_backward(dout, cache)


def numerically(q, k, v, dout, heads, kind, scores=A.SCORES):
    """[dq, dk, dv] by complex step."""

    def loss_of(i):
        def loss(value):
            arrays = [value if j == i else part.astype(complex) for j, part in enumerate((q, k, v))]
            with blocks_of(scores):
                return np.sum(dout * A.attention(*arrays, heads, bias_of(kind, arrays[0]))[0])

        return loss

    return [complex_step(loss_of(i), part) for i, part in enumerate((q, k, v))]


# ---- against its definition ------------------------------------------------------------------------------------------


def reference(q, k, v, heads, hidden):
    """Attention by its definition, one sequence, head and token after another; hidden (B, T, S) is not attended to."""
    out = np.zeros(q.shape)
    d_head = q.shape[-1] // heads
    for b in range(q.shape[0]):
        for h in range(heads):
            part = slice(h * d_head, (h + 1) * d_head)
            for i in range(q.shape[1]):
                weights = np.exp([q[b, i, part] @ k[b, j, part] / d_head**0.5 for j in range(k.shape[1])])
                weights = np.where(hidden[b, i], 0.0, weights)
                out[b, i, part] = weights / weights.sum() @ v[b, :, part]
    return out


def hidden_tokens(kind):
    hidden = np.zeros((B, T, T), bool)
    if "causal" in kind:
        hidden |= np.triu(np.ones((T, T), bool), 1)
    if "padding" in kind:
        hidden |= ~MASK[:, None, :]
    return hidden


@EVERY_BIAS
@pytest.mark.parametrize("heads", [1, 2, 4, 8])
def test_attention_is_its_definition(put, rng, kind, heads):
    q, k, v = tokens(rng), tokens(rng), tokens(rng)
    want = reference(q, k, v, heads, hidden_tokens(kind))
    got, _ = A.attention(put(q), put(k), put(v), heads, bias_of(kind, put(q)))
    assert_lives_on(put(q), got)
    assert_close(got, want, 1e-14)


@pytest.mark.parametrize("heads", [1, 2, 4, 8])
@pytest.mark.parametrize("kind", ["causal", "causal and padding"])
def test_causal_attention_is_its_definition(put, rng, kind, heads):
    q, k, v = tokens(rng), tokens(rng), tokens(rng)
    run = run_of(kind, put(q))
    got, _ = A.attention(put(q), put(k), put(v), heads, run.bias, causal=run.causal)
    assert_lives_on(put(q), got)
    assert_close(got, reference(q, k, v, heads, hidden_tokens(kind)), 1e-14)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["causal", "causal and padding"])
@pytest.mark.parametrize("scores", [1, 75, A.SCORES])
@pytest.mark.parametrize("first", [1, 2, 4, T])
def test_causal_has_the_bits_of_the_bias(put, rng, dtype, kind, scores, first):
    """Output and gradients; also where only the first tokens ask, whose bias is the first rows of that of all."""
    q, k, v, dout = (put(tokens(rng, n), dtype) for n in (first, T, T, first))
    run = run_of(kind, k)
    want = both(q, k, v, dout, HEADS, bias_of(kind, k)[..., :first, :], scores)
    got = both(q, k, v, dout, HEADS, run.bias, scores, run.causal)
    assert_lives_on(q, *got)
    assert all(same_bits(a, b) for a, b in zip(got, want, strict=True))
    assert not np.allclose(*(to_numpy(o) for o in (got[0], A.attention(q, k, v, HEADS, run.bias)[0])))


def test_causal_without_keep_the_same_output_and_no_scores(rng):
    q, k, v = (tokens(rng) for _ in range(3))
    want, (kept, *_) = A.attention(q, k, v, HEADS, causal=True)
    got, (none, *_) = A.attention(q, k, v, HEADS, keep=False, causal=True)
    assert same_bits(got, want)
    assert kept and not none


@EVERY_BIAS
@pytest.mark.parametrize("heads", [1, 4])
def test_gradients(rng, kind, heads):
    q, k, v, dout = (tokens(rng) for _ in range(4))
    _, *got = both(q, k, v, dout, heads, bias_of(kind, q))
    for grad, want in zip(got, numerically(q, k, v, dout, heads, kind), strict=True):
        assert_close(grad, want, SMOOTH)


@pytest.mark.parametrize("S", [4, 7])
def test_other_numbers_of_queries_and_keys(put, rng, S):
    q, k, v, dout = tokens(rng), tokens(rng, S), tokens(rng, S), tokens(rng)
    o, *grads = both(put(q), put(k), put(v), put(dout), HEADS, None)
    assert_lives_on(put(q), o, *grads)
    assert_close(o, reference(q, k, v, HEADS, np.zeros((B, T, S), bool)), 1e-14)
    for grad, want in zip(grads, numerically(q, k, v, dout, HEADS, "none"), strict=True):
        assert_close(grad, want, SMOOTH)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@EVERY_BIAS
def test_same_on_every_backend(put, rng, dtype, kind):
    host = [tokens(rng) for _ in range(4)]
    want = both(*host, HEADS, bias_of(kind, host[0]))
    device = [put(a, dtype) for a in host]
    got = both(*device, HEADS, bias_of(kind, device[0]), SIZES["three heads and one"])
    assert_lives_on(device[0], *got)
    for a, b in zip(got, want, strict=True):
        assert_close(a, b, 2 * TOLERANCES[dtype])


# ---- in blocks -------------------------------------------------------------------------------------------------------


@EVERY_SIZE
@EVERY_BIAS
def test_the_same_bits_in_blocks_of_any_size(rng, kind, scores):
    q, k, v, dout = (tokens(rng) for _ in range(4))
    want = both(q, k, v, dout, HEADS, bias_of(kind, q))
    got = both(q, k, v, dout, HEADS, bias_of(kind, q), scores)
    assert all(same_bits(a, b) for a, b in zip(got, want, strict=True))


@EVERY_SIZE
def test_gradients_in_blocks(rng, scores):
    q, k, v, dout = (tokens(rng) for _ in range(4))
    _, *got = both(q, k, v, dout, HEADS, bias_of("causal and padding", q), scores)
    for grad, want in zip(got, numerically(q, k, v, dout, HEADS, "causal and padding", scores), strict=True):
        assert_close(grad, want, SMOOTH)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 4, 5, 5), (7, 3, 2, 9), (2, 5, 6, 4)], ids=str)
@pytest.mark.parametrize("scores", [1, 17, 60, 10**6])
def test_blocks_cover_every_head_once(shape, scores):
    seen = np.zeros(shape)
    with blocks_of(scores):
        blocks = A._blocks(shape, np)
    for block in blocks:
        seen[block] += 1
        assert seen[block].size <= max(scores, shape[2] * shape[3])
    assert np.all(seen == 1)
    assert (len(blocks) == 1) == (seen.size <= scores or seen.size == 1)


def test_one_block_on_a_gpu():
    with blocks_of(1):
        assert A._blocks((3, 4, 5, 5), types.SimpleNamespace(__name__="cupy")) == [(slice(0, 3), slice(0, 4), ...)]


# ---- what is kept and written ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("scores", [1, A.SCORES])
def test_nothing_is_written_to(rng, heads, scores):
    held = [tokens(rng), tokens(rng), tokens(rng), tokens(rng), bias_of("causal and padding", tokens(rng))]
    before = [a.copy() for a in held]
    q, k, v, dout, bias = held
    with blocks_of(scores):
        o, cache = A.attention(q, k, v, heads, bias)
    held, before = [*held, o], [*before, o.copy()]
    first, second = A.attention_backward(dout, cache), A.attention_backward(dout, cache)
    assert all(same_bits(a, b) for a, b in zip(first, second, strict=True))
    assert all(same_bits(a, b) for a, b in zip(held, before, strict=True))


@EVERY_BIAS
def test_without_keep_the_same_output_and_no_scores(rng, kind):
    q, k, v = (tokens(rng) for _ in range(3))
    want, (kept, *_) = A.attention(q, k, v, HEADS, bias_of(kind, q))
    got, (none, *_) = A.attention(q, k, v, HEADS, bias_of(kind, q), keep=False)
    assert same_bits(got, want)
    assert kept and not none


# ---- biases and large scores -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bool", "int64", "int32", "uint8", "float32"])
def test_a_mask_may_be_of_any_dtype(put, dtype):
    like = put(np.zeros((3, 5, 8)))
    assert same_bits(A.padding_bias(put(MASK.astype(dtype)), like), A.padding_bias(put(MASK), like))


def test_biases_are_zero_or_huge(put):
    like = put(np.zeros((B, T, D), "f4"))
    causal, padding = to_numpy(bias_of("causal", like)), to_numpy(bias_of("padding", like))
    assert causal.shape == (T, T) and padding.shape == (B, 1, 1, T)
    assert causal.dtype == padding.dtype == np.float32
    np.testing.assert_array_equal(causal < -1e38, np.triu(np.ones((T, T), bool), 1))
    np.testing.assert_array_equal(padding[:, 0, 0] < -1e38, ~MASK)
    assert np.all(causal[causal > -1e38] == 0) and np.all(padding[padding > -1e38] == 0)
    assert np.isfinite(causal + padding).all()


@pytest.mark.parametrize(("f", "S"), [(1, 5), (2, 5), (5, 5), (5, 3)])
def test_the_causal_bias_of_the_first_tokens_is_the_first_rows(put, f, S):
    like = put(np.zeros(1))
    bias = A.causal_bias(f, like, S)
    assert_lives_on(like, bias)
    assert same_bits(bias, A.causal_bias(5, like)[:f, :S])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_sequence_of_nothing_but_padding_gets_the_mean_of_all(rng, dtype):
    q, k, v, dout = (tokens(rng).astype(dtype) for _ in range(4))
    mask = MASK.copy()
    mask[1] = False
    o, *grads = both(q, k, v, dout, HEADS, A.padding_bias(mask, q))
    assert all(np.isfinite(a).all() for a in (o, *grads))
    assert_close(o[1], np.broadcast_to(v[1].mean(axis=0), (T, D)), TOLERANCES[dtype])


def test_a_sequence_of_nothing_but_padding_stays_finite(rng):
    q = tokens(rng).astype("f4")
    bias = A.padding_bias(np.zeros((B, T), bool), q) + A.causal_bias(T, q)
    assert all(np.isfinite(a).all() for a in both(q, q, q, q, HEADS, bias))


def test_large_scores_do_not_overflow(rng):
    q = 1e4 * tokens(rng).astype("f4")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parts = both(q, q, q, q, HEADS, bias_of("causal and padding", q))
    assert all(np.isfinite(a).all() for a in parts)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_of_scores_of_1e4_takes_all(rng, sign):
    q, v = np.full((B, T, 1), 100, "f4"), rng.standard_normal((B, T, 1)).astype("f4")
    k = np.broadcast_to(np.array([-100, 0, 100, -50, 50], "f4")[:, None], (B, T, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        o, *grads = both(q, sign * k, v, v, 1, None)
    largest = v[:, 2 if sign > 0 else 0, 0]
    assert np.all(o[..., 0] == largest[:, None])
    assert all(np.isfinite(a).all() for a in grads)


# ---- heads -----------------------------------------------------------------------------------------------------------


def test_heads_are_views(rng):
    x = tokens(rng)
    heads = A.split_heads(x, HEADS)
    assert heads.shape == (B, HEADS, T, D // HEADS)
    assert np.shares_memory(heads, x)
    assert same_bits(A.merge_heads(heads), x)


def test_attention_of_no_texts(put):
    q = put(np.zeros((0, 5, 8)))
    o, cache = A.attention(q, q, q, 2)
    assert o.shape == (0, 5, 8)
    assert [g.shape for g in A.attention_backward(o, cache)] == 3 * [(0, 5, 8)]
