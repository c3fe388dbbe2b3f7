"""What training costs in memory, by arithmetic: weights, gradients, optimizer state."""

import math

from ..backend import array_namespace
from .inject import base_params


def count(arrays):
    """Number of entries in {name: array}."""
    return sum(math.prod(a.shape) for a in arrays.values())


def _bytes(arrays):
    return sum(math.prod(a.shape) * array_namespace(a).finfo(a.dtype).bits // 8 for a in arrays.values())


def memory_table(model, optimizer_slots=2):
    """Two rows: full fine-tuning of the base model, and what the model trains now.

    Each row: method, trained (parameters), share (of the base model's), and the bytes of weights, gradients, optimizer
    state and their total. optimizer_slots: arrays that the optimizer keeps per parameter (AdamW 2, momentum 1).
    Activations are not counted: they depend on the batch, and LoRA needs nearly as many of them as full fine-tuning.
    """
    everything = model.named_params()
    base = base_params(model)
    rows = []
    for method, weights, trained in (("full", base, base), ("lora", everything, model.trainable_params())):
        gradients = _bytes(trained)
        rows.append(
            {
                "method": method,
                "trained": count(trained),
                "share": count(trained) / count(base),
                "weights": _bytes(weights),
                "gradients": gradients,
                "optimizer": optimizer_slots * gradients,
                "total": _bytes(weights) + (1 + optimizer_slots) * gradients,
            }
        )
    return rows
