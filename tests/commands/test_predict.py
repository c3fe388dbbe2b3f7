"""predict, in Python and on the command line: a tiny BERT and its adapter, as `train` writes it."""

import contextlib
import csv
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from checks import WORDS, encoder_folder, reviews_file, tiny_bert, tiny_config, write_bert

from lorabook import InputError, LoRAConfig, NonFiniteError, Prediction, cli, inject, load_model, predict
from lorabook.adapters import adapters, merge, save_adapter, unload
from lorabook.data import windows
from lorabook.tasks import predictions

TEXTS = ["good", "the bad film", "a poor plot", "fine fine fine", "the", "a film the plot a film the", "bad good"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with `model`, a bare encoder, `data.csv`, and `runs/mine`, the adapter that was trained on them."""
    folder = tmp_path_factory.mktemp("trained")
    model, data = encoder_folder(folder / "model"), reviews_file(folder / "data.csv")
    options = ["--epochs", "30", "--batch-size", "4", "--r", "2", "--max-length", "9", "--lr", "0.01"]
    assert cli.main(["train", str(model), str(data), "--out", str(folder / "runs" / "mine"), *options]) == 0
    return folder


@pytest.fixture(scope="module")
def mine(trained):
    return trained / "runs" / "mine"


@pytest.fixture(scope="module")
def model(mine):
    return load_model(mine)


@pytest.fixture
def texts(tmp_path):
    """A .csv file of TEXTS."""
    (tmp_path / "texts.csv").write_text("\n".join(["id,text", *(f"{i},{text}" for i, text in enumerate(TEXTS))]))
    return tmp_path / "texts.csv"


@pytest.fixture
def typed(monkeypatch):
    """Text as standard input of this process."""

    def call(text, encoding="utf-8"):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode(encoding))))

    return call


def rows_of(text):
    return list(csv.DictReader(io.StringIO(text)))


# ---- in Python -------------------------------------------------------------------------------------------------------


def test_answers_are_the_softmax_of_the_logits(model):
    for text, answer in zip(TEXTS, predict(model, TEXTS), strict=True):
        ids = np.array([model.about.tokenizer.encode(text).ids])
        logits = model.predict({"input_ids": ids})[0].astype("f8")
        p = np.exp(logits) / np.exp(logits).sum()
        assert isinstance(answer, Prediction)
        assert list(answer.probabilities) == ["neg", "pos"]
        np.testing.assert_allclose([*answer.probabilities.values()], p, atol=1e-6)
        assert sum(answer.probabilities.values()) == pytest.approx(1, abs=1e-12)
        assert answer.label == ("neg", "pos")[p.argmax()]
        assert answer.probability == answer.probabilities[answer.label] == max(answer.probabilities.values())


def test_of_equal_probabilities_the_first_label_is_taken():
    answer = Prediction.of(["a", "b", "c"], np.array([0.2, 0.4, 0.4]))
    assert answer == Prediction("b", 0.4, {"a": 0.2, "b": 0.4, "c": 0.4})
    assert str(answer) == "b (40.0 %)" and str(Prediction("a\n\x1b[2J", 1.0, {})) == "a\\n\\x1b[2J (100.0 %)"


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
@pytest.mark.parametrize("workers", [1, 3])
def test_a_text_alone_and_in_any_batch_has_the_same_answer(model, batch_size, workers):
    alone = [predict(model, [text], workers=1)[0] for text in TEXTS]
    together = predict(model, TEXTS, batch_size=batch_size, workers=workers)
    for one, other in zip(alone, together, strict=True):
        assert one.label == other.label
        assert one.probability == pytest.approx(other.probability, abs=1e-5)


def test_an_adapter_merged_or_not(mine, model):
    want = predict(model, TEXTS)
    other = load_model(mine)
    assert adapters(other)
    merge(other)
    unload(other)
    for one, two in zip(want, predict(other, TEXTS), strict=True):
        assert one.probability == pytest.approx(two.probability, abs=1e-5)


def test_windows_are_answered_one_by_one(model):
    asked = []

    def source():
        for text in TEXTS[:3]:
            asked.append(text)
            yield [text]

    for i, (texts, rows, cut) in enumerate(predictions.answers(model, source(), workers=1), 1):
        assert asked == TEXTS[:i]
        assert (texts, rows.shape, cut) == ([TEXTS[i - 1]], (1, 2), 0)


def test_texts_that_are_too_long_are_counted(model):
    [(_, _, cut)] = predictions.answers(model, [["a", "a " * 7, "a " * 8, "a " * 50]], workers=1)
    assert cut == 2  # nine positions, of which [CLS] and [SEP] take two


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("good", r"got the text 'good': pass \[text\]"),
        (["good", " "], "text number 2: expected a text; got ' '"),
        (["good", None], "text number 2: expected a text; got None"),
        ([b"good"], "text number 1"),
        (["good \ud800"], "text number 1: half of a surrogate pair"),
    ],
    ids=str,
)
def test_what_is_no_text(model, texts, message):
    with pytest.raises(InputError, match=message):
        predict(model, texts)


def test_no_texts_have_no_answers(model):
    assert predict(model, []) == []


@pytest.mark.parametrize("batch_size", [0, 1.5, "8", True])
def test_batch_sizes_that_are_none(model, batch_size):
    with pytest.raises(InputError, match="batch_size must be an integer"):
        predict(model, TEXTS, batch_size=batch_size)


def test_a_model_that_cannot_read():
    with pytest.raises(InputError, match=r"no tokenizer .* lorabook.load_model"):
        predict(tiny_bert(np.random.default_rng(0)), ["good"])


def test_an_answer_that_is_no_number(mine):
    model = load_model(mine)
    model.named_params()["classifier.bias"][...] = np.nan
    with pytest.raises(NonFiniteError, match=r"mine answers NaN or Inf to 'good'"):
        predict(model, ["good"])


# ---- which model, and what is known of it ----------------------------------------------------------------------------


def test_everything_follows_from_the_adapter_folder(trained, mine, model):
    about = model.about
    assert (about.name, about.labels, about.max_length, about.trained) == (str(mine), ("neg", "pos"), 9, True)
    both = load_model(trained / "model", mine)
    assert both.about.labels == about.labels
    assert both.about.max_length == 9
    assert load_model(mine, max_length=5).about.max_length == 5
    assert predict(both, TEXTS) == predict(model, TEXTS)


def test_a_merged_folder_needs_no_adapter(run, mine, trained, model, tmp_path):
    assert run("merge", trained / "model", "--adapter", mine, "--out", tmp_path / "merged")[0] == 0
    merged = load_model(tmp_path / "merged")
    assert merged.about.labels == ("neg", "pos")
    for one, two in zip(predict(model, TEXTS), predict(merged, TEXTS), strict=True):
        assert one.probability == pytest.approx(two.probability, abs=1e-5)


def foreign(folder, base, saved=("classifier",)):
    """An adapter of three classes as another program writes it: without lorabook.json."""
    network = tiny_bert(np.random.default_rng(0), dtype="float32")
    inject(network, LoRAConfig(r=2, modules_to_save=saved))
    folder.mkdir()
    save_adapter(folder, network, base, "SEQ_CLS" if saved else None)
    (folder / "lorabook.json").unlink()
    return folder


def test_an_adapter_of_another_program_has_labels_by_number(tmp_path):
    base = encoder_folder(tmp_path / "model")
    model = load_model(foreign(tmp_path / "a", str(base)))
    assert model.about.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    (base / "config.json").write_text(json.dumps(tiny_config(id2label={"0": "x", "1": "y", "2": "z"})))
    assert load_model(tmp_path / "a").about.labels == ("x", "y", "z")


def test_a_tokenizer_in_the_adapter_folder_counts(tmp_path):
    base = encoder_folder(tmp_path / "model")
    adapter = foreign(tmp_path / "a", str(base))
    content = json.loads((base / "tokenizer.json").read_text())
    content["model"]["vocab"]["superb"] = content["model"]["vocab"].pop("good")
    (adapter / "tokenizer.json").write_text(json.dumps(content))
    assert load_model(adapter).about.tokenizer.encode("superb").ids == [2, WORDS.index("good"), 3]


@pytest.mark.parametrize("saved", [(), ("classifier",)], ids=["no classifier", "classifier"])
def test_labels_for_a_classifier_that_is_still_to_be_trained(tmp_path, saved):
    base = encoder_folder(tmp_path / "model")
    if saved:
        write_bert(base, tiny_bert(np.random.default_rng(0), dtype="float32"))
        assert load_model(base).about.trained
        assert load_model(base, labels=["a", "b", "c"]).about.labels == ("a", "b", "c")
        with pytest.raises(InputError, match="trained on the labels"):
            load_model(base, labels=["a", "b"])
    else:
        for labels in ("ab", [], ["a", "a"]):
            with pytest.raises(InputError, match="labels must be a list of different names"):
                load_model(base, labels=labels)
        for length in (0, 1, 10, 3.5, "9", True):
            with pytest.raises(InputError, match="max_length must be an integer from 2 to 9"):
                load_model(base, labels=["a", "b"], max_length=length)
        model = load_model(base, labels=["a", "b"], seed=3)
        assert (model.about.labels, model.about.trained) == (("a", "b"), False)
        again, other = load_model(base, labels=["a", "b"], seed=3), load_model(base, labels=["a", "b"], seed=4)
        weights = [m.named_params()["classifier.weight"] for m in (model, again, other)]
        np.testing.assert_array_equal(weights[0], weights[1])
        assert not np.array_equal(weights[0], weights[2])


def test_models_that_cannot_answer(run, trained, mine, tmp_path):
    base = encoder_folder(tmp_path / "model")
    lost = foreign(tmp_path / "lost", str(tmp_path / "moved"))
    nameless = foreign(tmp_path / "nameless", None)
    for argv, message in (
        ([base], f"{base} has no trained classifier"),
        ([foreign(tmp_path / "bare", str(base), ())], "bare has no trained classifier"),
        ([lost], f"unknown model '{tmp_path / 'moved'}'"),
        ([lost], f"{lost} was trained on it: give its place now, and {lost} as its adapter"),
        ([nameless], "does not say what it was trained on"),
        ([mine, "--adapter", mine], f"{mine} is an adapter folder; expected the model under it"),
        (["bert-of-mine"], "unknown model 'bert-of-mine'"),
        ([base, "--adapter", tmp_path / "nothing"], "expected a PEFT adapter folder"),
        ([mine, "--max-length", 10], "max_length must be an integer from 2 to 9"),
        ([mine, "--max-length", 1], "expected an integer from 2"),
        ([mine, "--batch-size", 0], "expected an integer from 1"),
    ):
        code, out, err = run("predict", *argv, "--text", "good")
        assert code == 2, (argv, err)
        assert message in err
        assert err.count("\n") == 1
        assert "good" not in out


def test_an_adapter_on_another_base(run, mine, tmp_path):
    other = write_bert(tmp_path / "other", tiny_bert(np.random.default_rng(7), labels=2, dtype="float32"))
    code, out, err = run("predict", other, "--adapter", mine, "--text", "good")
    assert (code, out) == (2, "")
    assert "other base weights" in err


def test_labels_that_do_not_fit_the_classifier(run, mine, trained, tmp_path):
    adapter = tmp_path / "a"
    adapter.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (adapter / name).write_bytes((mine / name).read_bytes())
    for labels, message in (
        (["a", "b", "c"], "3 labels for a classifier of 2 classes"),
        (["a", "a"], "two classes have the same label"),
    ):
        content = json.loads((mine / "lorabook.json").read_text()) | {"labels": labels}
        (adapter / "lorabook.json").write_text(json.dumps(content))
        code, _, err = run("predict", adapter, "--text", "good")
        assert code == 2 and message in err


# ---- the command: texts in, answers out ------------------------------------------------------------------------------


def test_texts_of_the_command_line(run, mine, model):
    code, out, err = run("predict", mine, "--text", "good", "the bad, bad film", "--text", "fine")
    assert (code, err) == (0, "")
    rows, want = rows_of(out), predict(model, ["good", "the bad, bad film", "fine"])
    assert [row["text"] for row in rows] == ["good", "the bad, bad film", "fine"]
    for row, answer in zip(rows, want, strict=True):
        assert list(row) == ["text", "label", "probability", "p(neg)", "p(pos)"]
        assert row["label"] == answer.label
        assert float(row["probability"]) == pytest.approx(answer.probability, rel=1e-5)
        assert float(row["p(pos)"]) == pytest.approx(answer.probabilities["pos"], rel=1e-5)


def test_one_json_object(run, mine, model):
    code, out, _ = run("predict", mine, "--text", *TEXTS, "--json")
    found = json.loads(out)
    assert (code, found["labels"]) == (0, ["neg", "pos"])
    for text, got, answer in zip(TEXTS, found["predictions"], predict(model, TEXTS), strict=True):
        assert (got["text"], got["label"]) == (text, answer.label)
        assert got["probability"] == got["probabilities"][answer.label]
        assert got["probabilities"] == pytest.approx(answer.probabilities, rel=1e-5)


def test_lines_of_a_terminal(run, mine, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "40")
    code, out, _ = run("predict", mine, "--text", "good", "a  film\n" * 20)
    assert code == 0
    first, second = out.splitlines()
    assert first.split() == ["pos", first.split()[1], "good"]
    assert first.split()[1].endswith("%")
    assert second.endswith("a film a film…") or second.endswith("…")
    assert len(second) <= 40


KINDS = {
    "csv": "id,text\n" + "\n".join(f"{i},{text}" for i, text in enumerate(TEXTS)),
    "CSV": "text\r\n" + "\r\n".join(TEXTS),
    "tsv": "text\tid\n" + "\n".join(f"{text}\t{i}" for i, text in enumerate(TEXTS)),
    "jsonl": "\n".join(json.dumps({"id": i, "text": text}) for i, text in enumerate(TEXTS)),
    "txt": "\n".join(TEXTS),
    "stdin": "\n".join(TEXTS) + "\n",
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("out", ["stdout", "a.csv", "a.JSONL"])
def test_answers_are_in_the_order_of_the_input(run, typed, mine, model, tmp_path, kind, out, monkeypatch):
    monkeypatch.setattr(windows, "WINDOW", 3)
    path = tmp_path / f"texts.{kind}"
    path.write_bytes(KINDS[kind].encode())
    typed(KINDS[kind])
    target = [] if out == "stdout" else ["--out", tmp_path / "new" / out]
    code, printed, err = run("predict", mine, "-" if kind == "stdin" else path, "--batch-size", 2, *target)
    assert (code, err) == (0, "")
    if target:
        counts = [sum(a.label == label for a in predict(model, TEXTS)) for label in ("neg", "pos")]
        assert printed == f"wrote {target[1]}: neg {counts[0]}, pos {counts[1]}\n"
        assert os.listdir(tmp_path / "new") == [out]
        printed = target[1].read_text()
    rows = [json.loads(line) for line in printed.splitlines()] if "JSONL" in out else rows_of(printed)
    assert [row["text"] for row in rows] == TEXTS
    assert [row["label"] for row in rows] == [answer.label for answer in predict(model, TEXTS)]


def test_out_and_json(run, mine, texts, tmp_path):
    code, out, _ = run("predict", mine, texts, "--out", tmp_path / "a.csv", "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["texts"], sum(found["labels"].values())) == (7, 7)
    assert len(rows_of((tmp_path / "a.csv").read_text())) == 7


def test_texts_with_commas_quotes_and_line_ends_come_back(run, mine, tmp_path):
    odd = ['good, "very" good', "bad\nfilm", "fein, sehr fein: äöü 好"]
    (tmp_path / "odd.jsonl").write_text("\n".join(map(json.dumps, ({"text": text} for text in odd))))
    for name in ("a.csv", "a.jsonl"):
        assert run("predict", mine, tmp_path / "odd.jsonl", "--out", tmp_path / name)[0] == 0
    assert [row["text"] for row in rows_of((tmp_path / "a.csv").read_text("utf-8"))] == odd
    lines = (tmp_path / "a.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["text"] for line in lines] == odd


def test_texts_that_are_cut_are_told(run, mine):
    _, _, err = run("predict", mine, "--text", "a " * 8, "good")
    assert err == (
        "note: 1 of 2 texts are longer than 9 tokens, of which the rest was left out; --max-length sets the limit\n"
    )


def test_another_encoding(run, typed, mine, tmp_path):
    (tmp_path / "x.txt").write_bytes("schön good\n".encode("cp1252"))
    code, out, _ = run("predict", mine, tmp_path / "x.txt", "--encoding", "cp1252")
    assert code == 0 and "schön good," in out
    code, out, err = run("predict", mine, tmp_path / "x.txt")
    assert (code, err.count("\n")) == (2, 1)
    assert "x.txt, line 1" in err and "cp1252" in err
    typed("schön\n", "cp1252")
    assert "standard input, line 1" in run("predict", mine)[2]


BAD = {  # file name, content, message
    "no column": ("x.csv", "review\ngood\n", "x.csv, line 1: expected a column `text`"),
    "an empty text": ("x.csv", "text,id\ngood,1\n,2\n", "x.csv, line 3: expected a text; got ''"),
    "a number": ("x.jsonl", '{"text": "good"}\n{"text": 3}', "x.jsonl, line 2: expected a text; got 3"),
    "NaN": ("x.jsonl", '{"text": NaN}', "x.jsonl, line 1 is not JSON"),
    "a surrogate": ("x.jsonl", '{"text": "\\ud800"}', "x.jsonl, line 1: half of a surrogate pair"),
    "too many cells": ("x.csv", "text,id\ngood, bad,1\n", "x.csv, line 2"),
    "nothing": ("x.txt", "", "x.txt holds no texts"),
    "only a header": ("x.csv", "text\n", "x.csv holds no texts"),
    "another kind": ("x.docx", "good", "expected a .csv, .tsv, .jsonl file with a column `text`, or a .txt file"),
    "a NUL": ("x.txt", "good\0\n", "x.txt, line 1: a NUL character"),
}


@pytest.mark.parametrize(("name", "content", "message"), BAD.values(), ids=BAD)
def test_files_that_cannot_be_used(run, mine, tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    (tmp_path / "old.csv").write_text("kept")
    code, out, err = run("predict", mine, tmp_path / name, "--out", tmp_path / "old.csv")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert (tmp_path / "old.csv").read_text() == "kept"
    assert sorted(os.listdir(tmp_path)) == sorted([name, "old.csv"])


def test_options_that_do_not_fit(run, mine, texts, tmp_path):
    for argv, message in (
        ([texts, "--text", "good"], "expected a file or --text; got both"),
        ([texts, "--out", tmp_path / "a.txt"], "ends in .csv or .jsonl"),
        ([texts, "--out", texts], "is the file of the texts"),
        ([tmp_path / "nothing.csv"], "cannot read"),
        ([tmp_path / "nothing.txt"], "cannot read"),
        ([tmp_path], "expected a .csv"),
        (["--text", "good", " "], "text number 2: expected a text"),
    ):
        code, out, err = run("predict", mine, *argv)
        assert (code, out) == (2, "")
        assert message in err
    assert rows_of(texts.read_text())[0]["text"] == "good"


def test_a_folder_that_holds_no_model(run, tmp_path):
    expected = "config.json: No such file or directory; expected a Hugging Face or an adapter folder"
    code, _, err = run("predict", tmp_path, "--text", "good")
    assert code == 2 and err.endswith(f"{expected}\n")
    (tmp_path / "checkpoint.safetensors").touch()  # of a run that was stopped
    code, _, err = run("predict", tmp_path, "--text", "good")
    assert code == 2 and err.endswith(f"{expected}; its training has not ended: train with --resume\n")


def test_nothing_is_printed_of_texts_that_cannot_be_read(run, typed, mine, tmp_path):
    (tmp_path / "x.csv").write_text("review\ngood\n")
    for argv in ([tmp_path / "x.csv"], [tmp_path / "nothing.csv"], ["--text", "good", " "]):
        code, out, err = run("predict", mine, *argv)
        assert (code, out, err.count("\n")) == (2, "", 1)
    typed("")
    assert run("predict", mine)[:2] == (0, "text,label,probability,p(neg),p(pos)\n")


def test_answers_before_a_bad_line_are_given(run, typed, mine):
    typed("good\nbad\n\0\nfine\n")
    code, out, err = run("predict", mine)
    assert code == 2
    assert [row["text"] for row in rows_of(out)] == ["good", "bad"]
    assert "standard input, line 3: a NUL character" in err


def test_blank_lines_are_passed_over_and_counted(run, typed, mine, tmp_path):
    typed("good\n\n  \nbad \n\n")
    code, out, err = run("predict", mine)
    assert code == 0 and [row["text"] for row in rows_of(out)] == ["good", "bad"]
    assert err == "note: standard input: 3 blank lines passed over\n"
    (tmp_path / "x.txt").write_text("good\n\nbad\n")
    code, out, err = run("predict", mine, tmp_path / "x.txt")
    assert code == 0 and [row["text"] for row in rows_of(out)] == ["good", "bad"]
    assert err.endswith("x.txt: 1 blank line passed over\n")


def test_a_missing_standard_input(run, mine, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    code, _, err = run("predict", mine)
    assert code == 2 and "standard input is closed" in err


# ---- as it comes: a process of its own -------------------------------------------------------------------------------


@pytest.fixture
def started(mine):
    """`lorabook predict` at work, and a function that reads a line of what it prints, or fails after a minute."""
    processes = []

    def start(*argv):
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        command = [sys.executable, "-m", "lorabook", "predict", str(mine), *map(str, argv)]
        process = subprocess.Popen(command, **pipes, text=True, encoding="utf-8")
        processes.append(process)
        alarm = threading.Timer(60, process.kill)
        alarm.start()
        process.alarm = alarm
        return process

    yield start
    for process in processes:
        process.alarm.cancel()
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            with contextlib.suppress(OSError):
                pipe.close()


def say(process, line):
    process.stdin.write(f"{line}\n")
    process.stdin.flush()


def test_each_line_is_answered_before_the_next_one_comes(started):
    process = started()
    assert process.stdout.readline() == "text,label,probability,p(neg),p(pos)\n"
    for text, label in (("good", "pos"), ("bad", "neg"), ("fine fine", "pos")):
        say(process, text)
        assert process.stdout.readline().startswith(f"{text},{label},0.")
    out, err = process.communicate(timeout=60)
    assert (out, err, process.returncode) == ("", "", 0)


def test_nobody_reads_on(started):
    process = started()
    say(process, "good")
    process.stdout.readline()
    process.stdout.close()
    say(process, "bad")
    assert process.wait(60) == 141
    assert process.stderr.read() == ""


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_an_interrupt_between_lines(started):
    process = started()
    say(process, "good")
    assert process.stdout.readline() and process.stdout.readline().startswith("good,pos")
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert process.stderr.read() == "lorabook predict: interrupted\n"


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_an_interrupt_leaves_no_half_file(started, tmp_path):
    process = started("--out", tmp_path / "new" / "a.csv")
    say(process, "good")
    while not (tmp_path / "new").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert os.listdir(tmp_path / "new") == []


# ---- what stands beside the texts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
@pytest.mark.parametrize("out", ["a.csv", "a.jsonl"])
def test_the_other_columns_of_a_file_come_back(run, mine, model, tmp_path, monkeypatch, kind, out):
    monkeypatch.setattr(windows, "WINDOW", 3)
    path = tmp_path / f"texts.{kind}"
    path.write_text(KINDS[kind])
    assert run("predict", mine, path, "--out", tmp_path / out)[::2] == (0, "")
    content = (tmp_path / out).read_text()
    rows = [json.loads(line) for line in content.splitlines()] if out == "a.jsonl" else rows_of(content)
    first = ["text", "id"] if kind == "tsv" else ["id", "text"]
    last = ["probabilities"] if out == "a.jsonl" else ["p(neg)", "p(pos)"]
    for i, (row, answer) in enumerate(zip(rows, predict(model, TEXTS), strict=True)):
        assert list(row) == [*first, "label", "probability", *last]
        assert row["id"] == (i if (kind, out) == ("jsonl", "a.jsonl") else str(i))
        assert (row["text"], row["label"]) == (TEXTS[i], answer.label)


def test_a_column_called_like_an_answer_is_kept_under_another_name(run, mine, tmp_path):
    (tmp_path / "a.csv").write_text(",label,text,x,x,input_label\n0,neg,good,1,2,3\n")
    code, _, err = run("predict", mine, tmp_path / "a.csv", "--out", tmp_path / "b.csv")
    assert (code, err) == (0, "note: the input's column `label` is called `input_input_label`\n")
    header, row = (line.split(",") for line in (tmp_path / "b.csv").read_text().splitlines())
    assert header[:8] == ["", "input_input_label", "text", "x", "input_x", "input_label", "label", "probability"]
    assert row[:7] == ["0", "neg", "good", "1", "2", "3", "pos"]


def test_a_table_with_capitals_comes_back_as_one_that_can_be_read(run, mine, tmp_path):
    """Its `Text` is the text, and its `Label`, which differs from ours in capitals alone, has another name."""
    (tmp_path / "a.csv").write_text("ID, Text,Label\n7,good,neg\n")
    code, _, err = run("predict", mine, tmp_path / "a.csv", "--out", tmp_path / "b.csv")
    assert (code, err) == (0, "note: the input's column `Label` is called `input_Label`\n")
    (row,) = rows_of((tmp_path / "b.csv").read_text())
    assert list(row)[:5] == ["ID", "text", "input_Label", "label", "probability"]
    assert (row["ID"], row["text"], row["input_Label"], row["label"]) == ("7", "good", "neg", "pos")
    assert run("evaluate", mine, tmp_path / "b.csv")[0] == 0


def test_json_lines_of_different_kinds_in_one_table(run, mine, tmp_path):
    rows = [{"text": "good", "tags": ["a", 1], "n": None}, {"more": True, "text": "bad"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert run("predict", mine, tmp_path / "a.jsonl", "--out", tmp_path / "b.csv")[0] == 0
    first, second = rows_of((tmp_path / "b.csv").read_text())
    assert list(first)[:5] == ["text", "tags", "n", "more", "label"]
    assert (first["tags"], first["n"], first["more"], second["more"]) == ('["a", 1]', "", "", "true")
    assert run("predict", mine, tmp_path / "a.jsonl", "--out", tmp_path / "b.jsonl")[0] == 0
    for row, line in zip(rows, (tmp_path / "b.jsonl").read_text().splitlines(), strict=True):
        assert list(json.loads(line).items())[: len(row)] == list(row.items())
