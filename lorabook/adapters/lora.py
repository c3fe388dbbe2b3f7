"""LoRA: a frozen linear layer plus a trainable low-rank update (Hu et al. 2021, arXiv:2106.09685)."""

from typing import ClassVar

import numpy as np

from .. import functional as F
from ..backend import array_namespace
from ..errors import InputError
from ..files import short
from ..layers import MERGED, prefixed
from .additive import AdditiveAdapter, check_order
from .base import BASE
from .lora_config import LoRAConfig
from .rank_config import check_finite, check_probability, check_r, scaling_of
from .starts import begin, check_start, moves_base


class LoRALinear(AdditiveAdapter):
    """y = x W^T + b + s (xd A^T) B^T with W and b frozen, s = lora_alpha / r, xd = x o M.

    lora_A (r, d_in), lora_B (d_out, r). M is the inverted-dropout mask, entries 0 or 1 / (1 - lora_dropout). It acts
    on the branch, and only in training (`run.rng` given). Without dropout M = 1 and y = x (W + s B A)^T: the same sum,
    another contraction order. `order` is "factored", "merged", or "auto"; see `AdditiveAdapter`. The merged order keeps
    W + s B A, an array of the size of W, until the backward pass; over a base that is held in 4 bits to save just that
    (QLoRA, Dettmers et al. 2023, arXiv:2305.14314), "auto" is "factored". init_lora_weights: one of `starts`; after
    some, W stands for what is left of the base's weight, a `Residual`.

    Backward, with z = xd A^T and dL = <dout, dy>:

        dy = dx W^T + s dz B^T + s z dB^T,     dz = (dx o M) A^T + xd dA^T

        dB = s dout^T z             (d_out, r)
        dz = s dout B               (N, r)
        dA = dz^T xd                (r, d_in)
        dx = dout W + (dz A) o M    (N, d_in)      = dout (W + s B A) without dropout

    The full gradient dW = dout^T x (d_out, d_in) is never formed: associating from the r side costs
    O(N r (d_in + d_out)) instead of O(N d_in d_out). At B = 0, dA = 0 while dB does not vanish: training starts with B.

    >>> import numpy as np, lorabook as lb
    >>> from lorabook.layers import Linear
    >>> layer = lb.LoRALinear(Linear.random(64, 32, np.random.default_rng(0)), r=4)
    >>> y, cache = layer(np.ones((5, 64), "f4"))
    >>> dx, grads = layer.backward(np.ones_like(y), cache)
    >>> {name: (grad.shape, bool(grad.any())) for name, grad in grads.items()}
    {'lora_A': ((4, 64), False), 'lora_B': ((32, 4), True)}
    """

    method, peft_type, Config = "lora", "LORA", LoRAConfig
    tensors: ClassVar[dict] = {"lora_A": "lora_A.weight", "lora_B": "lora_B.weight"}
    check_base = classmethod(check_start)

    def __init__(
        self,
        base,
        r=8,
        lora_alpha=8,
        *,
        use_rslora=False,
        lora_dropout=0.0,
        init_lora_weights=True,
        rng=None,
        order="auto",
    ):
        """Wrap the Linear `base`, sharing its arrays. `rng`: numpy Generator or seed for the factors (default 0)."""
        check_order(order)
        super().__init__(base, {})  # complains of another base before its weight is asked for
        self.r, self.order = check_r(r), order
        self.shapes(*base.shape, r=self.r)
        self.lora_alpha, self.use_rslora = check_finite("lora_alpha", lora_alpha), use_rslora
        self.scaling = scaling_of(self.r, lora_alpha, use_rslora)
        self.dropout = self.lora_dropout = check_probability("lora_dropout", lora_dropout)
        alpha = {"lora_alpha": lora_alpha, "use_rslora": use_rslora}
        self.check_base(base, r=self.r, init_lora_weights=init_lora_weights, **alpha)
        self.children[BASE] = begin(self, init_lora_weights, rng)

    @classmethod
    def is_peft(cls, options):
        return super().is_peft(options) and options.get("use_dora") is not True

    @classmethod
    def shapes(cls, d_out, d_in, where="this layer", *, r, **options):
        if r > d_out * d_in:  # a slip, and memory for nothing
            weights = f"{d_out * d_in}, the number of weights of {where}, {d_out}x{d_in}"
            raise InputError(f"r must be at most {weights}; got {short(r)}")
        return {"lora_A": (r, d_in), "lora_B": (d_out, r)}

    @classmethod
    def scale(cls, *, r, lora_alpha, use_rslora=False, **options):
        return scaling_of(r, lora_alpha, use_rslora)

    @classmethod
    def update_of(cls, tensors, path, *, r, init_lora_weights=True, **options):
        if moves_base(init_lora_weights):
            return super().update_of(tensors, path)
        A, B = (tensors.get(name) for name in cls.tensors)
        if A is None or B is None or A.ndim != 2 or B.ndim != 2 or not r == A.shape[0] == B.shape[1]:
            came = " and ".join("none" if factor is None else f"{factor.shape}" for factor in (A, B))
            needs = f"lora_A (r, d_in) and lora_B (d_out, r) with r = {short(r)}"
            raise InputError(f"{path} needs {needs}, as adapter_config.json says; got {came}")
        with np.errstate(all="ignore"):  # whoever reads it looks
            return cls.scale(r=r, **options) * B.astype("f8") @ A.astype("f8")

    def delta_weight(self):
        """s B A, (d_out, d_in)."""
        return (self.scaling * self.params["lora_B"]) @ self.params["lora_A"]

    def delta_backward(self, d_delta):
        """d_delta = s dB A + s B dA:  dA = s B^T d_delta,  dB = s d_delta A^T."""
        grads = {}
        if "lora_A" in self.trainable:
            grads["lora_A"] = (self.scaling * self.params["lora_B"]).T @ d_delta  # (r, d_in)
        if "lora_B" in self.trainable:
            grads["lora_B"] = self.scaling * (d_delta @ self.params["lora_A"].T)  # (d_out, r)
        return grads

    def forward_apart(self, x, run):
        M = self.dropout_mask(x, run)
        z = F.linear(x if M is None else x * M, self.params["lora_A"])[0]  # (..., r)
        y, own = self.base_layer.forward(x, run)  # (..., d_out)
        y += F.linear(z, self.scaling * self.params["lora_B"])[0]
        return y, (x, own, (z, M))

    def backward(self, dout, cache, need_dx=True):
        if cache is None:
            raise InputError(MERGED)
        x, own, apart = cache  # own: W + s B A, or else what the base keeps of its pass
        z, M = apart or (None, None)
        A, B, s = self.params["lora_A"], self.params["lora_B"], self.scaling
        shape, dout, x = x.shape, F.rows(dout), F.rows(x)  # (N, d_out), (N, d_in)
        xd = x if M is None else x * F.rows(M)
        z = F.rows(z) if apart else xd @ A.T  # (N, r)

        dz = s * (dout @ B)  # (N, r)
        grads = {}
        if "lora_A" in self.trainable:
            grads["lora_A"] = (xd.T @ dz).T  # (r, d_in); dz^T xd takes longer if xd is large
        if "lora_B" in self.trainable:
            grads["lora_B"] = s * (dout.T @ z)  # (d_out, r)
        if apart:
            dx, also = self.base_layer.backward(dout, own, need_dx)
        else:
            dx, dW, dbias = F.linear_backward(dout, (x, own), self.base_layer.needs(need_dx))
            also = self.base_layer.grads_of_weight(dW, dbias, None)
        grads |= prefixed(BASE, also)  # a bias; W only if it was unfrozen: the large product
        if not need_dx:
            return None, grads
        if apart:
            dx += dz @ A if M is None else (dz @ A) * F.rows(M)
        return array_namespace(dx).reshape(dx, shape), grads
