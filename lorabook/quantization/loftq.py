"""LoftQ: 4-bit weights and LoRA factors that start close to the full weight (Li et al. 2023, arXiv:2310.08659)."""

from functools import partial

import numpy as np

from ..backend import to_numpy
from ..errors import InputError, check_integer, check_number
from ..linalg import low_rank
from .formats import quantize_weight


def loftq(W, r, format="nf4", rounds=5, scaling=1.0):
    """(Q, lora_A, lora_B, errors): alternate between the two halves of min ||W - Q - s B A||_F; the best round's.

        Q    = quantise(W - s B A)                 from B = 0 on
        s B A = the closest rank-r matrix to W - Q  (its SVD: s B = U sqrt(s S), A = sqrt(S / s) Vt)

    format: one of FORMATS, or a function of W that gives what has `dequantize`, such as `quantizer("nf2")`.
    W (d_out, d_in); Q a `Quantized`, or what the function gives; lora_A (r, d_in), lora_B (d_out, r) in float32.
    errors[t]: of Q + s B A after t rounds, divided by ||W||_F; [0]: of Q alone. With B = 0 and A random, QLoRA starts
    at Q, which differs from W; LoftQ starts nearer. For a given Q the second half is the best there is, so no round is
    worse than its own Q without factors; that a round improves on the one before it is usual, not certain, as rounding
    to levels minimises nothing over B A. PEFT's factors leave out s; so W = Q + s B A only at s = 1 there.

    Raises InputError for a W, r, rounds or scaling that cannot be.
    """
    rounds, scaling = check_integer("rounds", rounds), check_number("scaling", scaling, positive=True)
    low_rank.check_matrix(W, "W")
    W = to_numpy(W).astype("f4")
    r = low_rank.check_rank(r, *W.shape, where="W")
    norm = low_rank.frobenius(W)
    if not norm:
        raise InputError("W is zero: nothing has to be quantised")
    quantise = format if callable(format) else partial(quantize_weight, format=format)
    update, best, errors = np.zeros_like(W), None, []
    for _ in range(rounds):
        Q = quantise(W - update)
        residual = W - Q.dequantize()
        if not errors:
            errors.append(low_rank.frobenius(residual) / norm)
        U, S, Vt = low_rank.truncated_svd(residual.astype("f8"), r)
        root = np.sqrt(S / scaling)
        lora_B, lora_A = (U * root).astype("f4"), (root[:, None] * Vt).astype("f4")
        update = np.float32(scaling) * (lora_B @ lora_A)
        errors.append(low_rank.frobenius(residual - update) / norm)
        if best is None or errors[-1] < best[0]:
            best = errors[-1], Q, lora_A, lora_B
    return *best[1:], errors
