"""Put adapters into a model, merge them, take them out."""

import numpy as np

from ..errors import InputError
from ..layers import Linear
from ..notes import note
from .lora import LoRALinear, check_fits


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
    Raises InputError, with the model unchanged, if a target matches nothing or is no linear layer. What is set but does
    nothing, or a rank above what a layer can have, is a note on stderr.
    """
    if adapters(model):
        raise InputError("the model has adapters already; merge or remove them first (`unload`)")
    chosen, linears = select(model, config), linear_layers(model)
    values, shapes = config.for_layers(chosen), {path: linears[path].params["weight"].shape for path in chosen}
    for path in chosen:
        check_fits(values[path][0], *shapes[path], where=path)
    for line in config.doubts(linears, chosen):
        note(line)
    if high := [path for path in chosen if values[path][0] > min(shapes[path])]:
        (d_out, d_in), more = shapes[high[0]], f" (and {len(high) - 1} more)" if len(high) > 1 else ""
        rank = f"r = {values[high[0]][0]} is above the largest rank of {high[0]}, {d_out}x{d_in}{more}"
        note(f"{rank}: what is above {min(d_out, d_in)} adds nothing")
    rng = np.random.default_rng(0 if rng is None else rng)
    model.set_trainable(name for name in model.named_params() if config.trains_in_full(name, chosen))
    places = {path: (parent, name) for path, parent, name, _ in _children(model)}
    for path in chosen:
        (parent, name), (r, lora_alpha), child = places[path], values[path], linears[path]
        options = {n: getattr(config, n) for n in ("use_rslora", "lora_dropout", "init_lora_weights")}
        parent.children[name] = layer = LoRALinear(child, r, lora_alpha, rng=rng, **options)
        layer.trainable |= child.trainable
    return chosen


def linear_layers(model):
    """{dotted path: layer} of the layers that can have an adapter, or have one."""
    return {path: layer for path, layer in model.named_layers() if isinstance(layer, Linear | LoRALinear)}


def select(model, config):
    """The paths of the linear layers of the model that the config means, in order."""
    linears = linear_layers(model)
    others = [path for path, layer in model.named_layers() if layer.params and path not in linears]
    return config.select(linears, others, model.output_layer)


@np.errstate(all="ignore")  # factors of others may overflow: the answers are no numbers then, and that is said
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


def unfreeze(model, config):
    """Let an adapter that was loaded train further: all that this config says, and nothing else, as after `inject`."""
    names, chosen = model.named_params(), adapters(model)
    factors = {name for name in names if name.rpartition(".")[2] in ("lora_A", "lora_B")}
    model.set_trainable(factors | {name for name in names if config.trains_in_full(name, chosen)})
