"""The sweep of an encoder on texts, and sweeps that are cut off: a tiny BERT folder and a small CSV, as a user's."""

import json
import math
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from checks import sweep_setting, tiny_bert, without_seconds, write_bert, write_tokenizer

from lorabook import InputError
from lorabook.commands import sweep
from lorabook.errors import FormatError
from lorabook.files import read_checkpoint, read_csv, read_safetensors, write_checkpoint
from lorabook.linalg import truncate, truncate_for_inputs
from lorabook.models import BertForSequenceClassification
from lorabook.parallel import Workers
from lorabook.studies import Encoder, Kept, Recipe, Unfinished, rank_rows, rank_sweep, sweep_time, unfinished
from lorabook.tasks import LEAST_STEPS, evaluate

RANKS = [1, 3, 6]
OPTIONS = ["--epochs", 2, "--batch-size", 5, "--lr", 0.03, "--lr-full", 0.01]
ADAPTED = 2 * (4 * 6 * 6 + 2 * 6 * 7)  # numbers in the matrices of two blocks of d = 6, d_mlp = 7
HEAD = 6 * 6 + 6 + 2 * 6 + 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("encoder")


@pytest.fixture(scope="module")
def model(folder):
    """A bare encoder: no classifier."""
    network = tiny_bert(np.random.default_rng(0), dtype="float32")
    return write_bert(folder / "model", network, tensors={"classifier.weight": None, "classifier.bias": None})


@pytest.fixture(scope="module")
def tuned(folder, model):
    """The same, fine-tuned elsewhere: every number moved, and with a classifier of two classes."""
    network, rng = BertForSequenceClassification.from_pretrained(model, labels=2), np.random.default_rng(5)
    for array in network.named_params().values():
        array += 0.1 * rng.standard_normal(array.shape).astype("f4")
    labels = {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "neg", "1": "pos"}}
    return write_bert(folder / "tuned", network, labels)


@pytest.fixture(scope="module")
def data(folder):
    rng, lines = np.random.default_rng(1), ["text,label"]
    for i in range(40):
        words = rng.choice((("good", "fine"), ("bad", "poor"))[i % 2], rng.integers(1, 6))
        lines.append(f"{' '.join(words)} {'a ' * (i // 16)},{('pos', 'neg')[i % 2]}")
    (folder / "data.csv").write_text("\n".join(lines))
    return folder / "data.csv"


@pytest.fixture
def encoder(model, data):
    return lambda **options: Encoder(str(model), str(data), **({"batch_size": 5} | options))


def setting_of(encoder, **options):
    return encoder.setting(2, {None: Recipe(1e-2), 1: Recipe(3e-2)}, workers=1, **options)


@pytest.fixture(scope="module")
def rows(model, data):
    encoder = Encoder(str(model), str(data), batch_size=5)
    return rank_sweep(setting_of(encoder), RANKS, [0, 1])


def of(rows, method):
    return {(row["r"], row["seed"]): row for row in rows if row["method"] == method}


# ---- the rows --------------------------------------------------------------------------------------------------------


def test_one_row_for_every_method_rank_and_seed(rows):
    assert [len(of(rows, m)) for m in ("full", "svd", "activation_svd", "lora")] == [2, 6, 6, 6]


def test_no_update_is_closer_to_the_full_one_than_the_bound(rows):
    bound = of(rows, "svd")
    for method in ("activation_svd", "lora"):
        for key, row in of(rows, method).items():
            assert row["weight_error"] >= bound[key]["weight_error"] - 1e-12
    assert all(row["weight_error"] > 0.05 for row in of(rows, "lora").values())


def test_every_method_trains_the_same_matrices_and_the_head(rows):
    assert {row["params"] for row in of(rows, "full").values()} == {ADAPTED + HEAD}
    for r in RANKS:
        factors = 2 * (4 * min(r, 6) * 12 + 2 * min(r, 6) * 13)
        assert {of(rows, m)[r, s]["params"] for m in ("svd", "activation_svd", "lora") for s in (0, 1)} == {
            factors + HEAD
        }


def test_truncations_of_full_rank_are_the_full_model_with_its_head(rows):
    for method in ("svd", "activation_svd"):
        for seed in (0, 1):
            row, full = of(rows, method)[6, seed], of(rows, "full")[None, seed]
            assert row["weight_error"] < 1e-6
            assert row["test_loss"] == pytest.approx(full["test_loss"], rel=1e-5)


def test_a_seed_is_another_start_and_other_batches_of_the_same_texts(encoder):
    problems = encoder()
    one, other = problems(0), problems(1)
    assert len({problem.job.batches.fingerprint() for problem in (one, other)}) == 1
    assert not np.array_equal(*(p.batches(5, seed).at(0)["input_ids"] for seed, p in enumerate((one, other))))
    weights = [problem.base.named_params() for problem in (one, other)]
    assert not np.array_equal(*(w["classifier.weight"] for w in weights))
    assert np.array_equal(*(w["bert.pooler.dense.weight"] for w in weights))


def test_named_matrices_alone(encoder):
    problem = encoder(target_modules=["query", "output.dense"])(0)
    ends = {path.split(".", 4)[-1] for path in problem.shapes}
    assert ends == {"attention.self.query", "attention.output.dense", "output.dense"} and len(problem.shapes) == 6
    with pytest.raises(InputError, match="target module 'quary' matches no linear layer"):
        encoder(target_modules=["quary"])


def test_another_backend(encoder, rows):
    strict = rank_sweep(setting_of(encoder(), backend="array_api_strict"), [3], [0])
    want = [row for row in rows if row["seed"] == 0 and row["r"] in (None, 3)]
    for got, row in zip(strict, want, strict=True):
        assert (got["method"], got["params"]) == (row["method"], row["params"])
        assert got["weight_error"] == pytest.approx(row["weight_error"], rel=1e-3, abs=1e-9)
        assert got["test_loss"] == pytest.approx(row["test_loss"], rel=1e-3)


def test_factors_are_those_of_the_inputs_without_padding(encoder, monkeypatch):
    """Of every text alone: the first block's input, and the last block's, of which only the first token asks."""
    problem, fold = encoder()(0), []
    monkeypatch.setattr("lorabook.studies.encoder_sweep.FOLD", 16)  # several times
    monkeypatch.setattr("lorabook.studies.encoder_sweep.TOKENS_A_DIMENSION", 100)  # all texts
    monkeypatch.setattr("lorabook.studies.encoder_sweep._Inputs.fold", _counted(fold))
    with Workers(2) as workers:
        factors = problem.factors(problem.base, 0, workers)
    assert factors.keys() == problem.shapes.keys() and len(fold) > 2 * len(factors)
    bert = problem.base.children["bert"]
    embeddings, blocks = bert.children["embeddings"], bert.children["encoder"].children["layer"].children
    inputs = {"0.attention.self.key": [], "1.attention.self.value": [], "1.attention.self.query": []}
    for ids in problem.job.batches.examples.ids:
        x = embeddings({"input_ids": ids[None]})[0]
        y = blocks["0"](x)[0]
        for path, h in zip(inputs, (x, y, y[:, :1]), strict=True):
            inputs[path].append(h[0].astype("f8"))
    for path, parts in inputs.items():
        R, X = factors[f"bert.encoder.layer.{path}"], np.concatenate(parts)
        np.testing.assert_allclose(R.T @ R, X.T @ X, rtol=1e-5, atol=1e-5)


def _counted(calls):
    from lorabook.studies.encoder_sweep import _Inputs

    fold = _Inputs.fold
    return lambda inputs: calls.append(inputs) or fold(inputs)


def test_factors_take_no_more_texts_than_they_need(encoder, monkeypatch):
    monkeypatch.setattr("lorabook.studies.encoder_sweep.TOKENS_A_DIMENSION", 3)
    problem, seen = encoder()(0), []
    monkeypatch.setattr(
        BertForSequenceClassification, "predict", lambda self, batch, run: seen.append(batch["input_ids"].size)
    )
    with Workers(1) as workers:
        problem.factors(problem.base, 0, workers)
    assert 3 * 7 <= sum(seen) < 3 * 7 + 9  # d_in is at most 7, a text has at most 9 tokens


# ---- a checkpoint of the reader's own --------------------------------------------------------------------------------


def test_a_checkpoint_takes_the_place_of_full_fine_tuning(encoder, model, tuned, data, tmp_path):
    problems = Encoder(str(tuned), str(data), str(model), batch_size=5, seed=3)
    rows = rank_sweep(setting_of(problems), [2, 6], [3, 4])
    job, network = problems(3).job, BertForSequenceClassification.from_pretrained(tuned, labels=2)
    loss, accuracy = evaluate(network, job.test)
    full = of(rows, "full")
    for seed in (3, 4):  # the same for every seed
        assert (full[None, seed]["test_loss"], full[None, seed]["test_accuracy"]) == (loss, accuracy)
        assert (full[None, seed]["seconds"], full[None, seed]["params"]) == (
            0,
            sum(a.size for a in network.named_params().values()),
        )
        for method in ("svd", "activation_svd"):
            assert of(rows, method)[6, seed]["test_loss"] == pytest.approx(loss, rel=1e-5)
    before, after = (read_safetensors(path / "model.safetensors")[0] for path in (model, tuned))
    names = {path: f"{path}.weight" for path in problems(3).shapes}
    deltas = {path: after[name].astype("f8") - before[name] for path, name in names.items()}
    with Workers(1) as workers:
        factors = problems(3).factors(network, 3, workers)
    for method, truncation in (
        ("svd", lambda path: truncate(deltas[path])),
        ("activation_svd", lambda path: truncate_for_inputs(deltas[path], factors[path])),
    ):
        lost = sum(np.sum((truncation(path).weight(2) - delta) ** 2) for path, delta in deltas.items())
        want = np.sqrt(lost / sum(np.sum(delta**2) for delta in deltas.values()))
        assert of(rows, method)[2, 4]["weight_error"] == pytest.approx(want, rel=1e-9)
    kept = Unfinished(tmp_path, {}, "x")  # a seed more, later
    rank_sweep(setting_of(problems), [2, 6], [3], kept=kept)
    assert without_seconds(rank_sweep(setting_of(problems), [2, 6], [3, 4], kept=kept)) == without_seconds(rows)
    lora = of(rows, "lora")
    assert lora[2, 3]["test_loss"] != lora[2, 4]["test_loss"]
    assert lora[2, 3] | {"seconds": 0, "weight_error": 0} == of(
        rank_sweep(setting_of(encoder(seed=3)), [2], [3]), "lora"
    )[2, 3] | {"seconds": 0, "weight_error": 0}  # trained from the base


def test_a_trained_classifier_without_base_is_noted(run, tuned, data, tmp_path):
    options = ["--ranks", 1, "--out", tmp_path / "s", *OPTIONS]
    code, _, err = run("sweep", "--model", tuned, "--data", data, *options)
    assert code == 0
    assert "note: " in err and "--base" in err


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("bare", "has no trained classifier"),
        ("same", "there is no update to compare with"),
        ("wide", "was not trained from"),
        ("other words", "their tokenizers are not the same"),
        ("other labels", "was trained on the labels"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_before_any_work(run, model, tuned, data, tmp_path, kind, message):
    own = shutil.copytree(model if kind == "bare" else tuned, tmp_path / "own")
    config = json.loads((own / "config.json").read_text())
    if kind == "same":
        head = {
            n: a for n, a in read_safetensors(tuned / "model.safetensors")[0].items() if n.startswith("classifier.")
        }
        write_bert(own, BertForSequenceClassification.from_pretrained(model, labels=2), config, head)
    if kind == "wide":
        wide = BertForSequenceClassification(config | {"intermediate_size": 8}, labels=2)
        write_bert(own, wide, {"id2label": config["id2label"], "architectures": config["architectures"]})
    if kind == "other words":
        write_tokenizer(own / "tokenizer.json", "[PAD] [UNK] [CLS] [SEP] bad good fine poor film plot a the".split())
    if kind == "other labels":
        (own / "config.json").write_text(json.dumps(config | {"id2label": {"0": "bad", "1": "good"}}))
    options = ["--data", data, "--out", tmp_path / "s", *OPTIONS[:-2]]
    code, out, err = run("sweep", "--model", own, "--base", model, *options)
    assert (code, out) == (2, "")
    assert message in err and err.count("\n") == 1
    assert not (tmp_path / "s").exists()


# ---- the command -----------------------------------------------------------------------------------------------------


def test_sweep_of_texts_writes_the_same_files_as_one_of_numbers(run, model, data, tmp_path, rows, monkeypatch):
    monkeypatch.setattr("lorabook.commands.sweep.SECONDS", math.inf)  # whatever the machine is busy with
    argv = ["sweep", "--model", model, "--data", data, "--ranks", *RANKS, "--seeds", 2, *OPTIONS]
    code, out, err = run(*argv, "--out", tmp_path / "s", "--json")
    assert code == 0 and err == ""
    assert sorted(os.listdir(tmp_path / "s")) == ["rank_vs_error.csv", "rank_vs_error.svg"]
    assert without_seconds(json.loads(out)["rows"]) == without_seconds(rows)
    table = read_csv(tmp_path / "s" / "rank_vs_error.csv")
    assert list(table[0]) == ["method", "r", "seed", "params", "weight_error", "test_loss", "test_accuracy", "seconds"]
    code, out, _ = run(*argv, "--out", tmp_path / "t")
    assert code == 0 and "12 matrices of its blocks" in out and "all share the split" in " ".join(out.split())
    assert max(len(line) for line in out.splitlines() if str(tmp_path) not in line) <= 80


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--model", "minilm"], "--model needs --data"),
        (["--model", "a", "--base", "b", "--data", "c.csv", "--lr-full", 0.1], "--lr-full is the rate of"),
        (["--model", "minilm", "--data", "digits-rotated"], "digits-rotated is made of images"),
        (["--model", "mlp-digits", "--data", "movie-reviews"], "a sweep without --model begins with"),
        (["--model", "nothing", "--data", "movie-reviews"], "nothing"),
        (["--model", "minilm", "--data", "movie-reviews", "--jobs", "2"], "--jobs is for a sweep of numbers"),
        (
            ["--model", "minilm", "--data", "movie-reviews", "--scheduler", "tcp://x:1"],
            "--scheduler is for a sweep of numbers",
        ),
        (["--model", "minilm", "--data", "movie-reviews", "--tune"], "--tune is for a sweep of numbers"),
        (["--base", "minilm"], "--base is for a sweep of texts, with --model"),
        (["--max-length", "9"], "--max-length is for a sweep of texts"),
        (["--target-modules", "query"], "--target-modules is for a sweep of texts"),
        (["--workers", "1"], "--workers is for a sweep of texts"),
    ],
)
def test_options_that_do_not_go_together(run, tmp_path, argv, message):
    code, out, err = run("sweep", *argv, "--out", tmp_path / "s")
    assert (code, out) == (2, "")
    assert message in err and err.count("\n") == 1
    assert not (tmp_path / "s").exists()


def test_a_file_of_the_other_kind_is_named(run, model, data, tmp_path):
    code, _, err = run("sweep", "--data", data, "--out", tmp_path / "s")
    assert code == 2 and err == f"lorabook sweep: {data} holds texts: sweep an encoder on them, e.g. --model minilm\n"
    (tmp_path / "numbers.csv").write_text("a,b,label\n1,2,x\n3,4,y\n")
    code, _, err = run("sweep", "--model", model, "--data", tmp_path / "numbers.csv", "--out", tmp_path / "s")
    assert code == 2 and "expected a column `text`; got 'a, b, label'" in err


def test_bad_options_of_a_sweep_of_texts(run, model, data, tmp_path):
    for options, message in (
        (["--ranks", 8], "rank 8 is larger than the largest possible one, 6"),
        (["--max-length", 99], "max_length must be an integer from 2 to 9"),
        (["--batch-size", 99], "batch_size must be an integer from 1 to the"),
    ):
        code, out, err = run("sweep", "--model", model, "--data", data, *OPTIONS, *options, "--out", tmp_path / "s")
        assert (code, out) == (2, "")
        assert message in err and err.count("\n") == 1


def test_few_texts_get_as_many_epochs_as_it_takes_to_learn(encoder):
    steps = len(encoder()(0).batches(5, 0))
    assert LEAST_STEPS <= steps * encoder().setting().epochs < LEAST_STEPS + steps
    assert encoder().setting(3).epochs == 3


# ---- cut off, and gone on with ---------------------------------------------------------------------------------------


class CutError(Exception):
    pass


class Cutting(Unfinished):
    """Dies at one of its writes, before or after it."""

    def __init__(self, *args, at, after):
        super().__init__(*args)
        self.left, self.after = at, after

    def _count(self, write, *args):
        self.left -= 1
        if not self.left and not self.after:
            raise CutError
        write(*args)
        if not self.left:
            raise CutError

    def add(self, rows):
        self._count(super().add, rows)

    def add_full(self, seed, arrays):
        self._count(super().add_full, seed, arrays)


def test_cut_off_at_every_write_the_rows_are_those_of_the_whole_sweep(tmp_path):
    setting, run = replace(sweep_setting(), epochs=1), {"epochs": 1}
    whole = without_seconds(rank_sweep(setting, [2], [0, 1]))
    writes = 2 * (1 + 1 + 1 + 1)  # for each seed: arrays and row of full fine-tuning, truncations, LoRA
    for at in range(1, writes + 1):
        for after in (False, True):
            out = tmp_path / f"{at}{after}"
            with pytest.raises(CutError):
                rank_sweep(setting, [2], [0, 1], kept=Cutting(out, run, "x", at=at, after=after))
            kept = Unfinished(out, run, "x")
            assert without_seconds(rank_sweep(setting, [2], [0, 1], kept=kept)) == whole
    kept = Cutting(tmp_path / "all", run, "x", at=writes + 1, after=False)
    assert without_seconds(rank_sweep(setting, [2], [0, 1], kept=kept)) == whole
    assert kept.left == 1  # no write is left out


def test_what_is_there_is_not_computed_again(tmp_path, monkeypatch):
    setting, trained, train = sweep_setting(), [], rank_rows.train
    monkeypatch.setattr(
        "lorabook.studies.rank_rows.train", lambda *args, **kwargs: trained.append(1) or train(*args, **kwargs)
    )
    rank_sweep(setting, [1, 3], [0], kept=Unfinished(tmp_path, {}, "x"))
    assert len(trained) == 1 + 2
    rank_sweep(setting, [1, 3], [0], kept=Unfinished(tmp_path, {}, "x"))
    assert len(trained) == 3
    more = rank_sweep(setting, [3, 8], [0, 1], kept=Unfinished(tmp_path, {}, "x"))  # one rank and one seed more
    assert len(trained) == 3 + 1 + 3
    assert without_seconds(more) == without_seconds(rank_sweep(setting, [3, 8], [0, 1]))


def test_kill_9_then_the_same_command_ends_in_the_same_rows(run, model, data, tmp_path):
    texts = ["--model", model, "--data", data, "--ranks", 1, 2, 3, "--epochs", 9, *OPTIONS[2:]]
    numbers = ["--ranks", 1, 2, 4, "--seeds", 1, "--epochs", 9, "--jobs", 1]
    for name, options in (("texts", texts), ("numbers", numbers)):
        command = [str(word) for word in ("sweep", *options, "--out")]
        part, whole = tmp_path / name, tmp_path / f"whole-{name}"
        so_far = part / "unfinished" / "rank_vs_error.csv"
        process = subprocess.Popen(
            [sys.executable, "-m", "lorabook", *command, part], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while not (so_far.exists() and "\nlora," in so_far.read_text()) and process.poll() is None:
            time.sleep(0.001)
        process.kill()
        assert process.wait() == -9 or os.name == "nt"
        rows = len(read_csv(so_far))
        code, out, err = run(*command, part, "--json")
        assert code == 0 and f"going on with the {rows} rows in {part}" in err
        assert not (part / "unfinished").exists()
        headers = [(out / "rank_vs_error.csv").read_text().splitlines()[2] for out in (part, whole) if out.exists()]
        assert set(headers) == {",".join(rank_rows.COLUMNS)}
        code, again, err = run(*command, whole, "--json")
        assert code == 0 and "going on" not in err
        assert without_seconds(json.loads(out)["rows"]) == without_seconds(json.loads(again)["rows"])
        assert without_seconds(read_csv(part / "rank_vs_error.csv")) == without_seconds(
            read_csv(whole / "rank_vs_error.csv")
        )


@pytest.fixture
def cut_off(run, model, data, tmp_path, monkeypatch):
    """A sweep of texts in tmp_path/s that was interrupted with one LoRA row still to come; the command."""
    (tmp_path / "mine.csv").write_bytes(data.read_bytes())
    shutil.copytree(model, tmp_path / "model")
    command = ["sweep", "--model", tmp_path / "model", "--data", tmp_path / "mine.csv", "--ranks", 1, 2, *OPTIONS]
    command += ["--out", tmp_path / "s"]
    evaluate, calls = BertForSequenceClassification.evaluate, []

    def stops(self, *batch):
        calls.append(1)
        if len(calls) == 1 + 1 + 4 + 1 + 1:  # the guess, full, truncations, one rank of LoRA, the next one
            raise KeyboardInterrupt
        return evaluate(self, *batch)

    with monkeypatch.context() as patch:
        patch.setattr(BertForSequenceClassification, "evaluate", stops)
        code, _, err = run(*command)
    assert code == 130 and err.endswith(
        f"; the same command goes on with the rows in {tmp_path / 's' / 'unfinished'}\n"
    )
    return command


def test_another_sweep_does_not_take_the_place_of_one_that_was_cut_off(run, cut_off, tmp_path, monkeypatch):
    before = {path: path.read_bytes() for path in (tmp_path / "s").rglob("*") if path.is_file()}
    for options, message in (
        (["--lr", 0.5], "its lr, r = 1 was 0.03, here it is 0.5. Give the same options"),
        (["--lora-alpha", 8], "its lora_alpha, r = 1 was 16, here it is 8"),
        (["--epochs", 3], "its epochs was 2, here it is 3"),
        (["--max-length", 8], "its max length was 9, here it is 8"),
        (["--target-modules", "query"], "its target modules was all-linear, here it is query"),
    ):
        code, out, err = run(*cut_off, *options)
        assert (code, out) == (2, "")
        assert message in err and "or choose another --out" in err and err.count("lorabook sweep: ") == 1
    text = (tmp_path / "mine.csv").read_text()
    (tmp_path / "mine.csv").write_text(f"{text}\nfilm,pos\nplot,pos\nplot film,pos\nfilm plot,pos")
    assert "its training texts was" in run(*cut_off)[2]
    swapped = text.replace("pos", "?").replace("neg", "pos").replace("?", "neg")
    (tmp_path / "mine.csv").write_text(swapped)
    assert "data differs from what is here" in run(*cut_off)[2]
    (tmp_path / "mine.csv").write_text(text)
    weights = tmp_path / "model" / "model.safetensors"
    kept = weights.read_bytes()
    write_bert(
        tmp_path / "model",
        tiny_bert(np.random.default_rng(9), dtype="float32"),
        {},
        {"classifier.weight": None, "classifier.bias": None},
    )
    assert "its base weights differs from what is here" in run(*cut_off)[2]
    weights.write_bytes(kept)
    with monkeypatch.context() as patch:
        patch.setattr("lorabook.studies.unfinished.fingerprint", lambda: {"lorabook": "0.0.1 (code 12345678)"})
        assert "its lorabook was 0.1.0 (code" in run(*cut_off)[2]
    state = tmp_path / "s" / "unfinished" / unfinished.ROWS
    state.write_bytes(before[state].replace(b"full", b"svd_"))
    assert "is damaged" in run(*cut_off)[2]
    state.write_bytes(before[state])
    assert {path: path.read_bytes() for path in (tmp_path / "s").rglob("*") if path.is_file()} == before
    assert run(*cut_off)[0] == 0


def test_what_was_finished_stays_until_another_sweep_is(run, cut_off, tmp_path):
    (tmp_path / "s" / "rank_vs_error.csv").write_text("of an earlier sweep")
    (tmp_path / "s" / "unfinished" / "notes.txt").write_text("mine")
    assert run(*cut_off, "--epochs", 3)[0] == 2
    assert (tmp_path / "s" / "rank_vs_error.csv").read_text() == "of an earlier sweep"
    assert run(*cut_off)[0] == 0
    assert len(read_csv(tmp_path / "s" / "rank_vs_error.csv")) == 1 + 3 * 2
    assert os.listdir(tmp_path / "s" / "unfinished") == ["notes.txt"]


def test_texts_that_change_while_the_sweep_runs(encoder, data, tmp_path):
    (tmp_path / "mine.csv").write_bytes(data.read_bytes())
    problems = Encoder(encoder().model, str(tmp_path / "mine.csv"), batch_size=5)
    (tmp_path / "mine.csv").write_text(data.read_text().replace("good", "poor"))
    with pytest.raises(InputError, match=r"mine.csv has changed while the sweep was running"):
        problems(1)


def test_an_update_of_zero_is_no_update(encoder):
    setting = replace(setting_of(encoder()), recipes={None: Recipe(0.0), 1: Recipe(0.1)})
    with pytest.raises(InputError, match="full fine-tuning changed no matrix"):
        rank_sweep(setting, [1], [0])


def forged(folder, arrays=None, **state):
    """A file in the folder of a sweep that was cut off, with a right checksum."""
    folder.mkdir(exist_ok=True)
    name = unfinished.ROWS if arrays is None else "full-0.safetensors"
    write_checkpoint(folder / name, arrays or {}, state)


@pytest.mark.parametrize(
    "rows",
    [None, [], 3, [3], [{}], [{"method": "full"}], [dict.fromkeys(rank_rows.COLUMNS, 1)], "wrong", "text"],
    ids=str,
)
def test_forged_rows_are_refused(tmp_path, rows):
    Unfinished(tmp_path, {}, "x").add(rank_sweep(sweep_setting(), [1], [0]))
    state = read_checkpoint(tmp_path / "unfinished" / unfinished.ROWS)[1]
    if rows in ("wrong", "text"):
        rows = [state["rows"][0] | ({"r": "1"} if rows == "text" else {"method": "magic"})]
    forged(tmp_path / "unfinished", run=state["run"], rows=rows)
    if rows == []:
        assert Unfinished(tmp_path, {}, "x").rows == []
        return
    with pytest.raises(FormatError, match="no row of a sweep"):
        Unfinished(tmp_path, {}, "x")
    forged(tmp_path / "unfinished", rows=[])
    with pytest.raises(FormatError, match="does not say of which sweep it is"):
        Unfinished(tmp_path, {}, "x")


@pytest.mark.parametrize("wrong", ["missing", "extra", "misshapen"])
def test_forged_arrays_are_refused(tmp_path, wrong):
    setting = sweep_setting()
    _, arrays = rank_rows.full_rows(setting, setting.problem(0), 0)
    change = {"missing": {}, "extra": {"fc9.weight": np.ones((2, 2))}, "misshapen": {"fc1.weight": np.ones((2, 2))}}
    arrays = {n: a for n, a in arrays.items() if (wrong, n) != ("missing", "fc1.weight")} | change[wrong]
    forged(tmp_path / "unfinished", arrays, run=Unfinished(tmp_path, {}, "x").run)
    for function, what in ((rank_rows.truncation_rows, [1]), (rank_rows.lora_rows, 1)):
        with pytest.raises(FormatError, match="does not fit the model: fc"):
            function(setting, setting.problem(0), 0, what, Unfinished(tmp_path, {}, "x").full(0))


# ---- how long it will take -------------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch):
    """Time passes in steps alone: 2 s in one of full fine-tuning, 0.5 s in one of LoRA."""
    now = [0.0]
    monkeypatch.setattr("lorabook.studies.sweep_time.time.perf_counter", lambda: now[0])

    def train(model, batches, optimizer, **options):
        now[0] += len(batches) * (0.5 if any("lora_A" in name for name in model.trainable_params()) else 2)

    monkeypatch.setattr("lorabook.studies.sweep_time.train", train)
    return now


def test_the_guess_adds_up_what_is_still_to_do(clock, monkeypatch):
    setting, kept = sweep_setting(), Kept()
    Problem = type(setting.problem(0))

    def evaluate(self, model, workers, every):
        clock[0] += 3
        return 0.0, 0.0

    monkeypatch.setattr(Problem, "evaluate", evaluate)
    steps = 5 * 6  # epochs of 60 rows in batches of 10
    evaluations = 2 * (1 + 2 + 2 * 2)
    want = 2 * steps * 2 + 4 * steps * 0.5 + evaluations * 3 * sweep_time.PART
    seconds, words = sweep_time.guess(setting, [1, 2], [0, 1], kept)
    assert seconds == pytest.approx(want)
    assert words == "about 9 min: 2 x 60 s of full fine-tuning, 4 x 15 s of LoRA, 14 x 24 s of evaluation"
    kept.add_full(0, {})
    kept.add(
        [
            {"method": m, "r": r, "seed": 0}
            for m, r in [("full", None), *((m, r) for m in ("svd", "activation_svd", "lora") for r in (1, 2))]
        ]
    )
    assert sweep_time.guess(setting, [1, 2], [0, 1], kept)[0] == pytest.approx(want / 2)


def test_a_long_sweep_says_so_before_it_starts(run, model, data, tmp_path, monkeypatch):
    monkeypatch.setattr("lorabook.commands.sweep.SECONDS", 0)
    command = ["sweep", "--model", model, "--data", data, "--ranks", 1, *OPTIONS, "--out", tmp_path / "s"]
    code, _, err = run(*command)
    assert code == 0 and err.startswith("about ")
    how = "after ^C the same command goes on with the rows that are finished:\n"
    assert f"{how}  {tmp_path / 's' / 'unfinished'}\n" in err


def test_no_line_on_the_time_is_longer_than_a_terminal(capsys, monkeypatch):
    words = "about 12 h 10 min: 100 x 12 min of full fine-tuning, 1000 x 12 min of LoRA, 3000 x 10 s of evaluation"
    monkeypatch.setattr("lorabook.studies.guess", lambda *_: (9999, words))
    kept = SimpleNamespace(rows=[{}] * 1234, folder=Path("runs/sweep-minilm-mine/unfinished"))
    sweep._announce(None, [1], [0], kept, 1)
    out, err = capsys.readouterr()
    assert out == "" and " ".join(err.split()).count(words) == 1
    assert max(map(len, err.splitlines())) < 80
