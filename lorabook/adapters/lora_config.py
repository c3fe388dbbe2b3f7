"""The options of LoRA under PEFT's names, with PEFT's defaults."""

from dataclasses import dataclass, field
from typing import ClassVar

from ..errors import FormatError
from ..files import short
from .rank_config import RankConfig, check_finite, check_flag, check_probability
from .starts import STARTS, check_initialisation

ONLY_START = ("eva",)  # initialisations that choose other factors: what was trained is plain LoRA
CHANGE_BASE = ("pissa_niter_", "corda", "lora_ga")  # and those after which the base weights are not known any more


@dataclass(frozen=True, kw_only=True)
class LoRAConfig(RankConfig):
    """Options of `inject` for LoRA; which layers they select, see `AdapterConfig`.

    rank_pattern and alpha_pattern override r and lora_alpha for paths whose end matches a regular expression; the first
    match counts. A rank override alone changes the scaling, because lora_alpha stays. The others: see `LoRALinear`.

    >>> import lorabook as lb
    >>> model = lb.MLP((64, 32, 10))
    >>> lb.inject(model, lb.LoRAConfig(r=4, target_modules=["fc1", "fc2"], rank_pattern={"fc2": 2}))
    ['fc1', 'fc2']
    >>> [model.named_params()[f"{path}.lora_B"].shape for path in ("fc1", "fc2")]
    [(32, 4), (10, 2)]
    """

    method: ClassVar[str] = "lora"
    patterns: ClassVar[tuple] = ("rank_pattern", "alpha_pattern")
    same: ClassVar[tuple] = ("use_rslora", "lora_dropout", "init_lora_weights")

    lora_alpha: float = 8
    use_rslora: bool = False
    lora_dropout: float = 0.0
    init_lora_weights: bool | str = True
    alpha_pattern: dict[str, float] = field(default_factory=dict)

    def __post_init__(self):
        super().__post_init__()
        self._set(
            use_rslora=check_flag("use_rslora", self.use_rslora),
            lora_alpha=check_finite("lora_alpha", self.lora_alpha),
            lora_dropout=check_probability("lora_dropout", self.lora_dropout),
            init_lora_weights=check_initialisation(self.init_lora_weights),
            alpha_pattern={pattern: check_finite("lora_alpha", a) for pattern, a in self.alpha_pattern.items()},
        )

    def for_layer(self, path):
        """(r, lora_alpha) of the layer with this dotted path."""
        return self.for_layers([path])[path]

    def for_layers(self, paths):
        """{path: (r, lora_alpha)} of the layers with these dotted paths."""
        r, alpha = self.ranks(paths), self._values("alpha_pattern", self.lora_alpha, paths)
        return {path: (r[path], alpha[path]) for path in paths}

    def for_peft(self):
        return super().for_peft() | {"use_dora": False, "fan_in_fan_out": False}

    def options_for(self, paths):
        alpha = self._values("alpha_pattern", self.lora_alpha, paths)
        return {path: own | {"lora_alpha": alpha[path]} for path, own in super().options_for(paths).items()}

    @classmethod
    def from_peft(cls, path, own):
        init = _initialisation(path, own.get("init_lora_weights", True))
        return super().from_peft(path, own | {"init_lora_weights": init})

    def doubts(self, shapes, chosen):
        lines = super().doubts(shapes, chosen)
        ranks = self.for_layers(chosen)
        if high := [path for path in chosen if ranks[path][0] > min(shapes[path])]:
            (d_out, d_in), more = shapes[high[0]], f" (and {len(high) - 1} more)" if len(high) > 1 else ""
            rank = f"r = {ranks[high[0]][0]} is above the largest rank of {high[0]}, {d_out}x{d_in}{more}"
            lines.append(f"{rank}: what is above {min(d_out, d_in)} adds nothing")
        return lines


def _initialisation(path, init):
    """An adapter's init_lora_weights as LoRAConfig knows it.

    One that changed the base weights is refused, unless W alone tells how: for PiSSA and OLoRA, B0 A0 does not depend
    on the signs in which PEFT had the factors. The approximate SVD of "pissa_niter_N" begins with random numbers that
    nobody has kept; PEFT, too, opens such a folder over another base than it was trained on.
    """
    name = init.lower() if isinstance(init, str) else init
    if name in ONLY_START:
        return True
    if isinstance(name, str) and name in STARTS:
        return name
    if name == "loftq":
        why = "was trained over quantised base weights, which are not in the folder; merge it in PEFT"
    elif isinstance(name, str) and name.startswith(CHANGE_BASE):
        how = "path_initial_model_for_weight_conversion of save_pretrained"
        why = f"changed the base weights; convert the adapter to plain LoRA in PEFT ({how})"
    elif isinstance(name, bool) or name == "gaussian":
        return name
    else:
        why = "is unknown here and may have changed the base weights; convert the adapter to plain LoRA in PEFT"
    raise FormatError(f"{path}: init_lora_weights={short(init)} {why}")
