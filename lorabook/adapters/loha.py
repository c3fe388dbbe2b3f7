"""LoHa: the elementwise product of two low-rank matrices (Hyeon-Woo et al. 2021, FedPara, arXiv:2108.06098)."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .additive import AdditiveAdapter
from .base import whole
from .rank_config import AlphaConfig, check_flag, check_r, scaling_of
from .starts import uniform


@dataclass(frozen=True, kw_only=True)
class LoHaConfig(AlphaConfig):
    """Options of `inject` for LoHa; see `LoHaLinear`, and `AdapterConfig` for which layers they select.

    >>> import lorabook as lb
    >>> from lorabook.adapters import LoHaConfig
    >>> lb.inject(lb.MLP((64, 32, 10)), LoHaConfig(r=4, target_modules=["fc1"]))
    ['fc1']
    """

    method: ClassVar[str] = "loha"

    def __post_init__(self):
        super().__post_init__()
        check_flag("init_weights", self.init_weights)


class LoHaLinear(AdditiveAdapter):
    """W_eff = W + s (B1 A1) o (B2 A2), s = alpha / r: a rank of up to r^2 from twice the parameters of LoRA.

    hada_w1_a = B1 and hada_w2_a = B2 (d_out, r), hada_w1_b = A1 and hada_w2_b = A2 (r, d_in). A2 starts at zero; with
    init_weights False it does not.

    d_delta = s ((dB1 A1 + B1 dA1) o (B2 A2) + (B1 A1) o (dB2 A2 + B2 dA2)), where dL = <d_delta, .>, gives with
    K1 = s d_delta o (B2 A2) and K2 = s d_delta o (B1 A1):

        dB1 = K1 A1^T,  dA1 = B1^T K1,  dB2 = K2 A2^T,  dA2 = B2^T K2
    """

    method, peft_type, Config = "loha", "LOHA", LoHaConfig
    tensors: ClassVar[dict] = {name: name for name in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")}

    def __init__(self, base, r=8, alpha=8, *, init_weights=True, rng=None):
        """Wrap the Linear `base`, sharing its arrays. `rng`: numpy Generator or seed for the factors (default 0)."""
        super().__init__(base, {})
        (d_out, d_in), rng = base.shape, np.random.default_rng(0 if rng is None else rng)
        self.r, self.scaling = check_r(r), self.scale(r=r, alpha=alpha)
        B1, A1, B2, A2 = (uniform(rng, *shape) for shape in self.shapes(d_out, d_in, r=r).values())
        self.start(hada_w1_a=B1, hada_w1_b=A1, hada_w2_a=B2, hada_w2_b=0 * A2 if init_weights else A2)

    @classmethod
    def shapes(cls, d_out, d_in, where="this layer", *, r, **options):
        return dict(zip(cls.tensors, [(d_out, r), (r, d_in)] * 2, strict=True))

    @classmethod
    def scale(cls, *, r, alpha, **options):
        return scaling_of(r, alpha)

    @classmethod
    def update_of(cls, tensors, path, *, r, **options):
        B1, A1, B2, A2 = whole(cls, tensors, path, ("hada_w1_a", 0), ("hada_w1_b", 1), r=r).values()
        return cls.scale(r=r, **options) * (B1 @ A1) * (B2 @ A2)

    def delta_weight(self):
        B1, A1, B2, A2 = (self.params[name] for name in self.tensors)
        delta = (self.scaling * B1) @ A1
        delta *= B2 @ A2
        return delta

    def delta_backward(self, d_delta):
        B1, A1, B2, A2 = (self.params[name] for name in self.tensors)
        K1, K2 = ((self.scaling * d_delta) * (B @ A) for B, A in ((B2, A2), (B1, A1)))
        return self.trained(dict(zip(self.tensors, (K1 @ A1.T, B1.T @ K1, K2 @ A2.T, B2.T @ K2), strict=True)))
