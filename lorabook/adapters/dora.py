"""DoRA: magnitude and direction of each output apart (Liu et al. 2024, arXiv:2402.09353)."""

from dataclasses import dataclass
from typing import ClassVar

from ..backend import array_namespace, to_numpy
from .base import Adapter
from .lora import LoRALinear
from .lora_config import LoRAConfig
from .rank_config import check_flag


@dataclass(frozen=True, kw_only=True)
class DoRAConfig(LoRAConfig):
    """Options of `inject` for DoRA: LoRA's, and detach_norm, whether the norm counts as a constant in the gradients.

    >>> import lorabook as lb
    >>> from lorabook.adapters import DoRAConfig
    >>> model = lb.MLP((64, 32, 10))
    >>> lb.inject(model, DoRAConfig(r=4, target_modules=["fc1"]))
    ['fc1']
    >>> model.named_params()["fc1.lora_magnitude_vector"].shape
    (32,)
    """

    method: ClassVar[str] = "dora"
    same: ClassVar[tuple] = (*LoRAConfig.same, "detach_norm")
    ours: ClassVar[tuple] = ("detach_norm",)
    neutral: ClassVar[dict] = {"use_dora": True}

    detach_norm: bool = True

    def __post_init__(self):
        super().__post_init__()
        check_flag("detach_norm", self.detach_norm)

    def for_peft(self):
        return super().for_peft() | {"use_dora": True}


class DoRALinear(LoRALinear):
    """W_eff = diag(m / c) V with V = W + s B A, and c_i the norm of row i of V: the direction is LoRA's, the length m.

    lora_magnitude_vector = m (d_out,) starts at the norms of W's rows. Dropout is on the branch W_eff - W, as in PEFT.

    dW_eff = diag(dm / c) V - diag(m dc / c^2) V + diag(m / c) dV,  c_i dc_i = <V_i, dV_i>. With H, that of W_eff:

        dm_i = <H_i, V_i> / c_i
        dV_i = (m_i / c_i) (H_i - dm_i V_i / c_i)         or with detach_norm, dc = 0:  dV_i = (m_i / c_i) H_i

    and dA, dB from dV, as LoRA has them. The paper proposes dc = 0 (section 4.3) to save memory, and PEFT does so; it
    is another gradient: what of H points along V_i, m takes care of, but the factors see it as well.
    """

    method, Config = "dora", DoRAConfig
    tensors: ClassVar[dict] = LoRALinear.tensors | {"lora_magnitude_vector": "lora_magnitude_vector"}

    def __init__(self, base, r=8, lora_alpha=8, *, detach_norm=True, **options):
        """As `LoRALinear`, and detach_norm: whether c counts as a constant in the gradients."""
        super().__init__(base, r, lora_alpha, **options | {"order": "merged"})
        self.detach_norm = detach_norm
        c = norms(self.effective_direction(self.base_layer.weight))
        self.start(**{name: to_numpy(array) for name, array in self.params.items()}, lora_magnitude_vector=to_numpy(c))

    @classmethod
    def is_peft(cls, options):
        return Adapter.is_peft.__func__(cls, options) and options.get("use_dora") is True

    @classmethod
    def shapes(cls, d_out, d_in, where="this layer", **options):
        return super().shapes(d_out, d_in, where, **options) | {"lora_magnitude_vector": (d_out,)}

    update_of = classmethod(Adapter.update_of.__func__)

    def effective_direction(self, W):
        """V, a new array."""
        return super().effective(W)[0]

    def effective(self, W):
        V = self.effective_direction(W)
        c = norms(V)
        return (self.params["lora_magnitude_vector"] / c)[:, None] * V, (V, c)

    def effective_backward(self, dW_eff, cache):
        V, c = cache
        dm = array_namespace(V).sum(dW_eff * V, axis=1) / c
        dV = dW_eff if self.detach_norm else dW_eff - (dm / c)[:, None] * V
        dV = (self.params["lora_magnitude_vector"] / c)[:, None] * dV
        return self.delta_backward(dV) | self.trained({"lora_magnitude_vector": dm}), dV

    forward_apart, backward = Adapter.forward_apart, Adapter.backward


def norms(V):
    """Of each row."""
    xp = array_namespace(V)
    return xp.sqrt(xp.sum(V * V, axis=1))
