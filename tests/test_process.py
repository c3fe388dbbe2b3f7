"""The command as a process: signals, pipes, terminals, full disks. One line each; what was there stays."""

import contextlib
import itertools
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from checks import tiny_bert, write_bert

from lorabook import InputError, LoRAConfig, cli, files, inject
from lorabook.adapters import peft_folder
from lorabook.files import read_csv
from lorabook.training import checkpoint

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and file names as they are on Linux and macOS")
COMMAND = [sys.executable, "-m", "lorabook"]
TRAIN = ["train", "mlp-digits", "digits-rotated", "--r", "2", "--epochs", "200", "--checkpoint-every", "1"]
SWEEP = ["sweep", "--jobs", "2", "--ranks", "1", "2", "--epochs", "30"]
PIPES = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}


def call(*argv, **options):
    """(exit code, stdout, stderr) of a process of its own."""
    done = subprocess.run([*COMMAND, *argv], **({"timeout": 120} | PIPES | options))
    return done.returncode, *((b or b"").decode(errors="surrogateescape") for b in (done.stdout, done.stderr))


@pytest.fixture(scope="module")
def merging(tmp_path_factory):
    """Arguments of merge, for a small model and an adapter of it."""
    folder = tmp_path_factory.mktemp("models")
    model = tiny_bert(np.random.default_rng(0), dtype="float32")
    base = write_bert(folder / "base", model)
    config = LoRAConfig(r=2, target_modules=["query"], modules_to_save=["classifier"], init_lora_weights=False)
    inject(model, config, np.random.default_rng(0))
    (folder / "adapter").mkdir()
    peft_folder.save_adapter(folder / "adapter", model, str(base), "SEQ_CLS", list("abc"))
    return ["merge", str(base), "--adapter", str(folder / "adapter")]


# ---- signals ---------------------------------------------------------------------------------------------------------


def stopped(argv, out, moment, kind=signal.SIGINT):
    """(exit code, stderr) of a command that gets a signal after `moment` seconds, with all its children, as by ^C."""
    process = subprocess.Popen([*COMMAND, *argv, "--out", out], **PIPES, text=True, start_new_session=True)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(moment)
    if process.poll() is None:
        os.killpg(process.pid, kind)
    _, err = process.communicate(timeout=60)
    return process.returncode, err


@pytest.mark.parametrize("command", ["train", "sweep", "merge"])
def test_interrupted_at_any_moment(command, merging, tmp_path):
    """One line and exit code 130, whether the command loads, works or writes; nothing half-written stays."""
    argv = {"train": TRAIN, "sweep": SWEEP, "merge": merging}[command]
    moments, codes, longest = random.Random(command), [], 5.0
    if command == "merge":  # a short one: signals while it lasts, on this machine
        start = time.monotonic()
        assert stopped(argv, tmp_path / "whole", 30, None)[0] == 0
        longest = time.monotonic() - start
    for i in range(4):
        out = tmp_path / str(i)
        code, err = stopped(argv, out, moments.uniform(0.1, 0.3 + 0.2 * i) * longest)
        codes.append(code)
        if "site" in err.partition("\n")[0] or "<frozen" in err.partition("lorabook")[0]:
            continue  # Python itself had not started yet
        if code == 0:
            continue  # was faster
        # CPython ends by the signal itself if it came while a text was executed; to a shell that is 130 as well
        assert code in (130, -signal.SIGINT), err
        *before, last = err.splitlines()
        assert last.startswith("lorabook") and "interrupted" in last, err
        assert not [line for line in before if not re.match(r"[\d,]+ steps: |step |about ", line)], err
        kept = {"train": {"checkpoint.safetensors"}, "sweep": {"unfinished"}, "merge": set()}[command]
        assert not out.exists() or {*os.listdir(out)} <= kept
        assert not list(out.rglob(".lorabook*"))
    assert any(codes)


@pytest.mark.parametrize("ending", ["an error", "^C"])
def test_the_processes_of_a_sweep_leave_nothing_behind_that_python_warns_about(tmp_path, ending):
    """Killed ones clear nothing away themselves: semaphores that they made would be reported below our line."""
    out = tmp_path / "out"
    argv = [*SWEEP, "--lr-full", "0"] if ending == "an error" else [*SWEEP[:-1], "300"]
    process = subprocess.Popen([*COMMAND, *argv, "--out", out], **PIPES, text=True, start_new_session=True)
    if ending == "^C":
        while not list(out.glob("unfinished/*")) and process.poll() is None:
            time.sleep(0.05)
        time.sleep(0.5)  # the workers train the next rows
        os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == (2 if ending == "an error" else 130)
    *before, last = err.splitlines()  # before: on a slow machine, how long it will take
    told = ("about ", "after ^C the same command goes on", f"  {out}")
    assert last.startswith("lorabook sweep: ") and not [line for line in before if not line.startswith(told)], err


def test_terminated_is_one_line_and_clears_up(tmp_path):
    process = subprocess.Popen([*COMMAND, *TRAIN, "--out", tmp_path / "a"], **PIPES, text=True)
    while not (tmp_path / "a" / "checkpoint.safetensors").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143 and err.splitlines()[-1].startswith("lorabook train: terminated; the same command")
    assert os.listdir(tmp_path / "a") == ["checkpoint.safetensors"]
    files.read_checkpoint(tmp_path / "a" / "checkpoint.safetensors")


def test_a_stopped_command_clears_up_and_leaves_the_interpreter_as_it_is(tmp_path):
    """What is registered for the end is called; nothing is taken to pieces, which threads that still run can abort."""
    code = "import atexit, sys; from lorabook.__main__ import run; import lorabook.cli as cli; "
    code += "kept = type('Kept', (), {'__del__': lambda _: print('taken to pieces')})(); "
    code += "cli.main = lambda: atexit.register(print, 'cleared up') and int(sys.argv[1]); sys.exit(run())"
    done = {n: subprocess.run([sys.executable, "-c", code, str(n)], **PIPES, text=True) for n in (0, 130, 143)}
    assert {n: (run.returncode, run.stdout.splitlines(), run.stderr) for n, run in done.items()} == {
        0: (0, ["cleared up", "taken to pieces"], ""),
        130: (130, ["cleared up"], ""),
        143: (143, ["cleared up"], ""),
    }


# ---- a terminal ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("columns", "evaluated"), [(80, True), (0, True), (80, False)])
def test_the_bar_of_train_shows_loss_and_accuracy(tmp_path, columns, evaluated):
    """In a pseudo-terminal, until the bar has been drawn with an evaluation; then ^C. 0: one that says no width.

    Without an evaluation the accuracy is that of the batches that are trained on.
    """
    reading, terminal = os.openpty()
    termios.tcsetwinsize(terminal, (24, columns))
    argv = [*TRAIN[:5], "--epochs", "2000", *["--eval-every", "20"] * evaluated, "--out", tmp_path / "a"]
    process = subprocess.Popen([*COMMAND, *argv], stdout=subprocess.DEVNULL, stderr=terminal, start_new_session=True)
    os.close(terminal)
    text = r"([ \d]+%\|[^\r|]*\| *(\d+)/(\d+), [\d:]+ left, loss (\S+)"
    text += r"; held out: loss (\S+), (\S+) % right)" if evaluated else r"(), (\d+)% right)"
    bar = re.compile(rf"\r{text} *(?=\r)")
    seen = ""
    with contextlib.suppress(OSError):  # what Linux says where the other end is closed
        while not bar.search(seen) and (more := os.read(reading, 1 << 16)):
            seen += more.decode()
    os.killpg(process.pid, signal.SIGINT)
    with contextlib.suppress(OSError):
        while more := os.read(reading, 1 << 16):
            seen += more.decode()
    os.close(reading)
    found = bar.search(seen)
    assert process.wait(timeout=60) == 130 and found, seen
    step, steps, loss, held_out, accuracy = (float(number or 1) for number in found.groups()[1:])
    assert (
        20 <= step < steps == 2000 * (14 if evaluated else 18)
        and 0 < loss < 5
        and 0 < held_out < 5
        and 0 < accuracy <= 100
    )
    assert len(found[1]) <= (columns or 80)
    assert seen.splitlines()[-1].startswith("lorabook train: interrupted; the same command with --resume goes on")


# ---- what reads the output -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("argv", [["--help"], ["sweep", "--help"], ["--version"], ["doctor"], ["doctor", "--json"]])
def test_a_reader_that_has_gone_ends_it_quietly(argv):
    """As `| head` does."""
    reading, writing = os.pipe()
    os.close(reading)
    code, _, err = call(*argv, stdout=writing)
    os.close(writing)
    assert code in (0, 141) and err == ""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
@pytest.mark.parametrize(
    "argv",
    [["--help"], ["--version"], ["train", "--help"], ["doctor"], ["fetch"], ["predict", "MODEL", "--text", "a"]],
    ids=" ".join,
)
def test_a_full_disk_behind_the_output(argv, tmp_path):
    if "MODEL" in argv:
        folder = write_bert(tmp_path / "model", tiny_bert(np.random.default_rng(0), dtype="float32"))
        argv = [str(folder) if word == "MODEL" else word for word in argv]
    with open("/dev/full", "w") as full:
        code, _, err = call(*argv, stdout=full)
    command = "lorabook" if argv[0].startswith("-") else f"lorabook {argv[0]}"
    assert (code, err) == (1, f"{command}: No space left on device\n")


TERMINALS = {
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "cp1252": {"PYTHONIOENCODING": "cp1252"},
    "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "strict": {"PYTHONIOENCODING": "ascii:strict"},
}


@pytest.mark.parametrize("terminal", TERMINALS)
def test_terminals_that_lack_characters(tmp_path, terminal):
    """The names of the matrix and of the folder, in letters that neither ascii nor cp1252 has."""
    matrix, out = tmp_path / "матрица é.npy", tmp_path / "рисунок é"
    np.save(matrix, np.diag([3.0, 2.0, 1.0]))
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG", "PYTHONIO", "PYTHONUTF8"))}
    env = variables | TERMINALS[terminal]
    names = [os.fsencode(matrix), b"--out", os.fsencode(out)]
    code, said, err = call("spectrum", *names, env=env)
    assert (code, err) == (0, "") and "3x3" in said
    assert len(read_csv(out / "spectrum.csv")) == 4
    code, said, err = call("spectrum", os.fsencode(tmp_path / "ничего é"), env=env)
    assert code == 2 and err.count("\n") == 1 and "Traceback" not in err


@pytest.mark.skipif(sys.platform == "darwin", reason="file names are UTF-8 there")
def test_a_file_name_that_is_no_text(tmp_path):
    matrix, out = os.fsencode(tmp_path) + b"/caf\xe9 $a$ \n.npy", os.fsencode(tmp_path) + b"/out\xe9"
    np.save(os.fsdecode(matrix), np.diag([3.0, 2.0, 1.0]))
    for more in ([], ["--json"]):
        code, said, err = call("spectrum", matrix, "--out", out, *more)
        assert (code, err) == (0, "") and "caf\\udce9" in said
    assert len(read_csv(Path(os.fsdecode(out)) / "spectrum.csv")) == 4
    code, _, err = call("spectrum", os.fsencode(tmp_path) + b"/\xe9\n\x1b[1m")
    assert code == 2 and err.count("\n") == 1 and "\\udce9\\n\\x1b[1m" in err and "\x1b" not in err


# ---- disks that are full, or cannot be written to --------------------------------------------------------------------


@pytest.fixture
def full_disk():
    """Context in which no file gets larger than 200 bytes: what a full disk does, with another errno."""

    @contextlib.contextmanager
    def limited():
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited


@pytest.mark.parametrize("command", ["train", "sweep", "merge", "spectrum"])
def test_a_disk_that_is_full(run, command, merging, tmp_path, full_disk):
    argv, file = {
        "train": ([*TRAIN[:5], "--epochs", "1"], "checkpoint.safetensors"),
        "sweep": (
            ["sweep", "--jobs", "1", "--seeds", "1", "--ranks", "1", "--epochs", "1"],
            "unfinished/full-0.safetensors",
        ),
        "merge": (merging, "tokenizer.json"),
        "spectrum": (["spectrum", "mlp-digits"], "spectrum.csv"),
    }[command]
    out = tmp_path / "out"
    with full_disk():
        code, said, err = run(*argv, "--out", out)
    assert (code, said) == (1, "")
    assert err.splitlines()[-1] == f"lorabook {command}: {out / file}: File too large", err
    assert not [path for path in out.rglob("*") if path.is_file()]


def test_a_full_disk_leaves_the_checkpoint_that_was_there(run, tmp_path, full_disk, monkeypatch):
    out, argv = tmp_path / "out", [*TRAIN[:5], "--epochs", "2", "--checkpoint-every", "9", "--out"]
    whole = tmp_path / "whole"
    assert run(*argv, whole)[0] == 0
    save, calls = checkpoint.Checkpoint.save, itertools.count()

    def cut_off(self, *args):
        if next(calls) == 2:
            with full_disk():
                return save(self, *args)
        return save(self, *args)

    monkeypatch.setattr(checkpoint.Checkpoint, "save", cut_off)
    code, _, err = run(*argv, out)
    assert code == 1 and err.splitlines()[-1] == f"lorabook train: {out / 'checkpoint.safetensors'}: File too large"
    assert os.listdir(out) == ["checkpoint.safetensors"]
    assert run(*argv, out, "--resume")[0] == 0
    for path in whole.iterdir():
        assert path.read_bytes() == (out / path.name).read_bytes()


@pytest.mark.parametrize("folder", ["/proc/lorabook", "/dev/null/a"])
@pytest.mark.skipif(not os.path.exists("/proc/self"), reason="no folder here that even root cannot write to")
def test_a_folder_that_cannot_be_written_to(run, folder, merging):
    sweep = ["sweep", "--jobs", "1", "--seeds", "1", "--ranks", "1", "--epochs", "1"]
    for argv in (TRAIN, sweep, merging, ["spectrum", "mlp-digits"], ["figures", "planted_bound", "--redraw"]):
        code, said, err = run(*argv, "--out", folder)
        assert (code, said) == (2, "")
        assert err.splitlines()[-1].startswith(f"lorabook {argv[0]}: cannot write to the output folder {folder}"), err


READING = {
    "train": "train base data.csv --max-length 9 --r 2 --epochs 1 --out out",
    "predict": "predict base texts.txt --out out/answers.csv",
    "merge": "merge base --adapter adapter --out out",
    "spectrum": "spectrum adapter --out out",
    "sweep": "sweep --data numbers.csv --jobs 1 --ranks 1 --seeds 1 --epochs 1 --out out",
    "figures": "figures planted_bound --redraw --out out",
}


@pytest.mark.parametrize("there", [True, False], ids=["there", "to be made"])
@pytest.mark.parametrize("command", READING)
def test_a_folder_of_results_that_is_read_only(run, command, there, merging, public, read_only, monkeypatch):
    """What it holds stays, and no work begins that could not be saved."""
    for name in ("base", "adapter"):
        shutil.copytree(Path(merging[1]).parent / name, public / name)
    (public / "data.csv").write_text("text,label\n" + "".join(f"good{' film' * i},{i % 3}\n" for i in range(24)))
    (public / "texts.txt").write_text("good\nbad\n")
    (public / "numbers.csv").write_text("p,q,label\n" + "1,2,x\n3,1,y\n2,2,x\n4,1,y\n" * 5)
    monkeypatch.chdir(public)
    out = Path("results") if there else Path("results/new")
    Path("results").mkdir()
    Path("results/spectrum.csv").write_text("as it was")
    first = run(*READING[command].replace("--out out", "--out first").split())  # imports what it takes, as root
    assert first[0] == (2 if command == "figures" else 0), first  # no numbers to draw
    argv = READING[command].replace("--out out", f"--out {out}").split()
    with read_only(Path("results")):
        code, said, err = run(*argv)
    expected = f"lorabook {command}: cannot write to the output folder {out}: Permission denied. Choose another one"
    assert (code, said) == (2, "") and err.splitlines()[-1] == f"{expected} with --out"
    assert [p.read_text() for p in Path("results").iterdir()] == ["as it was"]
    assert not [line for line in err.splitlines()[:-1] if not line.startswith("note: ")], err


def test_what_goes_wrong_with_a_file_is_one_line_that_names_it(run, monkeypatch):
    for error, code, said in (
        (FileNotFoundError(2, "No such file or directory", "a\nb"), 2, "a\\nb: No such file or directory"),
        (PermissionError(13, "Permission denied", "x"), 2, "x: Permission denied"),
        (IsADirectoryError(21, "Is a directory", "x"), 2, "x: Is a directory"),
        (OSError(28, "No space left on device", "x"), 1, "x: No space left on device"),
        (OSError(5, "Input/output error"), 1, "Input/output error"),
        (OSError("odd"), 1, "odd"),
        (TimeoutError("too slow"), 1, "too slow"),
        (MemoryError("Unable to allocate 9 GiB"), 1, "out of memory. Unable to allocate 9 GiB"),
    ):

        def fails(args, error=error):
            raise error

        monkeypatch.setattr("lorabook.commands.doctor.run", fails)
        assert run("doctor") == (code, "", f"lorabook doctor: {said}\n")


def test_interrupted_while_a_class_is_made(run, monkeypatch):
    """As classes of matplotlib are, when it is imported: Python 3.11 raises RuntimeError from what came."""

    def fails(args):
        raise RuntimeError("Error calling __set_name__") from KeyboardInterrupt()

    monkeypatch.setattr("lorabook.commands.doctor.run", fails)
    assert run("doctor") == (130, "", "lorabook doctor: interrupted\n")


@pytest.mark.parametrize("lock", [threading.RLock, multiprocessing.RLock])
@pytest.mark.parametrize("came", [KeyboardInterrupt, cli.Terminated])
def test_interrupted_before_a_lock_was_taken(run, monkeypatch, lock, came):
    """As of tqdm, whose `release` then covers what came by another error."""

    def fails(args):
        held = lock()
        try:
            raise came
        finally:
            held.release()

    monkeypatch.setattr("lorabook.commands.doctor.run", fails)
    code, said = (143, "terminated") if came is cli.Terminated else (130, "interrupted")
    assert run("doctor") == (code, "", f"lorabook doctor: {said}\n")


@pytest.mark.parametrize(
    "error", [OSError(9, "Bad file descriptor"), ValueError("I/O on closed file"), InputError("x")]
)
def test_interrupted_and_something_else_fails_on_the_way_out(run, monkeypatch, error):
    def fails(args):
        try:
            raise KeyboardInterrupt
        finally:
            raise error

    monkeypatch.setattr("lorabook.commands.doctor.run", fails)
    assert run("doctor") == (130, "", "lorabook doctor: interrupted\n")


def test_a_bug_is_not_hidden(run, monkeypatch):
    def fails(args):
        assert not args

    monkeypatch.setattr("lorabook.commands.doctor.run", fails)
    with pytest.raises(AssertionError):
        run("doctor")
    monkeypatch.setattr("lorabook.commands.doctor.run", lambda args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run("doctor")
