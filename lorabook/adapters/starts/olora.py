"""OLoRA: a start from the QR decomposition (Buyukakyuz 2024, arXiv:2406.01775)."""

import numpy as np


def olora(W, r, scaling, rng):
    """Host float64 (lora_A, lora_B) from W = Q R, where Q has orthonormal columns and R is upper triangular.

        A = R[:r]        (r, d_in)
        B = Q[:, :r]     (d_out, r)

    and the base becomes W - s B A, as in PEFT, which leaves the factors as they are at every s. So B^T B = 1: B is
    perfectly conditioned, and A holds the size of W. B spans the first r columns of W, which are zero in W - B A: a
    choice by place, where PiSSA's is by size. The signs of a column of Q and its row of R are free; in B A they cancel.
    """
    Q, R = np.linalg.qr(W)
    return R[:r], Q[:, :r]
