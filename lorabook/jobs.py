"""A model and a task made ready to train or to evaluate, from their names on the command line."""

from dataclasses import dataclass

import numpy as np

from .adapter_io import about, load_adapter
from .backend import data_like
from .configs import short
from .data import SHIFTS, Batches, digits
from .errors import InputError
from .hub import locate
from .layers import Layer
from .loading import find, is_adapter
from .predictions import check_input, for_each
from .pretrain import pretrained_mlp
from .text import TextBatches, movie_reviews, text_file

TEST_BATCH = 64  # rows; what is kept of each is its answer alone
SPLITS = ("test", "train", "all")


@dataclass(frozen=True)
class Job:
    """model: the base model. batches: of the training rows. test: batches that cover the test rows once, [(x, y)].

    max_length: tokens of a text, at most. notes: lines on what is odd about the data, for the reader.
    """

    model: Layer
    batches: object
    test: list
    labels: list
    task_type: str | None
    modules_to_save: tuple
    max_length: int | None = None
    notes: tuple = ()


@dataclass(frozen=True)
class Test:
    """What `evaluate` needs: a model with its adapter, and batches [(x, y)] that cover the rows once.

    trained: whether its classifier is; otherwise it is random. notes: as of a Job.
    """

    model: Layer
    batches: list
    labels: list
    trained: bool
    notes: tuple = ()


# What a model trains with unless told otherwise.
DEFAULTS = {
    "mlp-digits": {
        "target_modules": ["all-linear"],
        "lr": 1e-2,
        "epochs": 60,
        "batch_size": 64,
        "lr_schedule": "cosine",
    },
    "encoder": {
        "target_modules": ["query", "value"],
        "lr": 1e-3,
        "epochs": 2,
        "batch_size": 32,
        "lr_schedule": "linear",
    },
}


def kind_of(model):
    """The key of DEFAULTS for a model's name or path."""
    return model if model in DEFAULTS else "encoder"


def make_job(model, data, batch_size=32, seed=0, max_length=128, encoding="utf-8"):
    """The Job of a model (name or Hugging Face folder) on a task (name or file).

    seed: of the batches and of what starts at random. Texts are split into training and test rows alike whatever
    `seed` is, so that no test row of one run is a training row of another. encoding: of a text file.
    """
    if kind_of(model) == "mlp-digits":
        base, task = _digits(data, seed)
        batches = Batches(task.x_train, task.y_train, batch_size, seed)
        return Job(base, batches, [(task.x_test, task.y_test)], [str(i) for i in range(10)], None, ())
    source = find(model)
    if source.adapter:
        raise InputError(f"{model} is an adapter folder; expected the model that is to be trained")
    task = _texts(data, encoding)
    base = source.load(task.names, max_length, seed)
    batches = TextBatches(task.train, base.about.tokenizer, batch_size, seed)
    test = TextBatches(task.test, base.about.tokenizer, min(TEST_BATCH, len(task.test)), seed)
    check_input(base, batches.ids + test.ids)
    notes = tuple(filter(None, (*task.notes, batches.cut_note())))
    tested, saved = [rows[1:] for rows in test.in_order()], ("classifier",)
    return Job(base, batches, tested, task.names, "SEQ_CLS", saved, base.about.max_length, notes)


def make_test(model, data, adapter=None, split=None, seed=0, max_length=None, encoding="utf-8"):
    """The Test of a model (as for `loading.find`, or mlp-digits) on a task (name or file).

    split: "test" or "train", the rows that training holds out, or trains on; "all"; by default the test rows of a named
    task, and all rows of a file, however few. If the model's files name the labels, those of the data must be among
    them. seed, encoding: as for a Job. max_length: as for `load_model`.
    """
    if model == "mlp-digits" or (is_adapter(model) and about(model)["base_model"] == "mlp-digits"):
        base, task = _digits(data, seed)
        if folder := adapter if model == "mlp-digits" else model:
            load_adapter(folder, base)
        x, y = ([getattr(task, f"{name}_{part}") for part in _parts(split or "test")] for name in "xy")
        return Test(base, [(np.concatenate(x), np.concatenate(y))], [str(i) for i in range(10)], True)
    source = find(model, adapter)
    rows, labels = _rows(data, split, source.labels, encoding)
    if len(labels) < 2:
        raise InputError(f"{data}: all labels are {short(labels[0])}, and {model} has no trained classifier to test")
    network = source.load(labels, max_length, seed)
    batches = TextBatches(rows, network.about.tokenizer, min(TEST_BATCH, len(rows)))
    notes = tuple(filter(None, [batches.cut_note()]))
    return Test(network, [rows[1:] for rows in batches.in_order()], labels, network.about.trained, notes)


def _digits(data, seed):
    if data not in SHIFTS:
        raise InputError(f"mlp-digits trains on {', '.join(SHIFTS)}; got {data!r}")
    return pretrained_mlp(digits(seed=seed), seed=seed), digits(data, seed)


def _texts(data, encoding, **options):
    """The TextTask of a name or a file. options: of `text_file`."""
    if data in SHIFTS:
        raise InputError(f"{data} is made of images; expected texts: movie-reviews or a .csv, .tsv or .jsonl file")
    return movie_reviews(locate(data)) if data == "movie-reviews" else text_file(data, encoding, **options)


def _parts(split):
    return ("train", "test") if split == "all" else (split,)


def _rows(data, split, labels, encoding):
    """(rows [(text, number of its label)], labels) of a part of the data; `labels` None: those of the data."""
    named = data == "movie-reviews"
    split = split or ("test" if named else "all")
    task = _texts(data, encoding, split=split != "all", names=labels)
    rows = [row for part in _parts(split) for row in getattr(task, part)]
    if labels is None:
        return rows, task.names
    if unknown := [name for name in task.names if name not in labels]:
        raise InputError(f"{data}: the label {short(unknown[0])} is none of the model's, {short(list(labels))}")
    return [(text, labels.index(task.names[number])) for text, number in rows], list(labels)


def evaluate(model, test, workers=None, progress=False):
    """(mean cross entropy in nats, accuracy in 0 .. 1) over batches [(x, y)]; a label below 0 does not count.

    workers, progress: as in `train`.
    """
    like = next(iter(model.named_params().values()))

    def one(batch):
        x, y = batch
        return int(np.count_nonzero(y >= 0)), *model.evaluate(data_like(x, like), data_like(y, like))

    results = for_each(test, model, one, workers, progress)
    counted = sum(n for n, _, _ in results)
    return sum(n * loss for n, loss, _ in results) / counted, sum(n * right for n, _, right in results) / counted
