"""What happens beside the steps of a run: a look at the weights, or what a variant does to gradients and factors."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..backend import array_namespace, ones
from ..errors import InputError, NonFiniteError, check_integer

KEEP = ("last", "best")
ACTS = ("after_backward", "after_update", "after_epoch")  # of a Hook


@dataclass
class Loop:
    """A run under way, as its hooks see it. params: {name: array} of what trains; `refresh` after that has changed.

    trained: {name: array} of all that trains or has trained in this run, as far as the model still has it.
    """

    model: Any
    optimizer: Any
    workers: Any
    params: dict
    total: int
    steps_an_epoch: int

    def __post_init__(self):
        self.trained = dict(self.params)

    def refresh(self):
        """Read anew from the model what trains. The optimizer gives what is new a state of zeros at its next step."""
        now, own = self.model.trainable_params(), self.model.named_params()
        self.trained = {name: own[name] for name in self.trained | now if name in own}
        self.params.clear()
        self.params.update(now)


class Hook:
    """Base class: `train` calls these, here they do nothing. All ranks of an MPI job call them at the same steps.

    A step whose loss or gradient is not finite ends the run before `after_update`. So with a hook that has one of
    `after_backward`, `after_update` and `after_epoch`, the host looks at every step, and read_every is 1.

    columns: names of what `after_step` adds to the history. options: what of it defines the run, a JSON-able dict.
    """

    columns, options = (), {}

    def arrays(self, params):
        """{name: array} that a checkpoint keeps: the same arrays at every call, finite, of known shapes."""
        return {}

    def resume(self, loop, step):
        """Of a run that goes on after `step` steps, before `start`: if what trains has changed in these, change it.

        As it was then, change after change, each with its `Loop.refresh`: the checkpoint holds all that has trained.
        """

    def start(self, loop, past):
        """Before the first step, with the weights of step 0. past: [(step, value of each column)] of a resumed run."""

    def after_backward(self, step, loop, grads):
        """With the gradients {name: array} of a step, which may be changed in place; their norm is taken afterwards."""

    def after_update(self, step, loop):
        """After the optimizer has changed the parameters."""

    def due(self, step, total):
        """Whether `after_step` is to be called after this step, counted from 0, of `total`."""
        return False

    def after_step(self, step, loop):
        """The value of each column, finite floats. The step's loss has been read, so on a GPU the host has waited."""
        return ()

    def after_epoch(self, epoch, loop):
        """After the last step of an epoch, counted from 0."""

    def finish(self, loop):
        """After the last step; the checkpoint is written already."""


class Evaluation(Hook):
    """Loss and accuracy, or other metrics, on rows not trained on: every `every` steps and after the last one.

    measure: function (model, workers) -> (loss, ...), the first of which are the `metrics`. keep: "best" gives the
    model, at the end, the weights of the evaluation with the lowest loss (of equal ones the first) instead of the last;
    a checkpoint holds both. If another hook changes what trains, the best is sought anew among the evaluations from
    then on: earlier weights are of others.
    """

    def __init__(self, measure, every, keep="last", metrics=("loss", "accuracy")):
        if keep not in KEEP:
            raise InputError(f"keep must be {' or '.join(KEEP)}; got {keep!r}")
        self.measure, self.every, self.keep = measure, check_integer("eval_every", every), keep
        self.metrics, self.columns = metrics, tuple(f"eval_{metric}" for metric in metrics)
        self.options = {"eval_every": self.every, "keep": keep}
        self.best = None  # (step, loss, ...) of the evaluation with the lowest loss
        self._weights, self._past = {}, []

    def arrays(self, params):
        """The best weights, and after which step they were: -1 for none yet."""
        if self.keep != "best":
            return {}
        if not self._are_of(params):
            self._weights = {name: array_namespace(array).zeros_like(array) for name, array in params.items()}
            self._step, self.best = -ones((1,), next(iter(params.values()))), None
        return {f"best:{name}": array for name, array in self._weights.items()} | {"best_step": self._step}

    def _are_of(self, params):
        return {n: a.shape for n, a in self._weights.items()} == {n: a.shape for n, a in params.items()}

    def _recall(self, params):
        """Which the best was in a run that has been resumed, once its checkpoint is read; forgotten if others train."""
        self.arrays(params)
        if past := self._past:
            self.best = next((row for row in past if row[0] == int(self._step[0])), None)
        self._past = []

    def start(self, loop, past):
        self.best = min(past, key=lambda row: row[1], default=None)  # the first of equal ones
        self._weights, self._past = {}, past if self.keep == "best" else []

    def due(self, step, total):
        return (step + 1) % self.every == 0 or step + 1 == total

    @np.errstate(all="ignore")  # what overflows becomes an error
    def after_step(self, step, loop):
        found = self.measure(loop.model, loop.workers)[: len(self.metrics)]
        loss = found[0]
        if not math.isfinite(loss):
            raise NonFiniteError(f"step {step}: the loss on the rows of the evaluation is {loss}")
        self._recall(loop.params)
        if self.best is None or loss < self.best[1]:
            self.best = step, *found
            if self.keep == "best":
                self._step[...] = step
            for name, array in self._weights.items():
                array[...] = loop.params[name]
        return found

    def finish(self, loop):
        self._recall(loop.params)
        if self.best is not None:
            for name, array in self._weights.items():
                loop.params[name][...] = array


def _own(hook, name):
    """Whether a hook has a method of its own, of its class or set on it, in the place of that of the base class."""
    return getattr(getattr(hook, name), "__func__", None) is not getattr(Hook, name)


class Hooks:
    """The hooks of a run of `total` steps, together."""

    def __init__(self, hooks, total):
        self.hooks, self.total = list(hooks), total
        self.columns = [column for hook in self.hooks for column in hook.columns]
        if len(set(self.columns)) < len(self.columns):
            raise InputError(f"two hooks write the same column of the history: {', '.join(sorted(self.columns))}")
        self.options = {name: value for hook in self.hooks for name, value in hook.options.items()}

    @property
    def nothing(self):
        """A value for each column of a step after which no hook is due."""
        return [math.nan] * len(self.columns)

    def due(self, step):
        """Whether one of them is to be called after this step."""
        return any(hook.due(step, self.total) for hook in self.hooks)

    def filled(self, step):
        """For each column, whether it has a value after this step."""
        return [due for hook in self.hooks for due in [hook.due(step, self.total)] * len(hook.columns)]

    @property
    def act(self):
        """Whether one of them does something in steps: on the host, which must know then that the step is sound."""
        return any(_own(hook, name) for hook in self.hooks for name in ACTS)

    def arrays(self, params):
        """All that a checkpoint keeps for them."""
        return {name: array for hook in self.hooks for name, array in hook.arrays(params).items()}

    def resume(self, loop, step):
        """What trained after `step` steps is to train again."""
        for hook in self.hooks:
            hook.resume(loop, step)

    def start(self, loop, values):
        """values: those of all columns in each of the steps that were taken already."""
        start = 0
        for hook in self.hooks:
            own = slice(start, start := start + len(hook.columns))
            past = [(step, *row[own]) for step, row in enumerate(values) if hook.due(step, self.total)]
            hook.start(loop, past)

    def after_backward(self, step, loop, grads):
        """Before the optimizer."""
        for hook in self.hooks:
            hook.after_backward(step, loop, grads)

    def after_update(self, step, loop):
        """After the optimizer, and at the end of an epoch."""
        for hook in self.hooks:
            hook.after_update(step, loop)
        if (step + 1) % loop.steps_an_epoch == 0:
            for hook in self.hooks:
                hook.after_epoch(step // loop.steps_an_epoch, loop)

    def after_step(self, step, loop):
        """The values of all columns, NaN where a hook is not due."""
        values = [
            hook.after_step(step, loop) if hook.due(step, self.total) else [math.nan] * len(hook.columns)
            for hook in self.hooks
        ]
        return [value for own in values for value in own]

    def finish(self, loop):
        """After the last step."""
        for hook in self.hooks:
            hook.finish(loop)
