"""What happens beside the steps of a run, and never changes what they compute: evaluation, and the best weights."""

import math

import numpy as np

from .backend import array_namespace
from .errors import InputError, NonFiniteError, check_integer

KEEP = ("last", "best")


class Hook:
    """Base class: `train` calls these, here they do nothing. All ranks of an MPI job call them at the same steps.

    columns: names of what `after_step` adds to the history. options: what of it defines the run, a JSON-able dict.
    """

    columns, options = (), {}

    def arrays(self, params):
        """{name: array} that a checkpoint keeps: the same arrays at every call, finite, of known shapes."""
        return {}

    def start(self, model, workers, past):
        """Before the first step, with the weights of step 0. past: [(step, value of each column)] of a resumed run."""

    def due(self, step, total):
        """Whether `after_step` is to be called after this step, counted from 0, of `total`."""
        return False

    def after_step(self, step, model, workers):
        """The value of each column, finite floats."""
        return ()

    def finish(self, params):
        """After the last step; the checkpoint is written already."""


class Evaluation(Hook):
    """Loss and accuracy on rows that are not trained on, every `every` steps and after the last one.

    measure: function (model, workers) -> (loss, accuracy). keep: "best" gives the model, at the end, the weights of the
    evaluation with the lowest loss (of equal ones the first) instead of the last; a checkpoint holds both.
    """

    columns = ("eval_loss", "eval_accuracy")

    def __init__(self, measure, every, keep="last"):
        if keep not in KEEP:
            raise InputError(f"keep must be {' or '.join(KEEP)}; got {keep!r}")
        self.measure, self.every, self.keep = measure, check_integer("eval_every", every), keep
        self.options = {"eval_every": self.every, "keep": keep}
        self.best = None  # (step, loss, accuracy) of the evaluation with the lowest loss
        self._weights = {}

    def arrays(self, params):
        if self.keep == "best" and not self._weights:
            self._weights = {name: array_namespace(array).zeros_like(array) for name, array in params.items()}
        return {f"best:{name}": array for name, array in self._weights.items()}

    def start(self, model, workers, past):
        self.best = min(past, key=lambda row: row[1], default=None)  # the first of equal ones
        self._weights = {}

    def due(self, step, total):
        return (step + 1) % self.every == 0 or step + 1 == total

    @np.errstate(all="ignore")  # what overflows becomes an error
    def after_step(self, step, model, workers):
        loss, accuracy = self.measure(model, workers)
        if not math.isfinite(loss):
            raise NonFiniteError(f"step {step}: the loss on the rows of the evaluation is {loss}")
        if self.best is None or loss < self.best[1]:
            self.best = step, loss, accuracy
            params = model.trainable_params()
            for name, array in self.arrays(params).items():
                array[...] = params[name.partition(":")[2]]
        return loss, accuracy

    def finish(self, params):
        for name, array in self._weights.items():
            params[name][...] = array


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

    def arrays(self, params):
        """All that a checkpoint keeps for them."""
        return {name: array for hook in self.hooks for name, array in hook.arrays(params).items()}

    def start(self, model, workers, values):
        """values: those of all columns in each of the steps that were taken already."""
        start = 0
        for hook in self.hooks:
            own = slice(start, start := start + len(hook.columns))
            past = [(step, *row[own]) for step, row in enumerate(values) if hook.due(step, self.total)]
            hook.start(model, workers, past)

    def after_step(self, step, model, workers):
        """The values of all columns, NaN where a hook is not due."""
        values = [
            hook.after_step(step, model, workers) if hook.due(step, self.total) else [math.nan] * len(hook.columns)
            for hook in self.hooks
        ]
        return [value for own in values for value in own]

    def finish(self, params):
        """After the last step."""
        for hook in self.hooks:
            hook.finish(params)
