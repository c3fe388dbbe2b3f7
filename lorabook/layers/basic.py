"""The layers that models are made of: linear map, embedding, norms, activations."""

import numpy as np

from .. import functional as F
from ..backend import array_namespace, scatter_add
from ..errors import InputError
from .base import RUN, Layer


class Linear(Layer):
    """y = x W^T + b. weight (d_out, d_in), bias (d_out,) or None; see `functional.linear` for the derivation.

    dense: whether it holds W as it multiplies by it; of another kind, `weight` makes it anew at each call.
    """

    dense = True

    def __init__(self, weight, bias=None):
        array_namespace(weight, bias)
        if weight.ndim != 2 or (bias is not None and tuple(bias.shape) != (weight.shape[0],)):
            shapes = f"{tuple(weight.shape)} and {None if bias is None else tuple(bias.shape)}"
            raise InputError(f"expected weight (d_out, d_in) and bias (d_out,); got {shapes}")
        super().__init__({"weight": weight} if bias is None else {"weight": weight, "bias": bias})

    @classmethod
    def random(cls, d_in, d_out, rng):
        """Weight and bias ~ U(+-1 / sqrt(d_in)) in float32, the field's default (He et al. 2015, arXiv:1502.01852)."""
        bound = d_in**-0.5
        return cls(
            rng.uniform(-bound, bound, (d_out, d_in)).astype("f4"), rng.uniform(-bound, bound, d_out).astype("f4")
        )

    def forward(self, x, run=RUN):
        y, (x, weight) = F.linear(x, self.params["weight"], self.params.get("bias"))
        return y, (x if "weight" in self.trainable else None, weight)  # for a frozen weight, x is needed no more

    def backward(self, dout, cache, need_dx=True):
        dx, dweight, dbias = F.linear_backward(dout, cache, self.needs(need_dx))
        return dx, {n: g for n, g in (("weight", dweight), ("bias", dbias)) if g is not None}

    @property
    def weight(self):
        """W (d_out, d_in)."""
        return self.params["weight"]

    @property
    def bias(self):
        """b (d_out,), or None."""
        return self.params.get("bias")

    @property
    def effective_bias(self):
        """What forward adds (d_out,), or None; an adapter may have changed it."""
        return self.bias

    @property
    def shape(self):
        """(d_out, d_in)."""
        return tuple(self.params["weight"].shape)

    @property
    def like(self):
        """An array on the backend and device, and in the dtype, that what is added to this layer belongs in."""
        return self.params["weight"]

    def effective_weight(self, N, run=RUN):
        """(the matrix (d_out, d_in) that forward multiplies N rows by, cache); None if there is no such one matrix."""
        return self.weight, None

    def grads_of_weight(self, dweight, dbias, cache):
        """{name: gradient} of what trains, from the gradients of the effective weight and of the bias."""
        return {name: g for name, g in (("weight", dweight), ("bias", dbias)) if name in self.trainable}


class LayerNorm(Layer):
    """weight * (x - mean) / sqrt(var + eps) + bias along the last axis; see `functional.layer_norm`."""

    def __init__(self, weight, bias, eps=1e-5):
        super().__init__({"weight": weight, "bias": bias})
        self.eps = eps

    @classmethod
    def unit(cls, d, eps=1e-5):
        """weight 1, bias 0, in float32."""
        return cls(np.ones(d, "f4"), np.zeros(d, "f4"), eps)

    def forward(self, x, run=RUN):
        return F.layer_norm(x, self.params["weight"], self.params["bias"], self.eps)

    def backward(self, dout, cache, need_dx=True):
        dx, dweight, dbias = F.layer_norm_backward(dout, cache, self.needs(need_dx))
        return dx, {n: g for n, g in (("weight", dweight), ("bias", dbias)) if g is not None}


class RMSNorm(Layer):
    """weight * x / sqrt(mean(x^2) + eps) along the last axis; see `functional.rms_norm`."""

    def __init__(self, weight, eps=1e-6):
        super().__init__({"weight": weight})
        self.eps = eps

    @classmethod
    def unit(cls, d, eps=1e-6):
        """weight 1, in float32."""
        return cls(np.ones(d, "f4"), eps)

    def forward(self, x, run=RUN):
        y, cache = F.rms_norm(x, self.params["weight"], self.eps)
        return y, cache if run.keep else None

    def backward(self, dout, cache, need_dx=True):
        dx, dweight = F.rms_norm_backward(dout, cache, self.needs(need_dx))
        return dx, {} if dweight is None else {"weight": dweight}


class Activation(Layer):
    """Elementwise y = g(x): "relu", "gelu" (erf), "gelu_tanh" or "silu".

    overwrite: it stands right behind a linear layer, and before nothing but one. Neither needs the array that it hands
    over, y or dx, so their memory is used again.
    """

    def __init__(self, name, overwrite=False):
        super().__init__()
        if name not in F.ACTIVATIONS:
            raise InputError(f"unknown activation {name!r}; expected one of {', '.join(F.ACTIVATIONS)}")
        self.name, self.overwrite = name, overwrite

    def forward(self, x, run=RUN):
        """Without `run.keep` there is no cache."""
        function = F.ACTIVATIONS[self.name] if run.keep else F.VALUES.get(self.name, F.ACTIVATIONS[self.name])
        y, *cache = function(x, overwrite=self.overwrite)
        return y, cache[0] if run.keep else None

    def backward(self, dout, cache, need_dx=True):
        return (F.activation_backward(dout, cache, self.overwrite) if need_dx else None), {}


class Softmax(Layer):
    """Softmax along the last axis."""

    def forward(self, x, run=RUN):
        return F.softmax(x)

    def backward(self, dout, cache, need_dx=True):
        return (F.softmax_backward(dout, cache) if need_dx else None), {}


class Embedding(Layer):
    """y = weight[ids]. weight (n, d), ids (...) integers in 0 .. n - 1 -> y (..., d). Ids have no gradient."""

    def __init__(self, weight):
        super().__init__({"weight": weight})

    def check_input(self, ids):
        n = self.params["weight"].shape[0]
        if ids.size and not 0 <= ids.min() <= ids.max() < n:
            raise InputError(f"ids must be from 0 to {n - 1}; got {ids.min()} to {ids.max()}")

    def forward(self, ids, run=RUN):
        weight = self.params["weight"]
        xp = array_namespace(ids, weight)
        if xp is np:
            self.check_input(ids)
        return xp.reshape(xp.take(weight, xp.reshape(ids, (-1,)), axis=0), (*ids.shape, weight.shape[1])), ids

    def backward(self, dout, ids, need_dx=True):
        """dweight[i] = sum of dout where ids = i: each row of dout is added to the row it was taken from."""
        if "weight" not in self.trainable:
            return None, {}
        xp = array_namespace(dout, ids)
        dweight = xp.zeros_like(self.params["weight"])
        scatter_add(dweight, xp.reshape(ids, (-1,)), F.rows(dout))
        return None, {"weight": dweight}
