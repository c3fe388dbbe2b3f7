"""Sweeps on a Dask cluster: two workers, each a process of this machine."""

import contextlib
import importlib
import importlib.util
import logging
import os
import signal
import socket
import subprocess
import sys
import time

import joblib
import pytest
from checks import sweep_setting, without_seconds
from threadpoolctl import threadpool_limits

from lorabook import InputError
from lorabook.book import figures
from lorabook.files import blas, read_csv
from lorabook.models import MLP
from lorabook.parallel import dask as cluster
from lorabook.parallel import dask_workers, fingerprint
from lorabook.studies import Recipe, bound_sweep, learning_rate_sweep, rank_sweep

pytestmark = [
    pytest.mark.dask,
    pytest.mark.skipif(
        importlib.util.find_spec("distributed") is None,
        reason="a cluster needs distributed: pip install -e '.[dask]'",
    ),
]


@contextlib.contextmanager
def started(workers, threads_per_worker=1):
    """A cluster of this machine."""
    from distributed import LocalCluster

    with LocalCluster(n_workers=workers, threads_per_worker=threads_per_worker, dashboard_address=":0") as local:
        yield local


@pytest.fixture(scope="module")
def address():
    with started(2) as local:
        yield local.scheduler_address


@pytest.fixture
def setting():
    return sweep_setting()


def results(function, arguments):
    """What a function returns on the workers for each argument, as it comes. The time is for a test that would hang."""
    return joblib.Parallel(n_jobs=1, return_as="generator", timeout=300)(joblib.delayed(function)(a) for a in arguments)


def slept(seconds):
    time.sleep(seconds)
    return os.getpid()


def threads(_):
    return blas()[0]["threads"]


# ---- the same numbers ------------------------------------------------------------------------------------------------


def test_rows_equal_those_of_one_process_here(address, setting):
    tried = [(None, Recipe(1e-3)), (2, Recipe(1e-2, 16, True))]
    with dask_workers(address):
        ranks = rank_sweep(setting, [1, 2, 8], [0, 1], jobs=1)
        rates = learning_rate_sweep(setting, tried, [0])
        bounds = bound_sweep((1, 4), range(2), conditions=(3,), steps=(5,))
    assert without_seconds(ranks) == without_seconds(rank_sweep(setting, [1, 2, 8], [0, 1], jobs=1))
    assert without_seconds(rates) == without_seconds(learning_rate_sweep(setting, tried, [0]))
    assert bounds == bound_sweep((1, 4), range(2), conditions=(3,), steps=(5,))


class OneThread(MLP):
    """Refuses to be evaluated, as every task does at its end, with more than one BLAS thread."""

    def evaluate(self, batch):
        if (found := threads(None)) != 1:
            raise RuntimeError(f"{found} BLAS threads")
        return super().evaluate(batch)


def test_tasks_of_one_process_have_one_blas_thread_all_the_time(monkeypatch):
    from distributed import Client

    setting = sweep_setting(OneThread)
    problem = setting.problem(0)
    with threadpool_limits(2), pytest.raises(RuntimeError, match="2 BLAS threads"):
        problem.base.evaluate(problem.task.part("test"))
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "2")
    with started(1, threads_per_worker=2) as local, Client(local.scheduler_address, set_as_default=False) as client:
        if client.submit(threads, None).result() == 1:
            pytest.skip("OpenBLAS has one thread on a machine with one core")
        with dask_workers(local.scheduler_address):
            assert len(rank_sweep(setting, [1, 2, 8], range(4))) == 4 * 10
        assert client.submit(threads, None, pure=False).result() == 1


def test_both_workers_compute_and_this_process_does_not(address):
    with dask_workers(address):
        computed = set(results(slept, [0.2] * 8))
    assert len(computed) == 2 and os.getpid() not in computed


def test_sweep_and_figures_compute_there(address, run, tmp_path, monkeypatch):
    options = ["--ranks", 1, 4, "--seeds", 1, "--epochs", 2]
    code, _, err = run("sweep", *options, "--scheduler", address, "--out", tmp_path / "there")
    assert code == 0, err
    assert run("sweep", *options, "--jobs", 1, "--out", tmp_path / "here")[0] == 0
    there, here = (read_csv(tmp_path / name / "rank_vs_error.csv") for name in ("there", "here"))
    assert without_seconds(there) == without_seconds(here)
    assert (tmp_path / "there" / "rank_vs_error.csv").read_text().startswith("# lorabook sweep --ranks 1 4 --seeds 1 ")
    assert address not in (tmp_path / "there" / "rank_vs_error.csv").read_text()

    where = figures.Figure(lambda jobs, progress, runs: [{"process": p} for p in results(slept, [0])], len, 1)
    monkeypatch.setitem(figures.FIGURES, "where", where)
    monkeypatch.setattr(figures, "_save", lambda figure, name, folder: folder)  # nothing is drawn
    assert run("figures", "where", f"--scheduler={address}", "--out", tmp_path)[0] == 0
    assert read_csv(tmp_path / "data" / "where.csv") != [{"process": os.getpid()}]


# ---- what is refused before any work ---------------------------------------------------------------------------------


@contextlib.contextmanager
def mute():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("127.0.0.1:1", "no Dask scheduler answers at '127.0.0.1:1' within 1 s"),
        ("127.0.0.1", "expected tcp://HOST:8786: missing port number in address '127.0.0.1'"),
        ("", "expected tcp://HOST:8786"),
        ("http://127.0.0.1:1", "unknown address scheme 'http'"),
    ],
)
def test_an_address_where_nothing_answers(run, tmp_path, monkeypatch, where, message):
    monkeypatch.setattr(cluster, "ANSWER_SECONDS", 1)
    code, out, err = run("sweep", f"--scheduler={where}", "--out", tmp_path / "s")
    assert (code, out) == (2, "")
    assert message in err and err.count("\n") == 1
    assert not (tmp_path / "s").exists()


def test_an_address_where_something_else_answers(monkeypatch):
    with started(0) as local:
        with pytest.raises(InputError, match="has no workers; start some: dask worker tcp://"):
            enter(local.scheduler_address)
        local.scale(1)
        local.wait_for_workers(1, timeout=300)
        worker = next(iter(local.scheduler_info["workers"]))
        with pytest.raises(InputError, match="is a Dask worker; expected the scheduler, tcp://"):
            enter(worker)
    monkeypatch.setattr(cluster, "ANSWER_SECONDS", 1)
    with mute() as silent, pytest.raises(InputError, match="within 1 s"):
        enter(silent)


def enter(address):
    with dask_workers(address):
        raise AssertionError("not refused")


@pytest.mark.parametrize("part", ["Python", "lorabook", "numpy", "scipy", "BLAS", "SIMD"])
def test_workers_with_another_installation(address, monkeypatch, part):
    here = fingerprint()
    assert here[part]
    monkeypatch.setattr(cluster, "fingerprint", lambda: here | {part: "another"})
    with pytest.raises(InputError, match=rf"could differ: {part} .*, expected another\. Start") as caught:
        enter(address)
    assert here[part] in str(caught.value) and "\n" not in str(caught.value)


def test_a_worker_that_comes_later_is_checked_too(address, setting, monkeypatch):
    here = fingerprint()
    with dask_workers(address), pytest.raises(InputError, match="numpy .*, expected another"):
        monkeypatch.setattr(cluster, "fingerprint", lambda: here | {"numpy": "another"})
        rank_sweep(setting, [1], [0])


class Unknown:
    """What a worker without this lorabook finds instead of a function of it."""

    def __call__(self, expected):
        raise AssertionError("unpickled")

    def __reduce__(self):
        return importlib.import_module, ("lorabook.of_another_kind",)


def test_workers_without_this_lorabook(address, monkeypatch):
    monkeypatch.setattr(cluster, "_check", Unknown())
    with pytest.raises(InputError, match=r"another lorabook or none: .*No module named 'lorabook\.of_another_kind'"):
        enter(address)


def test_the_code_is_part_of_the_fingerprint(tmp_path, monkeypatch):
    for name, text in (("cluster.py", "pass"), ("adapters/lora.py", "scaling = alpha / r")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cluster._code() == cluster.CODE
    monkeypatch.setattr(cluster, "__file__", str(tmp_path / "parallel" / "dask.py"))
    before = cluster._code()
    (tmp_path / "adapters" / "lora.py").write_text("scaling = alpha")
    assert len({before, cluster._code(), cluster.CODE}) == 3


# ---- a cluster that fails --------------------------------------------------------------------------------------------


class Deadly(MLP):
    """Kills its worker when it is evaluated for the first time."""

    def evaluate(self, batch):
        try:
            self.marker.touch(exist_ok=False)
        except FileExistsError:
            return super().evaluate(batch)
        kill(None)


def kill(_):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_killed_in_the_middle_changes_nothing(setting, tmp_path):
    deadly = sweep_setting(Deadly)
    base = deadly.problem(0).base
    base.marker = tmp_path / "killed"
    with started(2) as local, dask_workers(local.scheduler_address):
        rows = rank_sweep(deadly, [1, 2], [0, 1])
    assert base.marker.exists()
    assert without_seconds(rows) == without_seconds(rank_sweep(setting, [1, 2], [0, 1]))


def test_a_task_that_every_worker_dies_of_ends_the_sweep():
    import dask

    tried_once = dask.config.set({"distributed.scheduler.allowed-failures": 0})
    with tried_once, started(2) as local, dask_workers(local.scheduler_address):
        with pytest.raises(RuntimeError, match="gave up: a task died with every worker") as caught:
            list(results(kill, [0, 0, 0]))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("end", "seconds", "message"),
    [
        (lambda local: local.scale(0), 1, "gave up: no worker for 1 s"),
        (lambda local: local.close(), None, "gave up: the connection is lost"),
    ],
    ids=["workers", "scheduler"],
)
def test_a_cluster_that_ends_in_the_middle(monkeypatch, end, seconds, message):
    with started(1) as local, dask_workers(local.scheduler_address):
        if seconds:
            monkeypatch.setattr(cluster, "WORKER_SECONDS", seconds)
        rest = results(slept, [0, 600, 600])
        assert next(rest) != os.getpid()
        end(local)
        with pytest.raises(RuntimeError, match=message):
            list(rest)


def test_the_connection_is_closed_whatever_happens(address):
    with pytest.raises(KeyboardInterrupt), dask_workers(address):
        client = joblib.parallel.get_active_backend()[0].client
        assert client.status == "running"
        assert logging.getLogger("distributed.client").level == logging.CRITICAL
        raise KeyboardInterrupt
    assert client.status == "closed"
    assert logging.getLogger("distributed.client").level < logging.CRITICAL


def wait_until(true):
    end = time.monotonic() + 300
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_interrupt_ends_the_command_and_its_tasks(tmp_path):
    with started(1) as local:
        with dask_workers(local.scheduler_address):
            (worker,) = set(results(slept, [0, 0]))
        command = ["sweep", "--epochs", "1000000", "--scheduler", local.scheduler_address, "--out", tmp_path]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen([sys.executable, "-m", "lorabook", *command], **pipes) as sweep:
            wait_until(lambda: any(task.state == "processing" for task in list(local.scheduler.tasks.values())))
            sweep.send_signal(signal.SIGINT)
            out, err = sweep.communicate(timeout=300)
        assert (sweep.returncode, out, err.splitlines()[-1]) == (130, "", "lorabook sweep: interrupted")
        wait_until(lambda: not local.scheduler.tasks)
        os.kill(worker, signal.SIGKILL)  # a training that has begun goes on to its end
