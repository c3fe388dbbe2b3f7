"""DistilBERT and RoBERTa: names, gradients, adapters, folders; what is refused; no cycle keeps a model alive."""

import csv
import json
import sys
import weakref

import numpy as np
import pytest
from checks import assert_close, reviews_file, run, same_bits, tiny_ids, write_bert
from tiny_encoders import HEAD_LAYERS, HEADS, PAD, config_of, made

import lorabook
from lorabook import FormatError, InputError, LoRAConfig, inject
from lorabook.adapters import adapters, load_adapter, read_adapter_config, save_adapter
from lorabook.files import Tensor, read_safetensors, write_safetensors, write_weights
from lorabook.layers import Run, check_layer
from lorabook.models import (
    MODELS,
    BertForSequenceClassification,
    DistilBertForSentenceEmbedding,
    DistilBertModel,
    RobertaForSentenceEmbedding,
    RobertaModel,
    load_classifier,
    read_config,
    save_pretrained,
)
from lorabook.training import AdamW, train

SMOOTH = 1e-11
EVERY_HEAD = pytest.mark.parametrize(("kind", "head"), [(kind, head) for kind in HEADS for head in HEADS[kind]])
EVERY_KIND = pytest.mark.parametrize("kind", HEADS)
# ---- names -----------------------------------------------------------------------------------------------------------

BLOCKS = {
    "distilbert": [
        *(f"transformer.layer.{{}}.attention.{name}_lin" for name in ("q", "k", "v", "out")),
        "transformer.layer.{}.sa_layer_norm",
        *("transformer.layer.{}.ffn.lin1", "transformer.layer.{}.ffn.lin2", "transformer.layer.{}.output_layer_norm"),
    ],
    "roberta": [
        *(f"encoder.layer.{{}}.attention.self.{name}" for name in ("query", "key", "value")),
        *("encoder.layer.{}.attention.output.dense", "encoder.layer.{}.attention.output.LayerNorm"),
        *("encoder.layer.{}.intermediate.dense", "encoder.layer.{}.output.dense", "encoder.layer.{}.output.LayerNorm"),
    ],
}


def names_of(kind, head):
    tables = ["word", "position"] + ["token_type"] * (kind == "roberta")
    layers = ["embeddings.LayerNorm", *(part.format(i) for i in range(2) for part in BLOCKS[kind])]
    own = {"classification": HEAD_LAYERS[kind], "tokens": ["classifier"], "embedding": []}[head]
    layers = [*(f"{kind}.{layer}" for layer in layers), *own]
    weights = {f"{layer}.{part}" for layer in layers for part in ("weight", "bias")}
    return weights | {f"{kind}.embeddings.{name}_embeddings.weight" for name in tables}


@EVERY_HEAD
def test_names_are_those_of_hugging_face(rng, kind, head):
    assert made(rng, kind, head).named_params().keys() == names_of(kind, head)


@EVERY_KIND
def test_what_a_model_says_of_itself(rng, kind):
    model = made(rng, kind)
    assert model.output_layer == HEAD_LAYERS[kind][-1] and model.head_layers == HEAD_LAYERS[kind]
    assert model.head_modules == {"distilbert": ("pre_classifier", "classifier"), "roberta": ("classifier",)}[kind]
    assert model.default_targets == {"distilbert": ("q_lin", "v_lin"), "roberta": ("query", "value")}[kind]
    assert model.encoder == kind and model.sizes.longest == 9 and model.sizes.vocab_size == 12
    assert model.config == config_of(kind) and MODELS[kind] is type(model)


# ---- forward and gradients -------------------------------------------------------------------------------------------


@EVERY_HEAD
def test_a_padded_batch_equals_one_text_after_another(rng, kind, head):
    model, batch = made(rng, kind, head), tiny_ids()
    together, _ = model(batch)
    for row, mask, y in zip(*batch.values(), together, strict=True):
        alone, _ = model({"input_ids": row[None, mask > 0]})
        assert_close(y[: alone.shape[1]] if y.ndim == 2 else y, alone[0], 1e-13)


@EVERY_HEAD
def test_every_gradient(rng, kind, head):
    model = made(rng, kind, head)
    errors = check_layer(model, tiny_ids(), rng)  # ReLU is smooth but at 0, where no number is
    assert errors.keys() == names_of(kind, head)
    assert not {name: error for name, error in errors.items() if not error < SMOOTH}


@EVERY_HEAD
def test_what_is_frozen_changes_no_gradient(rng, kind, head):
    model = made(rng, kind, head)
    y, _ = model(tiny_ids())
    dout = rng.standard_normal(y.shape)
    _, _, everything = run(model, tiny_ids(), dout)
    for name in everything:
        model.set_trainable([name])
        _, _, grads = run(model, tiny_ids(), dout)
        assert grads.keys() == {name} and same_bits(grads[name], everything[name])


def test_the_head_of_distilbert_is_its_definition(rng):
    model, batch = made(rng, "distilbert"), tiny_ids()
    params, (h, _) = model.named_params(), model.children["distilbert"](batch)
    z = np.maximum(h[:, 0] @ params["pre_classifier.weight"].T + params["pre_classifier.bias"], 0)
    assert (z == 0).any() and (z > 0).any()
    assert_close(model(batch)[0], z @ params["classifier.weight"].T + params["classifier.bias"], 1e-14)


def test_distilbert_has_no_token_types(rng):
    """A tokenizer that tells two texts apart changes nothing, as in transformers."""
    model, batch = made(rng, "distilbert"), tiny_ids()
    types = (batch["input_ids"] > 4).astype(int)
    assert same_bits(model(batch | {"token_type_ids": types})[0], model(batch)[0])


def by_definition(ids, mask):
    """fairseq's: the padding token's number plus one, plus two, ... for all that is not padding, that number for it."""
    positions = np.full(ids.shape, PAD)
    for i, row in enumerate(ids):
        seen = 0
        for t, token in enumerate(row):
            if mask[i, t] and token != PAD:
                seen += 1
                positions[i, t] = PAD + seen
    return positions


@pytest.mark.parametrize("what", ["right", "left", "none", "a <pad> in a text"])
def test_positions_of_roberta_begin_after_padding(rng, what):
    model, batch = made(rng, "roberta", "embedding"), tiny_ids()
    if what == "left":
        batch = {name: array[:, ::-1] for name, array in batch.items()}
    elif what == "none":
        batch = {"input_ids": batch["input_ids"] + 2}
    elif what == "a <pad> in a text":
        batch["input_ids"][0, 2] = PAD
    ids = batch["input_ids"]
    positions = by_definition(ids, batch.get("attention_mask", np.ones_like(ids)))
    params = {n.removeprefix("roberta.embeddings."): a for n, a in model.named_params().items()}
    x = params["word_embeddings.weight"][ids] + params["position_embeddings.weight"][positions]
    x = x + params["token_type_embeddings.weight"][0]
    xhat = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
    y, _ = model.children["roberta"].children["embeddings"](batch)
    assert_close(y, xhat * params["LayerNorm.weight"] + params["LayerNorm.bias"], 1e-13)
    if what == "left":  # what stands where in a batch is no matter, as long as it is in order
        texts = [row[None, mask > 0] for row, mask in zip(*batch.values(), strict=True)]
        assert_close(model(batch)[0], [model({"input_ids": text})[0][0] for text in texts])


@EVERY_KIND
def test_a_sequence_that_is_too_long(rng, kind):
    model = made(rng, kind)
    assert model({"input_ids": np.full((1, 9), 5)})[0].shape == (1, 3)
    with pytest.raises(InputError, match="at most 9 tokens; got 10"):
        model({"input_ids": np.full((1, 10), 5)})


@EVERY_KIND
def test_same_on_another_backend(put, rng, kind):
    """With adapters, in float64."""
    model = made(rng, kind)
    inject(model, LoRAConfig(r=2, target_modules="all-linear", init_lora_weights=False), rng)
    y, cache = model(tiny_ids())
    dout = rng.standard_normal(y.shape)
    _, grads = model.backward(dout, cache)
    for _, layer in model.named_layers():
        layer.params = {name: put(array) for name, array in layer.params.items()}
    y_, cache_ = model({name: put(array) for name, array in tiny_ids().items()})
    _, grads_ = model.backward(put(dout), cache_)
    assert_close(y_, y)
    for name, grad in grads.items():
        assert_close(grads_[name], grad, 1e-10)


# ---- adapters --------------------------------------------------------------------------------------------------------


@EVERY_KIND
def test_all_linear_leaves_the_fresh_head_to_train_in_full(rng, kind):
    for saved in (made(rng, kind).head_modules, ["classifier"], ()):
        model = made(rng, kind)
        paths = inject(model, LoRAConfig(r=2, target_modules="all-linear", modules_to_save=saved), rng)
        assert len(paths) == 12 and all(path.startswith(f"{kind}.") for path in paths)
        trains = {name for name in model.trainable_params() if "lora" not in name}
        head = {f"{path}.{part}" for path in HEAD_LAYERS[kind] for part in ("weight", "bias")}
        assert trains == (head if saved else set())  # "classifier" ends "pre_classifier", in PEFT too


@EVERY_KIND
@pytest.mark.parametrize("order", ["factored", "merged"])
def test_gradients_of_lora_on_every_linear_layer(rng, kind, order):
    model = made(rng, kind)
    config = LoRAConfig(r=3, target_modules="all-linear", modules_to_save=model.head_modules, init_lora_weights=False)
    inject(model, config, rng)
    for layer in adapters(model).values():
        layer.order = order
    errors = check_layer(model, tiny_ids(), rng)
    assert len(errors) == 12 * 2 + 4
    assert not {name: error for name, error in errors.items() if not error < SMOOTH}


@EVERY_KIND
def test_no_part_of_a_trained_head_is_lost(rng, kind, tmp_path):
    model = made(rng, kind, dtype="float32")
    inject(model, LoRAConfig(r=2, target_modules=list(model.default_targets), modules_to_save=["classifier"]), rng)
    for array in model.trainable_params().values():
        array += 0.1 * rng.standard_normal(array.shape).astype("f4")
    save_adapter(tmp_path / "a", model, task_type=model.task_type)
    held, _ = read_safetensors(tmp_path / "a" / "adapter_model.safetensors")
    assert {f"base_model.model.{path}.weight" for path in HEAD_LAYERS[kind]} <= held.keys()
    again = made(np.random.default_rng(0), kind, dtype="float32")
    load_adapter(tmp_path / "a", again)
    assert same_bits(again(tiny_ids())[0], model(tiny_ids())[0])


# ---- folders ---------------------------------------------------------------------------------------------------------


@EVERY_KIND
def test_round_trip(rng, kind, tmp_path):
    model = made(rng, kind, dtype="float32")
    folder = write_bert(tmp_path / "a", model)
    again = load_classifier(folder, 3)
    (tmp_path / "b").mkdir()
    save_pretrained(tmp_path / "b", again, folder, ["x", "y", "z"])
    third = load_classifier(tmp_path / "b", 3)
    for other in (again, third):
        assert type(other) is type(model)
        assert all(same_bits(a, model.named_params()[n]) for n, a in other.named_params().items())
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    assert config["architectures"] == [type(model).__name__] and config.items() >= config_of(kind).items()
    assert config["id2label"] == {"0": "x", "1": "y", "2": "z"}


PRETRAINING = {
    "distilbert": ["vocab_transform.weight", "vocab_layer_norm.bias", "vocab_projector.bias"],
    "roberta": ["lm_head.dense.weight", "lm_head.layer_norm.bias", "lm_head.bias"],
}


@EVERY_KIND
@pytest.mark.parametrize("prefix", [True, False])
def test_a_checkpoint_that_was_not_trained_to_classify(rng, kind, prefix, tmp_path, capsys):
    """Its head starts at random, by seed; heads of pretraining are passed over with a note, a pooler without."""
    model = made(rng, kind, dtype="float32")
    body = {n: a for n, a in model.named_params().items() if n.startswith(f"{kind}.")}
    arrays = body | {f"{kind}.embeddings.position_ids": np.arange(9)[None]}
    if kind == "roberta":
        arrays |= {"roberta.pooler.dense.weight": np.ones((6, 6), "f4"), "roberta.pooler.dense.bias": np.ones(6, "f4")}
    arrays = {n if prefix else n.removeprefix(f"{kind}."): a for n, a in arrays.items()}
    arrays |= dict.fromkeys(PRETRAINING[kind], np.ones(3, "f4"))
    folder = write_bert(tmp_path, model)
    write_safetensors(folder / "model.safetensors", arrays)
    first, same, other = (load_classifier(folder, 5, seed).named_params() for seed in (7, 7, 8))
    assert all(same_bits(first[n], a) for n, a in body.items())
    for path in HEAD_LAYERS[kind]:
        weight = first[f"{path}.weight"]
        assert same_bits(weight, same[f"{path}.weight"]) and not np.array_equal(weight, other[f"{path}.weight"])
        assert 0 < np.abs(weight).max() < 0.1 and not first[f"{path}.bias"].any()
    heads = ", ".join(sorted({name.partition(".")[0] for name in PRETRAINING[kind]}))
    assert capsys.readouterr().err == 3 * f"note: {folder}: heads for other tasks are passed over ({heads})\n"
    encoder = {"distilbert": DistilBertForSentenceEmbedding, "roberta": RobertaForSentenceEmbedding}[kind]
    assert encoder.from_pretrained(folder)(tiny_ids())[0].shape == (4, 6)


@EVERY_KIND
def test_half_a_head_is_an_error(rng, kind, tmp_path):
    missing = f"{HEAD_LAYERS[kind][0]}.weight"
    folder = write_bert(tmp_path, made(rng, kind, dtype="float32"), tensors={missing: None})
    with pytest.raises(FormatError, match=f"missing {missing}"):
        load_classifier(folder, 3)


@EVERY_KIND
def test_a_folder_in_parts_is_read_tensor_by_tensor(rng, kind, tmp_path, monkeypatch):
    model = made(rng, kind, dtype="float32")
    folder = write_bert(tmp_path, model)
    (folder / "model.safetensors").unlink()
    write_weights(folder.joinpath, model.named_params(), 400)
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 5
    alive, read = [], Tensor.read

    def watched(*args):
        assert not [ref for ref in alive if ref() is not None]
        array = read(*args)
        alive.append(weakref.ref(array))
        return array

    monkeypatch.setattr(Tensor, "read", watched)
    again = load_classifier(folder, 3).named_params()
    assert len(alive) == len(again)
    assert all(same_bits(a, model.named_params()[n]) for n, a in again.items())


@pytest.mark.parametrize("other", ["modernbert", "deberta-v2", "electra", "xlm-roberta", None, 3])
def test_another_model_type_is_refused_by_name(rng, tmp_path, other):
    folder = write_bert(tmp_path, made(rng, "bert", dtype="float32"), config={"model_type": other})
    known = "model_type must be one of 'bert', 'distilbert', 'roberta'"
    for opened in (read_config, lambda folder: lorabook.load_model(folder, labels=["a", "b"])):
        with pytest.raises(FormatError) as error:
            opened(folder)
        assert f"{known}; got {other!r}" in str(error.value) and "config.json" in str(error.value)


def test_a_config_that_does_not_say_is_of_bert(rng, tmp_path):
    folder = write_bert(tmp_path, made(rng, "bert", dtype="float32"))
    config = {name: value for name, value in config_of("bert").items() if name != "model_type"}
    (folder / "config.json").write_text(json.dumps(config))
    assert isinstance(load_classifier(folder, 3), BertForSequenceClassification)


def test_a_class_opens_its_own_folders(rng, tmp_path):
    folder = write_bert(tmp_path, made(rng, "roberta", dtype="float32"))
    with pytest.raises(FormatError, match="model_type must be 'bert'; got 'roberta'"):
        BertForSequenceClassification.from_pretrained(folder, labels=3)


@pytest.mark.parametrize(
    ("kind", "config", "message"),
    [
        ("distilbert", {"dim": 7}, "dim must be a multiple of n_heads; got 7 and 2"),
        ("distilbert", {"dim": None}, "dim must be an integer from 1 on; got None"),
        ("distilbert", {"n_layers": 0}, "n_layers must be an integer from 1 on; got 0"),
        ("distilbert", {"activation": "mish"}, "activation must be one of 'gelu'"),
        ("distilbert", {"pad_token_id": 12}, "pad_token_id must be below vocab_size; got 12 and 12"),
        ("distilbert", {"sinusoidal_pos_embds": "yes"}, "sinusoidal_pos_embds must be true or false; got 'yes'"),
        ("distilbert", {"hidden_dim": 8}, "layer.1.ffn.lin1.weight of shape (8, 6) (hidden_dim, dim); found (7, 6)"),
        ("roberta", {"pad_token_id": None}, "pad_token_id must be an integer from 0 on; got None"),
        (
            "roberta",
            {"max_position_embeddings": 2},
            "must be above pad_token_id + 1; got 2 and 1",
        ),
        ("roberta", {"is_decoder": True}, "is_decoder must be False; got True"),
        ("roberta", {"type_vocab_size": 1}, "token_type_embeddings.weight of shape (1, 6)"),
    ],
    ids=str,
)
def test_configs_that_are_refused_by_name(rng, tmp_path, kind, config, message):
    folder = write_bert(tmp_path, made(rng, kind, dtype="float32"), config=config)
    with pytest.raises(FormatError) as error:
        load_classifier(folder, 3)
    assert message in str(error.value)


# ---- from the command line, to the end -------------------------------------------------------------------------------


@EVERY_KIND
def test_train_predict_evaluate_merge(rng, kind, tmp_path, run_json):
    """A bare encoder of each kind learns a reader's file; its adapter folder is all that the others need."""
    model = made(rng, kind, dtype="float32", **{"dim" if kind == "distilbert" else "hidden_size": 24})
    heads = {f"{path}.{part}": None for path in HEAD_LAYERS[kind] for part in ("weight", "bias")}
    base = write_bert(tmp_path / "base", model, tensors=heads)
    data, out = reviews_file(tmp_path / "mine.csv"), tmp_path / "run"
    told = run_json("train", base, data, "--out", out, "--epochs", 20, "--lr", 0.01, "--max-length", 9)
    assert told["test_loss"]["after"] < 0.7 * told["test_loss"]["before"]
    config = read_adapter_config(out)
    assert set(config.target_modules) == set(model.default_targets)
    assert set(model.head_modules) <= set(config.modules_to_save)
    accuracy = run_json("evaluate", out, data, "--split", "test")["accuracy"]
    assert accuracy == pytest.approx(told["test_accuracy"]["after"], rel=1e-6)
    merged = tmp_path / "merged"
    assert run_json("merge", base, "--adapter", out, "--out", merged)["labels"] == ["neg", "pos"]
    texts = ["good", "bad film", "fine fine poor", "the"]
    (tmp_path / "texts.csv").write_text("text\n" + "\n".join(texts))
    for name in (out, merged):
        run_json("predict", name, tmp_path / "texts.csv", "--out", tmp_path / f"{name.name}.csv")
    rows = [list(csv.reader((tmp_path / f"{name}.csv").read_text().splitlines())) for name in ("run", "merged")]
    assert [row[:2] for row in rows[0]] == [row[:2] for row in rows[1]] and len(rows[0]) == 5
    assert lorabook.load_model(merged).about.trained and lorabook.load_model(out).config == model.config


# ---- no reference cycle keeps a model alive --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bert", *HEADS])
def test_a_model_dies_with_its_last_name(rng, kind, tmp_path):
    """Without the garbage collector: opened, trained, asked, saved, and let go."""
    base = write_bert(tmp_path / "base", made(rng, kind, dtype="float32"))
    model = lorabook.load_model(base)
    inject(model, LoRAConfig(r=2, target_modules=list(model.default_targets), modules_to_save=model.head_modules))
    batch = tiny_ids() | {"labels": np.array([0, 2, 1, 2])}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", None)  # nothing may wait for a line of a bar
        train(model, lorabook.data.batches.Batches(batch, 2), AdamW(0.01), epochs=3, workers=2)
    lorabook.predict(model, ["good film", "bad"], workers=2)
    save_adapter(tmp_path / "a", model, base)
    refs = [weakref.ref(model), *(weakref.ref(array) for array in model.named_params().values())]
    del model
    assert not [ref for ref in refs if ref() is not None]
    again = lorabook.load_model(tmp_path / "a")
    ref = weakref.ref(again)
    del again
    assert ref() is None


def test_bare_encoders(rng):
    for cls, kind in ((DistilBertModel, "distilbert"), (RobertaModel, "roberta")):
        encoder = cls(config_of(kind))
        assert not any(name.startswith(f"{kind}.") for name in encoder.named_params())
        h, _ = encoder(tiny_ids(), Run(first=2))
        assert h.shape == (4, 2, 6)
