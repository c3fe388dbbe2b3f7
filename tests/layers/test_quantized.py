import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from checks import assert_close, held, linear, lora, run, same_bits

from lorabook import InputError, LoRAConfig, LoRALinear, inject, memory_table, merge, unload, unmerge
from lorabook.adapters import adapters
from lorabook.backend import to_numpy
from lorabook.layers import Layer, Linear, QuantizedLinear, Run, Sequential, check_layer, quantize
from lorabook.models import MLP
from lorabook.quantization import FORMATS, quantize_weight

SMOOTH = 1e-11


def quantised(rng, format="nf4", bias=True, d_in=5, d_out=7):
    return QuantizedLinear.of(linear(rng, d_in, d_out, bias), format)


def dense(layer):
    """A Linear with the numbers that the codes stand for, in float64, in which they are exact enough to compare."""
    return Linear(layer.quantized.dequantize(dtype="float64"), layer.bias)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("bias", [True, False])
def test_it_is_the_linear_over_what_the_codes_stand_for(rng, format, bias):
    layer = quantised(rng, format, bias)
    x, dout = rng.standard_normal((2, 3, 5)), rng.standard_normal((2, 3, 7))
    want, same = dense(layer), ()
    want.set_trainable(["bias"] if bias else [])
    y, dx, grads = run(layer, x, dout)
    for got, expected in zip((y, dx), run(want, x, dout)[:2], strict=True):
        assert same_bits(got, expected)
    same = run(want, x, dout)[2]
    assert grads.keys() == same.keys() == ({"bias"} if bias else set())
    assert all(same_bits(grads[name], same[name]) for name in grads)
    assert layer.shape == want.shape == (7, 5) and (layer.dense, want.dense) == (False, True)


@pytest.mark.parametrize("format", FORMATS)
def test_gradients(rng, format):
    x = rng.standard_normal((4, 5))
    assert max(check_layer(quantised(rng, format), x, rng).values()) < SMOOTH
    stack = Sequential({"first": quantised(rng, format), "second": linear(rng, 7, 9)})
    assert max(check_layer(stack, x, rng).values()) < SMOOTH


def test_the_dtype_is_that_of_the_input(rng):
    layer = QuantizedLinear.of(Linear.random(64, 32, rng))
    for dtype in ("f4", "f8"):
        y, dx, grads = run(
            layer, rng.standard_normal((3, 64)).astype(dtype), rng.standard_normal((3, 32)).astype(dtype)
        )
        assert y.dtype == dx.dtype == grads["bias"].dtype == dtype
    assert layer.weight.dtype == np.float32


def test_nothing_trains_but_the_bias(rng):
    layer = quantised(rng)
    assert list(layer.params) == ["bias"] and set(layer.buffers) == {"codes", "scale"}
    with pytest.raises(InputError, match="no parameter is called 'weight'"):
        layer.set_trainable(["weight"])
    layer.freeze()
    y, cache = layer(np.ones((2, 5)))
    assert cache is None and layer.backward(y, cache, need_dx=False) == (None, {})


def test_other_backends(rng, put, xp):
    layer, x, dout = quantised(rng), rng.standard_normal((3, 5)), rng.standard_normal((3, 7))
    want = run(layer, x, dout)
    layer.buffers = {name: put(array) for name, array in layer.buffers.items()}
    layer.params = {name: put(array) for name, array in layer.params.items()}
    y, dx, grads = run(layer, put(x), put(dout))
    for got, expected in zip((y, dx, grads["bias"]), (*want[:2], want[2]["bias"]), strict=True):
        assert_close(got, expected)
    moved = QuantizedLinear.of(Linear(put(rng.standard_normal((7, 5)))))
    assert moved(put(x))[0].shape == (3, 7)


def test_moving_keeps_the_codes(rng):
    import array_api_strict

    model = MLP((64, 32, 10), rng=rng)
    quantize(model)
    before = {name: array.copy() for name, array in model.named_buffers().items()}
    model.to(array_api_strict, "float64").to(np, "float32")
    assert all(same_bits(array, before[name]) for name, array in model.named_buffers().items())
    assert list(before) == ["fc1.codes", "fc1.scale", "fc2.codes", "fc2.scale"]


def test_a_state_is_loaded_as_of_any_model(rng):
    first, second = MLP((64, 32, 10), rng=0), MLP((64, 32, 10), rng=1)
    quantize(first), quantize(second)
    second.load(first.state())
    x = rng.standard_normal((3, 64)).astype("f4")
    assert same_bits(first.predict(x), second.predict(x))


# ---- threads, memory -------------------------------------------------------------------------------------------------


def test_threads_do_not_share_their_memory(rng):
    """Layers of different sizes, dequantised by four threads at once, give the bits of one thread alone."""
    layers = [QuantizedLinear.of(Linear.random(64, n, rng), format) for n, format in ((96, "nf4"), (64, "q4_1"))]
    x, douts = rng.standard_normal((8, 64)).astype("f4"), [rng.standard_normal((8, n)).astype("f4") for n in (96, 64)]
    want = [run(layer, x, dout) for layer, dout in zip(layers, douts, strict=True)]
    right, before, start = [], [held(layer) for layer in layers], threading.Barrier(4)

    def work(first):
        start.wait()
        for i in range(200):
            k = (first + i) % 2
            y, dx, _ = run(layers[k], x, douts[k])
            right.append(same_bits(y, want[k][0]) and same_bits(dx, want[k][1]))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))  # raises what a thread raised
    assert len(right) == 800 and all(right) and [held(layer) for layer in layers] == before


def test_two_forwards_may_be_in_flight(rng):
    a, b = quantised(rng), quantised(rng)
    x, dout = rng.standard_normal((3, 5)), rng.standard_normal((3, 7))
    want = run(a, x, dout)[1]
    (_, first), (_, second) = a(x), b(x)  # the thread's memory now holds the weight of b
    b.backward(dout, second)
    assert same_bits(a.backward(dout, first)[0], want)


# ---- LoRA over it ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["factored", "merged", "auto"])
@pytest.mark.parametrize("options", [{}, {"lora_dropout": 0.4}])
def test_qlora_is_lora_over_the_dequantised_weight(rng, order, options):
    """Output and gradients, bit for bit."""
    base = quantised(rng)
    pair = [LoRALinear(b, 4, 3, init_lora_weights=False, rng=1, order=order, **options) for b in (base, dense(base))]
    if order == "auto":
        pair[1].order = "factored"  # a dense W + s B A is what 4 bits save
    x, dout = rng.standard_normal((40, 5)), rng.standard_normal((40, 7))
    for layer in pair:
        layer.base_layer.set_trainable(["bias"])
    seed = 7 if options else None
    (y, dx, grads), (y2, dx2, grads2) = (run(layer, x, dout, seed) for layer in pair)
    assert grads.keys() == grads2.keys() == {"lora_A", "lora_B", "base_layer.bias"}
    tolerance = 1e-6 if order == "merged" else 0  # W + s B A is then formed in float32
    assert_close(y, y2, tolerance)
    assert_close(dx, dx2, tolerance)
    for name in grads:
        assert_close(grads[name], grads2[name], tolerance)


@pytest.mark.parametrize("also", [[], ["bias"]])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_gradients_of_qlora(rng, also, dropout):
    layer = LoRALinear(quantised(rng), 4, 3, init_lora_weights=False, rng=rng, lora_dropout=dropout)
    layer.base_layer.set_trainable(also)
    errors = check_layer(layer, rng.standard_normal((4, 5)), rng, dropout_seed=7 if dropout else None)
    assert errors.keys() == {"x", "lora_A", "lora_B", *(f"base_layer.{name}" for name in also)}
    assert max(errors.values()) < SMOOTH


def test_no_dense_weight_outlives_a_pass(rng):
    """However many rows: what the cache holds is x and z, never an array of the size of W."""
    layer = LoRALinear(QuantizedLinear.of(Linear.random(96, 96, rng)), r=2)
    y, cache = layer(rng.standard_normal((4096, 96)).astype("f4"))
    assert not layer.forms_weight(4096, Run())
    x, own, (z, M) = cache
    assert own is M is None and x.shape == (4096, 96) and z.shape == (4096, 2)
    assert y.shape == (4096, 96)


def test_merging_puts_a_dense_weight_in_place_and_back(rng):
    model = MLP((64, 32, 10), rng=rng)
    quantize(model)
    inject(model, LoRAConfig(r=4, init_lora_weights=False), rng)
    x, before = rng.standard_normal((5, 64)).astype("f4"), held(model)
    want, layer = model.predict(x), adapters(model)["fc1"]
    update = layer.delta_weight()
    merge(model)
    assert layer.merged and type(layer.base_layer) is Linear and not layer.base_layer.buffers
    assert same_bits(layer.weight, update + before["fc1.base_layer"]["params"].get("weight", layer._unmerged.weight))
    assert_close(model.predict(x), want, 2e-6)
    merge(model)  # once more changes nothing
    unmerge(model)
    assert held(model) == before and same_bits(model.predict(x), want)
    merge(model)
    unload(model)
    assert model.state().keys() == {"fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"}
    assert_close(model.predict(x), want, 2e-6)


def test_a_merged_adapter_moves_with_its_codes(rng):
    layer = LoRALinear(QuantizedLinear.of(Linear.random(64, 32, rng)), r=2, init_lora_weights=False)
    layer.merge()
    bias = layer.bias
    layer.to(np, "float64")
    assert layer.weight.dtype == layer.bias.dtype == np.float64 and layer.bias is not bias
    merged = layer.bias
    layer.unmerge()
    assert layer.bias is merged and layer.base_layer.buffers["codes"].dtype == np.uint8


def test_what_trains_stays_so_through_merging(rng):
    layer = lora(rng, also=["bias"])
    layer.merge()
    assert layer.trainable_params().keys() == {"lora_A", "lora_B", "base_layer.bias"}
    layer.unmerge()
    assert layer.trainable_params().keys() == {"lora_A", "lora_B", "base_layer.bias"}


# ---- a model in place ------------------------------------------------------------------------------------------------


class Headed(Layer):
    """Two layers and a head, of which `tied` shares its weight with `a`."""

    head_modules = ("score",)

    def __init__(self, rng):
        tied = Linear.random(5, 6, rng)
        names = {"a": tied, "tied": Linear(tied.weight), "proj": Linear.random(6, 8, rng), "score": linear(rng, 8, 3)}
        super().__init__(children=names)


def test_heads_and_shared_weights_stay(rng):
    model = Headed(rng)
    assert quantize(model) == ["proj"]
    assert [type(layer) for layer in model.children.values()] == [Linear, Linear, QuantizedLinear, Linear]
    assert quantize(model, "int4", "score") == ["score"]
    assert model.children["score"].format == "int4"


@pytest.mark.parametrize("first", ["inject", "quantize"])
def test_before_or_after_the_adapters(rng, first):
    """The same codes, factors and paths."""
    model, x = MLP((64, 32, 10), rng=3), rng.standard_normal((5, 64)).astype("f4")
    config = LoRAConfig(r=4, init_lora_weights=False)
    for step in (first, "quantize" if first == "inject" else "inject"):
        assert (quantize(model, target=["fc1", "fc2"]) if step == "quantize" else inject(model, config)) == [
            "fc1",
            "fc2",
        ]
    other = MLP((64, 32, 10), rng=3)
    want = quantize_weight(other.named_params()["fc1.weight"]).dequantize()
    assert same_bits(adapters(model)["fc1"].weight, want)
    assert model.trainable_params().keys() == {f"fc{i}.lora_{f}" for i in (1, 2) for f in "AB"}
    assert model.predict(x).shape == (5, 10)


def test_the_dense_arrays_are_released(rng):
    import gc
    import weakref

    model = MLP((64, 32, 10), rng=rng)
    weights = [weakref.ref(array) for name, array in model.named_params().items() if name.endswith("weight")]
    quantize(model)
    gc.collect()
    assert [ref() for ref in weights] == [None, None]
    assert sum(to_numpy(a).nbytes for a in model.named_buffers().values()) < 0.15 * 4 * (64 * 32 + 32 * 10)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (
            lambda model: None,
            {"target": "fc9"},
            "target 'fc9' matches no linear layer in full precision; there are: fc1",
        ),
        (lambda model: None, {"format": "fp4"}, "fc1: unknown format 'fp4'"),
        (lambda model: model.named_params()["fc2.weight"].__setitem__((0, 0), np.nan), {}, "fc2: the weight holds NaN"),
    ],
)
def test_what_is_refused_changes_nothing(rng, change, options, message):
    model = MLP((64, 32, 10), rng=rng)
    change(model)
    before = held(model)
    with pytest.raises(InputError, match=message):
        quantize(model, **options)
    assert held(model).keys() == before.keys() and {type(layer) for layer in model.children.values()} >= {Linear}
    assert not model.named_buffers()


def test_merged_and_shared_are_refused(rng):
    model = MLP((64, 32, 10), rng=rng)
    inject(model, LoRAConfig(r=2))
    merge(model)
    with pytest.raises(InputError, match=r"call unmerge\(\) before quantising"):
        quantize(model)
    with pytest.raises(InputError, match="the weight of tied is another layer's too"):
        quantize(Headed(rng), target="tied")
    with pytest.raises(InputError, match=r"expected bias \(7,\); got \(3,\)"):
        QuantizedLinear(quantised(rng).quantized, np.ones(3))


def test_memory_of_qlora(rng):
    """Full fine-tuning counts the weights in float32; QLoRA its codes and scales: 4.5 bits a weight."""
    model = MLP((64, 32, 10), rng=rng)
    inject(model, LoRAConfig(r=4))
    full = memory_table(model)[0]
    quantize(model)
    again, qlora = memory_table(model)
    assert again == full
    assert qlora["weights"] == (64 * 32 + 32 * 10) * 4.5 / 8 + 4 * 42 + 4 * qlora["trained"]
    assert qlora["share"] == qlora["trained"] / full["trained"]
