"""How far a run is and how long it still takes: a bar on a terminal, elsewhere a plain line now and then."""

import collections
import math
import sys
import time

from tqdm import tqdm

from ..models import counted, right_of

LINES = 20  # at most, in a run whose progress goes into a file or a pipe
PATIENCE = 2  # seconds before anything is shown
WORTH = 5  # seconds that must have gone by since the last line, and be left, for another one
FEW = 3  # steps before the time of the others is guessed
BAR = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}, {remaining} left{postfix}"  # and so the losses fit in WIDTH
PARTS = 64  # of batches, of which the share that was right is shown
WIDTH = 80  # columns, where the terminal does not say
clock = time.monotonic


class Progress:
    """Iterate over it to take the steps from `start` to `total`; `show` what they gave. On stderr, or nowhere."""

    def __init__(self, start, total, shown):
        self.start, self.total, self.shown = start, total, shown
        self._bar = tqdm(
            range(start, total),
            initial=start,
            total=total,
            delay=PATIENCE,
            disable=None if shown else True,
            unit="step",
            bar_format=BAR,
        )
        if not self._bar.disable and (self._bar.ncols or 0) < 1:  # a pseudo-terminal may say that it is 0 wide
            self._bar.ncols = WIDTH
        self._lines = shown and self._bar.disable  # asked for, and no terminal
        self._loss, self._evaluated = math.nan, ""
        self._next, self._said = start + FEW, -math.inf  # the step and the time of a line

    def __iter__(self):
        self._began = clock()
        yield from self._bar

    def show(self, step, row, right=None):
        """row: the columns of the history of the latest step that is known, `step` counted from 0; NaN for no value.

        right: a `Right`, shown until there is an accuracy on rows that were held out.
        """
        if not self.shown:
            return
        loss, accuracy = row.get("eval_loss", math.nan), row.get("eval_accuracy")
        self._loss = row["loss"] if math.isnan(self._loss) else 0.9 * self._loss + 0.1 * row["loss"]
        if not math.isnan(loss):
            self._evaluated = f"; held out: loss {loss:.3f}"
            self._evaluated += "" if accuracy is None else f", {100 * accuracy:.1f} % right"
        seen = "" if self._evaluated or right is None or (share := right.share()) is None else f", {share:.0%} right"
        text = f"loss {self._loss:.3f}{self._evaluated or seen}"
        self._bar.set_postfix_str(text, refresh=False)
        seconds = clock() - self._began
        left = (self.total - step - 1) * seconds / (step + 1 - self.start)
        due = step + 1 >= self._next and seconds >= PATIENCE and seconds - self._said >= WORTH and left >= WORTH
        if self._lines and due:
            self._next, self._said = step + 1 + math.ceil(self.total / LINES), seconds
            print(f"step {step + 1} of {self.total}: {text}; about {duration(left)} left", file=sys.stderr, flush=True)


class Right:
    """How many of the labels of the latest batches got the largest logit, while they were trained on."""

    def __init__(self):
        self._told = collections.deque(maxlen=PARTS)

    def __call__(self, logits, labels):
        """What a model tells of a batch or a part of it; from any thread, and without a wait for a device."""
        self._told.append((right_of(logits, labels), counted(labels)))

    def share(self):
        """In 0 .. 1; None before anything was told that counts."""
        right, of = (sum(map(int, numbers)) for numbers in zip((0, 0), *self._told, strict=True))
        return right / of if of else None


def duration(seconds):
    """Seconds in words, to the precision of a guess: "40 s", "3 min", "2 h 10 min"."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
