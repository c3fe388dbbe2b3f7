"""LoKr: a Kronecker product of small matrices (Yeh et al. 2023, LyCORIS, arXiv:2309.14859)."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..backend import array_namespace
from ..errors import InputError
from ..files import short
from .additive import AdditiveAdapter
from .base import whole
from .rank_config import AlphaConfig, check_flag, check_r, scaling_of
from .starts import uniform


@dataclass(frozen=True, kw_only=True)
class LoKrConfig(AlphaConfig):
    """Options of `inject` for LoKr; see `LoKrLinear`, and `AdapterConfig` for which layers they select.

    >>> import lorabook as lb
    >>> from lorabook.adapters import LoKrConfig
    >>> lb.inject(lb.MLP((64, 32, 10)), LoKrConfig(r=4, target_modules=["fc1"]))
    ['fc1']
    """

    method: ClassVar[str] = "lokr"
    same: ClassVar[tuple] = ("init_weights", "decompose_both", "decompose_factor")
    neutral: ClassVar[dict] = AlphaConfig.neutral | {"rank_dropout_scale": False}

    init_weights: bool | str = True
    decompose_both: bool = False
    decompose_factor: int = -1

    def __post_init__(self):
        super().__post_init__()
        check_flag("decompose_both", self.decompose_both)
        if self.init_weights != "lycoris":
            check_flag("init_weights", self.init_weights)
        if self.decompose_factor != -1:
            self._set(decompose_factor=check_r(self.decompose_factor, "decompose_factor"))


class LoKrLinear(AdditiveAdapter):
    """W_eff = W + s C kron D, s = alpha / r: block (a, b) of the update is s C_ab D, and its rank rank(C) rank(D).

    lokr_w1 = C (p, q) and lokr_w2 = D (u, v) with p u = d_out, q v = d_in, as near to squares as the sizes divide, or
    p and q as near to decompose_factor from below. A side that is large for the rank is itself a product:
    D = lokr_w2_a (u, r) lokr_w2_b (r, v), if r < max(u, v) / 2; C likewise, with decompose_both alone. C starts at
    zero (init_weights True), D does ("lycoris"), or neither (False).

    With d_delta cut into p x q blocks H_ab (u, v), dL = sum_ab <H_ab, s (dC_ab D + C_ab dD)>:

        dC_ab = s <H_ab, D>,  dD = s sum_ab C_ab H_ab;  of a product M = M_a M_b:  dM_a = dM M_b^T,  dM_b = M_a^T dM
    """

    method, peft_type, Config = "lokr", "LOKR", LoKrConfig
    tensors: ClassVar[dict] = {f"lokr_{w}{end}": f"lokr_{w}{end}" for w in ("w1", "w2") for end in ("", "_a", "_b")}

    def __init__(self, base, r=8, alpha=8, *, init_weights=True, decompose_both=False, decompose_factor=-1, rng=None):
        """Wrap the Linear `base`, sharing its arrays. `rng`: numpy Generator or seed for the factors (default 0)."""
        super().__init__(base, {})
        rng = np.random.default_rng(0 if rng is None else rng)
        self.r, self.scaling = check_r(r), self.scale(r=r, alpha=alpha)
        shapes = self.shapes(*base.shape, r=r, decompose_both=decompose_both, decompose_factor=decompose_factor)
        arrays = {name: uniform(rng, *shape) for name, shape in shapes.items()}
        if init_weights is not False:
            zero = ("lokr_w2", "lokr_w2_b") if init_weights == "lycoris" else ("lokr_w1", "lokr_w1_a")
            arrays |= {name: 0 * array for name, array in arrays.items() if name in zero}
        self.start(**arrays)

    @classmethod
    def shapes(cls, d_out, d_in, where="this layer", *, r, decompose_both=False, decompose_factor=-1, **options):
        (p, u), (q, v) = (factors(d, decompose_factor) for d in (d_out, d_in))
        apart = {"lokr_w1": decompose_both and r < max(p, q) / 2, "lokr_w2": r < max(u, v) / 2}
        shapes = {}
        for name, (rows, columns) in {"lokr_w1": (p, q), "lokr_w2": (u, v)}.items():
            product = {f"{name}_a": (rows, r), f"{name}_b": (r, columns)}
            shapes |= product if apart[name] else {name: (rows, columns)}
        return shapes

    @classmethod
    def scale(cls, *, r, alpha, **options):
        return scaling_of(r, alpha)

    @classmethod
    def update_of(cls, tensors, path, **options):
        sizes = [_size(tensors, path, w, axis) for axis in (0, 1) for w in ("lokr_w1", "lokr_w2")]
        known = whole(cls, tensors, path, sizes[0] * sizes[1], sizes[2] * sizes[3], **options)
        return cls.scale(**options) * np.kron(_matrix(known, "lokr_w1"), _matrix(known, "lokr_w2"))

    def delta_weight(self):
        C, D = (_matrix(self.params, name) for name in ("lokr_w1", "lokr_w2"))
        return array_namespace(C).reshape((self.scaling * C)[:, None, :, None] * D[None, :, None, :], self.shape)

    def delta_backward(self, d_delta):
        xp, s = array_namespace(d_delta), self.scaling
        C, D = (_matrix(self.params, name) for name in ("lokr_w1", "lokr_w2"))
        (p, q), (u, v) = C.shape, D.shape
        H = xp.reshape(xp.permute_dims(xp.reshape(d_delta, (p, u, q, v)), (0, 2, 1, 3)), (p * q, u * v))
        dC = s * xp.reshape(H @ xp.reshape(D, (u * v,)), (p, q))
        dD = s * xp.reshape(xp.reshape(C, (p * q,)) @ H, (u, v))
        grads = {}
        for name, dM in (("lokr_w1", dC), ("lokr_w2", dD)):
            if name in self.params:
                grads[name] = dM
            else:
                a, b = self.params[f"{name}_a"], self.params[f"{name}_b"]
                grads |= {f"{name}_a": dM @ b.T, f"{name}_b": a.T @ dM}
        return self.trained(grads)


def factors(d, factor=-1):
    """(m, n) with m n = d: m is `factor` if that divides d, else the largest divisor up to sqrt(d) and the factor."""
    if factor > 0 and d % factor == 0:
        return factor, d // factor
    most = math.isqrt(d) if factor == -1 else min(factor, math.isqrt(d))
    m = max(m for m in range(1, most + 1) if d % m == 0)
    return m, d // m


def _matrix(arrays, name):
    return arrays[name] if name in arrays else arrays[f"{name}_a"] @ arrays[f"{name}_b"]


def _size(tensors, path, name, axis):
    array = tensors.get(name, tensors.get(f"{name}_{'ab'[axis]}"))
    if array is None or array.ndim != 2 or not array.shape[axis]:
        raise InputError(f"{path} needs {name}, or its factors {name}_a and {name}_b; got {short(sorted(tensors))}")
    return array.shape[axis]
