"""How well a model does on rows: loss, and accuracy where it gives labels, perplexity of a language model."""

import math
from typing import NamedTuple

from ..backend import data_like
from ..errors import InputError
from .predictions import for_each


class Measured(NamedTuple):
    """loss: mean cross entropy in nats. accuracy: the share of right answers, in 0 .. 1."""

    loss: float
    accuracy: float


class Perplexity(NamedTuple):
    """loss: mean cross entropy in nats a token. perplexity: e to the loss. tokens: that it is a mean over."""

    loss: float
    perplexity: float
    tokens: int


def evaluate(model, test, workers=None, progress=False):
    """(loss, accuracy) over batches, a `Measured`; of a language model its `Perplexity`. A label below 0 counts not.

    test: `Batches`, of which every row counts once; a list of batches {name: array}; or one batch. Of a language model
    each token that has a label counts once, rows may be packed or not, and the result is the same but for rounding.
    workers, progress: as in `train`. Raises InputError where there is no batch, or no label counts.

    >>> import lorabook as lb
    >>> model, task = lb.load_model("runs/mine"), lb.text_file("mine.csv")
    >>> test = lb.Batches(lb.Texts(task.test, model.about.tokenizer), batch_size=4)
    >>> lb.evaluate(model, test).accuracy > 0.9
    True
    """
    like = next(iter(model.named_params().values()))
    if hasattr(test, "in_order"):
        test = [batch for _, batch in test.in_order()]
    test = [test] if isinstance(test, dict) else test

    def one(batch, run):
        batch = data_like(batch, like)
        n = model.count(batch)
        return (n, *model.evaluate(batch, run)) if n else (0, 0.0, 0.0)

    found = for_each(test, model, one, workers, progress)
    if not (counted := sum(n for n, _, _ in found)):
        what = "no label of the rows counts: all are below 0" if found else "expected a batch at least; got none"
        raise InputError(f"nothing to evaluate on: {what}")
    loss = math.fsum(n * loss for n, loss, _ in found) / counted
    if "perplexity" in model.metrics:
        return Perplexity(loss, math.exp(loss) if loss < 700 else math.inf, counted)
    return Measured(loss, sum(round(n * accuracy) for n, _, accuracy in found) / counted)  # of whole numbers
