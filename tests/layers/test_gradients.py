import contextlib

import numpy as np
import pytest
from checks import LAYERS, assert_close, dropout_seed, linear, lora, same_bits

from lorabook import InputError, LoRALinear
from lorabook import functional as F
from lorabook.functional import complex_step, finite_difference, relative_error
from lorabook.layers import RUN, Activation, Layer, LayerNorm, Linear, Sequential, check_layer

SMOOTH, KINKED = 1e-11, 1e-6


def assert_right(layer, x, rng, tolerance=SMOOTH, **options):
    errors = check_layer(layer, x, rng, **options)
    assert errors.keys() == {"x"} | layer.trainable_params().keys()
    wrong = {name: error for name, error in errors.items() if not error < tolerance}
    assert not wrong


# ---- losses ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "labels",
    [[0, 3, 1, 1, 2, 3], [0, -100, 1, -1, 2, -100], [[0, 3, -100], [-100, 2, 2]], 3],
    ids=["rows", "ignored", "tokens", "one"],
)
def test_cross_entropy(rng, labels):
    labels = np.array(labels)
    logits = 2 * rng.standard_normal((*labels.shape, 4))
    _, cache = F.softmax_cross_entropy(logits, labels)
    want = complex_step(lambda v: 0.7 * F.softmax_cross_entropy(v, labels)[0], logits)
    assert_close(F.softmax_cross_entropy_backward(0.7, cache), want, SMOOTH)


@pytest.mark.parametrize("shape", [(6, 4), (2, 3, 4)], ids=str)
def test_mean_squared_error(rng, shape):
    y, target = rng.standard_normal(shape), rng.standard_normal(shape)
    _, cache = F.mean_squared_error(y, target)
    want = complex_step(lambda v: 0.7 * F.mean_squared_error(v, target)[0], y)
    assert_close(F.mean_squared_error_backward(0.7, cache), want, SMOOTH)


@pytest.mark.parametrize("name", ["mlp", "lora_mlp"])
@pytest.mark.parametrize("loss", ["cross_entropy", "mean_squared_error"])
def test_model_and_loss(rng, name, loss):
    model, x = LAYERS[name](rng), rng.standard_normal((6, 5))
    model.loss = loss
    target = np.array([0, 6, 1, 1, 2, 3]) if loss == "cross_entropy" else rng.standard_normal((6, 7))
    _, grads = model.loss_and_grad({"x": x, "labels": target})
    probe = model.to(np, "complex128")
    assert grads.keys() == probe.trainable_params().keys()
    for path, param in probe.trainable_params().items():

        def value_of(value, param=param):
            param[...] = value
            return probe.loss_and_grad({"x": x.astype(complex), "labels": target})[0]

        original = param.copy()
        assert_close(grads[path], complex_step(value_of, original.real), SMOOTH)
        param[...] = original


# ---- relu: by differences, away from its kink ------------------------------------------------------------------------


def test_relu(rng):
    x = rng.standard_normal((2, 3, 5))
    x += np.sign(x) * 0.1
    assert_right(Activation("relu"), x, rng, KINKED, method="central")


def test_relu_in_a_stack(rng):
    below, x = linear(rng, 8, 5), rng.standard_normal((2, 3, 8))
    assert np.min(np.abs(below(x)[0])) > 1e-3, "an input sits on the kink: choose another seed"
    stack = Sequential({"below": below, "relu": Activation("relu"), "above": lora(rng)})
    assert_right(stack, x, rng, KINKED, method="central")


# ---- every layer, alone and in a stack of two ------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYERS)
def test_layer(rng, name):
    x = rng.standard_normal((2, 3, 5))
    assert_right(LAYERS[name](rng), x, rng, dropout_seed=dropout_seed(name))


@pytest.mark.parametrize("name", LAYERS)
def test_layer_above_another(rng, name):
    stack = Sequential({"below": linear(rng, 8, 5), "layer": LAYERS[name](rng)})
    assert_right(stack, 0.5 * rng.standard_normal((2, 3, 8)), rng, dropout_seed=dropout_seed(name))


@pytest.mark.parametrize("name", LAYERS)
def test_layer_below_another(rng, name):
    layer, x = LAYERS[name](rng), rng.standard_normal((2, 3, 5))
    width = layer(x)[0].shape[-1]
    stack = Sequential({"layer": layer, "above": linear(rng, width, 9)})
    assert_right(stack, x, rng, dropout_seed=dropout_seed(name))


@pytest.mark.parametrize("name", ["linear", "layer_norm", "softmax", "lora_factored", "lora_merged", "lora_dropout"])
@pytest.mark.parametrize("shape", [(5,), (6, 5)], ids=str)
def test_layer_on_other_shapes(rng, name, shape):
    assert_right(LAYERS[name](rng), rng.standard_normal(shape), rng, dropout_seed=dropout_seed(name))


def test_lora_stack_of_two_with_dropout(rng):
    stack = Sequential(
        {"a": lora(rng, lora_dropout=0.3), "norm": LayerNorm(np.ones(7), np.zeros(7)), "b": linear(rng, 7, 8)}
    )
    assert_right(stack, rng.standard_normal((2, 3, 5)), rng, dropout_seed=1)


@pytest.mark.parametrize("name", ["linear", "layer_norm", "mlp", "lora_factored", "lora_merged", "lora_dropout_weight"])
def test_central_differences_agree(rng, name):
    layer = LAYERS[name](rng)
    x = rng.standard_normal((2, 3, 5))
    assert_right(layer, x, rng, 1e-7, method="central", dropout_seed=dropout_seed(name))


# ---- the two derivatives ---------------------------------------------------------------------------------------------


def test_complex_step_is_exact_to_rounding(rng):
    v = rng.standard_normal((3, 2))
    got = complex_step(lambda v: np.sum(np.sin(v) * v**3), v)
    assert_close(got, np.cos(v) * v**3 + 3 * np.sin(v) * v**2, 1e-15)


def test_error_of_central_differences_falls_as_h_squared(rng):
    v = rng.standard_normal((3, 2))
    errors = [relative_error(finite_difference(lambda v: np.sum(v**3), v, h), 3 * v**2) for h in (1e-2, 1e-3)]
    assert abs(np.log10(errors[0] / errors[1]) - 2) < 0.1


@pytest.mark.parametrize("derivative", [complex_step, finite_difference])
def test_derivative_leaves_its_argument(rng, derivative):
    v = rng.standard_normal((3, 2))
    before = v.copy()
    derivative(lambda v: np.sum(v * v), v)
    assert same_bits(v, before)


@pytest.mark.parametrize(
    ("got", "want", "error"),
    [([1.0, 2.0], [1.0, 4.0], 0.5), ([0.1], [0.0], 0.1), ([0.0], [0.0], 0.0), ([np.nan, 1.0], [1.0, 1.0], np.inf)],
)
def test_relative_error(got, want, error):
    assert relative_error(np.array(got), np.array(want)) == error


# ---- does the check see what it should? ------------------------------------------------------------------------------


class Edited(Linear):
    """A Linear whose gradients go through `edit` before they come back."""

    def __init__(self, rng, edit):
        super().__init__(rng.standard_normal((7, 5)), rng.standard_normal(7))
        self.edit = edit

    def backward(self, dout, cache, need_dx=True):
        return self.edit(*super().backward(dout, cache, need_dx))


@pytest.mark.parametrize(
    ("edit", "wrong", "at_least"),
    [
        (lambda dx, g: (dx, g | {"weight": 1.001 * g["weight"]}), "weight", 0.9e-3),
        (lambda dx, g: (dx, g | {"weight": -g["weight"]}), "weight", 1.9),
        (lambda dx, g: (dx, g | {"weight": np.full_like(g["weight"], np.nan)}), "weight", np.inf),
        (lambda dx, g: (dx, g | {"weight": g["weight"].T}), "weight", np.inf),
        (lambda dx, g: (dx, g | {"bias": g["bias"][None]}), "bias", np.inf),
        (lambda dx, g: (dx, {"bias": g["bias"]}), "weight", np.inf),
        (lambda dx, g: (dx, g | {"extra": g["bias"]}), "extra", np.inf),
        (lambda dx, g: (1.001 * dx, g), "x", 0.9e-3),
        (lambda dx, g: (None, g), "x", np.inf),
        (lambda dx, g: (dx, g | {"weight": g["weight"] + np.eye(7, 5, 4)}), "weight", 0.01),
    ],
    ids=["scaled", "sign", "nan", "transposed", "extra axis", "missing", "extra", "dx scaled", "dx missing", "entry"],
)
@pytest.mark.parametrize("directions", [None, 2], ids=["every number", "along two directions"])
def test_wrong_gradient_is_reported(rng, edit, wrong, at_least, directions):
    errors = check_layer(Edited(rng, edit), rng.standard_normal((4, 5)), rng, directions=directions)
    assert errors.pop(wrong) >= at_least
    assert errors
    assert max(errors.values()) < SMOOTH


@pytest.mark.parametrize("merged", [False, True])
def test_checked_layer_is_left_as_it_was(rng, merged):
    """A merged one too, which has no gradients to be checked."""
    layer = lora(rng).to(np, "float32")
    if merged:
        layer.merge()
    params, before = layer.named_params(), {n: a.copy() for n, a in layer.named_params().items()}
    with pytest.raises(InputError, match="call unmerge") if merged else contextlib.nullcontext():
        assert max(check_layer(layer, rng.standard_normal((4, 5)), rng).values()) < SMOOTH
    assert layer.merged == merged
    for name, array in layer.named_params().items():
        assert array is params[name]
        assert same_bits(array, before[name])


class Lookup(Layer):
    def forward(self, x, run=RUN):
        return self.params["table"][x], x

    def backward(self, dout, x, need_dx=True):
        dtable = np.zeros(self.params["table"].shape)
        np.add.at(dtable, x, dout)
        return None, {"table": dtable}


def test_integer_input_gets_no_dx(rng):
    errors = check_layer(Lookup({"table": rng.standard_normal((4, 3))}), np.array([0, 2, 2]), rng)
    assert errors.keys() == {"table"}
    assert errors["table"] < SMOOTH


# ---- two checks that check nothing -----------------------------------------------------------------------------------


class WrongA(LoRALinear):
    def backward(self, dout, cache, need_dx=True):
        dx, grads = super().backward(dout, cache, need_dx)
        return dx, grads | {"lora_A": -2 * grads["lora_A"]}


def test_at_zero_lora_B_every_dA_passes(rng):
    x = rng.standard_normal((6, 5))
    resting = WrongA(linear(rng), r=4, rng=rng)
    moving = WrongA(linear(rng), r=4, rng=rng, init_lora_weights=False)
    assert max(check_layer(resting, x, rng).values()) < SMOOTH
    assert check_layer(moving, x, rng)["lora_A"] > 1


def test_with_dout_of_ones_every_layer_norm_passes(rng):
    layer = LayerNorm(np.ones(5), rng.standard_normal(5), eps=0.0)
    x = rng.standard_normal((6, 5))
    _, cache = layer(x)
    dx, _ = layer.backward(np.ones((6, 5)), cache)
    random_dx, _ = layer.backward(rng.standard_normal((6, 5)), cache)
    assert np.max(np.abs(dx)) < 1e-14
    assert np.max(np.abs(random_dx)) > 0.1
