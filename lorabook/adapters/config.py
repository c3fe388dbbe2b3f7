"""Which layers get an adapter, and with which rank: PEFT's options under PEFT's names."""

import difflib
import json
import re
from dataclasses import asdict, dataclass, field

from ..errors import InputError
from .lora import check_dropout, check_initialisation, scaling_of


@dataclass(frozen=True)
class LoRAConfig:
    """Options of `inject`.

    target_modules: "all-linear"; or a regular expression that the whole dotted path must match; or a list of names,
    each a path or the end of one ("query" targets "encoder.layer.0.attention.self.query"). rank_pattern and
    alpha_pattern override r and lora_alpha for paths whose end matches a regular expression; the first match counts.
    A rank override alone changes the scaling, because lora_alpha stays. modules_to_save: names, matched as in a target
    list, of layers that train in full (a fresh classifier) and get no adapter. bias: which biases train, "none", "all",
    or "lora_only", those of the adapted layers.
    """

    r: int = 8
    lora_alpha: float = 16
    target_modules: str | tuple[str, ...] = "all-linear"
    use_rslora: bool = False
    lora_dropout: float = 0.0
    init_lora_weights: bool | str = True
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    modules_to_save: tuple[str, ...] = ()
    bias: str = "none"

    def __post_init__(self):
        """Check what can be checked without a model; ranks are checked against each layer's shape by `inject`."""
        for option in ("rank_pattern", "alpha_pattern"):
            patterns = getattr(self, option)
            if not isinstance(patterns, dict) or not all(isinstance(p, str) for p in patterns):
                raise InputError(f"{option} must be a dictionary of patterns; got {patterns!r}")
        if not isinstance(self.use_rslora, bool):
            raise InputError(f"use_rslora must be true or false; got {self.use_rslora!r}")
        for r in (self.r, *self.rank_pattern.values()):
            if isinstance(r, bool) or not isinstance(r, int) or r < 1:
                raise InputError(f"r must be a positive integer; got {r!r}")
        for lora_alpha in (self.lora_alpha, *self.alpha_pattern.values()):
            scaling_of(1, lora_alpha, self.use_rslora)
        check_dropout(self.lora_dropout)
        check_initialisation(self.init_lora_weights)
        if self.bias not in ("none", "all", "lora_only"):
            raise InputError(f"bias must be none, all or lora_only; got {self.bias!r}")
        saved = () if self.modules_to_save is None else self.modules_to_save
        if not isinstance(saved, list | tuple) or not all(isinstance(m, str) for m in saved):
            raise InputError(f"modules_to_save must be a list of names; got {saved!r}")
        object.__setattr__(self, "modules_to_save", tuple(saved))
        targets = self.target_modules
        if not isinstance(targets, str):
            if not isinstance(targets, list | tuple) or not all(isinstance(t, str) for t in targets):
                expected = "'all-linear', a regular expression or a list of names"
                raise InputError(f"target_modules must be {expected}; got {targets!r}")
            object.__setattr__(self, "target_modules", tuple(targets))
        expressions = {_suffix(p): p for p in (*self.rank_pattern, *self.alpha_pattern)}
        if isinstance(self.target_modules, str):
            expressions[targets] = targets
        for expression, written in expressions.items():
            try:
                re.compile(expression)
            except (re.error, RecursionError, OverflowError) as error:
                raise InputError(f"{written!r} is not a regular expression: {error}") from None

    def as_dict(self):
        """The options as JSON-able values."""
        return json.loads(json.dumps(asdict(self)))

    def for_layer(self, path):
        """(r, lora_alpha) of the layer with this dotted path."""
        return _first_match(self.rank_pattern, path, self.r), _first_match(self.alpha_pattern, path, self.lora_alpha)

    def trains_in_full(self, name, chosen):
        """Whether the parameter of this dotted name trains beside the factors, `chosen` being the adapted layers."""
        path, _, kind = name.rpartition(".")
        of_bias = kind == "bias" and (self.bias == "all" or (self.bias == "lora_only" and path in chosen))
        return of_bias or any(is_saved(path, module) for module in self.modules_to_save)

    def select(self, paths):
        """The paths that get an adapter, in order. Where an option matches none: InputError, with the closest names."""
        targets = self.target_modules
        for module in self.modules_to_save:
            if not any(is_saved(path, module) for path in paths):
                raise _matches_nothing(f"modules_to_save {module!r}", module, paths)
        paths = [path for path in paths if not any(is_saved(path, module) for module in self.modules_to_save)]
        if targets == "all-linear":
            chosen = list(paths)
        elif isinstance(targets, str):
            chosen = [p for p in paths if re.fullmatch(targets, p)]
        else:
            for target in targets:
                if not any(_ends_with(p, target) for p in paths):
                    raise _matches_nothing(f"target module {target!r}", target, paths)
            chosen = [p for p in paths if any(_ends_with(p, target) for target in targets)]
        if not chosen:
            raise _matches_nothing(f"target_modules={targets!r}", str(targets), paths)
        for option in ("rank_pattern", "alpha_pattern"):
            for pattern in getattr(self, option):
                if not any(_first_match({pattern: True}, p, False) for p in chosen):
                    raise _matches_nothing(f"{option} key {pattern!r}", pattern, chosen)
        return chosen


def is_saved(path, module):
    """Whether the layer at `path` is the module of this name, or lies inside it."""
    return re.match(rf"(^|.*\.){re.escape(module)}($|\..*)", path) is not None


def _ends_with(path, target):
    return path == target or path.endswith("." + target)


def _first_match(patterns, path, default):
    return next((value for pattern, value in patterns.items() if re.match(_suffix(pattern), path)), default)


def _suffix(pattern):
    """The expression that matches paths of which an end, from a dot on, matches `pattern`."""
    return rf"(.*\.)?({pattern})$"


def _matches_nothing(what, target, paths):
    names = dict.fromkeys([*(p.rpartition(".")[2] for p in paths), *paths])
    close = difflib.get_close_matches(target, names, n=5, cutoff=0.4) or list(names)[:5]
    return InputError(
        f"{what} matches no linear layer; closest: {', '.join(close) or 'none (the model has no linear layer)'}"
    )
