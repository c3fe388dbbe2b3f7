"""(IA)3: one factor for each output, or input, of a layer (Liu et al. 2022, arXiv:2205.05638)."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..backend import array_namespace
from .base import Adapter
from .config import AdapterConfig, names_or_pattern
from .patterns import matches
from .rank_config import check_flag
from .selection import is_target


@dataclass(frozen=True, kw_only=True)
class IA3Config(AdapterConfig):
    """Options of `inject` for (IA)3; see `IA3Linear`, and `AdapterConfig` for which layers they select.

    feedforward_modules: names, or an expression, of the layers whose inputs are scaled; those of the others' outputs
    are. With init_ia3_weights False the factors start at random and not at 1.

    >>> import lorabook as lb
    >>> from lorabook.adapters import IA3Config
    >>> model = lb.MLP((64, 32, 10))
    >>> lb.inject(model, IA3Config(target_modules=["fc1", "fc2"], feedforward_modules=["fc2"]))
    ['fc1', 'fc2']
    >>> [model.named_params()[f"{path}.ia3_l"].shape for path in ("fc1", "fc2")]
    [(32, 1), (1, 32)]
    """

    method: ClassVar[str] = "ia3"
    ours: ClassVar[tuple] = ("bias",)
    absent: ClassVar[tuple] = ("layers_to_transform", "layers_pattern")

    feedforward_modules: str | tuple[str, ...] = ()
    init_ia3_weights: bool = True

    def __post_init__(self):
        self._set(feedforward_modules=names_or_pattern("feedforward_modules", self.feedforward_modules))
        super().__post_init__()
        check_flag("init_ia3_weights", self.init_ia3_weights)

    def _expressions(self):
        return [*super()._expressions(), *self._feedforward()]

    def _feedforward(self):
        within = self.feedforward_modules
        return [("feedforward_modules", within, within, "fullmatch")] if isinstance(within, str) else []

    def for_peft(self):
        within = self.feedforward_modules  # which PEFT wants to be told, if it is none
        return super().for_peft() | {"feedforward_modules": within if isinstance(within, str) else list(within)}

    def options_for(self, paths):
        if isinstance(within := self.feedforward_modules, str):
            (inputs,) = matches(self._feedforward(), paths)
        else:
            inputs = {path: any(is_target(path, name) for name in within) for path in paths}
        return {path: {"feedforward": inputs[path], "init_ia3_weights": self.init_ia3_weights} for path in paths}


class IA3Linear(Adapter):
    """y = l o (x W^T + b), or of a feed-forward layer y = (x o l) W^T + b: W_eff = W with rows, or columns, times l.

    ia3_l (d_out, 1), or (1, d_in), starts at 1. So few numbers, and no rank: the update W o (l - 1) has W's.

    dW_eff = dW o l + W o dl, so dl is dW_eff o W summed along the other side; db_eff = db o l + b o dl adds db_eff o b
    where outputs are scaled.
    """

    method, peft_type, Config = "ia3", "IA3", IA3Config
    tensors: ClassVar[dict] = {"ia3_l": "ia3_l"}

    def __init__(self, base, *, feedforward=False, init_ia3_weights=True, rng=None):
        """Wrap the Linear `base`, sharing its arrays. feedforward: whether the inputs are scaled.

        `rng`: numpy Generator or seed of a random start (default 0).
        """
        super().__init__(base, {})
        (shape,) = self.shapes(*base.shape, feedforward=feedforward).values()
        rng = np.random.default_rng(0 if rng is None else rng)
        self.changes_bias = not feedforward
        self.start(ia3_l=np.ones(shape) if init_ia3_weights else rng.standard_normal(shape))

    @classmethod
    def shapes(cls, d_out, d_in, where="this layer", *, feedforward=False, **options):
        return {"ia3_l": (1, d_in) if feedforward else (d_out, 1)}

    def effective(self, W):
        return W * self.params["ia3_l"], W

    def effective_backward(self, dW_eff, W):
        axis = 1 if self.changes_bias else 0
        grads = {"ia3_l": array_namespace(W).sum(dW_eff * W, axis=axis, keepdims=True)}
        return self.trained(grads), dW_eff * self.params["ia3_l"]

    def bias_of(self, b):
        return b * self.params["ia3_l"][:, 0]

    def bias_backward(self, db_eff):
        return self.trained({"ia3_l": (db_eff * self.bias)[:, None]}), db_eff * self.params["ia3_l"][:, 0]
