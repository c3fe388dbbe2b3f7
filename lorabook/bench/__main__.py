"""One side, as a process: `python -m lorabook.bench NAME CASE` answers each line on stdin by one on stdout."""

import json
import sys
import time

from ..errors import InputError
from ..files import how_to_install
from . import answers as of_texts
from .case import Case
from .gemm import Gemm
from .job import heard
from .ours import full, lora
from .theirs import peft


class Timed:
    """once(), timed on a device."""

    def __init__(self, once, device):
        self.once, self.device = once, device

    def turn(self, n):
        """Seconds of n runs; of several, an untimed one goes before."""
        if n > 1:
            self.once()
        seconds = []
        for _ in range(n):
            self.device.synchronize()
            start = time.perf_counter()
            self.once()
            self.device.synchronize()
            seconds.append(time.perf_counter() - start)
        return seconds

    def peak(self):
        """Peak memory in MB."""
        return self.device.peak_mb(self.once)

    def result(self):
        """What once() returns."""
        return self.once()


class Together(Timed):
    """Timed on the ranks of an MPI job, one thread each."""

    def __init__(self, case):
        from ..parallel import Ranks

        ranks = Ranks(1).__enter__()  # for as long as the process lives
        super().__init__(*lora(case, ranks))
        self.job = ranks.job

    def peak(self):
        """Peak memory in MB, of all ranks together."""
        return sum(self.job.exchange(super().peak()))


SIDES = {
    "lorabook": lambda case: Timed(*lora(case)),
    "full": lambda case: Timed(*full(case)),
    "ranks": Together,
    "peft": lambda case: Timed(*peft(case)),
    "gemm": Gemm,
    "answers": lambda case: Timed(*of_texts.ours(case)),
    "answers-peft": lambda case: Timed(*of_texts.theirs(case)),
}


def serve(name, case, questions, answers):
    """Answer each line [method, *arguments] by a line of JSON; "ready" by null once the side is built."""
    side = SIDES[name](case)
    if name == "ranks":  # all hear, one answers
        questions, answers = heard(side.job, questions), answers if side.job.first else sys.stdout
    for line in questions:
        method, *arguments = json.loads(line)
        answer = None if method == "ready" else getattr(side, method)(*arguments)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    answers, sys.stdout = sys.stdout, sys.stderr  # nothing that a library prints may pass for an answer
    try:
        kind = of_texts.AnswersCase if sys.argv[1].startswith("answers") else Case
        serve(sys.argv[1], kind(**json.loads(sys.argv[2])), sys.stdin, answers)
    except InputError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    except ImportError as error:
        print(f"{error}; install the extra `oracle`: {how_to_install('oracle')}", file=sys.stderr)
        raise SystemExit(2) from None
