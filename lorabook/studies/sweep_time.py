"""How long a sweep will take: a few steps of its own batches are timed, and a part of its evaluation."""

import time
from dataclasses import dataclass

import joblib

from ..parallel import team
from ..training import AdamW, duration, train
from .rank_rows import lora_rows, start
from .sweep import open_tasks

TIMED = 0.1  # seconds of steps at least
SEEN = 200  # batches whose sizes are looked at
PART = 8  # one in so many batches is evaluated


@dataclass(frozen=True)
class _Some:
    """Batches `first` to `first + n - 1` of others, for `train`."""

    batches: object
    first: int
    n: int

    @property
    def batch_size(self):
        return self.batches.batch_size

    @property
    def seed(self):
        return self.batches.seed

    def __len__(self):
        return self.n

    def at(self, step):
        return self.batches.at(self.first + step)


def guess(setting, ranks, seeds, kept, jobs=1):
    """(seconds, words) that the rest of a sweep will take. The linear algebra of the truncations is left out.

    kept: `sweep.Kept`, what it has already. jobs: processes, which are taken to share the work evenly.
    """
    fulls, others = open_tasks(setting, ranks, list(seeds), list(seeds), kept)
    loras = [what for task, _, what, _ in others if task is lora_rows]
    truncations = [r for task, _, what, _ in others if task is not lora_rows for r in what]
    problem = setting.problem(seeds[0])
    with team(setting.workers) as workers:
        full = _training(setting, problem, None, seeds[0], workers) if fulls and problem.tuned is None else 0.0
        lora = _training(setting, problem, sorted(loras)[len(loras) // 2], seeds[0], workers) if loras else 0.0
        model, begin = start(setting, problem, None, seeds[0]), time.perf_counter()
        problem.evaluate(model, workers, every=PART)
        evaluation = PART * (time.perf_counter() - begin)
    times = {"full fine-tuning": (len(fulls), full), "LoRA": (len(loras), lora)}
    times["evaluation"] = len(fulls) + len(loras) + 2 * len(truncations), evaluation
    parts = [f"{n} x {duration(seconds)} of {what}" for what, (n, seconds) in times.items() if n and seconds >= 0.5]
    total = sum(n * seconds for n, seconds in times.values()) / joblib.effective_n_jobs(jobs)
    return total, f"about {duration(total)}" + (f": {', '.join(parts)}" if parts else "")


def _training(setting, problem, r, seed, workers):
    """Seconds of one training, from its first steps; one more before them does what is done once."""
    model, batches = start(setting, problem, r, seed), problem.batches(setting.batch_size, seed)
    sizes = [model.tokens(batches.at(i)) for i in range(min(len(batches), SEEN))]
    optimizer, done, seconds, first = AdamW(setting.recipe(r).lr), 0, 0.0, None
    while first is None or (seconds < TIMED and first < len(sizes)):
        n = 1 if first is None else min(first, len(sizes) - first)
        begin = time.perf_counter()
        train(model, _Some(batches, first or 0, n), optimizer, epochs=1, seed=seed, workers=workers)
        if first is not None:
            seconds, done = seconds + time.perf_counter() - begin, done + sum(sizes[first : first + n])
        first = (first or 0) + n
    if not done:  # a single step is all there is
        seconds, done = time.perf_counter() - begin, sizes[0]
    return seconds / done * sum(sizes) / len(sizes) * setting.epochs * len(batches)
