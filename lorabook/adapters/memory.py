"""What training costs in memory, by arithmetic: weights, gradients, optimizer state."""

import math

import numpy as np

from ..backend import array_namespace
from ..layers import QuantizedLinear, distinct
from .whole_model import adapters, base_params


def count(arrays):
    """Number of entries in {name: array}."""
    return sum(math.prod(a.shape) for a in arrays.values())


def _bytes(arrays):
    return sum(math.prod(a.shape) * _itemsize(a) for a in arrays.values())


def _itemsize(array):
    xp = array_namespace(array)
    number = xp.finfo(array.dtype) if xp.isdtype(array.dtype, "real floating") else xp.iinfo(array.dtype)
    return number.bits // 8


def _dense(model):
    """{name: array} of the base model in full precision: what is held in 4 bits as the float32 that it stands for, by
    arrays that have its shape, and take no memory.
    """
    coded = {path: layer for path, layer in model.named_layers() if isinstance(layer, QuantizedLinear)}
    weights = {f"{path}.weight": np.broadcast_to(np.float32(0), layer.shape) for path, layer in coded.items()}
    return base_params(model) | weights


def memory_table(model, optimizer_slots=2, state=None):
    """Two rows: full fine-tuning of the base model, and what the model trains now.

    Each row: method, trained (parameters), share (of the base model's), and the bytes of weights, gradients, optimizer
    state and their total. Full fine-tuning of a model in 4 bits is that of its weights in float32. optimizer_slots:
    arrays that the optimizer keeps per parameter (AdamW 2, momentum 1); state: its bytes for what trains, where that is
    no whole number of arrays. A base weight that a start moved is held twice.
    Activations are not counted: they depend on the batch, and LoRA needs nearly as many of them as full fine-tuning.

    >>> import lorabook as lb
    >>> model = lb.MLP((64, 32, 10))
    >>> _ = lb.inject(model, lb.LoRAConfig(r=4))  # 4 (64 + 32) + 4 (32 + 10) numbers
    >>> [(row["method"], row["trained"]) for row in lb.memory_table(model)]
    [('full', 2410), ('lora', 552)]
    """
    everything, base = distinct(model.state() | base_params(model)), distinct(_dense(model))
    variant = next((layer.method for layer in adapters(model).values()), "as it trains")
    rows = []
    for method, weights, trained in (("full", base, base), (variant, everything, model.trainable_params())):
        gradients = _bytes(trained)
        kept = optimizer_slots * gradients if state is None or method == "full" else state
        rows.append(
            {
                "method": method,
                "trained": count(trained),
                "share": count(trained) / count(base),
                "weights": _bytes(weights),
                "gradients": gradients,
                "optimizer": kept,
                "total": _bytes(weights) + gradients + kept,
            }
        )
    return rows
