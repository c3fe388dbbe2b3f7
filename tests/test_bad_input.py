import math

import array_api_strict
import numpy as np
import pytest
from checks import linear, lora

from lorabook import LoRAConfig, LoRALinear, inject
from lorabook import functional as F
from lorabook.errors import InputError, NonFiniteError
from lorabook.layers import Activation, Layer, LayerNorm, Linear, Sequential
from lorabook.models import MLP
from lorabook.training import SGD, AdamW, clip_grad_norm, grad_norm, schedule

RNG = np.random.default_rng(0)
ONES = np.ones((4, 6))
STRICT = array_api_strict.ones((4, 6))


def mlp():
    return MLP((6, 8, 9, 7), rng=np.random.default_rng(0))


def injected(**options):
    return lambda: inject(mlp(), LoRAConfig(**{"r": 2} | options))


def wrapped(**options):
    return lambda: LoRALinear(linear(RNG, 5, 7), **{"r": 2} | options)


def configured(**options):
    return lambda: LoRAConfig(**options)


def loaded(**changes):
    arrays = {n: a for n, a in (linear(RNG, 6, 8).params | changes).items() if a is not None}
    return lambda: linear(RNG, 6, 8).load(arrays)


def of_gradient(check, value, dtype="float64"):
    grads = {"fc1.lora_A": np.ones(3, dtype), "fc2.lora_B": np.array([1, value, 1], dtype)}
    return lambda: check(grads)


def merged_backward():
    layer = lora(RNG)
    layer.merge()
    layer.backward(np.ones((4, 7)), layer(np.ones((4, 5)))[1])


# what is done, the exception, and what its message has to name: what came, and what was expected
CASES = {
    # ranks
    "r 0": (wrapped(r=0), InputError, ["r must be a positive integer", "got 0"]),
    "r -1": (wrapped(r=-1), InputError, ["r must be a positive integer", "got -1"]),
    "r 2.5": (wrapped(r=2.5), InputError, ["r must be a positive integer", "got 2.5"]),
    "r 2.0": (wrapped(r=2.0), InputError, ["r must be a positive integer", "got 2.0"]),
    "r True": (wrapped(r=True), InputError, ["r must be a positive integer", "got True"]),
    "r '8'": (wrapped(r="8"), InputError, ["r must be a positive integer", "got '8'"]),
    "r None": (wrapped(r=None), InputError, ["r must be a positive integer", "got None"]),
    "r too large": (wrapped(r=36), InputError, ["at most 35", "number of weights", "7x5", "got 36"]),
    "r too large in a model": (injected(r=49), InputError, ["fc1", "8x6", "at most 48", "got 49"]),
    "config r 0": (configured(r=0), InputError, ["r must be a positive integer", "got 0"]),
    "config r -1": (configured(r=-1), InputError, ["positive integer", "got -1"]),
    "config r 2.5": (configured(r=2.5), InputError, ["positive integer", "got 2.5"]),
    "config r True": (configured(r=True), InputError, ["positive integer", "got True"]),
    "config r '8'": (configured(r="8"), InputError, ["positive integer", "got '8'"]),
    "rank_pattern 0": (configured(rank_pattern={"fc1": 0}), InputError, ["positive integer", "got 0"]),
    "rank_pattern 2.5": (configured(rank_pattern={"fc1": 2.5}), InputError, ["positive integer", "got 2.5"]),
    "rank_pattern '8'": (configured(rank_pattern={"fc1": "8"}), InputError, ["positive integer", "got '8'"]),
    "rank_pattern too large": (injected(rank_pattern={"fc3": 64}), InputError, ["fc3", "7x9", "at most 63", "got 64"]),
    "config r nan": (configured(r=np.float64("nan")), InputError, ["positive integer", "got np.float64(nan)"]),
    "config r np.bool": (configured(r=np.True_), InputError, ["positive integer", "got np.True_"]),
    "config r array": (configured(r=np.array(8)), InputError, ["positive integer", "got array(8)"]),
    # scaling, dropout, initialisation, order
    "alpha nan": (wrapped(lora_alpha=math.nan), InputError, ["lora_alpha must be a finite number", "got nan"]),
    "alpha inf": (configured(lora_alpha=math.inf), InputError, ["lora_alpha must be a finite number", "got inf"]),
    "alpha -inf": (wrapped(lora_alpha=-math.inf), InputError, ["lora_alpha must be a finite number", "got -inf"]),
    "alpha '16'": (configured(lora_alpha="16"), InputError, ["lora_alpha must be a finite number", "got '16'"]),
    "alpha True": (wrapped(lora_alpha=True), InputError, ["lora_alpha must be a finite number", "got True"]),
    "alpha_pattern nan": (configured(alpha_pattern={"a": math.nan}), InputError, ["lora_alpha", "finite", "got nan"]),
    "dropout 1.0": (wrapped(lora_dropout=1.0), InputError, ["lora_dropout", "0 <= p < 1", "got 1.0"]),
    "dropout -0.1": (configured(lora_dropout=-0.1), InputError, ["lora_dropout", "0 <= p < 1", "got -0.1"]),
    "dropout nan": (configured(lora_dropout=math.nan), InputError, ["lora_dropout", "0 <= p < 1", "got nan"]),
    "dropout '0.1'": (wrapped(lora_dropout="0.1"), InputError, ["lora_dropout", "number", "got '0.1'"]),
    "init ones": (wrapped(init_lora_weights="ones"), InputError, ["True, 'gaussian', False, 'pissa'", "got 'ones'"]),
    "init eva": (configured(init_lora_weights="eva"), InputError, ["got 'eva'", "needs data", '"pissa"']),
    "init niter": (configured(init_lora_weights="pissa_niter_4"), InputError, ["approximate", '"pissa" has the exact']),
    "init list": (configured(init_lora_weights=["pissa"]), InputError, ["must be one of", "got ['pissa']"]),
    "pissa r": (wrapped(r=6, init_lora_weights="pissa"), InputError, ["at most 5", "smaller side", "7x5", "got 6"]),
    "olora r": (injected(r=7, init_lora_weights="olora"), InputError, ["at most 6", "of fc1, 8x6", "got 7"]),
    "mica r": (injected(rank_pattern={"fc3": 8}, init_lora_weights="mica"), InputError, ["at most 7", "fc3", "got 8"]),
    "pissa alpha": (wrapped(r=2, lora_alpha=0, init_lora_weights="pissa"), InputError, ["scaling above 0", "got 0"]),
    "orthogonal r": (wrapped(r=3, init_lora_weights="orthogonal"), InputError, ["an even r", "got 3 for this layer"]),
    "init 1": (configured(init_lora_weights=1), InputError, ["True, 'gaussian', False", "got 1"]),
    "init 0": (configured(init_lora_weights=0), InputError, ["True, 'gaussian', False", "got 0"]),
    "init None": (configured(init_lora_weights=None), InputError, ["True, 'gaussian', False", "got None"]),
    "order": (wrapped(order="both"), InputError, ["auto, factored or merged", "got 'both'"]),
    "base is an adapter": (lambda: LoRALinear(lora(RNG), r=2), InputError, ["must be a Linear", "got LoRALinear"]),
    "base is an activation": (lambda: LoRALinear(Activation("silu"), r=2), InputError, ["Linear", "got Activation"]),
    "backward while merged": (merged_backward, InputError, ["merged in the forward pass", "call unmerge()"]),
    # targets and patterns
    "target misspelt": (injected(target_modules=["fc1", "fcc2"]), InputError, ["'fcc2' matches no", "closest: fc2"]),
    "target is a part": (injected(target_modules=["c1"]), InputError, ["'c1' matches no linear", "closest: fc1"]),
    "target an activation": (injected(target_modules=["act1"]), InputError, ["'act1' matches no linear", "fc1"]),
    "regex matches nothing": (injected(target_modules="fc"), InputError, ["'fc' matches no linear layer", "fc1"]),
    "no target": (injected(target_modules=[]), InputError, ["target_modules=()", "closest: fc1, fc2, fc3"]),
    "targets None": (configured(target_modules=None), InputError, ["list of names", "got None"]),
    "target 3": (configured(target_modules=[3]), InputError, ["list of names", "got [3]"]),
    "bad regex": (configured(target_modules="fc(1"), InputError, ["'fc(1' is not a regular expression", "position 2"]),
    "bad rank_pattern": (configured(rank_pattern={"*": 2}), InputError, ["'*' is not a regular expression", "nothing"]),
    "bad alpha_pattern": (configured(alpha_pattern={"[": 2}), InputError, ["'[' is not a regular expression"]),
    "target takes in a norm": (
        lambda: inject(
            Sequential({"fc": linear(RNG), "ln": LayerNorm.unit(7)}), LoRAConfig(target_modules=["fc", "ln"])
        ),
        InputError,
        ["target_modules=('fc', 'ln') takes in ln", "no linear layer"],
    ),
    "regex takes in a norm": (
        lambda: inject(Sequential({"fc": linear(RNG), "ln": LayerNorm.unit(7)}), LoRAConfig(target_modules=".*")),
        InputError,
        ["target_modules='.*' takes in ln", "no linear layer"],
    ),
    "nothing left": (
        injected(target_modules=["fc1", "fc2"], exclude_modules=["fc2"], modules_to_save=["fc1"]),
        InputError,
        ["target_modules=('fc1', 'fc2')", "exclude_modules or modules_to_save leaves none of 2 layers"],
    ),
    "saved in the middle of a target's name": (
        injected(target_modules=["fc1"], modules_to_save=["1"]),
        InputError,
        ["modules_to_save=('1',) ends in the middle of fc1", "write the whole name"],
    ),
    "saved has no name": (configured(modules_to_save=["fc1", ""]), InputError, ["modules_to_save", "empty"]),
    "excluded 3": (configured(exclude_modules=3), InputError, ["exclude_modules must be a list of names", "got 3"]),
    "excluded false": (configured(exclude_modules=False), InputError, ["exclude_modules must be", "got False"]),
    "bad excluded": (
        configured(exclude_modules="a("),
        InputError,
        ["exclude_modules 'a(' is not a regular expression"],
    ),
    "block false": (
        configured(target_modules=["fc1"], layers_to_transform=False),
        InputError,
        ["layers_to_transform must be the number of a block, or a list of them", "got False"],
    ),
    "blocks true": (
        configured(target_modules=["fc1"], layers_to_transform=[0, True]),
        InputError,
        ["layers_to_transform", "got [0, True]"],
    ),
    "block 1.0": (
        configured(target_modules=["a"], layers_to_transform=1.0),
        InputError,
        ["layers_to_trans", "got 1.0"],
    ),
    "block of all-linear": (
        configured(layers_to_transform=0),
        InputError,
        ["layers_to_transform limits a list of names", "target_modules is 'all-linear'"],
    ),
    "pattern without block": (
        configured(target_modules=["fc1"], layers_pattern="h"),
        InputError,
        ["layers_pattern=('h',) needs layers_to_transform"],
    ),
    "bad layers_pattern": (
        configured(target_modules=["fc1"], layers_to_transform=0, layers_pattern=["h", "["]),
        InputError,
        ["layers_pattern '[' is not a regular expression"],
    ),
    "no such block": (
        lambda: inject(Layer(children={"a": mlp()}), LoRAConfig(target_modules=["fc1"], layers_to_transform=0)),
        InputError,
        ["target_modules=('fc1',) within layers_to_transform=0 matches no linear layer"],
    ),
    "no linear layer": (
        lambda: inject(Sequential({"act": Activation("silu")}), LoRAConfig()),
        InputError,
        ["matches no linear layer", "the model has no linear layer"],
    ),
    "adapters already there": (
        lambda: [inject(model, LoRAConfig(r=2)) for model in [mlp()] * 2],
        InputError,
        ["has adapters already", "unload"],
    ),
    # backends and dtypes
    "layer of two backends": (lambda: Linear(STRICT, np.ones(4)), TypeError, ["array_api_strict and numpy", "to(xp)"]),
    "input of another backend": (lambda: linear(RNG, 6)(STRICT), TypeError, ["array_api_strict and numpy"]),
    "gradient of another backend": (
        lambda: F.linear_backward(STRICT, (ONES, ONES)),
        TypeError,
        ["array_api_strict and numpy", "to(xp)"],
    ),
    "labels of another backend": (
        lambda: F.softmax_cross_entropy(STRICT, np.zeros(4, int)),
        TypeError,
        ["array_api_strict and numpy"],
    ),
    "target of another backend": (lambda: F.mean_squared_error(ONES, STRICT), TypeError, ["strict and numpy"]),
    "weight is a list": (lambda: Linear([[1.0]]), TypeError, ["expected arrays of numpy", "got list"]),
    "float16 weight": (lambda: Linear(ONES.astype("f2")), InputError, ["weight has dtype float16", "BLAS", "float32"]),
    "float16 norm": (
        lambda: LayerNorm(np.ones(3), np.ones(3, "f2")),
        InputError,
        ["bias has dtype float16", "expected float32 or float64"],
    ),
    "integer weight": (lambda: Linear(ONES.astype(int)), InputError, ["weight has dtype int64", "float32 or float64"]),
    "to float16": (lambda: mlp().to(np, "float16"), InputError, ["weight has dtype float16", "float32 or float64"]),
    # shapes
    "features of Linear": (lambda: linear(RNG, 5)(ONES), InputError, ["6 features", "(4, 6)", "expects 5"]),
    "features of LoRALinear": (lambda: lora(RNG)(ONES), InputError, ["6 features", "(4, 6)", "expects 5"]),
    "features of merged LoRALinear": (
        lambda: lora(RNG, "merged")(ONES),
        InputError,
        ["6 features", "(4, 6)", "expects 5"],
    ),
    "features of MLP": (lambda: mlp()(np.ones((2, 3))), InputError, ["3 features", "(2, 3)", "expects 6"]),
    "features of LayerNorm": (
        lambda: LayerNorm(np.ones(5), np.ones(5))(ONES),
        InputError,
        ["6 features", "(4, 6)", "weight (5,)", "one entry per feature"],
    ),
    "layer norm of one feature": (
        lambda: F.layer_norm(ONES, np.ones(1), np.ones(1)),
        InputError,
        ["6 features", "(1,)"],
    ),
    "weight of one axis": (lambda: Linear(np.ones(3)), InputError, ["expected weight (d_out, d_in)", "got (3,)"]),
    "bias of d_in": (lambda: Linear(ONES, np.ones(6)), InputError, ["bias (d_out,)", "(4, 6)", "(6,)"]),
    "labels too few": (
        lambda: F.softmax_cross_entropy(ONES, np.array([0])),
        InputError,
        ["logits (..., k) and labels (...)", "(4, 6) and (1,)"],
    ),
    "label k": (
        lambda: F.softmax_cross_entropy(ONES, np.array([0, 6, 5, -100])),
        InputError,
        ["labels must be from 0 to 5", "below 0 where they do not count", "largest of 4 is 6"],
    ),
    "no label counts": (
        lambda: F.softmax_cross_entropy(ONES, np.array([-100, -1, -100, -2])),
        InputError,
        ["one at least must count", "largest of 4 is -1"],
    ),
    "no label": (
        lambda: F.softmax_cross_entropy(ONES[:0], np.array([], int)),
        InputError,
        ["one at least must count"],
    ),
    "target of one column": (lambda: F.mean_squared_error(ONES, ONES[:, :1]), InputError, ["(4, 6)", "(4, 1)", "same"]),
    # layers and models
    "activation": (lambda: Activation("swish"), InputError, ["'swish'", "relu, gelu_tanh, gelu, silu"]),
    "activation of MLP": (lambda: MLP((2, 3, 4), "GELU", rng=RNG), InputError, ["'GELU'", "relu, gelu_tanh, gelu"]),
    "one size": (lambda: MLP((4,), rng=RNG), InputError, ["expected two sizes or more", "got (4,)"]),
    "loss": (lambda: MLP((4, 5), loss="l1", rng=RNG), InputError, ["cross_entropy, mean_squared_error", "'l1'"]),
    "trainable misspelt": (
        lambda: mlp().set_trainable(["fc1.weigth"]),
        InputError,
        ["no parameter is called 'fc1.weigth'", "closest: fc1.weight"],
    ),
    "load missing": (loaded(bias=None), InputError, ["do not fit the model", "missing bias"]),
    "load unexpected": (loaded(gamma=np.ones(2)), InputError, ["do not fit the model", "unexpected gamma"]),
    "load misshapen": (loaded(weight=ONES), InputError, ["weight has shape (4, 6), expected (8, 6)"]),
    # optimizers, schedules
    "lr nan": (lambda: SGD(lr=math.nan), InputError, ["lr must be a finite number >= 0", "got nan"]),
    "lr inf": (lambda: AdamW(lr=math.inf), InputError, ["lr must be a finite number >= 0", "got inf"]),
    "lr -1": (lambda: AdamW(lr=-1), InputError, ["lr must be a finite number >= 0", "got -1"]),
    "lr '0.1'": (lambda: SGD(lr="0.1"), InputError, ["lr must be a finite number >= 0", "got '0.1'"]),
    "weight_decay -1": (lambda: SGD(0.1, weight_decay=-1), InputError, ["weight_decay must be", ">= 0", "got -1"]),
    "momentum 1": (lambda: SGD(0.1, momentum=1), InputError, ["momentum", "[0, 1)", "got 1"]),
    "momentum -0.1": (lambda: SGD(0.1, momentum=-0.1), InputError, ["momentum", "[0, 1)", "got -0.1"]),
    "momentum nan": (lambda: SGD(0.1, momentum=math.nan), InputError, ["momentum", "[0, 1)", "got nan"]),
    "momentum '0.9'": (lambda: SGD(0.1, momentum="0.9"), InputError, ["momentum", "[0, 1)", "got '0.9'"]),
    "betas 1": (lambda: AdamW(0.1, betas=(1.0, 0.9)), InputError, ["betas", "[0, 1)", "1.0"]),
    "betas nan": (lambda: AdamW(0.1, betas=(0.9, math.nan)), InputError, ["betas", "[0, 1)", "nan"]),
    "one beta": (lambda: AdamW(0.1, betas=(0.9,)), InputError, ["betas must be two numbers in [0, 1)", "(0.9,)"]),
    "eps -1": (lambda: AdamW(0.1, eps=-1), InputError, ["eps must be a finite number >= 0", "got -1"]),
    "schedule": (lambda: schedule("cosin", 9), InputError, ["'cosin'", "constant, linear, cosine"]),
    "warm-up too long": (lambda: schedule("linear", 9, 10), InputError, ["warmup", "the 9 steps", "got 10"]),
    "warm-up -1": (lambda: schedule("linear", 9, -1), InputError, ["warmup", "from 0 to the 9 steps", "got -1"]),
    "warm-up 0.5": (lambda: schedule("linear", 9, 0.5), InputError, ["warmup must be an integer", "got 0.5"]),
    "gradients of others": (
        lambda: SGD(0.1).step({"a": np.ones(1), "b": np.ones(1)}, {"a": np.ones(1), "c": np.ones(1)}),
        InputError,
        ["parameters and gradients differ", "['b', 'c']"],
    ),
    "gradient misshapen": (
        lambda: AdamW(0.1).step({"a": np.ones((3, 2))}, {"a": np.ones(2)}),
        InputError,
        ["gradient of a has shape (2,)", "expected (3, 2)"],
    ),
    "max_grad_norm -1": (
        lambda: clip_grad_norm({}, -1),
        InputError,
        ["max_grad_norm must be a finite number > 0", "got -1"],
    ),
    "max_grad_norm nan": (
        lambda: clip_grad_norm({}, math.nan),
        InputError,
        ["max_grad_norm must be a finite number > 0", "got nan"],
    ),
    # gradients that are not finite
    "gradient nan": (of_gradient(grad_norm, np.nan), NonFiniteError, ["fc2.lora_B is not finite", "NaN"]),
    "gradient inf": (of_gradient(grad_norm, np.inf), NonFiniteError, ["fc2.lora_B is not finite", "Inf"]),
    "gradient -inf": (of_gradient(grad_norm, -np.inf), NonFiniteError, ["fc2.lora_B is not finite", "Inf"]),
    "float32 overflow": (
        of_gradient(grad_norm, 1e20, "float32"),
        NonFiniteError,
        ["fc2.lora_B", "too large"],
    ),
    "float64 overflow": (of_gradient(grad_norm, 1e160), NonFiniteError, ["fc2.lora_B", "too large"]),
    "clipping nan": (of_gradient(lambda g: clip_grad_norm(g, 1.0), np.nan), NonFiniteError, ["fc2.lora_B", "NaN"]),
}


@pytest.mark.parametrize("name", CASES)
def test_refused_with_a_reason(name):
    act, exception, parts = CASES[name]
    with pytest.raises(exception) as caught:
        act()
    message = str(caught.value)
    assert type(caught.value) is exception
    assert [part for part in parts if part not in message] == [], message
    assert "\n" not in message


def test_refused_step_changes_nothing():
    params, optimizer = {"a": np.ones(2)}, AdamW(0.1)
    for grads in ({"b": np.ones(2)}, {"a": np.ones(3)}, {"a": np.ones((1, 2))}):
        with pytest.raises(InputError):
            optimizer.step(params, grads)
    assert params["a"].tolist() == [1, 1]
    assert optimizer.step_count == 0


def test_refused_clipping_changes_nothing():
    grads = {"a": np.array([3.0]), "b": np.array([np.inf])}
    with pytest.raises(NonFiniteError):
        clip_grad_norm(grads, 1.0)
    assert grads["a"].tolist() == [3.0]


def test_large_but_finite_gradient_passes():
    assert grad_norm({"a": np.array([1e19], "float32")}) == pytest.approx(1e19)
