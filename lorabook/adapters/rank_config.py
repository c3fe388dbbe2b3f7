"""The options of every variant with a rank, under PEFT's names; and what options may be."""

import math
import numbers
import sys
from dataclasses import dataclass, field
from typing import ClassVar

from ..errors import InputError
from ..files import short
from .config import AdapterConfig


@dataclass(frozen=True, kw_only=True)
class RankConfig(AdapterConfig):
    """r: the rank; what it is the rank of, the variant says. rank_pattern: overrides it for paths whose end matches.

    A variant names in `same` those of its options that every layer gets as they are.
    """

    patterns: ClassVar[tuple] = ("rank_pattern",)
    same: ClassVar[tuple] = ()

    r: int = 8
    rank_pattern: dict[str, int] = field(default_factory=dict)

    def __post_init__(self):
        super().__post_init__()
        self._set(r=check_r(self.r), rank_pattern={pattern: check_r(r) for pattern, r in self.rank_pattern.items()})

    def ranks(self, paths):
        """{path: r} of the layers with these dotted paths."""
        return self._values("rank_pattern", self.r, paths)

    def options_for(self, paths):
        same = {name: getattr(self, name) for name in self.same}
        return {path: {"r": r, **same} for path, r in self.ranks(paths).items()}


@dataclass(frozen=True, kw_only=True)
class AlphaConfig(RankConfig):
    """alpha: the scaling is alpha / r; alpha_pattern overrides it. PEFT's name of it in LoHa and LoKr."""

    patterns: ClassVar[tuple] = ("rank_pattern", "alpha_pattern")
    same: ClassVar[tuple] = ("init_weights",)
    ours: ClassVar[tuple] = ("bias",)
    neutral: ClassVar[dict] = {"rank_dropout": 0.0, "module_dropout": 0.0, "use_effective_conv2d": False}

    alpha: float = 8
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    init_weights: bool = True

    def __post_init__(self):
        super().__post_init__()
        self._set(
            alpha=check_finite("alpha", self.alpha),
            alpha_pattern={pattern: check_finite("alpha", a) for pattern, a in self.alpha_pattern.items()},
        )

    def options_for(self, paths):
        alpha = self._values("alpha_pattern", self.alpha, paths)
        return {path: own | {"alpha": alpha[path]} for path, own in super().options_for(paths).items()}


def check_finite(name, value):
    """value as an int or float, or InputError: a finite number."""
    number = _number(value)
    if number is None or not abs(number) <= sys.float_info.max:
        raise InputError(f"{name} must be a finite number; got {short(value)}")
    return number


def check_r(r, name="r"):
    """r as an int, or InputError: a rank is a positive integer. Above the layer's smaller side it adds nothing."""
    if isinstance(r, bool) or not isinstance(r, numbers.Integral) or r < 1:
        raise InputError(f"{name} must be a positive integer; got {short(r)}")
    return int(r)


def check_probability(name, value):
    """value as a float, or InputError: a probability p with 0 <= p < 1."""
    number = _number(value)
    if number is None or not 0 <= number < 1:
        raise InputError(f"{name} must be a number p with 0 <= p < 1; got {short(value)}")
    return float(number)


def check_flag(name, value):
    """value, or InputError: True or False, and not 1 or 0."""
    if not isinstance(value, bool):
        raise InputError(f"{name} must be true or false; got {short(value)}")
    return value


def scaling_of(r, lora_alpha, use_rslora=False):
    """lora_alpha / r, or lora_alpha / sqrt(r) with rank-stabilised LoRA (Kalajdzievski 2023, arXiv:2312.03732)."""
    return float(check_finite("lora_alpha", lora_alpha)) / (math.sqrt(r) if use_rslora else r)


def _number(value):
    """An int or float of a number, NumPy's too; None of anything else."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    return int(value) if isinstance(value, numbers.Integral) else float(value)
