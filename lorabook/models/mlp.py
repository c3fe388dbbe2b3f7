"""A multi-layer perceptron: linear layers with an activation between them."""

import itertools

from .. import functional as F
from ..errors import InputError
from ..layers import Activation, Linear, Sequential
from .classifier import Classifier


class MLP(Classifier, Sequential):
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
                children[f"act{i}"] = Activation(activation, overwrite=True)
        super().__init__(children)

    def inputs_of(self, x):
        """{linear layer's path: its inputs (N, d_in)} for a batch x."""
        inputs = {}
        for name, child in self.children.items():
            if "weight" in child.params:
                inputs[name] = x
            x, _ = child.forward(x)
        return inputs
