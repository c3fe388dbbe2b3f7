"""The numbers in the drawings of LoRA: sizes of real layers, counted by the library."""

import numpy as np

from ..adapters import LoRAConfig, LoRALinear, inject
from ..layers import Linear
from ..models import MLP


def _row(layer, array, values, trains):
    rows, columns = values.shape
    return {"layer": layer, "array": array, "rows": rows, "columns": columns, "numbers": values.size, "trains": trains}


def _arrays(path, layer):
    yield _row(path, "W", layer.weight, 0)
    yield from (_row(path, name[-1], values, 1) for name, values in layer.params.items())


def one_layer(jobs=1, progress=False, runs=None):
    """Rows {layer, array, rows, columns, numbers, trains} of W, A and B: a matrix of RoBERTa-base with r = 8."""
    weight = np.broadcast_to(np.float32(0), (768, 768))  # takes no memory
    return list(_arrays("query", LoRALinear(Linear(weight), r=8)))


def digits_mlp(jobs=1, progress=False, runs=None):
    """The same rows for each layer of the network that reads digits, with r = 4."""
    model = MLP((64, 128, 128, 10), rng=np.random.default_rng(0))
    inject(model, LoRAConfig(r=4, lora_alpha=16))
    layers = [(path, layer) for path, layer in model.named_layers() if isinstance(layer, LoRALinear)]
    return [row for path, layer in layers for row in _arrays(path, layer)]
