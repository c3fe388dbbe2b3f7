"""GraLoRA: a pair of factors for each block of a weight (Jung et al. 2025, arXiv:2505.20355)."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..backend import array_namespace
from ..errors import InputError
from ..files import short
from .additive import AdditiveAdapter
from .base import whole
from .rank_config import RankConfig, check_finite, check_flag, check_probability, check_r, scaling_of


@dataclass(frozen=True, kw_only=True)
class GraLoRAConfig(RankConfig):
    """Options of `inject` for GraLoRA; see `GraLoRALinear`, and `AdapterConfig` for which layers they select.

    >>> import lorabook as lb
    >>> from lorabook.adapters import GraLoRAConfig
    >>> lb.inject(lb.MLP((64, 32, 10)), GraLoRAConfig(r=4, gralora_k=2, target_modules=["fc1"]))
    ['fc1']
    """

    method: ClassVar[str] = "gralora"
    same: ClassVar[tuple] = ("alpha", "gralora_k", "gralora_dropout", "init_weights")
    neutral: ClassVar[dict] = {"hybrid_r": 0}
    absent: ClassVar[tuple] = ("rank_pattern", "exclude_modules")
    bias_word: ClassVar[str] = "gralora_only"

    r: int = 32
    alpha: float = 64
    gralora_k: int = 2
    gralora_dropout: float = 0.0
    init_weights: bool = True

    def __post_init__(self):
        super().__post_init__()
        self._set(
            alpha=check_finite("alpha", self.alpha),
            gralora_k=check_r(self.gralora_k, "gralora_k"),
            gralora_dropout=check_probability("gralora_dropout", self.gralora_dropout),
        )
        check_flag("init_weights", self.init_weights)


class GraLoRALinear(AdditiveAdapter):
    """W_eff = W + s [B_ji A_ji], j, i = 1 .. k: W in k x k blocks, each with a product of its own of rank r / k.

    As many parameters as LoRA of rank r; the update's rank is up to k r. gralora_A (k, d_in / k, r): of the columns i,
    the factors of all k blocks below each other, A_ji^T in the r / k columns number j. gralora_B (k, r, d_out / k): of
    the rows j, B_ji^T in the r / k rows number i; zero at the start. s = alpha / r.

    Each block is LoRA: with H_ji the block of d_delta,  dA_ji = s B_ji^T H_ji,  dB_ji = s H_ji A_ji^T.
    """

    method, peft_type, Config = "gralora", "GRALORA", GraLoRAConfig
    tensors: ClassVar[dict] = {"gralora_A": "gralora_A", "gralora_B": "gralora_B"}

    def __init__(self, base, r=32, alpha=64, *, gralora_k=2, gralora_dropout=0.0, init_weights=True, rng=None):
        """Wrap the Linear `base`, sharing its arrays. `rng`: numpy Generator or seed for the factors (default 0)."""
        super().__init__(base, {})
        A, B = self.shapes(*base.shape, r=r, gralora_k=gralora_k).values()
        rng = np.random.default_rng(0 if rng is None else rng)
        self.r, self.k, self.scaling = check_r(r), gralora_k, self.scale(r=r, alpha=alpha)
        self.dropout = check_probability("gralora_dropout", gralora_dropout)
        first, second = rng.uniform(-(A[1] ** -0.5), A[1] ** -0.5, A), rng.uniform(-(r**-0.5), r**-0.5, B)
        self.start(gralora_A=first, gralora_B=0 * second if init_weights else second)

    @classmethod
    def shapes(cls, d_out, d_in, where="this layer", *, r, gralora_k=2, **options):
        if r % gralora_k or d_out % gralora_k or d_in % gralora_k:
            sizes = f"r = {short(r)} and the sizes of {where}, {d_out}x{d_in}"
            raise InputError(f"gralora_k must divide {sizes}; got {short(gralora_k)}")
        return {"gralora_A": (gralora_k, d_in // gralora_k, r), "gralora_B": (gralora_k, r, d_out // gralora_k)}

    @classmethod
    def scale(cls, *, r, alpha, **options):
        return scaling_of(r, alpha)

    @classmethod
    def update_of(cls, tensors, path, *, gralora_k=2, **options):
        ends = ((tensors.get("gralora_B"), 2), (tensors.get("gralora_A"), 1))
        sizes = [0 if array is None or array.ndim != 3 else gralora_k * array.shape[axis] for array, axis in ends]
        A, B = whole(cls, tensors, path, *sizes, gralora_k=gralora_k, **options).values()
        A, B = _blocks(A, B, gralora_k)
        return cls.scale(**options) * _joined(B @ A)

    def delta_weight(self):
        A, B = _blocks(*self.params.values(), self.k)
        return _joined(array_namespace(A).matmul(self.scaling * B, A))

    def delta_backward(self, d_delta):
        xp, k, (d_out, d_in) = array_namespace(d_delta), self.k, self.shape
        A, B = _blocks(*self.params.values(), k)
        H = xp.permute_dims(xp.reshape(self.scaling * d_delta, (k, d_out // k, k, d_in // k)), (0, 2, 1, 3))
        dA, dB = xp.matmul(xp.matrix_transpose(B), H), xp.matmul(H, xp.matrix_transpose(A))
        dA = xp.reshape(xp.permute_dims(dA, (1, 3, 0, 2)), (k, d_in // k, self.r))
        dB = xp.reshape(xp.permute_dims(dB, (0, 1, 3, 2)), (k, self.r, d_out // k))
        return self.trained({"gralora_A": dA, "gralora_B": dB})


def _blocks(A, B, k):
    """(A_ji (k, k, r / k, d_in / k), B_ji (k, k, d_out / k, r / k)) from the two parameters."""
    xp, r = array_namespace(A), A.shape[2]
    A = xp.permute_dims(xp.reshape(A, (k, A.shape[1], k, r // k)), (2, 0, 3, 1))
    return A, xp.permute_dims(xp.reshape(B, (k, k, r // k, B.shape[2])), (0, 1, 3, 2))


def _joined(blocks):
    """(d_out, d_in) of blocks (k, k, d_out / k, d_in / k)."""
    xp, (k, _, rows, columns) = array_namespace(blocks), blocks.shape
    return xp.reshape(xp.permute_dims(blocks, (0, 2, 1, 3)), (k * rows, k * columns))
