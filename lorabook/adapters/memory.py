"""What training costs in memory, by arithmetic: weights, gradients, optimizer state."""

import math

from ..backend import array_namespace


def count(arrays):
    """Number of entries in {name: array}."""
    return sum(math.prod(a.shape) for a in arrays.values())


def memory_table(model, optimizer_slots=2):
    """Rows comparing full fine-tuning of every parameter with what the model trains now.

    Each row: method, trained (parameters), share (of all), and bytes of weights, gradients, optimizer state and total.
    optimizer_slots: arrays that the optimizer keeps per parameter (AdamW 2, SGD with momentum 1, SGD 0).
    Activations are not counted: they depend on the batch, and LoRA needs nearly as many of them as full fine-tuning.
    """
    everything, trained = model.named_params(), model.trainable_params()
    weights = _bytes(everything)
    own = _bytes({n: a for n, a in everything.items() if n.rpartition(".")[2].startswith("lora_")})
    rows = []
    for method, names, weight_bytes in (
        ("full", everything.keys(), weights - own),
        ("this model", trained.keys(), weights),
    ):
        arrays = {n: everything[n] for n in names if method != "full" or not n.rpartition(".")[2].startswith("lora_")}
        gradients = _bytes(arrays)
        rows.append(
            {
                "method": method,
                "trained": count(arrays),
                "share": count(arrays) / count(everything),
                "weights": weight_bytes,
                "gradients": gradients,
                "optimizer": optimizer_slots * gradients,
                "total": weight_bytes + (1 + optimizer_slots) * gradients,
            }
        )
    return rows


def _bytes(arrays):
    return sum(math.prod(a.shape) * array_namespace(a).finfo(a.dtype).bits // 8 for a in arrays.values())
