"""The steps of a training run, and when the host looks at what they gave.

A GPU works through a queue. Whoever asks it for a number waits until everything before is done, and in that time puts
nothing into the queue. So loss and norm are read every few steps only. What must not wait is the decision whether a
step may change anything: the device makes it, by a flag that turns every update after the first NaN or Inf into none.
"""

import math

import numpy as np

from .backend import array_namespace, asarray_like, data_like, to_numpy
from .errors import NonFiniteError, check_integer
from .optim import clip_factor, clip_grad_norm, squared_norm

READ_EVERY = 10  # steps on a device
ADVICE = ". Weights and optimizer are as before this step. A lower learning rate, warm-up or max_grad_norm may help"


class Steps:
    """Takes one step after another; `read` says what the steps since the last reading gave.

    With read_every 1 the host looks before each update; otherwise it must read after that many steps at the latest.
    unread: how many are to be read.
    """

    def __init__(self, workers, model, batches, optimizer, params, seed, max_grad_norm, read_every=None):
        """read_every: default 1 on NumPy, READ_EVERY elsewhere."""
        self.workers, self.model, self.batches, self.optimizer = workers, model, batches, optimizer
        self.params, self.seed, self.max_grad_norm = params, seed, max_grad_norm
        self.like = next(iter(params.values()))
        self.xp = array_namespace(self.like)
        if read_every is None:
            read_every = 1 if self.xp is np else READ_EVERY
        self.read_every, self._taken, self._alive = check_integer("read_every", read_every), [], None

    @property
    def unread(self):
        """How many steps were taken since the last reading."""
        return len(self._taken)

    @np.errstate(all="ignore")  # what overflows becomes an error that names the layer, not a warning
    def take(self, step, lr_factor):
        """Update the parameters in place."""
        lr = self.optimizer.lr * lr_factor
        if self.read_every == 1:
            loss, grads, norm = self._checked(step)
            self.optimizer.step(self.params, grads, lr_factor)
            self._taken.append((step, loss, lr, norm))
            return
        loss, grads = self.workers.loss_and_grad(self.model, *self._batch(step))
        squares = squared_norm(grads)
        loss = asarray_like(loss, squares)  # float64, so that the two can be read together
        alive = self.xp.isfinite(loss) & self.xp.isfinite(squares)
        self._alive = alive if self._alive is None else self._alive & alive
        self.optimizer.step(self.params, grads, lr_factor, clip_factor(squares, self.max_grad_norm), self._alive)
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
                self.optimizer.step_count -= len(taken) - i
                self._checked(step)  # the weights are those that the step had: says what was not finite
                raise NonFiniteError(f"step {step}: the loss is {loss}, the norm of the gradient {norm}{ADVICE}")
        return [row for _, *row in taken]

    def _batch(self, step):
        """What loss_and_grad takes: (x, y, generator)."""
        x, y = self.batches.at(step)
        self.model.check_input(x)
        return data_like(x, self.like), data_like(y, self.like), np.random.default_rng([self.seed, step])

    @np.errstate(all="ignore")
    def _checked(self, step):
        """(loss, clipped gradients, their norm before) with Python floats. NonFiniteError unless all are finite."""
        x, y, rng = self._batch(step)
        try:
            loss, grads = self.workers.loss_and_grad(self.model, x, y, rng)
            if not math.isfinite(loss := float(loss)):
                raise NonFiniteError(
                    f"the loss is {loss}, first seen in the output of {first_non_finite(self.model, x)}"
                )
            return loss, grads, clip_grad_norm(grads, self.max_grad_norm)
        except NonFiniteError as error:
            raise NonFiniteError(f"step {step}: {error}{ADVICE}") from None


def first_non_finite(model, x):
    """Path of the layer whose output is the first, in order of execution, to hold NaN or Inf."""
    found, layers = [], dict(model.named_layers())

    def watch(path, forward):
        def watched(*args, **context):
            y, cache = forward(*args, **context)
            xp = array_namespace(y)
            if not xp.all(xp.isfinite(y)):
                found.append(path)
            return y, cache

        return watched

    for path, layer in layers.items():
        layer.forward = watch(path, layer.forward)
    try:
        model.forward(x)
    finally:
        for layer in layers.values():
            del layer.forward
    return f"layer {found[0]}" if found and found[0] else "the loss itself"
