"""Layers: parameters with a forward and a backward that store nothing.

`base` is the protocol, `run` what holds for one pass. `basic` has the layers that models are made of, `quantized` the
linear one in a few bits, `sequential` one after another, `recompute` and `again` what trade time for memory. `check`
holds any layer against derivatives that nobody derived by hand.
"""

from .again import Again, within, without
from .base import MERGED, RUN, Layer, add_grads, distinct, prefixed
from .basic import Activation, Embedding, LayerNorm, Linear, RMSNorm, Softmax
from .check import check_layer
from .quantized import QuantizedLinear, dequantize, quantizable, quantize
from .recompute import Recompute
from .run import INFERENCE, Run, watching
from .sequential import Sequential

__all__ = [
    "INFERENCE",
    "MERGED",
    "RUN",
    "Activation",
    "Again",
    "Embedding",
    "Layer",
    "LayerNorm",
    "Linear",
    "QuantizedLinear",
    "RMSNorm",
    "Recompute",
    "Run",
    "Sequential",
    "Softmax",
    "add_grads",
    "check_layer",
    "dequantize",
    "distinct",
    "prefixed",
    "quantizable",
    "quantize",
    "watching",
    "within",
    "without",
]
