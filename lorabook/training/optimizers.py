"""The table of optimizers, by the name that `lorabook train --optimizer` takes."""

from .lora_fa import LoRAFAAdamW, LoRAFASGD
from .lora_plus import LoRAPlus
from .lora_pro import LoRAProAdamW, LoRAProSGD
from .muon import Muon
from .optim import SGD, AdamW
from .riemannian import RiemannianAdamW, RiemannianSGD
from .rite import RITE

OPTIMIZERS = {
    "sgd": SGD,
    "adamw": AdamW,
    "lora-plus": LoRAPlus,
    "lora-fa": LoRAFAAdamW,
    "lora-fa-sgd": LoRAFASGD,
    "riemannian": RiemannianAdamW,
    "riemannian-sgd": RiemannianSGD,
    "lora-pro": LoRAProAdamW,
    "lora-pro-sgd": LoRAProSGD,
    "muon": Muon,
    "lora-rite": RITE,
}
