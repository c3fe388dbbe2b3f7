"""An MPI job as one program: its processes exchange small values, end together, and speak with one voice."""

import json
import math
import os
import signal
import sys
import time
import traceback

import numpy as np

from ..errors import InputError
from ..files import how_to_install

YIELD = getattr(os, "sched_yield", lambda: None)
PATIENCE = 5  # seconds that a rank in trouble waits for the others to hear of it
EXPECTED = (InputError, OSError, RuntimeError, KeyboardInterrupt)  # one line each, as in `cli`; others are bugs
CODES = {InputError: 2, KeyboardInterrupt: 130}  # exit codes; of everything else 1
STARTED = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE")  # where the mpiexec of MPICH and of Open MPI say how many they start


def load():
    """mpi4py's MPI, started. Raises InputError where it is missing, or is not the one that mpiexec belongs to."""
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        how = f"{how_to_install('mpi')}, or mpi4py beside the MPI of your cluster"
        raise InputError(f"ranks need mpi4py and an MPI library ({error}): {how}") from None
    for number in filter(str.isdecimal, (os.environ.get(name, "") for name in STARTED)):
        if int(number) != (size := MPI.COMM_WORLD.size):
            raise InputError(
                f"mpiexec started {number} processes, but mpi4py sees {size}: they belong to different MPI libraries; "
                "use the mpiexec of mpi4py's library (of the extra mpi: the one beside this python)"
            )
    return MPI


class MpiJob:
    """The processes of an MPI job: `with Job() as job:` around all that they do together, once in each of them.

    Only the first prints: inside and from then on, the others' output goes nowhere. An error in one ends all, with its
    message once and its exit code: the others learn of it at their next `exchange`, and raise it. So it is with Ctrl-C;
    a second one ends a process at once.
    """

    pause = 5e-5  # seconds between two looks at whether a word has come

    def __init__(self):
        self.MPI = load()
        self.comm = self.MPI.COMM_WORLD
        self.rank, self.size = self.comm.rank, self.comm.size
        self.first = self.rank == 0
        self._ended = self._interrupted = False

    def cores(self):
        """Cores of this machine that its ranks may use, shared out among them; at least one."""
        neighbours = self.comm.Split_type(self.MPI.COMM_TYPE_SHARED)
        own = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count()))
        return max(1, len(set().union(*neighbours.allgather(own))) // neighbours.size)

    def __enter__(self):
        self._stderr = sys.stderr
        self._handler = signal.signal(signal.SIGINT, self._interrupt)
        if not self.first:
            sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")
        return self

    def __exit__(self, kind, error, trace):
        signal.signal(signal.SIGINT, self._handler)
        try:
            if error is None:
                self.exchange()  # another one may still fail
            elif not self._ended:
                self._end(error)
        finally:
            if self.size > 1 and (error is not None or self._ended):
                self.MPI.Finalize()  # each ends by itself now: no Abort by `python -m mpi4py` overtakes the message

    def _interrupt(self, *_):
        if self._interrupted:
            raise KeyboardInterrupt
        self._interrupted = True

    def _end(self, error):
        """Tell the others; if they do not listen, end them."""
        expected, name = isinstance(error, EXPECTED), type(error).__name__
        code = next((code for kind, code in CODES.items() if isinstance(error, kind)), 1)
        if not (expected or self.first):
            traceback.print_exception(error, file=self._stderr)
        try:
            self._gather([code, str(error) if expected else f"{name}: {error}"], PATIENCE)
        except TimeoutError:
            if expected or self.first:
                print(f"lorabook: rank {self.rank}: {str(error) or name}", file=self._stderr, flush=True)
            time.sleep(0.5)  # or mpiexec may be gone before it has passed the message on
            self.comm.Abort(code)

    def exchange(self, value=None):
        """[the JSON-able value of every rank]; raises the error of the lowest rank that has ended with one.

        Goes before every other message, so that nobody waits for a rank that will not come.
        """
        answers = self._gather([130, ""] if self._interrupted else value if value is None else {"value": value})
        for rank, answer in enumerate(answers):
            if isinstance(answer, list):
                self._ended = True
                code, message = answer
                kind = next((kind for kind, its in CODES.items() if its == code), RuntimeError)
                raise kind(f"rank {rank}: {message}")
        return [answer and answer["value"] for answer in answers]

    def _gather(self, word, patience=math.inf):
        """Every rank's word: None, {"value": value}, or [exit code, message] from one that ends."""
        word = b"" if word is None else json.dumps(word).encode()
        sizes = np.empty(self.size, np.int64)
        self.wait(self.comm.Iallgather(np.array([len(word)]), sizes), patience)
        words = np.empty(sizes.sum(), np.uint8)
        if words.size:
            self.wait(self.comm.Iallgatherv(np.frombuffer(word, np.uint8), [words, sizes.tolist()]), patience)
        ends = np.cumsum(sizes)
        return [json.loads(bytes(words[end - n : end])) if n else None for n, end in zip(sizes, ends, strict=True)]

    def wait(self, request, patience=math.inf):
        """Until a word has come. Sleeping leaves the core to a rank that computes, and lets Ctrl-C through."""
        end = time.monotonic() + patience
        while not request.Test():
            if time.monotonic() > end:
                raise TimeoutError
            time.sleep(self.pause)

    def transfer(self, request):
        """Until many numbers have come, which needs both sides at work all the time: here sleeping would cost much."""
        while not request.Test():
            YIELD()
