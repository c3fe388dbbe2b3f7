"""The smallest variants, for tests, each a row in METHODS.

Gain: W_eff = W * (1 + g 1^T), a gain for each output. Scale: the same of the whole output, so of the bias too, as IA3
is. Outer: W_eff = W + u v^T, an update that is added.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lorabook.adapters import Adapter, AdapterConfig, AdditiveAdapter
from lorabook.backend import array_namespace, asarray_like


@dataclass(frozen=True, kw_only=True)
class GainConfig(AdapterConfig):
    method: ClassVar[str] = "gain"


class Gain(Adapter):
    method, peft_type, Config, tensors = "gain", "GAIN", GainConfig, {"gain": "gain.weight"}

    def __init__(self, base, rng=None):
        super().__init__(base, {})
        self.params["gain"] = asarray_like(np.zeros(base.weight.shape[0]), base.weight)
        self.trainable = {"gain"}

    @classmethod
    def shapes(cls, d_out, d_in, where="this layer"):
        return {"gain": (d_out,)}

    def effective(self, W):
        return W * (1 + self.params["gain"])[:, None], W

    def effective_backward(self, dW_eff, W):
        """dW_eff = dW * (1 + g 1^T) + W * (dg 1^T):  dg = (dW_eff * W) 1."""
        own = {"gain": array_namespace(W).sum(dW_eff * W, axis=1)} if "gain" in self.trainable else {}
        return own, dW_eff * (1 + self.params["gain"])[:, None]


@dataclass(frozen=True, kw_only=True)
class ScaleConfig(AdapterConfig):
    method: ClassVar[str] = "scale"


class Scale(Gain):
    """y = (x W^T + b) * (1 + g)."""

    method, peft_type, Config, changes_bias = "scale", "SCALE", ScaleConfig, True

    def bias_of(self, b):
        return b * (1 + self.params["gain"])

    def bias_backward(self, db_eff):
        """db_eff = db * (1 + g) + b * dg."""
        own = {"gain": db_eff * self.bias} if "gain" in self.trainable else {}
        return own, db_eff * (1 + self.params["gain"])


@dataclass(frozen=True, kw_only=True)
class OuterConfig(AdapterConfig):
    method: ClassVar[str] = "outer"


class Outer(AdditiveAdapter):
    """W + u v^T, u = 0 to start with."""

    method, peft_type, Config, tensors = "outer", "OUTER", OuterConfig, {"u": "outer_u", "v": "outer_v.weight"}

    def __init__(self, base, rng=None):
        super().__init__(base, {})
        (d_out, d_in), rng = base.shape, np.random.default_rng(rng)
        self.params = {
            "u": asarray_like(np.zeros(d_out), base.like),
            "v": asarray_like(rng.normal(size=d_in), base.like),
        }
        self.trainable = {"u", "v"}

    @classmethod
    def shapes(cls, d_out, d_in, where="this layer"):
        return {"u": (d_out,), "v": (d_in,)}

    @classmethod
    def update_of(cls, tensors, path, **options):
        return np.outer(tensors["u"], tensors["v"]).astype("f8")

    def delta_weight(self):
        return self.params["u"][:, None] * self.params["v"][None, :]

    def delta_backward(self, d_delta):
        """d_delta = du v^T + u dv^T:  du = d_delta v,  dv = d_delta^T u."""
        own = {"u": d_delta @ self.params["v"], "v": d_delta.T @ self.params["u"]}
        return {name: grad for name, grad in own.items() if name in self.trainable}
