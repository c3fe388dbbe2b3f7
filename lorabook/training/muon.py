"""Muon, orthogonalised momentum (Jordan et al. 2024), on LoRA's factors, as in LoRA-Muon (arXiv:2606.12921).

m is the mean of the gradients M of one factor. With m = U diag(s) V^T the step goes along U V^T: among all steps of
spectral norm 1 it is the one with the largest <m, step> = sum s_i, and no direction of the factor outruns another.

An SVD is slow on a GPU, and an odd polynomial of m changes its singular values only,

    X (a + b X^T X + c (X^T X)^2) = U diag(a s + b s^3 + c s^5) V^T,

so five rounds of one that sends all of (0, 1] to about 1 (Newton-Schulz), from X = m / |m|, give U diag(t) V^T with t
in [0.68, 1.14] for s above a hundredth of |m|; smaller ones are on their way. Exact ones are not needed.

The step is lr 0.2 sqrt(max(rows, columns)) U diag(t) V^T: its numbers are about as large as those of AdamW, so that one
learning rate fits the factors and all other parameters, which follow AdamW. That scale, the mean in m and the decay
are choices of this file, and may differ from the paper's.
"""

import math

from ..backend import array_namespace, asarray_like
from ..errors import check_number
from .factors import Paired, without_factors
from .optim import AdamW

COEFFICIENTS, ROUNDS = (3.4445, -4.7750, 2.0315), 5
TINY = 1e-30  # numbers below it count as 0: B starts there, and so does the gradient of A


def orthogonalized(m):
    """U diag(t) V^T of m = U diag(s) V^T, with t near 1; 0 of 0."""
    xp, tall = array_namespace(m), m.shape[0] > m.shape[1]
    a, b, c = COEFFICIENTS
    X = m.T if tall else m
    X = X / xp.maximum(xp.max(xp.abs(X)), asarray_like(TINY, X))  # so that no square underflows
    X = X / xp.maximum(xp.sqrt(xp.sum(X * X)), asarray_like(1, X))
    for _ in range(ROUNDS):
        S = X @ X.T  # of the smaller side
        X = a * X + (b * S + c * (S @ S)) @ X
    return X.T if tall else X


class Muon(Paired, AdamW):
    """m <- momentum m + (1 - momentum) g;  p <- p (1 - lr weight_decay) - lr 0.2 sqrt(max(rows, columns)) U V^T.

    That is for the factors; the other parameters follow AdamW.
    """

    def __init__(self, lr, momentum=0.95, **options):
        """options: what else AdamW takes."""
        super().__init__(lr, **options)
        self.momentum = check_number("momentum", momentum, below=1)

    def prepare(self, params):
        """Create the state of every parameter that has none yet, as zeros: of a factor m alone."""
        others = without_factors(params)
        super().prepare(others)
        self.zeros("m", {name: param for name, param in params.items() if name not in others})

    def apply(self, params, grads, lr, scale=None, alive=None):
        others = without_factors(params)
        super().apply(others, without_factors(grads), lr, scale, alive)
        for name in params.keys() - others.keys():
            p, g, m = params[name], grads[name], self.state["m"][name]
            xp = array_namespace(p)
            if scale is not None:
                g = g * asarray_like(scale, g)
            new = self.momentum * m + (1 - self.momentum) * g
            rate = lr * self.rate_of(name)
            moved = (1 - rate * self.weight_decay) * p - (rate * 0.2 * math.sqrt(max(p.shape))) * orthogonalized(new)
            p[...] = moved if alive is None else xp.where(alive, moved, p)
            m[...] = new if alive is None else xp.where(alive, new, m)
