"""Training: `loop` runs the steps, `steps` takes one, `hooks` are what happens beside it.

`optim` has the optimizers, `schedules` the learning rate's course, `clipping` the gradients' norm; `checkpoint` saves
and resumes a run bit for bit, `progress` says how long it will take.
"""

from .clipping import clip_factor, clip_grad_norm, grad_norm, squared_norm
from .hooks import KEEP, Evaluation, Hook, Hooks, Loop
from .loop import train
from .optim import OPTIMIZERS, SGD, AdamW, Optimizer, flat, groups, views
from .progress import Progress, Right, duration
from .schedules import SCHEDULES, schedule
from .steps import Steps, first_non_finite

__all__ = [
    "KEEP",
    "OPTIMIZERS",
    "SCHEDULES",
    "SGD",
    "AdamW",
    "Evaluation",
    "Hook",
    "Hooks",
    "Loop",
    "Optimizer",
    "Progress",
    "Right",
    "Steps",
    "clip_factor",
    "clip_grad_norm",
    "duration",
    "first_non_finite",
    "flat",
    "grad_norm",
    "groups",
    "schedule",
    "squared_norm",
    "train",
    "views",
]
