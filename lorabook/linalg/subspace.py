"""Which directions did training find? Subspace similarity, amplification, intruder dimensions of an update."""

import numpy as np

from ..backend import to_numpy
from ..errors import InputError
from .low_rank import check_rank, decomposable, frobenius, svd


def subspace_similarity(A1, A2):
    """phi[i - 1, j - 1] = ||V1_i^T V2_j||_F^2 / min(i, j) in 0 .. 1 for every i, j (Hu et al. 2021, eq. 4).

    (arXiv:2106.09685.) A1 (r1, d), A2 (r2, d): e.g. two lora_A. V_i (d, i): the first i right singular vectors. 1: the
    smaller of the two subspaces lies in the larger; independent random subspaces give about max(i, j) / d.
    """
    if A1.shape[1] != A2.shape[1]:
        raise InputError(f"A1 and A2 must have as many columns; got {tuple(A1.shape)} and {tuple(A2.shape)}")
    overlap = to_numpy(svd(A1)[2] @ svd(A2)[2].T).astype(np.float64) ** 2  # <v1_i, v2_j>^2, (r1, r2)
    i, j = (np.arange(1, n + 1) for n in overlap.shape)
    return np.cumsum(np.cumsum(overlap, axis=0), axis=1) / np.minimum(i[:, None], j[None, :])


def norm_between(W, other, r):
    """||U^T W V||_F for the first r singular vectors U (d_out, r), V (d_in, r) of `other`: what W does between them.

    (Hu et al. 2021, arXiv:2106.09685, section 7.3.) At most the norm of W truncated to rank r, which is the value
    for `other` = W; about ||W||_F r / sqrt(d_out d_in) for a random matrix.
    """
    r = check_rank(r, *W.shape)
    U, _, Vt = svd(other)
    return frobenius(U[:, :r].T @ decomposable(W) @ Vt[:r, :].T)  # of (r, r)


def amplification(W, delta, r):
    """||delta_r||_F / ||U^T W V||_F: how far the update exceeds what W does in the update's own directions.

    (Hu et al. 2021, arXiv:2106.09685, section 7.3.) U (d_out, r), V (d_in, r): the first r singular
    vectors of delta; delta_r: delta truncated to rank r. The paper finds 21.5 at r = 4 for a matrix of GPT-3.
    """
    return frobenius(svd(delta)[1][:r]) / norm_between(W, delta, r)


def largest_cosines(W, delta, top=10):
    """max_j |<u_i, u_j(W)>|, (top,), for the first left singular vectors u_i of W + delta: 1 if u_i is one of W's."""
    top = check_rank(top, *W.shape)
    return np.abs(to_numpy(svd(W + delta)[0][:, :top].T @ svd(W)[0])).max(axis=1)


def intruder_dimensions(W, delta, top=10, epsilon=0.5):
    """Indices i < top of the left singular vectors of W + delta that are new: max_j |<u_i, u_j(W)>| < epsilon.

    (Shuttleworth et al. 2024, arXiv:2410.21228.) Fine-tuning rotates the singular vectors of W a little; an intruder is
    like none of them.
    """
    return np.flatnonzero(largest_cosines(W, delta, top) < epsilon)
