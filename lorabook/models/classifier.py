"""What every model with one output a row can do: loss and gradients, loss and accuracy."""

from .. import functional as F
from ..backend import array_namespace


class Classifier:
    """Mixin for a Layer whose forward gives logits (..., k), or values with another `loss` of `functional.LOSSES`."""

    loss = "cross_entropy"

    def loss_and_grad(self, x, target, rng=None, share=1.0):
        """The loss and the gradients of `share` times it. target: labels (...), or values (..., k)."""
        y, cache = self.forward(x, rng)
        forward, backward = F.LOSSES[self.loss]
        loss, loss_cache = forward(y, target)
        _, grads = self.backward(backward(share, loss_cache), cache, need_dx=False)
        return loss, grads

    def count(self, target):
        """How many the loss is a mean over: the labels that are not below 0, or all rows of values."""
        if self.loss != "cross_entropy":
            return target.shape[0]
        xp = array_namespace(target)
        return int(xp.sum(xp.astype(target >= 0, xp.int64)))

    def evaluate(self, x, labels):
        """(mean cross entropy in nats, accuracy in 0 .. 1) over the labels (...) that are not below 0, as floats."""
        logits = self.predict(x)
        xp = array_namespace(logits, labels)
        loss, _ = F.softmax_cross_entropy(logits, labels)
        right = xp.astype(xp.argmax(logits, axis=-1) == labels, logits.dtype)
        return float(loss), float(xp.sum(right) / xp.sum(xp.astype(labels >= 0, logits.dtype)))
