"""Labels with probabilities for texts: of a list at once, or of windows of texts as they come."""

from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from .adapters.lora import shared_weights
from .backend import data_like, to_numpy
from .configs import short
from .errors import InputError, NonFiniteError, check_integer
from .parallel import team, tokens
from .text import TextBatches, check_text

BATCH_SIZE = 16  # texts: 32 take as long, and a tenth more memory


@dataclass(frozen=True)
class Prediction:
    """label: the most probable, of equals the first. probability: that label's, in 0 .. 1. probabilities: of each."""

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
    >>> [answer] = lorabook.predict(model, ["good"])
    >>> answer.label, answer.probability > 0.5
    ('pos', True)
    >>> [answer.label for answer in lorabook.predict(model, ["bad, poor", "fine, good"])]
    ['neg', 'pos']
    """
    if isinstance(texts, str):
        raise InputError(f"texts must be a list of texts; got the text {short(texts)}: pass [text]")
    texts, labels = list(texts), _about(model).labels
    windows = [texts] if texts else []
    return [
        Prediction.of(labels, row)
        for _, rows, _ in answers(model, windows, batch_size, workers, progress)
        for row in rows
    ]


def answers(model, windows, batch_size=BATCH_SIZE, workers=None, progress=False):
    """Yield (texts, probabilities, cut) for each window, a list of n texts, before the next one is asked for.

    probabilities: (n, k) in float64. cut: how many texts were too long and were cut. Otherwise as `predict`.
    """
    batch_size = check_integer("batch_size", batch_size)
    with team(workers) as workers:
        for texts in windows:
            yield texts, *_probabilities(model, texts, batch_size, workers, progress)


def _probabilities(model, texts, batch_size, workers, progress):
    about = _about(model)
    for i, text in enumerate(texts):
        check_text(text, f"text number {i + 1}")
    batches = TextBatches([(text, -1) for text in texts], about.tokenizer, min(batch_size, len(texts)))
    order, y = list(batches.in_order()), np.empty((len(texts), len(about.labels)))
    logits = outputs(model, [batch[1:] for batch in order], workers, progress)
    for (rows, *_), own in zip(order, logits, strict=True):
        y[rows] = own
    if not (finite := np.isfinite(y).all(axis=1)).all():
        raise NonFiniteError(f"{about.name} answers NaN or Inf to {short(texts[int(finite.argmin())])}")
    y -= y.max(axis=1, keepdims=True)  # softmax
    np.exp(y, out=y)
    return y / y.sum(axis=1, keepdims=True), batches.cut[0]


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
        np.errstate(all="ignore"),  # what overflows is no finite answer, which whoever asked says in a line
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
