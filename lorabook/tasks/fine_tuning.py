"""A fine-tuning run made ready from what a user gives; what it measures and says besides its steps."""

import math
import sys
from collections import Counter
from dataclasses import dataclass

import numpy as np

from ..adapters import AdapterConfig, about, inject, read_adapter_config, unfreeze
from ..errors import InputError, check_integer
from ..files import fingerprint
from ..training import Evaluation, Hook
from .adapter_options import OPTIONS, adapter_config
from .base import LEAST_STEPS, TrainingJob
from .measures import evaluate
from .table import task_of, training_job

EVALUATIONS = 20  # of a run, at most, unless told how often
LITTLE = 0.9  # of the loss of guessing by the shares of the labels: a run that ends above it has hardly learned


@dataclass(frozen=True)
class Plan:
    """A run before its first step. job.model has its adapter, of `config`, ready to train.

    before: the hook that measures it as it is. evaluation: the hook that does so while it trains, or None. notes: lines
    for the reader. description: what defines the run, for its checkpoint.
    """

    job: TrainingJob
    config: AdapterConfig
    epochs: int
    before: Hook
    evaluation: Evaluation | None
    notes: tuple
    description: dict

    @property
    def hooks(self):
        """For `train`."""
        return [self.before, self.evaluation] if self.evaluation else [self.before]


def prepare(
    model,
    data,
    xp=np,
    *,
    adapter=None,
    method=None,
    option=(),
    target_modules=None,
    epochs=None,
    batch_size=None,
    seed=0,
    max_length=None,
    encoding="utf-8",
    eval_data=None,
    eval_every=None,
    keep="last",
    accumulate=1,
    task_options=None,
    **options,
):
    """The Plan of a run of a model on a task; see `training_job`. Everything is checked that can be without training.

    xp: the array library that computes. adapter: a folder whose adapter is trained further; what is given besides must
    not contradict it. method: of METHODS, default "lora". task_options: what the model's task has besides. options: of
    OPTIONS, None where nothing was given; option: others of the method, as "NAME=VALUE". eval_data, eval_every, keep:
    see `hooks.Evaluation`; with none of them nothing is evaluated while training.
    Without eval_data, validation rows are held out of the training rows.
    """
    given = {"target_modules": target_modules, "max_length": max_length, "method": method, **options}
    if adapter and option:
        raise InputError("--option is for a new adapter; leave it out, or train one without --adapter")
    if adapter:
        _check_continued(adapter, given)
    else:
        adapter_config(method or "lora", options, option)  # complains before anything is fetched
    checked = {"epochs": epochs, "batch_size": batch_size, "eval_every": eval_every, "accumulate": accumulate}
    for name, value in checked.items():
        if value is not None:
            check_integer(name, value)
    watched = bool(eval_data or eval_every or keep == "best")
    given = batch_size, seed, max_length, encoding, adapter, eval_data, watched, accumulate
    job = training_job(model, data, *given, **(task_options or {}))
    network, config = job.model.to(xp), job.config
    if config:
        unfreeze(network)
    else:
        targets = target_modules or list(network.default_targets)
        targets = targets[0] if targets == ["all-linear"] else targets
        chosen = {"target_modules": targets, "modules_to_save": job.modules_to_save}
        config = adapter_config(method or "lora", options, option, **chosen)
        inject(network, config)
    epochs = task_of(model).epochs_for(job.batches) if epochs is None else epochs
    description = {"adapter": config.as_dict(), "labels": job.labels, "max_length": job.max_length}
    if adapter:
        description["continued_adapter"] = {"sha256": fingerprint(network.trainable_params())}
    notes, evaluation = list(job.notes), None
    if watched:
        description["validation_rows"] = described(job.validation)
        every = eval_every or len(job.batches) * math.ceil(epochs / EVALUATIONS)
        evaluation = Evaluation(
            lambda net, workers: evaluate(net, job.validation, workers), every, keep, network.metrics
        )
        origin = f"of {eval_data}" if eval_data else "held out of the training rows"
        rows = description["validation_rows"]["rows"]
        notes.append(f"evaluating after every {every} steps on {rows:,} rows {origin}; the test rows stay unseen")
    return Plan(job, config, epochs, Before(job.test, notes), evaluation, tuple(notes), description)


def _check_continued(adapter, given):
    """Raise InputError for an option that was given and is not the adapter's."""
    config = read_adapter_config(adapter)
    known = {name: getattr(config, name, None) for name in (*OPTIONS, "target_modules", "method")}
    known["max_length"] = about(adapter)["max_length"]
    for name, own in known.items():
        asked = given.get(name)
        if asked is None or own is None or _words(asked) == _words(own):
            continue
        option = f"--{name.replace('_', '-')}"
        raise InputError(
            f"{option} {_words(asked)} contradicts the adapter in {adapter}, which has {_words(own)}; leave {option} "
            "out, or train a new adapter without --adapter"
        )


def _words(value):
    """An option as it is written on the command line, names in order."""
    return (
        " ".join(sorted(value))
        if isinstance(value, list | tuple)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


def described(rows):
    """What a checkpoint says of rows, in batches: how many, and their sha256."""
    arrays = {f"{i}.{name}": array for i, batch in enumerate(rows) for name, array in batch.items()}
    return {"rows": sum(len(batch["labels"]) for batch in rows), "sha256": fingerprint(arrays)}


class Before(Hook):
    """Tells what is to be known about the data, and measures the model on the test rows, before the first step."""

    def __init__(self, test, notes=()):
        self.test, self.notes, self.result = test, notes, None

    def start(self, loop, past):
        for line in self.notes:
            print(f"note: {line}", file=sys.stderr)
        self.result = evaluate(loop.model, self.test, loop.workers, progress=True)


def hardly_learned(history, batches, before=None, after=None):
    """A line on a run whose loss is hardly below that of guessing, or None.

    Guessing answers every row with the shares of the labels among the training rows; its loss is their entropy. Said
    if the mean loss of the last epoch is above LITTLE times that. A language model has learned to guess long ago: of
    one it is said if what `evaluate` gives on the test rows, before and after, has no lower loss.
    """
    if "perplexity" in getattr(after, "_fields", ()):
        if after.loss < before.loss:
            return None
        came = f"{before.loss:.4f} nats a token before, {after.loss:.4f} now"
        return f"the loss on the test rows has not fallen ({came}); try another --lr, or other --epochs"
    labels = Counter()
    for step in range(len(batches)):
        own = np.asarray(batches.at(step)["labels"])  # (B,), or (B, T) of tokens
        labels.update(own[own >= 0].tolist())
    shares = np.array([*labels.values()]) / labels.total()
    guessing = float(-(shares * np.log(shares)).sum())
    loss = float(np.mean([row["loss"] for row in history[-len(batches) :]]))
    if not loss > LITTLE * guessing > 0:
        return None
    longer = f"{len(history)} steps are few; try --epochs {-(-LEAST_STEPS // len(batches))}"
    what = longer if len(history) < LEAST_STEPS else "try another --lr, more --epochs, or a larger --r"
    return (
        f"hardly anything was learned: the loss of the last epoch is {loss:.3f} nats, and answering with the shares of "
        f"the labels has {guessing:.3f}; {what}"
    )
