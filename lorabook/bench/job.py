"""A side as an MPI job: all its ranks hear a question and work, the first answers."""

import os
import shutil
import sys
from pathlib import Path

from ..errors import InputError
from ..files import how_to_install

IDLE = 0.01  # seconds between two looks for a question: meanwhile the cores are the other side's


def mpiexec(n):
    """What goes before a command to start it n times: the mpiexec beside this python, or the one on the path."""
    folders = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    if (found := shutil.which("mpiexec", path=folders)) is None:
        raise InputError(f"ranks are started by mpiexec, which is not there: {how_to_install('mpi')}")
    return [found, "-n", str(n)]


def heard(job, questions):
    """The lines that the first rank of an `mpi.Job` reads, on all its ranks."""
    questions, pause = iter(questions), job.pause
    while True:
        job.pause = IDLE
        question = job.exchange(next(questions, "") if job.first else None)[0]
        job.pause = pause
        if not question:
            return
        yield question
