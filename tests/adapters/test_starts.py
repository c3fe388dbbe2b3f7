"""Where LoRA's factors start: what is theirs, what is left of the base, and that all of it comes back."""

import copy
import json

import numpy as np
import pytest
from checks import TOLERANCES, assert_close, assert_lives_on, linear, move, run, same_bits

from lorabook import FormatError, InputError, LoRAConfig, LoRALinear, inject, load_adapter, merge, save_adapter, unmerge
from lorabook.adapters import (
    STARTS,
    DoRAConfig,
    HiRAConfig,
    adapter_updates,
    adapters,
    base_params,
    count,
    memory_table,
    unfreeze,
    unload,
)
from lorabook.adapters.starts import INITIALISATIONS, Residual, as_plain, moves_base
from lorabook.data import Batches
from lorabook.files import write_safetensors
from lorabook.layers import QuantizedLinear, check_layer
from lorabook.models import MLP
from lorabook.training import AdamW, checkpoint, train

MOVES = ["pissa", "olora"]
EVERY = pytest.mark.parametrize("init", STARTS)
MOVING = pytest.mark.parametrize("init", MOVES)
SHAPES = pytest.mark.parametrize("shape", [(12, 9), (9, 12), (7, 7)])
SIZES = (12, 16, 8)
PATTERNS = {"rank_pattern": {"fc1": 2}, "alpha_pattern": {"fc2": 7}}
OPTIONS = pytest.mark.parametrize("options", [{}, {"use_rslora": True}, PATTERNS, PATTERNS | {"use_rslora": True}])


def of_size(shape, init, dtype="float64", r=4, **options):
    d_out, d_in = shape
    base = linear(np.random.default_rng(1), d_in, d_out).to(np, dtype)
    return base, LoRALinear(base, r, 7, init_lora_weights=init, rng=2, **options)


def mlp(dtype="float32"):
    return MLP(SIZES, "gelu", rng=np.random.default_rng(0)).to(np, dtype)


def adapted(init, dtype="float32", config=LoRAConfig, **options):
    model = mlp(dtype)
    given = {"r": 4, "lora_alpha": 6, "target_modules": ["fc1", "fc2"], "init_lora_weights": init}
    inject(model, config(**given | options), 1)
    return model


def trained(model, steps=3):
    rng, optimizer = np.random.default_rng(5), AdamW(0.02)
    x, labels = rng.standard_normal((20, SIZES[0])).astype("f4"), rng.integers(0, SIZES[-1], 20)
    for _ in range(steps):
        optimizer.step(model.trainable_params(), model.loss_and_grad({"x": x, "labels": labels})[1])
    return model


def inputs():
    return np.random.default_rng(6).standard_normal((5, SIZES[0])).astype("f4")


# ---- the factors -----------------------------------------------------------------------------------------------------


def test_which_starts_there_are():
    assert list(STARTS) == ["pissa", "olora", "orthogonal", "mica"]
    assert (True, "gaussian", False, *STARTS) == INITIALISATIONS
    assert [init for init in INITIALISATIONS if moves_base(init)] == MOVES


@SHAPES
@EVERY
@pytest.mark.parametrize("use_rslora", [False, True])
def test_the_layer_starts_at_the_base(shape, init, use_rslora, rng):
    base, layer = of_size(shape, init, use_rslora=use_rslora)
    x = rng.standard_normal((6, shape[1]))
    assert_close(layer.effective(layer.weight)[0], base.weight)
    assert_close(layer(x)[0], base(x)[0])
    if init in MOVES:
        assert not np.allclose(layer.weight, base.weight)
        assert np.abs(layer.delta_weight()).max() > 0.1
    else:
        assert layer.base_layer is base
        assert_close(layer.delta_weight(), np.zeros(shape))


@SHAPES
def test_pissa_takes_what_is_largest(shape):
    base, layer = of_size(shape, "pissa")
    A, B, s = layer.params["lora_A"], layer.params["lora_B"], layer.scaling
    S = np.linalg.svd(base.weight, compute_uv=False)
    assert_close(A @ A.T, np.diag(S[:4] / s))
    assert_close(B.T @ B, np.diag(S[:4] / s))
    assert_close(np.linalg.svd(layer.weight, compute_uv=False)[: len(S) - 4], S[4:])


@SHAPES
def test_olora_takes_the_first_columns(shape):
    base, layer = of_size(shape, "olora")
    A, B = layer.params["lora_A"], layer.params["lora_B"]
    assert_close(B.T @ B, np.eye(4))
    assert_close(A, np.triu(A))
    assert_close((B @ A)[:, :4], base.weight[:, :4])
    assert_close(layer.weight, base.weight - 7 / 4 * B @ A)


@SHAPES
def test_orthogonal_halves_the_space_of_the_rank(shape):
    _, layer = of_size(shape, "orthogonal")
    A, B = layer.params["lora_A"], layer.params["lora_B"]
    assert np.linalg.matrix_rank(A) == np.linalg.matrix_rank(B) == 2
    _, wide = of_size((300, 200), "orthogonal", r=20)
    for factor in wide.params.values():  # of N(0, 1) in 10 of 20 dimensions, through rows of length 1
        assert abs(factor.std() * 10 - 0.5**0.5) < 0.05
    other = LoRALinear(wide.base_layer, 20, init_lora_weights="orthogonal", rng=3)
    assert not np.allclose(other.params["lora_A"], wide.params["lora_A"])


@SHAPES
def test_mica_trains_A_over_the_minor_components(shape):
    base, layer = of_size(shape, "mica")
    A, B = layer.params["lora_A"], layer.params["lora_B"]
    assert not A.any() and layer.trainable == {"lora_A"}
    assert_close(B.T @ B, np.eye(4))
    S = np.linalg.svd(base.weight, compute_uv=False)
    assert_close(np.linalg.svd(B.T @ base.weight, compute_uv=False), S[-4:], 1e-10)


@EVERY
def test_both_see_a_gradient_in_the_first_step_unless_one_rests(init, rng):
    _, layer = of_size((7, 5), init)
    x, dout = rng.standard_normal((6, 5)), rng.standard_normal((6, 7))
    _, _, grads = run(layer, x, dout)
    assert grads.keys() == layer.trainable == ({"lora_A"} if init == "mica" else {"lora_A", "lora_B"})
    full = dout.T @ x
    assert_close(grads["lora_A"], 7 / 4 * layer.params["lora_B"].T @ full)
    assert all(grad.any() for grad in grads.values())


@EVERY
def test_dora_starts_at_the_base_too(init):
    model = adapted(init, "float64", DoRAConfig)
    assert_close(model(inputs())[0], mlp("float64")(inputs())[0])


@EVERY
@pytest.mark.parametrize("options", [{}, {"order": "merged"}, {"lora_dropout": 0.4}])
def test_gradients(init, options, rng):
    _, layer = of_size((7, 5), init, **options)
    errors = check_layer(
        layer, rng.standard_normal((2, 3, 5)), rng, dropout_seed=7 if "lora_dropout" in options else None
    )
    assert errors.keys() == {"x", *layer.trainable} and max(errors.values()) < 1e-11, errors


@EVERY
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_factors_and_what_is_left_live_where_the_base_does(put, init, dtype):
    base = move(linear(np.random.default_rng(1)), put, dtype)
    layer = LoRALinear(base, 4, init_lora_weights=init)
    assert_lives_on(put([0.0], dtype), layer.weight, *layer.params.values(), *layer.base_layer.buffers.values())
    assert_close(layer.effective(layer.weight)[0], base.weight, TOLERANCES[dtype])
    assert layer.bias is base.bias


def test_same_seed_same_factors():
    for init in STARTS:
        one, two = (of_size((7, 5), init)[1] for _ in range(2))
        assert all(same_bits(one.state()[name], array) for name, array in two.state().items())


# ---- the base comes back ---------------------------------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize("bias", ["none", "all"])
def test_unload_puts_the_same_bits_back(init, bias):
    model = adapted(init, bias=bias)
    before = {name: array for name, array in mlp().named_params().items() if bias == "none" or "weight" in name}
    trained(model)
    for change in (lambda: None, lambda: (merge(model), unmerge(model))):
        change()
        assert all(same_bits(base_params(model)[name], array) for name, array in before.items())
    biases = {name: a.copy() for name, a in base_params(model).items() if "bias" in name}
    unload(model)
    params = model.named_params()
    assert params.keys() == mlp().named_params().keys()
    assert all(same_bits(params[name], array) for name, array in (before | biases).items())
    assert not model.trainable_params()


def test_the_very_layer_comes_back():
    model = mlp()
    layers = dict(model.children)
    inject(model, LoRAConfig(r=4, target_modules=["fc1", "fc2"], init_lora_weights="pissa"))
    assert isinstance(model.children["fc1"].base_layer, Residual)
    unload(model)
    assert model.children == layers


@EVERY
def test_merged_and_unloaded_is_what_was_learnt(init):
    model = trained(adapted(init, "float64"))
    want = model(inputs())[0]
    plain = copy.deepcopy(model)
    merge(model)
    assert_close(model(inputs())[0], want)
    unload(model)
    assert_close(model(inputs())[0], want)
    assert not np.allclose(want, mlp("float64")(inputs())[0])
    unload(plain)
    assert same_bits(plain(inputs())[0], mlp("float64")(inputs())[0])


@MOVING
def test_a_model_moves_with_what_is_kept_aside(init):
    model = adapted(init)
    model.to(np, "float64")
    assert all(array.dtype == "float64" for array in base_params(model).values())
    assert_close(model(inputs())[0], mlp("float64")(inputs())[0], 1e-6)
    trained(model)
    unload(model)
    assert all(same_bits(array, mlp("float64").named_params()[name]) for name, array in model.named_params().items())


def test_the_table_of_memory_counts_what_is_kept_aside():
    full, own = memory_table(adapted("pissa"))
    assert full["trained"] == count(mlp().named_params())
    factors = 4 * (12 + 16) + 4 * (16 + 8)
    assert own["trained"] == factors
    assert full["weights"] == 4 * full["trained"]
    assert own["weights"] == full["weights"] + 4 * (12 * 16 + 16 * 8) + 2 * 4 * factors  # what is left, and two starts
    assert memory_table(adapted("mica"))[1]["trained"] == 4 * (12 + 16)


def test_what_rests_does_not_train_after_loading_either(tmp_path):
    save_adapter(tmp_path, trained(adapted("mica")))
    model = mlp()
    assert load_adapter(tmp_path, model).init_lora_weights == "mica"
    unfreeze(model)
    assert model.trainable_params().keys() == {"fc1.lora_A", "fc2.lora_A"}
    dora = adapted("mica", config=DoRAConfig)
    assert dora.children["fc1"].trainable == {"lora_A", "lora_magnitude_vector"}


# ---- folders ---------------------------------------------------------------------------------------------------------


@EVERY
@OPTIONS
@pytest.mark.parametrize("config", [LoRAConfig, DoRAConfig])
def test_saved_and_loaded_gives_the_same(tmp_path, init, options, config):
    model = trained(adapted(init, "float64", config, **options))
    save_adapter(tmp_path, model)
    other = mlp("float64")
    read = load_adapter(tmp_path, other)
    assert_close(other(inputs())[0], model(inputs())[0])
    assert read.init_lora_weights == (True if init in MOVES else init)
    mine, theirs = adapters(model), adapters(other)
    twice = 2 if init in MOVES else 1
    assert [layer.r for layer in theirs.values()] == [twice * layer.r for layer in mine.values()]
    for path, layer in theirs.items():
        assert abs(layer.scaling - mine[path].scaling) < 1e-15
        assert not isinstance(layer.base_layer, Residual)
    if config is LoRAConfig:
        updates = adapter_updates(tmp_path)
        for path, layer in mine.items():
            W = base_params(model)[f"{path}.weight"]
            assert_close(updates[path], layer.effective(layer.weight)[0] - W, 1e-11)


@EVERY
def test_an_untrained_adapter_is_no_update(tmp_path, init):
    save_adapter(tmp_path, adapted(init, "float64"))
    assert all(np.abs(update).max() < 1e-15 for update in adapter_updates(tmp_path).values())


def unconverted(folder, model, **changes):
    """A folder as PEFT writes it if it is not told to convert."""
    save_adapter(folder, model)
    path = folder / "adapter_config.json"
    options = json.loads(path.read_text()) | {"r": 4, "lora_alpha": 6, "init_lora_weights": "pissa"} | changes
    path.write_text(json.dumps(options))
    factors = {n: a for n, a in model.named_params().items() if ".lora_" in n}
    named = {f"base_model.model.{n}.weight": a for n, a in factors.items()}
    write_safetensors(folder / "adapter_model.safetensors", named)


@pytest.mark.parametrize("name", ["pissa", "PiSSA", "olora", "OLoRA"])
def test_a_folder_that_was_not_converted(tmp_path, name):
    model = trained(adapted(name.lower()))
    unconverted(tmp_path, model, init_lora_weights=name)
    other = mlp()
    assert load_adapter(tmp_path, other).init_lora_weights == name.lower()
    assert_close(other(inputs())[0], model(inputs())[0], 1e-6)
    with pytest.raises(FormatError, match="depends on the base weights; give that model"):
        adapter_updates(tmp_path)
    unload(other)
    assert same_bits(other(inputs())[0], mlp()(inputs())[0])


def test_a_folder_that_does_not_fit_leaves_the_model_alone(tmp_path):
    unconverted(tmp_path, adapted("pissa"), lora_alpha=-1)
    other = mlp()
    with pytest.raises(FormatError, match=r"does not fit the model: init_lora_weights='pissa' needs a scaling above 0"):
        load_adapter(tmp_path, other)
    assert not adapters(other)


def test_a_config_that_moved_nothing_is_left_alone():
    model = adapted("mica")
    config = model.children["fc1"].config
    assert as_plain(config, adapters(model)) == (config, {})


# ---- what is refused -------------------------------------------------------------------------------------------------


@MOVING
def test_a_base_in_few_bits_is_not_moved(init, rng):
    base = QuantizedLinear.of(linear(rng), "nf4")
    with pytest.raises(
        InputError, match=f"'{init}' changes the base weight, and that of this layer is held in few bits"
    ):
        LoRALinear(base, 4, init_lora_weights=init)
    assert LoRALinear(base, 4, init_lora_weights="mica").base_layer is base


@pytest.mark.parametrize("init", ["pissa", "olora", "mica"])
def test_a_weight_with_no_number_is_refused_before_anything_changes(init):
    model = mlp()
    model.children["fc2"].weight[0, 0] = np.nan
    with pytest.raises(InputError, match="decomposes the weight of fc2, which holds NaN or Inf"):
        inject(model, LoRAConfig(r=4, target_modules=["fc1", "fc2"], init_lora_weights=init))
    assert not adapters(model)


def test_other_methods_know_the_random_starts_alone(rng):
    with pytest.raises(InputError, match=r"\(True, 'gaussian', False\); got 'pissa'"):
        inject(mlp(), HiRAConfig(r=4, target_modules=["fc1"], init_weights="pissa"))


# ---- a run -----------------------------------------------------------------------------------------------------------


@EVERY
def test_an_interrupted_run_goes_on_to_the_same_bits(tmp_path, monkeypatch, init):
    rng = np.random.default_rng(8)
    data = {"x": rng.standard_normal((40, SIZES[0])).astype("f4"), "labels": rng.integers(0, SIZES[-1], 40)}

    def run_to(path, every, resume=False):
        model = adapted(init)
        train(model, Batches(data, 8), AdamW(0.01), epochs=2, checkpoint=path, checkpoint_every=every, resume=resume)
        return model

    whole = run_to(tmp_path / "whole", 100)
    saved, write = [], checkpoint.write_checkpoint

    def keep_the_first(path, arrays, state):
        if not saved:
            saved.append(write(path, arrays, state))

    monkeypatch.setattr(checkpoint, "write_checkpoint", keep_the_first)
    run_to(tmp_path / "cut", 3)
    monkeypatch.undo()
    again = run_to(tmp_path / "cut", 3, resume=True)
    assert len(saved) == 1
    assert all(same_bits(array, whole.state()[name]) for name, array in again.state().items())
    assert not same_bits(whole.children["fc1"].params["lora_A"], adapted(init).children["fc1"].params["lora_A"])
