"""Which layers get an adapter, and with which rank: PEFT's options under PEFT's names, with PEFT's defaults."""

import json
import numbers
from dataclasses import asdict, dataclass, field

from ..configs import short
from ..errors import InputError
from . import selection
from .lora import check_alpha, check_dropout, check_initialisation, check_r
from .patterns import SUFFIX, matches

EITHER = "'all-linear', a regular expression or a list of names"


@dataclass(frozen=True)
class LoRAConfig:
    """Options of `inject`; what they select is what PEFT selects.

    target_modules: "all-linear", every linear layer but the model's output layer; or a regular expression that the
    whole dotted path must match; or a list of names, each a path or the end of one ("query" targets
    "encoder.layer.0.attention.self.query"). exclude_modules: an expression or names of layers that get none.
    layers_to_transform: the number of a block, or several, to which the names (not full paths) are limited. It stands
    in the path: the first number behind two names, or behind one of the expressions in layers_pattern.
    rank_pattern and alpha_pattern override r and lora_alpha for paths whose end matches a regular expression; the first
    match counts. A rank override alone changes the scaling, because lora_alpha stays. modules_to_save: names of
    modules, or ends of them, that train in full with all inside (a fresh classifier) and get no adapter. bias: which
    biases train, "none", "all", or "lora_only", those of the adapted layers.

    An expression that is not matched within a few seconds is refused (`patterns`). An option that is set but selects
    nothing is an error if it is a name in target_modules or modules_to_save, and a note on stderr elsewhere.
    """

    r: int = 8
    lora_alpha: float = 8
    target_modules: str | tuple[str, ...] = "all-linear"
    exclude_modules: str | tuple[str, ...] = ()
    layers_to_transform: int | tuple[int, ...] | None = None
    layers_pattern: tuple[str, ...] = ()
    use_rslora: bool = False
    lora_dropout: float = 0.0
    init_lora_weights: bool | str = True
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    modules_to_save: tuple[str, ...] = ()
    bias: str = "none"

    def __post_init__(self):
        """Check what can be checked without a model, and make plain Python values of NumPy's."""
        for option in ("rank_pattern", "alpha_pattern"):
            patterns = getattr(self, option)
            if not isinstance(patterns, dict) or not all(isinstance(p, str) for p in patterns):
                raise InputError(f"{option} must be a dictionary of patterns; got {short(patterns)}")
        if not isinstance(self.use_rslora, bool):
            raise InputError(f"use_rslora must be true or false; got {short(self.use_rslora)}")
        if self.bias not in ("none", "all", "lora_only"):
            raise InputError(f"bias must be none, all or lora_only; got {short(self.bias)}")
        targets, excluded, within = self.target_modules, self.exclude_modules, self.layers_pattern
        self._set(
            r=check_r(self.r),
            lora_alpha=check_alpha(self.lora_alpha),
            lora_dropout=check_dropout(self.lora_dropout),
            init_lora_weights=check_initialisation(self.init_lora_weights),
            rank_pattern={pattern: check_r(r) for pattern, r in self.rank_pattern.items()},
            alpha_pattern={pattern: check_alpha(alpha) for pattern, alpha in self.alpha_pattern.items()},
            target_modules=_targets(targets) if isinstance(targets, str) else _names("target_modules", targets, EITHER),
            exclude_modules=excluded if excluded and isinstance(excluded, str) else _names("exclude_modules", excluded),
            modules_to_save=_names("modules_to_save", self.modules_to_save),
            layers_pattern=_names("layers_pattern", [within] if within and isinstance(within, str) else within),
            layers_to_transform=_numbers("layers_to_transform", self.layers_to_transform),
        )
        if "" in self.modules_to_save:
            raise InputError("modules_to_save must be a list of names; got an empty one, which ends every name")
        if self.layers_pattern and self.layers_to_transform is None:
            raise InputError(
                f"layers_pattern={short(self.layers_pattern)} needs layers_to_transform: which of these layers"
            )
        if isinstance(self.target_modules, str) and self.layers_to_transform is not None:
            raise InputError(
                f"layers_to_transform limits a list of names; target_modules is {short(self.target_modules)}"
            )
        matches(self._expressions())

    def _set(self, **values):
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _expressions(self):
        """Every regular expression of the config, for `patterns.matches`."""
        options = [("target_modules", self.target_modules), ("exclude_modules", self.exclude_modules)]
        whole = [(option, p, p, "fullmatch") for option, p in options if isinstance(p, str) and p != selection.ALL]
        ends = [*self._ends("rank_pattern"), *self._ends("alpha_pattern")]
        return [*whole, *selection.layer_expressions(self.layers_pattern), *ends]

    def _ends(self, option):
        return [(f"{option} key", p, SUFFIX.format(p), "match") for p in getattr(self, option)]

    def as_dict(self):
        """The options as JSON-able values."""
        return json.loads(json.dumps(asdict(self)))

    def for_layer(self, path):
        """(r, lora_alpha) of the layer with this dotted path."""
        return self.for_layers([path])[path]

    def for_layers(self, paths):
        """{path: (r, lora_alpha)} of the layers with these dotted paths."""
        r, alpha = self._values("rank_pattern", self.r, paths), self._values("alpha_pattern", self.lora_alpha, paths)
        return {path: (r[path], alpha[path]) for path in paths}

    def _values(self, option, default, paths):
        patterns, found = getattr(self, option), matches(self._ends(option), paths)
        first = {p: next((v for v, f in zip(patterns.values(), found, strict=True) if f[p]), None) for p in paths}
        return {p: patterns.get(p, default) if value is None else value for p, value in first.items()}

    def trains_in_full(self, name, chosen):
        """Whether the parameter of this dotted name trains beside the factors, `chosen` being the adapted layers."""
        path, _, kind = name.rpartition(".")
        of_bias = kind == "bias" and (self.bias == "all" or (self.bias == "lora_only" and path in chosen))
        return of_bias or any(selection.is_saved(path, module) for module in self.modules_to_save)

    def select(self, paths, others=(), output_layer=None):
        """The paths that get an adapter, in order; see `selection.select`."""
        return selection.select(self, paths, others, output_layer)

    def doubts(self, paths, chosen):
        """What is set but does nothing, a line each; `chosen` of these paths get an adapter."""
        lines = selection.doubts(self, paths)
        for option in ("rank_pattern", "alpha_pattern"):
            keys = zip(getattr(self, option), matches(self._ends(option), chosen), strict=True)
            if unused := [key for key, found in keys if not (any(found.values()) or key in chosen)]:
                more = f" (and {len(unused) - 1} more)" if unused[1:] else ""
                lines.append(f"{option} key {short(unused[0])}{more} matches no layer with an adapter")
        return lines


def _targets(text):
    return selection.ALL if text.lower() == selection.ALL else text


def _names(option, value, expected="a list of names"):
    """A list, tuple or set of texts as a tuple. None or "": there is none; only the targets must be there."""
    names = () if (value is None or value == "") and option != "target_modules" else value
    if not isinstance(names, list | tuple | set | frozenset) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{option} must be {expected}; got {short(value)}")
    return tuple(names if isinstance(names, list | tuple) else sorted(names))


def _numbers(option, value):
    """A whole number, or a list of them as a tuple. None or []: there is none; 0 is a number, and false is not."""
    for number in value if isinstance(value, list | tuple | set | range) else () if value is None else (value,):
        if isinstance(number, bool) or not isinstance(number, numbers.Integral):
            raise InputError(f"{option} must be the number of a block, or a list of them; got {short(value)}")
    if value is None or isinstance(value, numbers.Integral):
        return value if value is None else int(value)
    return tuple(int(number) for number in value) or None
