"""The workers of a running Dask cluster in place of processes here; joblib stays the interface.

    with dask_workers("tcp://HOST:8786"):
        rows = rank_sweep(setting, ranks, seeds)

Whatever calls joblib.Parallel inside computes on the workers, one task for each of their threads. The numbers are those
of `jobs=1` here, bit for bit: a worker on which they could differ is refused before it computes anything.
"""

import asyncio
import concurrent.futures
import contextlib
import functools
import hashlib
import logging
import platform
import threading
import time
from pathlib import Path

import joblib
import numpy as np
from joblib._dask import DaskDistributedBackend
from threadpoolctl import threadpool_limits

from ..errors import InputError
from ..files import blas, how_to_install, snapshot, version

ANSWER_SECONDS = 10  # for the scheduler to answer
WORKER_SECONDS = 60  # for the workers to answer: they import lorabook first; for one to come when none is left


@contextlib.contextmanager
def dask_workers(address):
    """Make joblib.Parallel compute on the workers of the Dask scheduler at `address`, e.g. "tcp://HOST:8786".

    Raises InputError before any work if distributed is not installed, no scheduler answers, it has no workers, or the
    results of one could differ from those here. Joblib raises RuntimeError when the cluster gives up a task: Dask
    repeats those of a worker that died, but not for ever.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise InputError(f"a Dask cluster needs distributed ({error}): {how_to_install('dask')}") from None
    _find_scheduler(address)
    with _quiet_client(), Client(address, timeout=ANSWER_SECONDS, set_as_default=False) as client:
        _check_workers(client, address)
        with joblib.parallel_config(backend=_Backend(client, address)):
            yield


@contextlib.contextmanager
def _quiet_client():
    """What Dask's client logs, tracebacks for a lost connection among it, ends in an exception here anyway."""
    logger = logging.getLogger("distributed.client")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _find_scheduler(address):
    """Raise InputError unless a Dask scheduler with workers answers. A Client would wait for ever on a mute socket."""
    from distributed.core import rpc
    from distributed.security import Security

    async def identity():
        async with rpc(address, connection_args=Security().get_connection_args("client")) as scheduler:
            return await asyncio.wait_for(scheduler.identity(), ANSWER_SECONDS)

    try:
        with concurrent.futures.ThreadPoolExecutor(1) as thread:  # the loop of a notebook runs in this one
            found = thread.submit(lambda: asyncio.run(identity())).result()
    except TimeoutError:
        raise InputError(f"no Dask scheduler answers at {address!r} within {ANSWER_SECONDS} s") from None
    except (OSError, TypeError, ValueError) as error:  # refused, TLS not configured, not an address
        raise InputError(f"no Dask scheduler answers at {address!r}, expected tcp://HOST:8786: {error}") from None
    if found["type"] != "Scheduler":
        raise InputError(f"{address!r} is a Dask {found['type'].lower()}; expected the scheduler, {found['scheduler']}")
    if not found["workers"]:
        raise InputError(f"the Dask scheduler at {address!r} has no workers; start some: dask worker {address}")


# ---- the same bits wherever a task runs ------------------------------------------------------------------------------


def _code():
    """Eight digits of the sha256 of lorabook's own source files."""
    folder, digest = Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\n" + path.read_bytes())
    return digest.hexdigest()[:8]


CODE = _code()  # at import: a worker goes on with the modules it has, whatever is edited later


def _check_workers(client, address):
    """Raise InputError unless the fingerprint of every worker is the one here."""
    try:
        client.run(_check, fingerprint(), callback_timeout=WORKER_SECONDS)
    except TimeoutError:
        raise InputError(f"some worker of the Dask scheduler at {address!r} is mute for {WORKER_SECONDS} s") from None
    except InputError:
        raise
    except OSError as error:
        raise RuntimeError(f"the Dask scheduler at {address} is lost: {error}") from None
    except Exception as error:  # of one in the worker's answer, Dask keeps only the text
        raise InputError(f"a Dask worker has another lorabook or none: {error}; install this one there") from None


@functools.cache
def fingerprint():
    """{part: what it is in this process} of everything that the bits of a result depend on.

    OpenBLAS and NumPy choose their kernels by the processor: the same versions on another one round differently.
    """
    found, simd = snapshot(), np.show_config(mode="dicts")["SIMD Extensions"]
    return {
        "Python": found["python"],
        "lorabook": f"{found['lorabook']} (code {CODE})",
        "numpy": found["numpy"],
        "scipy": version("scipy"),
        "BLAS": ", ".join(f"{b['library']} {b['version']} {b['architecture']}" for b in found["blas"]),
        "SIMD": " ".join(simd.get("baseline", []) + simd.get("found", [])),
    }


def _check(expected):
    """On a worker: raise InputError unless its fingerprint is the expected one."""
    here = fingerprint()
    other = [f"{part} {here.get(part)}, expected {want}" for part, want in expected.items() if here.get(part) != want]
    if other:
        raise InputError(
            f"results of the Dask worker on {platform.node()} could differ: {'; '.join(other)}. "
            "Start the workers anew, with this installation, on machines like this one"
        )


_limiting = threading.Lock()


def _checked(expected, function, args, kwargs):
    """On a worker: the result of a task; or InputError, if its bits could differ from those of jobs=1 at home.

    One BLAS thread, for the rest of the worker's life, as in workers that Dask starts with a nanny: a limit that ends
    with a task would give the process its threads back while its other tasks compute.
    """
    _check(expected)
    with _limiting:
        if not _one_blas_thread():
            threadpool_limits(1)
        if not _one_blas_thread():
            raise InputError("BLAS threads of a Dask worker cannot be limited; start it with OPENBLAS_NUM_THREADS=1")
    return function(*args, **kwargs)


def _one_blas_thread():
    return all(pool["threads"] == 1 for pool in blas())


# ---- joblib's backend ------------------------------------------------------------------------------------------------


class _Backend(DaskDistributedBackend):
    """joblib's dask backend; but a task that the cluster gives up is an error, where joblib would wait for ever."""

    def __init__(self, client, address):
        super().__init__(client=client)
        self.address, self.pending = address, {}

    def effective_n_jobs(self, n_jobs):
        try:
            threads = self.client.sync(self.client.scheduler.ncores, callback_timeout=ANSWER_SECONDS)
        except (OSError, AttributeError):  # mute or gone; given up by the client, which has no scheduler then
            raise self._lost("the scheduler does not answer") from None
        return max(2, sum(threads.values()))  # for 1, joblib would compute here

    def start_call(self):
        super().start_call()
        self.watch = asyncio.run_coroutine_threadsafe(self._watch(), self.client.loop.asyncio_loop)

    def stop_call(self):
        self.watch.cancel()
        super().stop_call()

    def submit(self, func, callback=None):
        func.items = [(_checked, (fingerprint(), *item), {}) for item in func.items]  # a worker may come at any time
        job = super().submit(func, callback)
        self.pending[job] = callback
        job.add_done_callback(self._done)
        return job

    def retrieve_result_callback(self, out):
        if isinstance(out, concurrent.futures.CancelledError):
            raise self._lost("the connection is lost")
        return super().retrieve_result_callback(out)

    def _done(self, job):
        """What a task raises comes as its result; an exception of the job is Dask's own, and joblib is not told."""
        from distributed import KilledWorker

        callback = self.pending.pop(job)
        if error := job.exception():
            killed = isinstance(error, KilledWorker)
            callback(self._lost("a task died with every worker that tried it; see their logs" if killed else error))

    async def _watch(self):
        """Give up when there has been no worker for WORKER_SECONDS."""
        last = time.monotonic()
        while True:
            await asyncio.sleep(1)
            with contextlib.suppress(Exception):  # whatever it is: no worker is known
                if await asyncio.wait_for(self.client.scheduler.ncores(), ANSWER_SECONDS):
                    last = time.monotonic()
            if time.monotonic() - last > WORKER_SECONDS:
                for callback in list(self.pending.values()):
                    callback(self._lost(f"no worker for {WORKER_SECONDS} s"))

    def _lost(self, why):
        return RuntimeError(f"the Dask cluster at {self.address} gave up: {why}")
