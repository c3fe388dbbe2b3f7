"""PiSSA: what the weight does most is what trains (Meng, Wang, Zhang 2024, arXiv:2404.02948)."""

import numpy as np


def pissa(W, r, scaling, rng):
    """Host float64 (lora_A, lora_B) with s B A the closest rank-r matrix to W; the base becomes W - s B A.

    With W = U diag(S) Vh, S falling, and its first r triples, the singular values go to both sides alike:

        A = diag(sqrt(S_r / s)) Vh_r     (r, d_in)
        B = U_r diag(sqrt(S_r / s))      (d_out, r)

    so that s B A = U_r diag(S_r) Vh_r, and A A^T = B^T B = diag(S_r / s): neither factor rests at zero, and both have a
    gradient from the first step on. The signs of a pair u_i, v_i are free; in B A they cancel. Here the SVD is in
    float64, in PEFT in float32.
    """
    U, S, Vh = np.linalg.svd(W, full_matrices=False)
    root = np.sqrt(S[:r] / scaling)
    return root[:, None] * Vh[:r], U[:, :r] * root
