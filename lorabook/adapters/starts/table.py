"""The table of starts, what each needs, and how a layer begins with one."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ...backend import to_numpy
from ...errors import InputError
from ...files import short
from .drawn import DRAWN, initial_factors
from .mica import mica
from .olora import olora
from .orthogonal import orthogonal
from .pissa import pissa
from .residual import Residual

NEED_DATA = ("eva", "corda", "lora_ga")  # PEFT's, which look at inputs or gradients first


@dataclass(frozen=True)
class Start:
    """factors: (W, r, scaling, rng) -> host float64 (lora_A, lora_B). moves: whether the base becomes W - s B A.

    rests: the parameters that do not train. decomposes: whether it takes r of the min(d_out, d_in) parts of W.
    """

    factors: Callable
    moves: bool = False
    rests: frozenset = frozenset()
    decomposes: bool = True


STARTS = {
    "pissa": Start(pissa, moves=True),
    "olora": Start(olora, moves=True),
    "orthogonal": Start(orthogonal, decomposes=False),
    "mica": Start(mica, rests=frozenset({"lora_B"})),
}
INITIALISATIONS = (*DRAWN, *STARTS)


def check_initialisation(value, name="init_lora_weights"):
    """value, or InputError: one of INITIALISATIONS, and not 1 or 0."""
    if isinstance(value, bool) or (isinstance(value, str) and value in INITIALISATIONS):
        return value
    why = f"must be one of {INITIALISATIONS}; got {short(value)}"
    if isinstance(value, str) and value in NEED_DATA:
        why += ', which needs data to look at, and that is not implemented here; "pissa" is near it and needs none'
    elif isinstance(value, str) and value.startswith("pissa_niter_"):
        why += ', whose SVD is approximate; "pissa" has the exact one'
    raise InputError(f"{name} {why}")


def moves_base(init_lora_weights):
    """Whether the base weight is another one from this start on."""
    return init_lora_weights in STARTS and STARTS[init_lora_weights].moves


def check_start(cls, base, where="this layer", *, r, init_lora_weights=True, **options):
    """Raise InputError unless a layer of the class `cls` can start so over this base; `options` tell the scaling."""
    start = STARTS.get(check_initialisation(init_lora_weights))
    what = f"init_lora_weights={init_lora_weights!r}"
    if init_lora_weights == "orthogonal" and r % 2:
        raise InputError(f"{what} needs an even r, as it halves it; got {r} for {where}")
    if not start or not start.decomposes:
        return
    (d_out, d_in), scaling = base.shape, cls.scale(r=r, **options)
    if r > min(d_out, d_in):
        most = f"needs r to be at most {min(d_out, d_in)}, the smaller side of {where}, {d_out}x{d_in}"
        raise InputError(f"{what} {most}; got {r}")
    if init_lora_weights == "pissa" and not scaling > 0:
        raise InputError(f"{what} needs a scaling above 0, by whose root it divides; got {scaling:g} for {where}")
    if start.moves and not base.dense:
        raise InputError(
            f"{what} changes the base weight, and that of {where} is held in few bits: take True, or `loftq`, which "
            "looks for factors and bits together"
        )
    if not np.isfinite(to_numpy(base.weight)).all():
        raise InputError(f"{what} decomposes the weight of {where}, which holds NaN or Inf; load a sound model first")


def begin(layer, init_lora_weights, rng):
    """Give an adapter its factors; returns the base layer that belongs under them, a `Residual` if the start moves it.

    rng: numpy Generator or seed (default 0).
    """
    base, start = layer.base_layer, STARTS.get(init_lora_weights)
    rng = np.random.default_rng(0 if rng is None else rng)
    if start is None:
        A, B = initial_factors(init_lora_weights, layer.r, *base.shape, rng)
    else:
        A, B = start.factors(to_numpy(base.weight).astype("f8"), layer.r, layer.scaling, rng)
        layer.rests = start.rests
    layer.start(lora_A=A, lora_B=B)
    if start is None or not start.moves:
        return base
    return Residual(base, layer.params["lora_A"], layer.params["lora_B"], layer.scaling)
