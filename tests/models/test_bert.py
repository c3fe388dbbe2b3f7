"""BERT in Hugging Face names: gradients of the three heads by complex step; folders read, written and refused."""

import json
import tracemalloc

import array_api_strict
import numpy as np
import pytest
from checks import (
    TOLERANCES,
    assert_close,
    assert_lives_on,
    move,
    put_all,
    run,
    same_bits,
    tiny_bert,
    tiny_config,
    tiny_ids,
    write_bert,
)

from lorabook import FormatError, InputError, LoRAConfig, inject
from lorabook.adapters import adapters, merge, unload
from lorabook.backend import to_numpy
from lorabook.data import Batches
from lorabook.files import read_safetensors
from lorabook.functional import complex_step, padding_bias
from lorabook.layers import INFERENCE, Run, check_layer, prefixed
from lorabook.models import (
    BertForSentenceEmbedding,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    read_config,
    save_pretrained,
)
from lorabook.parallel import Workers, cut
from lorabook.tasks import evaluate
from lorabook.training import AdamW, train

SMOOTH = 1e-11
HEADS = {
    "classification": (BertForSequenceClassification, 3),
    "tokens": (BertForTokenClassification, 3),
    "embedding": (BertForSentenceEmbedding, 0),
}
EVERY_HEAD = pytest.mark.parametrize("head", HEADS)


def made(rng, head="classification", **options):
    cls, labels = HEADS[head]
    return tiny_bert(rng, cls, labels=labels, **options)


def on(put, batch):
    """The batch on another backend."""
    return {name: put(array) for name, array in batch.items()}


def dout_of(model, rng):
    """A random upstream gradient; padding gets none, as with any loss over tokens."""
    y, _ = model(tiny_ids())
    dout = rng.standard_normal(y.shape)
    return dout * tiny_ids()["attention_mask"][:, :, None] if y.ndim == 3 else dout


def with_labels(labels, batch=None):
    return (batch or tiny_ids()) | {"labels": labels}


def tiled(times):
    return {name: np.tile(array, (times, 1)) for name, array in tiny_ids().items()}


# ---- names -----------------------------------------------------------------------------------------------------------

BLOCK = [
    *(f"attention.self.{name}" for name in ("query", "key", "value")),
    *("attention.output.dense", "attention.output.LayerNorm", "intermediate.dense", "output.dense", "output.LayerNorm"),
]


def hugging_face_names(head):
    tables = [f"bert.embeddings.{kind}_embeddings.weight" for kind in ("word", "position", "token_type")]
    layers = ["bert.embeddings.LayerNorm", *(f"bert.encoder.layer.{i}.{part}" for i in range(2) for part in BLOCK)]
    layers += {"classification": ["bert.pooler.dense", "classifier"], "tokens": ["classifier"], "embedding": []}[head]
    return {*tables, *(f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias"))}


@EVERY_HEAD
def test_names_are_those_of_hugging_face(rng, head):
    assert made(rng, head).named_params().keys() == hugging_face_names(head)


def test_shapes_follow_the_config(rng):
    shapes = {n: a.shape for n, a in made(rng).named_params().items()}
    assert shapes["bert.embeddings.word_embeddings.weight"] == (12, 6)
    assert shapes["bert.embeddings.position_embeddings.weight"] == (9, 6)
    assert shapes["bert.embeddings.token_type_embeddings.weight"] == (2, 6)
    assert shapes["bert.encoder.layer.1.intermediate.dense.weight"] == (7, 6)
    assert shapes["bert.encoder.layer.1.output.dense.weight"] == (6, 7)
    assert shapes["classifier.weight"] == (3, 6)


# ---- forward ---------------------------------------------------------------------------------------------------------


@EVERY_HEAD
def test_a_padded_batch_equals_one_text_after_another(rng, head):
    model, batch = made(rng, head), tiny_ids()
    together, _ = model(batch)
    for row, mask, y in zip(*batch.values(), together, strict=True):
        alone, _ = model({"input_ids": row[None, mask > 0]})  # no mask: all are tokens
        assert_close(y[: alone.shape[1]] if y.ndim == 2 else y, alone[0], 1e-13)
    wider, _ = model({name: np.pad(array, ((0, 0), (0, 3))) for name, array in batch.items()})
    assert_close(wider[:, :5] if wider.ndim == 3 else wider, together, 1e-13)


@EVERY_HEAD
def test_what_stands_in_padding_changes_no_bit_of_the_rest(rng, head):
    """Any id may stand there: the mask alone says what is padding."""
    model, batch = made(rng, head), tiny_ids()
    ids, mask = batch.values()
    y, other = model(batch)[0], model(batch | {"input_ids": np.where(mask, ids, 7)})[0]
    assert same_bits(*((z[mask > 0] if head == "tokens" else z) for z in (y, other)))


@EVERY_HEAD
@pytest.mark.parametrize("dtype", ["bool", "int32", "float32", "float64"])
def test_a_mask_of_any_dtype(put, rng, head, dtype):
    model, batch = move(made(rng, head), put), tiny_ids()
    other = batch | {"attention_mask": batch["attention_mask"].astype(dtype)}
    assert same_bits(model(put_all(put, other))[0], model(put_all(put, batch))[0])


@EVERY_HEAD
def test_a_mask_of_ones_is_as_none(put, rng, head):
    """For NumPy bit for bit, and without a bias; elsewhere the host would wait to know."""
    model, ids = move(made(rng, head), put), tiny_ids()["input_ids"]
    whole, none = ({"input_ids": ids, "attention_mask": np.ones_like(ids)}, {"input_ids": ids})
    assert_close(*(model(put_all(put, batch))[0] for batch in (whole, none)), 1e-15)


@EVERY_HEAD
def test_token_types(rng, head):
    """All of type 0, where none are given; a type of its own for each token where they are."""
    model, batch = made(rng, head), tiny_ids()
    types = np.array([[0, 0, 1, 1, 1], [0, 1, 1, 0, 0], [0, 0, 0, 1, 0], [0, 1, 0, 0, 0]])
    plain, _ = model(batch)
    assert_close(model(batch | {"token_type_ids": 0 * types})[0], plain, 1e-14)
    y, cache = model(batch | {"token_type_ids": types})
    assert not np.allclose(y, plain)
    table = "bert.embeddings.token_type_embeddings.weight"
    _, grads = model.backward(rng.standard_normal(y.shape), cache)
    assert np.all(np.abs(grads[table]).max(1) > 0)
    errors = check_layer(model, batch | {"token_type_ids": types}, rng)
    assert errors.keys() == hugging_face_names(head)
    assert max(errors.values()) < SMOOTH
    model.named_params()[table][1] = model.named_params()[table][0]
    assert_close(model(batch | {"token_type_ids": types})[0], plain, 1e-14)


def test_embedding_is_the_mean_over_real_tokens(rng):
    model, batch = made(rng, "embedding"), tiny_ids()
    h, _ = model.children["bert"](batch)
    y, _ = model(batch)
    assert_close(y, [h[i, mask > 0].mean(0) for i, mask in enumerate(batch["attention_mask"])], 1e-14)
    h, _ = model.children["bert"]({"input_ids": batch["input_ids"]})
    assert_close(model({"input_ids": batch["input_ids"]})[0], h.mean(1), 1e-14)


def test_heads_are_their_definition(rng):
    model, ids = made(rng), tiny_ids()
    params, (h, _) = model.named_params(), model.children["bert"](ids)
    pooled = np.tanh(h[:, 0] @ params["bert.pooler.dense.weight"].T + params["bert.pooler.dense.bias"])
    assert_close(model(ids)[0], pooled @ params["classifier.weight"].T + params["classifier.bias"], 1e-14)
    model = made(rng, "tokens")
    params, (h, _) = model.named_params(), model.children["bert"](ids)
    assert_close(model(ids)[0], h @ params["classifier.weight"].T + params["classifier.bias"], 1e-14)


@pytest.mark.parametrize("first", [1, 2, 5])
def test_only_the_first_tokens(rng, first):
    bert = made(rng).children["bert"]
    h, _ = bert(tiny_ids())
    h_, _ = bert(tiny_ids(), Run(first=first))
    assert h.shape == (4, 5, 6)
    assert_close(h_, h[:, :first], 1e-14)


@pytest.mark.parametrize("targets", [None, "all-linear", ["query", "value"]], ids=str)
def test_the_first_token_is_all_that_the_classifier_needs(rng, targets):
    """Logits and gradients are those by way of the last block's output for every token, and a gradient of zeros."""
    model, ids = made(rng), tiny_ids()
    if targets:
        config = LoRAConfig(r=2, target_modules=targets, init_lora_weights=False, modules_to_save=["classifier"])
        inject(model, config, rng)
    bert, classifier = model.children.values()
    dense = bert.children["pooler"].children["dense"]
    dout = rng.standard_normal((4, 3))
    y, _, grads = run(model, ids, dout)

    h, bert_cache = bert(ids)
    z, dense_cache = dense(h[:, 0])
    logits, classifier_cache = classifier(np.tanh(z))
    assert_close(y, logits, 1e-14)

    dpooled, classifier_grads = classifier.backward(dout, classifier_cache)
    dfirst, dense_grads = dense.backward(dpooled * (1 - np.tanh(z) ** 2), dense_cache)
    dh = np.zeros_like(h)
    dh[:, 0] = dfirst
    _, bert_grads = bert.backward(dh, bert_cache)
    want = prefixed("classifier", classifier_grads) | prefixed("bert.pooler.dense", dense_grads)
    want |= prefixed("bert", bert_grads)
    assert grads.keys() == want.keys() == model.trainable_params().keys()
    largest = max(np.abs(grad).max() for grad in want.values())  # a key's bias has gradient 0
    for name, grad in want.items():
        np.testing.assert_allclose(grads[name], grad, rtol=0, atol=1e-13 * largest, err_msg=name)


def test_embeddings_are_their_definition(rng):
    model, ids = made(rng), tiny_ids()
    params = {n.removeprefix("bert.embeddings."): a for n, a in model.named_params().items()}
    x = params["word_embeddings.weight"][ids["input_ids"]] + params["position_embeddings.weight"][:5]
    x = x + params["token_type_embeddings.weight"][0]
    xhat = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
    y, _ = model.children["bert"].children["embeddings"](ids)
    assert_close(y, xhat * params["LayerNorm.weight"] + params["LayerNorm.bias"], 1e-14)


@EVERY_HEAD
def test_a_padding_token_in_a_text_is_a_token(rng, head):
    """Attended to and counted, as in transformers."""
    model, batch = made(rng, head), tiny_ids()
    ids, mask = batch.values()
    ids[0, 2] = 0
    alone, _ = model(model.part(batch, slice(0, 1)))
    together, _ = model(batch)
    assert_close(together[:1], alone, 1e-13)
    params = model.named_params()
    params["bert.embeddings.word_embeddings.weight"][0] += 0.1 * rng.standard_normal(6)
    change = np.abs(model(batch)[0] - together).max(-1)
    if head == "tokens":
        change = np.where(mask, change, 0).max(-1)
    np.testing.assert_array_equal(change > 1e-3, [True, False, False, False])


@pytest.mark.parametrize(
    ("theirs", "ours"), [("gelu_new", "gelu_tanh"), ("gelu_pytorch_tanh", "gelu_tanh"), ("relu", "relu")]
)
def test_activation(theirs, ours):
    model = BertModel(tiny_config(hidden_act=theirs))
    block = model.children["encoder"].children["layer"].children["0"]
    assert block.activation.name == ours


# ---- gradients -------------------------------------------------------------------------------------------------------


@EVERY_HEAD
def test_every_gradient(rng, head):
    model = made(rng, head)
    errors = check_layer(model, tiny_ids(), rng)
    assert errors.keys() == hugging_face_names(head)
    assert not {name: error for name, error in errors.items() if not error < SMOOTH}


@EVERY_HEAD
def test_what_was_not_used_gets_no_gradient(rng, head):
    model = made(rng, head)
    _, _, grads = run(model, tiny_ids(), dout_of(model, rng))
    ids, mask = tiny_ids().values()
    used = np.isin(np.arange(12), ids[mask > 0])
    rows = {
        "word": (np.abs(grads["bert.embeddings.word_embeddings.weight"]).max(1), used),
        "position": (np.abs(grads["bert.embeddings.position_embeddings.weight"]).max(1), np.arange(9) < 5),
        "type": (np.abs(grads["bert.embeddings.token_type_embeddings.weight"]).max(1), np.arange(2) < 1),
    }
    for largest, expected in rows.values():
        np.testing.assert_array_equal(largest > 0, expected)


def test_the_bias_of_a_key_has_gradient_zero(rng):
    model = made(rng)
    _, _, grads = run(model, tiny_ids(), dout_of(model, rng))
    for i in range(2):
        name = f"bert.encoder.layer.{i}.attention.self.key"
        assert np.abs(grads[f"{name}.bias"]).max() < 1e-14 * np.abs(grads["classifier.weight"]).max()
        assert np.abs(grads[f"{name}.weight"]).max() > 0


IDS = tiny_ids()["input_ids"]
LABELS = {
    "classification": np.array([0, 2, 1, 2]),
    "tokens": np.where(IDS > 3, IDS % 3, -100),  # special tokens and padding do not count
}


def batch_of(head, **changes):
    """The batch with labels."""
    return tiny_ids() | {"labels": LABELS[head]} | changes


@pytest.mark.parametrize("head", LABELS)
def test_loss_and_grad(rng, head):
    model, labels = made(rng, head), LABELS[head]
    loss, grads = model.loss_and_grad(with_labels(labels))
    assert grads.keys() == model.named_params().keys()
    logits, _ = model(tiny_ids())
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    counted = [-np.log(p[(*i, label)]) for i, label in np.ndenumerate(labels) if label >= 0]
    assert loss == pytest.approx(np.mean(counted), rel=1e-13)
    probe = made(np.random.default_rng(0), head).to(np, "complex128")
    for name in ("classifier.weight", "bert.encoder.layer.1.output.dense.bias", "bert.embeddings.LayerNorm.weight"):
        array = probe.named_params()[name]

        def loss_of(value, array=array):
            array[...] = value
            return probe.loss_and_grad(with_labels(labels))[0]

        original = array.copy()
        assert_close(grads[name], complex_step(loss_of, original.real), SMOOTH)
        array[...] = original


def test_evaluate_counts_tokens_with_a_label(put, rng):
    model, labels = made(rng, "tokens"), LABELS["tokens"]
    logits, _ = model(tiny_ids())
    right = (logits.argmax(-1) == labels)[labels >= 0]
    assert 0 < right.mean() < 1 and right.size < labels.size
    batch = put_all(put, with_labels(labels))
    loss, accuracy = move(model, put).evaluate(batch)
    assert model.count(batch) == right.size
    assert accuracy == pytest.approx(right.mean(), rel=1e-15)
    assert loss == pytest.approx(float(model.loss_and_grad(batch)[0]), rel=1e-13)


@pytest.mark.parametrize("head", LABELS)
@pytest.mark.parametrize("counts", ["all", "some", "one shard"])
def test_shards_count_by_their_labels(put, rng, head, counts):
    """The mean over what counts in a batch is no mean of the shards' means, unless as many count in each."""
    model, batch = made(rng, head), tiled(20)
    ids = batch["input_ids"]
    labels = rng.integers(0, 3, len(ids) if head == "classification" else ids.shape)
    if counts == "some":
        labels[: len(ids) // 2][rng.random(labels[: len(ids) // 2].shape) < 0.7] = -100
    elif counts == "one shard":
        labels[: len(ids) // 2] = -100
    assert len(cut(model, batch)) == 2
    batch = with_labels(labels, batch)
    loss, grads = model.loss_and_grad(batch)
    with Workers(2) as team:
        loss_, grads_ = team.loss_and_grad(move(model, put), put_all(put, batch))
    assert float(loss_) == pytest.approx(loss, rel=1e-12)
    largest = max(np.abs(grad).max() for grad in grads.values())
    assert grads_.keys() == grads.keys()
    for name, grad in grads.items():
        np.testing.assert_allclose(to_numpy(grads_[name]), grad, rtol=0, atol=1e-12 * largest, err_msg=name)


def test_a_batch_without_a_label_that_counts(rng):
    model = made(rng, "tokens")
    for batch in (tiny_ids(), tiled(20)):  # one shard, and two
        batch = with_labels(np.full(batch["input_ids"].shape, -100), batch)
        with Workers(1) as team, pytest.raises(InputError, match="label.* must count|no label of the batch counts"):
            team.loss_and_grad(model, batch)


def test_tagging_is_learned(rng):
    """LoRA on a tiny encoder learns to tell words apart by their own number."""
    model, batch = made(rng, "tokens"), batch_of("tokens")
    inject(model, LoRAConfig(r=4, modules_to_save=["classifier"]), rng)
    optimizer = AdamW(0.01)
    for _ in range(60):
        optimizer.step(model.trainable_params(), model.loss_and_grad(batch)[1])
    assert model.evaluate(batch)[1] == 1


@EVERY_HEAD
@pytest.mark.parametrize("order", ["factored", "merged"])
@pytest.mark.parametrize("bias", ["none", "lora_only"])
def test_lora_on_every_linear_layer(rng, head, order, bias):
    model = made(rng, head)
    saved = ["classifier"] if "classifier" in model.children else []
    options = {"rank_pattern": {"output.dense": 2, r"layer\.1\..*\.key": 1}, "use_rslora": True, "bias": bias}
    config = LoRAConfig(r=4, lora_alpha=3, modules_to_save=saved, init_lora_weights=False, **options)
    paths = inject(model, config, rng)
    assert len(paths) == 12 + (head == "classification")
    for layer in adapters(model).values():
        layer.order = order
    errors = check_layer(model, tiny_ids(), rng)
    assert errors.keys() == model.trainable_params().keys()
    assert len(errors) == len(paths) * (2 if bias == "none" else 3) + 2 * len(saved)
    assert not {name: error for name, error in errors.items() if not error < SMOOTH}


@EVERY_HEAD
def test_what_is_frozen_changes_no_gradient(rng, head):
    model = made(rng, head)
    dout = dout_of(model, rng)
    _, _, everything = run(model, tiny_ids(), dout)
    for name in everything:
        model.set_trainable([name])
        _, dx, grads = run(model, tiny_ids(), dout)
        assert dx is None
        assert grads.keys() == {name}
        assert same_bits(grads[name], everything[name])


@pytest.mark.parametrize("lowest", [None, 0, 1])
def test_backward_stops_below_the_lowest_adapter(rng, lowest):
    """LoRA in block 0 needs no gradient of the embeddings; the head alone needs none of the blocks."""
    model, visited = made(rng), []
    if lowest is None:
        model.set_trainable(["classifier.weight"])
    else:
        inject(model, LoRAConfig(r=2, target_modules=[f"{lowest}.attention.self.query"]), rng)

    def watch(path, backward):
        return lambda *args, **options: visited.append(path) or backward(*args, **options)

    for path, layer in model.named_layers():
        layer.backward = watch(path, layer.backward)
    _, grads = model.loss_and_grad(with_labels(np.array([0, 2, 1, 2])))
    assert grads.keys() == model.trainable_params().keys()
    assert not [path for path in visited if path.startswith("bert.embeddings")]
    blocks = {path.split(".")[3] for path in visited if path.startswith("bert.encoder.layer.")}
    assert blocks == (set() if lowest is None else {str(i) for i in range(lowest, 2)})


@EVERY_HEAD
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_same_on_every_backend(put, rng, head, dtype):
    model = made(rng, head)
    dout = dout_of(model, rng)
    y, _, grads = run(model, tiny_ids(), dout)
    y_, _, grads_ = run(move(model, put, dtype), put_all(put, tiny_ids()), put(dout, dtype))
    assert_lives_on(put(dout, dtype), y_, *grads_.values())
    tolerance = 20 * TOLERANCES[dtype]  # two blocks, six products each
    assert_close(y_, y, tolerance)
    largest = max(np.abs(grad).max() for grad in grads.values())
    assert grads_.keys() == grads.keys()
    for name, grad in grads.items():
        np.testing.assert_allclose(to_numpy(grads_[name]), grad, rtol=0, atol=tolerance * largest, err_msg=name)


def test_training_works_on_every_backend(put, rng):
    model, batch = move(made(rng), put), put_all(put, with_labels(np.array([0, 2, 1, 2])))
    loss, accuracy = model.evaluate(batch)
    assert loss == pytest.approx(float(model.loss_and_grad(batch)[0]))
    assert accuracy in (0, 0.25, 0.5, 0.75, 1)


# ---- ids that cannot be used -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [-1, -2, -100, 12, 10**9])
def test_ids_out_of_range(rng, bad):
    batch = tiny_ids()
    batch["input_ids"][1, 1] = bad
    with pytest.raises(InputError, match=f"ids must be from 0 to 11; got .*{bad}"):
        made(rng)(batch)


@pytest.mark.parametrize(
    "bad", [IDS, IDS[0], {"input_ids": IDS[0]}, {"x": IDS}, {}, None, {"input_ids": None}], ids=str
)
def test_what_is_no_batch_of_ids(rng, bad):
    with pytest.raises(InputError, match=r"expected a batch \{'input_ids': \(B, T\), ...\}; got"):
        made(rng)(bad)


@pytest.mark.parametrize("bad", [-1, -2, -100, 12, 10**9])
@pytest.mark.parametrize("head", LABELS)
def test_ids_are_checked_before_they_cross_to_a_device(rng, head, bad):
    """A GPU takes any row of memory for an id out of range, without a word."""
    model, batch = made(rng, head, dtype="float32").to(array_api_strict), with_labels(LABELS[head])
    batches = Batches(batch, 4)
    before = {n: to_numpy(a).copy() for n, a in model.named_params().items()}
    evaluate(model, [batch])
    batch["input_ids"][1, 1] = bad
    message = f"ids must be from 0 to 11; got .*{bad}"
    with pytest.raises(InputError, match=message):
        train(model, batches, AdamW(0.01), epochs=1)
    with pytest.raises(InputError, match=message):
        evaluate(model, [with_labels(LABELS[head]), batch])
    assert all(same_bits(a, before[n]) for n, a in model.named_params().items())


def test_a_batch_counts_by_its_labels(rng):
    model, labels = made(rng, "tokens"), LABELS["tokens"]
    batch = with_labels(labels)
    parts = [model.part(batch, slice(i, i + 1)) for i in range(3)]  # 3, 1 and 2 labels count
    assert [model.count(part) for part in parts] == [3, 1, 2]
    assert evaluate(model, parts) == pytest.approx(model.evaluate(batch), rel=1e-13)


def test_a_sequence_that_is_too_long(rng):
    model = made(rng)
    assert model({"input_ids": np.full((1, 9), 5)})[0].shape == (1, 3)
    with pytest.raises(InputError, match="at most 9 tokens; got 10"):
        model({"input_ids": np.full((1, 10), 5)})


@pytest.mark.parametrize("cls", [BertForSequenceClassification, BertForTokenClassification])
@pytest.mark.parametrize("labels", [0, -1, 2.0, True, "2", None, ["a", "b"]])
def test_a_classifier_of_no_classes(rng, tmp_path, cls, labels):
    folder = write_bert(tmp_path, made(rng, dtype="float32"))
    for make in (lambda: cls(tiny_config(), labels), lambda: cls.from_pretrained(folder, labels=labels)):
        with pytest.raises(InputError, match="labels must be the number of classes, an integer from 1 on; got"):
            make()
    with pytest.raises(InputError, match="got 0"):
        cls(tiny_config())


# ---- folders ---------------------------------------------------------------------------------------------------------


@EVERY_HEAD
def test_round_trip(rng, tmp_path, head):
    model = made(rng, head, dtype="float32")
    cls, labels = HEADS[head]
    folder = write_bert(tmp_path / "a", model)
    again = cls.from_pretrained(folder, labels=labels)
    names = [f"name{i}" for i in range(labels)]
    (tmp_path / "b").mkdir()
    save_pretrained(tmp_path / "b", again, folder, names)
    third = cls.from_pretrained(tmp_path / "b", labels=labels)
    for other in (again, third):
        assert other.named_params().keys() == model.named_params().keys()
        assert all(same_bits(a, model.named_params()[n]) for n, a in other.named_params().items())
        assert same_bits(other(tiny_ids())[0], model(tiny_ids())[0])
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    assert config["architectures"] == [cls.__name__]
    assert config["id2label"] == {str(i): name for i, name in enumerate(names)}
    assert config["label2id"] == {name: i for i, name in enumerate(names)}
    assert config.items() >= tiny_config().items()
    assert (tmp_path / "b" / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    assert read_safetensors(tmp_path / "b" / "model.safetensors")[1] == {"format": "pt"}


def test_merged_model_is_saved_as_a_plain_one(rng, tmp_path):
    model = made(rng, dtype="float32")
    source = write_bert(tmp_path / "a", model)
    inject(model, LoRAConfig(r=3, modules_to_save=["classifier"], init_lora_weights=False), rng)
    y, _ = model(tiny_ids())
    merge(model)
    unload(model)
    (tmp_path / "b").mkdir()
    save_pretrained(tmp_path / "b", model, source, ["x", "y", "z"])
    plain = BertForSequenceClassification.from_pretrained(tmp_path / "b", labels=3)
    assert plain.named_params().keys() == hugging_face_names("classification")
    assert_close(plain(tiny_ids())[0], y, 4e-6)


def test_encoder_without_prefix_and_head(rng, tmp_path):
    """The file of a bare BertModel: no `bert.`, no classifier, a buffer of old versions."""
    model = made(rng, dtype="float32")
    bare = {n.removeprefix("bert."): a for n, a in model.named_params().items() if n.startswith("bert.")}
    changes = dict.fromkeys(model.named_params()) | bare
    changes |= {"embeddings.position_ids": np.arange(9)[None]}
    folder = write_bert(tmp_path, model, tensors=changes)
    again = BertForSequenceClassification.from_pretrained(folder, labels=5, rng=7).named_params()
    assert all(same_bits(again[f"bert.{n}"], a) for n, a in bare.items())
    assert again["classifier.weight"].shape == (5, 6) and not again["classifier.bias"].any()
    same = BertForSequenceClassification.from_pretrained(folder, labels=5, rng=7).named_params()
    other = BertForSequenceClassification.from_pretrained(folder, labels=5, rng=8).named_params()
    assert same_bits(same["classifier.weight"], again["classifier.weight"])
    assert not np.array_equal(other["classifier.weight"], again["classifier.weight"])
    h, _ = BertForSentenceEmbedding.from_pretrained(folder)(tiny_ids())  # passes over the pooler
    assert h.shape == (4, 6)


def test_float64_and_float16_files_become_float32(rng, tmp_path):
    model = made(rng)
    name = "bert.pooler.dense.weight"
    folder = write_bert(tmp_path, model, tensors={name: model.named_params()[name].astype("f2")})
    again = BertForSequenceClassification.from_pretrained(folder, labels=3).named_params()
    assert {a.dtype for a in again.values()} == {np.dtype("f4")}
    assert_close(again[name], model.named_params()[name].astype("f2"), 0)


LAYER = "bert.encoder.layer.1.attention.self.query"


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({f"{LAYER}.weight": None}, f"missing {LAYER}.weight"),
        ({"bert.pooler.dense.bias": None}, "missing bert.pooler.dense.bias"),
        ({"bert.embeddings.LayerNorm.bias": None}, "missing bert.embeddings.LayerNorm.bias"),
        ({f"{LAYER}.scale": np.ones(3, "f4")}, f"unexpected {LAYER}.scale"),
        ({"lm_head.bias": np.ones(3, "f4")}, "unexpected bert.lm_head.bias"),
        ({"bert.encoder.layer.2.output.dense.bias": np.ones(6, "f4")}, "unexpected bert.encoder.layer.2.output"),
        ({f"{LAYER}.weight": np.ones((6, 7), "f4")}, rf"{LAYER}.weight has shape (6, 7), expected (6, 6)"),
        ({f"{LAYER}.bias": np.ones((1, 6), "f4")}, rf"{LAYER}.bias has shape (1, 6), expected (6,)"),
        ({"classifier.weight": np.ones((2, 6), "f4")}, "classifier.weight has shape (2, 6), expected (3, 6)"),
        ({"bert.embeddings.word_embeddings.weight": None}, "embeddings.word_embeddings.weight of shape (12, 6)"),
        ({"bert.embeddings.word_embeddings.weight": np.ones((11, 6), "f4")}, "found (11, 6)"),
        ({"bert.encoder.layer.1.intermediate.dense.weight": None}, "layer.1.intermediate.dense.weight of shape (7, 6)"),
    ],
    ids=str,
)
def test_missing_extra_and_misshapen_tensors_are_named(rng, tmp_path, tensors, message):
    folder = write_bert(tmp_path, made(rng, dtype="float32"), tensors=tensors)
    with pytest.raises(InputError) as error:
        BertForSequenceClassification.from_pretrained(folder, labels=3)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "config",
    [
        {"vocab_size": 10**12},
        {"hidden_size": 10**6},
        {"num_hidden_layers": 10**9},
        {"intermediate_size": 10**11},
        {"max_position_embeddings": 10**11},
        {"type_vocab_size": 10**11},
        {"hidden_size": 2 * 10**30},
    ],
    ids=str,
)
def test_a_config_that_lies_is_refused_before_memory_is_taken(rng, tmp_path, config):
    folder = write_bert(tmp_path, made(rng, dtype="float32"), config)
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match="config.json promises"):
            BertForSequenceClassification.from_pretrained(folder, labels=3)
        assert tracemalloc.get_traced_memory()[1] < 2e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "roberta"}, "model_type must be 'bert'; got 'roberta'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type must be 'absolute'; got 'relative_key'"),
        ({"is_decoder": True}, "is_decoder must be False; got True"),
        ({"add_cross_attention": True}, "add_cross_attention must be False; got True"),
        ({"hidden_size": 0}, "hidden_size must be an integer from 1 on; got 0"),
        ({"hidden_size": 6.0}, "hidden_size must be an integer from 1 on; got 6.0"),
        ({"num_hidden_layers": True}, "num_hidden_layers must be an integer from 1 on; got True"),
        ({"vocab_size": "12"}, "vocab_size must be an integer from 1 on; got '12'"),
        ({"intermediate_size": None}, "intermediate_size must be an integer from 1 on; got None"),
        ({"type_vocab_size": -2}, "type_vocab_size must be an integer from 1 on; got -2"),
        ({"num_attention_heads": 4}, "multiple of num_attention_heads; got 6 and 4"),
        ({"hidden_act": "mish"}, "hidden_act must be one of 'gelu', 'gelu_new'"),
        ({"hidden_act": ["gelu"]}, "got ['gelu']"),
        ({"pad_token_id": 12}, "pad_token_id must be below vocab_size; got 12"),
        ({"pad_token_id": "0"}, "pad_token_id must be an integer from 0 on, or null; got '0'"),
        ({"layer_norm_eps": "1e-12"}, "layer_norm_eps must be a number from 0 to 1; got '1e-12'"),
        ({"layer_norm_eps": float("nan")}, "no finite number: 'NaN'"),
        ({"layer_norm_eps": -1e-12}, "layer_norm_eps must be a number from 0 to 1"),
        ({"initializer_range": -1}, "initializer_range must be a number from 0 to 1"),
        ({"initializer_range": None}, "initializer_range must be a number from 0 to 1"),
    ],
    ids=str,
)
def test_options_that_are_not_implemented_are_refused(rng, tmp_path, config, message):
    folder = write_bert(tmp_path, made(rng, dtype="float32"), config)
    with pytest.raises(FormatError) as error:
        BertForSequenceClassification.from_pretrained(folder, labels=3)
    assert message in str(error.value)
    assert "config.json" in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '{"model_type": "bert"', '{"a":' * 9999, "\xff", "{}"])
def test_malformed_config(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(FormatError, match="config.json"):
        read_config(tmp_path)


def test_no_folder_no_config_no_weights(rng, tmp_path):
    with pytest.raises(InputError, match=r"nothing.config\.json: No such file"):
        BertForSequenceClassification.from_pretrained(tmp_path / "nothing", labels=3)
    folder = write_bert(tmp_path / "a", made(rng))
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"model\.safetensors: No such file"):
        BertForSequenceClassification.from_pretrained(folder, labels=3)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth"])
def test_a_pickle_is_not_opened(rng, tmp_path, name):
    folder = write_bert(tmp_path, made(rng, dtype="float32"))
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(b"cos\nsystem\n(S'touch opened'\ntR.")
    with pytest.raises(InputError, match=rf"{name} is a pickle.*safe_serialization=True"):
        BertForSequenceClassification.from_pretrained(folder, labels=3)
    (folder / "model.safetensors").write_bytes(weights)  # beside safetensors it does not matter
    assert BertForSequenceClassification.from_pretrained(folder, labels=3).named_params()


def test_damaged_weights(rng, tmp_path):
    folder = write_bert(tmp_path, made(rng, dtype="float32"))
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-4])
    with pytest.raises(FormatError, match="model.safetensors is not a valid safetensors file"):
        BertForSequenceClassification.from_pretrained(folder, labels=3)


def test_a_saved_classifier_has_the_configs_spread():
    model = BertForSequenceClassification(tiny_config(hidden_size=600, initializer_range=0.05), labels=50)
    weight = model.named_params()["classifier.weight"]
    assert weight.std() == pytest.approx(0.05, rel=0.02)
    assert abs(weight.mean()) < 0.001


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("first", [1, None])
def test_no_bias_has_the_bits_of_a_bias_of_zeros(rng, dtype, first):
    bert, batch = tiny_bert(rng, dtype=dtype).children["bert"], {"input_ids": 1 + IDS % 11}
    x, _ = bert.children["embeddings"](batch)
    bias = padding_bias(np.ones_like(IDS), x)
    assert not bias.any()
    blocks = bert.children["encoder"].children["layer"]
    want, _ = blocks(x, Run(first=first, bias=bias))
    for mask in ({}, {"attention_mask": np.ones_like(IDS)}):
        got, _ = bert(batch | mask, Run(first=first))
        assert same_bits(got, want)


@pytest.mark.parametrize("head", [BertForSequenceClassification, BertForTokenClassification, BertForSentenceEmbedding])
def test_predict_is_forward_without_a_cache(rng, head):
    model = tiny_bert(rng, head, **({} if head is BertForSentenceEmbedding else {"labels": 3}))
    y, _ = model(tiny_ids())
    assert same_bits(model.predict(tiny_ids()), y)
    _, (_, blocks) = model.children["bert"](tiny_ids(), INFERENCE)
    assert blocks == []


def test_predict_of_no_texts(rng):
    assert tiny_bert(rng).predict({"input_ids": np.zeros((0, 5), int)}).shape == (0, 3)
