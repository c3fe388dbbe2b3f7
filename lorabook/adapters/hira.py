"""HiRA: each weight times a number of its own, of a low-rank matrix (Huang et al. 2025, openreview TwJrTz9cRS)."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .base import Adapter
from .lora_config import check_initialisation
from .rank_config import RankConfig, check_probability, check_r
from .starts import initial_factors


@dataclass(frozen=True, kw_only=True)
class HiRAConfig(RankConfig):
    """Options of `inject` for HiRA; see `HiRALinear`, and `AdapterConfig` for which layers they select.

    >>> import lorabook as lb
    >>> from lorabook.adapters import HiRAConfig
    >>> lb.inject(lb.MLP((64, 32, 10)), HiRAConfig(r=4, target_modules=["fc1"]))
    ['fc1']
    """

    method: ClassVar[str] = "hira"
    same: ClassVar[tuple] = ("hira_dropout", "init_weights")
    ours: ClassVar[tuple] = ("bias",)

    r: int = 32
    hira_dropout: float = 0.0
    init_weights: bool | str = True

    def __post_init__(self):
        super().__post_init__()
        self._set(
            hira_dropout=check_probability("hira_dropout", self.hira_dropout),
            init_weights=check_initialisation(self.init_weights, "init_weights"),
        )


class HiRALinear(Adapter):
    """y = x W_eff^T + b with W_eff = W o (1 + B A): every weight times one plus an entry of a low-rank matrix.

    hira_A (r, d_in), hira_B (d_out, r), which starts at zero. The update W o (B A) has a rank of up to r rank(W), by
    the same number of parameters as LoRA's. There is no scaling. With dropout the branch is x (W o (B A))^T.

    dW_eff = dW o (1 + B A) + W o (dB A + B dA). With K = dW_eff o W, dL = <K, dB A + B dA>:

        dA = B^T K                  (r, d_in)
        dB = K A^T                  (d_out, r)
        dW = dW_eff o (1 + B A)     (d_out, d_in)
    """

    method, peft_type, Config = "hira", "HIRA", HiRAConfig
    tensors: ClassVar[dict] = {"hira_A": "hira_A", "hira_B": "hira_B"}

    def __init__(self, base, r=32, *, hira_dropout=0.0, init_weights=True, rng=None):
        """Wrap the Linear `base`, sharing its arrays. `rng`: numpy Generator or seed for the factors (default 0)."""
        super().__init__(base, {})
        self.r, self.dropout = check_r(r), check_probability("hira_dropout", hira_dropout)
        A, B = initial_factors(init_weights, self.r, *base.shape, np.random.default_rng(0 if rng is None else rng))
        self.start(hira_A=A, hira_B=B)

    @classmethod
    def shapes(cls, d_out, d_in, where="this layer", *, r, **options):
        return {"hira_A": (r, d_in), "hira_B": (d_out, r)}

    def effective(self, W):
        factor = self.params["hira_B"] @ self.params["hira_A"]
        factor += 1
        return W * factor, (W, factor)

    def effective_backward(self, dW_eff, cache):
        W, factor = cache
        K = dW_eff * W
        grads = {"hira_A": self.params["hira_B"].T @ K, "hira_B": K @ self.params["hira_A"].T}
        return self.trained(grads), dW_eff * factor
