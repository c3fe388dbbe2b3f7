"""LoRA-Pro (Wang et al. 2024, arXiv:2407.18242): the steps of A and B that come nearest to a step of full fine-tuning.

With W + s B A, G the gradient of the full weight, g_A = s B^T G and g_B = s G A^T, steps (a, b) of the factors change
the weight by E = s (B a + b A) to first order. The nearest E to G in the Frobenius norm has, for every da and db,

    <E - G, s B da> = 0      that is     s B^T E = g_A
    <E - G, s db A> = 0      that is     s E A^T = g_B

Both hold for

    a = (B^T B)^-1 g_A / s^2 + X A
    b = (I - B (B^T B)^-1 B^T) g_B (A A^T)^-1 / s^2 - B X

with any X (r, r), since B (X A) and (B X) A cancel; E is then G less what lies outside both spaces,

    E = G - (I - P_B) G (I - P_A),    P_B = B (B^T B)^-1 B^T,    P_A = A^T (A A^T)^-1 A,

and G itself is not needed. X is free; the one that keeps (a, b) nearest to (g_A, g_B) has, with (a_0, b_0) for X = 0,

    <a_0 + X A - g_A, dX A> - <b_0 - B X - g_B, B dX> = 0      for every dX, that is
    B^T B X + X A A^T = B^T (b_0 - g_B) - (a_0 - g_A) A^T = C.

With B^T B = U diag(p) U^T and A A^T = V diag(q) V^T, this Sylvester equation is one division: the entries of U^T X V
are those of U^T C V over p_i + q_j. B starts at 0, so `reg` is added to p and q. With AdamW's rule, which looks at
single numbers, the sum of both steps is no longer E exactly.
"""

from ..backend import array_namespace
from ..errors import check_number
from .factors import OverFactors
from .optim import SGD, AdamW


def sylvester(BB, AA, C, reg=0.0):
    """X (r, r) of S X + X T = C, for S + reg I and T + reg I of the spectra BB and AA of S and T. In the dtype of C."""
    xp = array_namespace(C)
    inner = BB.U.T @ xp.astype(C, xp.float64) @ AA.U
    inner = inner / ((BB.values[:, None] + reg) + (AA.values[None, :] + reg))
    return xp.astype(BB.U @ inner @ AA.U.T, C.dtype)


class LoRAPro(OverFactors):
    """The nearest step to that of full fine-tuning, with the X that is nearest to LoRA's, in front of SGD or AdamW."""

    def __init__(self, lr, *, scaling=1.0, reg=1e-6, **rule):
        """scaling: s of the layers. rule: what else SGD or AdamW takes."""
        super().__init__(lr, **rule)
        self.scaling = check_number("scaling", scaling, positive=True)
        self.reg = check_number("reg", reg, positive=True)

    def directions(self, A, B, g_A, g_B, AA, BB):
        a = (BB.inverse(self.reg, g_A) @ g_A) / self.scaling**2  # (r, d_in)
        b = (g_B @ AA.inverse(self.reg, g_B)) / self.scaling**2  # (d_out, r)
        b = b - B @ (BB.inverse(self.reg, b) @ (B.T @ b))
        X = sylvester(BB, AA, B.T @ (b - g_B) - (a - g_A) @ A.T, self.reg)
        return a + X @ A, b - B @ X


class LoRAProSGD(LoRAPro, SGD):
    """SGD along these steps."""


class LoRAProAdamW(LoRAPro, AdamW):
    """AdamW with these steps for its gradients."""
