"""What a model holds: parameters, buffers, and arrays of several names; moved, copied, loaded, saved and trained."""

import copy

import array_api_strict
import numpy as np
import pytest
from checks import assert_close, assert_lives_on, run, same_bits, tiny_bert, tiny_ids, write_bert

from lorabook import InputError, LoRAConfig, files, inject, merge, unmerge
from lorabook.adapters import adapters, unload
from lorabook.backend import array_namespace, to_numpy
from lorabook.data import Batches
from lorabook.layers import RUN, Activation, Embedding, Layer, Linear, Sequential, check_layer, distinct
from lorabook.models import BertForTokenClassification, Classifier, save_pretrained
from lorabook.parallel import Workers
from lorabook.training import AdamW, train

SMOOTH = 1e-11


class Tower(Classifier, Sequential):
    """Any stack, as a classifier."""


def two_linears(rng, tie=True):
    """Two layers that share their weight, and have a bias each."""
    first = Linear(rng.standard_normal((5, 5)), rng.standard_normal(5))
    second = Linear(first.weight if tie else first.weight.copy(), rng.standard_normal(5))
    return Tower({"a": first, "act": Activation("tanh"), "b": second})


def words(rng, tie=True):
    """A weight under an Embedding and, to score words, under the Linear above it."""
    table = Embedding(rng.standard_normal((7, 5)))
    scores = Linear(table.params["weight"] if tie else table.params["weight"].copy(), rng.standard_normal(7))
    return Tower({"a": table, "act": Activation("tanh"), "b": scores})


MODELS = {
    "two linear layers": (two_linears, {"x": np.random.default_rng(1).standard_normal((6, 5))}),
    "an embedding": (words, {"x": np.array([[0, 3], [6, 3], [2, 2]])}),
}
EVERY = pytest.mark.parametrize(("make", "batch"), MODELS.values(), ids=MODELS)
A, B = "a.weight", "b.weight"


@pytest.fixture
def rng():
    return np.random.default_rng(4)


def labelled(model, batch):
    """The batch with labels."""
    shape = model.answer(batch).shape
    return batch | {"labels": np.random.default_rng(2).integers(0, shape[-1], shape[:-1])}


def is_one(model):
    params = model.named_params()
    return params[A] is params[B]


def test_there_are_two_names_of_one_array(rng):
    model = two_linears(rng)
    assert is_one(model) and not is_one(two_linears(rng, tie=False))
    assert list(model.named_params()) == list(model.state()) == [A, "a.bias", B, "b.bias"]
    assert list(model.trainable_params()) == list(distinct(model.named_params())) == [A, "a.bias", "b.bias"]


@pytest.mark.parametrize("name", [A, B])
def test_it_trains_under_all_of_its_names_or_none(rng, name):
    model = two_linears(rng)
    model.set_trainable([name])
    assert list(model.trainable_params()) == [A]
    assert all("weight" in model.children[child].trainable for child in "ab")
    model.set_trainable(["a.bias"])
    assert not any("weight" in model.children[child].trainable for child in "ab")


# ---- gradients -------------------------------------------------------------------------------------------------------


@EVERY
def test_its_gradients_add(rng, make, batch):
    """They are the sum of those of two arrays that are equal, and by complex step those of the one."""
    model, other = make(np.random.default_rng(3)), make(np.random.default_rng(3), tie=False)
    batch = labelled(model, batch)
    (loss, grads), (loss_, parts) = model.loss_and_grad(batch), other.loss_and_grad(batch)
    assert loss == loss_
    assert grads.keys() == model.trainable_params().keys() == parts.keys() - {B}
    assert same_bits(grads[A], parts[A] + parts[B])
    assert np.any(parts[A]) and np.any(parts[B])
    assert all(same_bits(grads[name], parts[name]) for name in grads.keys() - {A})
    errors = check_layer(model, batch["x"], rng)
    assert errors.keys() - {"x"} == grads.keys()
    assert max(errors.values()) < SMOOTH


@EVERY
def test_add_tied_alone(rng, make, batch):
    """Where a layer has given one of its names, and under what name soever."""
    model, one = make(rng), np.ones_like(make(rng).named_params()[A])
    for given, want in (({B: one}, 1), ({A: one}, 1), ({A: one, B: 2 * one}, 3), ({}, None)):
        before = {name: array.copy() for name, array in given.items()}
        got = model.add_tied(dict(given))
        assert got.keys() == (set() if want is None else {A})
        assert want is None or same_bits(got[A], want * one)
        assert all(same_bits(array, before[name]) for name, array in given.items())
    assert model.add_tied({"a.other": one}) == {"a.other": one}


@EVERY
def test_shards_add_to_the_batch(rng, make, batch):
    model = make(rng)
    batch = labelled(model, {"x": np.concatenate([batch["x"]] * 200)})
    loss, grads = model.loss_and_grad(batch)
    with Workers(2) as team:
        loss_, grads_ = team.loss_and_grad(model, batch)
    assert loss_ == pytest.approx(loss, rel=1e-12) and grads_.keys() == grads.keys()
    for name, grad in grads.items():
        assert_close(grads_[name], grad, 1e-11)


@EVERY
def test_it_is_trained_once(rng, make, batch):
    """One step of AdamW on the sum, not two steps on its parts."""
    model = make(rng)
    batch = labelled(model, batch)
    before, (_, grads) = model.named_params()[A].copy(), model.loss_and_grad(batch)
    optimizer = AdamW(0.01)
    optimizer.step(model.trainable_params(), grads)
    assert is_one(model)
    assert_close(before - model.named_params()[A], 0.01 * grads[A] / (np.abs(grads[A]) + 1e-8), 1e-10)
    assert all(slots.keys() == grads.keys() for slots in optimizer.state.values())


@EVERY
def test_a_resumed_run_ends_bit_for_bit_the_same(make, batch, tmp_path, monkeypatch):
    whole, part, again = (make(np.random.default_rng(3)) for _ in range(3))
    batch = labelled(whole, batch)

    def run_of(model, **more):
        return train(model, Batches(batch, 3), AdamW(0.02), epochs=6, seed=3, **more)

    start = whole.named_params()[A].copy()
    want, place, step = run_of(whole), {"checkpoint": tmp_path / "c", "checkpoint_every": 2}, AdamW.step

    def stopping(self, *args, **kwargs):
        if self.step_count == 3:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(AdamW, "step", stopping)
        run_of(part, **place)
    arrays, _ = files.read_checkpoint(tmp_path / "c")
    assert f"param:{A}" in arrays and f"param:{B}" not in arrays
    assert run_of(again, resume=True, **place) == want
    for model in (whole, again):
        assert is_one(model) and not np.array_equal(model.named_params()[A], start)
    assert all(same_bits(array, whole.named_params()[name]) for name, array in again.named_params().items())


# ---- moved, copied, loaded, saved ------------------------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize("dtype", [None, "float32", "float64"])
def test_to_keeps_it_one(xp, rng, make, batch, dtype):
    model = make(rng)
    before = model.named_params()[A].copy()
    assert is_one(model.to(xp, dtype))
    for array in model.named_params().values():
        assert_lives_on(xp.asarray(np.zeros(1, dtype or "f8")), array)
    assert same_bits(model.named_params()[A], before.astype(dtype or "f8"))
    assert is_one(model.to(np))


@EVERY
def test_a_deep_copy_keeps_it_one_of_its_own(rng, make, batch):
    model = make(rng)
    other = copy.deepcopy(model)
    assert is_one(other) and other.named_params()[A] is not model.named_params()[A]
    other.named_params()[A][...] = 7
    assert np.all(other.named_params()[B] == 7) and not np.any(model.named_params()[B] == 7)


@EVERY
@pytest.mark.parametrize("names", [(A, B), (A,), (B,)], ids=str)
def test_one_name_is_enough_to_load_it(xp, rng, make, batch, names):
    model, other = make(rng), make(rng)
    model.to(xp)
    want, arrays = other.named_params(), model.named_params()
    model.load({name: array for name, array in want.items() if name not in (A, B) or name in names})
    assert is_one(model) and all(array is arrays[name] for name, array in model.named_params().items())
    assert all(same_bits(array, want[name]) for name, array in model.named_params().items())


@EVERY
def test_a_load_without_any_of_its_names_is_refused(rng, make, batch):
    model, before = make(rng), None
    before = {name: array.copy() for name, array in model.named_params().items()}
    with pytest.raises(InputError, match=r"missing a\.weight; missing b\.weight"):
        model.load({name: array for name, array in make(rng).named_params().items() if name not in (A, B)})
    assert all(same_bits(array, before[name]) for name, array in model.named_params().items())


@pytest.mark.parametrize("name", [A, B])
def test_a_load_of_the_wrong_shape_is_refused_under_either_name(rng, name):
    model = two_linears(rng)
    with pytest.raises(InputError, match=rf"{name} has shape \(5, 4\), expected \(5, 5\)"):
        model.load(two_linears(rng).named_params() | {name: np.ones((5, 4))})


@pytest.mark.parametrize("name", [A, B])
def test_two_different_arrays_for_one_are_refused(xp, rng, name):
    model, arrays = two_linears(rng).to(xp), two_linears(rng).named_params()
    before = {n: to_numpy(array).copy() for n, array in model.named_params().items()}
    with pytest.raises(InputError, match=r"a\.weight and b\.weight are one array in the model, and two different ones"):
        model.load(arrays | {name: arrays[name] + 1})
    assert all(same_bits(array, before[n]) for n, array in model.named_params().items())
    arrays[A][0, 0] = np.nan  # twice the same, all the same
    model.load(arrays | {name: arrays[name].copy()})
    assert is_one(model) and same_bits(model.named_params()[A], arrays[A])


def test_saved_once_and_read_again(rng, tmp_path):
    """A folder of which one matrix stands for two: as transformers writes tied weights."""
    model = tiny_bert(rng, BertForTokenClassification, dtype="float32", labels=7)
    blocks = [f"bert.encoder.layer.{i}.intermediate.dense" for i in (0, 1)]
    layers = dict(model.named_layers())
    layers[blocks[1]].params["weight"] = layers[blocks[0]].params["weight"]
    source = write_bert(tmp_path / "a", model)
    (tmp_path / "b").mkdir()
    save_pretrained(tmp_path / "b", model, source, [f"name{i}" for i in range(7)])
    arrays, _ = files.read_safetensors(tmp_path / "b" / "model.safetensors")
    assert arrays.keys() == model.named_params().keys() - {f"{blocks[1]}.weight"}
    other = tiny_bert(rng, BertForTokenClassification, dtype="float32", labels=7)
    layers = dict(other.named_layers())
    layers[blocks[1]].params["weight"] = layers[blocks[0]].params["weight"]
    other.load(arrays)
    assert same_bits(other(tiny_ids())[0], model(tiny_ids())[0])


# ---- under adapters --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["factored", "merged"])
def test_adapters_over_one_weight(rng, order):
    """Each has factors of its own; merged, each has a weight of its own; the base under both is one all the while."""
    model, x, dout = two_linears(rng), rng.standard_normal((6, 5)), rng.standard_normal((6, 5))
    inject(model, LoRAConfig(r=2, init_lora_weights=False), rng)
    a, b = adapters(model).values()
    a.order = b.order = order
    assert a.weight is b.weight
    weight, before = a.weight, a.weight.copy()
    errors = check_layer(model, x, rng)
    assert len(errors) == 5 and max(errors.values()) < SMOOTH
    y, _, grads = run(model, x, dout)
    merge(model)
    assert a.weight is not b.weight and a.weight is not weight
    together, other = model(x)[0], copy.deepcopy(model)
    assert_close(together, y, 1e-12)
    for moved in (model, other):
        assert same_bits(moved.to(np, "float64")(x)[0], together)
        unmerge(moved)
        first, second = adapters(moved).values()
        assert first.weight is second.weight and same_bits(first.weight, before)
        assert all(same_bits(array, grads[name]) for name, array in run(moved, x, dout)[2].items())
    unload(model)
    assert is_one(model)


@pytest.mark.parametrize("order", ["factored", "merged"])
def test_an_adapter_over_a_weight_that_trains(rng, order):
    """The gradient of the base is that by way of all its names, with and without an adapter."""
    model = words(rng)
    inject(model, LoRAConfig(r=2, init_lora_weights=False, target_modules=["b"], modules_to_save=["a"]), rng)
    layer = adapters(model)["b"]
    layer.order = order
    assert layer.base_layer.trainable == {"weight"}
    assert list(model.trainable_params()) == ["a.weight", "b.lora_A", "b.lora_B"]
    assert layer.weight is model.children["a"].params["weight"]
    errors = check_layer(model, np.array([[0, 3], [6, 3], [2, 2]]), rng)
    assert errors.keys() == model.trainable_params().keys()
    assert max(errors.values()) < SMOOTH


# ---- buffers ---------------------------------------------------------------------------------------------------------


class Coded(Layer):
    """y = x (scale * codes)^T: integers that never train, and a number for each row that does."""

    def __init__(self, codes, scale):
        super().__init__({"scale": scale})
        self.buffers["codes"] = codes

    def forward(self, x, run=RUN):
        codes = self.buffers["codes"] * 1.0
        return x @ (self.params["scale"][:, None] * codes).T, (x, codes)

    def backward(self, dout, cache, need_dx=True):
        x, codes = cache
        dW = dout.T @ x
        own = {"scale": (dW * codes).sum(1)} if "scale" in self.trainable else {}
        return (dout @ (self.params["scale"][:, None] * codes) if need_dx else None), own


def coded(rng, tie=False):
    codes = rng.integers(-8, 8, (5, 5)).astype("i1")
    first = Coded(codes, rng.standard_normal(5))
    return Tower({"a": first, "b": Coded(codes if tie else codes[::-1].copy(), rng.standard_normal(5))})


def test_buffers_have_names_and_no_gradient(rng):
    model = coded(rng)
    assert list(model.named_buffers()) == ["a.codes", "b.codes"]
    assert list(model.state()) == ["a.scale", "b.scale", "a.codes", "b.codes"]
    assert list(model.named_params()) == list(model.trainable_params()) == ["a.scale", "b.scale"]
    errors = check_layer(model, rng.standard_normal((4, 5)), rng)
    assert errors.keys() == {"x", "a.scale", "b.scale"} and max(errors.values()) < SMOOTH
    with pytest.raises(InputError, match=r"no parameter is called 'a\.codes'"):
        model.set_trainable(["a.codes"])


@pytest.mark.parametrize("tie", [False, True])
def test_buffers_move_in_their_own_dtype(xp, rng, tie):
    model = coded(rng, tie)
    want = {name: array.copy() for name, array in model.named_buffers().items()}
    model.to(xp, "float32")
    for name, array in model.named_buffers().items():
        assert str(array.dtype).rpartition(".")[2] == "int8" and same_bits(array, want[name])
        assert array.device == xp.asarray(0).device
    assert {str(a.dtype).rpartition(".")[2] for a in model.named_params().values()} == {"float32"}
    a, b = model.named_buffers().values()
    assert (a is b) == tie
    a, b = copy.deepcopy(model.to(np)).named_buffers().values()
    assert (a is b) == tie


def test_buffers_are_loaded_and_saved(rng, tmp_path):
    model, other = coded(rng), coded(rng)
    files.write_safetensors(tmp_path / "model.safetensors", model.state())
    arrays, _ = files.read_safetensors(tmp_path / "model.safetensors")
    kept = other.state()
    other.load(arrays)
    assert all(array is kept[name] for name, array in other.state().items())
    assert all(same_bits(array, model.state()[name]) for name, array in other.state().items())
    with pytest.raises(InputError, match=r"missing b\.codes"):
        other.load({name: array for name, array in arrays.items() if name != "b.codes"})
    with pytest.raises(InputError, match=r"b\.codes has shape \(4, 5\), expected \(5, 5\)"):
        other.load(arrays | {"b.codes": arrays["b.codes"][:4]})


def test_a_run_goes_on_only_over_the_same_buffers(rng, tmp_path):
    """They are part of the base, whose sha256 a checkpoint holds; they are in no optimizer and not in the file."""
    model, batch = coded(rng), {"x": rng.standard_normal((6, 5)), "labels": np.arange(6) % 5}
    start = copy.deepcopy(model)
    before = {name: array.copy() for name, array in model.named_buffers().items()}
    options = {"epochs": 2, "checkpoint": tmp_path / "c"}
    train(model, Batches(batch, 3), AdamW(0.02), **options)
    assert all(same_bits(array, before[name]) for name, array in model.named_buffers().items())
    assert not any("codes" in name for name in files.read_checkpoint(tmp_path / "c")[0])
    again = copy.deepcopy(start)
    train(again, Batches(batch, 3), AdamW(0.02), resume=True, **options)
    assert all(same_bits(array, model.state()[name]) for name, array in again.state().items())
    start.named_buffers()["b.codes"][0, 0] ^= 1
    with pytest.raises(InputError, match="base weights changed"):
        train(start, Batches(batch, 3), AdamW(0.02), resume=True, **options)


def test_buffers_go_along_to_another_backend(rng):
    model = coded(rng)
    want = model.named_buffers()["a.codes"].copy()
    codes = model.to(array_api_strict).named_buffers()["a.codes"]
    assert array_namespace(codes) is array_api_strict
    assert to_numpy(codes).dtype == np.int8 and same_bits(codes, want)
