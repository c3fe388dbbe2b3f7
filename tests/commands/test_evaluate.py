"""The command evaluate: any file of labelled rows, of any size; the parts of a task; what it reports."""

import json
import shutil
import threading

import numpy as np
import pytest
from checks import encoder_folder, reviews_file, tiny_bert, write_bert

from lorabook import LoRAConfig, cli, files, inject, tasks
from lorabook.adapters import save_adapter
from lorabook.backend import get_xp
from lorabook.data import digits, text_file
from lorabook.files import read_safetensors
from lorabook.models import MLP
from lorabook.tasks import SPLITS, evaluation_job, for_each


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with `model`, a bare encoder, `data.csv`, and `mine`, the adapter that was trained on them."""
    folder = tmp_path_factory.mktemp("trained")
    model, data = encoder_folder(folder / "model"), reviews_file(folder / "data.csv")
    options = ["--epochs", "30", "--batch-size", "4", "--r", "2", "--max-length", "9", "--lr", "0.01"]
    assert cli.main(["train", str(model), str(data), "--out", str(folder / "mine"), *options]) == 0
    return folder


@pytest.fixture
def mine(trained):
    return trained / "mine"


@pytest.fixture
def run_json(run):
    def call(*argv):
        code, out, err = run("evaluate", *argv, "--json")
        assert code == 0, err
        return json.loads(out)

    return call


@pytest.fixture
def refused(run):
    def call(message, *argv):
        code, out, err = run("evaluate", *argv)
        assert (code, out, err.count("\n")) == (2, "", 1), err
        assert message in err

    return call


def rows(path, *pairs):
    path.write_text("\n".join(["text,label", *(",".join(pair) for pair in pairs)]))
    return path


def test_every_number_of_a_small_file(run_json, run, mine, tmp_path):
    """Words that were learnt, so it is known what is answered."""
    data = rows(tmp_path / "x.csv", ("good", "pos"), ("fine", "neg"), ("bad", "neg"), ("poor", "neg"), ("bad", "pos"))
    found = run_json(mine, data)
    assert found["confusion"] == [[2, 1], [1, 1]]
    assert (found["rows"], found["accuracy"], found["trained"]) == (5, 3 / 5, True)
    assert found["macro_f1"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    neg, pos = found["classes"]
    assert (neg["label"], neg["rows"], neg["predicted"]) == ("neg", 3, 3)
    assert (pos["label"], pos["rows"], pos["predicted"]) == ("pos", 2, 2)
    assert (neg["precision"], neg["recall"], neg["f1"]) == pytest.approx((2 / 3, 2 / 3, 2 / 3))
    code, out, err = run("evaluate", mine, data)
    assert (code, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    assert out.startswith(f"5 rows of {data}: loss {found['loss']:.4f} nats, 60.0 % right\nmacro F1 0.5833:")
    assert "neg 3 3 0.667 0.667 0.667".split() in lines
    assert lines[-3:] == [["label", "neg", "pos"], ["-" * 15], ["neg", "2", "1"], ["pos", "1", "1"]][-3:]


@pytest.mark.parametrize("label", ["pos", "neg"])
def test_one_row_and_one_class(run_json, mine, tmp_path, label):
    found = run_json(mine, rows(tmp_path / "x.csv", ("good", label)))
    assert (found["rows"], found["accuracy"]) == (1, float(label == "pos"))
    assert found["macro_f1"] == float(label == "pos")
    three = run_json(mine, rows(tmp_path / "x.csv", *[("good", label)] * 3))
    assert three["loss"] == pytest.approx(found["loss"], rel=1e-5)


def test_parts_are_those_of_training(run_json, trained, mine):
    data, task = trained / "data.csv", text_file(trained / "data.csv")
    found = {split: run_json(mine, data, *(["--split", split] if split else [])) for split in (None, *SPLITS)}
    assert found[None] == found["all"]
    assert [found[split]["rows"] for split in ("test", "train", "all")] == [len(task.test), len(task.train), 64]
    for split, part in (("test", task.test), ("train", task.train)):
        counts = np.bincount([label for _, label in part])
        assert [row["rows"] for row in found[split]["classes"]] == counts.tolist()
    total = sum(found[split]["loss"] * found[split]["rows"] for split in ("test", "train"))
    assert total / 64 == pytest.approx(found["all"]["loss"], rel=1e-5)


def test_test_rows_that_were_trained_on_are_told(run, run_json, trained, mine, tmp_path):
    """Appended rows move none. Sorted ones do, and so do those of which the first are gone."""
    lines = (trained / "data.csv").read_text().splitlines()
    seen = {" ".join(text.split()) for text, _ in text_file(trained / "data.csv").train}
    data = tmp_path / "data.csv"

    def told(*rows):
        data.write_text("\n".join([lines[0], *rows]))
        code, _, err = run("evaluate", mine, data, "--split", "test")
        test, found = text_file(data).test, run_json(mine, data, "--split", "test")["seen_in_training"]
        assert code == 0 and found == sum(text in seen for text, _ in test)
        said = f"note: {mine} was trained on {found:,} of these {len(test):,} test rows, which makes it look better"
        assert err.startswith(said) if found else err == ""
        return found

    new = [f"film {'the ' * (n % 3)}plot {'a ' * (n // 3)},{('pos', 'neg')[n % 2]}" for n in range(12)]
    assert told(*lines[1:]) == told(*lines[1:], *new) == 0
    assert told(*sorted(lines[1:])) > 0 and told(*lines[9:]) > 0
    assert run_json(mine, data)["seen_in_training"] is None, "asked for all rows, not for test rows"
    shutil.copytree(mine, tmp_path / "peft")
    (tmp_path / "peft" / "lorabook.json").write_text((mine / "lorabook.json").read_text().replace("training_t", "t"))
    assert run_json(tmp_path / "peft", data, "--split", "test")["seen_in_training"] is None


def test_many_training_texts_are_told_by_a_sample(run, mine, tmp_path, trained, monkeypatch):
    monkeypatch.setattr("lorabook.files.records.REMEMBERED", 8)
    shutil.copytree(mine, tmp_path / "a")
    told = json.loads((mine / "lorabook.json").read_text())
    told["training_texts"] = told["training_texts"][: 8 * 12]
    (tmp_path / "a" / "lorabook.json").write_text(json.dumps(told))
    lines = (trained / "data.csv").read_text().splitlines()
    data = tmp_path / "data.csv"
    data.write_text("\n".join([lines[0], *sorted(lines[1:])]))
    err = run("evaluate", tmp_path / "a", data, "--split", "test")[2]
    assert "was trained on at least " in err and err.count("\n") == 1


def test_labels_are_numbered_as_the_model_does(run_json, run, trained, mine, tmp_path):
    """A file with some of the labels; and a split whose labels have other numbers than the model's."""
    network = tiny_bert(np.random.default_rng(0), dtype="float32")
    write_bert(tmp_path / "model", network)
    (tmp_path / "a").mkdir()
    inject(network, LoRAConfig(r=2, modules_to_save=["classifier"]))
    save_adapter(tmp_path / "a", network, str(tmp_path / "model"), "SEQ_CLS", ["z", "pos", "neg"], 9)
    found = run_json(tmp_path / "a", trained / "data.csv", "--split", "test")
    assert [row["label"] for row in found["classes"]] == ["z", "pos", "neg"]
    assert found["classes"][0]["rows"] == 0
    answers = run("predict", tmp_path / "a", trained / "data.csv", "--json")[1]
    labels = [line.split(",")[1] for line in (trained / "data.csv").read_text().splitlines()[1:]]
    right = [got["label"] == label for got, label in zip(json.loads(answers)["predictions"], labels, strict=True)]
    assert run_json(tmp_path / "a", trained / "data.csv")["accuracy"] == np.mean(right)


def test_classes_without_names_are_numbers_in_a_file(run_json, refused, trained, mine, tmp_path):
    """As in a folder that PEFT wrote."""
    shutil.copytree(mine, tmp_path / "peft")
    (tmp_path / "peft" / "lorabook.json").unlink()
    model = str(trained / "model")
    named, numbered = trained / "data.csv", tmp_path / "numbers.csv"
    lines = named.read_text().splitlines()
    cells = [line.rpartition(",") for line in lines[1:]]
    numbered.write_text("\n".join([lines[0], *(f"{text},{['neg', 'pos'].index(label)}" for text, _, label in cells)]))
    found = run_json(model, numbered, "--adapter", tmp_path / "peft")
    assert found["accuracy"] == run_json(mine, named, "--max-length", 9)["accuracy"]
    assert [row["label"] for row in found["classes"]] == ["LABEL_0", "LABEL_1"]
    refused("the model has no names for its classes: write their numbers", model, named, "--adapter", tmp_path / "peft")


def test_a_random_classifier_says_so(run, run_json, trained):
    code, out, err = run("evaluate", trained / "model", trained / "data.csv")
    said = f"the classifier of {trained / 'model'} is random: it was never trained; this is how well guessing does"
    assert (code, err) == (0, f"note: {said}\n")
    assert out.endswith(f"Note: {said}.\n")
    assert run_json(trained / "model", trained / "data.csv")["trained"] is False


def test_only_what_is_evaluated_is_tokenised(trained, mine, monkeypatch):
    seen = []
    texts = tasks.texts.Texts
    monkeypatch.setattr(tasks.texts, "Texts", lambda rows, *a: seen.extend(rows) or texts(rows, *a))
    test = evaluation_job(mine, trained / "data.csv", split="test")
    assert len(seen) == sum(len(batch["labels"]) for batch in test.batches) == len(text_file(trained / "data.csv").test)


def test_texts_that_are_cut_are_told(run, mine, tmp_path):
    code, _, err = run("evaluate", mine, rows(tmp_path / "x.csv", ("good " * 20, "pos"), ("good", "pos")))
    assert code == 0
    assert err.startswith("note: 1 of 2 texts have more than 9 tokens and were cut")


def test_many_classes_with_long_names(run, run_json, tmp_path):
    labels = [f"a rather long name, number {i}" for i in range(15)]
    network = tiny_bert(np.random.default_rng(0), labels=15, dtype="float32")
    base = write_bert(tmp_path / "model", network, {"id2label": {str(i): name for i, name in enumerate(labels)}})
    data = rows(tmp_path / "x.csv", *(("good", f'"{labels[i % 14]}"') for i in range(40)))
    code, out, err = run("evaluate", base, data)
    assert (code, err) == (0, "")
    assert "The 12 labels with most rows, of 15; --json shows all." in out
    assert "others" in out
    assert max(map(len, out.splitlines()[4:])) <= 100
    found = run_json(base, data)
    assert len(found["classes"]) == 15
    assert np.shape(found["confusion"]) == (15, 15)
    table = out.split("that they were given:\n")[1].splitlines()[2:14]
    for line, counts in zip(table, found["confusion"][:12], strict=True):
        assert sum(map(int, line.split()[-13:])) == sum(counts)


@pytest.fixture
def quick(monkeypatch):
    """mlp-digits, random instead of pretrained."""
    monkeypatch.setattr(
        tasks.digits, "pretrained_mlp", lambda task, seed: MLP((64, 12, 10), rng=np.random.default_rng(5))
    )


def test_digits(run_json, quick):
    parts = {split: run_json("mlp-digits", "digits-mirrored", "--split", split) for split in SPLITS}
    assert run_json("mlp-digits", "digits-mirrored") == parts["test"]
    assert [parts[split]["rows"] for split in SPLITS] == [599, 1198, 1797]
    task, model = digits("digits-mirrored"), MLP((64, 12, 10), rng=np.random.default_rng(5))
    for split in ("test", "train"):
        want = model.evaluate(task.part(split))
        assert (parts[split]["loss"], parts[split]["accuracy"]) == pytest.approx(want, rel=1e-5)


def test_a_digits_adapter_follows_from_its_folder(run_json, quick, tmp_path):
    model = MLP((64, 12, 10), rng=np.random.default_rng(5))
    inject(model, LoRAConfig(r=2, init_lora_weights=False), 1)
    (tmp_path / "a").mkdir()
    save_adapter(tmp_path / "a", model, "mlp-digits")
    task = digits("digits-mirrored")
    loss, _ = model.evaluate(task.part("test"))
    for argv in ((tmp_path / "a", "digits-mirrored"), ("mlp-digits", "digits-mirrored", "--adapter", tmp_path / "a")):
        assert run_json(*argv)["loss"] == pytest.approx(loss, rel=1e-4)


def test_what_cannot_be_evaluated(refused, trained, mine, tmp_path):
    one = rows(tmp_path / "one.csv", ("good", "pos"), ("bad", "pos"))
    other = rows(tmp_path / "other.csv", ("good", "pos"), ("bad", "bad"), ("bad", "worse"))
    refused(f"{other}, line 3: the label 'bad' is none of ['neg', 'pos']", mine, other)
    refused(f"{other}, line 3: the label 'bad' is none of ['neg', 'pos']", mine, other, "--split", "train")
    refused("all labels are 'pos', and", trained / "model", one)
    refused("expected two different labels", mine, one, "--split", "test")
    refused("the label 'negative' is none of", mine, "movie-reviews")
    refused("is an adapter folder; expected the model under it", mine, one, "--adapter", mine)
    refused("digits is made of images", mine, "digits")
    refused("mlp-digits trains on digits", "mlp-digits", one)
    refused("holds no rows", mine, rows(tmp_path / "none.csv"))
    refused("invalid choice: 'dev'", mine, one, "--split", "dev")


def test_factors_whose_product_overflows_are_one_line(run, trained, mine, tmp_path):
    """They are numbers, and so are finite; their product is not. No warning of NumPy stands before the line."""
    shutil.copytree(mine, tmp_path / "a")
    arrays, _ = read_safetensors(mine / "adapter_model.safetensors")
    large = {name: np.full_like(array, 1e30) if ".lora_" in name else array for name, array in arrays.items()}
    files.write_safetensors(tmp_path / "a" / "adapter_model.safetensors", large)
    for argv in (
        ["evaluate", tmp_path / "a", trained / "data.csv"],
        ["predict", tmp_path / "a", "--text", "good", "--json"],
        ["train", trained / "model", trained / "data.csv", "--adapter", tmp_path / "a", "--out", tmp_path / "b"],
    ):
        code, out, err = run(*argv)
        assert (code, out) == (1, "")
        assert "RuntimeWarning" not in err and err.splitlines()[-1].startswith(f"lorabook {argv[0]}: ")
    assert not [*(tmp_path / "b").iterdir()]


def test_an_answer_that_is_no_number(run, trained, mine, monkeypatch):
    def broken(*argv, **options):
        test = make(*argv, **options)
        test.model.named_params()["classifier.bias"][...] = np.nan
        return test

    make = tasks.evaluation_job
    monkeypatch.setattr(tasks, "evaluation_job", broken)
    code, out, err = run("evaluate", mine, trained / "data.csv")
    assert (code, out) == (1, "")
    assert "the model answers NaN or Inf" in err


@pytest.mark.parametrize(("backend", "threads"), [("numpy", 2), ("array_api_strict", 1)])
def test_a_device_takes_one_batch_after_another(backend, threads):
    model = MLP((4, 3), rng=np.random.default_rng(0)).to(get_xp(backend))
    both = threading.Barrier(threads, timeout=60)

    def name(batch, run):
        both.wait()  # as many at once as are to be
        return threading.current_thread().name

    names = for_each([{"x": np.zeros((2, 4), "f4")}] * 4, model, name, workers=2)
    assert len(names) == 4 and len({*names}) == threads
    assert (threading.current_thread().name in names) == (threads == 1)
