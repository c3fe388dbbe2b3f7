"""The leading singular vectors from a few products with random vectors, where a full SVD is too slow."""

import math

import numpy as np

from ..backend import array_namespace, asarray_like
from ..errors import InputError
from .low_rank import check_rank, decomposable, rank_errors, svd


def range_finder(W, size, power_iterations=0, rng=None):
    """Orthonormal Q (d_out, size) that nearly spans the leading left singular vectors of W.

    (Halko, Martinsson and Tropp 2011, arXiv:0909.4061.) Y = (W W^T)^q W Omega with a Gaussian
    Omega (d_in, size). A QR between the products keeps the small directions from drowning in rounding error.
    rng: numpy Generator or seed (default 0).
    """
    W = decomposable(W)
    check_rank(size, *W.shape, where="the range finder, size = r + oversampling")
    qr = array_namespace(W).linalg.qr
    rng = np.random.default_rng(0 if rng is None else rng)
    Q, _ = qr(W @ asarray_like(rng.standard_normal((W.shape[1], size)), W), mode="reduced")
    for _ in range(power_iterations):
        Q, _ = qr(W.T @ Q, mode="reduced")  # (d_in, size)
        Q, _ = qr(W @ Q, mode="reduced")  # (d_out, size)
    return Q


def randomized_svd(W, r, oversampling=10, power_iterations=2, rng=None):
    """Approximate `truncated_svd` from a few matrix products: U (d_out, r), s (r,), Vt (r, d_in).

    Cost about (2 q + 2) 2 d_out d_in (r + oversampling) FLOPs; an SVD needs order d_out d_in min(d_out, d_in).

    >>> import numpy as np, lorabook as lb
    >>> rng = np.random.default_rng(0)
    >>> W = rng.standard_normal((500, 5)) @ rng.standard_normal((5, 300))  # of rank 5: nothing is lost
    >>> U, s, Vt = lb.randomized_svd(W, 5)
    >>> np.allclose((U * s) @ Vt, W)
    True
    """
    W = decomposable(W)
    r = check_rank(r, *W.shape)
    Q = range_finder(W, min(r + oversampling, *W.shape), power_iterations, rng)
    U, s, Vt = svd(Q.T @ W)  # (size, d_in): small
    return (Q @ U)[:, :r], s[:r], Vt[:r, :]


def range_finder_bound(s, r, oversampling, power_iterations=0, norm="spectral"):
    """Upper bound, from the singular values s, on the mean of ||W - Q Q^T W||; Q has r + oversampling columns.

    With p = oversampling >= 2, tail(a) = (sum_{i > r} s_i^a)^(1/2) and z = 2 q + 1 (Halko, Martinsson and Tropp 2011,
    arXiv:0909.4061, theorem 10.5 and corollary 10.10):

        Frobenius, q = 0:   (1 + r / (p - 1))^(1/2) tail(2)
        spectral:           ((1 + (r / (p - 1))^(1/2)) s_{r+1}^z + (e (r + p)^(1/2) / p) tail(2 z))^(1 / z)

    Computed in units of s_1: a power of s neither over- nor underflows.
    """
    s, p = rank_errors(s, "spectral")[:-1], oversampling  # checked, in float64, on the host
    largest = float(s.max())
    s = s / (largest or 1)
    if p < 2 or (norm == "frobenius" and power_iterations):
        raise InputError(
            f"the bound needs oversampling >= 2, in Frobenius norm power_iterations = 0; got {p}, {power_iterations}"
        )
    if norm == "frobenius":
        return float(largest * math.sqrt(1 + r / (p - 1)) * rank_errors(s)[r])
    z = 2 * power_iterations + 1
    first = (1 + math.sqrt(r / (p - 1))) * rank_errors(s, "spectral")[r] ** z
    return float(largest * (first + math.e * math.sqrt(r + p) / p * rank_errors(s**z)[r]) ** (1 / z))
