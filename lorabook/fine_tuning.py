"""A fine-tuning run made ready from what a user gives; what it measures and says besides its steps."""

import math
import sys
from collections import Counter
from dataclasses import dataclass

import numpy as np

from .adapter_io import about, read_adapter_config
from .adapters import LoRAConfig, inject, unfreeze
from .errors import InputError, check_integer
from .hooks import Evaluation, Hook
from .io import fingerprint
from .jobs import DEFAULTS, LEAST_STEPS, Job, epochs_for, evaluate, kind_of, make_job

OPTIONS = {"r": 8, "lora_alpha": 16, "use_rslora": False, "lora_dropout": 0.0}  # of the adapter, unless told otherwise
EVALUATIONS = 20  # of a run, at most, unless told how often
LITTLE = 0.9  # of the loss of guessing by the shares of the labels: a run that ends above it has hardly learned


@dataclass(frozen=True)
class Plan:
    """A run before its first step. job.model has its adapter, of `config`, ready to train.

    before: the hook that measures it as it is. evaluation: the hook that does so while it trains, or None. notes: lines
    for the reader. description: what defines the run, for its checkpoint.
    """

    job: Job
    config: LoRAConfig
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
    target_modules=None,
    epochs=None,
    batch_size=None,
    seed=0,
    max_length=None,
    encoding="utf-8",
    eval_data=None,
    eval_every=None,
    keep="last",
    **options,
):
    """The Plan of a run of a model on a task; see `jobs.make_job`. Everything is checked that can be without training.

    xp: the array library that computes. adapter: a folder whose adapter is trained further; what is given besides must
    not contradict it. options: of LoRAConfig, None where nothing was given. eval_data, eval_every, keep: see
    `hooks.Evaluation`; with none of them nothing is evaluated while training. Without eval_data, validation rows are
    held out of the training rows.
    """
    given = {"target_modules": target_modules, "max_length": max_length, **options}
    known = _continued(adapter, given) if adapter else {}
    options = {
        name: known.get(name, value if given.get(name) is None else given[name]) for name, value in OPTIONS.items()
    }
    LoRAConfig(**options)  # complains before anything is fetched
    for name, value in {"epochs": epochs, "batch_size": batch_size, "eval_every": eval_every}.items():
        if value is not None:
            check_integer(name, value)
    watched = bool(eval_data or eval_every or keep == "best")
    job = make_job(model, data, batch_size, seed, max_length, encoding, adapter, eval_data, validate=watched)
    network, config = job.model.to(xp), job.config
    if config:
        unfreeze(network, config)
    else:
        targets = target_modules or DEFAULTS[kind_of(model)]["target_modules"]
        targets = targets[0] if targets == ["all-linear"] else targets
        config = LoRAConfig(target_modules=targets, modules_to_save=job.modules_to_save, **options)
        inject(network, config)
    epochs = epochs_for(model, job.batches) if epochs is None else epochs
    description = {"adapter": config.as_dict(), "labels": job.labels, "max_length": job.max_length}
    if adapter:
        description["continued_adapter"] = {"sha256": fingerprint(network.trainable_params())}
    notes, evaluation = list(job.notes), None
    if watched:
        description["validation_rows"] = described(job.validation)
        every = eval_every or len(job.batches) * math.ceil(epochs / EVALUATIONS)
        evaluation = Evaluation(lambda net, workers: evaluate(net, job.validation, workers), every, keep)
        origin = f"of {eval_data}" if eval_data else "held out of the training rows"
        rows = description["validation_rows"]["rows"]
        notes.append(f"evaluating after every {every} steps on {rows:,} rows {origin}; the test rows stay unseen")
    return Plan(job, config, epochs, Before(job.test, notes), evaluation, tuple(notes), description)


def _continued(adapter, given):
    """{name: value} of the options of an adapter. Raises InputError for one that was given and is not the same."""
    config = read_adapter_config(adapter)
    known = {name: getattr(config, name) for name in (*OPTIONS, "target_modules")}
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
    return known


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
    """What a checkpoint says of rows [(x, y)]: how many, and their sha256."""
    arrays = {f"{i}": array for i, array in enumerate(array for batch in rows for array in batch)}
    return {"rows": sum(len(y) for _, y in rows), "sha256": fingerprint(arrays)}


class Before(Hook):
    """Tells what is to be known about the data, and measures the model on the test rows, before the first step."""

    def __init__(self, test, notes=()):
        self.test, self.notes, self.result = test, notes, None

    def start(self, model, workers, past):
        for line in self.notes:
            print(f"note: {line}", file=sys.stderr)
        self.result = evaluate(model, self.test, workers, progress=True)


def hardly_learned(history, batches):
    """A line on a run whose loss is hardly below that of guessing, or None.

    Guessing answers every row with the shares of the labels among the training rows; its loss is their entropy. Said
    if the mean loss of the last epoch is above LITTLE times that.
    """
    labels = Counter(label for step in range(len(batches)) for label in batches.at(step)[1].tolist())
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
