"""LoRA-FA (Zhang et al. 2023, arXiv:2308.03303): A stays what it was drawn as, and B follows a corrected gradient.

With W + s B A, G the gradient of the full weight and g_B = s G A^T, a step b of B changes the weight by s b A. The one
nearest to G in the Frobenius norm has, for every db,

    <s b A - G, s db A> = 0      that is     s^2 b A A^T = s G A^T = g_B,      so

    b = g_B (A A^T)^-1 / s^2     and         s b A = G A^T (A A^T)^-1 A,

the projection of G's rows on the row space of A. G itself is not needed. Of a frozen A there are no moments: `state`
holds half as many numbers where d_in = d_out. Its gradient is still asked for, and counts in `max_grad_norm`.
"""

from ..errors import check_number
from .factors import OverFactors
from .optim import SGD, AdamW


class LoRAFA(OverFactors):
    """b = g_B (A A^T + reg I)^-1 / s^2, in front of SGD or AdamW; A does not move."""

    measured = frozen = ("lora_A",)

    def __init__(self, lr, *, scaling=1.0, reg=1e-8, **rule):
        """scaling: s of the layers. rule: what else SGD or AdamW takes."""
        super().__init__(lr, **rule)
        self.scaling = check_number("scaling", scaling, positive=True)
        self.reg = check_number("reg", reg, positive=True)

    def directions(self, A, B, g_A, g_B, AA, BB):
        return g_A, (g_B @ AA.inverse(self.reg, g_B)) / self.scaling**2


class LoRAFASGD(LoRAFA, SGD):
    """SGD of B along the corrected gradient."""


class LoRAFAAdamW(LoRAFA, AdamW):
    """AdamW of B whose gradient is the corrected one."""
