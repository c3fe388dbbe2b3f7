"""Data parallel training over MPI ranks, as a user starts it: mpiexec, several processes, one result."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from checks import MPIEXEC, on_ranks, tiny_bert, write_bert
from threadpoolctl import threadpool_limits

from lorabook import cli
from lorabook.data import text_file
from lorabook.files import read_csv

PYTHON = [sys.executable, "-m", "mpi4py"]
FILES = {"adapter_config.json", "adapter_model.safetensors", "lorabook.json", "history.csv", "checkpoint.safetensors"}
STEPS, SHARDS = 6, 4  # of OPTIONS: 3 epochs of 480 texts in batches of 227, whose 2,043 tokens are 4 shards
OPTIONS = [
    *("--epochs", 3, "--batch-size", 227, "--max-length", 9, "--r", 2, "--lr", 0.01, "--max-grad-norm", 0.1),
    *("--target-modules", "all-linear", "--checkpoint-every", 2),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A BERT folder, and a CSV of 640 texts of 9 tokens each."""
    folder = tmp_path_factory.mktemp("ranks")
    network = tiny_bert(np.random.default_rng(0), dtype="float32")
    write_bert(folder / "model", network, tensors={"classifier.weight": None, "classifier.bias": None})
    rng = np.random.default_rng(1)
    lines = [
        f"{' '.join(rng.choice(('good fine film', 'bad poor film')[i % 2].split(), 7))},{i % 2}" for i in range(640)
    ]
    (folder / "data.csv").write_text("\n".join(["text,label", *lines]))
    return folder


@pytest.fixture(scope="module")
def train(folder):
    """The arguments of a training into a folder."""

    def arguments(out, *more, model="model", data="data.csv", options=OPTIONS, dropout=0.0):
        model = ["train", folder / model, folder / data, "--lora-dropout", dropout]
        return [str(a) for a in (*model, "--out", out, *options, *more)]

    return arguments


@pytest.fixture(scope="module")
def whole(train, tmp_path_factory):
    """{dropout: the files of the run that one process with one thread makes}."""
    runs = {}
    for dropout in (0.0, 0.2):
        out = tmp_path_factory.mktemp("whole")
        assert cli.main(train(out, "--workers", 1, dropout=dropout)) == 0
        runs[dropout] = contents(out)
        assert runs[dropout].keys() == FILES
    assert runs[0.0]["adapter_model.safetensors"] != runs[0.2]["adapter_model.safetensors"]
    return runs


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def job(n, *commands, code=0):
    """Output and errors of mpiexec with n ranks, or with one of each command; all end with `code`."""
    each = [["-n", str(n), *PYTHON, *map(str, command)] for command in commands]
    argv = [word for command in each for word in (":", *command)][1:]
    done = subprocess.run([MPIEXEC, *argv], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


def distributed(n, *commands, code=0):
    return job(n, *(["-m", "lorabook", *command, "--distributed"] for command in commands), code=code)


# ---- the same bits ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [2, 3, 7])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_threads_do_not_change_a_byte(train, whole, tmp_path, workers, dropout):
    assert cli.main(train(tmp_path, "--workers", workers, dropout=dropout)) == 0
    assert contents(tmp_path) == whole[dropout]


@on_ranks
@pytest.mark.parametrize(("n", "dropout"), [(2, 0.0), (2, 0.2), (3, 0.2), (4, 0.0)])
def test_ranks_make_the_files_of_one_process_and_print_once(train, whole, tmp_path, n, dropout):
    out, err = distributed(n, train(tmp_path, "--json", dropout=dropout))
    assert contents(tmp_path) == whole[dropout]
    result = json.loads(out)
    assert re.fullmatch(r"6 steps: \d+ training rows in batches of 227, 3 epochs of 2 steps\nnote: hardly .*\n", err)
    steps = read_csv(tmp_path / "history.csv")
    assert result["steps"] == len(steps) == STEPS
    assert max(step["grad_norm"] for step in steps) > 0.1, "nothing was clipped"

    traffic = result["traffic"]
    trained = result["memory"][1]["trained"]
    columns = -(-(1 + trained) // n)
    assert (traffic["ranks"], traffic["steps"], traffic["shards"]) == (n, STEPS, STEPS * SHARDS)
    assert traffic["bytes"] == STEPS * (n - 1) * (SHARDS + n) * columns * 4
    assert traffic["all_reduce"] == STEPS * 2 * (n - 1) * trained * 4
    assert traffic["full"] == STEPS * 2 * (n - 1) * result["memory"][0]["trained"] * 4


@on_ranks
def test_ranks_keep_the_best_as_one_process_does(train, run, tmp_path):
    options = ["--epochs", 4, "--batch-size", 90, "--max-length", 9, "--r", 2, "--lr", 0.3, "--keep", "best"]
    options += ["--eval-every", 3, "--checkpoint-every", 5]
    out, _ = distributed(2, train(tmp_path / "two", "--json", options=options))
    assert run(*train(tmp_path / "one", options=options))[0] == 0
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    result = json.loads(out)
    assert result["kept_step"] < result["steps"], "the last is the best: no test"
    assert sum(row["eval_loss"] is not None for row in read_csv(tmp_path / "two" / "history.csv")) > 3


@on_ranks
def test_the_bytes_of_a_step_are_printed(train, tmp_path):
    out, _ = distributed(2, train(tmp_path))
    assert out.count("test accuracy") == 1
    trained = int(next(line for line in out.splitlines() if line.startswith("LoRA ")).split()[1])
    assert f" {(SHARDS + 2) * -(-(1 + trained) // 2) * 4:,} bytes" in out
    assert f" {2 * trained * 4:,} " in out
    assert max(len(line) for line in out.splitlines() if str(tmp_path) not in line) <= 80


@on_ranks
def test_one_rank_needs_no_mpiexec(train, whole, tmp_path):
    command = [sys.executable, "-m", "lorabook", *train(tmp_path), "--distributed"]
    subprocess.run(command, check=True, capture_output=True)
    assert contents(tmp_path) == whole[0.0]


@on_ranks
def test_idle_ranks_are_noted_once(run, train, tmp_path):
    options = ["--epochs", 1, "--batch-size", 40, "--max-length", 9, "--r", 2]
    _, err = distributed(3, train(tmp_path / "three", options=options))
    plan, idle, _ = err.splitlines()
    assert plan.endswith("training rows in batches of 40, 1 epoch of 12 steps")
    assert idle == "note: a batch of 2 shards leaves 1 of 3 ranks idle; try a larger --batch-size"
    assert run(*train(tmp_path / "one", options=options))[0] == 0
    assert contents(tmp_path / "three") == contents(tmp_path / "one")


@on_ranks
@pytest.mark.parametrize("n", [1, 2, 3])
def test_ranks_add_up_as_one_process_does_whatever_the_sizes(tmp_path, n):
    """Features of other libraries than NumPy too; sizes that do not divide; a gradient of the base weights."""
    script = tmp_path / "sizes.py"
    script.write_text(SIZES)
    out, _ = job(n, [script])
    assert out == "compared 8\n"


SIZES = """
import numpy as np
from lorabook import get_xp
from lorabook.backend import data_like, to_numpy
from lorabook.models import MLP
from lorabook.parallel import Workers, cut
from lorabook.parallel import Ranks

with Ranks(1) as ranks:
    compared = 0
    for library in ("numpy", "array_api_strict"):
        for hidden, rows, shards in ((3, 100, 1), (4, 1024, 2), (5, 2300, 4), (6, 3001, 6)):
            rng = np.random.default_rng(rows)
            model = MLP((4, hidden, 3), rng=rng).to(get_xp(library))
            like = next(iter(model.named_params().values()))
            x = rng.standard_normal((rows, 4))
            labels = rng.integers(0, 3, rows)
            labels[: rows // shards if rows > 3000 else 0] = -1  # a shard in which no label counts
            batch = data_like({"x": x, "labels": labels}, like)
            assert len(cut(model, batch)) == shards
            loss, grads = ranks.loss_and_grad(model, batch)
            with Workers(1) as alone:
                expected, gradients = alone.loss_and_grad(model, batch)
            assert float(loss) == float(expected)
            assert grads.keys() == gradients.keys()
            for name, grad in grads.items():
                assert type(grad) is type(gradients[name]) and grad.dtype == gradients[name].dtype
                assert to_numpy(grad).tobytes() == to_numpy(gradients[name]).tobytes(), name
            compared += 1
    print("compared", compared)
"""


# ---- a rank that is lost, fails, or has something else ---------------------------------------------------------------

# `python -m mpi4py BREAK what rank ...`: this rank meets trouble in its 5th shard, which is in the 3rd step of 2 ranks
BREAK = """
import os, pathlib, signal, sys, time
from mpi4py import MPI
from lorabook import InputError, cli
from lorabook.parallel import mpi
from lorabook.files import read_checkpoint
from lorabook.models import BertForSequenceClassification as Model

what, rank, shards = sys.argv[1], int(sys.argv[2]), []
trouble = {
    "input": lambda model: (_ for _ in ()).throw(InputError("the input is bad")),
    "disk": lambda model: (_ for _ in ()).throw(OSError("the disk is full")),
    "bug": lambda model: {}["no such key"],
    "kill": lambda model: (
        wait_for_step(2),  # until rank 0 has saved it, and waits for this one
        pathlib.Path(__file__).with_name("killed").touch(),
        os.kill(os.getpid(), signal.SIGKILL),
    ),
    "drift": lambda model: model.trainable_params()["classifier.bias"].__iadd__(1),
    "deaf": lambda model: time.sleep(60) if MPI.COMM_WORLD.rank != rank else trouble["input"](model),
}
compute = Model.loss_and_grad
checkpoint = pathlib.Path(sys.argv[3 + sys.argv[3:].index("--out") + 1]) / "checkpoint.safetensors"

def wait_for_step(step):
    end = time.time() + 60
    while time.time() < end and not (checkpoint.exists() and read_checkpoint(checkpoint)[1]["step"] == step):
        time.sleep(0.05)

def loss_and_grad(self, *batch):
    shards.append(batch)
    if len(shards) == 5 and (MPI.COMM_WORLD.rank == rank or what == "deaf"):
        trouble[what](self)
    return compute(self, *batch)

Model.loss_and_grad = loss_and_grad
mpi.PATIENCE = 0.5 if what == "deaf" else 60
sys.exit(cli.main(sys.argv[3:]))
"""


@pytest.fixture
def broken(tmp_path, train):
    """The command of a run with 2 ranks in which `rank` meets trouble."""
    (tmp_path / "break.py").write_text(BREAK)

    def command(what, rank, out, **options):
        return [tmp_path / "break.py", what, rank, *train(out, "--workers", 1, "--distributed", **options)]

    return command


@on_ranks
@pytest.mark.parametrize("rank", [0, 1])
def test_a_lost_rank_ends_the_job_and_any_number_of_ranks_resumes(broken, train, run, whole, tmp_path, rank):
    command = [str(a) for a in (MPIEXEC, "-n", 2, *PYTHON, *broken("kill", rank, tmp_path / "part", dropout=0.2))]
    done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL)
    assert time.time() - (tmp_path / "killed").stat().st_mtime < 10
    assert done.returncode != 0
    assert contents(tmp_path / "part").keys() - {".lorabook.lock"} == {"checkpoint.safetensors"}
    for n in (2, 4) if rank else (0, 1):  # 0: without --distributed
        shutil.copytree(tmp_path / "part", tmp_path / f"{n}")
        command = train(tmp_path / f"{n}", "--resume", dropout=0.2)
        err = distributed(n, command)[1] if n else run(*command)[2]
        assert err.splitlines()[0] == f"continuing at step 2 of {STEPS}"
        assert contents(tmp_path / f"{n}") == whole[0.2]


@on_ranks
def test_only_the_first_rank_touches_its_folder(broken, train, whole, tmp_path):
    commands = [train(tmp_path / name) for name in ("first", "second")]
    distributed(1, *commands)
    assert contents(tmp_path / "first") == whole[0.0]
    shutil.rmtree(tmp_path / "first")
    job(2, broken("disk", 1, tmp_path / "first"), code=1)
    distributed(1, *([*command, "--resume"] for command in commands))
    assert contents(tmp_path / "first") == whole[0.0]
    assert not (tmp_path / "second").exists()


@on_ranks
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("what", "code", "message"),
    [("input", 2, "the input is bad"), ("disk", 1, "the disk is full"), ("bug", 1, "KeyError: 'no such key'")],
)
def test_an_error_in_one_rank_is_said_once_and_ends_all(broken, tmp_path, rank, what, code, message):
    out, err = job(2, broken(what, rank, tmp_path / "part"), code=code)
    assert out == ""
    if what == "bug":  # the traceback is shown, and names the line
        assert err.count("Traceback") == 1 and "trouble[what](self)" in err
    else:
        assert err.splitlines()[1:] == [f"lorabook train: {f'rank {rank}: ' if rank else ''}{message}"]
    assert message in err
    assert contents(tmp_path / "part").keys() == {"checkpoint.safetensors"}


@on_ranks
def test_a_rank_in_trouble_does_not_wait_for_those_who_do_not_listen(broken, tmp_path):
    out, err = job(2, broken("deaf", 1, tmp_path / "part"), code=2)
    assert out == "" and err.count("rank 1: the input is bad") == 1


@on_ranks
@pytest.mark.parametrize("rank", [0, 1])
def test_weights_that_drift_apart_are_noticed(broken, tmp_path, rank):
    out, err = job(2, broken("drift", rank, tmp_path / "part"), code=1)
    assert out == "" and err.count("\n") == 2  # how many steps there are, and why they ended
    assert "rank 1 differs from rank 0 in weights after step 3" in err
    assert read_steps(tmp_path / "part") == 2


@on_ranks
def test_an_interrupt_says_once_how_to_go_on(train, tmp_path):
    command = [MPIEXEC, "-n", "2", *PYTHON, "-m", "lorabook", *train(tmp_path, "--epochs", 10**6), "--distributed"]
    started = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "checkpoint.safetensors").exists():
        assert started.poll() is None
        time.sleep(0.01)
    started.send_signal(signal.SIGINT)
    _, err = started.communicate()
    assert started.returncode == 130
    assert err.count("interrupted; the same command with --resume goes on at the last checkpoint") == 1


def read_steps(folder):
    from lorabook.files import read_checkpoint

    return read_checkpoint(folder / "checkpoint.safetensors")[1]["step"]


@pytest.fixture
def others(folder):
    """Another model, and data with a training row twice, or a test row."""
    network = tiny_bert(np.random.default_rng(0), dtype="float32")
    network.named_params()["bert.encoder.layer.1.output.dense.bias"][0] += 1e-6
    write_bert(folder / "other", network, tensors={"classifier.weight": None, "classifier.bias": None})
    lines, task = (folder / "data.csv").read_text().splitlines(), text_file(folder / "data.csv")
    for name, rows in (("train.csv", task.train), ("test.csv", task.test)):
        text, label = rows[0]
        (folder / name).write_text("\n".join([*lines, f"{text},{label}"]))


@on_ranks
@pytest.mark.parametrize(
    ("change", "more", "named"),
    [
        ({"model": "other"}, (), "base_weights.sha256: '"),
        ({"data": "train.csv"}, (), "training_rows.rows: "),
        ({"data": "test.csv"}, (), "test_rows.rows: "),
        ({}, ("--lr", 0.02), "optimizer.lr: 0.02, on rank 0 0.01"),
        ({}, ("--r", 3), "adapter.r: 3, on rank 0 2"),
    ],
    ids=str,
)
def test_a_rank_with_something_else_is_refused(others, train, tmp_path, change, more, named):
    commands = train(tmp_path / "a"), train(tmp_path / "a", *more, **change)
    out, err = distributed(1, *commands, code=2)
    assert out == "" and err.count("\n") == 1
    assert f"rank 1 differs from rank 0 in {named}" in err
    assert contents(tmp_path / "a") == {}


@on_ranks
@pytest.mark.parametrize("n", [1, 2])
def test_data_that_is_missing_on_one_rank_or_all_is_one_line(train, tmp_path, n):
    commands = [train(tmp_path / "a", data=name) for name in ("data.csv", "nothing.csv")]
    out, err = distributed(2, commands[1], code=2) if n == 2 else distributed(1, *commands, code=2)
    assert out == "" and err.count("nothing.csv: ") == err.count("cannot read") == 1


@on_ranks
def test_a_folder_that_holds_a_run_is_refused(train, tmp_path):
    (tmp_path / "checkpoint.safetensors").write_text("mine")
    out, err = distributed(2, train(tmp_path), code=2)
    assert out == "" and err.count("\n") == 1 and "pass --resume" in err
    assert contents(tmp_path) == {"checkpoint.safetensors": b"mine"}


@on_ranks
def test_the_mpiexec_of_another_library_is_refused(run, train, tmp_path):
    command = [sys.executable, "-m", "lorabook", *train(tmp_path / "a"), "--distributed"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMPI_COMM_WORLD_SIZE": "2"})
    assert (done.returncode, done.stdout) == (2, "")
    assert "mpiexec started 2 processes, but mpi4py sees 1" in done.stderr
    assert not (tmp_path / "a").exists()


def test_without_mpi4py_the_extra_is_named(run, train, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    code, out, err = run(*train(tmp_path / "a"), "--distributed")
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert "pip install -e '.[mpi]'" in err
    assert not (tmp_path / "a").exists()


def test_resume_on_the_same_machine_is_no_news(run, train, tmp_path):
    """The steps are computed with one BLAS thread, however many the process has; checkpoints are compared in that."""
    with threadpool_limits(2):
        assert run(*train(tmp_path))[0] == 0
        code, _, err = run(*train(tmp_path), "--resume")
    assert code == 0 and err.splitlines()[0] == f"continuing at step {STEPS} of {STEPS}"
    assert "was written with" not in err
