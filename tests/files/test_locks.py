"""One run a folder, with real processes: a second is refused, a killed one is in nobody's way."""

import errno
import hashlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import filelock
import pytest

from lorabook import InputError, files
from lorabook.files import locks

TRAIN = ["train", "mlp-digits", "digits-rotated", "--r", "2", "--checkpoint-every", "2"]
PYTHON = [sys.executable, "-c"]
HOLD = """
import sys, time, lorabook.files.locks
with lorabook.files.output_folder(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def contents(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def holding(folder, code=HOLD):
    """A process that holds the folder."""
    process = subprocess.Popen([*PYTHON, code, str(folder)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    return process


def end(process):
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_folder_that_is_free_is_created_and_left_as_it_was(tmp_path):
    with locks.output_folder(tmp_path / "a" / "b") as out:
        (out / "mine").write_bytes(b"1")
        assert sorted(os.listdir(out)) == [locks.LOCK, "mine"]
    assert os.listdir(out) == ["mine"]
    with locks.output_folder(out):
        pass


def test_the_lock_ends_with_an_error_too(tmp_path):
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), locks.output_folder(tmp_path):
            1 / 0  # noqa: B018
    assert os.listdir(tmp_path) == []


def test_one_process_does_not_get_it_twice(tmp_path):
    with locks.output_folder(tmp_path):
        with pytest.raises(InputError, match=f"another run writes to {tmp_path}; wait until it ends"):
            locks.folder_lock(tmp_path).__enter__()
        assert os.listdir(tmp_path) == [locks.LOCK]  # the one who was refused leaves it


def test_a_killed_process_lets_go_and_its_lock_file_is_in_nobodys_way(tmp_path):
    process = holding(tmp_path)
    (tmp_path / files.temporary_name()).write_bytes(b"half")
    for _ in range(2):
        with pytest.raises(InputError, match="another run writes to"), locks.output_folder(tmp_path):
            pass
    assert len(os.listdir(tmp_path)) == 2, "the live run's file was removed"
    end(process)
    assert locks.LOCK in os.listdir(tmp_path)
    with locks.output_folder(tmp_path):
        assert os.listdir(tmp_path) == [locks.LOCK]
    assert os.listdir(tmp_path) == []


def test_only_what_we_left_is_removed(tmp_path):
    kept = [".lorabook-notes", ".lorabook-my-own-notes---.tmp", "x.tmp", ".lorabook-0123456789abcdef"]
    kept += [f"{before}0123456789abcdef.tmp{after}" for before, after in (("", ""), (".lorabook-", ".txt"))]
    kept += [".lorabook-0123456789ABCDEF.tmp"]
    for name in [*kept, files.temporary_name()]:
        (tmp_path / name).write_bytes(b"mine")
    with locks.output_folder(tmp_path):
        pass
    assert sorted(os.listdir(tmp_path)) == sorted(kept)


def test_a_users_file_of_the_locks_name_stays(tmp_path):
    (tmp_path / locks.LOCK).write_bytes(b"mine")
    with locks.output_folder(tmp_path):
        pass
    assert (tmp_path / locks.LOCK).read_bytes() == b"mine"


def test_a_folder_that_cannot_be_locked_is_one_line(tmp_path, monkeypatch):
    for error in (OSError(errno.ENOLCK, "No locks available"), NotImplementedError("No locks available")):

        def fails(self, error=error):
            raise error

        monkeypatch.setattr(filelock.FileLock, "_acquire", fails)
        with pytest.raises(InputError, match=f"cannot lock .*{tmp_path}: No locks available.*--out"):
            locks.folder_lock(tmp_path).__enter__()
    monkeypatch.undo()
    (tmp_path / locks.LOCK).mkdir()
    with pytest.raises(InputError, match="cannot lock"):
        locks.folder_lock(tmp_path).__enter__()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize("how", ["os.fork()", "multiprocessing.get_context('fork').Process(target=wait).start() or 1"])
def test_a_forked_child_does_not_keep_the_lock(tmp_path, how):
    """Its parent is killed; it lives on. Through a pipe it says that it runs, and that it may end."""
    code = f"""
import multiprocessing, os, sys, time, lorabook.files.locks
def wait():
    print("held", os.getpid(), flush=True)
    time.sleep(60)
    os._exit(0)
with lorabook.files.output_folder(sys.argv[1]):
    if not ({how}):
        wait()
    time.sleep(60)
"""
    process = subprocess.Popen([*PYTHON, code, str(tmp_path)], stdout=subprocess.PIPE)
    child = int(process.stdout.readline().split()[1])
    try:
        with pytest.raises(InputError), locks.output_folder(tmp_path):
            pass
        end(process)
        os.kill(child, 0)  # lives
        with locks.output_folder(tmp_path):
            pass
    finally:
        os.kill(child, signal.SIGKILL)


def _refused(folder):
    try:
        with locks.output_folder(folder):
            return False
    except InputError:
        return True


def test_of_many_processes_one_holds_it(tmp_path):
    with multiprocessing.get_context("spawn").Pool(2) as pool, locks.output_folder(tmp_path):
        assert pool.map(_refused, [tmp_path] * 20) == [True] * 20
    assert not _refused(tmp_path)


# ---- trainings -------------------------------------------------------------------------------------------------------


def start(out, *options, epochs=10):
    command = [sys.executable, "-m", "lorabook", *TRAIN, "--epochs", str(epochs), "--out", str(out), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(path, process):
    while not path.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


@pytest.mark.skipif(os.name != "posix", reason="a process cannot be stopped here")
def test_a_second_training_is_refused_and_the_first_unharmed(run, tmp_path):
    first = start(tmp_path / "shared")
    wait_for(tmp_path / "shared" / "checkpoint.safetensors", first)
    first.send_signal(signal.SIGSTOP)  # or it might end before the others have begun
    for option in ((), ("--resume",)):
        code, out, err = run(*TRAIN, "--out", tmp_path / "shared", *option)
        assert (code, out) == (2, "")
        assert err.count("\n") == 1 and f"another run writes to {tmp_path / 'shared'}" in err
    code, _, err = run("sweep", "--ranks", 1, "--seeds", 1, "--epochs", 1, "--out", tmp_path / "shared")
    assert code == 2 and "another run writes to" in err
    first.send_signal(signal.SIGCONT)
    assert first.communicate()[0] and first.returncode == 0
    assert run(*TRAIN, "--epochs", 10, "--out", tmp_path / "alone")[0] == 0
    assert contents(tmp_path / "shared") == contents(tmp_path / "alone")


def test_a_killed_training_resumes_without_help(run, tmp_path):
    killed = start(tmp_path / "killed")
    wait_for(tmp_path / "killed" / "checkpoint.safetensors", killed)
    killed.kill()
    killed.communicate()
    (tmp_path / "killed" / files.temporary_name()).write_bytes(b"half a checkpoint")
    assert run(*TRAIN, "--epochs", 10, "--out", tmp_path / "killed", "--resume")[0] == 0
    assert run(*TRAIN, "--epochs", 10, "--out", tmp_path / "alone")[0] == 0
    assert contents(tmp_path / "killed") == contents(tmp_path / "alone")
