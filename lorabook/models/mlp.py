"""A multi-layer perceptron: linear layers with an activation between them."""

import itertools

import numpy as np

from .. import functional as F
from ..errors import InputError
from ..layers import Activation, Linear, Sequential
from .classifier import Classifier


class MLP(Classifier, Sequential):
    """x -> fc1 -> act1 -> fc2 -> ... -> logits. The smallest model on which every question about LoRA can be asked.

    >>> import lorabook as lb
    >>> model = lb.MLP((64, 32, 10))
    >>> {name: array.shape for name, array in model.named_params().items()}
    {'fc1.weight': (32, 64), 'fc1.bias': (32,), 'fc2.weight': (10, 32), 'fc2.bias': (10,)}
    """

    def __init__(self, sizes, activation="gelu_tanh", loss="cross_entropy", *, rng=None):
        """sizes: widths from input to output. rng: numpy Generator or seed for the weights (default 0)."""
        if len(sizes) < 2 or loss not in F.LOSSES:
            raise InputError(
                f"expected two sizes or more and a loss of {', '.join(F.LOSSES)}; got {sizes} and {loss!r}"
            )
        self.loss, rng = loss, np.random.default_rng(0 if rng is None else rng)
        children = {}
        for i, (d_in, d_out) in enumerate(itertools.pairwise(sizes), start=1):
            children[f"fc{i}"] = Linear.random(d_in, d_out, rng)
            if i < len(sizes) - 1:
                children[f"act{i}"] = Activation(activation, overwrite=True)
        super().__init__(children)
