"""MiCA: an update that writes only where the weight hardly does (2026, arXiv:2604.01694)."""

import numpy as np


def mica(W, r, scaling, rng):
    """Host float64 (lora_A, lora_B): B the minor left singular vectors of W, which rests; A = 0, which trains.

    With W = U diag(S) Vh, S falling, and k = min(d_out, d_in) columns in U:

        A = 0                (r, d_in)
        B = U[:, k - r:]     (d_out, r)

    The update s B A starts at zero, so the base stays; and it stays in the span of B, where W itself has the least to
    say: W^T u = S_u v is short there. Half of LoRA's parameters train; dA = s B^T dout^T xd as ever.
    """
    U = np.linalg.svd(W, full_matrices=False)[0]
    return np.zeros((r, W.shape[1])), U[:, U.shape[1] - r :]
