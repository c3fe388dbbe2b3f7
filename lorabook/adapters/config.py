"""Which layers get an adapter: PEFT's options under PEFT's names, with PEFT's defaults, for every variant."""

import json
import numbers
from dataclasses import asdict, dataclass, fields
from typing import ClassVar

from ..errors import FormatError, InputError
from ..files import short
from . import selection
from .patterns import SUFFIX, matches
from .whole_model import plain_name

EITHER = "'all-linear', a regular expression or a list of names"


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """Options of `inject`; what they select is what PEFT selects. A variant adds its own, and says what it is.

    target_modules: "all-linear", every linear layer but the model's head, as in PEFT with the model's own task_type (a
    file without one adapts the head too, as PEFT reads it); or a regular expression that the whole dotted path must
    match; or a list of names, each a path or the end of one ("query" targets
    "encoder.layer.0.attention.self.query"). exclude_modules: an expression or names of layers that get none.
    layers_to_transform: the number of a block, or several, to which the names (not full paths) are limited. It stands
    in the path: the first number behind two names, or behind one of the expressions in layers_pattern. modules_to_save:
    names of modules, or ends of them, that train in full with all inside (a fresh classifier) and get no adapter. bias:
    which biases train, "none", "all", or "lora_only", those of the adapted layers.

    An expression that is not matched within a few seconds is refused (`patterns`). An option that is set but selects
    nothing is an error if it is a name in target_modules or modules_to_save, and a note on stderr elsewhere.
    """

    method: ClassVar[str]  # of the table METHODS
    patterns: ClassVar[tuple] = ()  # options that are {regular expression: value}
    bias_word: ClassVar[str] = "lora_only"  # what PEFT calls that in this method
    neutral: ClassVar[dict] = {}  # {option of PEFT that is not implemented here: the value at which it does nothing}
    saves_shared: ClassVar[bool] = True  # whether what the layers share is in the file
    ours: ClassVar[tuple] = ()  # options that PEFT does not have: in its file only if they are set
    absent: ClassVar[tuple] = ()  # the same of options that choose: PEFT would choose otherwise, so they are refused

    target_modules: str | tuple[str, ...] = "all-linear"
    exclude_modules: str | tuple[str, ...] = ()
    layers_to_transform: int | tuple[int, ...] | None = None
    layers_pattern: tuple[str, ...] = ()
    modules_to_save: tuple[str, ...] = ()
    bias: str = "none"

    def __post_init__(self):
        """Check what can be checked without a model, and make plain Python values of NumPy's."""
        for option in self.patterns:
            patterns = getattr(self, option)
            if not isinstance(patterns, dict) or not all(isinstance(p, str) for p in patterns):
                raise InputError(f"{option} must be a dictionary of patterns; got {short(patterns)}")
        if given := [name for name in self.absent if getattr(self, name)]:
            raise InputError(f"{self.method} has no {given[0]} in PEFT; name the layers in target_modules instead")
        if self.bias not in ("none", "all", "lora_only"):
            raise InputError(f"bias must be none, all or lora_only; got {short(self.bias)}")
        within = self.layers_pattern
        self._set(
            target_modules=_targets(self.target_modules),
            exclude_modules=names_or_pattern("exclude_modules", self.exclude_modules),
            modules_to_save=names_of("modules_to_save", self.modules_to_save),
            layers_pattern=names_of("layers_pattern", [within] if within and isinstance(within, str) else within),
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
        ends = [end for option in self.patterns for end in self._ends(option)]
        return [*whole, *selection.layer_expressions(self.layers_pattern), *ends]

    def _ends(self, option):
        return [(f"{option} key", p, SUFFIX.format(p), "match") for p in getattr(self, option)]

    def as_dict(self):
        """The options as JSON-able values."""
        return json.loads(json.dumps(asdict(self)))

    def for_peft(self):
        """{option: JSON-able value} as PEFT's adapter_config.json has them."""
        defaults = {field.name: field.default for field in fields(self)}
        left_out = {*self.absent, *(name for name in self.ours if getattr(self, name) == defaults[name])}
        values = {name: value for name, value in self.as_dict().items() if name not in left_out}
        values |= {"bias": self.bias_word} if self.bias == "lora_only" else {}
        return {name: None if value == [] else value for name, value in values.items()}

    def options_for(self, paths):
        """{path: {option: value}} of what the variant's class, and its `shapes`, are called with for these layers."""
        return {path: {} for path in paths}

    @classmethod
    def from_peft(cls, path, own):
        """The config of PEFT's options `own`, read from the file `path`. Raises FormatError for what would differ."""
        own = own | ({"bias": "lora_only"} if own.get("bias") == cls.bias_word else {})
        try:
            return cls(**own)
        except InputError as error:
            raise FormatError(f"{path}: {error}") from None

    def _values(self, option, default, paths):
        patterns, found = getattr(self, option), matches(self._ends(option), paths)
        first = {p: next((v for v, f in zip(patterns.values(), found, strict=True) if f[p]), None) for p in paths}
        return {p: patterns.get(p, default) if value is None else value for p, value in first.items()}

    def trains_in_full(self, name, chosen):
        """Whether the parameter of this dotted name trains beside the factors, `chosen` being the adapted layers."""
        path, _, kind = plain_name(name).rpartition(".")
        of_bias = kind == "bias" and (self.bias == "all" or (self.bias == "lora_only" and path in chosen))
        return of_bias or any(selection.is_saved(path, module) for module in self.modules_to_save)

    def select(self, paths, others=(), head_modules=()):
        """The paths that get an adapter, in order; see `selection.select`."""
        return selection.select(self, paths, others, head_modules)

    def doubts(self, shapes, chosen):
        """What is set but does nothing, a line each. shapes: {path: (d_out, d_in)}; `chosen` of them get an adapter."""
        lines = selection.doubts(self, shapes)
        for option in self.patterns:
            keys = zip(getattr(self, option), matches(self._ends(option), chosen), strict=True)
            if unused := [key for key, found in keys if not (any(found.values()) or key in chosen)]:
                more = f" (and {len(unused) - 1} more)" if unused[1:] else ""
                lines.append(f"{option} key {short(unused[0])}{more} matches no layer with an adapter")
        return lines


def _targets(value):
    if isinstance(value, str):
        return selection.ALL if value.lower() == selection.ALL else value
    return names_of("target_modules", value, EITHER)


def names_or_pattern(option, value):
    """An expression as it is, or a list of names as a tuple."""
    return value if value and isinstance(value, str) else names_of(option, value)


def names_of(option, value, expected="a list of names"):
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
