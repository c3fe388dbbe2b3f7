"""A start that moved the base weight, as plain LoRA over the base weight that everybody has."""

import math
from dataclasses import replace

from ...backend import array_namespace
from .residual import Residual


def as_plain(config, layers):
    """(config, {dotted name: array}) of a plain LoRA of rank 2 r that does the same over W; what changes, alone.

    layers: {path: adapter}. Over W - s B0 A0 the update is s B A; over W itself it is

        s B A - s B0 A0 = s [B, -B0] [A; A0]

    r and lora_alpha are doubled, so that s = lora_alpha / r stays; with use_rslora, s = lora_alpha / sqrt(r), and
    lora_alpha grows by sqrt(2) only. The patterns grow with them. PEFT has the same in `subtract_mutated_init`, where
    it refuses use_rslora together with a pattern; here every layer keeps its s. A config that moved no weight comes
    back as it is, with no array.
    """
    moved = {path: layer for path, layer in layers.items() if isinstance(layer.base_layer, Residual)}
    if not moved:
        return config, {}
    arrays = {}
    for path, layer in moved.items():
        A, B = layer.params["lora_A"], layer.params["lora_B"]
        xp, start = array_namespace(A), layer.base_layer.buffers
        A0, B0 = (xp.astype(start[name], A.dtype) for name in ("start_A", "start_B"))
        arrays[f"{path}.lora_A"] = xp.concat([A, A0], axis=0)
        arrays[f"{path}.lora_B"] = xp.concat([B, -B0], axis=1)
    grown = math.sqrt(2) if config.use_rslora else 2
    ranks = {pattern: 2 * r for pattern, r in config.rank_pattern.items()}
    alphas = {pattern: grown * alpha for pattern, alpha in config.alpha_pattern.items()}
    config = replace(config, r=2 * config.r, lora_alpha=grown * config.lora_alpha, init_lora_weights=True)
    return replace(config, rank_pattern=ranks, alpha_pattern=alphas), arrays
