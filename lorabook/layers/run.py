"""What holds for one pass through a model: made once, handed down unchanged, read by the layers that it concerns."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Run:
    """One pass: `y, cache = layer(x, run)`. As it is made by default: inference, of which a backward pass may follow.

    rng: a host Generator from which dropout draws; with it the pass is one of training. keep: whether a backward pass
    follows; without it, caches may be None. spare: whether blocks leave out of their caches what they can make again.
    bias: what attention adds to its scores: (B, 1, 1, T), -huge for padding.
    causal: no token attends to a later one. first: only the first so many tokens of the last block's output are asked
    for. spans: the keys that each query of causal attention sees, `functional.Spans`. angles: (cos, sin) of the tokens'
    positions, `functional.rotary_angles`. asked: (B, m) integers, the tokens of each row that go to the vocabulary;
    default all. kv: a `models.KVCache` of the caller, of what came before in each row; no backward pass follows then.
    weights: {layer: W_eff}, effective weights that were formed once for several passes; the factors must not
    change meanwhile. watch: called as watch(layer, x, y) after each layer; see `watching`. tell: called as
    tell(y, labels) with what a head says of a batch that is trained on, for whoever counts how much of it is right.
    """

    rng: np.random.Generator | None = None
    keep: bool = True
    spare: bool = True
    bias: Any = None
    causal: bool = False
    first: int | None = None
    spans: Any = None
    angles: Any = None
    asked: Any = None
    kv: Any = None
    weights: Mapping = field(default_factory=dict, repr=False)
    watch: Callable | None = None
    tell: Callable | None = None

    def but(self, **fields):
        """This run with other values in some fields."""
        return replace(self, **fields)


INFERENCE = Run(keep=False)


def watching(model, function, **fields):
    """A Run in which function(path, x, y) sees the input and output of every layer of the model, in order of execution.

    It changes nothing on the model, so other passes may be under way. Layers are called one by one: attention does not
    go the shorter way past its key and value. What the function wants to keep of y, it copies: the layers behind may
    use that memory again, and so an activation inside a model has no x any more. fields: other fields of the Run.
    """
    paths = {layer: path for path, layer in model.named_layers()}
    return Run(watch=lambda layer, x, y: function(paths[layer], x, y), **fields)
