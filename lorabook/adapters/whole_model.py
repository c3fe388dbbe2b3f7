"""What is asked of a whole model: its adapters, its weights as they were without them, and with all of them merged."""

import numpy as np

from ..layers import RUN
from .base import BASE, Adapter
from .starts import Residual, original


def adapters(model):
    """{dotted path: adapter layer} of the model."""
    return {path: layer for path, layer in model.named_layers() if isinstance(layer, Adapter)}


def plain_name(name):
    """The name that a parameter of a base layer has without the adapter around it."""
    return name.replace(f".{BASE}.", ".").removeprefix(f"{BASE}.")


def base_params(model):
    """{name: array} of the model as it was before `inject`: without its adapters' own parameters."""
    own = {f"{path}.{n}" if path else n for path, layer in adapters(model).items() for n in layer.params}
    moved = {p: layer.base_layer for p, layer in adapters(model).items() if isinstance(layer.base_layer, Residual)}
    before = {f"{path}.weight" if path else "weight": original(base).weight for path, base in moved.items()}
    return {plain_name(name): array for name, array in model.named_params().items() if name not in own} | before


def effective_weights(model, N, run=RUN, map=map):
    """{layer: (W_eff, cache)} of each adapter that forms it for N rows: the field `weights` of a `Run`.

    For passes of N rows together, between which the factors do not change. `map` may form them on several threads.
    """
    layers = [layer for layer in adapters(model).values() if layer.forms_weight(N, run)]
    return dict(zip(layers, map(lambda layer: layer.effective(layer.weight), layers), strict=True))


@np.errstate(all="ignore")  # factors of others may overflow: the answers are no numbers then, and that is said
def merge(model):
    """Merge every adapter into its weight: inference at the base model's cost.

    >>> import numpy as np, lorabook as lb
    >>> model, x = lb.MLP((64, 32, 10)), np.ones((1, 64), "f4")
    >>> _ = lb.inject(model, lb.LoRAConfig(r=4, init_lora_weights=False))
    >>> before = model.predict(x)
    >>> lb.merge(model)
    >>> np.allclose(model.predict(x), before, atol=1e-5)
    True
    """
    for layer in adapters(model).values():
        layer.merge()


def unmerge(model):
    """Undo `merge`, bit for bit.

    >>> import numpy as np, lorabook as lb
    >>> model = lb.MLP((64, 32, 10))
    >>> _ = lb.inject(model, lb.LoRAConfig(r=4, init_lora_weights=False))
    >>> before = model.named_params()["fc1.base_layer.weight"].copy()
    >>> lb.merge(model)
    >>> lb.unmerge(model)
    >>> np.array_equal(model.named_params()["fc1.base_layer.weight"], before)
    True
    """
    for layer in adapters(model).values():
        layer.unmerge()
