"""Hugging Face folders of BERT: labels by number, old names, heads of other tasks, parts, and what is written."""

import json
import os
import weakref

import numpy as np
import pytest
from checks import same_bits, tiny_bert, tiny_config, tiny_ids, write_bert

from lorabook.errors import FormatError, InputError
from lorabook.files import INDEX, Tensor, read_safetensors, read_weights, write_safetensors, write_weights
from lorabook.models import (
    TOKENIZER_FILES,
    BertForSentenceEmbedding,
    BertForSequenceClassification,
    label_names,
    open_pretrained,
    pretrained,
    read_config,
    save_pretrained,
)


@pytest.fixture
def model(rng):
    return tiny_bert(rng, dtype="float32")


@pytest.fixture
def folder(model, tmp_path):
    return write_bert(tmp_path / "a", model)


def loaded(folder, cls=BertForSequenceClassification, labels=3):
    return cls.from_pretrained(folder, labels=labels)


def renamed(folder, change):
    """The same weights under other names: change(name) of each, or none for None."""
    arrays, _ = read_safetensors(folder / "model.safetensors")
    write_safetensors(folder / "model.safetensors", {new: a for n, a in arrays.items() if (new := change(n))})


# ---- labels ----------------------------------------------------------------------------------------------------------


def config_of(folder, **changes):
    (folder / "config.json").write_text(json.dumps(tiny_config(**changes)))
    return read_config(folder)


def test_labels_come_by_their_number(tmp_path):
    names = {str(i): f"name {i}" for i in (10, 2, 0, 1, 11, 3, 9, 8, 4, 7, 5, 6)}
    numbers = {name: int(i) for i, name in names.items()}
    for more in ({}, {"label2id": numbers}, {"label2id": None}, {"label2id": {}}):
        assert label_names(config_of(tmp_path, id2label=names, **more)) == [f"name {i}" for i in range(12)]
    for none in ({}, {"id2label": None}, {"id2label": {}}):
        assert label_names(config_of(tmp_path, **none)) == []


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"id2label": {"1": "a", "2": "b"}}, "id2label must name the classes 0, 1, ... without a gap; got {'1': 'a'"),
        ({"id2label": {"0": "a", "2": "b"}}, "without a gap"),
        ({"id2label": {"0": "a", "01": "b"}}, "without a gap"),
        ({"id2label": {"0": "a", "-1": "b"}}, "without a gap"),
        ({"id2label": {"0": "a", "b": "c"}}, "without a gap"),
        ({"id2label": ["a", "b"]}, "without a gap"),
        ({"id2label": {"0": "a", "1": "a"}}, "each class a name of its own; got {'0': 'a', '1': 'a'}"),
        ({"id2label": {"0": "a", "1": 2}}, "each class a name of its own"),
        ({"id2label": {"0": "a", "1": None}}, "each class a name of its own"),
        ({"id2label": {"0": "a", "1": "b"}, "label2id": {"a": 1, "b": 0}}, "label2id {'a': 1, 'b': 0} does not fit"),
        ({"id2label": {"0": "a", "1": "b"}, "label2id": {"a": 0}}, "does not fit id2label"),
        ({"id2label": {"0": "a", "1": "b"}, "label2id": {"a": 0, "b": True}}, "does not fit id2label"),
        ({"id2label": {"0": "a", "1": "b"}, "label2id": [0, 1]}, "does not fit id2label"),
        ({"label2id": {"a": 0, "b": 1}}, "does not fit id2label {}"),
        ({"problem_type": "regression"}, "problem_type must be one of None, 'single_label_classification'; got 'regre"),
        ({"problem_type": "multi_label_classification"}, "got 'multi_label_classification'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config must be None; got {'bits': 4}"),
        ({"vocab_size": 10**4000, "hidden_size": 7}, "multiple of num_attention_heads; got 7 and 2"),
        ({"pad_token_id": 10**4000}, "pad_token_id must be below vocab_size; got 1000"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_configs_that_are_refused_by_name(tmp_path, config, message):
    with pytest.raises(FormatError) as error:
        config_of(tmp_path, **config)
    assert message in str(error.value) and str(error.value).startswith(str(tmp_path / "config.json"))
    assert len(str(error.value)) < 500


def test_a_single_label_is_what_is_implemented(tmp_path):
    assert config_of(tmp_path, problem_type="single_label_classification")
    assert config_of(tmp_path, problem_type=None)


# ---- names of weights ------------------------------------------------------------------------------------------------


def old(name):
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")


def test_gamma_and_beta_of_old_checkpoints(folder, model, capsys):
    renamed(folder, old)
    assert sum(name.endswith(("gamma", "beta")) for name in read_weights(folder)) == 10
    for name, array in loaded(folder).named_params().items():
        assert same_bits(array, model.named_params()[name])
    assert capsys.readouterr() == ("", "")


def test_heads_of_pretraining_are_passed_over_with_a_note(folder, model, capsys):
    arrays, _ = read_safetensors(folder / "model.safetensors")
    arrays = {old(name): a for name, a in arrays.items() if not name.startswith("classifier.")}
    more = ["cls.predictions.bias", "cls.predictions.transform.LayerNorm.gamma", "cls.seq_relationship.weight"]
    arrays |= dict.fromkeys([*more, "qa_outputs.weight"], np.ones(3, "f4"))
    write_safetensors(folder / "model.safetensors", arrays)
    again = loaded(folder, labels=5).named_params()
    assert all(same_bits(a, model.named_params()[n]) for n, a in again.items() if not n.startswith("classifier."))
    assert again["classifier.weight"].shape == (5, 6)
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"note: {folder}: heads for other tasks are passed over (cls, qa_outputs)\n")


def test_a_classifier_that_is_not_wanted(folder, capsys):
    h, _ = BertForSentenceEmbedding.from_pretrained(folder)(tiny_ids())
    assert h.shape == (4, 6) and "passed over (classifier)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bert.embeddings.LayerNorm.alpha", "unexpected bert.embeddings.LayerNorm.alpha"),
        ("bert.encoder.layer.0.output.dense.gamma", "unexpected bert.encoder.layer.0.output.dense.gamma"),
        ("bert.embeddings.LayerNorm.gamma", "bert.embeddings.LayerNorm.weight under two names: "),
        ("pooler.dense.weight", "bert.pooler.dense.weight under two names: "),
        ("classifier.scale", "unexpected classifier.scale"),
        ("clsx.bias", "unexpected bert.clsx.bias"),
    ],
)
def test_an_unknown_name_is_an_error(folder, model, name, message):
    write_bert(folder, model, tensors={name: np.ones(3, "f4")})
    with pytest.raises(FormatError, match=str(folder)) as error:
        loaded(folder)
    assert message in str(error.value)


def test_whole_numbers_are_no_weights(folder, model):
    """As a checkpoint has them that was quantised."""
    name = "bert.encoder.layer.0.output.dense.weight"
    write_bert(folder, model, tensors={name: np.ones((6, 7), "i1")})
    with pytest.raises(FormatError, match=rf"expected floating-point numbers in every weight; got {name} \(I8\)"):
        loaded(folder)


def test_half_a_classifier_is_an_error(folder):
    renamed(folder, lambda name: name if name != "classifier.bias" else None)
    with pytest.raises(FormatError, match="missing classifier.bias"):
        loaded(folder)


# ---- weights in parts, and numbers that are none ---------------------------------------------------------------------


def test_a_model_in_parts(folder, model):
    (folder / "model.safetensors").unlink()
    write_weights(folder.joinpath, {old(n): a for n, a in model.named_params().items()}, 400)
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 5
    for name, array in loaded(folder).named_params().items():
        assert same_bits(array, model.named_params()[name])
    assert open_pretrained(folder)[1]["classifier.weight"].shape == (3, 6)
    next(folder.glob("model-00003-*")).unlink()
    with pytest.raises(FormatError, match="part model-00003-of-.*missing"):
        loaded(folder)


def test_one_tensor_at_a_time_is_in_memory(folder, model, monkeypatch):
    alive, read = [], Tensor.read

    def watched(*args):
        assert not [ref for ref in alive if ref() is not None]
        array = read(*args)
        alive.append(weakref.ref(array))
        return array

    monkeypatch.setattr(Tensor, "read", watched)
    loaded(folder)
    assert len(alive) == len(model.named_params())


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
def test_a_number_that_is_none_is_refused_by_the_tensors_name(folder, model, bad):
    name = "bert.encoder.layer.1.output.dense.weight"
    array = model.named_params()[name].astype("f8")
    array[3, 2] = bad
    write_bert(folder, model, tensors={name: array})
    with pytest.raises(FormatError, match=f"tensor {name} holds 1 numbers that are NaN or infinite in float32"):
        loaded(folder)


# ---- what is written -------------------------------------------------------------------------------------------------


def test_every_tokenizer_file_and_the_dtype_that_was_written(tmp_path, folder, model):
    config = {"dtype": "bfloat16", "torch_dtype": "float16", "num_labels": 7, "id2label": {"1": "x", "0": "y"}}
    write_bert(folder, model, config)
    for name in TOKENIZER_FILES:
        (folder / name).write_bytes(name.encode())
    (folder / "README.md").write_text("about the base")
    out = tmp_path / "b"
    out.mkdir()
    files = save_pretrained(out, loaded(folder), folder, ["a", "b", "c"])
    assert sorted(files) == sorted(os.listdir(out)) == sorted([*TOKENIZER_FILES, "config.json", "model.safetensors"])
    assert all((out / name).read_bytes() == name.encode() for name in TOKENIZER_FILES)
    written = json.loads((out / "config.json").read_text())
    assert written["dtype"] == "float32" and "torch_dtype" not in written and "num_labels" not in written
    assert written["id2label"] == {"0": "a", "1": "b", "2": "c"} and written["label2id"] == {"a": 0, "b": 1, "c": 2}
    assert {a.dtype for a in read_weights(out).values()} == {np.dtype("float32")}
    assert files[-1] == "config.json"
    assert read_config(out) == written


def test_a_large_model_is_written_in_parts(tmp_path, folder, model):
    out = tmp_path / "b"
    out.mkdir()
    files = save_pretrained(out, loaded(folder), folder, ["a", "b", "c"], max_shard_size=500)
    assert INDEX in files and "model.safetensors" not in files and len(files) > 5
    for name, array in loaded(out).named_params().items():
        assert same_bits(array, model.named_params()[name])


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("stop", ["tokenizer.json", "config.json"])
def test_an_interrupted_save_leaves_nothing(tmp_path, folder, monkeypatch, error, stop):
    out = tmp_path / "b"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    write, steps = pretrained.write_atomic, {"tokenizer.json": 1, "config.json": 2}
    calls = []

    def fails(path, data):
        calls.append(path)
        if len(calls) == steps[stop]:
            raise error
        write(path, data)

    monkeypatch.setattr(pretrained, "write_atomic", fails)
    with pytest.raises(type(error)):
        save_pretrained(out, loaded(folder), folder, ["a", "b", "c"])
    assert os.listdir(out) == ["mine.txt"]


def test_numbers_that_are_none_are_not_written(tmp_path, folder):
    broken, out = loaded(folder), tmp_path / "b"
    broken.named_params()["classifier.bias"][1] = np.inf
    out.mkdir()
    with pytest.raises(InputError, match="classifier.bias holds 1 numbers"):
        save_pretrained(out, broken, folder, ["a", "b", "c"])
    assert os.listdir(out) == []
