"""train, evaluate and merge on text: a tiny BERT folder and a small CSV, as a user would bring them."""

import json
import os
import shutil

import numpy as np
import pytest
from checks import WORDS, encoder_folder, reviews_file, tiny_bert, tiny_config, write_bert, write_tokenizer

from lorabook import LoRAConfig, inject
from lorabook import files as io
from lorabook.adapters import save_adapter
from lorabook.files import read_csv
from lorabook.models import BertForSequenceClassification

OPTIONS = ["--epochs", 12, "--batch-size", 4, "--r", 2, "--max-length", 9, "--lr", 0.01]


@pytest.fixture
def model(tmp_path):
    return encoder_folder(tmp_path / "model")


@pytest.fixture
def data(tmp_path):
    return reviews_file(tmp_path / "data.csv")


def test_train_evaluate_merge_evaluate(run_json, model, data, tmp_path):
    source = {name: (model / name).read_bytes() for name in os.listdir(model)}
    before = run_json("evaluate", model, data, "--split", "test", "--max-length", 9)
    result = run_json("train", model, data, "--out", tmp_path / "a", *OPTIONS, "--epochs", 30)
    assert set(os.listdir(tmp_path / "a")) == {
        *("adapter_config.json", "adapter_model.safetensors", "lorabook.json", "history.csv", "checkpoint.safetensors")
    }
    assert result["test_loss"]["before"] == pytest.approx(before["loss"], rel=1e-6)
    assert result["test_loss"]["after"] < result["test_loss"]["before"]
    losses = [row["loss"] for row in read_csv(tmp_path / "a" / "history.csv")]
    assert result["steps"] == len(losses) == 30 * 12
    assert np.mean(losses[-48:]) < 0.6 * np.mean(losses[:48])
    assert json.loads((tmp_path / "a" / "lorabook.json").read_text())["labels"] == ["neg", "pos"]
    options = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert {"task_type": "SEQ_CLS", "modules_to_save": ["classifier"], "r": 2}.items() <= options.items()
    assert options["target_modules"] == ["query", "value"]

    after = run_json("evaluate", model, data, "--split", "test", "--adapter", tmp_path / "a")
    assert after["rows"] == before["rows"] == 15
    assert after["accuracy"] == result["test_accuracy"]["after"]
    assert after["accuracy"] in [right / 15 for right in range(16)]
    assert after["loss"] == pytest.approx(result["test_loss"]["after"], rel=1e-5)

    merged = run_json("merge", model, "--adapter", tmp_path / "a", "--out", tmp_path / "merged")
    assert merged["labels"] == ["neg", "pos"]
    assert set(os.listdir(tmp_path / "merged")) == {"config.json", "model.safetensors", "tokenizer.json"}
    plain = run_json("evaluate", tmp_path / "merged", data, "--split", "test")
    assert plain == after | {"seen_in_training": None}
    assert {name: (model / name).read_bytes() for name in os.listdir(model)} == source


def test_merged_weights_are_the_sum(run, run_json, model, data, tmp_path):
    run_json("train", model, data, "--out", tmp_path / "a", *OPTIONS, "--use-rslora", "--target-modules", "all-linear")
    assert run("merge", model, "--adapter", tmp_path / "a", "--out", tmp_path / "merged")[0] == 0
    base, _ = io.read_safetensors(model / "model.safetensors")
    merged, _ = io.read_safetensors(tmp_path / "merged" / "model.safetensors")
    factors, _ = io.read_safetensors(tmp_path / "a" / "adapter_model.safetensors")
    assert merged.keys() == BertForSequenceClassification(tiny_config(), labels=2).named_params().keys()
    for name, array in merged.items():
        path = f"base_model.model.{name.removesuffix('.weight')}"
        if f"base_model.model.{name}" in factors:
            want = factors[f"base_model.model.{name}"]
        elif f"{path}.lora_A.weight" in factors:
            B, A = factors[f"{path}.lora_B.weight"], factors[f"{path}.lora_A.weight"]
            want = base[name] + 16 / 2**0.5 * B @ A
        else:
            want = base[name]
        np.testing.assert_allclose(array, want, rtol=1e-5, atol=1e-6, err_msg=name)


def test_a_seed_is_a_run(run_json, model, data, tmp_path):
    hashes = [
        run_json("train", model, data, "--out", tmp_path / f"{i}", *OPTIONS, "--seed", seed)["adapter_sha256"]
        for i, seed in enumerate((0, 0, 1))
    ]
    assert hashes[0] == hashes[1] != hashes[2]


def test_resume_ends_where_the_whole_run_ends(run, run_json, model, data, tmp_path, monkeypatch):
    train = ["train", model, data, *OPTIONS, "--lora-dropout", 0.2, "--checkpoint-every", 5]
    whole = run_json(*train, "--out", tmp_path / "whole")
    steps, loss_and_grad = [], BertForSequenceClassification.loss_and_grad

    def stops(self, *batch):
        steps.append(len(steps))
        if len(steps) == 23:
            raise KeyboardInterrupt
        return loss_and_grad(self, *batch)

    monkeypatch.setattr(BertForSequenceClassification, "loss_and_grad", stops)
    assert run(*train, "--out", tmp_path / "part")[0] == 130
    assert io.read_checkpoint(tmp_path / "part" / "checkpoint.safetensors")[1]["step"] == 20
    code, _, err = run(*train, "--out", tmp_path / "part")
    assert code == 2 and "pass --resume" in err
    again = run_json(*train, "--out", tmp_path / "part", "--resume")
    assert len(steps) == 23 + 144 - 20
    assert again["adapter_sha256"] == whole["adapter_sha256"]
    for name in os.listdir(tmp_path / "whole"):
        assert (tmp_path / "part" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize(
    ("option", "value", "other", "message"),
    [
        ("--weight-decay", 0.1, 0.2, "its optimizer.weight_decay is 0.1, here it is 0.2"),
        ("--weight-decay", 0.1, 0.0, "its optimizer.weight_decay is 0.1, here it is 0.0"),
        ("--accumulate", 2, 3, "its batch_size is"),
        ("--accumulate", 2, 1, "its batch_size is"),
    ],
)
def test_decay_and_accumulation_are_part_of_a_run(
    run, run_json, model, data, tmp_path, monkeypatch, option, value, other, message
):
    train = ["train", model, data, *OPTIONS, "--epochs", 3, "--lora-dropout", 0.2, "--checkpoint-every", 5]
    plain = run_json(*train, "--out", tmp_path / "plain")
    whole = run_json(*train, option, value, "--out", tmp_path / "whole")
    assert whole["adapter_sha256"] != plain["adapter_sha256"]
    steps, loss_and_grad = [], BertForSequenceClassification.loss_and_grad

    def stops(self, *batch):
        steps.append(len(steps))
        if len(steps) == 17:
            raise KeyboardInterrupt
        return loss_and_grad(self, *batch)

    with monkeypatch.context() as patch:
        patch.setattr(BertForSequenceClassification, "loss_and_grad", stops)
        assert run(*train, option, value, "--out", tmp_path / "part")[0] == 130
    code, out, err = run(*train, option, other, "--out", tmp_path / "part", "--resume")
    assert (code, out) == (2, "") and message in err.splitlines()[-1]
    assert run_json(*train, option, value, "--out", tmp_path / "part", "--resume") | {"out": 0} == whole | {"out": 0}
    for name in os.listdir(tmp_path / "whole"):
        assert (tmp_path / "part" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_accumulated_steps_are_those_of_larger_batches(run, model, data, tmp_path):
    """To rounding, which the steps of AdamW make larger where a gradient is hardly there; SGD is in test_train."""
    train = ["train", model, data, "--r", 2, "--epochs", 3, "--lr", 1e-3]
    factors = []
    for out, options in (("a", ["--batch-size", 4, "--accumulate", 3]), ("b", ["--batch-size", 12])):
        code, _, err = run(*train, *options, "--out", tmp_path / out)
        assert code == 0 and "training rows in batches of 12, 3 epochs of " in err
        factors.append(io.read_safetensors(tmp_path / out / "adapter_model.safetensors")[0])
    rows = [read_csv(tmp_path / out / "history.csv") for out in "ab"]
    for one, two in zip(*rows, strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-4)
    assert factors[0].keys() == factors[1].keys()
    for name, array in factors[1].items():
        np.testing.assert_allclose(factors[0][name], array, atol=1e-4, err_msg=name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--accumulate", 0], "argument --accumulate: expected an integer from 1"),
        (["--accumulate", 1.5], "argument --accumulate: expected an integer from 1"),
        (["--weight-decay", "much"], "argument --weight-decay: expected a"),
        (["--weight-decay", -1], "weight_decay must be a finite number >= 0; got -1"),
    ],
)
def test_decay_and_accumulation_are_checked(run, model, data, tmp_path, options, message):
    code, out, err = run("train", model, data, "--out", tmp_path / "a", *options)
    assert (code, out) == (2, "") and message in err
    assert not (tmp_path / "a").exists()


def test_more_parts_than_rows(run, model, data, tmp_path):
    code, out, err = run("train", model, data, "--out", tmp_path / "a", "--accumulate", 1000)
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert "training rows" in err and not (tmp_path / "a").exists()


def test_a_loss_that_is_no_number_names_the_layer(run, model, data, tmp_path):
    code, out, err = run("train", model, data, "--out", tmp_path / "a", *OPTIONS, "--lr", 1e38)
    assert (code, out) == (1, "")
    assert "step 1: the loss is" in err or "step 2: the loss is" in err
    assert "layer bert.encoder" in err or "layer classifier" in err
    assert [line.split(":")[0] for line in err.splitlines()] == ["144 steps", "lorabook train"]


def test_merge_does_not_overwrite_a_model(run, run_json, model, data, tmp_path):
    run_json("train", model, data, "--out", tmp_path / "a", *OPTIONS)
    before = (model / "model.safetensors").read_bytes()
    code, _, err = run("merge", model, "--adapter", tmp_path / "a", "--out", model)
    assert code == 2 and "holds a model or an adapter already (config.json, model.safetensors, tokenizer.json)" in err
    assert (model / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("where", ["model", "adapter"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_merge_of_numbers_that_are_none(assert_refused, model, tmp_path, where, bad):
    adapter, name = foreign(tmp_path / "a"), "bert.encoder.layer.1.attention.self.query"
    path = model / "model.safetensors" if where == "model" else adapter / "adapter_model.safetensors"
    name = f"{name}.weight" if where == "model" else f"base_model.model.{name}.lora_B.weight"
    arrays, _ = io.read_safetensors(path)
    arrays[name][2, 1] = bad
    io.write_safetensors(path, arrays)
    message = f"{path}: tensor {name} holds 1 numbers that are NaN or infinite"
    assert_refused(message, "merge", model, "--adapter", adapter, "--out", tmp_path / "new" / "merged")
    assert not (tmp_path / "new").exists()


def test_an_interrupted_merge_leaves_no_model(run, run_json, model, tmp_path, monkeypatch):
    adapter, out = foreign(tmp_path / "a"), tmp_path / "new" / "merged"

    def interrupted(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as during:
        during.setattr("lorabook.models.pretrained.write_weights", interrupted)
        assert run("merge", model, "--adapter", adapter, "--out", out)[0] == 130
    assert os.listdir(out) == []
    files = run_json("merge", model, "--adapter", adapter, "--out", out)["files"]
    assert sorted(files) == sorted(os.listdir(out)) == ["config.json", "model.safetensors", "tokenizer.json"]


def test_merge_takes_the_tokenizer_beside_the_adapter(run, model, tmp_path):
    """Words may have been added in training."""
    adapter = foreign(tmp_path / "a")
    write_tokenizer(adapter / "tokenizer.json", WORDS[:-1])
    assert run("merge", model, "--adapter", adapter, "--out", tmp_path / "merged")[0] == 0
    tokenizer = (adapter / "tokenizer.json").read_bytes()
    assert (tmp_path / "merged" / "tokenizer.json").read_bytes() == tokenizer != (model / "tokenizer.json").read_bytes()


def foreign(folder, saved=("classifier",)):
    """An adapter of three classes as another program writes it: without lorabook.json."""
    network, config = tiny_bert(np.random.default_rng(0), dtype="float32"), LoRAConfig(r=2, modules_to_save=saved)
    inject(network, config)
    folder.mkdir()
    save_adapter(folder, network, task_type="SEQ_CLS" if saved else None)  # which implies a classifier
    (folder / "lorabook.json").unlink()
    return folder


@pytest.mark.parametrize(
    ("config", "names"),
    [
        ({}, ["LABEL_0", "LABEL_1", "LABEL_2"]),
        ({"id2label": {"0": "a", "1": "b"}}, ["LABEL_0", "LABEL_1", "LABEL_2"]),
        ({"id2label": {"0": "bad", "1": "good", "2": "so so"}}, ["bad", "good", "so so"]),
        ({"id2label": {"2": "so so", "0": "bad", "1": "good"}}, ["bad", "good", "so so"]),
    ],
    ids=["no names", "other names", "names", "names in another order"],
)
@pytest.mark.parametrize("saved", ["adapter", "model"])
def test_merge_takes_the_number_of_labels_from_the_classifier(run_json, tmp_path, model, config, names, saved):
    """Of an adapter that another program wrote; or of the model, where the adapter leaves its classifier alone."""
    if saved == "model":
        write_bert(model, tiny_bert(np.random.default_rng(0), dtype="float32"))
    (model / "config.json").write_text(json.dumps(tiny_config(**config)))
    adapter = foreign(tmp_path / "a", ["classifier"] if saved == "adapter" else [])
    merged = run_json("merge", model, "--adapter", adapter, "--out", tmp_path / "merged")
    assert merged["labels"] == names
    written = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert written["id2label"] == dict(zip("012", names, strict=True))
    weights = BertForSequenceClassification.from_pretrained(tmp_path / "merged", labels=3).named_params()
    want = tiny_bert(np.random.default_rng(0), dtype="float32").named_params()
    if saved == "adapter":
        np.testing.assert_array_equal(weights["classifier.weight"], want["classifier.weight"])


# ---- bad input: exit code 2, one line, nothing written ---------------------------------------------------------------


def test_an_adapter_of_other_labels(assert_refused, run_json, model, data, tmp_path):
    run_json("train", model, data, "--out", tmp_path / "a", *OPTIONS)
    other = tmp_path / "other.csv"
    other.write_text(data.read_text().replace("pos", "fine"))
    message = f"{other}, line 2: the label 'fine' is none of ['neg', 'pos']"
    assert_refused(message, "evaluate", model, other, "--adapter", tmp_path / "a")
    run_json("merge", model, "--adapter", tmp_path / "a", "--out", tmp_path / "merged")
    assert_refused(message, "evaluate", tmp_path / "merged", other)
    message = "trained on the labels ['neg', 'pos']; the data has ['fine', 'neg']"
    assert_refused(message, "train", tmp_path / "merged", other, "--out", tmp_path / "b", *OPTIONS)
    assert not (tmp_path / "b").exists()


def test_an_adapter_of_another_base(assert_refused, run_json, model, data, tmp_path):
    run_json("train", model, data, "--out", tmp_path / "a", *OPTIONS)
    other = write_bert(tmp_path / "other", tiny_bert(np.random.default_rng(1), labels=2, dtype="float32"))
    options = ["--max-length", 9, "--adapter", tmp_path / "a"]
    assert_refused("trained on other base weights", "evaluate", other, data, *options)
    argv = ["merge", other, "--adapter", tmp_path / "a", "--out", tmp_path / "merged"]
    assert_refused("trained on other base weights", *argv)
    assert not (tmp_path / "merged").exists()


def test_an_adapter_on_a_model_with_another_merged_into_it(assert_refused, run_json, model, data, tmp_path):
    for name, seed in (("a", 0), ("b", 1)):
        run_json("train", model, data, "--out", tmp_path / name, *OPTIONS, "--seed", seed)
    merged = tmp_path / "merged"
    run_json("merge", model, "--adapter", tmp_path / "a", "--out", merged)
    config = json.loads((merged / "config.json").read_text())
    assert config["merged_from"] == {"model": str(model), "adapter": str(tmp_path / "a")}
    for adapter in ("a", "b"):
        argv = [merged, data, "--max-length", 9, "--adapter", tmp_path / adapter]
        assert_refused(f"this model is '{model}' with the adapter '{tmp_path / 'a'}' merged into it", "evaluate", *argv)
        assert_refused(f"; give '{model}' as the model", "evaluate", *argv)
    (merged / "config.json").write_text(json.dumps(config | {"merged_from": ["a", "b"]}))
    assert_refused("merged_from must be the names of a model and an adapter", "evaluate", *argv)


def test_an_adapter_that_is_none(assert_refused, model, data, tmp_path):
    (tmp_path / "empty").mkdir()
    options = ["--max-length", 9, "--adapter", tmp_path / "empty"]
    assert_refused("expected a PEFT adapter folder", "evaluate", model, data, *options)
    argv = ["merge", model, "--adapter", tmp_path / "nothing", "--out", tmp_path / "m"]
    assert_refused("expected a PEFT adapter folder", *argv)


def test_merge_without_any_classifier(assert_refused, model, tmp_path):
    adapter = foreign(tmp_path / "a", saved=[])
    assert_refused("holds a classifier", "merge", model, "--adapter", adapter, "--out", tmp_path / "m")
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("shape", [(6,), (0, 6), (3, 6, 1)], ids=str)
def test_merge_of_a_classifier_that_is_none(assert_refused, model, tmp_path, shape):
    path = foreign(tmp_path / "a") / "adapter_model.safetensors"
    arrays, _ = io.read_safetensors(path)
    io.write_safetensors(path, arrays | {"base_model.model.classifier.weight": np.ones(shape, "f4")})
    message = "got 0" if 0 in shape else f"expected classifier.weight (classes, d); got the shape {shape}"
    assert_refused(message, "merge", model, "--adapter", tmp_path / "a", "--out", tmp_path / "m")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-length", 10], "max_length must be an integer from 2 to 9"),
        (["--max-length", 1], "--max-length: expected an integer from 2 to"),
        (
            ["--max-length", 9, "--batch-size", 50],
            "batch_size must be an integer from 1 to the 49 training rows; got 50",
        ),
        (["--max-length", 9, "--r", 37], "r must be at most 36, the number of weights of bert.encoder"),
        (["--max-length", 9, "--target-modules", "querry"], "target module 'querry' matches no linear layer"),
        (["--max-length", 9, "--lr", "nan"], "--lr: expected a finite number; got 'nan'"),
    ],
    ids=str,
)
def test_options_that_do_not_fit(assert_refused, model, data, tmp_path, options, message):
    assert_refused(message, "train", model, data, "--out", tmp_path / "a", "--r", 2, *options)
    assert not (tmp_path / "a").exists() or not os.listdir(tmp_path / "a")


def test_unknown_model_and_data(assert_refused, model, data, tmp_path):
    for command in (["train", "--out", tmp_path / "a"], ["evaluate"]):
        assert_refused("unknown model 'bert-of-mine'", *command, "bert-of-mine", data)
        assert_refused("mlp-digits trains on digits", *command, "mlp-digits", data)
        assert_refused("digits is made of images", *command, model, "digits")
        assert_refused("expected a .csv, .tsv or .jsonl file", *command, model, "movies")
        assert_refused("cannot read nothing.csv", *command, model, "nothing.csv")
    argv = ["merge", "bert-of-mine", "--adapter", foreign(tmp_path / "f"), "--out", tmp_path / "m"]
    assert_refused("bert-of-mine", *argv)


def test_folders_that_hold_no_model(assert_refused, model, data, tmp_path):
    (model / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    assert_refused("no tokenizer.json in", "evaluate", model, data, "--max-length", 9)
    write_tokenizer(model / "tokenizer.json", [*WORDS, "more"])
    assert_refused("knows 13 tokens, the model only 12", "evaluate", model, data, "--max-length", 9)
    shutil.move(tmp_path / "tokenizer.json", model / "tokenizer.json")
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    assert_refused("pytorch_model.bin is a pickle", "evaluate", model, data, "--max-length", 9)
    (model / "config.json").unlink()
    (model / "pytorch_model.bin").unlink()
    assert_refused("config.json: No such file", "evaluate", model, data, "--max-length", 9)


def test_a_tokenizer_with_an_id_that_the_model_lacks(assert_refused, model, data, tmp_path):
    """Twelve words, as many as the model knows; but one of them, or the end of a text, has the number 99."""
    content = json.loads((model / "tokenizer.json").read_text())
    for change in ({"vocab": content["model"]["vocab"] | {"poor": 99}}, {}):
        changed = content | {"model": content["model"] | change}
        changed |= {} if change else {"post_processor": content["post_processor"] | {"sep": ["[SEP]", 99]}}
        (model / "tokenizer.json").write_text(json.dumps(changed))
        for command, lowest in (["train", "--out", tmp_path / "a", "--r", 2], 2), (["evaluate"], 0):  # with padding
            message = f"does not fit the model: ids must be from 0 to 11; got {lowest} to 99"
            assert_refused(message, *command, model, data, "--max-length", 9)
    assert not (tmp_path / "a").exists()


def test_data_that_cannot_be_used(assert_refused, model, tmp_path):
    for text, message in (
        ("text,label\ngood,1\nbad,1\n", "two different labels"),
        ("text,label\ngood,1\n,0\n", "x.csv, line 3: expected a text; got ''"),
        ("review,label\ngood,1\n", "expected a column `text`"),
    ):
        (tmp_path / "x.csv").write_text(text)
        assert_refused(message, "train", model, tmp_path / "x.csv", "--out", tmp_path / "a", *OPTIONS)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("kind", ["file", "foreign"])
def test_an_output_that_cannot_be_is_refused_before_any_work(run, model, data, tmp_path, kind, monkeypatch):
    out = tmp_path / "a"
    if kind == "file":
        out.write_text("mine")
    else:
        out.mkdir()
        (out / "table.csv").write_text("mine")
    monkeypatch.setattr("lorabook.tasks.prepare", None)
    code, printed, err = run("train", model, data, "--out", out)
    assert (code, printed, err.count("\n")) == (2, "", 1)
    assert {"file": "cannot write to the output folder", "foreign": "holds table.csv"}[kind] in err
    assert (out if kind == "file" else out / "table.csv").read_text() == "mine"


def test_no_folder_is_left_where_the_input_is_bad(run, model, tmp_path):
    assert run("train", model, tmp_path / "nothing.csv", "--out", tmp_path / "a")[0] == 2
    assert not (tmp_path / "a").exists()


def test_a_sweep_of_an_adapter_folder_says_what_to_do(run, run_json, model, data, tmp_path):
    run_json("train", model, data, "--out", tmp_path / "a", *OPTIONS, "--epochs", 1)
    for options in (["--model", tmp_path / "a"], ["--model", model, "--base", tmp_path / "a"]):
        code, out, err = run("sweep", *options, "--data", data, "--out", tmp_path / "s")
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert f"{tmp_path / 'a'} is an adapter folder" in err and "lorabook merge" in err and "--adapter" not in err
