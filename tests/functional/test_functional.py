import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
from checks import TOLERANCES, assert_close, assert_lives_on, same_bits

from lorabook import functional as F
from lorabook.backend import BLOCK, to_numpy

DTYPES = pytest.mark.parametrize("dtype", ["float32", "float64"])
SHAPES = pytest.mark.parametrize("shape", [(5,), (4, 5), (2, 3, 5)], ids=str)


def draw(rng, dtype, *shapes):
    """Host arrays, rounded to `dtype` and held in float64: what a reference computes from."""
    return [rng.standard_normal(shape).astype(dtype).astype(float) for shape in shapes]


# ---- linear ----------------------------------------------------------------------------------------------------------


@DTYPES
@SHAPES
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
def test_linear(put, rng, dtype, shape, bias):
    x, weight, b = draw(rng, dtype, shape, (7, 5), (7,))
    x_, w_, b_ = put(x, dtype), put(weight, dtype), put(b, dtype) if bias else None
    y, (x_cached, w_cached) = F.linear(x_, w_, b_)
    assert_lives_on(x_, y)
    assert x_cached is x_
    assert w_cached is w_
    assert_close(y, np.einsum("...i,oi->...o", x, weight) + bias * b, TOLERANCES[dtype])


@DTYPES
@SHAPES
def test_linear_backward(put, rng, dtype, shape):
    x, weight, dout = draw(rng, dtype, shape, (7, 5), (*shape[:-1], 7))
    x_, w_, dout_ = put(x, dtype), put(weight, dtype), put(dout, dtype)
    dx, dweight, dbias = F.linear_backward(dout_, (x_, w_))
    assert_lives_on(x_, dx, dweight, dbias)
    assert_close(dx, np.einsum("...o,oi->...i", dout, weight), TOLERANCES[dtype])
    assert_close(dweight, np.einsum("no,ni->oi", dout.reshape(-1, 7), x.reshape(-1, 5)), TOLERANCES[dtype])
    assert_close(dbias, dout.reshape(-1, 7).sum(axis=0), TOLERANCES[dtype])


@pytest.mark.parametrize("needs", [(), ("x",), ("weight",), ("bias",), ("x", "bias")], ids=str)
@pytest.mark.parametrize("name", ["linear", "layer_norm"])
def test_backward_computes_what_is_needed(put, rng, name, needs):
    x, weight, bias, dout = (put(a) for a in draw(rng, "float64", (4, 5), (5, 5), (5,), (4, 5)))
    weight = weight if name == "linear" else bias
    _, cache = getattr(F, name)(x, weight, bias)
    grads = dict(zip(("x", "weight", "bias"), getattr(F, f"{name}_backward")(dout, cache, needs), strict=True))
    assert {n for n, g in grads.items() if g is not None} == set(needs)


# ---- activations -----------------------------------------------------------------------------------------------------


def gelu_tanh(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def gelu_tanh_slope(x):
    t = np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    return 0.5 * (1 + t) + 0.5 * x * (1 - t**2) * math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x**2)


REFERENCES = {
    "relu": (lambda x: np.where(x > 0, x, 0), lambda x: np.where(x > 0, 1.0, 0.0)),
    "gelu": (
        lambda x: x * scipy.special.ndtr(x),
        lambda x: scipy.special.ndtr(x) + x * scipy.stats.norm.pdf(x),
    ),
    "gelu_tanh": (gelu_tanh, gelu_tanh_slope),
    "silu": (
        lambda x: x * scipy.special.expit(x),
        lambda x: scipy.special.expit(x) * (1 + x * scipy.special.expit(-x)),
    ),
    "tanh": (np.tanh, lambda x: 1 / np.cosh(x) ** 2),
}


def test_every_activation_has_a_reference():
    assert REFERENCES.keys() == F.ACTIVATIONS.keys()


@DTYPES
@pytest.mark.parametrize("name", REFERENCES)
def test_activation(put, rng, dtype, name):
    value, derivative = REFERENCES[name]
    x, dout = draw(rng, dtype, (4, 5), (4, 5))
    x = 2 * x
    y, slope = F.ACTIVATIONS[name](put(x, dtype))
    dx = F.activation_backward(put(dout, dtype), slope)
    assert_lives_on(put(x, dtype), y, slope, dx)
    assert_close(y, value(x), TOLERANCES[dtype])
    assert_close(slope, derivative(x), TOLERANCES[dtype])
    assert_close(dx, dout * derivative(x), TOLERANCES[dtype])


@DTYPES
@pytest.mark.parametrize("name", REFERENCES)
def test_activation_at_zero_and_far_out(put, dtype, name):
    y, slope = F.ACTIVATIONS[name](put([-1e4, -100.0, 0.0, 100.0, 1e4], dtype))
    values, slopes = {
        "tanh": ([-1, -1, 0, 1, 1], [0, 0, 1, 0, 0]),
        "relu": ([0, 0, 0, 100, 1e4], [0, 0, 0, 1, 1]),
    }.get(name, ([0, 0, 0, 100, 1e4], [0, 0, 0.5, 1, 1]))
    assert to_numpy(y).tolist() == values
    assert np.abs(to_numpy(slope) - slopes).max() <= (6e-8 if dtype == "float32" else 0)  # one rounding of 0.5


def test_exact_gelu_and_its_approximation_differ_by_less_than_5e4(put):
    x = put(np.linspace(-6, 6, 301))
    exact, approximate = F.gelu_erf(x)[0], F.gelu_tanh(x)[0]
    gap = np.max(np.abs(to_numpy(exact) - to_numpy(approximate)))
    assert 1e-4 < gap < 5e-4


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [7, 2 * BLOCK + 3])
def test_values_alone_have_the_bits_of_the_pair(put, rng, dtype, size):
    x = put(3 * rng.standard_normal(size), dtype)
    assert F.VALUES.keys() <= F.ACTIVATIONS.keys()
    for name, function in F.VALUES.items():
        y, *slope = function(x)
        assert not slope
        assert_lives_on(x, y)
        assert same_bits(y, F.ACTIVATIONS[name](x)[0])


def test_exact_gelu_in_float32():
    """Its value is x Phi, so the error of Phi, 2e-7 at most, counts x times; then the product is rounded."""
    x = np.linspace(-12, 12, 1_000_001, dtype="f4")
    y, slope = F.gelu_erf(x)
    value, derivative = (f(x.astype(float)) for f in REFERENCES["gelu"])
    assert np.all(np.abs(y - value) <= 2e-7 * np.abs(x) + 6e-8 * np.abs(value))
    assert np.abs(slope - derivative).max() < 3e-7


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("size", [7, 2 * BLOCK + 3])
def test_only_who_allows_it_is_written_over(rng, name, size):
    x, dout = rng.standard_normal(size), rng.standard_normal(size)
    held = x.copy(), dout.copy()
    y, slope = F.ACTIVATIONS[name](x)
    dx = F.activation_backward(dout, slope)
    assert same_bits(x, held[0]) and same_bits(dout, held[1])
    y_, slope_ = F.ACTIVATIONS[name](x, overwrite=True)
    dx_ = F.activation_backward(dout, slope_, overwrite=True)
    assert dx_ is dout
    assert all(same_bits(a, b) for a, b in ((y_, y), (slope_, slope), (dx_, dx)))


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh", "silu"])
def test_the_slope_of_a_large_array_takes_its_memory(rng, name):
    x = rng.standard_normal((3, BLOCK))
    _, slope = F.ACTIVATIONS[name](x, overwrite=True)
    assert np.shares_memory(slope, x)


# ---- sums and means along the last axis ------------------------------------------------------------------------------


@DTYPES
@SHAPES
def test_row_sums_and_means(put, rng, dtype, shape):
    (x,) = draw(rng, dtype, shape)
    sums, means = F.row_sums(put(x, dtype)), F.row_means(put(x, dtype))
    assert_lives_on(put(x, dtype), sums, means)
    assert_close(sums, x.sum(axis=-1), TOLERANCES[dtype])
    assert_close(means, x.mean(axis=-1, keepdims=True), TOLERANCES[dtype])


def test_row_sums_and_means_of_a_complex_step(put, rng):
    x = rng.standard_normal((2, 3, 5)) + 1e-30j * rng.standard_normal((2, 3, 5))
    for got, want in ((F.row_sums(put(x)), x.sum(axis=-1)), (F.row_means(put(x)), x.mean(axis=-1, keepdims=True))):
        assert_lives_on(put(x), got)
        assert_close(to_numpy(got).real, want.real)
        assert_close(to_numpy(got).imag, want.imag)


def test_row_sums_of_views(rng):
    x = rng.standard_normal((6, 4, 10))
    for view in (x[::2], x[..., ::-1], x.swapaxes(0, 2), x[:, :1, 3:]):
        assert_close(F.row_sums(view), view.sum(axis=-1))


@pytest.mark.parametrize("axis", [-1, -2])
def test_shifts_are_the_real_maxima(put, rng, axis):
    x = rng.standard_normal((2, 3, 5))
    for array in (put(x), put(x + 1e-30j)):
        got = F.shift(array, axis)
        assert_lives_on(put(x), got)
        assert same_bits(got, x.max(axis=axis, keepdims=True))


# ---- softmax ---------------------------------------------------------------------------------------------------------


@DTYPES
@SHAPES
def test_softmax(put, rng, dtype, shape):
    (x,) = draw(rng, dtype, shape)
    p, cache = F.softmax(put(3 * x, dtype))
    assert_lives_on(put(x, dtype), p, cache)
    assert_close(p, scipy.special.softmax(3 * x, axis=-1), TOLERANCES[dtype])


@DTYPES
@SHAPES
def test_softmax_backward(put, rng, dtype, shape):
    x, dout = draw(rng, dtype, shape, shape)
    p = scipy.special.softmax(x, axis=-1)
    dx = F.softmax_backward(put(dout, dtype), put(p, dtype))
    jacobian = p[..., :, None] * np.eye(5) - p[..., :, None] * p[..., None, :]
    assert_lives_on(put(x, dtype), dx)
    assert_close(dx, np.einsum("...i,...ij->...j", dout, jacobian), TOLERANCES[dtype])


@DTYPES
def test_softmax_rows_sum_to_one_and_its_gradient_rows_to_zero(put, rng, dtype):
    x, dout = draw(rng, dtype, (40, 6), (40, 6))
    p, cache = F.softmax(put(x, dtype))
    dx = F.softmax_backward(put(dout, dtype), cache)
    eps = np.finfo(dtype).eps
    assert np.max(np.abs(to_numpy(p).sum(axis=-1) - 1)) <= 4 * eps
    assert np.max(np.abs(to_numpy(dx).sum(axis=-1))) <= 8 * eps


@DTYPES
def test_softmax_does_not_see_a_shift(put, rng, dtype):
    x = np.round(8 * rng.standard_normal((4, 6))) / 4
    p, _ = F.softmax(put(x, dtype))
    shifted, _ = F.softmax(put(x + 1024, dtype))
    assert to_numpy(p).tolist() == to_numpy(shifted).tolist()


@DTYPES
def test_softmax_at_large_logits(put, dtype):
    p, _ = F.softmax(put([[1e4, -1e4, 1e4], [-1e4, 0.0, 1e4], [-1e4, -1e4, -1e4]], dtype))
    want = np.array([[0.5, 0, 0.5], [0, 0, 1], [1 / 3, 1 / 3, 1 / 3]])
    assert_close(p, want, np.finfo(dtype).eps)


# ---- layer norm ------------------------------------------------------------------------------------------------------


def layer_norm(x, weight, bias, eps):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) * weight + bias


@DTYPES
@SHAPES
@pytest.mark.parametrize("eps", [1e-5, 0.3])
def test_layer_norm(put, rng, dtype, shape, eps):
    x, weight, bias = draw(rng, dtype, shape, (5,), (5,))
    x_, w_, b_ = put(x, dtype), put(weight, dtype), put(bias, dtype)
    y, cache = F.layer_norm(x_, w_, b_, eps)
    assert_lives_on(x_, y, *cache)
    assert_close(y, layer_norm(x, weight, bias, eps), 2 * TOLERANCES[dtype])


@DTYPES
@SHAPES
def test_layer_norm_backward(put, rng, dtype, shape):
    x, weight, bias, dout = draw(rng, dtype, shape, (5,), (5,), shape)
    _, cache = F.layer_norm(put(x, dtype), put(weight, dtype), put(bias, dtype), 0.1)
    dx, dweight, dbias = F.layer_norm_backward(put(dout, dtype), cache)
    assert_lives_on(put(x, dtype), dx, dweight, dbias)
    d, rstd, xhat = 5, 1 / np.sqrt(x.var(-1) + 0.1), layer_norm(x, 1, 0, 0.1)
    jacobian = np.eye(d) - 1 / d - xhat[..., :, None] * xhat[..., None, :] / d  # dxhat / dx, less the factor rstd
    tolerance = 4 * TOLERANCES[dtype]
    assert_close(dx, rstd[..., None] * np.einsum("...i,...ij->...j", dout * weight, jacobian), tolerance)
    assert_close(dweight, (dout * xhat).reshape(-1, d).sum(0), tolerance)
    assert_close(dbias, dout.reshape(-1, d).sum(0), tolerance)


def test_layer_norm_is_free_of_shift_and_scale(put, rng):
    (x,) = draw(rng, "float64", (4, 6))
    one, zero = put(np.ones(6)), put(np.zeros(6))
    y, cache = F.layer_norm(put(x), one, zero, 0.0)
    y_, _ = F.layer_norm(put(3 * x + 2), one, zero, 0.0)
    dx, _, _ = F.layer_norm_backward(put(rng.standard_normal((4, 6))), cache)
    assert_close(y_, y)
    assert np.max(np.abs(to_numpy(y).mean(-1))) < 1e-15
    assert_close((to_numpy(y) ** 2).mean(-1), np.ones(4))
    assert np.max(np.abs(to_numpy(dx).sum(-1))) < 1e-14
    assert np.max(np.abs((to_numpy(dx) * x).sum(-1))) < 1e-14


# ---- losses ----------------------------------------------------------------------------------------------------------


@DTYPES
def test_cross_entropy(put, rng, dtype):
    (logits,) = draw(rng, dtype, (6, 4))
    labels = np.array([0, 3, 1, 1, 2, 3])
    logits_ = put(logits, dtype)
    loss, cache = F.softmax_cross_entropy(logits_, put(labels))
    dlogits = F.softmax_cross_entropy_backward(0.7, cache)
    assert_lives_on(logits_, loss, dlogits)
    log_p = scipy.special.log_softmax(logits, axis=-1)
    assert_close(loss, -log_p[np.arange(6), labels].mean(), TOLERANCES[dtype])
    assert_close(dlogits, 0.7 * (np.exp(log_p) - np.eye(4)[labels]) / 6, TOLERANCES[dtype])


@DTYPES
@pytest.mark.parametrize("shape", [(6,), (2, 3)], ids=str)
def test_cross_entropy_of_what_counts(put, rng, dtype, shape):
    """A label below 0 leaves loss and gradient as they are without its row; its own gradient is zero."""
    (logits,) = draw(rng, dtype, (*shape, 4))
    labels = np.array([2, -100, 0, -1, 3, -100]).reshape(shape)
    logits_, counts = put(logits, dtype), labels >= 0
    loss, cache = F.softmax_cross_entropy(logits_, put(labels))
    dlogits = F.softmax_cross_entropy_backward(0.7, cache)
    want, want_cache = F.softmax_cross_entropy(logits[counts], labels[counts])
    assert_lives_on(logits_, loss, dlogits)
    assert_close(loss, want, TOLERANCES[dtype])
    assert_close(to_numpy(dlogits)[counts], F.softmax_cross_entropy_backward(0.7, want_cache), TOLERANCES[dtype])
    assert not np.any(to_numpy(dlogits)[~counts])


@DTYPES
def test_cross_entropy_at_large_logits(put, dtype):
    logits, labels = put([[1e4, -1e4, 0.0], [1e4, -1e4, 0.0]], dtype), put([0, 1])
    loss, cache = F.softmax_cross_entropy(logits, labels)
    dlogits = F.softmax_cross_entropy_backward(1.0, cache)
    assert float(loss) == 1e4
    assert to_numpy(dlogits).tolist() == [[0, 0, 0], [0.5, -0.5, 0]]


@DTYPES
def test_cross_entropy_of_a_guess_is_log_k(put, rng, dtype):
    labels = rng.integers(0, 10, 8)
    loss, cache = F.softmax_cross_entropy(put(np.full((8, 10), 3.0), dtype), put(labels))
    dlogits = F.softmax_cross_entropy_backward(1.0, cache)
    assert_close(loss, math.log(10), np.finfo(dtype).eps)
    assert np.max(np.abs(to_numpy(dlogits).sum(-1))) <= np.finfo(dtype).eps


@DTYPES
@SHAPES
def test_mean_squared_error(put, rng, dtype, shape):
    y, target = draw(rng, dtype, shape, shape)
    loss, cache = F.mean_squared_error(put(y, dtype), put(target, dtype))
    dy = F.mean_squared_error_backward(0.7, cache)
    assert_lives_on(put(y, dtype), loss, dy)
    assert_close(loss, ((y - target) ** 2).mean(), TOLERANCES[dtype])
    assert_close(dy, 0.7 * 2 * (y - target) / y.size, TOLERANCES[dtype])


def test_mean_squared_error_of_the_target_is_zero(put, rng):
    y = put(rng.standard_normal((3, 4)))
    loss, cache = F.mean_squared_error(y, y)
    assert float(loss) == 0
    assert not np.any(to_numpy(F.mean_squared_error_backward(1.0, cache)))


# ---- every pair ------------------------------------------------------------------------------------------------------


def test_inputs_are_left_as_they_were(put, rng):
    host = dict(zip(("x", "weight", "bias", "dout"), draw(rng, "float64", (4, 5), (5, 5), (5,), (4, 5)), strict=True))
    x, weight, bias, dout = (put(a) for a in host.values())
    labels = put([0, 1, 2, 3])
    F.linear_backward(dout, F.linear(x, weight, bias)[1])
    F.layer_norm_backward(dout, F.layer_norm(x, bias, bias)[1])
    F.softmax_backward(dout, F.softmax(x)[1])
    F.softmax_cross_entropy_backward(1.0, F.softmax_cross_entropy(x, labels)[1])
    F.mean_squared_error_backward(1.0, F.mean_squared_error(x, dout)[1])
    for activation in F.ACTIVATIONS.values():
        F.activation_backward(dout, activation(x)[1])
    for (name, before), after in zip(host.items(), (x, weight, bias, dout), strict=True):
        assert to_numpy(after).tolist() == before.tolist(), name
    assert to_numpy(labels).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("shape", [(0, 5), (2, 0, 5)], ids=str)
def test_row_sums_of_no_rows(put, shape):
    assert F.row_sums(put(np.zeros(shape))).shape == shape[:-1]


def test_layer_norm_of_an_empty_batch(put):
    y, cache = F.layer_norm(put(np.zeros((0, 5))), put(np.ones(5)), put(np.zeros(5)))
    dx, dweight, dbias = F.layer_norm_backward(put(np.zeros((0, 5))), cache)
    assert y.shape == dx.shape == (0, 5)
    assert not to_numpy(dweight).any() and not to_numpy(dbias).any()
