"""What each variant has of its own; what all share is in test_methods."""

import copy
import json
import math

import numpy as np
import pytest
from checks import assert_close, linear

from lorabook import FormatError, InputError, files
from lorabook.adapters import (
    METHODS,
    DeLoRAConfig,
    DoRAConfig,
    FourierFTConfig,
    GraLoRAConfig,
    IA3Config,
    LoKrConfig,
    MiSSConfig,
    RandLoRAConfig,
    RandLoRALinear,
    VeRAConfig,
    VeRALinear,
    adapters,
    inject,
    load_adapter,
    save_adapter,
)
from lorabook.adapters.lokr import factors
from lorabook.layers import Run, Sequential, check_layer, distinct, quantize
from lorabook.models import MLP

SMOOTH = 1e-11
DROPOUT = {
    "dora": {"r": 2, "lora_dropout": 0.5, "detach_norm": False},
    "hira": {"r": 2, "hira_dropout": 0.5},
    "delora": {"r": 2, "delora_lambda": 3, "module_dropout": 0.5},
    "gralora": {"r": 4, "gralora_k": 2, "gralora_dropout": 0.5},
    "miss": {"r": 4, "miss_dropout": 0.5},
    "vera": {"r": 4, "vera_dropout": 0.5},
    "randlora": {"r": 4, "randlora_alpha": 4, "randlora_dropout": 0.5},
}
FORMS = {
    "gralora in 2 x 2 blocks": GraLoRAConfig(r=4, gralora_k=2),
    "gralora in 3 x 3 blocks": GraLoRAConfig(r=3, gralora_k=3),
    "lokr of two products": LoKrConfig(r=1, decompose_both=True, decompose_factor=3),
    "lokr of a matrix and a product": LoKrConfig(r=1),
    "lokr, whole": LoKrConfig(r=8, init_weights="lycoris"),
    "miss, cut off": MiSSConfig(r=5),
    "miss, mini": MiSSConfig(r=4, mini_r=3, init_weights="mini"),
    "ia3 of inputs": IA3Config(feedforward_modules="layer"),
    "delora with norms at their bound": DeLoRAConfig(r=2, delora_lambda=3),
    "fourierft": FourierFTConfig(n_frequency=30),
    "vera": VeRAConfig(r=20),
    "randlora": RandLoRAConfig(r=2, randlora_alpha=3),
    "randlora, r above the sides": RandLoRAConfig(r=16, randlora_alpha=3, init_weights=False),
    "vera, not at zero": VeRAConfig(r=3, init_weights=False),
    "loha": METHODS["loha"].Config(r=2),
    "hira": METHODS["hira"].Config(r=2),
    "dora": DoRAConfig(r=2, detach_norm=False),
}


def layer_with(config, rng, stir=0.5, d_in=6, d_out=12):
    model = Sequential({"layer": linear(rng, d_in, d_out, True)})
    inject(model, config, rng)
    (layer,) = adapters(model).values()
    for name, array in layer.params.items():
        layer.params[name] = array + stir * rng.standard_normal(array.shape)
    return model, layer


def drawn(mask):
    """A generator whose numbers say again and again which entries dropout at 1/2 keeps."""

    class Same:
        def random(self, shape, dtype):
            return mask.astype(dtype)

    return Same()


@pytest.mark.parametrize("form", FORMS)
def test_gradients_of_its_forms(form, rng):
    model, layer = layer_with(FORMS[form], rng)
    if form.startswith("delora"):
        layer.params["delora_B"][:, 0] *= 1e-6
    stack = Sequential({"model": model, "above": linear(rng, 12, 3)})
    layer.base_layer.set_trainable(["weight", "bias"])
    errors = check_layer(stack, rng.standard_normal((4, 6)), rng)
    assert errors.keys() == {"x"} | stack.trainable_params().keys()
    assert max(errors.values()) < SMOOTH


@pytest.mark.parametrize("method", METHODS)
def test_at_rest_it_is_the_base(method, rng):
    options = {"r": 4} if "r" in METHODS[method].Config.__dataclass_fields__ else {}
    options |= {"n_frequency": 9, "init_weights": True} if method == "fourierft" else {}
    _, layer = layer_with(METHODS[method].Config(**options), rng, stir=0)
    assert_close(layer.effective(layer.weight)[0], layer.weight, 1e-14)


@pytest.mark.parametrize("method", DROPOUT)
def test_dropout_is_on_the_branch(method, rng):
    """y = x W^T + b + (x o M) (W_eff - W)^T, and its gradients are those of this sum, by differences."""
    _, layer = layer_with(METHODS[method].Config(**DROPOUT[method]), rng)
    layer.base_layer.set_trainable(["weight", "bias"])
    x, dout, kept = rng.standard_normal((3, 6)), rng.standard_normal((3, 12)), rng.random((3, 6))
    M, W, b = (kept >= 0.5) * 2.0, layer.weight, layer.bias

    def y_of(x):
        return x @ W.T + b + (x * M) @ (layer.effective(W)[0] - W).T

    run = Run(rng=drawn(kept))
    y, cache = layer(x, run)
    assert_close(y, y_of(x), 1e-13)
    dx, grads = layer.backward(dout, cache)
    arrays = {"x": x, "base_layer.weight": W, "base_layer.bias": b, **layer.params}
    for name, grad in {"x": dx, **grads}.items():
        array, h = arrays[name], 1e-6
        for place in list(np.ndindex(array.shape))[::7]:
            found = []
            for step in (h, -h):
                array[place] += step
                found.append(np.sum(dout * y_of(x)))
                array[place] -= step
            assert grad[place] == pytest.approx((found[0] - found[1]) / (2 * h), rel=1e-5, abs=1e-7), (name, place)
    assert layer.backward(dout, cache, need_dx=False)[0] is None


@pytest.mark.parametrize("method", METHODS)
def test_over_a_base_in_four_bits(method, rng):
    """Output and gradients are those over the dense weight that the codes stand for."""
    options = {"r": 4} if "r" in METHODS[method].Config.__dataclass_fields__ else {}
    options |= {"n_frequency": 9} if method == "fourierft" else {}
    pair = []
    for four_bits in (True, False):
        model = Sequential({"layer": linear(np.random.default_rng(3), 64, 32, True)})
        quantize(model, "nf4", ["layer"])
        if not four_bits:
            base = model.children["layer"]
            model.children["layer"] = type(linear(rng))(base.weight, base.bias)
        inject(model, METHODS[method].Config(**options), 1)
        (layer,) = adapters(model).values()
        own = np.random.default_rng(4)
        for name, array in layer.params.items():
            layer.params[name] = array + 0.1 * own.standard_normal(array.shape).astype(array.dtype)
        x, dout = own.standard_normal((5, 64)).astype("f4"), own.standard_normal((5, 32)).astype("f4")
        y, cache = layer(x.astype(layer.weight.dtype))
        pair.append({"y": y, "dx": (found := layer.backward(dout, cache))[0], **found[1]})
    assert pair[0].keys() == pair[1].keys()
    for name, array in pair[0].items():
        assert_close(array, pair[1][name], 1e-4)


def test_detached_dora_takes_the_norm_for_a_constant(rng):
    """So its gradient is another one: what is along V is in it, too."""
    found = []
    for detach in (True, False):
        _, layer = layer_with(DoRAConfig(r=2, detach_norm=detach), np.random.default_rng(1))
        H = np.random.default_rng(2).standard_normal((12, 6))
        _, (V, c) = layer.effective(layer.weight)
        found.append((layer.effective_backward(H, (V, c))[0], V, c, layer.params))
    (detached, V, c, params), (full, *_) = found
    m = params["lora_magnitude_vector"]
    dV = (m / c)[:, None] * H
    assert_close(detached["lora_A"], layer.scaling * params["lora_B"].T @ dV, 1e-12)
    assert_close(detached["lora_magnitude_vector"], full["lora_magnitude_vector"], 1e-14)
    assert not np.allclose(detached["lora_A"], full["lora_A"], rtol=0.05)
    _, (V, c) = layer.effective(layer.weight)
    along = layer.effective_backward(V, (V, c))[0]
    assert np.abs(along["lora_A"]).max() < 1e-12  # a longer V changes nothing


def test_ranks_of_the_updates(rng):
    """The forms are not low-rank in the same sense: what r buys differs."""
    ranks = {}
    for name, config in {
        "lora": METHODS["lora"].Config(r=4),
        "loha": METHODS["loha"].Config(r=4),
        "gralora": GraLoRAConfig(r=4, gralora_k=2),
        "miss": MiSSConfig(r=4),
        "hira": METHODS["hira"].Config(r=4),
    }.items():
        _, layer = layer_with(config, rng, d_in=24, d_out=24)
        ranks[name] = np.linalg.matrix_rank(layer.effective(layer.weight)[0] - layer.weight)
    assert ranks == {"lora": 4, "loha": 16, "gralora": 8, "miss": 4, "hira": 24}


def test_deloras_update_is_bounded_by_lambda_alone(rng):
    _, layer = layer_with(DeLoRAConfig(r=3, delora_lambda=2), rng, stir=100)
    strength = abs(float(layer.params["delora_lambda"][0]))
    assert np.linalg.norm(layer.delta_weight()) <= strength * layer.buffers["delora_w_norm"].max() * (1 + 1e-12)


def mlp_with(config, seed=0):
    """Two layers of different sizes, the adapters away from where they start."""
    model = MLP((6, 12, 9), "silu", rng=np.random.default_rng(seed))
    inject(model, config, 1)
    rng = np.random.default_rng(2)
    for layer in adapters(model).values():
        for name, array in layer.params.items():
            layer.params[name] = array + 0.5 * rng.standard_normal(array.shape).astype(array.dtype)
    return model


SHARED = {
    "vera": (VeRAConfig(r=5), {"vera_A": (5, 12), "vera_B": (12, 5)}),
    "randlora": (RandLoRAConfig(r=5, randlora_alpha=5), {"randlora_A": (5, 1, 12), "randlora_B": (12, 3, 5)}),
}


@pytest.mark.parametrize("method", SHARED)
def test_what_is_shared_is_one_array(method):
    config, shapes = SHARED[method]
    model = mlp_with(config)
    for one in (model, copy.deepcopy(model), model.to(np, "float64")):
        first, second = adapters(one).values()
        assert {name: array.shape for name, array in first.buffers.items()} == shapes
        assert all(array is second.buffers[name] for name, array in first.buffers.items())
        assert all(name in distinct(one.state()) for name in (f"fc1.{n}" for n in shapes))
        assert not any(name in distinct(one.state()) for name in (f"fc2.{n}" for n in shapes))


@pytest.mark.parametrize("method", SHARED)
def test_what_is_shared_comes_from_the_file(method, tmp_path, rng):
    """Though the options tell how to draw it: the file counts, as it may be another's."""
    config, shapes = SHARED[method]
    model, x = mlp_with(config), rng.standard_normal((4, 6)).astype("f4")
    save_adapter(tmp_path, model)
    arrays, _ = files.read_safetensors(tmp_path / "adapter_model.safetensors")
    assert {n: arrays[f"base_model.{n}"].shape for n in shapes} == shapes
    other = {f"base_model.{n}": rng.standard_normal(shape).astype("f4") for n, shape in shapes.items()}
    files.write_safetensors(tmp_path / "adapter_model.safetensors", arrays | other)
    loaded = MLP((6, 12, 9), "silu", rng=np.random.default_rng(0))
    load_adapter(tmp_path, loaded)
    assert not np.allclose(loaded(x)[0], model(x)[0], rtol=0.1)
    for layer in adapters(model).values():
        layer.buffers = {n: other[f"base_model.{n}"] for n in shapes}
    assert np.array_equal(loaded(x)[0], model(x)[0])


@pytest.mark.parametrize("method", SHARED)
def test_a_rank_that_the_file_does_not_have_draws_nothing(method, tmp_path):
    """However large it is: the shapes are looked at first."""
    save_adapter(tmp_path, mlp_with(SHARED[method][0]))
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"r": 10**15}))
    with pytest.raises(FormatError, match="has shape"):
        load_adapter(tmp_path, MLP((6, 12, 9), "silu", rng=np.random.default_rng(0)))


@pytest.mark.parametrize("key", [0, 5])
def test_vera_draws_again_what_the_file_leaves_out(key, tmp_path, rng):
    model, x = mlp_with(VeRAConfig(r=5, projection_prng_key=key, save_projection=False)), np.ones((1, 6), "f4")
    save_adapter(tmp_path, model)
    names = files.read_safetensors(tmp_path / "adapter_model.safetensors")[0]
    assert {name.rpartition(".")[2] for name in names} == {"vera_lambda_b", "vera_lambda_d"}
    loaded = MLP((6, 12, 9), "silu", rng=np.random.default_rng(0))
    load_adapter(tmp_path, loaded)
    assert np.array_equal(loaded(x)[0], model(x)[0])


@pytest.mark.parametrize("method", SHARED)
def test_what_is_shared_may_stand_in_the_file_for_each_layer_too(method, tmp_path, rng):
    """So PEFT writes it for RandLoRA. Where it differs, it is refused."""
    config, shapes = SHARED[method]
    save_adapter(tmp_path, mlp_with(config))
    file = tmp_path / "adapter_model.safetensors"
    arrays, _ = files.read_safetensors(file)
    copies = {f"base_model.model.{path}.{n}": arrays[f"base_model.{n}"] for path in ("fc1", "fc2") for n in shapes}
    files.write_safetensors(file, arrays | copies)
    load_adapter(tmp_path, MLP((6, 12, 9), "silu", rng=np.random.default_rng(0)))
    live = {f"{name}.default": array for name, array in (arrays | copies).items()}  # as in a live model of PEFT
    files.write_safetensors(file, live)
    load_adapter(tmp_path, MLP((6, 12, 9), "silu", rng=np.random.default_rng(0)))
    name = f"base_model.model.fc2.{next(iter(shapes))}"
    files.write_safetensors(file, arrays | copies | {name: 2 * copies[name]})
    with pytest.raises(FormatError, match=f"unexpected {name}"):
        load_adapter(tmp_path, MLP((6, 12, 9), "silu", rng=np.random.default_rng(0)))


def test_randlora_by_its_formula(rng):
    """Of a layer that is high, and of one that is wide; the update is linear in each of L and G, and so is the loss."""
    for layer in adapters(mlp_with(RandLoRAConfig(r=5, randlora_alpha=10)).to(np, "float64")).values():
        (L, G), (A, B) = layer.params.values(), layer.buffers.values()
        n, m = G.shape
        flat, want = B[: max(layer.shape), :n].reshape(max(layer.shape), -1), 0
        for i in range(5):
            for k in range(n):
                want = want + 2 * np.outer(flat[:, i * n + k], L[i, k] * A[i, 0, :m] * G[k])
        want = want if layer.shape[0] > layer.shape[1] else want.T
        assert_close(layer.delta_weight(), want, 1e-13)
        d_delta = rng.standard_normal(want.shape)
        for name, grad in layer.delta_backward(d_delta).items():
            assert np.sum(grad * layer.params[name]) == pytest.approx(np.sum(d_delta * want), rel=1e-12)


def test_randlora_reaches_every_rank_and_its_matrices_are_of_variance_one(rng):
    _, layer = layer_with(RandLoRAConfig(r=4), rng, d_in=30, d_out=33)
    assert np.linalg.matrix_rank(layer.delta_weight()) == 30
    for array in RandLoRALinear.draw_shared([(300, 200)], r=40, projection_prng_key=1).values():
        assert abs(array.mean()) < 0.03 and abs(array.std() - 1) < 0.02


def test_vera_by_its_formula():
    """Layers of different sizes take their parts of the matrices from the upper left; numbers by torch.manual_seed."""
    for layer in adapters(mlp_with(VeRAConfig(r=5, projection_prng_key=7)).to(np, "float64")).values():
        (d_out, d_in), (b, d), (A, B) = layer.shape, layer.params.values(), layer.buffers.values()
        assert_close(layer.delta_weight(), np.diag(b) @ B[:d_out] @ np.diag(d) @ A[:, :d_in], 1e-13)
    drawn = VeRALinear.draw_shared([(12, 6), (9, 12)], r=5, projection_prng_key=7)
    assert_close(drawn["vera_A"][0, :3], np.array([0.0493879, -0.4259566, 0.2251593]), 1e-6)
    assert_close(drawn["vera_B"][-1, -3:], np.array([-0.5148518, -0.6198509, 0.1942488]), 1e-6)


@pytest.mark.parametrize("d", [1, 7, 12, 64, 97, 384, 1536])
@pytest.mark.parametrize("factor", [-1, 1, 4, 5, 32])
def test_factors(d, factor):
    m, n = factors(d, factor)
    assert m * n == d
    if factor > 0 and d % factor == 0:
        assert m == factor
    else:
        most = math.isqrt(d) if factor == -1 else min(factor, math.isqrt(d))
        assert m <= most and not [k for k in range(m + 1, most + 1) if d % k == 0]


REFUSED = [
    ("miss", {"r": 7}, "r must be at most 6, the inputs of layer; got 7"),
    ("miss", {"r": 2, "init_weights": "mini", "mini_r": 5}, "mini_r must divide 12, the outputs of layer; got 5"),
    ("gralora", {"r": 4, "gralora_k": 4}, "gralora_k must divide r = 4 and the sizes of layer, 12x6; got 4"),
    ("fourierft", {"n_frequency": 73}, "n_frequency must be at most 72, the entries of layer; got 73"),
]


@pytest.mark.parametrize(("method", "options", "message"), REFUSED)
def test_options_that_do_not_fit_the_layer(method, options, message, rng):
    with pytest.raises(InputError, match=message):
        layer_with(METHODS[method].Config(**options), rng)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("dora", {"detach_norm": 1}, "detach_norm must be true or false; got 1"),
        ("loha", {"alpha": "x"}, "alpha must be a finite number; got 'x'"),
        ("loha", {"init_weights": "lycoris"}, "init_weights must be true or false; got 'lycoris'"),
        ("lokr", {"decompose_factor": 0}, "decompose_factor must be a positive integer; got 0"),
        ("hira", {"hira_dropout": 1}, "hira_dropout must be a number p with 0 <= p < 1; got 1"),
        ("miss", {"init_weights": "bat"}, 'init_weights="bat" is not implemented here'),
        ("ia3", {"layers_to_transform": 1, "target_modules": ["x"]}, "ia3 has no layers_to_transform in PEFT"),
        ("miss", {"rank_pattern": {"x": 2}}, "miss has no rank_pattern in PEFT; name the layers"),
        ("gralora", {"exclude_modules": ["x"]}, "gralora has no exclude_modules in PEFT; name the layers"),
        ("ia3", {"feedforward_modules": 3}, "feedforward_modules must be a list of names; got 3"),
        ("delora", {"delora_lambda": math.nan}, "delora_lambda must be a finite number; got nan"),
        ("fourierft", {"n_frequency": 0}, "n_frequency must be a positive integer; got 0"),
        ("fourierft", {"random_loc_seed": -1}, "random_loc_seed must be an integer of at least 0; got -1"),
        ("vera", {"vera_dropout": 1}, "vera_dropout must be a number p with 0 <= p < 1; got 1"),
        ("vera", {"d_initial": math.inf}, "d_initial must be a finite number; got inf"),
        ("vera", {"projection_prng_key": -1}, "projection_prng_key must be an integer of at least 0; got -1"),
        ("vera", {"save_projection": 1}, "save_projection must be true or false; got 1"),
        ("vera", {"rank_pattern": {"x": 2}}, "vera has no rank_pattern in PEFT; name the layers"),
        ("randlora", {"randlora_alpha": "x"}, "randlora_alpha must be a finite number; got 'x'"),
        ("randlora", {"randlora_dropout": 2}, "randlora_dropout must be a number p with 0 <= p < 1; got 2"),
        ("randlora", {"save_projection": False}, "save_projection must be true in randlora"),
        ("gralora", {"gralora_k": 0}, "gralora_k must be a positive integer; got 0"),
    ],
)
def test_options_that_are_none(method, options, message):
    with pytest.raises(InputError, match=message):
        METHODS[method].Config(**options)
