"""DeLoRA: the strength of an update apart from its direction (Bini et al. 2025, arXiv:2503.18225)."""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from ..backend import array_namespace, asarray_like, to_numpy
from ..errors import InputError
from .additive import AdditiveAdapter
from .base import whole
from .rank_config import RankConfig, check_finite, check_flag, check_probability, check_r
from .starts import initial_factors

SMALLEST = 1e-4  # below it a norm counts as this, as in PEFT


@dataclass(frozen=True, kw_only=True)
class DeLoRAConfig(RankConfig):
    """Options of `inject` for DeLoRA; see `DeLoRALinear`, and `AdapterConfig` for which layers they select.

    >>> import lorabook as lb
    >>> from lorabook.adapters import DeLoRAConfig
    >>> lb.inject(lb.MLP((64, 32, 10)), DeLoRAConfig(r=4, target_modules=["fc1"]))
    ['fc1']
    """

    method: ClassVar[str] = "delora"
    patterns: ClassVar[tuple] = ("rank_pattern", "lambda_pattern")
    same: ClassVar[tuple] = ("module_dropout", "init_weights")
    bias_word: ClassVar[str] = "delora_only"

    delora_lambda: float = 15
    module_dropout: float = 0.0
    init_weights: bool = True
    lambda_pattern: dict[str, float] = field(default_factory=dict)

    def __post_init__(self):
        super().__post_init__()
        self._set(
            delora_lambda=check_finite("delora_lambda", self.delora_lambda),
            module_dropout=check_probability("module_dropout", self.module_dropout),
            lambda_pattern={p: check_finite("delora_lambda", value) for p, value in self.lambda_pattern.items()},
        )
        check_flag("init_weights", self.init_weights)

    def options_for(self, paths):
        values = self._values("lambda_pattern", self.delora_lambda, paths)
        return {path: own | {"delora_lambda": values[path]} for path, own in super().options_for(paths).items()}


class DeLoRALinear(AdditiveAdapter):
    """W_eff = W + (l / r) Bh Ah diag(w): rows of Ah and columns of Bh have length 1, w_j = |W[:, j]|, l trains.

    delora_A (r, d_in) = A with rows a_i, delora_B (d_out, r) = B with columns b_i, delora_lambda (1,) = l,
    Ah_i = a_i / |a_i|, Bh_i = b_i / |b_i|. However long A and B grow, the update's norm is at most l max(w): only l
    moves that bound. B starts at zero, and a norm below 1e-4 counts as 1e-4. w is saved with the adapter, though W
    tells it.

    With H = d_delta diag(w), dL = <H, dl Bh Ah + l (dBh Ah + Bh dAh)> / r, and d(a / |a|) = (da - Ah <Ah, da>) / |a|:

        dl   = <H, Bh Ah> / r
        dAh  = (l / r) Bh^T H,   da_i = (dAh_i - Ah_i <Ah_i, dAh_i>) / |a_i|
        dBh  = (l / r) H Ah^T,   db_i = (dBh_i - Bh_i <Bh_i, dBh_i>) / |b_i|

    and where a norm counts as 1e-4 it is a constant: the term behind the minus is absent.
    """

    method, peft_type, Config = "delora", "DELORA", DeLoRAConfig
    tensors: ClassVar[dict] = {name: name for name in ("delora_A", "delora_B", "delora_lambda")}
    kept: ClassVar[dict] = {"delora_w_norm": "delora_w_norm"}

    def __init__(self, base, r=8, delora_lambda=15, *, module_dropout=0.0, init_weights=True, rng=None):
        """Wrap the Linear `base`, sharing its arrays. `rng`: numpy Generator or seed for the factors (default 0)."""
        super().__init__(base, {})
        self.r, self.dropout = check_r(r), check_probability("module_dropout", module_dropout)
        A, B = initial_factors(init_weights, self.r, *base.shape, np.random.default_rng(0 if rng is None else rng))
        self.start(delora_A=A, delora_B=B, delora_lambda=np.full(1, float(delora_lambda)))
        w = np.sqrt(np.sum(to_numpy(base.weight).astype("f8") ** 2, axis=0))
        self.buffers = {"delora_w_norm": asarray_like(w, base.like)}

    @classmethod
    def shapes(cls, d_out, d_in, where="this layer", *, r, **options):
        return {"delora_A": (r, d_in), "delora_B": (d_out, r), "delora_lambda": (1,)}

    @classmethod
    def kept_shapes(cls, d_out, d_in):
        return {"delora_w_norm": (d_in,)}

    @classmethod
    def update_of(cls, tensors, path, *, r, **options):
        own = {name: array for name, array in tensors.items() if name in cls.tensors}
        A, B, strength = whole(cls, own, path, ("delora_B", 0), ("delora_A", 1), r=r).values()
        if (w := tensors.get("delora_w_norm")) is None or w.shape != A.shape[1:]:
            raise InputError(f"{path} needs delora_w_norm {A.shape[1:]}; got {None if w is None else w.shape}")
        return strength / r * unit(B, 0)[0] @ unit(A, 1)[0] * w

    @property
    def w(self):
        """In the dtype of the parameters: a buffer keeps its own where a model moves to another."""
        A = self.params["delora_A"]
        return array_namespace(A).astype(self.buffers["delora_w_norm"], A.dtype)

    def delta_weight(self):
        A, B, strength = (self.params[name] for name in self.tensors)
        return ((strength / self.r) * unit(B, 0)[0]) @ (unit(A, 1)[0] * self.w)

    def delta_backward(self, d_delta):
        A, B, strength = (self.params[name] for name in self.tensors)
        xp, H, scale = array_namespace(A), d_delta * self.w, strength / self.r
        (Ah, a), (Bh, b) = unit(A, 1), unit(B, 0)
        dAh, dBh = Bh.T @ H, H @ Ah.T  # both without the factor l / r
        dl = xp.reshape(xp.sum(Ah * dAh), (1,)) / self.r
        dA, dB = scale * along(dAh, Ah, a, 1), scale * along(dBh, Bh, b, 0)
        return self.trained({"delora_A": dA, "delora_B": dB, "delora_lambda": dl})


def unit(M, axis):
    """(M with its rows, axis 1, or columns, axis 0, divided by their lengths; the lengths, at least SMALLEST)."""
    xp = array_namespace(M)
    length = xp.sqrt(xp.sum(M * M, axis=axis, keepdims=True))
    length = xp.where(xp.real(length) < SMALLEST, SMALLEST + 0 * length, length)
    return M / length, length


def along(dMh, Mh, length, axis):
    """dM from dMh, by rows or columns; see `DeLoRALinear`."""
    xp = array_namespace(Mh)
    inside = xp.astype(xp.real(length) > SMALLEST, Mh.dtype)
    return (dMh - inside * Mh * xp.sum(Mh * dMh, axis=axis, keepdims=True)) / length
