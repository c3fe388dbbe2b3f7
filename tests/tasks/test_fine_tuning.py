"""`lorabook train` beyond the steps: validation rows, the best weights, an adapter trained further, what is said."""

import json
import math
import os
import re
import shutil

import numpy as np
import pytest
from checks import tiny_bert, write_bert

from lorabook import InputError, files
from lorabook.data import Batches
from lorabook.files import read_csv
from lorabook.models import BertForSequenceClassification
from lorabook.tasks import hardly_learned, prepare, task_of

FAST = ["--batch-size", 8, "--r", 2, "--lr", 0.01]
SHORT = [*FAST, "--epochs", 4]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with a bare encoder."""
    network = tiny_bert(np.random.default_rng(0), dtype="float32")
    tensors = {"classifier.weight": None, "classifier.bias": None}
    return write_bert(tmp_path_factory.mktemp("models") / "model", network, tensors=tensors)


def texts(path, n, seed=1, labels=("pos", "neg")):
    """A file of n different texts of one to six words, each of which tells the label."""
    rng, rows = np.random.default_rng(seed), {}
    while len(rows) < n:
        i = len(rows) % 2
        rows[" ".join(rng.choice((("good", "fine"), ("bad", "poor"))[i], rng.integers(1, 7)))] = labels[i]
    path.write_text("\n".join(["text,label", *(f"{text},{label}" for text, label in rows.items())]) + "\n")
    return path


@pytest.fixture
def data(tmp_path):
    return texts(tmp_path / "data.csv", 64)


def history(folder):
    return read_csv(folder / "history.csv")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ---- evaluation while training ---------------------------------------------------------------------------------------


def test_a_validation_file_changes_no_bit_of_the_training(run_json, model, data, tmp_path):
    valid = texts(tmp_path / "valid.csv", 11, seed=2)
    plain = run_json("train", model, data, "--out", tmp_path / "a", *SHORT)
    watched = run_json("train", model, data, "--out", tmp_path / "b", *SHORT, "--eval-data", valid, "--eval-every", 5)
    assert watched["adapter_sha256"] == plain["adapter_sha256"]
    assert watched["test_loss"] == plain["test_loss"]
    steps, rows = plain["steps"], history(tmp_path / "b")
    assert "eval_loss" not in history(tmp_path / "a")[0]
    assert [row["eval_loss"] is not None for row in rows] == [(i + 1) % 5 == 0 or i + 1 == steps for i in range(steps)]
    after = run_json("evaluate", tmp_path / "b", valid)
    assert after["rows"] == 11
    assert (rows[-1]["eval_loss"], rows[-1]["eval_accuracy"]) == pytest.approx((after["loss"], after["accuracy"]), 1e-4)
    assert f"on 11 rows of {valid}; the test rows stay unseen" in " ".join(watched["notes"])


def ids_of(batches):
    """The ids of every text, without padding."""
    rows = (row for batch in batches for row in zip(batch["input_ids"], batch["attention_mask"], strict=True))
    return {tuple(ids[mask == 1].tolist()) for ids, mask in rows}


def test_the_best_weights_are_saved_and_the_rows_that_chose_them_are_no_test_rows(run_json, model, data, tmp_path):
    options = ["--batch-size", 4, "--r", 2, "--lr", 0.05, "--epochs", 12, "--lr-schedule", "constant"]
    options += ["--seed", 1]
    result = run_json("train", model, data, "--out", tmp_path / "a", *options, "--keep", "best", "--eval-every", 3)
    rows = history(tmp_path / "a")
    losses = {row["step"] + 1: row["eval_loss"] for row in rows if row["eval_loss"] is not None}
    assert result["kept_step"] == min(losses, key=losses.get) < result["steps"], "the last is the best: no test"
    plan = prepare(str(model), str(data), keep="best", r=2)
    assert sum(len(batch["labels"]) for batch in plan.job.test) == 16
    assert len(rows) / 12 == plan.job.batches.n // 4
    seen = {tuple(ids.tolist()) for ids in plan.job.batches.examples.ids}
    held_out, tested = ids_of(plan.job.validation), ids_of(plan.job.test)
    assert len(seen) + len(held_out) + len(tested) == len(seen | held_out | tested) == 64

    stopped = run_json(
        "train", model, data, "--out", tmp_path / "b", *options, "--eval-every", 3
    )  # the same run, whose last weights are kept
    assert stopped["kept_step"] == stopped["steps"]
    assert stopped["adapter_sha256"] != result["adapter_sha256"]
    arrays, _ = files.read_checkpoint(tmp_path / "a" / "checkpoint.safetensors")
    saved, _ = files.read_safetensors(tmp_path / "a" / "adapter_model.safetensors")
    name = "bert.encoder.layer.0.attention.self.query.lora_B"
    np.testing.assert_array_equal(saved[f"base_model.model.{name}.weight"], arrays[f"best:{name}"])
    last, _ = files.read_checkpoint(tmp_path / "b" / "checkpoint.safetensors")
    np.testing.assert_array_equal(arrays[f"param:{name}"], last[f"param:{name}"])


@pytest.mark.parametrize("stop", [9, 23, 31])
def test_a_run_that_keeps_the_best_resumes_bit_for_bit(run, run_json, model, data, tmp_path, monkeypatch, stop):
    train = ["train", model, data, "--batch-size", 4, "--r", 2, "--lr", 0.05, "--epochs", 4, "--lora-dropout", 0.2]
    train += ["--checkpoint-every", 5, "--keep", "best", "--eval-every", 4]
    whole = run_json(*train, "--out", tmp_path / "whole")
    steps, loss_and_grad = [], BertForSequenceClassification.loss_and_grad

    def stops(self, *batch):
        steps.append(len(steps))
        if len(steps) == stop:
            raise KeyboardInterrupt
        return loss_and_grad(self, *batch)

    monkeypatch.setattr(BertForSequenceClassification, "loss_and_grad", stops)
    assert run(*train, "--out", tmp_path / "part")[0] == 130
    again = run_json(*train, "--out", tmp_path / "part", "--resume")
    assert {**again, "out": 0} == {**whole, "out": 0}
    assert contents(tmp_path / "part") == contents(tmp_path / "whole")


def test_labels_of_a_validation_file_must_be_known(assert_refused, run_json, model, data, tmp_path):
    valid = tmp_path / "valid.csv"
    valid.write_text("text,label\ngood film,pos\nbad film,meh\n")
    message = f"{valid}, line 3: the label 'meh' is none of ['neg', 'pos']"
    assert_refused(message, "train", model, data, "--out", tmp_path / "a", *SHORT, "--eval-data", valid)
    valid.write_text("text,label\ngood film,pos\n")  # one row, one label
    assert run_json("train", model, data, "--out", tmp_path / "a", *SHORT, "--eval-data", valid)["steps"] > 0
    assert {row["eval_accuracy"] for row in history(tmp_path / "a")} <= {None, 0, 1}


def test_resume_with_another_validation_file_is_refused_in_words(assert_refused, run_json, model, data, tmp_path):
    valid = texts(tmp_path / "valid.csv", 11, seed=2)
    train = ["train", model, data, "--out", tmp_path / "a", *SHORT, "--eval-data", valid]
    run_json(*train)
    texts(valid, 12, seed=2)
    assert_refused("the validation rows changed: 11 then, 12 now (sha256 ", *train, "--resume")


@pytest.mark.parametrize(("epochs", "every"), [(3, 1), (20, 1), (21, 2), (100, 5)])
def test_evaluations_come_after_whole_epochs_and_are_not_many(model, data, epochs, every):
    plan = prepare(str(model), str(data), epochs=epochs, keep="best", r=2)
    assert plan.evaluation.every == every * len(plan.job.batches)


# ---- an adapter trained further --------------------------------------------------------------------------------------


@pytest.fixture
def first(run_json, model, data, tmp_path):
    run_json(
        "train",
        model,
        data,
        "--out",
        tmp_path / "first",
        "--r",
        2,
        "--batch-size",
        4,
        "--lr",
        0.03,
        "--epochs",
        25,
        "--max-length",
        7,
        "--target-modules",
        "value",
        "--seed",
        1,
    )
    return tmp_path / "first"


def test_an_adapter_goes_on_where_it_was(run_json, model, data, first, tmp_path):
    before, more = contents(first), texts(tmp_path / "more.csv", 40, seed=3)
    went_on = run_json("train", model, more, "--adapter", first, "--out", tmp_path / "second", *FAST, "--epochs", 8)
    fresh = run_json("train", model, more, "--out", tmp_path / "fresh", *FAST, "--epochs", 8)
    assert went_on["test_loss"]["before"] == pytest.approx(
        run_json("evaluate", first, more, "--split", "test")["loss"], rel=1e-5
    )
    assert went_on["test_loss"]["before"] < 0.9 * fresh["test_loss"]["before"]
    told, own = (json.loads((f / "adapter_config.json").read_text()) for f in (first, tmp_path / "second"))
    assert told == own and own["r"] == 2 and own["target_modules"] == ["value"]
    told, own = (json.loads((f / "lorabook.json").read_text()) for f in (first, tmp_path / "second"))
    assert told.pop("training_texts") != own.pop("training_texts")
    assert told == own and own["max_length"] == 7
    assert contents(first) == before
    one, _ = files.read_safetensors(first / "adapter_model.safetensors")
    two, _ = files.read_safetensors(tmp_path / "second" / "adapter_model.safetensors")
    assert one.keys() == two.keys()
    assert [name for name in one if np.array_equal(one[name], two[name])] == []


def test_data_of_some_labels_in_another_order_keep_their_numbers(run_json, tmp_path, model):
    data = tmp_path / "three.csv"
    rows = [f"{word} {' '.join(['film'] * n)},{label}" for n in range(1, 8) for word, label in
            (("good", "c"), ("bad", "a"), ("poor", "b"))]  # fmt: skip
    data.write_text("\n".join(["text,label", *rows]))
    run_json("train", model, data, "--out", tmp_path / "first", *FAST, "--epochs", 200)
    data.write_text("\n".join(["text,label", *(row for row in rows if not row.endswith("a"))]))
    result = run_json("train", model, data, "--adapter", tmp_path / "first", "--out", tmp_path / "b", *SHORT)
    assert json.loads((tmp_path / "b" / "lorabook.json").read_text())["labels"] == ["a", "b", "c"]
    assert result["test_accuracy"]["before"] > 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--r", 4], "--r 4 contradicts the adapter in {}, which has 2; leave --r out, or train a new adapter"),
        (["--lora-alpha", 8], "--lora-alpha 8 contradicts the adapter in {}, which has 16"),
        (["--lora-dropout", 0.1], "--lora-dropout 0.1 contradicts the adapter in {}, which has 0"),
        (["--use-rslora"], "--use-rslora True contradicts the adapter in {}, which has False"),
        (["--target-modules", "query"], "--target-modules query contradicts the adapter in {}, which has value"),
        (["--max-length", 9], "--max-length 9 contradicts the adapter in {}, which has 7"),
    ],
)
def test_what_contradicts_the_adapter_is_refused_by_name(
    assert_refused, model, data, first, tmp_path, options, message
):
    more = ["--adapter", first, "--out", tmp_path / "b", "--epochs", 1, *options]
    assert_refused(message.format(first), "train", model, data, *more)
    assert not (tmp_path / "b").exists()


def test_what_agrees_with_the_adapter_may_be_said(run_json, model, data, first, tmp_path):
    same = ["--r", 2, "--lora-alpha", 16, "--lora-dropout", 0, "--target-modules", "value", "--max-length", 7]
    assert run_json("train", model, data, "--adapter", first, "--out", tmp_path / "b", *same, "--epochs", 1)["steps"]


def test_an_adapter_of_other_labels_or_weights_is_not_trained_further(assert_refused, model, data, first, tmp_path):
    options = ["--adapter", first, "--out", tmp_path / "b", "--epochs", 1]
    other = texts(tmp_path / "other.csv", 20, labels=("pos", "bad"))
    assert_refused(f"{other}, line 3: the label 'bad' is none of ['neg', 'pos']", "train", model, other, *options)
    network = tiny_bert(np.random.default_rng(1), dtype="float32")
    foreign = write_bert(tmp_path / "foreign", network, tensors={"classifier.weight": None, "classifier.bias": None})
    assert_refused("other base weights", "train", foreign, data, *options)
    assert_refused("name the model under it, and", "train", first, data, "--out", tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_run_that_trains_an_adapter_further_resumes(run, run_json, assert_refused, model, data, first, tmp_path):
    train = ["train", model, data, "--adapter", first, "--out", tmp_path / "b", "--epochs", 2]
    done = run_json(*train)
    before = contents(tmp_path / "b")
    assert run_json(*train, "--resume")["adapter_sha256"] == done["adapter_sha256"]
    assert contents(tmp_path / "b") == before
    del train[3:5]
    options = ["--r", 2, "--target-modules", "value", "--max-length", 7, "--resume"]
    assert_refused("is of another run: its continued_adapter.sha256 is ", *train, *options)
    shutil.copytree(first, tmp_path / "changed")
    path = tmp_path / "changed" / "adapter_model.safetensors"
    arrays, metadata = files.read_safetensors(path)
    files.write_safetensors(path, {name: array + 1 for name, array in arrays.items()}, metadata)
    train[3:3] = ["--adapter", tmp_path / "changed", "--resume"]
    assert_refused("is of another run: the continued adapter changed (sha256 ", *train)


# ---- resume ----------------------------------------------------------------------------------------------------------


def test_the_same_base_may_be_spelled_in_another_way(run, model, data, tmp_path, monkeypatch):
    shutil.copytree(model, tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    os.symlink(tmp_path / "model", "link")
    assert run("train", "model", "data.csv", "--out", "a", *SHORT)[0] == 0
    for spelling in ("./model", "model/", "link", tmp_path / "model", "../" + tmp_path.name + "/model"):
        code, _, err = run("train", spelling, "data.csv", "--out", "a", *SHORT, "--resume")
        assert code == 0 and err.startswith("continuing at step "), err
    network = tiny_bert(np.random.default_rng(1), dtype="float32")
    write_bert(tmp_path / "model", network, tensors={"classifier.weight": None, "classifier.bias": None})
    code, _, err = run("train", "model", "data.csv", "--out", "a", *SHORT, "--resume")
    assert code == 2 and "is of another run: the base weights changed (sha256 " in err and err.count("\n") == 1


def test_other_data_and_other_lengths_are_named(assert_refused, run_json, model, data, tmp_path):
    train = ["train", model, data, "--out", tmp_path / "a", *SHORT, "--resume"]
    run_json(*train)
    assert_refused("its max_length is 9, here it is 8", *train, "--max-length", 8)
    rows = data.read_text()
    data.write_text(rows + "".join(f"good film {'plot ' * n},pos\n" for n in range(4)))
    assert_refused("the training rows changed: 48 then, 51 now (sha256 ", *train)
    data.write_text(rows.replace("neg", "negative"))
    assert_refused("its labels is ['neg', 'pos'], here it is ['negative', 'pos']", *train)
    data.write_text(rows)
    run_json(*train)


def test_what_was_trained_is_saved_before_anything_else_can_fail(run, model, data, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError("no space left on this machine")

    monkeypatch.setattr("lorabook.commands.train.memory_table", full)
    monkeypatch.setattr("lorabook.tasks.hardly_learned", full)
    code, out, err = run("train", model, data, "--out", tmp_path / "a", *SHORT)
    assert (code, out) == (1, "") and "no space left" in err
    assert {"adapter_model.safetensors", "adapter_config.json", "history.csv"} <= {*os.listdir(tmp_path / "a")}


# ---- what is said ----------------------------------------------------------------------------------------------------


def test_texts_that_are_cut_are_told_and_kept_in_the_history(run, run_json, model, data, tmp_path):
    code, _, err = run("train", model, data, "--out", tmp_path / "a", *SHORT, "--max-length", 5)
    assert code == 0
    plan, note, *_ = err.splitlines()
    assert plan.startswith("24 steps: 48 training rows in batches of 8, 4 epochs of 6 steps")
    assert note.startswith("note: ") and "texts have more than 5 tokens and were cut" in note
    assert f"# {note.removeprefix('note: ')}\n" in (tmp_path / "a" / "history.csv").read_text()
    assert len(history(tmp_path / "a")) == 24
    notes = run_json("train", model, data, "--out", tmp_path / "b", *SHORT, "--max-length", 5)["notes"]
    assert note.removeprefix("note: ") in notes


@pytest.mark.parametrize(
    ("rows", "size"), [(1, 1), (3, 3), (4, 4), (15, 4), (40, 5), (112, 14), (255, 31), (256, 32), (8000, 32)]
)
def test_the_default_batch_of_a_small_file_is_small(rows, size):
    assert task_of("minilm").batch_size_for(rows) == size
    assert task_of("mlp-digits").batch_size_for(1198) == 64


@pytest.mark.parametrize(("steps", "epochs"), [(1, 200), (3, 67), (8, 25), (99, 3), (100, 2), (250, 2)])
def test_the_default_run_has_two_epochs_and_two_hundred_steps(steps, epochs):
    assert task_of("minilm").epochs_for(range(steps)) == epochs
    assert task_of("mlp-digits").epochs_for(range(18)) == 60


def test_a_run_without_options_has_steps_enough(model, tmp_path):
    plan = prepare(str(model), str(texts(tmp_path / "small.csv", 20)), r=2)
    assert plan.job.batches.batch_size == 4
    assert 200 <= plan.epochs * len(plan.job.batches) < 200 + len(plan.job.batches)


def test_a_run_that_was_too_short_says_so(run, run_json, model, data, tmp_path):
    short = ["--r", 2, "--batch-size", 24, "--epochs", 2, "--lr", 1e-5]
    code, _, err = run("train", model, data, "--out", tmp_path / "a", *short)
    last = err.splitlines()[-1]
    assert code == 0 and last.startswith("note: hardly anything was learned: the loss of the last epoch is 0.")
    assert last.endswith("the shares of the labels has 0.693; 4 steps are few; try --epochs 100")
    enough = ["--r", 2, "--batch-size", 4, "--epochs", 100, "--lr", 0.02]  # six seeds: 15 or 16 of 16 right
    result = run_json("train", model, data, "--out", tmp_path / "b", *enough)
    assert result["test_accuracy"]["after"] > 0.9
    assert not any("hardly" in note for note in result["notes"])


@pytest.mark.parametrize(
    ("loss", "steps", "words"),
    [
        (
            0.57,
            6,
            "0.570 nats, and answering with the shares of the labels has 0.562; 6 steps are few; try --epochs 100",
        ),
        (0.51, 6, "0.510 nats"),
        (0.50, 6, None),
        (0.51, 200, "0.510 nats, .*; try another --lr, more --epochs, or a larger --r"),
    ],
)
def test_the_rule_is_nine_tenths_of_the_entropy_of_the_labels(loss, steps, words):
    """Three quarters of the rows have one label: 0.562 nats, and nine tenths are 0.506."""
    batches = Batches({"x": np.zeros((8, 1), "f4"), "labels": np.array([0, 0, 0, 0, 0, 0, 1, 1])}, 4)
    rows = [{"loss": 0.0}] * (steps - 2) + [{"loss": loss - 0.1}, {"loss": loss + 0.1}]
    said = hardly_learned(rows, batches)
    if words is None:
        assert said is None
    else:
        assert re.search(words, said)


def test_labels_that_are_all_the_same_are_no_reason_to_complain():
    batches = Batches({"x": np.zeros((8, 1), "f4"), "labels": np.zeros(8, int)}, 4)
    assert hardly_learned([{"loss": math.log(2)}] * 4, batches) is None


def test_batches_know_how_many_rows_they_have(rng):
    assert Batches({"x": rng.standard_normal((9, 2)), "labels": np.zeros(9, int)}, 4).n == 9
    texts = type("", (), {"n": 3, "lengths": np.array([1, 2, 1])})
    assert Batches(texts, 2).n == 3


def test_eval_data_is_refused_for_digits():
    with pytest.raises(InputError, match=r"mlp-digits holds its validation rows out of .*; got the file x\.csv"):
        prepare("mlp-digits", "digits", eval_data="x.csv")
