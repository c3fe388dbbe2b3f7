"""Chapter 05's experiments on a block: what a gradient passes through, what it needs of the cache, how large it is."""

import copy

import numpy as np

from ..adapters import LoRAConfig, inject
from ..layers import Sequential
from ..models import PostNormBlock

# Where in the cache of a PostNormBlock each array is. p is kept in two parts: see `functional.attend`.
CACHED = {
    "x": (0, range(3), 0),
    "q": (0, 3, 0, 0, 1, 0),
    "k": (0, 3, 0, 0, 1, 1),
    "v": (0, 3, 0, 0, 1, 2),
    "p": (0, 3, 0, 0, 1, range(3, 5)),
    "o": (0, 3, 1),
    "a": (1, 0),
    "norm1": (2, 0),
    "u": (3, 0),
    "slope": (4,),
    "hidden": (5, 0),
    "norm2": (6, 0),
}
WATCHED = {  # matrices whose gradients `at_the_start` measures
    PostNormBlock: ("attention.self.query", "attention.self.value", "intermediate.dense"),
    None: ("attention.query", "attention.value", "up"),
}


def adapted(layer, targets, r=2):
    """A copy of the layer with random adapters: no factor is zero."""
    layer = copy.deepcopy(layer)
    inject(layer, LoRAConfig(r=r, lora_alpha=16, target_modules=targets, init_lora_weights=False), 0)
    return layer


def passes_through(layer, x):
    """Paths of the linear layers that hand a gradient to their input, when x itself needs none, from the top down."""
    layer, found = copy.deepcopy(layer), []
    for path, part in layer.named_layers():
        if hasattr(part, "weight") and not path.endswith("base_layer"):

            def watched(dout, cache, need_dx=True, path=path, backward=part.backward):
                found.extend([path] * need_dx)
                return backward(dout, cache, need_dx)

            part.backward = watched
    y, cache = layer(x)
    layer.backward(np.ones_like(y), cache, need_dx=False)
    return found


def needed(block, x):
    """Names in CACHED of the arrays that a gradient of the block depends on: NaN in one of them reaches it.

    block: a PostNormBlock. Its attention must fit into one block of scores.
    """
    y, _ = block(x)
    found = []
    for name, where in CACHED.items():
        _, cache = block(x)
        _, grads = block.backward(np.ones_like(y), _spoiled(cache, where), need_dx=False)
        if any(np.isnan(grad).any() for grad in grads.values()):
            found.append(name)
    return found


def _spoiled(cache, where):
    """The cache with NaN in one place."""
    if not where:
        return np.full_like(cache, np.nan)
    chosen = [where[0]] if isinstance(where[0], int) else where[0]
    return tuple(_spoiled(part, where[1:]) if i in chosen else part for i, part in enumerate(cache))


def at_the_start(Block, gain, seed, blocks=6):
    """(blocks, 4): norms of dB of query, value and up where B = 0, and the share of v that differs between tokens.

    gain: by which the weights that `Block.random` draws are multiplied. Random x and dout.
    """
    draw = np.random.default_rng(seed)
    tower = Sequential({str(i): Block.random(64, 4, 256, draw) for i in range(blocks)})
    for array in tower.named_params().values():
        array *= gain if array.ndim == 2 else 1
    inject(tower, LoRAConfig(r=8, lora_alpha=16), draw)
    y, caches = tower(draw.standard_normal((4, 16, 64)).astype("f4"))
    _, grads = tower.backward(draw.standard_normal(y.shape).astype("f4"), caches, need_dx=False)
    rows = []
    for i, cache in enumerate(caches):
        v = cache[0 if Block is PostNormBlock else 1][3][0][0][1][2]  # (B, heads, T, d_head)
        spread = np.linalg.norm(v - v.mean(axis=2, keepdims=True)) / np.linalg.norm(v)
        names = WATCHED.get(Block, WATCHED[None])
        rows.append([*(np.linalg.norm(grads[f"{i}.{name}.lora_B"]) for name in names), spread])
    return np.array(rows)
