"""The steps of a training run, and when the host looks at what they gave.

A GPU works through a queue. Whoever asks it for a number waits until everything before is done, and in that time puts
nothing into the queue. So loss and norm are read every few steps only. What must not wait is the decision whether a
step may change anything: the device makes it, by a flag that turns every update after the first NaN or Inf into none.
"""

import math

import numpy as np

from ..backend import array_namespace, asarray_like, data_like, to_numpy
from ..errors import InputError, NonFiniteError, check_integer
from ..layers import add_grads, watching
from .clipping import clip_factor, clip_grad_norm, squared_norm

READ_EVERY = 10  # steps on a device
ADVICE = ". Weights and optimizer are as before this step. A lower learning rate, warm-up or max_grad_norm may help"


class Steps:
    """Takes one step after another; `read` says what the steps since the last reading gave.

    With read_every 1 the host looks before each update; otherwise it must read after that many steps at the latest.
    Where a hook acts in steps it is 1, so that none acts on a step that has failed. unread: how many are to be read.
    """

    def __init__(self, loop, hooks, batches, seed, max_grad_norm, accumulate=1, read_every=None, tell=None):
        """accumulate: parts in which a batch is computed. read_every: default 1 on NumPy, READ_EVERY elsewhere.

        tell: as in `Run`.
        """
        self.loop, self.hooks, self.batches, self.seed = loop, hooks, batches, seed
        self.max_grad_norm, self.accumulate, self.tell = max_grad_norm, accumulate, tell
        self.like = next(iter(loop.params.values()))
        self.xp = array_namespace(self.like)
        if read_every is None:
            read_every = 1 if self.xp is np else READ_EVERY
        read_every = check_integer("read_every", read_every)
        self.read_every, self._taken, self._alive = 1 if hooks.act else read_every, [], None

    @property
    def unread(self):
        """How many steps were taken since the last reading."""
        return len(self._taken)

    @np.errstate(all="ignore")  # what overflows becomes an error that names the layer, not a warning
    def take(self, step, lr_factor):
        """Update the parameters in place."""
        optimizer = self.loop.optimizer
        lr = optimizer.lr * lr_factor
        if self.read_every == 1:
            loss, grads, norm = self._checked(step)
            optimizer.step(self.loop.params, grads, lr_factor)
            self.hooks.after_update(step, self.loop)
            self._taken.append((step, loss, lr, norm))
            return
        loss, grads = self._loss_and_grad(step, *self._batch(step))
        squares = squared_norm(grads)
        loss = asarray_like(loss, squares)  # float64, so that the two can be read together
        alive = self.xp.isfinite(loss) & self.xp.isfinite(squares)
        self._alive = alive if self._alive is None else self._alive & alive
        factor = clip_factor(squares, self.max_grad_norm)
        optimizer.step(self.loop.params, grads, lr_factor, factor, self._alive)
        self._taken.append((step, loss, lr, squares))

    def read(self):
        """[[loss, learning rate, norm of the gradient before clipping]] of the unread steps, as floats.

        Raises NonFiniteError for the first that gave a NaN or Inf; weights and optimizer are as before that step.
        """
        taken, self._taken = self._taken, []
        if self.read_every > 1 and taken:  # one copy for all
            numbers = to_numpy(self.xp.stack([number for _, loss, _, squares in taken for number in (loss, squares)]))
            pairs = zip(taken, numbers.reshape(-1, 2).tolist(), strict=True)
            taken = [(step, loss, lr, math.sqrt(squares)) for (step, _, lr, _), (loss, squares) in pairs]
        for i, (step, loss, _, norm) in enumerate(taken):
            if not (math.isfinite(loss) and math.isfinite(norm)):
                self.loop.optimizer.step_count -= len(taken) - i
                self._checked(step)  # the weights are those that the step had: says what was not finite
                raise NonFiniteError(f"step {step}: the loss is {loss}, the norm of the gradient {norm}{ADVICE}")
        return [row for _, *row in taken]

    def _batch(self, step):
        """What loss_and_grad takes: (batch, generator)."""
        batch = self.batches.at(step)
        self.loop.model.check_input(self.loop.model.inputs(batch))
        return data_like(batch, self.like), np.random.default_rng([self.seed, step])

    def _loss_and_grad(self, step, batch, rng):
        """(loss, gradients) of the batch, in `accumulate` parts one after another; hooks have seen the gradients."""
        workers, model = self.loop.workers, self.loop.model
        n, k = model.rows(batch), self.accumulate
        parts = [batch] if k == 1 else [model.part(batch, slice(i * n // k, (i + 1) * n // k)) for i in range(k)]
        counts = [1] if k == 1 else [model.count(part) for part in parts]
        rngs = [rng] if k == 1 else rng.spawn(k)
        loss, grads = 0.0, {}
        for part, count, own in zip(parts, counts, rngs, strict=True):
            if not count:
                continue  # no label of it counts
            part_loss, part_grads = workers.loss_and_grad(model, part, own, self.tell)
            if (share := count / sum(counts)) != 1:
                part_loss, part_grads = share * part_loss, {name: share * grad for name, grad in part_grads.items()}
            loss, grads = loss + part_loss, add_grads(grads, part_grads)
        if not grads:
            raise InputError("no label of the batch counts: all are below 0; expected one from 0 on at least")
        self.hooks.after_backward(step, self.loop, grads)
        return loss, grads

    @np.errstate(all="ignore")
    def _checked(self, step):
        """(loss, clipped gradients, their norm before) with Python floats. NonFiniteError unless all are finite."""
        batch, rng = self._batch(step)
        try:
            loss, grads = self._loss_and_grad(step, batch, rng)
            if not math.isfinite(loss := float(loss)):
                where = first_non_finite(self.loop.model, self.loop.model.inputs(batch))
                raise NonFiniteError(f"the loss is {loss}, first seen in the output of {where}")
            return loss, grads, clip_grad_norm(grads, self.max_grad_norm)
        except NonFiniteError as error:
            raise NonFiniteError(f"step {step}: {error}{ADVICE}") from None


def first_non_finite(model, x):
    """Path of the layer whose output is the first, in order of execution, to hold NaN or Inf."""
    found = []

    def look(path, x, y):
        xp = array_namespace(y)
        if not xp.all(xp.isfinite(y)):
            found.append(path)

    model(x, watching(model, look))
    return f"layer {found[0]}" if found and found[0] else "the loss itself"
