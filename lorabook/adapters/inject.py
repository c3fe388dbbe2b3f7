"""Put adapters into a model, and take them out."""

import numpy as np

from ..backend import asarray_like
from ..errors import InputError, note
from ..layers import Linear, watching
from .base import BASE, Adapter
from .methods import class_of
from .starts import original
from .whole_model import adapters


def _children(model):
    """(dotted path, parent layer, name in the parent, child) of every layer inside the model, in the model's order."""
    layers = dict(model.named_layers())
    for path, child in layers.items():
        if path:
            parent, _, name = path.rpartition(".")
            yield path, layers[parent], name, child


def inject(model, config, rng=None):
    """Put an adapter around each of the targeted linear layers, in place, and freeze all else. Returns their paths.

    config: of a variant, e.g. `LoRAConfig`; each adapter keeps it. rng: numpy Generator or seed that draws what starts
    at random, layer after layer (default 0). Raises InputError, with the model unchanged, if a target matches nothing
    or is no linear layer. A note on stderr says what is set but does nothing, a rank above what a layer can have, or a
    head that starts at random and does not train.

    >>> import lorabook as lb
    >>> model = lb.MLP((64, 32, 10))
    >>> lb.inject(model, lb.LoRAConfig(r=4, target_modules=["fc1"]))
    ['fc1']
    >>> sorted(model.trainable_params())
    ['fc1.lora_A', 'fc1.lora_B']
    """
    if adapters(model):
        raise InputError("the model has adapters already; merge or remove them first (`unload`)")
    cls, chosen, linears = class_of(config), select(model, config), linear_layers(model)
    shapes = {path: layer.shape for path, layer in linears.items()}
    options = config.options_for(chosen)
    for path in chosen:
        cls.shapes(*shapes[path], where=path, **options[path])
        cls.check_base(linears[path], path, **options[path])
    for line in [*config.doubts(shapes, chosen), *_random_head(model, config, chosen)]:
        note(line)
    rng = np.random.default_rng(0 if rng is None else rng)
    places = {path: (parent, name) for path, parent, name, _ in _children(model)}
    shared = _shared(cls, [linears[path] for path in chosen], options[chosen[0]])
    for path in chosen:
        parent, name = places[path]
        parent.children[name] = layer = cls(linears[path], rng=rng, **options[path], **shared)
        layer.config = config
    unfreeze(model)
    return chosen


def _shared(cls, layers, options):
    """The keyword `shared` of a variant whose layers hold arrays together, in the first one's dtype and library."""
    arrays = cls.draw_shared([layer.shape for layer in layers], **options)
    shared = {name: asarray_like(array, layers[0].like) for name, array in arrays.items()}
    return {"shared": shared} if shared else {}


def _random_head(model, config, chosen):
    """A line on a head that nobody has trained, and that will not train either."""
    if getattr(getattr(model, "about", None), "trained", True):
        return []
    head = [m for m in model.head_modules if not config.trains_in_full(f"{m}.weight", chosen)]
    if not head or any(f"{path}.".startswith(f"{module}.") for path in chosen for module in head):
        return []
    return [f"{head[0]} starts at random and does not train: modules_to_save={head} lets it"]


def config_of(model):
    """The config that the adapters of a model were made with."""
    configs = {path: layer.config for path, layer in adapters(model).items()}
    if not configs:
        raise InputError("the model has no adapters; put them in with `inject`, or `load_adapter`")
    first, config = next(iter(configs.items()))
    for path, other in configs.items():
        if other is None:
            raise InputError(f"{path} was put in by hand; an adapter that `inject` made knows its config")
        if other != config:
            raise InputError(f"{path} has another config than {first}; expected adapters of one `inject`")
    return config


def linear_layers(model):
    """{dotted path: layer} of the layers that can have an adapter, or have one."""
    layers = {path: layer for path, layer in model.named_layers() if isinstance(layer, Linear | Adapter)}
    return {path: layer for path, layer in layers.items() if path.rpartition(".")[2] != BASE}


def inputs_of(model, x):
    """{path: its inputs} of the linear layers of the model in an inference pass over x."""
    inputs, linears = {}, linear_layers(model)

    def keep(path, x, _):
        if path in linears:
            inputs[path] = x

    model(x, watching(model, keep, keep=False))
    return inputs


def select(model, config):
    """The paths of the linear layers of the model that the config means, in order."""
    linears = linear_layers(model)
    others = [
        path
        for path, layer in model.named_layers()
        if layer.params and path not in linears and path.rpartition(".")[2] != BASE
    ]
    return config.select(linears, others, (*model.head_modules, *model.output_modules))


def unload(model):
    """Replace every adapter by its base layer, with the weight it has now, merged or not: a plain, frozen model.

    Unmerged, that is the layer that was there before `inject`, bit for bit, wherever the adapter started.

    >>> import lorabook as lb
    >>> model = lb.MLP((64, 32, 10))
    >>> _ = lb.inject(model, lb.LoRAConfig(r=4))
    >>> lb.merge(model)  # without this line the update is gone
    >>> lb.unload(model)
    >>> sorted(model.named_params())
    ['fc1.bias', 'fc1.weight', 'fc2.bias', 'fc2.weight']
    """
    for _, parent, name, child in list(_children(model)):
        if isinstance(child, Adapter):
            parent.children[name] = original(child.base_layer)
    model.freeze()


def unfreeze(model):
    """Let the adapters of a model, loaded and frozen, train further: all that their config says, and nothing else."""
    config, chosen = config_of(model), adapters(model)
    own = {f"{path}.{name}" for path, layer in chosen.items() for name in layer.params.keys() - layer.rests}
    model.set_trainable(own | {name for name in model.named_params() if config.trains_in_full(name, chosen)})
