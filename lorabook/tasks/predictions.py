"""Labels with probabilities for texts: of a list at once, or of windows of texts as they come."""

from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from ..adapters import effective_weights
from ..backend import array_namespace, data_like, to_numpy
from ..data import Batches, Texts, check_text
from ..errors import InputError, NonFiniteError, check_integer, printable
from ..files import short
from ..layers import INFERENCE
from ..parallel import team

BATCH_SIZE = 16  # texts: 32 take as long, and a tenth more memory


@dataclass(frozen=True)
class Prediction:
    """label: the most probable, of equals the first. probability: that label's, in 0 .. 1. probabilities: of each.

    >>> import lorabook as lb
    >>> print(lb.Prediction("pos", 0.75, {"neg": 0.25, "pos": 0.75}))
    pos (75.0 %)
    """

    label: str
    probability: float
    probabilities: dict

    @classmethod
    def of(cls, labels, row):
        """From the probabilities (k,) of the k labels."""
        first = int(row.argmax())
        return cls(labels[first], float(row[first]), dict(zip(labels, row.tolist(), strict=True)))

    def __str__(self):
        return f"{printable(self.label)} ({100 * self.probability:.1f} %)"


def predict(model, texts, batch_size=BATCH_SIZE, workers=None, progress=False):
    """The Prediction of each text, or pair of texts (text, text_pair), in their order.

    model: from `load_model`. batch_size: texts that are computed together, those of similar length; the answers do not
    depend on it but for rounding (1e-5). workers: threads, or `Workers` at work; default one a core. progress: a bar on
    stderr. Raises InputError for an empty text, NonFiniteError if an answer is no number.

    >>> import lorabook as lb
    >>> model = lb.load_model("runs/mine")
    >>> [answer] = lb.predict(model, ["good"])
    >>> answer.label, answer.probability > 0.5
    ('pos', True)
    >>> [answer.label for answer in lb.predict(model, ["bad, poor", "fine, good"])]
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
    examples = Texts([(text, -1) for text in texts], about.tokenizer)
    order = list(Batches(examples, min(batch_size, len(texts))).in_order())
    y = np.empty((len(texts), len(about.labels)))
    logits = outputs(model, [batch for _, batch in order], workers, progress)
    for (rows, _), own in zip(order, logits, strict=True):
        y[rows] = own
    if not (finite := np.isfinite(y).all(axis=1)).all():
        raise NonFiniteError(f"{about.name} answers NaN or Inf to {short(texts[int(finite.argmin())])}")
    y -= y.max(axis=1, keepdims=True)  # softmax
    np.exp(y, out=y)
    return y / y.sum(axis=1, keepdims=True), examples.cut[0]


def outputs(model, batches, workers=None, progress=False):
    """[the model's output, as a host array] of each batch. workers, progress: as in `train`."""
    like = next(iter(model.named_params().values()))
    return for_each(
        batches, model, lambda batch, run: to_numpy(model.answer(data_like(batch, like), run)), workers, progress
    )


def for_each(batches, model, function, workers=None, progress=False):
    """[function(batch, run)] of batches, for a function that only reads the model.

    The run is one of inference, for which the sums of weights and adapters are formed once. workers, progress: as in
    `train`. A device takes one batch after another: threads would only wait for their turn in its queue, each with a
    batch in its memory.
    """
    one_by_one = array_namespace(next(iter(model.named_params().values()))) is not np
    check_input(model, batches)

    def one(batch):
        result = function(batch, run)
        bar.update(workers.size)  # the other processes do as many meanwhile
        return result

    quiet = None if progress else True  # None: a bar on stderr if that is a terminal
    with (
        np.errstate(all="ignore"),  # what overflows is no finite answer, which whoever asked says in a line
        tqdm(total=len(batches), delay=2, disable=quiet, leave=False, unit="batch") as bar,
        team(workers) as workers,
    ):
        N = sum(model.tokens(batch) for batch in batches)
        run = INFERENCE.but(weights=effective_weights(model, N, INFERENCE, workers.map))
        return [one(batch) for batch in batches] if one_by_one else workers.spread(one, batches)


def check_input(model, batches):
    """Raise InputError if one of the batches holds what the model cannot take."""
    try:
        for batch in batches:
            model.check_input(model.inputs(batch))
    except InputError as error:  # numbers of tokens may have gaps, and special tokens any number
        if (about := getattr(model, "about", None)) is None:
            raise
        raise InputError(f"the tokenizer of {about.name} does not fit the model: {error}") from None


def _about(model):
    if (about := getattr(model, "about", None)) is None:
        raise InputError("this model has no tokenizer and no labels; open it by lorabook.load_model")
    return about
