"""An invariant Adam for LoRA's factors, after the idea of LoRA-RITE (Yen et al. 2024, arXiv:2410.20625).

With W + s B A, the factor B = Q S has an orthonormal basis Q (d_out, r) of its columns and a size S = (B^T B)^(1/2).
The gradient of A is g_A = s B^T G = S (s Q^T G): without S, it is the full gradient in the coordinates of Q,

    h = S^-1 g_A.      A step -lr S^-1 n of A changes B A by -lr Q n, to first order.

(M^-1 A, B M) in place of (A, B) keeps the column space, so that its Q is Q R with R orthogonal, h becomes R^T h, and
all that turns with R gives the same Q n. Adam's division by single numbers does not turn; one by a matrix does:

    V <- b2 P V P^T + (1 - b2) h h^T / d_in          (r, r), the mean of the squares
    e <- b2 (e + max |eigenvalues of V before - of P V P^T|)
    m <- b1 P m + (1 - b1) ((V + e I) / (1 - b2^t) + eps^2 I)^(-1/2) h
    A <- A (1 - lr weight_decay) - lr S^-1 m / (1 - b1^t)

P = Q^T Q_before (r, r) turns what is kept into today's basis. What P loses of V, since the space has moved, is given
back as e: no direction may seem new and small. For B the same holds with A^T, B^T in place of B, A.

B starts at 0, so `reg` is added to the diagonals of B^T B and A A^T; the invariance holds as far as it is small. How
the means decay and are corrected for their start follows AdamW, and may differ from the paper's algorithm.
"""

import numpy as np

from ..backend import array_namespace, asarray_like
from ..errors import check_number
from .factors import Paired, gram, spectra, without_factors
from .optim import AdamW

MATRICES = ("second", "escaped", "basis")


class RITE(Paired, AdamW):
    """The factors as above, the other parameters by AdamW. state: m; second V, escaped e, basis Q_before of factors."""

    positive = ("v", "escaped")

    def __init__(self, lr, *, reg=1e-6, **options):
        """options: what else AdamW takes."""
        super().__init__(lr, **options)
        self.reg, self.eps = check_number("reg", reg, positive=True), check_number("eps", self.eps, positive=True)
        self.state |= {slot: {} for slot in MATRICES}

    def prepare(self, params):
        """Create the state of every parameter that has none yet, as zeros."""
        others = without_factors(params)
        super().prepare(others)
        self.zeros("m", {name: param for name, param in params.items() if name not in others})
        for a, b in self.pairs(params).values():
            square = params[a] @ params[a].T
            for name, other in ((a, b), (b, a)):
                self.zeros("second", {name: square})
                self.zeros("escaped", {name: square[:1, :1]})
                self.zeros("basis", {name: params[other]})

    def apply(self, params, grads, lr, scale=None, alive=None):
        found, others = self.pairs(params), without_factors(params)
        super().apply(others, without_factors(grads), lr, scale, alive)
        squares = {b: gram(params[a]) for a, b in found.values()} | {a: gram(params[b].T) for a, b in found.values()}
        known = spectra(squares)  # under the name of the factor that it is for
        news = []
        for a, b in found.values():
            for name, other in ((a, b), (b, a)):
                news.append((name, self.moved(name, params, grads[name], params[other], known[name], lr, scale, alive)))
        for name, new in news:
            old = {slot: self.state[slot][name] for slot in ("m", *MATRICES)} | {"param": params[name]}
            for slot, array in new.items():
                xp = array_namespace(array)
                old[slot][...] = array if alive is None else xp.where(alive, array, old[slot])

    def moved(self, name, params, g, other, square, lr, scale, alive):
        """The factor and its state after the step, {"param", slot: array}; square: the `Spectrum` of the other's."""
        xp, (b1, b2), t = array_namespace(g), self.betas, self.step_count
        p, lr = params[name], lr * self.rate_of(name)
        V, e, Q_before, m = (self.state[slot][name] for slot in (*MATRICES, "m"))
        if scale is not None:
            g = g * asarray_like(scale, g)
        if alive is not None:
            g = xp.where(alive, g, xp.zeros_like(g))  # no eigenvalues are found of NaN
        if is_B := name.endswith("lora_B"):
            p, g, m, other, Q_before = p.T, g.T, m.T, other.T, Q_before.T
        shrink = square.power(-0.5, self.reg, g)  # S^-1 (r, r)
        Q, h = other @ shrink, shrink @ g  # (d, r), (r, n)
        P = Q.T @ Q_before
        turned = P @ V @ P.T
        before, after = (found.values for found in spectra({"before": as_f8(V), "after": as_f8(turned)}).values())
        e = b2 * (e + xp.astype(xp.max(xp.abs(before - after)), g.dtype))
        V = b2 * turned + ((1 - b2) / g.shape[1]) * (h @ h.T)
        mean = as_f8(V + e * asarray_like(np.eye(g.shape[0]), g)) / (1 - b2**t)
        m = b1 * (P @ m) + (1 - b1) * (spectra({name: mean})[name].power(-0.5, self.eps**2, g) @ h)
        p = (1 - lr * self.weight_decay) * p - (lr / (1 - b1**t)) * (shrink @ m)
        if is_B:
            p, m, Q = p.T, m.T, Q.T
        return {"param": p, "second": V, "escaped": e, "basis": Q, "m": m}


def as_f8(S):
    """The symmetric part of S, in float64."""
    xp = array_namespace(S)
    S = xp.astype(S, xp.float64)
    return (S + S.T) / 2
