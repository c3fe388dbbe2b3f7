"""Put adapters into a model, merge them, take them out."""

import numpy as np

from ..errors import InputError
from ..layers import Linear
from ..low_rank import check_rank
from .lora import LoRALinear


def _children(model):
    """(dotted path, parent layer, name in the parent, child) of every layer inside the model, in the model's order."""
    layers = dict(model.named_layers())
    for path, child in layers.items():
        if path:
            parent, _, name = path.rpartition(".")
            yield path, layers[parent], name, child


def adapters(model):
    """{dotted path: adapter layer} of the model."""
    return {path: layer for path, layer in model.named_layers() if isinstance(layer, LoRALinear)}


def base_params(model):
    """{name: array} of the model without the factors of its adapters."""
    return {n: a for n, a in model.named_params().items() if n.rpartition(".")[2] not in ("lora_A", "lora_B")}


def inject(model, config, rng=None):
    """Replace the targeted Linear layers by LoRALinear ones, in place, and freeze everything else. Returns their paths.

    config: `LoRAConfig`. rng: numpy Generator or seed that draws the factors, layer after layer (default 0).
    Raises InputError, with the model unchanged, if a target matches nothing or a rank does not fit a layer.
    """
    if adapters(model):
        raise InputError("the model has adapters already; merge or remove them first (`unload`)")
    linears = {
        path: (parent, name, child) for path, parent, name, child in _children(model) if isinstance(child, Linear)
    }
    chosen = config.select(linears)
    for path in chosen:
        check_rank(config.for_layer(path)[0], *linears[path][2].params["weight"].shape, where=path)
    rng = np.random.default_rng(0 if rng is None else rng)
    model.set_trainable(name for name in model.named_params() if config.trains_in_full(name, chosen))
    for path in chosen:
        parent, name, child = linears[path]
        r, lora_alpha = config.for_layer(path)
        options = {n: getattr(config, n) for n in ("use_rslora", "lora_dropout", "init_lora_weights")}
        parent.children[name] = layer = LoRALinear(child, r, lora_alpha, rng=rng, **options)
        layer.trainable |= child.trainable
    return chosen


def merge(model):
    """Merge every adapter into its weight: inference at the base model's cost."""
    for layer in adapters(model).values():
        layer.merge()


def unmerge(model):
    """Undo `merge`, bit for bit."""
    for layer in adapters(model).values():
        layer.unmerge()


def unload(model):
    """Replace every adapter by a Linear with the weight it has now, merged or not: a plain, frozen model."""
    for _, parent, name, child in list(_children(model)):
        if isinstance(child, LoRALinear):
            parent.children[name] = plain = Linear(child.params["weight"], child.params.get("bias"))
            plain.trainable = set()
