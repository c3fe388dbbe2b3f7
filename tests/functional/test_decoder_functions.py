"""RMS norm, rotary positions, the gated product and the language loss: definitions, complex step, every backend."""

import sys

import numpy as np
import pytest
from checks import TOLERANCES, assert_close, assert_lives_on

from lorabook import InputError
from lorabook import functional as F
from lorabook.backend import to_numpy
from lorabook.functional import complex_step

SMOOTH = 1e-11
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}


def test_rms_norm(put, rng):
    x, weight, dout = rng.standard_normal((2, 3, 5)), rng.standard_normal(5), rng.standard_normal((2, 3, 5))
    y, cache = F.rms_norm(put(x), put(weight), 0.1)
    assert_lives_on(put(x), y)
    assert_close(y, weight * x / np.sqrt((x**2).mean(-1, keepdims=True) + 0.1), 1e-14)
    dx, dweight = F.rms_norm_backward(put(dout), cache)
    assert_close(dx, complex_step(lambda v: np.sum(dout * F.rms_norm(v, weight, 0.1)[0]), x), SMOOTH)
    assert_close(
        dweight, complex_step(lambda v: np.sum(dout * F.rms_norm(x.astype(complex), v, 0.1)[0]), weight), SMOOTH
    )
    assert F.rms_norm_backward(put(dout), cache, ()) == (None, None)
    with pytest.raises(InputError, match="one entry per feature"):
        F.rms_norm(put(x), put(weight[:4]))


def test_swiglu(put, rng):
    gate, up, dout = (3 * rng.standard_normal((2, 3, 5)) for _ in range(3))
    y, cache = F.swiglu(put(gate), put(up))
    assert_lives_on(put(gate), y)
    assert_close(y, gate / (1 + np.exp(-gate)) * up, 1e-14)
    dgate, dup = F.swiglu_backward(put(dout), cache)
    assert_close(dgate, complex_step(lambda v: np.sum(dout * F.swiglu(v, up.astype(complex))[0]), gate), SMOOTH)
    assert_close(dup, complex_step(lambda v: np.sum(dout * F.swiglu(gate.astype(complex), v)[0]), up), SMOOTH)


def test_swiglu_of_large_arrays_in_blocks(rng):
    gate, up, dout = rng.standard_normal((3, 700, 401))
    got = *F.swiglu(gate, up)[0:1], *F.swiglu_backward(dout, (gate, up))
    rows = [(*F.swiglu(g, u)[0:1], *F.swiglu_backward(d, (g, u))) for g, u, d in zip(gate, up, dout, strict=True)]
    for whole, parts in zip(got, zip(*rows, strict=True), strict=True):
        assert_close(whole, np.stack(parts), 1e-15)


def test_rotary(put, rng):
    x, dout = rng.standard_normal((2, 5, 12)), rng.standard_normal((2, 5, 12))  # 2 heads of 6
    positions, w = np.array([[0, 1, 2, 3, 4], [7, 8, 0, 1, 2]]), F.rotary_frequencies(6, 100.0)
    assert_close(w, 100.0 ** -np.array([0, 1 / 3, 2 / 3]), 1e-15)
    y = F.rotary(put(x), *F.rotary_angles(put(positions), w, put(x)))
    assert_lives_on(put(x), y)
    turned = x.reshape(2, 5, 2, 2, 3)
    turned = (turned[..., 0, :] + 1j * turned[..., 1, :]) * np.exp(1j * positions[..., None, None] * w)
    assert_close(y, np.stack([turned.real, turned.imag], axis=-2).reshape(2, 5, 12), 1e-14)
    angles = F.rotary_angles(positions, w, x)
    want = complex_step(lambda v: np.sum(dout * F.rotary(v, *angles)), x)
    assert_close(F.rotary_backward(put(dout), *F.rotary_angles(put(positions), w, put(x))), want, SMOOTH)
    with pytest.raises(InputError, match="heads of 6"):
        F.rotary(x[..., :8], *angles)


def test_products_of_turned_rows_depend_on_the_distance_alone(rng):
    q, k = rng.standard_normal((2, 1, 1, 8))
    w = F.rotary_frequencies(8)

    def score(m, n):
        return np.sum(
            F.rotary(q, *F.rotary_angles(np.array([[m]]), w, q)) * F.rotary(k, *F.rotary_angles(np.array([[n]]), w, k))
        )

    assert abs(score(3, 5) - score(1003, 1005)) < 1e-12 < abs(score(3, 5) - score(3, 6))


def test_scaled_frequencies():
    w = F.rotary_frequencies(16, 50.0)
    assert_close(F.rotary_frequencies(16, 50.0, "linear", factor=2.5), w / 2.5, 1e-15)
    scaled, length = F.rotary_frequencies(16, 50.0, "llama3", **LLAMA3), 2 * np.pi / w
    short, long = length < 64 / 4, length > 64
    assert short.any() and long.any() and (~short & ~long).any()
    assert_close(scaled[short], w[short], 1e-15)
    assert_close(scaled[long], w[long] / 8, 1e-15)
    assert np.all(np.diff(scaled) < 0)
    with pytest.raises(InputError, match="unknown rope_type 'yarn'; expected one of default, linear, llama3"):
        F.rotary_frequencies(16, 50.0, "yarn")


# ---- the loss --------------------------------------------------------------------------------------------------------


def parts(rng, N=70, d=5, V=11):
    return rng.standard_normal((N, d)), rng.standard_normal((V, d)), rng.integers(0, V, N)


def cross_entropy(h, W, labels):
    logits = h @ W.T
    return np.mean(np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(labels)), labels])


@pytest.mark.parametrize("logits", [1, 40 * 11, 10**6])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_language_loss_in_chunks(put, rng, monkeypatch, logits, dtype):
    monkeypatch.setattr(sys.modules["lorabook.functional.language_loss"], "LOGITS", logits)
    h, W, labels = parts(rng)
    loss, dh, dW = F.language_loss(put(h, dtype), put(W, dtype), put(labels), ("h", "weight"), 0.7)
    assert_lives_on(put(h, dtype), dh, dW)
    assert abs(float(loss) - cross_entropy(h, W, labels)) < 10 * TOLERANCES[dtype]
    want = (
        complex_step(lambda v: 0.7 * cross_entropy(v, W, labels), h),
        complex_step(lambda v: 0.7 * cross_entropy(h, v, labels), W),
    )
    for got, right in zip((dh, dW), want, strict=True):
        assert_close(got, right, SMOOTH if dtype == "float64" else 5e-6)


def test_what_is_not_needed_is_not_computed(rng):
    h, W, labels = parts(rng)
    loss, dh, dW = F.language_loss(h, W, labels, ())
    assert dh is None and dW is None and F.language_loss(h, W, labels)[2] is None
    assert loss == F.language_loss(h, W, labels, ("h", "weight"))[0]


def test_large_logits_do_not_overflow(put):
    h, W = put(np.array([[1e4], [-1e4]]), "float32"), put(np.array([[1.0], [-1.0], [0.0]]), "float32")
    loss, dh, _ = F.language_loss(h, W, put(np.array([0, 1])))
    assert float(loss) == 0 and np.all(to_numpy(dh) == 0)


@pytest.mark.parametrize("labels", [[0, 11], [-1, 3], [0], []], ids=str)
def test_labels_that_are_none(rng, labels):
    h, W, _ = parts(rng, N=2)
    with pytest.raises(InputError, match="label"):
        F.language_loss(h[: 0 if not labels else 2], W, np.array(labels, int))


def test_perplexity():
    assert F.perplexity(0.0) == 1 and F.perplexity(1e4) == np.inf
