"""Labels with probabilities for texts: of a list at once, or of windows of texts as they come."""

from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from .adapters.lora import shared_weights
from .backend import data_like, to_numpy
from .configs import short
from .errors import InputError, NonFiniteError
from .parallel import team, tokens
from .text import TextBatches

BATCH_SIZE = 32


@dataclass(frozen=True)
class Prediction:
    """label: the most probable one; of equals the first. probability: of that label, in 0 .. 1. probabilities: of all."""

    label: str
    probability: float
    probabilities: dict

    @classmethod
    def of(cls, labels, row):
        """From the probabilities (k,) of the k labels."""
        first = int(row.argmax())
        return cls(labels[first], float(row[first]), dict(zip(labels, row.tolist(), strict=True)))


def predict(model, texts, batch_size=BATCH_SIZE, workers=None, progress=False):
    """The Prediction of each text, in their order.

    model: from `load_model`. batch_size: texts that are computed together, those of similar length; the answers do not
    depend on it but for rounding (1e-5). workers: threads, or `Workers` at work; default one a core. progress: a bar on
    stderr. Raises InputError for an empty text, NonFiniteError if an answer is no number.

    >>> import lorabook
    >>> model = lorabook.load_model("runs/mine")
    >>> [answer] = lorabook.predict(model, ["a good film"])
    >>> answer.label, answer.probability > 0.5
    ('pos', True)
    >>> [answer.label for answer in lorabook.predict(model, ["a bad film", "the good plot"])]
    ['neg', 'pos']
    """
    if isinstance(texts, str):
        raise InputError(f"texts must be a list of texts; got the text {short(texts)}: pass [text]")
    texts, labels = list(texts), _about(model).labels
    if not texts:
        return []
    with team(workers) as workers:
        rows, _ = probabilities(model, texts, workers, batch_size, progress)
    return [Prediction.of(labels, row) for row in rows]


def probabilities(model, texts, workers, batch_size=BATCH_SIZE, progress=False):
    """(probabilities (n, k) of n texts in float64, number of the texts that were too long and were cut)."""
    about = _about(model)
    for i, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"text number {i + 1}: expected a text; got {short(text)}")
    batches = TextBatches([(text, -1) for text in texts], about.tokenizer, min(batch_size, len(texts)))
    order = list(batches.in_order())
    values = np.empty((len(texts), len(about.labels)))
    answers = outputs(model, [batch[1:] for batch in order], workers, progress)
    for (rows, *_), y in zip(order, answers, strict=True):
        values[rows] = y
    if not (finite := np.isfinite(values).all(axis=1)).all():
        raise NonFiniteError(f"{about.name} answers NaN or Inf to {short(texts[int(finite.argmin())])}")
    values -= values.max(axis=1, keepdims=True)  # softmax
    np.exp(values, out=values)
    return values / values.sum(axis=1, keepdims=True), batches.cut[0]


def outputs(model, batches, workers=None, progress=False):
    """[the model's output for x, as a host array] of each batch (x, ...). workers, progress: as in `train`."""
    like = next(iter(model.named_params().values()))
    return for_each(batches, model, lambda batch: to_numpy(model.predict(data_like(batch[0], like))), workers, progress)


def for_each(batches, model, function, workers=None, progress=False):
    """[function(batch)] of batches (x, ...), for a function that only reads the model.

    The sums of weights and adapters are formed once for all. workers, progress: as in `train`.
    """
    check_input(model, [x for x, *_ in batches])

    def one(batch):
        result = function(batch)
        bar.update(workers.size)  # the other processes do as many meanwhile
        return result

    quiet = None if progress else True  # None: a bar on stderr if that is a terminal
    with (
        tqdm(total=len(batches), delay=2, disable=quiet, leave=False, unit="batch") as bar,
        team(workers) as workers,
        shared_weights(model, sum(tokens(x) for x, *_ in batches), workers.map),
    ):
        return workers.spread(one, batches)


def check_input(model, arrays):
    """Raise InputError if an array of ids, or of other input, holds what the model cannot take."""
    try:
        for x in arrays:
            model.check_input(x)
    except InputError as error:  # numbers of tokens may have gaps, and special tokens any number
        if (about := getattr(model, "about", None)) is None:
            raise
        raise InputError(f"the tokenizer of {about.name} does not fit the model: {error}") from None


def _about(model):
    if (about := getattr(model, "about", None)) is None:
        raise InputError("this model has no tokenizer and no labels; open it by lorabook.load_model")
    return about
