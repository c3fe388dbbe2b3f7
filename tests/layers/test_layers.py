import numpy as np
import pytest
from checks import LAYERS, TOLERANCES, assert_close, assert_lives_on, dropout_seed, linear, lora, move, run, same_bits

from lorabook import LoRALinear, inject
from lorabook import functional as F
from lorabook.adapters import LoRAConfig, inputs_of
from lorabook.backend import BLOCK, get_xp, to_numpy
from lorabook.errors import InputError
from lorabook.layers import INFERENCE, RUN, Activation, Layer, LayerNorm, Linear, Run, Sequential, add_grads
from lorabook.models import MLP, PostNormBlock

EVERY_LAYER = pytest.mark.parametrize("name", LAYERS)
DETERMINISTIC = pytest.mark.parametrize("name", [n for n in LAYERS if dropout_seed(n) is None])


def passed(rng, name, shape=(2, 3)):
    """A layer, an input, an upstream gradient of its output's shape, and the seed of its dropout."""
    layer, x = LAYERS[name](rng), rng.standard_normal((*shape, 5))
    return layer, x, rng.standard_normal(layer(x.copy())[0].shape), dropout_seed(name)


# ---- forward and backward --------------------------------------------------------------------------------------------


@EVERY_LAYER
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_same_on_every_backend(put, rng, name, dtype):
    layer, x, dout, seed = passed(rng, name)
    y, dx, grads = run(layer, x, dout, seed)
    y_, dx_, grads_ = run(move(layer, put, dtype), put(x, dtype), put(dout, dtype), seed)
    assert_lives_on(put(x, dtype), y_, dx_, *grads_.values())
    assert grads_.keys() == grads.keys() == layer.trainable_params().keys()
    tolerance = 4 * TOLERANCES[dtype]
    assert_close(y_, y, tolerance)
    assert_close(dx_, dx, tolerance)
    for path, grad in grads.items():
        assert_close(grads_[path], grad, tolerance)


@EVERY_LAYER
def test_backward_twice_gives_the_same(rng, name):
    layer, x, dout, seed = passed(rng, name)
    _, cache = layer(x, Run(rng=seed and np.random.default_rng(seed)))
    first, second = layer.backward(dout, cache), layer.backward(dout, cache)
    assert same_bits(first[0], second[0])
    assert first[1].keys() == second[1].keys()
    assert all(same_bits(first[1][path], second[1][path]) for path in first[1])


@EVERY_LAYER
def test_two_forwards_in_flight(rng, name):
    layer, x, dout, seed = passed(rng, name)
    y, dx, grads = run(layer, x, dout, seed)
    y_, cache = layer(x, Run(rng=seed and np.random.default_rng(seed)))
    layer(rng.standard_normal((4, 5)), Run(rng=seed and np.random.default_rng(1)))
    dx_, grads_ = layer.backward(dout, cache)
    assert same_bits(y_, y)
    assert same_bits(dx_, dx)
    assert all(same_bits(grads_[path], grads[path]) for path in grads)


@EVERY_LAYER
def test_nothing_is_written_to(rng, name):
    layer, x, dout, seed = passed(rng, name)
    held = {"x": x, "dout": dout, **layer.named_params()}
    before, attributes = {n: a.copy() for n, a in held.items()}, set(vars(layer))
    run(layer, x, dout, seed)
    assert all(same_bits(array, before[n]) for n, array in held.items())
    assert {"x": x, "dout": dout, **layer.named_params()}.keys() == before.keys()
    assert set(vars(layer)) == attributes


@EVERY_LAYER
def test_leading_axes_are_a_batch(rng, name):
    layer, x, dout, seed = passed(rng, name)
    y, dx, grads = run(layer, x, dout, seed)
    y_, dx_, grads_ = run(layer, x.reshape(6, 5), dout.reshape(6, -1), seed)
    assert_close(y_.reshape(y.shape), y)
    assert_close(dx_.reshape(x.shape), dx)
    assert all(same_bits(grads_[path], grads[path]) for path in grads)


@DETERMINISTIC
@pytest.mark.parametrize("cut", [1, 4])
def test_gradients_of_shards_sum_to_those_of_the_batch(rng, name, cut):
    layer, x, dout, _ = passed(rng, name, (6,))
    _, dx, grads = run(layer, x, dout)
    total, dxs = {}, []
    for part in (slice(None, cut), slice(cut, None)):
        _, dx_part, grads_part = run(layer, x[part], dout[part])
        assert add_grads(total, grads_part) is total
        dxs.append(dx_part)
    assert_close(np.concatenate(dxs), dx)
    assert total.keys() == grads.keys()
    for path, grad in grads.items():
        assert_close(total[path], grad)


def test_add_grads_leaves_the_shards(rng):
    first, second = {"a": np.ones(2)}, {"a": np.ones(2), "b": np.ones(3)}
    total = add_grads(add_grads(add_grads({}, first), second), first)
    assert {n: a.tolist() for n, a in total.items()} == {"a": [3, 3], "b": [1, 1, 1]}
    assert (first["a"].tolist(), second["a"].tolist()) == ([1, 1], [1, 1])


# ---- activations over what they are given ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", F.ACTIVATIONS)
@pytest.mark.parametrize("width", [5, BLOCK + 1])
def test_an_activation_leaves_what_others_may_read(rng, name, width):
    layer, x, dout = Activation(name), rng.standard_normal((3, width)), rng.standard_normal((3, width))
    before = x.copy(), dout.copy()
    y, cache = layer(x)
    first, second = layer.backward(dout, cache)[0], layer.backward(dout, cache)[0]
    assert same_bits(x, before[0]) and same_bits(dout, before[1])
    assert same_bits(first, second)
    got, none = layer(x, INFERENCE)
    assert same_bits(got, y) and none is None
    assert same_bits(x, before[0])


@pytest.mark.parametrize("name", F.ACTIVATIONS)
@pytest.mark.parametrize("width", [5, BLOCK + 1])
def test_an_activation_that_overwrites_gives_the_same_bits(rng, name, width):
    x, dout = rng.standard_normal((3, width)), rng.standard_normal((3, width))
    want = run(Activation(name), x, dout)
    given = dout.copy()
    y, dx, _ = run(Activation(name, overwrite=True), x.copy(), given)
    assert same_bits(y, want[0]) and same_bits(dx, want[1])
    assert dx is given
    y, none = Activation(name, overwrite=True)(x.copy(), INFERENCE)
    assert same_bits(y, want[0]) and none is None


def test_a_large_activation_keeps_its_slope_where_x_was(rng):
    x = rng.standard_normal((3, BLOCK)).astype("f4")
    _, slope = Activation("gelu", overwrite=True)(x)
    assert np.shares_memory(slope, x)


def test_without_keep_gelu_computes_no_slope(rng):
    layer, called = Activation("gelu"), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(F.ACTIVATIONS, "gelu", lambda *args: called.append(args))
        layer(rng.standard_normal(5), INFERENCE)
    assert not called


def large_block(rng):
    block = PostNormBlock.random(8, 2, BLOCK // 128 + 3, rng)
    return block, block.activation, rng.standard_normal((2, 128, 8)).astype("f4")


def large_mlp(rng):
    model = MLP((8, BLOCK // 128 + 3, 8), "gelu", rng=rng)
    return model, model.children["act1"], rng.standard_normal((2, 128, 8)).astype("f4")


@pytest.mark.parametrize("made", [large_block, large_mlp])
def test_what_overwrites_inside_gives_the_same_bits_and_writes_to_nothing(rng, made):
    model, activation, x = made(rng)
    dout, results = rng.standard_normal(x.shape).astype("f4"), []
    held = {"x": x, "dout": dout, **model.named_params()}
    before = {n: a.copy() for n, a in held.items()}
    assert activation.overwrite
    for activation.overwrite in (True, False):
        y, cache = model(x)
        kept = y.copy()
        results += [(y, *model.backward(dout, cache)) for _ in range(2)]
        assert same_bits(y, kept)
    assert all(same_bits(array, before[n]) for n, array in held.items())
    for y, dx, grads in results[1:]:
        assert same_bits(y, results[0][0]) and same_bits(dx, results[0][1])
        assert all(same_bits(grad, results[0][2][path]) for path, grad in grads.items())


# ---- only what trains gets a gradient --------------------------------------------------------------------------------


@EVERY_LAYER
def test_frozen_parameters_get_no_gradient(rng, name):
    layer, x, dout, seed = passed(rng, name)
    layer.set_trainable(layer.named_params())
    _, dx, everything = run(layer, x, dout, seed)
    assert everything.keys() == layer.named_params().keys()
    for path in everything:
        layer.set_trainable([path])
        _, dx_, grads = run(layer, x, dout, seed)
        assert grads.keys() == {path} == layer.trainable_params().keys()
        assert_close(grads[path], everything[path])
        assert_close(dx_, dx)
    layer.freeze()
    assert run(layer, x, dout, seed)[2] == {}


def arrays_of(cache):
    """Every array in a cache, whatever it is nested in."""
    if isinstance(cache, np.ndarray):
        return [cache]
    return [array for part in cache or () for array in arrays_of(part)] if isinstance(cache, tuple | list) else []


@pytest.mark.parametrize("trainable", [["weight", "bias"], ["weight"], ["bias"], []], ids=str)
def test_a_frozen_weight_keeps_no_input(rng, trainable):
    layer, x, dout = linear(rng), rng.standard_normal((2, 3, 5)), rng.standard_normal((2, 3, 7))
    _, dx, grads = run(layer, x, dout)
    layer.set_trainable(trainable)
    _, cache = layer(x)
    kept = [array for array in arrays_of(cache) if np.shares_memory(array, x)]
    assert len(kept) == ("weight" in trainable)
    dx_, grads_ = layer.backward(dout, cache)
    assert same_bits(dx_, dx)
    assert grads_.keys() == set(trainable)
    assert all(same_bits(grad, grads[name]) for name, grad in grads_.items())


def test_what_a_frozen_stack_keeps(rng):
    """LoRA keeps its input; the frozen layers below and above it keep nothing of the batch but the slope of g."""
    adapter = LoRALinear(linear(rng, 7, 5), r=4, init_lora_weights=False, rng=rng)
    layers = {"below": linear(rng), "act": Activation("silu"), "lora": adapter, "above": linear(rng)}
    stack, x = Sequential(layers), rng.standard_normal((11, 5))
    stack.set_trainable(["lora.lora_A", "lora.lora_B"])
    _, cache = stack(x)
    below, slope, adapter, above = cache
    assert [array.shape for array in arrays_of(below) + arrays_of(above)] == [(7, 5), (7, 5)]
    assert [array.shape for array in arrays_of(slope)] == [(11, 7)]
    assert [array.shape for array in arrays_of(adapter) if len(array) == 11] == [(11, 7)]
    _, grads = stack.backward(rng.standard_normal((11, 7)), cache, need_dx=False)
    assert grads.keys() == {"lora.lora_A", "lora.lora_B"}


@EVERY_LAYER
def test_dx_is_computed_only_if_needed(rng, name):
    layer, x, dout, seed = passed(rng, name)
    _, dx, grads = run(layer, x, dout, seed)
    _, no_dx, grads_ = run(layer, x, dout, seed, need_dx=False)
    assert dx.shape == x.shape
    assert no_dx is None
    assert grads_.keys() == grads.keys()
    assert all(same_bits(grads_[path], grads[path]) for path in grads)


class Spy(Linear):
    """Notes how it was called; returns a dx only where one was asked for."""

    def __init__(self, rng, name, calls):
        super().__init__(rng.standard_normal((5, 5)))
        self.name, self.calls = name, calls

    def forward(self, x, run=RUN):
        self.calls.append((self.name, "forward", run))
        return super().forward(x, run)

    def backward(self, dout, cache, need_dx=True):
        self.calls.append((self.name, "backward", need_dx))
        return super().backward(dout, cache, need_dx)


@pytest.mark.parametrize(
    ("trained", "need_dx", "visited"),
    [
        (["a.weight"], False, [("c", True), ("b", True), ("a", False)]),
        (["b.weight"], False, [("c", True), ("b", False)]),
        (["c.weight"], False, [("c", False)]),
        (["b.weight", "c.weight"], False, [("c", True), ("b", False)]),
        ([], False, []),
        (["b.weight"], True, [("c", True), ("b", True), ("a", True)]),
        ([], True, [("c", True), ("b", True), ("a", True)]),
    ],
    ids=str,
)
def test_backward_stops_below_what_trains(rng, trained, need_dx, visited):
    calls, x = [], rng.standard_normal((4, 5))
    stack = Sequential({name: Spy(rng, name, calls) for name in "abc"})
    stack.set_trainable(trained)
    _, cache = stack(x, given := Run(rng=rng))
    assert calls == [(name, "forward", given) for name in "abc"]
    assert all(one is given for _, _, one in calls)
    calls.clear()
    dx, grads = stack.backward(rng.standard_normal((4, 5)), cache, need_dx)
    assert [(name, asked) for name, _, asked in calls] == visited
    assert (dx is not None) == need_dx
    assert grads.keys() == set(trained)


def test_model_asks_for_no_dx(rng):
    calls = []
    model = MLP((5, 6, 7), rng=rng).to(np, "float64")
    model.children["fc1"] = Spy(rng, "fc1", calls)
    model.children["fc2"] = linear(rng, 5, 7)
    batch = {"x": rng.standard_normal((4, 5)), "labels": np.array([0, 1, 2, 6])}
    _, grads = model.loss_and_grad(batch, given := Run(rng=rng))
    assert calls == [("fc1", "forward", given), ("fc1", "backward", False)]
    assert grads.keys() == {"fc1.weight", "fc2.weight", "fc2.bias"}


def test_first_goes_to_the_last_child_only(rng):
    calls = []
    stack = Sequential({name: Spy(rng, name, calls) for name in "abc"})
    stack(np.ones((2, 5)), given := Run(rng=rng, first=1, bias=2))
    inside = Run(rng=rng, bias=2)
    assert [run for _, _, run in calls] == [inside, inside, given]
    calls.clear()
    stack(np.ones((2, 5)), inside)
    assert all(run is inside for _, _, run in calls) and len(calls) == 3


# ---- names -----------------------------------------------------------------------------------------------------------


def nested(rng):
    inner = Sequential({"query": linear(rng), "norm": LayerNorm(np.ones(7), np.zeros(7))})
    return Sequential({"block": inner, "act": Activation("silu"), "out": linear(rng, 7, 3, bias=False)})


NAMES = ["block.query.weight", "block.query.bias", "block.norm.weight", "block.norm.bias", "out.weight"]


def test_dotted_names(rng):
    model = nested(rng)
    assert [path for path, _ in model.named_layers()] == ["", "block", "block.query", "block.norm", "act", "out"]
    assert list(model.named_params()) == list(model.trainable_params()) == NAMES
    assert model.named_params()["block.query.bias"] is model.children["block"].children["query"].params["bias"]
    assert list(linear(rng).named_params()) == ["weight", "bias"]


def test_set_trainable_takes_exactly_these(rng):
    model = nested(rng)
    model.set_trainable(["out.weight", "block.norm.bias"])
    assert list(model.trainable_params()) == ["block.norm.bias", "out.weight"]
    model.set_trainable(NAMES[:1])
    assert list(model.trainable_params()) == NAMES[:1]
    model.freeze()
    assert model.trainable_params() == {}
    assert list(model.named_params()) == NAMES


def test_refused_set_trainable_changes_nothing(rng):
    model = nested(rng)
    with pytest.raises(InputError, match=r"'block\.query\.wieght'; closest: block\.query\.weight"):
        model.set_trainable(["out.weight", "block.query.wieght"])
    assert list(model.trainable_params()) == NAMES


# ---- loading and moving ----------------------------------------------------------------------------------------------


def test_load_copies_into_the_arrays(put, rng):
    model, other = move(nested(rng), put), nested(rng)
    arrays = model.named_params()
    model.load(other.named_params())
    for path, array in model.named_params().items():
        assert array is arrays[path]
        assert_lives_on(put([0.0]), array)
        assert same_bits(array, other.named_params()[path])
        assert array is not other.named_params()[path]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda a: a.pop("out.weight"), "missing out.weight"),
        (lambda a: a.update(extra=np.ones(1)), "unexpected extra"),
        (lambda a: a.update({"out.weight": np.ones((7, 3))}), r"out.weight has shape (7, 3), expected (3, 7)"),
        (lambda a: a.update({str(i): np.ones(1) for i in range(9)}), "unexpected 4 (and 4 more)"),
    ],
    ids=["missing", "unexpected", "misshapen", "many"],
)
def test_refused_load_changes_nothing(rng, change, said):
    model = nested(rng)
    before = {n: a.copy() for n, a in model.named_params().items()}
    arrays = nested(rng).named_params()
    change(arrays)
    with pytest.raises(InputError) as caught:
        model.load(arrays)
    assert said in str(caught.value)
    assert all(same_bits(a, before[n]) for n, a in model.named_params().items())


@pytest.mark.parametrize("dtype", [None, "float32", "float64"])
def test_to_moves_every_parameter(xp, rng, dtype):
    model = nested(rng)
    host = {n: a.copy() for n, a in model.named_params().items()}
    assert model.to(xp, dtype) is model
    for path, array in model.named_params().items():
        assert_lives_on(xp.asarray(np.zeros(1, dtype or "float64")), array)
        assert same_bits(array, host[path].astype(dtype or "float64"))
    back = model.to(np).named_params()
    assert all(type(a) is np.ndarray for a in back.values())


def test_to_takes_merged_adapters_along(rng):
    model = Sequential({"inner": Sequential({"lora": lora(rng)})})
    layer, x = model.children["inner"].children["lora"], rng.standard_normal((3, 5))
    y, _ = model(x)
    layer.merge()
    strict = get_xp("array_api_strict")
    model.to(strict)
    y_, _ = model(strict.asarray(x))
    assert_close(y_, y)
    layer.unmerge()
    y_, _ = model(strict.asarray(x))
    assert_close(y_, y)


# ---- layers and models -----------------------------------------------------------------------------------------------


def test_protocol_is_abstract():
    layer = Layer()
    with pytest.raises(NotImplementedError):
        layer(None)
    with pytest.raises(NotImplementedError):
        layer.backward(None, None)


def test_random_linear(rng):
    layer = Linear.random(400, 300, rng)
    assert {n: (a.shape, str(a.dtype)) for n, a in layer.params.items()} == {
        "weight": ((300, 400), "float32"),
        "bias": ((300,), "float32"),
    }
    for array in layer.params.values():
        assert np.max(np.abs(array)) <= 1 / np.sqrt(400)
        assert abs(np.std(array) * np.sqrt(3 * 400) - 1) < 0.1


def test_mlp_is_wired_as_written(rng):
    model = MLP((5, 8, 6, 3), "relu", rng=rng)
    assert list(model.children) == ["fc1", "act1", "fc2", "act2", "fc3"]
    assert [a.shape for n, a in model.named_params().items() if n.endswith("weight")] == [(8, 5), (6, 8), (3, 6)]
    x = rng.standard_normal((4, 5)).astype("float32")
    p, h = model.named_params(), x
    for i in (1, 2, 3):
        h = h @ p[f"fc{i}.weight"].T + p[f"fc{i}.bias"]
        h = np.maximum(h, 0) if i < 3 else h
    assert_close(model(x)[0], h, TOLERANCES["float32"])


def test_mlp_inputs_and_evaluation(put, rng):
    model = move(MLP((5, 8, 3), rng=rng), put, "float64")
    inject(model, LoRAConfig(r=2))
    x, labels = put(rng.standard_normal((6, 5))), put([0, 1, 2, 2, 1, 0])
    inputs = inputs_of(model, x)
    assert list(inputs) == ["fc1", "fc2"]
    assert inputs["fc1"] is x
    y = to_numpy(model.children["fc2"](inputs["fc2"])[0])
    assert same_bits(y, model(x)[0])
    batch = {"x": x, "labels": labels}
    loss, accuracy = model.evaluate(batch)
    assert accuracy == np.mean(y.argmax(axis=1) == to_numpy(labels))
    assert loss == pytest.approx(float(model.loss_and_grad(batch)[0]), rel=1e-15)
    assert type(loss) is type(accuracy) is float


def test_dropout_is_drawn_in_a_stack_and_only_in_training(rng):
    layer = LoRALinear(linear(rng), r=4, lora_dropout=0.5, init_lora_weights=False, rng=rng)
    stack, x = Sequential({"layer": layer}), rng.standard_normal((6, 5))
    plain = stack(x)[0]
    masked = stack(x, Run(rng=np.random.default_rng(0)))[0]
    assert_close(plain, layer(x)[0])
    assert same_bits(masked, layer(x, Run(rng=np.random.default_rng(0)))[0])
    assert np.max(np.abs(masked - plain)) > 0.01


@EVERY_LAYER
def test_without_keep_the_output_is_the_same(rng, name):
    """Alone and in a Sequential, which then has no caches."""
    layer, x = LAYERS[name](rng), rng.standard_normal((11, 5))
    seed = dropout_seed(name)

    def passed(layer, **keep):
        return layer(x.copy(), Run(rng=None if seed is None else np.random.default_rng(seed), **keep))

    want, _ = passed(layer)
    np.testing.assert_array_equal(passed(layer, keep=False)[0], want)
    y, caches = passed(Sequential({"layer": layer}), keep=False)
    np.testing.assert_array_equal(y, want)
    assert caches == []
