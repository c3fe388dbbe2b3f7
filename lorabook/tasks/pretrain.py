"""Base models that are made rather than fetched: `mlp-digits`, trained on upright digits in under a second."""

import functools
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from ..adapters import inputs_of, linear_layers
from ..backend import data_like, to_numpy
from ..data import Batches, NumberTask, csv_task, digits
from ..layers import Layer
from ..linalg import activation_factor
from ..models import MLP
from ..parallel import team
from ..training import AdamW, train

HIDDEN = (128, 128)


@dataclass(frozen=True)
class Problem:
    """A base model, and the task that it is to learn.

    `encoder_sweep.EncoderProblem` is the same for texts: whatever has these methods can be swept.
    """

    base: Layer
    task: NumberTask

    head, tuned = (), None  # modules that train beside the matrices; a model that was fine-tuned in full already

    @property
    def shapes(self):
        """{path: (d_out, d_in)} of the matrices that are adapted: all of the model's."""
        return shapes_of(self.base)

    def batches(self, size, seed):
        """Batches of the training rows; fewer rows than `size` make one batch."""
        return Batches(self.task.part("train"), min(size, len(self.task.x_train)), seed)

    def evaluate(self, model, workers=1, every=1):
        """(loss, accuracy) on the test rows; every: on each such row alone, for a guess."""
        like = next(iter(model.named_params().values()))
        with team(workers):
            return model.evaluate(data_like(model.part(self.task.part("test"), slice(None, None, every)), like))

    def factors(self, model, seed, workers=1):
        """{path: R, R^T R = X^T X}, X the inputs (N, d_in) of the matrix on the training rows."""
        inputs = inputs_of(model, data_like(self.task.x_train, next(iter(model.named_params().values()))))
        return {path: activation_factor([to_numpy(x).astype("f8")]) for path, x in inputs.items()}


def shapes_of(model):
    """{path: (d_out, d_in)} of the matrices of a model whose layers are all linear."""
    return {path: layer.shape for path, layer in linear_layers(model).items()}


def pretrained_mlp(task, hidden=HIDDEN, epochs=30, lr=3e-3, batch_size=64, seed=0):
    """An MLP trained on every parameter with AdamW and a cosine schedule; the same arguments give the same bits."""
    model = MLP((task.x_train.shape[1], *hidden, task.classes), rng=np.random.default_rng(seed))
    with threadpool_limits(1):  # small matrices gain nothing from a second thread, and the bits depend on their number
        train(model, Batches(task.part("train"), batch_size, seed), AdamW(lr), epochs=epochs, seed=seed)
    return model


@functools.lru_cache(maxsize=32)
def digits_problem(data, seed, validation=False):
    """An MLP pretrained on upright digits, and digits under a shift. `seed` also splits them into training and test.

    Neither sees a test row in training. With `validation` the test rows are held out of the seed's training rows, and
    its real test rows play no part. The base is shared by all who ask for it: copy it before training.
    """
    upright, task = (digits(name, seed) for name in ("digits", data))
    if validation:
        upright, task = upright.validation(seed=seed), task.validation(seed=seed)
    return Problem(pretrained_mlp(upright, seed=seed), task)


def csv_problem(path, seed, validation=False, encoding="utf-8"):
    """The user's own rows, and an MLP with random weights: what is to be learnt is all there is to learn."""
    task = csv_task(path, seed, encoding=encoding)
    classes = task.classes
    if validation:
        task = task.validation(seed=seed)
    return Problem(MLP((task.x_train.shape[1], *HIDDEN, classes), rng=np.random.default_rng(seed)), task)
