"""A start where both factors are at work, and their product is zero nevertheless."""

import numpy as np


def orthogonal(W, r, scaling, rng):
    """Host float64 (lora_A, lora_B), both random, with B A = 0; r is even. The base stays.

    Q (r, r) is a random orthogonal matrix, whose rows Q_0, Q_2, ... and Q_1, Q_3, ... span complements in R^r. With
    Z (r/2, d_in) and Y (d_out, r/2) of N(0, 1):

        A = Q[0::2]^T Z / 10     (r, d_in)
        B = Y Q[1::2] / 10       (d_out, r)
        B A = Y (Q[1::2] Q[0::2]^T) Z / 100 = 0

    Where the usual start has B = 0 and dA = 0, here both have a gradient in the first step. In floating point B A is
    zero up to rounding. PEFT's `init_lora_weights="orthogonal"`, by its author's notes (datta0.github.io, "Rethinking
    LoRA initialisation"); W is not looked at.
    """
    d_out, d_in = W.shape
    Q = np.linalg.qr(rng.standard_normal((r, r)))[0]
    lora_A = Q[0::2].T @ rng.standard_normal((r // 2, d_in)) / 10
    return lora_A, rng.standard_normal((d_out, r // 2)) @ Q[1::2] / 10
