"""LoRA: a frozen linear layer plus a trainable low-rank update (Hu et al. 2021, arXiv:2106.09685)."""

import contextlib
import math
import numbers
import sys

import numpy as np

from .. import functional as F
from ..backend import array_namespace, asarray_like
from ..configs import short
from ..errors import InputError
from ..layers import MERGED, Layer, Linear

INITIALISATIONS = (True, "gaussian", False)


def scaling_of(r, lora_alpha, use_rslora):
    """lora_alpha / r, or lora_alpha / sqrt(r) with rank-stabilised LoRA (Kalajdzievski 2023, arXiv:2312.03732)."""
    return float(check_alpha(lora_alpha)) / (math.sqrt(r) if use_rslora else r)


def check_alpha(lora_alpha):
    """lora_alpha as an int or float, or InputError: a finite number."""
    number = _number(lora_alpha)
    if number is None or not abs(number) <= sys.float_info.max:
        raise InputError(f"lora_alpha must be a finite number; got {short(lora_alpha)}")
    return number


def check_r(r):
    """r as an int, or InputError: a rank is a positive integer. Above the layer's smaller side it adds nothing."""
    if isinstance(r, bool) or not isinstance(r, numbers.Integral) or r < 1:
        raise InputError(f"r must be a positive integer; got {short(r)}")
    return int(r)


def check_fits(r, d_out, d_in, where="this layer"):
    """Raise InputError for a rank above the number of the layer's weights: a slip, and memory for nothing."""
    if r > d_out * d_in:
        raise InputError(f"r must be at most {d_out * d_in}, the number of weights of {where}, {d_out}x{d_in}; got {r}")


def check_dropout(lora_dropout):
    """lora_dropout as a float, or InputError: a probability p with 0 <= p < 1."""
    number = _number(lora_dropout)
    if number is None or not 0 <= number < 1:
        raise InputError(f"lora_dropout must be a number p with 0 <= p < 1; got {short(lora_dropout)}")
    return float(number)


def _number(value):
    """An int or float of a number, NumPy's too; None of anything else."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def check_initialisation(init_lora_weights):
    """init_lora_weights, or InputError: True, "gaussian" or False, and not 1 or 0."""
    if not isinstance(init_lora_weights, bool) and init_lora_weights != "gaussian":
        raise InputError(f"init_lora_weights must be one of {INITIALISATIONS}; got {short(init_lora_weights)}")
    return init_lora_weights


def initial_factors(init_lora_weights, r, d_out, d_in, rng):
    """Host float64 (lora_A, lora_B). One of the two is zero, so that the update starts at zero; except for False.

    True:        A ~ U(+-1 / sqrt(d_in)), B = 0      loralib's and PEFT's default
    "gaussian":  A ~ N(0, (1 / r)^2),     B = 0      the paper's words, with PEFT's variance
    False:       A ~ U(+-1 / sqrt(d_in)), B ~ U(+-1 / sqrt(r)): the update is not zero
    """
    check_initialisation(init_lora_weights)
    if init_lora_weights == "gaussian":
        lora_A = rng.normal(0, 1 / r, (r, d_in))
    else:
        lora_A = rng.uniform(-(d_in**-0.5), d_in**-0.5, (r, d_in))
    lora_B = rng.uniform(-(r**-0.5), r**-0.5, (d_out, r)) if init_lora_weights is False else np.zeros((d_out, r))
    return lora_A, lora_B


def merging_is_cheaper(N, d_in, d_out):
    """Whether x (W + s B A)^T costs fewer FLOPs than x W^T + s (x A^T) B^T.

    Beside the product with W they cost 2 r d_in d_out and 2 N r (d_in + d_out), so the rank cancels (Cherniuk et al.
    2023, RunLoRA, arXiv:2312.03415). The backward pass costs the same in both orders, provided that W + s B A is kept
    from the forward pass; so this threshold holds for the whole step.
    """
    return N * (d_in + d_out) > d_in * d_out


class LoRALinear(Layer):
    """y = x W^T + b + s (x~ A^T) B^T with W and b frozen, s = lora_alpha / r, x~ = x o M.

    lora_A (r, d_in), lora_B (d_out, r). M is the inverted-dropout mask, entries 0 or 1 / (1 - p); it acts on the LoRA
    branch only, and only in training (`rng` given). Without dropout M = 1 and y = x (W + s B A)^T: the same sum,
    another contraction order. `order` is "factored", "merged", or "auto": the cheaper one for the shapes at hand. The
    merged order keeps W + s B A, an array of the size of W, until the backward pass.

    Backward, with z = x~ A^T and dL = <dout, dy>:

        dy = dx W^T + s dz B^T + s z dB^T,     dz = (dx o M) A^T + x~ dA^T

        dB = s dout^T z             (d_out, r)
        dz = s dout B               (N, r)
        dA = dz^T x~                (r, d_in)
        dx = dout W + (dz A) o M    (N, d_in)      = dout (W + s B A) without dropout

    The full gradient dW = dout^T x (d_out, d_in) is never formed: associating from the r side costs
    O(N r (d_in + d_out)) instead of O(N d_in d_out). At B = 0, dA = 0 while dB does not vanish: training starts with B.

    `merge` puts W + s B A in the place of W, for inference at the base model's cost; `unmerge` puts the very same array
    W back, so its bits are restored. Gradients belong to the unmerged state, and so does all writing into parameters.
    """

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
        if not isinstance(base, Linear):
            raise InputError(f"base must be a Linear layer; got {type(base).__name__}")
        weight = base.params["weight"]
        d_out, d_in = weight.shape
        self.r = check_r(r)
        check_fits(self.r, d_out, d_in)
        self.lora_alpha, self.use_rslora = check_alpha(lora_alpha), use_rslora
        self.scaling = scaling_of(self.r, lora_alpha, use_rslora)
        self.lora_dropout = check_dropout(lora_dropout)
        if order not in ("auto", "factored", "merged"):
            raise InputError(f"order must be auto, factored or merged; got {short(order)}")
        self.order = order
        rng = np.random.default_rng(0 if rng is None else rng)
        lora_A, lora_B = initial_factors(init_lora_weights, self.r, d_out, d_in, rng)
        super().__init__(base.params | {"lora_A": asarray_like(lora_A, weight), "lora_B": asarray_like(lora_B, weight)})
        self.trainable = {"lora_A", "lora_B"}
        self._unmerged_weight = self._shared_weight = None

    @property
    def merged(self):
        """Whether `weight` currently contains the update."""
        return self._unmerged_weight is not None

    def delta_weight(self):
        """s B A, (d_out, d_in)."""
        return (self.scaling * self.params["lora_B"]) @ self.params["lora_A"]

    def merged_weight(self):
        """W + s B A, (d_out, d_in), a new array."""
        weight = self.delta_weight()
        weight += self.params["weight"]
        return weight

    def effective_weight(self, N, rng=None):
        """W + s B A, or None under dropout and in the factored order. See `layers.Linear.effective_weight`."""
        if self.merged:
            return self.params["weight"]
        if rng is not None and self.lora_dropout:
            return None
        if (shared := self._shared_weight) is not None:  # read once: threads may drop it
            return shared
        return self.merged_weight() if self._merges(N) else None

    def grads_of_weight(self, dweight, dbias):
        """As of a Linear, where a full gradient dW is there anyway: dA = s B^T dW and dB = s dW A^T."""
        grads = {"weight": dweight, "bias": dbias}
        if "lora_A" in self.trainable:
            grads["lora_A"] = (self.scaling * self.params["lora_B"]).T @ dweight
        if "lora_B" in self.trainable:
            grads["lora_B"] = self.scaling * (dweight @ self.params["lora_A"].T)
        return {name: g for name, g in grads.items() if name in self.trainable}

    def merge(self):
        """Put W + s B A in the place of W, which is kept. Merging twice changes nothing."""
        if not self.merged:
            self._unmerged_weight, self.params["weight"] = self.params["weight"], self.merged_weight()

    def unmerge(self):
        """Put W back: the same array, so the same bits."""
        if self.merged:
            self.params["weight"], self._unmerged_weight = self._unmerged_weight, None

    def _merges(self, N):
        """Whether forward takes the merged contraction order for N rows."""
        d_out, d_in = self.params["weight"].shape
        return self.order == "merged" or (self.order == "auto" and merging_is_cheaper(N, d_in, d_out))

    def forward(self, x, rng=None, keep=True):
        W, b, A, B = (self.params.get(name) for name in ("weight", "bias", "lora_A", "lora_B"))
        if self.merged:
            return F.linear(x, W, b)[0], None
        if (effective := self.effective_weight(math.prod(x.shape[:-1]), rng)) is not None:
            return F.linear(x, effective, b)[0], (x, effective, None, None)
        p = 0.0 if rng is None else self.lora_dropout
        M = asarray_like((rng.random(x.shape) >= p) / (1 - p), x) if p else None
        z = F.linear(x if M is None else x * M, A)[0]  # (..., r)
        y = F.linear(x, W, b)[0]  # (..., d_out)
        y += F.linear(z, self.scaling * B)[0]
        return y, (x, W, z, M)

    def backward(self, dout, cache, need_dx=True):
        if cache is None:
            raise InputError(MERGED)
        x, W, z, M = cache
        A, B, s = self.params["lora_A"], self.params["lora_B"], self.scaling
        merged_order = z is None  # then W is W + s B A already
        shape, dout, x = x.shape, F.rows(dout), F.rows(x)  # (N, d_out), (N, d_in)
        xd = x if M is None else x * F.rows(M)
        z = xd @ A.T if merged_order else F.rows(z)  # (N, r)

        dz = s * (dout @ B)  # (N, r)
        grads = {}
        if "lora_A" in self.trainable:
            grads["lora_A"] = (xd.T @ dz).T  # (r, d_in); dz^T x~ takes longer if x~ is large
        if "lora_B" in self.trainable:
            grads["lora_B"] = s * (dout.T @ z)  # (d_out, r)
        if "bias" in self.trainable:
            grads["bias"] = array_namespace(dout).sum(dout, axis=0)
        if "weight" in self.trainable:  # only if someone unfreezes W: the product that LoRA saves
            grads["weight"] = dout.T @ x
        if not need_dx:
            return None, grads
        dx = dout @ W  # (N, d_in)
        if not merged_order:
            dx += dz @ A if M is None else (dz @ A) * F.rows(M)
        return array_namespace(dx).reshape(dx, shape), grads

    def to(self, xp, dtype=None):
        self.unmerge()
        return super().to(xp, dtype)


@contextlib.contextmanager
def shared_weights(model, N, map=map):
    """Form W + s B A once for all forwards inside, N rows together, in each layer where that is the cheaper order.

    The factors must not change inside. `map` may form them on several threads.
    """
    layers = [layer for _, layer in model.named_layers() if isinstance(layer, LoRALinear)]
    layers = [layer for layer in layers if not (layer.merged or layer.lora_dropout) and layer._merges(N)]
    try:
        for layer, weight in zip(layers, map(LoRALinear.merged_weight, layers), strict=True):
            layer._shared_weight = weight
        yield
    finally:
        for layer in layers:
            layer._shared_weight = None
