"""Training: `loop` runs the steps, `steps` takes one, `hooks` are what happens beside it.

`optim` has SGD and AdamW; `lora_plus`, `lora_fa`, `riemannian`, `lora_pro`, `muon` and `rite` those made for LoRA's
factors, on top of `factors`; `optimizers` the table of all. `schedules` has the learning rate's course, `clipping` the
gradients' norm; `checkpoint` saves and resumes a run bit for bit, `progress` says how long it will take.
"""

from .clipping import clip_factor, clip_grad_norm, grad_norm, squared_norm
from .factors import FACTORS, OverFactors, Paired, Spectrum, gram, pairs, spectra, without_factors
from .hooks import KEEP, Evaluation, Hook, Hooks, Loop
from .loop import train
from .lora_fa import LoRAFA, LoRAFAAdamW, LoRAFASGD
from .lora_plus import LoRAPlus
from .lora_pro import LoRAPro, LoRAProAdamW, LoRAProSGD, sylvester
from .muon import Muon, orthogonalized
from .optim import SGD, AdamW, Optimizer, flat, groups, views
from .optimizers import OPTIMIZERS
from .progress import Progress, Right, duration
from .riemannian import Riemannian, RiemannianAdamW, RiemannianSGD
from .rite import RITE
from .schedules import SCHEDULES, schedule
from .steps import Steps, first_non_finite

__all__ = [
    "FACTORS",
    "KEEP",
    "OPTIMIZERS",
    "RITE",
    "SCHEDULES",
    "SGD",
    "AdamW",
    "Evaluation",
    "Hook",
    "Hooks",
    "LoRAFA",
    "LoRAFAAdamW",
    "LoRAFASGD",
    "LoRAPlus",
    "LoRAPro",
    "LoRAProAdamW",
    "LoRAProSGD",
    "Loop",
    "Muon",
    "Optimizer",
    "OverFactors",
    "Paired",
    "Progress",
    "Riemannian",
    "RiemannianAdamW",
    "RiemannianSGD",
    "Right",
    "Spectrum",
    "Steps",
    "clip_factor",
    "clip_grad_norm",
    "duration",
    "first_non_finite",
    "flat",
    "grad_norm",
    "gram",
    "groups",
    "orthogonalized",
    "pairs",
    "schedule",
    "spectra",
    "squared_norm",
    "sylvester",
    "train",
    "views",
    "without_factors",
]
