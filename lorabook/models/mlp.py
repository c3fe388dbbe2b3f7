"""A multi-layer perceptron: linear layers with an activation between them."""

import itertools

from .. import functional as F
from ..backend import array_namespace
from ..errors import InputError
from ..layers import Activation, Linear, Sequential


class MLP(Sequential):
    """x -> fc1 -> act1 -> fc2 -> ... -> logits. The smallest model on which every question about LoRA can be asked."""

    def __init__(self, sizes, activation="gelu_tanh", loss="cross_entropy", *, rng):
        """sizes: widths from input to output, e.g. (64, 128, 128, 10). rng: numpy Generator for the weights."""
        if len(sizes) < 2 or loss not in F.LOSSES:
            raise InputError(
                f"expected two sizes or more and a loss of {', '.join(F.LOSSES)}; got {sizes} and {loss!r}"
            )
        self.loss = loss
        children = {}
        for i, (d_in, d_out) in enumerate(itertools.pairwise(sizes), start=1):
            children[f"fc{i}"] = Linear.random(d_in, d_out, rng)
            if i < len(sizes) - 1:
                children[f"act{i}"] = Activation(activation)
        super().__init__(children)

    def loss_and_grad(self, x, target, rng=None):
        """The loss and the gradients of the trainable parameters. x (N, d); target (N,) labels, or (N, k) values."""
        y, cache = self.forward(x, rng)
        forward, backward = F.LOSSES[self.loss]
        loss, loss_cache = forward(y, target)
        _, grads = self.backward(backward(1.0, loss_cache), cache, need_dx=False)
        return loss, grads

    def inputs_of(self, x):
        """{linear layer's path: its inputs (N, d_in)} for a batch x."""
        inputs = {}
        for name, child in self.children.items():
            if "weight" in child.params:
                inputs[name] = x
            x, _ = child.forward(x)
        return inputs

    def evaluate(self, x, labels):
        """(mean cross entropy in nats, accuracy in 0 .. 1) on x (N, d), labels (N,), as Python floats."""
        logits, _ = self.forward(x)
        xp = array_namespace(logits, labels)
        loss, _ = F.softmax_cross_entropy(logits, labels)
        return float(loss), float(xp.mean(xp.astype(xp.argmax(logits, axis=-1) == labels, logits.dtype)))
