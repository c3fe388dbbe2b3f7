"""What holds for every variant of an adapter. A new one joins by a row in VARIANTS."""

import copy
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pytest
from checks import (
    TOLERANCES,
    assert_close,
    assert_lives_on,
    held,
    linear,
    move,
    run,
    same_bits,
    tiny_bert,
    tiny_ids,
)
from gain import Gain, GainConfig, Outer, Scale

from lorabook import FormatError, InputError, LoRAConfig, LoRALinear, files, inject, memory_table, merge, unmerge
from lorabook.adapters import (
    METHODS,
    Adapter,
    DeLoRALinear,
    DoRALinear,
    FourierFTLinear,
    GraLoRALinear,
    HiRALinear,
    IA3Linear,
    LoHaLinear,
    LoKrLinear,
    MiSSLinear,
    RandLoRALinear,
    VeRALinear,
    adapter_updates,
    adapters,
    base_params,
    config_of,
    effective_weights,
    load_adapter,
    plain_name,
    read_adapter_config,
    save_adapter,
    to_lora,
    unfreeze,
    unload,
)
from lorabook.backend import to_numpy
from lorabook.data import Batches
from lorabook.layers import INFERENCE, RUN, Run, Sequential, add_grads, check_layer
from lorabook.models import (
    MLP,
    BertForSentenceEmbedding,
    BertForSequenceClassification,
    BertForTokenClassification,
    PostNormBlock,
    PreNormBlock,
    SelfAttention,
)
from lorabook.parallel import Workers
from lorabook.training import AdamW, train

SMOOTH = 1e-11


@dataclass
class Variant:
    """cls: the class. options: of its config, beside those of every method. own: {parameter: shape of (d_out, d_in)}.

    orders: what to set on a layer for each order of the products that it knows. update_in_file: whether the factors
    alone tell the update; else the error says why. forms: parameters that layers of other sizes have.
    """

    cls: type
    options: dict
    own: object
    orders: list = field(default_factory=lambda: [{}])
    update_in_file: bool = False
    why: str = "depends on the base weights"
    forms: tuple = ()

    def config(self, **options):
        return self.cls.Config(**self.options | options)

    def around(self, base):
        """The layer, put in by hand."""
        return self.cls(base, **self.config().options_for(["x"])["x"])


def lokr_shapes(d_out, d_in):
    """C is nearly a square, D is a product where it is large."""
    (p, u), (q, v) = (max((m, d // m) for m in range(1, d + 1) if d % m == 0 and m * m <= d) for d in (d_out, d_in))
    D = {"lokr_w2_a": (u, 2), "lokr_w2_b": (2, v)} if max(u, v) > 4 else {"lokr_w2": (u, v)}
    return {"lokr_w1": (p, q)} | D


VARIANTS = {
    "lora": Variant(
        LoRALinear,
        {"r": 2, "lora_alpha": 3},
        lambda d_out, d_in: {"lora_A": (2, d_in), "lora_B": (d_out, 2)},
        [{"order": order} for order in ("factored", "merged", "auto")],
        update_in_file=True,
    ),
    "dora": Variant(
        DoRALinear,
        {"r": 2, "lora_alpha": 3, "detach_norm": False},
        lambda d_out, d_in: {"lora_A": (2, d_in), "lora_B": (d_out, 2), "lora_magnitude_vector": (d_out,)},
    ),
    "loha": Variant(
        LoHaLinear,
        {"r": 2, "alpha": 3},
        lambda d_out, d_in: {
            f"hada_w{i}_{end}": (d_out, 2) if end == "a" else (2, d_in) for i in (1, 2) for end in "ab"
        },
        update_in_file=True,
    ),
    "lokr": Variant(
        LoKrLinear,
        {"r": 2, "alpha": 3},
        lokr_shapes,
        update_in_file=True,
        forms=("lokr_w1_a", "lokr_w1_b", "lokr_w2"),
    ),
    "hira": Variant(HiRALinear, {"r": 2}, lambda d_out, d_in: {"hira_A": (2, d_in), "hira_B": (d_out, 2)}),
    "delora": Variant(
        DeLoRALinear,
        {"r": 2, "delora_lambda": 3},
        lambda d_out, d_in: {"delora_A": (2, d_in), "delora_B": (d_out, 2), "delora_lambda": (1,)},
        update_in_file=True,
    ),
    "gralora": Variant(
        GraLoRALinear,
        {"r": 2, "alpha": 3, "gralora_k": 1},  # more blocks: test_variants, in sizes that they divide
        lambda d_out, d_in: {"gralora_A": (1, d_in, 2), "gralora_B": (1, 2, d_out)},
        update_in_file=True,
    ),
    "miss": Variant(
        MiSSLinear,
        {"r": 2},
        lambda d_out, d_in: {"miss_block": (2, d_out)},
        [{"order": order} for order in ("factored", "merged", "auto")],
        why="is cut to the layer's size",
    ),
    "fourierft": Variant(
        FourierFTLinear,
        {"n_frequency": 6, "scaling": 20, "init_weights": True},
        lambda d_out, d_in: {"fourierft_spectrum": (6,)},
    ),
    "vera": Variant(
        VeRALinear,
        {"r": 6, "d_initial": 0.5},
        lambda d_out, d_in: {"vera_lambda_b": (d_out,), "vera_lambda_d": (6,)},
        why="is cut to the layer's size",
    ),
    "randlora": Variant(
        RandLoRALinear,
        {"r": 3, "randlora_alpha": 6},
        lambda d_out, d_in: {
            "randlora_lambda": (3, -(-min(d_out, d_in) // 3)),
            "randlora_gamma": (-(-min(d_out, d_in) // 3), min(d_out, d_in)),
        },
        why="is cut to the layer's size",
    ),
    "ia3": Variant(IA3Linear, {}, lambda d_out, d_in: {"ia3_l": (d_out, 1)}),
    "gain": Variant(Gain, {}, lambda d_out, d_in: {"gain": (d_out,)}),
    "scale": Variant(Scale, {}, lambda d_out, d_in: {"gain": (d_out,)}),
    "outer": Variant(Outer, {}, lambda d_out, d_in: {"u": (d_out,), "v": (d_in,)}, update_in_file=True),
}


@pytest.fixture(params=VARIANTS)
def variant(request, monkeypatch):
    variant = VARIANTS[request.param]
    monkeypatch.setitem(METHODS, request.param, variant.cls)
    return variant


def stirred(model, seed=5):
    """The model with its adapters away from where they start: at rest, wrong gradients may pass."""
    rng = np.random.default_rng(seed)
    for layer in adapters(model).values():
        for name, array in layer.params.items():
            layer.params[name] = (array + 0.5 * rng.standard_normal(array.shape)).astype(array.dtype)
    return model


def in_orders(variant, model):
    """The model in each order of the products that the variant knows."""
    for order in variant.orders:
        for layer in adapters(model).values():
            vars(layer).update(order)
        yield model


def mlp(variant, dtype="float64", stir=True, **options):
    model = MLP((5, 8, 7), "silu", rng=np.random.default_rng(0)).to(np, dtype)
    inject(model, variant.config(**options), 1)
    return stirred(model) if stir else model


HEADS = {
    "sequence": BertForSequenceClassification,
    "tokens": BertForTokenClassification,
    "embedding": BertForSentenceEmbedding,
}


def bert(variant, head="sequence", dtype="float64", stir=True, **options):
    labels = 0 if head == "embedding" else 3
    model = tiny_bert(np.random.default_rng(0), HEADS[head], dtype=dtype, labels=labels)
    inject(model, variant.config(**options), 1)
    return stirred(model) if stir else model


def layer_of(variant, rng, bias=True, d_in=5, d_out=7):
    model = Sequential({"layer": linear(rng, d_in, d_out, bias)})
    inject(model, variant.config(), rng)
    return stirred(model).children["layer"]


def table(rng=None, labels=True):
    rng = rng or np.random.default_rng(2)
    return {"x": rng.standard_normal((6, 5))} | ({"labels": np.array([0, 6, 1, 1, 2, 3])} if labels else {})


def texts():
    return tiny_ids() | {"labels": np.array([0, 2, 1, 2])}


MODELS = {"mlp": (mlp, table), "bert": (bert, texts)}
EVERY_MODEL = pytest.mark.parametrize(("make", "batch_of"), MODELS.values(), ids=MODELS)


def arrays_of(layer):
    return {name: to_numpy(array).copy() for name, array in layer.named_params().items()}


def all_same_bits(got, want):
    return got.keys() == want.keys() and all(same_bits(array, want[name]) for name, array in got.items())


# ---- what it is ------------------------------------------------------------------------------------------------------


def test_a_variant_is_a_file_and_a_row(variant):
    cls = variant.cls
    assert METHODS[cls.method] is cls
    assert cls.Config.method == cls.method and isinstance(cls.peft_type, str)
    assert cls.shapes(7, 5, **variant.config().options_for(["x"])["x"]) == variant.own(7, 5)
    assert cls.tensors.keys() == {*variant.own(7, 5), *variant.forms}


@EVERY_MODEL
def test_names_shapes_and_what_trains(variant, make, batch_of):
    plain = MLP((5, 8, 7), "silu", rng=np.random.default_rng(0)) if make is mlp else tiny_bert(np.random.default_rng(0))
    names, model = list(plain.named_params()), make(variant, stir=False)
    layers = adapters(model)
    assert len(layers) == (2 if make is mlp else 13)
    own = {}
    for path, layer in layers.items():
        assert type(layer) is variant.cls and layer.config is config_of(model)
        assert layer.weight is layer.base_layer.params["weight"] and layer.bias is layer.base_layer.params["bias"]
        own |= {f"{path}.{name}": shape for name, shape in variant.own(*layer.weight.shape).items()}
    params = model.named_params()
    assert {name: params[name].shape for name in own} == own
    assert model.trainable_params().keys() == own.keys()
    assert [plain_name(name) for name in params if name not in own] == names == list(base_params(model))
    full, trained = memory_table(model)
    assert trained["method"] == variant.cls.method
    assert (full["trained"], trained["trained"]) == (
        sum(array.size for array in plain.named_params().values()),
        sum(math.prod(shape) for shape in own.values()),
    )


@EVERY_MODEL
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_output_stays_until_the_first_step(variant, make, batch_of, dtype):
    model = make(variant, dtype=dtype, stir=False)
    batch = {n: a.astype(dtype) if a.dtype == "f8" else a for n, a in batch_of().items()}
    before, y = arrays_of(model), [model.answer(batch) for model in in_orders(variant, model)]
    assert all_same_bits(arrays_of(model), before)
    unload(model)
    for one in y:
        assert_close(one, model.answer(batch), TOLERANCES[dtype])  # attention goes another way where it can
        assert make is bert or same_bits(one, model.answer(batch))


@pytest.mark.parametrize("bias", ["none", "lora_only", "all"])
def test_what_else_trains(variant, bias):
    model = bert(variant, bias=bias, target_modules=["query", "classifier"], modules_to_save=["pooler.dense"])
    own = {f"{path}.{name}" for path, layer in adapters(model).items() for name in layer.params}
    own |= {f"bert.pooler.dense.{kind}" for kind in ("weight", "bias")}
    if bias == "all":
        own |= {name for name in model.named_params() if name.endswith("bias")}
    elif bias == "lora_only":
        own |= {f"{path}.base_layer.bias" for path in adapters(model)}
    assert model.trainable_params().keys() == own
    model.freeze()
    assert not model.trainable_params()
    unfreeze(model)
    assert model.trainable_params().keys() == own


def test_put_in_by_hand_it_freezes_its_base(variant, rng):
    base = linear(rng)
    layer = variant.around(base)
    assert layer.base_layer is base and layer.trainable_params().keys() == variant.own(7, 5).keys()
    with pytest.raises(InputError, match="put in by hand"):
        config_of(Sequential({"layer": layer}))
    for other in (layer, Sequential({}), None):
        with pytest.raises(InputError, match="base must be a Linear layer; got"):
            variant.around(other)


def test_of_one_dtype_and_backend(put, variant, rng):
    base = move(linear(rng), put, "float32")
    layer = variant.around(base)
    assert_lives_on(put([0], "float32"), *layer.params.values())
    W_eff, _ = layer.effective(base.weight)
    assert_lives_on(put([0], "float32"), W_eff)
    assert W_eff.shape == base.weight.shape


# ---- gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("also", [(), ("bias",), ("weight",), ("weight", "bias")], ids=str)
def test_gradients(variant, rng, also):
    """Above and below a linear layer, with the base frozen and not."""
    layer = layer_of(variant, rng)
    layer.base_layer.set_trainable(also)
    stack = Sequential({"below": linear(rng, 4, 5), "layer": layer, "above": linear(rng, 7, 3)})
    for stack_ in in_orders(variant, stack):
        errors = check_layer(stack_, rng.standard_normal((2, 3, 4)), rng)
        assert errors.keys() == {"x"} | stack.trainable_params().keys()
        assert errors.keys() >= {f"layer.base_layer.{name}" for name in also}
        assert max(errors.values()) < SMOOTH


def test_gradients_without_a_bias(variant, rng):
    stack = Sequential({"layer": layer_of(variant, rng, bias=False), "above": linear(rng, 7, 3)})
    for stack_ in in_orders(variant, stack):
        assert max(check_layer(stack_, rng.standard_normal((4, 5)), rng).values()) < SMOOTH


def test_gradients_in_an_mlp(variant, rng):
    for model in in_orders(variant, mlp(variant, bias="all")):
        errors = check_layer(model, rng.standard_normal((6, 5)), rng)
        assert errors.keys() == {"x"} | model.trainable_params().keys()
        assert max(errors.values()) < SMOOTH


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("bias", ["none", "lora_only"])
def test_gradients_in_bert(variant, rng, head, bias):
    for model in in_orders(variant, bert(variant, head, bias=bias)):
        errors = check_layer(model, tiny_ids(), rng, directions=2)
        assert errors.keys() == model.trainable_params().keys()
        assert max(errors.values()) < SMOOTH


def wrong_ones(errors):
    return {name: error for name, error in errors.items() if not error < SMOOTH}


@pytest.mark.parametrize("block", [PostNormBlock, PreNormBlock])
def test_gradients_in_a_block(variant, rng, block):
    stack = Sequential({"block": block.random(8, 2, 6, rng, eps=0.1), "out": linear(rng, 8, 3)}).to(np, "float64")
    inject(stack, variant.config(), rng)
    for stack_ in in_orders(variant, stirred(stack)):
        assert not wrong_ones(check_layer(stack_, rng.standard_normal((2, 5, 8)), rng, directions=2))


class Asking(Sequential):
    """The first tokens ask, of all."""

    def forward(self, x, run=RUN):
        return super().forward(x, run.but(first=1))


@pytest.mark.parametrize("targets", [["key", "value"], ["key"], ["query", "value"], ["query", "key", "value"]], ids=str)
@pytest.mark.parametrize("bias", ["none", "lora_only"])
def test_gradients_where_attention_absorbs_key_and_value(variant, rng, targets, bias):
    attention = SelfAttention(*(linear(rng, 6, 8) for _ in range(3)), 2)
    model = Asking({"attention": attention})
    inject(model, variant.config(target_modules=targets, bias=bias), rng)
    stirred(model)
    x, absorbed = rng.standard_normal((3, 5, 6)), []
    for model_ in in_orders(variant, model):
        (cache,) = model_(x)[1]
        absorbed.append(len(cache) == 3)
        errors = check_layer(model_, x, rng, directions=2)
        assert errors.keys() == {"x"} | model.trainable_params().keys()
        assert not wrong_ones(errors)
        far = model_.children["attention"](x)[0][:, :1]  # by way of a key and a value for every token
        assert_close(model_(x)[0], far, 1e-12)
    assert any(absorbed), "no order has one weight for all rows"


@pytest.mark.parametrize(("make", "batch_of"), MODELS.values(), ids=MODELS)
def test_it_becomes_plain_lora(variant, tmp_path, make, batch_of):
    """At full rank the same model, also by way of a folder; at rank 1 as far away as the other singular values say."""
    model, batch = make(variant), batch_of()
    before, want = base_params(model), to_numpy(model.answer(batch))
    deltas = {path: a.effective(a.weight)[0] - a.base_layer.weight for path, a in adapters(model).items()}
    changed = {f"{path}.bias" for path, a in adapters(model).items() if a.changes_bias}
    small, full = copy.deepcopy(model), max(min(delta.shape) for delta in deltas.values())
    errors = to_lora(model, full)
    assert errors.keys() == deltas.keys() == adapters(model).keys() and max(errors.values()) < 1e-14
    assert config_of(model).method == "lora" and {type(a) for a in adapters(model).values()} == {LoRALinear}
    assert_close(model.answer(batch), want, 1e-11)
    assert all(same_bits(array, before[name]) for name, array in base_params(model).items() if name not in changed)
    save_adapter(tmp_path, model)
    again = make(variant)
    unload(again)
    load_adapter(tmp_path, again)
    assert_close(again.answer(batch), want, 1e-4)  # in the file in float32
    for path, error in to_lora(small, 1).items():
        sigma = np.linalg.svd(deltas[path], compute_uv=False)
        assert abs(error - np.linalg.norm(sigma[1:]) / np.linalg.norm(sigma)) < 1e-12
        assert np.linalg.norm(adapters(small)[path].delta_weight(), 2) == pytest.approx(sigma[0])


def test_every_order_is_the_general_one(variant, rng):
    """forward and backward by the effective weight, which stand once in the base class."""
    layer = layer_of(variant, rng)
    layer.base_layer.set_trainable(["weight", "bias"])
    x, dout = rng.standard_normal((2, 3, 5)), rng.standard_normal((2, 3, 7))
    W_eff, cache = layer.effective(layer.weight)
    general = {"order": "merged"} if "order" in vars(layer) else {}
    vars(layer).update(general)
    y, kept = Adapter.forward(layer, x)
    dx, grads = Adapter.backward(layer, dout, kept)
    assert_close(y, x @ W_eff.T + layer.effective_bias, 1e-14)
    assert_close(dx, dout @ W_eff, 1e-14)
    dW_eff = np.einsum("bto,bti->oi", dout, x)
    own, dW = layer.effective_backward(dW_eff, cache)
    more, db = layer.bias_backward(dout.sum((0, 1)))
    own = add_grads(dict(own), more)
    for name, grad in own.items():
        assert_close(grads[name], grad, 1e-13)
    assert_close(grads["base_layer.weight"], dW, 1e-13)
    assert_close(grads["base_layer.bias"], db, 1e-13)
    for one in in_orders(variant, Sequential({"layer": layer})):
        y_, dx_, grads_ = run(one, x, dout)
        assert_close(y_, y, 1e-13)
        assert_close(dx_, dx, 1e-13)
        assert grads_.keys() == {f"layer.{name}" for name in grads}
        for name, grad in grads.items():
            assert_close(grads_[f"layer.{name}"], grad, 1e-13)


@pytest.mark.parametrize("bias", [True, False])
def test_a_scaled_output_scales_the_bias_too_merged_or_not(rng, bias):
    """As IA3 in PEFT: y = (x W^T + b) o l, where the base has a bias, and by every way of the products."""
    layer, x = Scale(linear(rng, bias=bias)), rng.standard_normal((4, 5))
    plain = layer.base_layer(x)[0]
    layer.params["gain"] = rng.standard_normal(7)
    want = plain * (1 + layer.params["gain"])
    assert_close(layer(x)[0], want, 1e-14)
    before = layer.bias
    layer.merge()
    assert_close(layer(x)[0], want, 1e-14)
    assert (layer.effective_bias is layer.bias) and (not bias or not np.array_equal(layer.bias, before))
    layer.unmerge()
    assert layer.bias is before


def test_only_what_trains_gets_a_gradient(variant, rng):
    layer, x, dout = layer_of(variant, rng), rng.standard_normal((4, 5)), rng.standard_normal((4, 7))
    layer.base_layer.set_trainable(["weight", "bias"])
    for one in in_orders(variant, Sequential({"layer": layer})):
        one.set_trainable(one.named_params())
        _, dx, everything = run(one, x, dout)
        assert everything.keys() == one.named_params().keys()
        for name in everything:
            one.set_trainable([name])
            _, dx_, grads = run(one, x, dout)
            assert grads.keys() == {name}
            assert_close(grads[name], everything[name])
            assert_close(dx_, dx)
            none, grads_ = one.backward(dout, one(x)[1], need_dx=False)
            assert none is None and all_same_bits(grads_, grads)
        one.freeze()
        assert run(one, x, dout)[2] == {}


# ---- merged ----------------------------------------------------------------------------------------------------------


@EVERY_MODEL
def test_merge_and_unmerge_bit_for_bit(variant, make, batch_of):
    model, batch = make(variant), batch_of()
    before, arrays, y = arrays_of(model), model.named_params(), model.answer(batch)
    want = {path: layer.effective(layer.weight)[0] for path, layer in adapters(model).items()}
    for _ in range(2):
        merge(model)
        merge(model)  # twice changes nothing
        assert all(layer.merged for layer in adapters(model).values())
        for path, layer in adapters(model).items():
            assert same_bits(layer.weight, want[path])
        assert_close(model.answer(batch), y, 1e-12)
        unmerge(model)
        unmerge(model)
        assert all_same_bits(arrays_of(model), before)
        assert all(array is arrays[name] for name, array in model.named_params().items())
        assert same_bits(model.answer(batch), y)


def test_what_is_merged_is_not_trained_loaded_or_saved(variant, tmp_path, rng):
    model = mlp(variant)
    arrays = arrays_of(model)
    merge(model)
    y, cache = model(table()["x"])
    with pytest.raises(InputError, match=r"call unmerge\(\) before training"):
        model.backward(np.ones(y.shape), cache)
    with pytest.raises(InputError, match=r"fc1 is merged; call unmerge\(\) before loading parameters"):
        model.load(arrays)
    with pytest.raises(InputError, match=r"fc1 is merged; call unmerge\(\) before saving the adapter"):
        save_adapter(tmp_path / "a", model)
    with pytest.raises(InputError, match=r"fc1 is merged; call unmerge\(\) before training"):
        train(model, Batches(table(), 2), AdamW(0.01), epochs=1)
    assert not (tmp_path / "a").exists()
    unmerge(model)
    assert all_same_bits(arrays_of(model), arrays)


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_to_keeps_what_is_merged(put, xp, variant, merged, dtype):
    model, x = mlp(variant), table()["x"]
    y, before = model(x)[0], arrays_of(model)
    if merged:
        merge(model)
    assert model.to(xp, dtype) is model
    like = xp.asarray(np.zeros(1, dtype))
    for layer in adapters(model).values():
        assert layer.merged == merged
        assert_lives_on(like, layer.weight, *layer.params.values())
    assert_close(model(xp.asarray(x.astype(dtype)))[0], y, 20 * TOLERANCES[dtype])
    unmerge(model)
    assert all_same_bits(arrays_of(model), {name: array.astype(dtype) for name, array in before.items()})
    assert_close(model(xp.asarray(x.astype(dtype)))[0], y, 20 * TOLERANCES[dtype])


@pytest.mark.parametrize("merged", [False, True])
def test_a_deep_copy_is_a_model_of_its_own(variant, merged):
    model, x = mlp(variant), table()["x"]
    before = arrays_of(model)
    if merged:
        merge(model)
    y, other = model(x)[0], copy.deepcopy(model)
    assert same_bits(other(x)[0], y) and config_of(other) == config_of(model)
    unmerge(other)
    for array in other.named_params().values():
        array += 1
    assert all(layer.merged == merged for layer in adapters(model).values())
    assert same_bits(model(x)[0], y)
    unmerge(model)
    assert all_same_bits(arrays_of(model), before)


@EVERY_MODEL
@pytest.mark.parametrize("merged", [False, True])
def test_unload(variant, make, batch_of, merged):
    """A plain, frozen model: the base's, or with the update in its weights."""
    model, batch = make(variant), batch_of()
    base = {name: array.copy() for name, array in base_params(model).items()}
    adapted = model.answer(batch)
    if merged:
        merge(model)
    unload(model)
    assert not adapters(model) and not model.trainable_params()
    assert list(model.named_params()) == list(base)
    if merged:
        assert_close(model.answer(batch), adapted, 1e-12)
    else:
        assert all_same_bits(arrays_of(model), base)
        assert not np.allclose(model.answer(batch), adapted)
    assert inject(model, variant.config())


# ---- training --------------------------------------------------------------------------------------------------------


@EVERY_MODEL
def test_it_trains_and_the_base_stays(variant, make, batch_of):
    model, batch = make(variant, stir=False), batch_of()
    own = {f"{path}.{name}" for path, layer in adapters(model).items() for name in layer.params}
    before, loss = arrays_of(model), model.evaluate(batch)[0]
    history = train(model, Batches(batch, model.rows(batch)), AdamW(0.05), epochs=100)
    assert model.evaluate(batch)[0] < 0.85 * loss
    assert history[-1]["loss"] < history[0]["loss"]
    after = arrays_of(model)
    assert all(same_bits(after[name], array) for name, array in before.items() if name not in own)
    moved = [name for name in own if not same_bits(after[name], before[name])]
    still = {name for name in own if name not in moved}
    assert not [name for name in still if ".attention.self.key." not in f".{name}"]  # of a key, some have gradient 0


@pytest.mark.parametrize("stop", [3, 8])
def test_a_resumed_run_ends_bit_for_bit_the_same(variant, tmp_path, monkeypatch, stop):
    options = {"epochs": 4, "seed": 3}

    def run_of(model, **more):
        return train(model, Batches(table(), 2), AdamW(0.02), **options, **more)

    whole, part, again = (mlp(variant, stir=False) for _ in range(3))
    want = run_of(whole)
    place = {"checkpoint": tmp_path / "c", "checkpoint_every": 2}
    step = AdamW.step

    def stopping(self, *args, **kwargs):
        if self.step_count == stop:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(AdamW, "step", stopping)
        run_of(part, **place)
    assert not all_same_bits(arrays_of(part), arrays_of(whole))
    assert run_of(again, resume=True, **place) == want
    assert all_same_bits(arrays_of(again), arrays_of(whole))


@EVERY_MODEL
@pytest.mark.parametrize("n", [1, 2, 3])
def test_any_number_of_workers_has_the_same_bits(variant, make, batch_of, n):
    model, batch = make(variant), {name: np.concatenate([a] * 100) for name, a in batch_of().items()}
    loss, grads = model.loss_and_grad(batch)
    results = []
    for workers in (1, n):
        with Workers(workers) as team:
            results.append((*team.loss_and_grad(model, batch), team.answer(model, batch)))
    (one, ones, y), (other, others, y_) = results
    assert one == other and all_same_bits(others, ones) and same_bits(y, y_)
    assert one == pytest.approx(loss, rel=1e-12)
    largest = max(np.abs(grad).max() for grad in grads.values())
    for name, grad in grads.items():
        np.testing.assert_allclose(ones[name], grad, rtol=0, atol=1e-12 * largest, err_msg=name)


@EVERY_MODEL
def test_threads_at_once_have_the_bits_of_one_after_another(variant, make, batch_of):
    """Training and inference mixed, with weights formed before and without, over one model, and nothing is stored."""
    model, batch = make(variant), batch_of()
    formed = effective_weights(model, 99)
    before = held(model)

    def one(i):
        part = model.part(batch, slice(i % 3, 4))
        weights = formed if i % 2 else {}
        if i % 3 == 0:
            return {"y": model.answer(part, INFERENCE.but(weights=weights))}
        loss, grads = model.loss_and_grad(part, Run(weights=weights, rng=np.random.default_rng(i)))
        return grads | {"loss": np.asarray(loss)}

    want = [one(i) for i in range(24)]
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(one, range(24)))
    assert all(all_same_bits(*pair) for pair in zip(got, want, strict=True))
    assert held(model) == before


@EVERY_MODEL
def test_weights_formed_once_change_nothing(variant, make, batch_of):
    model, batch = make(variant), batch_of()
    for model_ in in_orders(variant, model):
        loss, grads = model_.loss_and_grad(batch)
        formed = effective_weights(model_, 999)
        assert all(W.shape == layer.weight.shape for layer, (W, _) in formed.items())
        loss_, grads_ = model_.loss_and_grad(batch, Run(weights=formed))
        assert loss_ == pytest.approx(loss, rel=1e-13)
        largest = max(np.abs(grad).max() for grad in grads.values())
        for name, grad in grads.items():
            np.testing.assert_allclose(grads_[name], grad, rtol=0, atol=1e-12 * largest, err_msg=name)


@EVERY_MODEL
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_same_on_every_backend(put, variant, make, batch_of, dtype):
    model, batch = make(variant, bias="all"), batch_of()
    _, grads = model.loss_and_grad(batch)
    y = model.answer(batch)
    move(model, put, dtype)
    batch = {n: put(a, dtype) if a.dtype == "f8" else put(a) for n, a in batch.items()}
    _, grads_ = model.loss_and_grad(batch)
    y_ = model.answer(batch)
    assert_lives_on(put([0.0], dtype), y_, *grads_.values())
    tolerance = 20 * TOLERANCES[dtype]
    assert_close(y_, y, tolerance)
    assert grads_.keys() == grads.keys()
    largest = max(np.abs(grad).max() for grad in grads.values())
    for name, grad in grads.items():
        np.testing.assert_allclose(to_numpy(grads_[name]), grad, rtol=0, atol=tolerance * largest, err_msg=name)
    before = to_numpy(model.evaluate(batch)[0])
    optimizer = AdamW(0.01)
    for _ in range(5):
        optimizer.step(model.trainable_params(), model.loss_and_grad(batch)[1])
    assert model.evaluate(batch)[0] < before
    y = to_numpy(model.answer(batch))
    merge(model)
    assert_close(model.answer(batch), y, tolerance)


# ---- folders ---------------------------------------------------------------------------------------------------------


def in_float32(variant, head="sequence", **options):
    return bert(variant, head, "float32", **options)


def plain_base(head="sequence"):
    return tiny_bert(np.random.default_rng(0), HEADS[head], dtype="float32", labels=0 if head == "embedding" else 3)


CONFIGS = {
    "all-linear": {},
    "names": {"target_modules": ["query", "value"]},
    "head and biases": {"target_modules": ["key"], "modules_to_save": ["classifier"], "bias": "all"},
    "adapted biases": {"target_modules": ["query", "pooler.dense"], "bias": "lora_only"},
}


@pytest.mark.parametrize("options", CONFIGS.values(), ids=CONFIGS)
def test_saved_and_loaded(variant, tmp_path, options):
    model = in_float32(variant, **options)
    if options.get("bias") == "all":
        for name, array in model.trainable_params().items():
            array += 0.25 * ("gain" not in name and "lora" not in name)
    before = arrays_of(model)
    save_adapter(tmp_path / "a", model, "tiny", labels=["x", "y", "z"])
    assert all_same_bits(arrays_of(model), before)
    other = plain_base()
    config = load_adapter(tmp_path / "a", other)
    assert type(config) is variant.cls.Config and config == config_of(other) == read_adapter_config(tmp_path / "a")
    assert not other.trainable_params()
    assert all_same_bits(arrays_of(other), before)
    assert same_bits(other(tiny_ids())[0], model(tiny_ids())[0])
    assert not np.allclose(other(tiny_ids())[0], plain_base()(tiny_ids())[0])
    save_adapter(tmp_path / "b", other, "tiny", labels=["x", "y", "z"])  # frozen, and all of it is written
    for file in ("adapter_model.safetensors", "adapter_config.json", "lorabook.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    unfreeze(other)
    assert other.trainable_params().keys() == model.trainable_params().keys()


def test_names_in_the_file_follow_from_paths(variant, tmp_path):
    model = in_float32(variant, target_modules=["query", "classifier"], bias="lora_only")
    save_adapter(tmp_path, model)
    arrays, _ = files.read_safetensors(tmp_path / "adapter_model.safetensors")
    want = {}
    for path, layer in adapters(model).items():
        for name, shape in variant.own(*layer.weight.shape).items():
            want[f"base_model.model.{path}.{variant.cls.tensors[name]}"] = shape
        for name, shape in variant.cls.kept_shapes(*layer.weight.shape).items():
            want[f"base_model.model.{path}.{variant.cls.kept[name]}"] = shape
        sizes, options = [layer.shape for layer in adapters(model).values()], variant.config().options_for([path])[path]
        for name, shape in variant.cls.shared_shapes(sizes, **options).items():
            want[f"base_model.{variant.cls.shared[name]}"] = shape
        want[f"base_model.model.{path}.base_layer.bias"] = layer.bias.shape
    assert {name: array.shape for name, array in arrays.items()} == want


def test_an_adapter_of_the_bare_encoder_goes_under_a_head(variant, tmp_path):
    """Where its tensors' names begin inside the encoder, as in a folder that was trained on one."""
    encoder = plain_base().children["bert"]
    inject(encoder, variant.config(target_modules=["query", "value"]), 1)
    stirred(encoder)
    save_adapter(tmp_path / "a", encoder)
    model = plain_base()
    load_adapter(tmp_path / "a", model)
    assert list(adapters(model)) == [f"bert.{path}" for path in adapters(encoder)]
    assert same_bits(model.children["bert"](tiny_ids())[0], encoder(tiny_ids())[0])


def changed(path, change):
    arrays, _ = files.read_safetensors(path / "adapter_model.safetensors")
    files.write_safetensors(path / "adapter_model.safetensors", change(dict(arrays)))


def without_first(arrays):
    return dict(list(arrays.items())[1:])


def with_more(arrays):
    return arrays | {"base_model.model.bert.pooler.dense.extra": np.ones(2, "f4")}


def misshapen(arrays):
    name, array = next(iter(arrays.items()))
    return arrays | {name: np.concatenate([array, array])}


def too_large(arrays):
    name, array = next(iter(arrays.items()))
    return arrays | {name: np.full(array.shape, 1e39)}


CHANGES = {without_first: "missing base_", with_more: "unexpected base_", misshapen: "has shape", too_large: "hold"}


@pytest.mark.parametrize(("change", "message"), CHANGES.items(), ids=lambda case: getattr(case, "__name__", "."))
def test_a_file_that_does_not_fit_changes_nothing(variant, tmp_path, change, message):
    save_adapter(tmp_path, in_float32(variant))
    changed(tmp_path, change)
    model = plain_base()
    arrays, before = model.named_params(), arrays_of(model)
    with pytest.raises(FormatError, match=message):
        load_adapter(tmp_path, model)
    assert not adapters(model) and all_same_bits(arrays_of(model), before)
    assert all(array is arrays[name] for name, array in model.named_params().items())
    assert model.trainable_params().keys() == before.keys()


def test_other_base_weights_are_refused(variant, tmp_path):
    save_adapter(tmp_path, in_float32(variant))
    model = plain_base()
    model.named_params()["bert.pooler.dense.bias"][0] += 1
    with pytest.raises(FormatError, match="trained on other base weights"):
        load_adapter(tmp_path, model)


def test_updates_from_the_file_alone(variant, tmp_path):
    model = in_float32(variant, target_modules=["query", "output.dense"])
    save_adapter(tmp_path, model)
    if not variant.update_in_file:
        with pytest.raises(FormatError, match=variant.why):
            adapter_updates(tmp_path)
        return
    updates = adapter_updates(tmp_path)
    assert list(sorted(updates)) == sorted(adapters(model))
    for path, layer in adapters(model).items():
        assert_close(updates[path], layer.effective(layer.weight)[0] - layer.weight, 1e-5)


def hollow(arrays):
    name, array = next(iter(arrays.items()))
    return arrays | {name: array[:0]}


def flat(arrays):
    name, array = next(iter(arrays.items()))
    return arrays | {name: array.reshape(-1)[:1]}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("change", [without_first, misshapen, hollow, flat])
def test_updates_from_a_file_that_is_malformed(method, tmp_path, change):
    save_adapter(tmp_path, in_float32(VARIANTS[method], target_modules=["query"]))
    changed(tmp_path, change)
    with pytest.raises(FormatError, match="query"):
        adapter_updates(tmp_path)


def test_a_second_variant_is_refused_beside_it(variant, rng):
    model = mlp(variant)
    before = arrays_of(model)
    with pytest.raises(InputError, match="has adapters already"):
        inject(model, LoRAConfig(r=2))
    assert all_same_bits(arrays_of(model), before)


def test_a_config_of_no_variant_of_the_table():
    """Where the row is missing, its name says so."""
    assert "gain" not in METHODS
    model = MLP((5, 8, 7), rng=np.random.default_rng(0))
    for config in (GainConfig(), None, {"r": 8}, "lora"):
        with pytest.raises(InputError, match="expected the config of an adapter, LoRAConfig, .*; got"):
            inject(model, config)
    assert not adapters(model)
