"""Schedules: the factor of the learning rate at a step, 0 <= step < total."""

import math

from ..errors import InputError, check_integer

SCHEDULES = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
}


def schedule(name, total, warmup=0):
    """The function step -> factor: up to 1 in `warmup` steps, then "constant", or "linear" or "cosine" down to 0."""
    if name not in SCHEDULES:
        raise InputError(f"unknown schedule {name!r}; expected one of {', '.join(SCHEDULES)}")
    warmup = check_integer("warmup", warmup, 0, total, f"the {total} steps of the run")

    def factor(step):
        if step < warmup:
            return (step + 1) / warmup
        return SCHEDULES[name]((step - warmup) / max(1, total - warmup))

    return factor
