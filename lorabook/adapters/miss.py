"""MiSS: one small matrix that all shards of a weight share (Kang & Yin 2024, arXiv:2409.15371)."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .. import functional as F
from ..backend import array_namespace
from ..errors import InputError
from ..files import short
from ..layers import prefixed
from .additive import AdditiveAdapter, check_order
from .base import BASE
from .rank_config import RankConfig, check_flag, check_probability, check_r
from .starts import uniform


@dataclass(frozen=True, kw_only=True)
class MiSSConfig(RankConfig):
    """Options of `inject` for MiSS; see `MiSSLinear`, and `AdapterConfig` for which layers they select.

    init_weights: True, zero; "mini", zero and of mini_r columns; False, at random.

    >>> import lorabook as lb
    >>> from lorabook.adapters import MiSSConfig
    >>> lb.inject(lb.MLP((64, 32, 10)), MiSSConfig(r=4, target_modules=["fc1"]))
    ['fc1']
    """

    method: ClassVar[str] = "miss"
    same: ClassVar[tuple] = ("miss_dropout", "mini_r", "init_weights")
    bias_word: ClassVar[str] = "MiSS_only"
    absent: ClassVar[tuple] = ("rank_pattern",)

    r: int = 64
    miss_dropout: float = 0.0
    mini_r: int = 1
    init_weights: bool | str = True

    def __post_init__(self):
        super().__post_init__()
        self._set(
            miss_dropout=check_probability("miss_dropout", self.miss_dropout), mini_r=check_r(self.mini_r, "mini_r")
        )
        if self.init_weights != "mini":
            if self.init_weights == "bat":
                raise InputError('init_weights="bat" is not implemented here; expected true, false or "mini"')
            check_flag("init_weights", self.init_weights)


class MiSSLinear(AdditiveAdapter):
    """y = x W^T + b + t D with t_i = sum_k x_(k r + i): x in shards of r columns, added up before one product.

    miss_block = D (r, d_out), zero at the start. W_eff adds D^T to every r columns of W, cut off at the end; so the
    update has a rank of up to r by half of LoRA's parameters. Of the "mini" form D (r, mini_r) stands d_out / mini_r
    times side by side. `order` is as in `LoRALinear`.

    dy = dt D + t dD, and t is x S^T, where S (r, d_in) holds an identity for each shard:

        dD = t^T dout               (r, d_out)
        dx = dout W + (dout D^T) S  (N, d_in): the same for every shard

    D side by side is D times a row of identities as well: its gradient is the sum over the copies.
    """

    method, peft_type, Config = "miss", "MISS", MiSSConfig
    tensors: ClassVar[dict] = {"miss_block": "miss_block"}

    def __init__(self, base, r=64, *, miss_dropout=0.0, mini_r=1, init_weights=True, rng=None, order="auto"):
        """Wrap the Linear `base`, sharing its arrays. `rng`: numpy Generator or seed of a random start (default 0)."""
        super().__init__(base, {})
        (shape,) = self.shapes(*base.shape, r=r, mini_r=mini_r, init_weights=init_weights).values()
        rng = np.random.default_rng(0 if rng is None else rng)
        self.r, self.order = check_r(r), check_order(order)
        self.dropout = check_probability("miss_dropout", miss_dropout)
        self.start(miss_block=np.zeros(shape) if init_weights else uniform(rng, *shape))

    @classmethod
    def shapes(cls, d_out, d_in, where="this layer", *, r, mini_r=1, init_weights=True, **options):
        if r > d_in:
            raise InputError(f"r must be at most {d_in}, the inputs of {where}; got {short(r)}")
        if init_weights != "mini":
            return {"miss_block": (r, d_out)}
        if d_out % mini_r:
            raise InputError(f"mini_r must divide {d_out}, the outputs of {where}; got {short(mini_r)}")
        return {"miss_block": (r, mini_r)}

    @classmethod
    def update_of(cls, tensors, path, **options):
        raise InputError(f"{path}: the update of {cls.method} is cut to the layer's size; give the model")

    @property
    def block(self):
        """D (r, d_out)."""
        D = self.params["miss_block"]
        return array_namespace(D).tile(D, (1, self.shape[0] // D.shape[1]))

    def delta_weight(self):
        D, d_in = self.block, self.shape[1]
        return (
            array_namespace(D).tile(D.T, (1, -(-d_in // self.r)))[:, :d_in] * 1
        )  # a new array, for whoever adds to it

    def delta_backward(self, d_delta):
        return self._from_block(self._shards(d_delta).T)

    def _from_block(self, dD):
        """The gradient of the parameter from that of D."""
        xp, own = array_namespace(dD), self.params["miss_block"].shape[1]
        return self.trained({"miss_block": xp.sum(xp.reshape(dD, (self.r, -1, own)), axis=1)})

    def _shards(self, x):
        """t: the sum (..., r) of the shards of x (..., d_in)."""
        xp, more = array_namespace(x), -x.shape[-1] % self.r
        if more:
            x = xp.concat([x, xp.zeros_like(x[..., :more])], axis=-1)
        return xp.sum(xp.reshape(x, (*x.shape[:-1], -1, self.r)), axis=-2)

    def forward_apart(self, x, run):
        M = self.dropout_mask(x, run)
        t = self._shards(x if M is None else x * M)
        y, own = self.base_layer.forward(x, run)
        y += F.linear(t, self.block.T)[0]
        return y, (None, own, t, M, "factored")

    def backward(self, dout, cache, need_dx=True):
        if cache is None or cache[-1] != "factored":
            return super().backward(dout, cache, need_dx)
        _, own, t, M, _ = cache
        dx, also = self.base_layer.backward(dout, own, need_dx)
        grads = self._from_block(F.rows(t).T @ F.rows(dout)) | prefixed(BASE, also)
        if not need_dx:
            return None, grads
        xp, d_in = array_namespace(dout), self.shape[1]
        branch = xp.tile(dout @ self.block.T, (*[1] * (dout.ndim - 1), -(-d_in // self.r)))[..., :d_in]
        return dx + (branch if M is None else branch * M), grads
