"""One frozen run for a pass: passes at once have the bits of passes one by one, and a watcher patches nothing."""

import contextlib
import copy
import dataclasses
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from checks import assert_close, held, linear, lora, move, put_all, run_of, same_bits, tiny_bert, tiny_ids
from tiny_llamas import made as tiny_llama

from lorabook import LoRAConfig, inject, merge
from lorabook.adapters import adapters, base_params, effective_weights, inputs_of
from lorabook.functional import causal_bias
from lorabook.layers import INFERENCE, RUN, Activation, LayerNorm, Run, Sequential, quantize, watching
from lorabook.models import (
    MLP,
    BertForSentenceEmbedding,
    BertForSequenceClassification,
    BertForTokenClassification,
    KVCache,
    PostNormBlock,
    PreNormBlock,
)
from lorabook.parallel import Workers
from lorabook.tasks import evaluate
from lorabook.training import AdamW, first_non_finite

THREADS = 8


# ---- the run itself --------------------------------------------------------------------------------------------------


def test_a_run_is_frozen_and_another_one_differs_in_what_was_named():
    run = Run(first=2, causal=True)
    with pytest.raises(dataclasses.FrozenInstanceError):
        run.first = 1
    other = run.but(first=None, keep=False)
    assert other == Run(causal=True, keep=False) and run == Run(first=2, causal=True)
    assert Run().keep and not INFERENCE.keep and INFERENCE.rng is RUN.rng is None


def test_runs_share_no_weights(rng):
    one = Run()
    one.weights[lora(rng)] = np.zeros((7, 5))
    assert not Run().weights and not RUN.weights and not INFERENCE.weights


# ---- from several threads at once ------------------------------------------------------------------------------------

D, T = 8, 5
WITH_HEADS = {
    "sequence": BertForSequenceClassification,
    "tokens": BertForTokenClassification,
    "embedding": BertForSentenceEmbedding,
}


def model_of(name, rng):
    """A model of float32 with something in every parameter."""
    if name == "mlp":
        model = MLP((5, 8, 7), "gelu", rng=rng)
    elif name in DECODERS:
        model = tiny_llama("llama", rng, "float32", recompute="recomputing" in name)
        if "nf4" in name:
            quantize(model)
    elif name in WITH_HEADS:
        model = tiny_bert(rng, WITH_HEADS[name], dtype="float32", labels=0 if name == "embedding" else 3)
    else:
        model = {"post_norm": PostNormBlock, "pre_norm": PreNormBlock}[name].random(D, 2, 12, rng)
    return model


MODELS = ("mlp", "post_norm", "pre_norm", *WITH_HEADS)
DECODERS = ("llama", "recomputing llama", "llama in nf4")
KINDS = ("plain", "lora", "lora on query and value", "merged", "dropout")


def made(name, kind):
    rng = np.random.default_rng(3)
    model = model_of(name, rng)
    if kind != "plain":
        few = kind == "lora on query and value" and name != "mlp"
        config = LoRAConfig(
            r=2,
            target_modules=["query", "value", "q_proj", "v_proj"][2 * (name in DECODERS) :][:2]
            if few
            else "all-linear",
            init_lora_weights=False,
            lora_dropout=0.4 if kind == "dropout" else 0.0,
        )
        inject(model, config, rng)
    if kind == "merged":
        merge(model)
    return model


def passes(model, name, kind):
    """Functions, no two alike: training with and without weights formed before, inference, watched and with first."""
    formed = effective_weights(model, 99)
    calls = []
    for seed in range(2 * THREADS):
        rng = np.random.default_rng([7, seed])
        rows = int(rng.integers(1, 40))
        if name in WITH_HEADS or name in DECODERS:
            ids = rng.integers(0, 12, (rows, T + seed % 3))
            x = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
            x["attention_mask"][:, 2:][rng.random(ids[:, 2:].shape) < 0.2 * (seed % 2)] = 0
        else:
            x = rng.standard_normal((rows, 5) if name == "mlp" else (rows, T, D)).astype("f4")
        causal = seed % 3 == 0 and name != "mlp"
        run = Run(causal=causal, weights=formed if seed % 4 < 2 else {})
        if name in DECODERS and seed % 4 == 0:
            calls.append(lambda ids=ids: cached_pass(model, ids))
            continue
        if seed % 5 == 0 and name in ("post_norm", "tokens"):
            run = run.but(first=1 + seed % 2)
        calls.append(lambda x=x, seed=seed, run=run: one_pass(model, x, seed, run, trains=seed % 2 or kind == "lora"))
    return calls


def one_pass(model, x, seed, run, trains):
    """All arrays that one pass gives."""
    if not trains or not model.trains() or any(layer.merged for layer in adapters(model).values()):
        seen = []
        watch = (lambda layer, x, y: seen.append(copy.deepcopy(y))) if seed % 3 == 1 else None
        return [model.predict(x, run.but(keep=False, watch=watch)), *seen]
    y, cache = model(x, run.but(rng=np.random.default_rng(seed)))
    dx, grads = model.backward(np.random.default_rng(seed).standard_normal(y.shape).astype("f4"), cache)
    return [y, *([] if dx is None else [dx]), *grads.values()]


def cached_pass(model, ids):
    """Logits of two passes, the second of which reads what the first has left in a cache of their own."""
    run = INFERENCE.but(kv=KVCache(*ids.shape))
    return [model.predict({"input_ids": part}, run) for part in (ids[:, :3], ids[:, 3:])]


def at_once(calls, threads=THREADS):
    """What the calls give, all threads begun together and made to take turns often."""
    barrier, interval = threading.Barrier(threads), sys.getswitchinterval()

    def work(own):
        barrier.wait(60)
        return [call() for call in own]

    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(threads) as pool:
            parts = list(pool.map(work, [calls[i::threads] for i in range(threads)]))
    finally:
        sys.setswitchinterval(interval)
    results = [None] * len(calls)
    for i, part in enumerate(parts):
        results[i::threads] = part
    return results


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [*MODELS, *DECODERS])
def test_eight_threads_at_once_have_the_bits_of_one_after_another(name, kind):
    """Training and inference, with weights formed once and without, causal, watched, of the first tokens only."""
    model = made(name, kind)
    before = held(model)
    calls = passes(model, name, kind) * 2
    want = [call() for call in calls]
    assert len({result[0].tobytes() for result in want}) == len(calls) // 2, "two passes alike tell nothing apart"
    got = at_once(calls)
    assert held(model) == before
    for mine, theirs in zip(got, want, strict=True):
        assert len(mine) == len(theirs)
        assert all(same_bits(a, b) for a, b in zip(mine, theirs, strict=True))


@pytest.mark.parametrize("name", [*MODELS, *DECODERS])
def test_the_passes_are_of_both_kinds(name):
    """Otherwise the test above would mix nothing."""
    kinds = {len(call()) for call in passes(made(name, "dropout"), name, "dropout")}
    assert 1 in kinds and len(kinds) > 2  # inference, watched inference, training


@contextlib.contextmanager
def in_the_background(function):
    """Run the function again and again on another thread while the block runs."""
    over, started, errors = threading.Event(), threading.Event(), []

    def work():
        try:
            while True:
                function()
                started.set()
                if over.is_set():
                    return
        except Exception as error:
            errors.append(error)
            started.set()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert started.wait(60)
        yield
    finally:
        over.set()
        thread.join()
    assert not errors


@pytest.mark.parametrize("name", MODELS)
def test_evaluation_beside_training_of_another_copy_and_beside_inference(name):
    """One model evaluates with weights formed for it, while others form theirs and train on other threads."""
    model, x = made(name, "lora"), passes_input(name)
    shared = INFERENCE.but(weights=effective_weights(model, 99))
    want, alone = model.predict(x, shared), model.predict(x)

    def train():
        y, cache = model(x, Run(rng=np.random.default_rng(0), weights=effective_weights(model, 99)))
        model.backward(np.ones_like(y), cache)

    with in_the_background(train):
        for _ in range(50):
            assert same_bits(model.predict(x, shared), want)
            assert same_bits(model.predict(x), alone)


def passes_input(name):
    rng = np.random.default_rng(11)
    if name in WITH_HEADS:
        return tiny_ids()
    return rng.standard_normal((6, 5) if name == "mlp" else (3, T, D)).astype("f4")


@pytest.mark.parametrize("name", ["mlp", "sequence", "tokens"])
def test_an_evaluation_while_shards_of_a_step_are_computed(name):
    """Both form weights of their own, for other numbers of rows, on threads of their own."""
    model, x = made(name, "lora"), passes_input(name)
    batch = {key: np.concatenate([array] * 90) for key, array in (x.items() if isinstance(x, dict) else [("x", x)])}
    batch["labels"] = np.arange(model.rows(batch)) % 3
    if name == "tokens":
        batch["labels"] = np.where(batch["attention_mask"], batch["input_ids"] % 3, -100)
    batches = [model.part(batch, rows) for rows in (slice(50), slice(50, 51), slice(51, None))]
    before, want = held(model), evaluate(model, batches, 1)
    with Workers(2) as team:
        loss, grads = team.loss_and_grad(model, batch)

        def step():
            loss_, grads_ = team.loss_and_grad(model, batch)
            assert loss_ == loss and all(same_bits(grads_[path], grads[path]) for path in grads)

        with in_the_background(step):
            for _ in range(5):
                assert evaluate(model, batches, 2) == want
    assert held(model) == before


def test_weights_that_training_formed_are_none_that_evaluation_meets():
    """The factors change between two steps: an evaluation sees those of the moment, never those that a step formed."""
    rng = np.random.default_rng(0)
    model = Sequential({"layer": lora(rng, "merged")})
    optimizer, x, params = AdamW(0.5), rng.standard_normal((6, 5)), model.trainable_params()
    for _ in range(3):
        step = Run(weights=effective_weights(model, 6))
        y, cache = model(x, step)
        _, grads = model.backward(np.ones_like(y), cache)
        inside, _ = model.predict(x), optimizer.step(params, grads)
        assert same_bits(inside, y)  # the step's
        now = copy.deepcopy(model).predict(x)
        assert not np.allclose(now, y)
        assert same_bits(model.predict(x), now)
        assert same_bits(model(x, step)[0], y)


@pytest.mark.parametrize("name", MODELS)
def test_a_deep_copy_taken_during_a_pass_is_a_model_of_its_own(name):
    model, x, copies = made(name, "lora"), passes_input(name), []
    shared = Run(weights=effective_weights(model, 99))
    want, alone = model(x, shared)[0], model(x)[0]

    def take(layer, x, y):
        if len(copies) < 3:
            copies.append(copy.deepcopy(model))

    model(x, shared.but(watch=take))
    for other in copies:
        assert held(other).keys() == held(model).keys()
        assert same_bits(other(x)[0], alone)
        for path, array in other.trainable_params().items():
            if path.endswith("lora_B"):
                array *= -3
        assert not np.allclose(other(x)[0], alone)
        assert same_bits(other(x, shared)[0], other(x)[0])  # what was formed for the model is not for its copy
    assert same_bits(model(x, shared)[0], want)


# ---- watching --------------------------------------------------------------------------------------------------------


def seen_in(model, x, **fields):
    """([(path, input, output)], output) of a watched pass, the arrays as they were at that moment."""
    seen = []

    def look(path, x, y):
        seen.append((path, copy.deepcopy(x), copy.deepcopy(y)))

    y, _ = model(x, watching(model, look, **fields))
    return seen, y


ATTENTION = ["self.query", "self.key", "self.value", "self", "output.dense", "output.LayerNorm"]
POST_NORM = [
    *(f"attention.{path}" for path in ATTENTION),
    "intermediate.dense",
    "output.dense",
    "output.LayerNorm",
]
EMBEDDINGS = ["word_embeddings", "position_embeddings", "token_type_embeddings", "LayerNorm", ""]
PATHS = {
    "mlp": ["fc1", "act1", "fc2", ""],
    "post_norm": [*POST_NORM, ""],
    "pre_norm": [
        *("norm1", "attention.query", "attention.key", "attention.value", "attention"),
        *("output", "norm2", "up", "down", ""),
    ],
}
BERT = [
    *(f"embeddings.{path}".rstrip(".") for path in EMBEDDINGS),
    *(f"encoder.layer.{i}.{path}".rstrip(".") for i in (0, 1) for path in [*POST_NORM, ""]),
    "encoder.layer",
]
PATHS |= {
    "sequence": [*(f"bert.{path}" for path in BERT), "bert", "bert.pooler.dense", "classifier", ""],
    "tokens": [*(f"bert.{path}" for path in BERT), "bert", "classifier", ""],
    "embedding": [*(f"bert.{path}" for path in BERT), "bert", ""],
}


@pytest.mark.parametrize("kind", ["plain", "lora", "merged", "dropout"])
@pytest.mark.parametrize("name", MODELS)
def test_every_layer_is_seen_in_order_of_execution(name, kind):
    model, x = made(name, kind), passes_input(name)
    seen, y = seen_in(model, x)
    assert [path for path, _, _ in seen] == PATHS[name]
    path, first, last = seen[-1]
    np.testing.assert_equal(first, x)
    assert path == "" and same_bits(last, y)


@pytest.mark.parametrize("name", MODELS)
def test_what_is_seen_is_what_goes_in_and_comes_out(name):
    """The input of each layer with weights, put into that layer by itself, gives the output that was seen."""
    model, x = made(name, "lora"), passes_input(name)
    layers, count = dict(model.named_layers()), 0
    for path, x_, y_ in seen_in(model, x)[0]:
        if layers[path].params:
            assert same_bits(layers[path](x_)[0], y_), path
            count += 1
    layers = [layer for path, layer in layers.items() if not path.endswith("base_layer")]  # inside of its adapter
    assert count == sum(bool(layer.params) for layer in layers)


@pytest.mark.parametrize("name", MODELS)
def test_watching_changes_no_bit_of_the_others_and_nothing_of_the_model(name):
    model, x = made(name, "lora"), passes_input(name)
    before, run = held(model), Run()
    want = model(x, run)[0]
    seen, y = seen_in(model, x)
    assert held(model) == before and len(seen) == len(PATHS[name])
    assert_close(y, want, 1e-5)  # attention goes the longer way past its key and value
    assert same_bits(model(x, run)[0], want)
    assert len(seen) == len(PATHS[name]), "a pass that nobody watches was seen"


def test_a_watcher_that_raises_leaves_nothing_behind():
    model, x = made("tokens", "lora"), passes_input("tokens")
    before, want = held(model), model(x)[0]

    def stop(path, x, y):
        if path.endswith("1.output.LayerNorm"):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        model(x, watching(model, stop))
    assert held(model) == before
    assert same_bits(model(x)[0], want)


@pytest.mark.parametrize("name", MODELS)
def test_two_watchers_at_once_see_each_their_own_pass(name):
    model, x = made(name, "lora"), passes_input(name)
    rows = [slice(i, i + 1) for i in range(3)]
    inputs = [{key: array[row] for key, array in x.items()} if isinstance(x, dict) else x[row] for row in rows]
    want = [seen_in(model, part)[0] for part in inputs]
    calls = [lambda part=part: seen_in(model, part)[0] for part in inputs * 3]
    got = at_once([*calls[:8]])
    for seen, others in zip(got, (want * 3)[:8], strict=True):
        assert [path for path, _, _ in seen] == PATHS[name]
        for (_, *mine), (_, *theirs) in zip(seen, others, strict=True):
            assert all(same_bits(a, b) for a, b in zip(mine, theirs, strict=True) if isinstance(a, np.ndarray))


def test_a_watched_pass_inside_of_another():
    model, x = made("mlp", "lora"), passes_input("mlp")
    inner, outer = [], []

    def look(path, x_, y):
        outer.append(path)
        if path == "act1":
            model(x[:2], watching(model, lambda path, x, y: inner.append((path, len(y)))))

    model(x, watching(model, look))
    assert outer == PATHS["mlp"] and inner == [(path, 2) for path in PATHS["mlp"]]


def test_a_watched_run_has_the_fields_that_are_given(rng):
    model, x = made("tokens", "dropout"), passes_input("tokens")
    one, other = (seen_in(model, x, rng=np.random.default_rng(seed), causal=True, first=2)[1] for seed in (1, 1))
    plain, _ = model(x, Run(rng=np.random.default_rng(1), causal=True, first=2))
    assert one.shape == (4, 2, 3) and same_bits(one, other)
    assert_close(one, plain, 1e-5)
    assert seen_in(model, x, keep=False)[1].shape == (4, 5, 3)


def test_a_key_and_a_value_are_seen_where_attention_would_pass_them_by():
    model, x = made("sequence", "plain"), passes_input("sequence")
    _, cache = model(x)
    *_, (attention, *_) = cache[0][1]
    assert len(attention) == 3  # absorbed, when nobody looks
    seen, _ = seen_in(model, x)
    shapes = {path: y.shape for path, _, y in seen if path.startswith("bert.encoder.layer.1.attention.self.")}
    assert list(shapes.values()) == [(4, 1, 6), (4, 5, 6), (4, 5, 6)]


@pytest.mark.parametrize("name", MODELS)
def test_inputs_of_are_those_of_the_linear_layers(put, name):
    model, x = made(name, "lora"), passes_input(name)
    seen = {path: x_ for path, x_, _ in seen_in(model, x, keep=False)[0]}
    inputs = inputs_of(move(model, put), put_all(put, x) if isinstance(x, dict) else put(x))
    assert list(inputs) == [path for path in PATHS[name] if path in adapters(model) or path == "classifier"]
    for path, x_ in inputs.items():
        assert_close(x_, seen[path], 1e-5)


def test_inputs_of_has_the_input_of_every_linear_layer_with_an_adapter_or_without(rng):
    model = Sequential(
        {
            "a": linear(rng),
            "norm": LayerNorm(np.ones(7), np.zeros(7)),
            "act": Activation("silu"),
            "b": linear(rng, 7, 3),
        }
    )
    x = rng.standard_normal((4, 5))
    inputs = inputs_of(model, x)
    assert list(inputs) == ["a", "b"] and inputs["a"] is x
    assert same_bits(model.children["b"](inputs["b"])[0], model(x)[0])


@pytest.mark.parametrize("path", ["fc1", "fc2"])
def test_the_first_that_is_not_finite_is_found_while_others_train(path):
    """On the live model: passes on other threads go on meanwhile, and are not seen."""
    model, x = made("mlp", "lora"), passes_input("mlp")
    bad = x.copy()
    bad[2, 1] = np.nan
    want = model(x)[0]

    def train():
        y, cache = model(x)
        model.backward(np.ones_like(y), cache)
        assert same_bits(y, want)

    before = held(model)
    with in_the_background(train):
        for _ in range(30):
            assert first_non_finite(model, bad) == "layer fc1"
            assert first_non_finite(model, x) == "the loss itself"
    assert held(model) == before
    base_params(model)[f"{path}.bias"][0] = np.inf
    with np.errstate(invalid="ignore"):
        assert first_non_finite(model, x) == f"layer {path}"


# ---- causal, through whole models ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tokens", "embedding"])
def test_a_causal_encoder_does_not_look_ahead(name):
    """Also with padding, which every model hides by itself."""
    bert, batch = made(name, "lora").children["bert"], tiny_ids()
    ids, mask = batch.values()
    causal, _ = bert(batch, Run(causal=True))
    other = batch | {"input_ids": ids.copy()}
    other["input_ids"][:, 2:] = np.where(mask[:, 2:], (ids[:, 2:] + 1) % 12, ids[:, 2:])
    assert same_bits(bert(other, Run(causal=True))[0][:, :2], causal[:, :2])
    assert not np.allclose(bert(other)[0][:, :2], bert(batch)[0][:, :2])
    for first in (1, 2, 3):
        assert_close(bert(batch, Run(causal=True, first=first))[0], causal[:, :first], 1e-5)
        begun = {name: array[:, :first] for name, array in batch.items()}
        assert_close(bert(begun, Run(causal=True))[0], causal[:, :first], 1e-5)


@pytest.mark.parametrize("batch", [tiny_ids(), {"input_ids": tiny_ids()["input_ids"]}], ids=["padding", "whole"])
def test_a_bias_of_the_run_is_added_to_that_of_padding(batch):
    bert = made("tokens", "lora").children["bert"]
    added = Run(bias=causal_bias(batch["input_ids"].shape[1], np.zeros(1, "f4")))
    assert same_bits(bert(batch, added)[0], bert(batch, Run(causal=True))[0])
    assert not np.allclose(bert(batch, added)[0], bert(batch)[0])


def test_the_mean_over_all_tokens_asks_for_all():
    model, ids = made("embedding", "lora"), tiny_ids()
    for first in (1, 2):
        assert same_bits(model(ids, Run(first=first))[0], model(ids)[0])


def test_the_run_of_a_kind(rng):
    x = rng.standard_normal((3, 5, D))
    assert run_of("none", x) == RUN and run_of("causal", x) == Run(causal=True)
    assert run_of("causal and padding", x, Run(first=2)).bias.shape == (3, 1, 1, 5)
