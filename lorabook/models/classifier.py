"""What a model says of its batches {name: array}, and what every model with one output a row can do with them."""

from .. import functional as F
from ..backend import array_namespace
from ..errors import InputError
from ..layers import INFERENCE, RUN


class Model:
    """Mixin for a Layer that is fed with batches, which have `labels` where it is to learn or to be measured."""

    default_targets = ("all-linear",)  # what LoRA adapts unless told otherwise
    metrics = ("loss", "accuracy")  # what `evaluate` gives
    large = False  # whether BLAS threads may share the products of a batch that is not cut into shards

    def inputs(self, batch):
        """What forward takes of a batch."""
        return batch["x"]

    def rows(self, batch):
        """Number of rows. Raises InputError unless it is the same for all arrays."""
        if len(sizes := {tuple(array.shape[:1]) for array in batch.values()}) != 1:
            raise InputError(f"expected a batch of arrays of as many rows each; got {_shapes(batch)}")
        return next(iter(sizes))[0]

    def tokens(self, batch):
        """Number of rows that the model's products see."""
        return self.rows(batch)

    def part(self, batch, rows):
        """The batch of some of its rows, a slice."""
        return {name: array[rows, ...] for name, array in batch.items()}

    def answer(self, batch, run=INFERENCE):
        """The output for a batch."""
        return self(self.inputs(batch), run)[0]


class Classifier(Model):
    """Mixin for a Layer whose forward gives logits (..., k), or values with another `loss` of `functional.LOSSES`."""

    loss = "cross_entropy"

    def loss_and_grad(self, batch, run=RUN, share=1.0):
        """The loss and the gradients of `share` times it. labels (...), or values (..., k)."""
        if (labels := batch.get("labels")) is None or not self.rows(batch):
            raise InputError(f"expected a batch of some rows, with labels for each; got {_shapes(batch)}")
        y, cache = self(self.inputs(batch), run)
        if run.tell and self.loss == "cross_entropy":
            run.tell(y, labels)
        forward, backward = F.LOSSES[self.loss]
        loss, loss_cache = forward(y, labels)
        _, grads = self.backward(backward(share, loss_cache), cache, need_dx=False)
        return loss, self.add_tied(grads)

    def count(self, batch):
        """How many the loss is a mean over: the labels that are not below 0, or all rows of values."""
        if self.loss != "cross_entropy":
            return self.rows(batch)
        return int(counted(batch["labels"]))

    def evaluate(self, batch, run=INFERENCE):
        """(mean cross entropy in nats, accuracy in 0 .. 1) over the labels (...) that are not below 0, as floats."""
        logits, labels = self.answer(batch, run), batch["labels"]
        loss, _ = F.softmax_cross_entropy(logits, labels)
        return float(loss), int(right_of(logits, labels)) / int(counted(labels))


def counted(labels):
    """How many labels (...) are not below 0: a scalar of their library."""
    xp = array_namespace(labels)
    return xp.sum(xp.astype(labels >= 0, xp.int64))


def right_of(logits, labels):
    """How many of the labels (...) have the largest of their logits (..., k): a scalar of their library."""
    xp = array_namespace(logits, labels)
    return xp.sum(xp.astype(xp.argmax(logits, axis=-1) == labels, xp.int64))


def _shapes(batch):
    return ", ".join(f"{name} {tuple(array.shape)}" for name, array in batch.items())
