"""The command line as a user meets it: exit codes, one line for bad input, JSON alone on stdout, kill and resume."""

import argparse
import hashlib
import importlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from lorabook import cli, files
from lorabook.commands import arguments
from lorabook.files import read_csv
from lorabook.studies import TUNED, best_recipes

FIGURES = Path(__file__).parents[1] / "figures"
TRAIN = ["train", "mlp-digits", "digits-rotated", "--r", "2", "--epochs", "20", "--checkpoint-every", "7"]


@pytest.mark.parametrize("command", ["", *cli.COMMANDS])
def test_every_command_has_help_with_an_example(run, command):
    code, out, _ = run(*command.split(), "--help")
    assert code == 0
    assert "usage: lorabook" in out
    if command:
        assert f"example:\n  lorabook {command}" in out
        assert "--json" in out
        assert max(map(len, out.splitlines())) <= 110


def test_module_and_command_are_the_same():
    done = subprocess.run([sys.executable, "-m", "lorabook", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("lorabook ")


def test_doctor(run):
    code, out, _ = run("doctor", "--json")
    result = json.loads(out)
    assert code == 0
    assert result["packages"]["numpy"] == np.__version__
    assert result["blas"][0]["threads"] >= 1
    code, out, _ = run("doctor")
    assert "numpy" in out and "GPU" in out


def test_sweep_writes_table_csv_and_picture(run, tmp_path):
    code, out, _ = run("sweep", "--ranks", 1, 4, "--seeds", 2, "--epochs", 2, "--jobs", 1, "--out", tmp_path / "s")
    assert code == 0
    assert "method" in out and "activation_svd" in out
    rows = read_csv(tmp_path / "s" / "rank_vs_error.csv")
    assert list(rows[0]) == ["method", "r", "seed", "params", "weight_error", "test_loss", "test_accuracy", "seconds"]
    assert len(rows) == 2 * (1 + 3 * 2)
    assert (
        (tmp_path / "s" / "rank_vs_error.csv")
        .read_text()
        .startswith("# lorabook sweep --ranks 1 4 --seeds 2 --epochs 2")
    )
    assert ET.parse(tmp_path / "s" / "rank_vs_error.svg").getroot().tag.endswith("svg")


def test_sweep_on_own_csv_gives_one_json_object(run, tmp_path):
    rng = np.random.default_rng(0)
    lines = [f"{a:.3f},{b:.3f},{'yes' if a * b > 0 else 'no'}" for a, b in rng.standard_normal((200, 2))]
    (tmp_path / "mine.CSV").write_text("\n".join(["a,h\u00f6he,label", *lines]), encoding="cp1252")
    options = ["--ranks", 1, 2, "--seeds", 1, "--epochs", 2, "--jobs", 1, "--out", tmp_path / "s", "--json"]
    code, out, err = run("sweep", "--data", tmp_path / "mine.CSV", *options)
    assert (code, out) == (2, "") and "mine.CSV, line 1: byte 0xf6 is not utf-8" in err and "--encoding cp1252" in err
    code, out, err = run("sweep", "--data", tmp_path / "mine.CSV", "--encoding", "cp1252", *options)
    assert code == 0, err
    result = json.loads(out)
    assert len(result["rows"]) == 1 + 3 * 2
    assert result["recipes"]["full"] == {"lr": TUNED[None].lr, "lora_alpha": None, "use_rslora": None}
    assert list(result["recipes"]) == ["full", "1", "2"]


def test_rates_and_scaling_of_a_sweep_are_the_users_or_tuned(run, tmp_path):
    options = ["--ranks", 1, 2, "--seeds", 1, "--epochs", 1, "--jobs", 1, "--out", tmp_path / "s"]
    code, out, _ = run("sweep", *options, "--lr", 0.02, "--use-rslora")
    assert code == 0 and "LoRA, r = 1, 2: lr 0.02, lora_alpha 16, scaling lora_alpha / sqrt(r)" in out
    assert f"full fine-tuning: lr {TUNED[None].lr:g}" in out and "Where you set nothing: chosen on" in out
    (tmp_path / "mine.csv").write_text("a,b,label\n" + "1,2,x\n3,1,y\n2,2,x\n4,1,y\n" * 5)
    code, out, _ = run("sweep", *options, "--data", tmp_path / "mine.csv")
    assert code == 0 and "not on these data; --tune chooses on these" in " ".join(out.split())


def test_a_sweep_that_tunes_says_what_it_tried(run, tmp_path, monkeypatch):
    monkeypatch.setattr("lorabook.studies.tuning.RATES_LORA", (1e-4, 1e-2))
    monkeypatch.setattr("lorabook.studies.tuning.RATES_FULL", (1e-4, 3e-2))
    options = ["--ranks", 2, "--seeds", 2, "--epochs", 3, "--jobs", 1, "--out", tmp_path, "--json"]
    code, out, _ = run("sweep", "--tune", *options)
    rows, result = read_csv(tmp_path / "learning_rates.csv"), json.loads(out)
    assert code == 0 and len(rows) == 2 * (2 + 3 * 2)
    assert result["recipes"]["full"]["lr"] == best_recipes(rows)[None].lr == 3e-2
    assert result["recipes"]["2"] == best_recipes(rows)[2].cells(2)
    assert str(tmp_path / "learning_rates.csv") in result["files"]


def test_spectrum_of_known_model_file_folder_and_matrix(run, tmp_path, rng, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = run("spectrum", "mlp-digits", "--layer", "fc2")
    assert code == 0 and "fc2.weight" in out and "fc1" not in out and "break-even: " in out and "stable r: " in out
    folder = tmp_path / "runs" / "spectrum-mlp-digits"
    curves = read_csv(folder / "spectrum.csv")
    assert [row["r"] for row in curves if row["layer"] == "fc2.weight"] == list(range(129))
    assert all(row["activation_svd_output_error"] <= row["svd_output_error"] + 1e-9 for row in curves)
    assert (folder / "spectrum.svg").exists() and "spectrum.svg (thick: fc2.weight)" in out

    W, X = rng.standard_normal((6, 4)), rng.standard_normal((20, 4))
    np.save(tmp_path / "W.npy", W)
    np.save(tmp_path / "X.npy", X)
    files.write_safetensors(
        tmp_path / "model.safetensors", {"layer.weight": W.astype("f4"), "layer.bias": np.zeros(6, "f4")}
    )
    for model in (tmp_path / "W.npy", tmp_path, tmp_path / "model.safetensors"):
        code, out, _ = run("spectrum", model, "--activations", tmp_path / "X.npy", "--json")
        assert code == 0
        (layer,) = json.loads(out)["layers"]
        s = np.linalg.svd(W, compute_uv=False)
        assert layer["stable_rank"] == pytest.approx((s**2).sum() / s[0] ** 2, rel=1e-5)


def test_figures_redraws_from_csv_alone(run, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "planted_bound.csv").write_bytes((FIGURES / "data" / "planted_bound.csv").read_bytes())
    drawn = []
    for _ in range(2):
        assert run("figures", "planted_bound", "--redraw", "--out", tmp_path)[0] == 0
        drawn.append((tmp_path / "planted_bound.svg").read_bytes())
    assert drawn[0] == drawn[1]


def test_train_writes_an_adapter_and_a_history(run, tmp_path):
    code, out, _ = run(*TRAIN, "--out", tmp_path / "a", "--json")
    assert code == 0
    result = json.loads(out)
    assert result["test_accuracy"]["after"] > 0.8 > 0.2 > result["test_accuracy"]["before"]
    adapter = {"adapter_config.json", "adapter_model.safetensors", "lorabook.json"}
    names = adapter | {"history.csv", "checkpoint.safetensors"}
    assert set(os.listdir(tmp_path / "a")) == names
    assert len(read_csv(tmp_path / "a" / "history.csv")) == result["steps"]


BAD = [
    (["sweep", "--ranks", "0"], "expected an integer from 1 to 1000000000; got '0'"),
    (["sweep", "--ranks", "x"], "expected an integer from 1 to 1000000000; got 'x'"),
    (["sweep", "--ranks", "999"], "larger than the largest possible one, 128"),
    (["sweep", "--seeds", "0"], "from 1 to 1000; got '0'"),
    (["sweep", "--data", "digit"], "unknown data 'digit'"),
    (["sweep", "--data", "nothing.csv"], "nothing.csv"),
    (["sweep", "--lora-alpha", "0"], "expected a finite number above 0; got '0'"),
    (["sweep", "--lr", "-1"], "lr must be a finite number >= 0; got -1.0"),
    (["sweep", "--lr-full", "inf"], "expected a finite number; got 'inf'"),
    (["sweep", "--lr", "fast"], "expected a finite number; got 'fast'"),
    (["sweep", "--tune", "--use-rslora"], "--tune chooses --use-rslora: pass one or the other"),
    (["sweep", "--tune", "--lr-full", "0.1"], "--tune chooses --lr-full: pass one or the other"),
    (["sweep", "--batch-size", "9999"], "batch_size must be an integer from 1 to the 1,198 training rows; got 9999"),
    (["sweep", "--epochs", "0"], "expected an integer from 1 to 1000000000; got '0'"),
    (["sweep", "--backend", "cupy"], "backend cupy cannot be used"),
    (["sweep", "--backend", "torch"], "invalid choice: 'torch'"),
    (["spectrum", "nothing"], "nothing"),
    (["spectrum", "mlp-digits", "--layer", "fc9"], "no matrix is called 'fc9'; expected one of fc1.weight"),
    (["spectrum", "mlp-digits", "--activations", "nothing.npy"], "nothing.npy"),
    (["figures", "rank_vs_eror"], "unknown figure 'rank_vs_eror'; expected one of rank_vs_error"),
    (["notebooks", "99"], "no chapter '99'; expected one of 01_low_rank"),
    (["train", "mlp", "digits"], "unknown model 'mlp'; expected mlp-digits, minilm, smollm2, an adapter folder"),
    (["predict", "mlp", "--text", "a"], "unknown model 'mlp'; expected minilm, smollm2, an adapter folder"),
    (["train", "mlp-digits", "nothing"], "mlp-digits trains on digits, digits-rotated"),
    (["train", "mlp-digits", "digits", "--r", "-1"], "from 1 to 65536; got '-1'"),
    (["train", "mlp-digits", "digits", "--lora-alpha", "inf"], "expected a finite number above 0; got 'inf'"),
    (["train", "mlp-digits", "digits", "--lora-dropout", "1"], "0 <= p < 1; got 1"),
    (
        ["train", "mlp-digits", "digits", "--target-modules", "fc4"],
        "target module 'fc4' matches no linear layer; closest: fc",
    ),
    (["train", "mlp-digits", "digits", "--lr", "-1"], "lr must be a finite number >= 0; got -1"),
    (["train", "mlp-digits", "digits", "--batch-size", "0"], "--batch-size: expected an integer from 1 to"),
    (["train", "mlp-digits", "digits", "--batch-size", "9999"], "batch_size must be an integer from 1 to the 1,198"),
    (["train", "mlp-digits", "digits", "--eval-every", "0"], "--eval-every: expected an integer from 1 to"),
    (
        ["train", "mlp-digits", "digits", "--eval-data", "x.csv"],
        "mlp-digits holds its validation rows out of the train",
    ),
    (["train", "mlp-digits", "digits", "--keep", "first"], "invalid choice: 'first'"),
    (["train", "mlp-digits", "digits", "--adapter", "nothing"], "nothing"),
    (["train", "mlp-digits", "digits", "--warmup", "-1"], "warmup"),
    (["train", "mlp-digits", "digits", "--max-grad-norm", "0"], "above 0; got '0'"),
    (["nonsense"], "invalid choice: 'nonsense'"),
    (["sweep", "--runk", "4"], "lorabook sweep: unrecognized arguments: --runk 4 (see lorabook sweep --help)"),
    (["--json"], "COMMAND"),
    (["sweep", "--jobs", "0"], "from 1 to 1024, or -1; got '0'"),
    (["sweep", "--jobs", "2", "--scheduler", "tcp://localhost:8786"], "not allowed with argument --jobs"),
    (["train", "mlp-digits", "digits", "--workers", "0"], "from 1 to 1024; got '0'"),
    (["evaluate", "mlp-digits", "digits", "--workers", "all"], "from 1 to 1024; got 'all'"),
    (["sweep", "--seed", "-1"], "from 0 to 4294967295; got '-1'"),
    (["spectrum", "nothing.csv"], "nothing.csv"),
    (["spectrum", "mlp-digits", "--activations", "x.txt"], "x.txt: expected a .npy file"),
]


@pytest.mark.parametrize(("argv", "message"), BAD, ids=[" ".join(argv) for argv, _ in BAD])
def test_bad_input_is_one_line_and_exit_code_2(run, tmp_path, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    if argv[:1] == ["train"]:
        argv = [*argv, "--out", "out"]
    code, out, err = run(*argv)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert not [name for name in os.listdir(tmp_path / "out") if name] if (tmp_path / "out").exists() else True


def options():
    """(command, option, its type) of every option that takes a number."""
    (commands,) = (a for a in cli.parser()._actions if isinstance(a, argparse._SubParsersAction))
    return [
        (name, action.option_strings[-1], action.type)
        for name, command in commands.choices.items()
        for action in command._actions
        if action.type is not None
    ]


POSITIONAL = {
    "train": ["mlp-digits", "digits", "--out", "out"],
    "evaluate": ["mlp-digits", "digits"],
    "bench": ["step"],
}
NUMBERS = [
    "",
    "x",
    "nan",
    "inf",
    "-inf",
    "1e400",
    "-1e400",
    "\u00b2",
    "\u0663",
    "0x10",
    "1_0",
    " 5",
    "9" * 5000,
    "1\n",
]
INTEGERS = ["1.5", "1e3", "-2", str(10**30), str(-(10**30))]


@pytest.mark.parametrize(("command", "option", "kind"), options(), ids=lambda value: str(value).split(" ")[0])
def test_every_number_is_checked_before_work_begins(run, tmp_path, monkeypatch, command, option, kind):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(f"lorabook.commands.{command}.run", lambda args: pytest.fail(f"began with {vars(args)}"))
    assert kind.__module__ == "lorabook.commands.arguments", "Python's own int and float let too much pass"
    for value in NUMBERS + INTEGERS * ("integer" in kind.__qualname__):
        code, out, err = run(command, *POSITIONAL.get(command, []), f"{option}={value}")
        assert (code, out) == (2, ""), value
        assert err.count("\n") == 1 and f"argument {option}: expected " in err
    assert os.listdir(tmp_path) == []


def test_an_option_without_a_value_is_not_an_empty_list(run):
    for argv in (
        ["sweep", "--seeds=--"],
        ["sweep", "--out=--"],
        ["train", "mlp-digits", "digits", "--target-modules=--"],
    ):
        code, out, err = run(*argv)
        assert (code, out) == (2, "") and err == f"lorabook: '{argv[-1]}' gives no value\n"


def test_numbers_that_are_read():
    assert [arguments.integer(0)(text) for text in ("0", "+7", "007", "1000000000")] == [0, 7, 7, 10**9]
    assert [arguments.integer(1, 4, -1)(text) for text in ("1", "4", "-1")] == [1, 4, -1]
    for text in ("0", "5", "-2"):
        with pytest.raises(argparse.ArgumentTypeError, match=f"an integer from 1 to 4, or -1; got '{text}'"):
            arguments.integer(1, 4, -1)(text)
    assert [arguments.number()(text) for text in ("1e-3", "-.5", "16", "+2.E+1")] == [0.001, -0.5, 16.0, 20.0]
    with pytest.raises(argparse.ArgumentTypeError, match="a finite number above 0; got '0.0'"):
        arguments.number(above=0)("0.0")


def test_a_backend_of_the_environment_that_is_none(tmp_path):
    """The variable is read when the command line is made."""
    env = os.environ | {"LORABOOK_BACKEND": "nonsense"}
    command = [sys.executable, "-m", "lorabook", "doctor"]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    expected = "lorabook doctor: LORABOOK_BACKEND is 'nonsense'; expected one of numpy, cupy, auto\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", expected)
    assert subprocess.run([*command, "--backend", "numpy"], capture_output=True, env=env).returncode == 0


def test_a_cluster_without_dask_is_refused(run, tmp_path, monkeypatch):
    importlib.import_module("lorabook.parallel.dask")  # what joblib knows of Dask is settled by the first import
    monkeypatch.setitem(sys.modules, "distributed", None)
    for command in (["sweep"], ["figures", "rank_vs_error"]):
        code, out, err = run(*command, "--scheduler", "tcp://localhost:8786", "--out", tmp_path / "s")
        assert (code, out) == (2, "")
        assert "needs distributed" in err and "pip install -e '.[dask]'" in err and err.count("\n") == 1


def test_a_cluster_with_a_gpu_is_refused(run, tmp_path, monkeypatch):
    monkeypatch.setattr("lorabook.commands.sweep.get_xp", lambda name: SimpleNamespace(__name__="cupy"))
    code, _, err = run("sweep", "--backend", "auto", "--scheduler", "tcp://localhost:8786", "--out", tmp_path / "s")
    assert code == 2 and "pass --backend numpy" in err


def test_a_run_that_fails_exits_with_1(run, tmp_path):
    code, out, err = run(*TRAIN, "--lr", "1e30", "--out", tmp_path)
    assert (code, out) == (1, "")
    assert "layer fc" in err
    assert [line.split(":")[0] for line in err.splitlines()] == ["360 steps", "lorabook train"]
    assert "adapter_model.safetensors" not in os.listdir(tmp_path)


def test_a_finished_run_is_not_overwritten(run, tmp_path):
    assert run(*TRAIN, "--out", tmp_path)[0] == 0
    before = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}
    code, _, err = run(*TRAIN, "--out", tmp_path)
    assert code == 2 and "pass --resume" in err
    code, _, err = run(*TRAIN, "--out", tmp_path, "--r", "3", "--resume")
    assert code == 2 and "adapter" in err
    damaged = bytearray(before["checkpoint.safetensors"])
    damaged[-1] ^= 1
    (tmp_path / "checkpoint.safetensors").write_bytes(damaged)
    code, _, err = run(*TRAIN, "--out", tmp_path, "--resume")
    assert code == 2 and "damaged" in err
    (tmp_path / "checkpoint.safetensors").write_bytes(before["checkpoint.safetensors"])
    assert run(*TRAIN, "--out", tmp_path, "--resume")[0] == 0
    assert before == {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}


def test_resume_without_a_checkpoint_does_not_replace_an_adapter(run, tmp_path):
    assert run(*TRAIN, "--out", tmp_path)[0] == 0
    (tmp_path / "checkpoint.safetensors").unlink()
    before = (tmp_path / "adapter_model.safetensors").read_bytes()
    code, _, err = run(*TRAIN, "--out", tmp_path, "--resume")
    assert code == 2 and "no checkpoint to resume from" in err
    assert (tmp_path / "adapter_model.safetensors").read_bytes() == before


def test_resume_names_the_option_that_differs(run, tmp_path):
    assert run(*TRAIN, "--out", tmp_path)[0] == 0
    code, _, err = run(*TRAIN, "--r", "3", "--resume", "--out", tmp_path)
    assert code == 2 and "its adapter.r is 2, here it is 3" in err
    code, _, err = run(*TRAIN, "--epochs", "30", "--resume", "--out", tmp_path)
    assert code == 2 and "its steps is 360, here it is 540; a schedule cannot be lengthened" in err


def test_resume_needs_the_same_optimizer(run, run_json, tmp_path):
    short = [*TRAIN, "--epochs", "1", "--lr", "0.01"]
    hashes = {run_json(*short, "--out", tmp_path / "adamw")["adapter_sha256"]}
    for i, name in enumerate(("lora-pro", "riemannian"), start=2):
        again = run_json(*short, "--optimizer", name, "--out", tmp_path / name)
        assert run_json(*short, "--optimizer", name, "--resume", "--out", tmp_path / name) == again
        hashes.add(again["adapter_sha256"])
        assert len(hashes) == i
        code, out, err = run(*short, "--resume", "--out", tmp_path / name)
        assert (code, out) == (2, "") and "AdamW', here it is 'AdamW'" in err.splitlines()[-1]
    code, out, err = run(*short, "--lora-alpha", "3", "--optimizer", "lora-fa", "--out", tmp_path / "fa")
    assert code == 0
    assert files.read_checkpoint(tmp_path / "fa" / "checkpoint.safetensors")[1]["run"]["optimizer.scaling"] == 1.5


@pytest.mark.parametrize(("name", "of_A", "of_B"), [("adamw", 2, 2), ("sgd", 1, 1), ("muon", 1, 1), ("lora-fa", 0, 2)])
def test_the_memory_of_the_optimizers_state(run_json, tmp_path, name, of_A, of_B):
    """A velocity for each number, or two moments; Muon has one of each factor's, LoRA-FA two of B's."""
    rows = run_json(*TRAIN, "--epochs", "1", "--optimizer", name, "--out", tmp_path)["memory"]
    full, own = rows
    assert full["optimizer"] == (1 if name == "sgd" else 2) * full["gradients"]
    factors = files.read_safetensors(tmp_path / "adapter_model.safetensors")[0].items()
    assert own["optimizer"] == sum((of_A if "lora_A" in name else of_B) * array.nbytes for name, array in factors) > 0
    assert all(row["total"] == row["weights"] + row["gradients"] + row["optimizer"] for row in rows)


def test_an_optimizer_over_factors_that_are_none(run, tmp_path):
    for name, method, message in (
        ("riemannian", "ia3", "RiemannianAdamW: it is made for LoRA's factors lora_A and lora_B, of which none trains"),
        ("lora-pro", "loha", "--optimizer lora-pro needs layers W + s B A, all of one scaling s; they have none"),
    ):
        options = ["--optimizer", name, "--method", method, "--out", tmp_path / "out"]
        code, out, err = run("train", "mlp-digits", "digits", *options)
        assert (code, out) == (2, "") and message in err.splitlines()[-1]
        assert not (tmp_path / "out").exists()


def test_a_sweep_and_a_training_do_not_share_a_folder(run, tmp_path):
    assert run(*TRAIN, "--out", tmp_path)[0] == 0
    code, _, err = run("sweep", "--ranks", 1, "--seeds", 1, "--epochs", 1, "--out", tmp_path)
    assert code == 2 and "holds an adapter" in err


def test_interrupt_says_how_to_go_on(run, tmp_path, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("lorabook.training.train", interrupted)
    code, _, err = run(*TRAIN, "--out", tmp_path)
    assert code == 130 and err.endswith(
        f"{tmp_path} holds no checkpoint yet (there is one every 7 steps): the same command starts over\n"
    )
    (tmp_path / "checkpoint.safetensors").touch()
    code, _, err = run(*TRAIN, "--out", tmp_path, "--resume")
    assert code == 130 and err.endswith(
        f"the same command with --resume goes on at the last checkpoint in {tmp_path}\n"
    )


def test_resume_without_a_checkpoint_says_that_it_starts(run, tmp_path):
    code, _, err = run(*TRAIN, "--out", tmp_path, "--resume")
    assert code == 0 and err.startswith(f"no checkpoint in {tmp_path}: starting at step 0 of ")


def test_doctor_reports_whatever_backend_is_asked_for(run, monkeypatch):
    monkeypatch.setattr("lorabook.commands.doctor.gpu_problem", lambda: "no driver answers")
    code, out, _ = run("doctor", "--backend", "cupy")
    assert code == 0 and "backend       cupy: cannot be used" in out and "no driver answers" in out


def test_terminal_output_fits_80_columns(run, tmp_path):
    sweep = ["sweep", "--ranks", 1, 64, "--seeds", 2, "--epochs", 1, "--jobs", 1, "--out", tmp_path / "s"]
    spectrum = ["spectrum", "mlp-digits", "--out", tmp_path / "p"]
    for argv in (["doctor"], sweep, spectrum, [*TRAIN, "--out", tmp_path / "t"]):
        code, out, _ = run(*argv)
        assert code == 0
        assert max(len(line) for line in out.splitlines() if str(tmp_path) not in line) <= 80


def test_npy_that_promises_more_than_it_holds_is_refused(run, tmp_path):
    np.save(tmp_path / "W.npy", np.zeros((2, 2)))
    data = (tmp_path / "W.npy").read_bytes()
    (tmp_path / "W.npy").write_bytes(data.replace(b"(2, 2), }      ", b"(65536, 65536)}"))
    code, _, err = run("spectrum", tmp_path / "W.npy")
    assert code == 2 and "W.npy" in err
    np.save(tmp_path / "O.npy", np.array([{}], dtype=object), allow_pickle=True)
    code, _, err = run("spectrum", tmp_path / "O.npy")
    assert code == 2 and "O.npy" in err


@pytest.mark.parametrize("times", [4, pytest.param(20, marks=pytest.mark.fuzz)])
def test_kill_9_at_random_moments_then_resume_ends_in_the_same_adapter(tmp_path, times):
    """Every step writes a checkpoint, so that most kills hit a write; each resumed run is killed anew."""
    command = [sys.executable, "-m", "lorabook", *TRAIN[:-3], str(3 * times), "--checkpoint-every", "1", "--out"]
    whole, part = tmp_path / "whole", tmp_path / "part"
    checkpoint, moments, kills = part / "checkpoint.safetensors", random.Random(0), 0

    def sha256(folder):
        return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in sorted(os.listdir(folder))}

    def stamp():
        return checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0

    for _ in range(times):
        before = stamp()
        process = subprocess.Popen([*command, part, "--resume"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while stamp() == before and process.poll() is None:
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.06))
        kills += process.poll() is None
        process.kill()
        process.wait()
    assert kills == times
    assert files.read_checkpoint(checkpoint)[1]["step"] < 18 * 3 * times
    subprocess.run([*command, part, "--resume"], check=True, capture_output=True)
    subprocess.run([*command, whole], check=True, capture_output=True)
    assert sha256(part) == sha256(whole)


def test_kill_9_of_a_run_that_keeps_the_best_then_resume(tmp_path):
    """Kills before, between and after evaluations: the same files as of a run that nobody disturbs."""
    options = ["--epochs", "5", "--keep", "best", "--eval-every", "7", "--checkpoint-every", "2", "--workers", "1"]
    command = [sys.executable, "-m", "lorabook", "train", "mlp-digits", "digits-rotated", "--lr", "0.2", *options]
    whole, part, copy = tmp_path / "whole", tmp_path / "part", tmp_path / "copy"

    def step():
        try:
            shutil.copyfile(part / "checkpoint.safetensors", copy)  # the run replaces it while it is read
        except FileNotFoundError:
            return 0
        return files.read_checkpoint(copy)[1]["step"]

    for until in (2, 18, 40):
        process = subprocess.Popen([*command, "--out", part, "--resume"], stderr=subprocess.DEVNULL)
        while process.poll() is None and step() < until:
            time.sleep(0.001)
        process.kill()
        process.wait()
    assert 40 <= step() < 70, "no run was killed in the middle"
    subprocess.run([*command, "--out", part, "--resume"], check=True, capture_output=True)
    subprocess.run([*command, "--out", whole], check=True, capture_output=True)
    assert {p.name: p.read_bytes() for p in part.iterdir()} == {p.name: p.read_bytes() for p in whole.iterdir()}
    evaluated = [row["step"] for row in read_csv(part / "history.csv") if row["eval_loss"] is not None]
    assert evaluated == [*range(6, 70, 7)]
