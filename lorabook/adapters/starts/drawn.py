"""Factors that are drawn at random, whatever the weight is."""

import numpy as np

from ...errors import InputError
from ...files import short

DRAWN = (True, "gaussian", False)


def uniform(rng, rows, columns):
    """Host float64 (rows, columns) ~ U(+-1 / sqrt(columns)), the default of a linear layer that has this weight."""
    return rng.uniform(-(columns**-0.5), columns**-0.5, (rows, columns))


def initial_factors(init_lora_weights, r, d_out, d_in, rng):
    """Host float64 (lora_A, lora_B). One of the two is zero, so that the update starts at zero; except for False.

    True:        A ~ U(+-1 / sqrt(d_in)), B = 0      loralib's and PEFT's default
    "gaussian":  A ~ N(0, (1 / r)^2),     B = 0      the paper's words, with PEFT's variance
    False:       A ~ U(+-1 / sqrt(d_in)), B ~ U(+-1 / sqrt(r)): the update is not zero
    """
    if not isinstance(init_lora_weights, bool) and init_lora_weights != "gaussian":
        raise InputError(f"init_lora_weights must be one of {DRAWN}; got {short(init_lora_weights)}")
    if init_lora_weights == "gaussian":
        lora_A = rng.normal(0, 1 / r, (r, d_in))
    else:
        lora_A = uniform(rng, r, d_in)
    return lora_A, uniform(rng, d_out, r) if init_lora_weights is False else np.zeros((d_out, r))
