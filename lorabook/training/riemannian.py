"""Riemannian preconditioning of LoRA's factors (Zhang and Pilanci 2024, arXiv:2402.02347), also called scaled GD.

With W + s B A, G the gradient of the full weight, g_A = s B^T G and g_B = s G A^T:

    a = (B^T B)^-1 g_A                b = g_B (A A^T)^-1

Derivation. A step (-lr a, -lr b) of the factors changes the product by d(BA) = -lr (B a + b A) to first order. Measure
a step of A by what it does to the product, |B a|^2 = <a, B^T B a>, instead of by |a|^2. The steepest descent of
<g_A, a> in this metric has B^T B a = g_A, and likewise b A A^T = g_B in |b A|^2. Then

    B a + b A = s (P_B G + G P_A),    P_B = B (B^T B)^-1 B^T,    P_A = A^T (A A^T)^-1 A

depends on the product's column and row space only: (M^-1 A, B M) in place of (A, B) gives the same change of B A, since
a becomes M^-1 a and b becomes b M. With AdamW's rule, which looks at single numbers, this is no longer exact.

B starts at 0, so `reg` is added to the diagonals of B^T B and A A^T; the invariance holds as far as it is small.
"""

from ..errors import check_number
from .factors import OverFactors
from .optim import SGD, AdamW


class Riemannian(OverFactors):
    """a = (B^T B + reg I)^-1 g_A, b = g_B (A A^T + reg I)^-1, in front of SGD or AdamW."""

    def __init__(self, lr, *, reg=1e-2, **rule):
        """rule: what else SGD or AdamW takes."""
        super().__init__(lr, **rule)
        self.reg = check_number("reg", reg, positive=True)

    def directions(self, A, B, g_A, g_B, AA, BB):
        return BB.inverse(self.reg, g_A) @ g_A, g_B @ AA.inverse(self.reg, g_B)


class RiemannianSGD(Riemannian, SGD):
    """SGD along the preconditioned gradients."""


class RiemannianAdamW(Riemannian, AdamW):
    """AdamW whose gradients are the preconditioned ones."""
