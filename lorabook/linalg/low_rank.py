"""How good can a rank-r matrix be? SVD truncation, weighed by the weights or by the activations, for every r at once.

W is (d_out, d_in), as in `y = x W^T`. A rank-r matrix W_r = B A has B (d_out, r), A (r, d_in). All curves are float64
NumPy arrays indexed by r = 0 .. min(d_out, d_in).
"""

import math
import operator
from dataclasses import dataclass
from numbers import Real

import numpy as np

from ..backend import array_namespace, to_numpy
from ..errors import InputError


def check_rank(r, d_out, d_in, where="this matrix"):
    """r as an int, or InputError: a rank is an integer from 1 to min(d_out, d_in)."""
    try:
        number = 0 if isinstance(r, bool) else operator.index(r)
    except TypeError:
        number = 0
    if not 1 <= number <= min(d_out, d_in):
        raise InputError(
            f"r must be an integer from 1 to {min(d_out, d_in)}, the smaller side of {where}, {d_out}x{d_in}; got {r!r}"
        )
    return number


def check_matrix(W, what="matrix"):
    """Raise InputError unless W is a finite, non-empty 2-D floating-point array."""
    xp = array_namespace(W)
    if W.ndim != 2 or 0 in W.shape or not xp.isdtype(W.dtype, "real floating"):
        raise InputError(
            f"{what} must be a non-empty 2-D floating-point array; got shape {tuple(W.shape)}, dtype {W.dtype}"
        )
    if not xp.all(xp.isfinite(W)):
        raise InputError(f"{what} contains NaN or Inf; remove those entries first")


def decomposable(W, what="matrix"):
    """W, checked, in a dtype that LAPACK computes with: float16 becomes float32, which holds it exactly."""
    check_matrix(W, what)
    xp = array_namespace(W)
    bits = xp.finfo(W.dtype).bits
    if bits > 64:
        raise InputError(f"{what} has dtype {W.dtype}, which no decomposition computes with; convert it to float64")
    return W if bits > 16 else xp.astype(W, xp.float32)


def frobenius(M):
    """||M||_F of an array of any shape, as a float. Scaled by the largest entry, so that no square over- or underflows.

    The entries come to the host as float64: for singular values and other small arrays.
    """
    M = to_numpy(M).astype(np.float64)
    largest = np.max(np.abs(M), initial=0.0)
    return float(largest * np.sqrt(np.sum((M / largest) ** 2))) if largest > 0 else 0.0


def svd(W):
    """U (d_out, n), s (n,) descending, Vt (n, d_in) with W = U diag(s) Vt and n = min(d_out, d_in)."""
    W = decomposable(W)
    return array_namespace(W).linalg.svd(W, full_matrices=False)


def truncated_svd(W, r):
    """U (d_out, r), s (r,), Vt (r, d_in): the closest rank-r matrix (Eckart and Young 1936).

    >>> import numpy as np, lorabook as lb
    >>> W = np.diag([3.0, 2.0, 1.0])
    >>> U, s, Vt = lb.truncated_svd(W, 2)
    >>> float(np.linalg.norm(W - (U * s) @ Vt).round(9))  # the singular value that was left out
    1.0
    """
    r = check_rank(r, *W.shape)
    U, s, Vt = svd(W)
    return U[:, :r], s[:r], Vt[:r, :]


# ---- one SVD, every rank ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Truncation:
    """Best approximations of every rank from one SVD, with the exact error of each.

    The factors are nested: those of rank r are the first r columns of B (d_out, n) and the first r rows of A (n, d_in);
    beyond n they stay as they are.
    errors[r] is the error at rank r, in the norm that the truncation minimises.
    """

    B: object
    A: object
    errors: np.ndarray

    def weight(self, r):
        """W_r = B[:, :r] A[:r], (d_out, d_in); r = 0 gives zeros."""
        return self.B[:, :r] @ self.A[:r, :]


def truncate(W):
    """The Truncation of least ||W - W_r||_F: B = U diag(sigma), A = Vt. No other rank-r matrix is closer.

    >>> import numpy as np, lorabook as lb
    >>> best = lb.truncate(np.diag([4.0, 3.0]))
    >>> best.errors.round(9).tolist()  # of rank 0, 1 and 2
    [5.0, 3.0, 0.0]
    >>> abs(best.weight(1)).round(9).tolist()
    [[4.0, 0.0], [0.0, 0.0]]
    """
    U, sigma, Vt = svd(W)
    return Truncation(U * sigma, Vt, rank_errors(sigma))


def truncate_for_inputs(W, R):
    """The Truncation of least ||X (W - W_r)^T||_F: closest where the inputs X (N, d_in) are, not everywhere.

    R = `activation_factor(X)`, any matrix with R^T R = X^T X. Then for every E (d_out, d_in)

        ||X E^T||_F^2 = tr(E X^T X E^T) = ||E R^T||_F^2

    so W_r R^T should be the best rank-r approximation of W R^T = U diag(s) V^T, which is U_r U_r^T (W R^T). The matrix
    W_r = U_r U_r^T W attains it: B = U, A = U^T W, errors[r]^2 = sum_{i > r} s_i^2. No system with R is solved, so a
    rank-deficient X does no harm. (Chen et al., DRONE, NeurIPS 2021, and Wang et al., SVD-LLM, arXiv:2403.07378, give
    the optimum with an inverse of R; it is the same matrix wherever that inverse exists.)

    >>> import numpy as np, lorabook as lb
    >>> W, X = np.diag([4.0, 3.0]), np.array([[0.0, 1.0]])  # inputs that meet the smaller singular value alone
    >>> plain, aware = lb.truncate(W), lb.truncate_for_inputs(W, lb.activation_factor([X]))
    >>> [float(np.linalg.norm(X @ (W - best.weight(1)).T).round(9)) for best in (plain, aware)]
    [3.0, 0.0]
    """
    W, R = decomposable(W, "weight"), decomposable(R, "activation factor")
    if R.ndim != 2 or R.shape[1] != W.shape[1]:
        raise InputError(
            f"R must have d_in = {W.shape[1]} columns, like the weight {tuple(W.shape)}; got shape {tuple(R.shape)}"
        )
    w, x = _largest(W), _largest(R)  # taken out of the product, which would over- or underflow at extreme scales
    U, s, _ = svd((W / w) @ (R / x).T)
    errors = rank_errors(s) * w * x
    beyond = np.zeros(min(W.shape) - U.shape[1])  # with fewer inputs than dimensions W_r is exact on them from r = N on
    return Truncation(U, U.T @ W, np.concatenate([errors, beyond]))


def _largest(M):
    """The largest absolute value of an array, or 1 where all are zero, as a float."""
    xp = array_namespace(M)
    return float(xp.max(xp.abs(M))) or 1.0


def output_errors(W, R):
    """||X (W - W_r)^T||_F of the plain truncation `truncate(W)` at every rank, for R = `activation_factor(X)`.

    W - W_r = sum_{i > r} s_i u_i v_i^T with orthonormal u_i, so errors[r]^2 = sum_{i > r} (s_i ||R v_i||)^2.
    """
    _, s, Vt = svd(W)
    RV = to_numpy(decomposable(R, "activation factor") @ Vt.T)
    return rank_errors(to_numpy(s) * [frobenius(column) for column in RV.T])


def activation_factor(batches):
    """R (min(N, d), d) with R^T R = X^T X for the rows X of all batches (N_i, d), by a QR of one batch after another.

    X^T X itself is never formed: its condition number is the square of that of X.

    >>> import numpy as np, lorabook as lb
    >>> X = np.random.default_rng(0).standard_normal((1000, 8))
    >>> R = lb.activation_factor([X[:500], X[500:]])
    >>> R.shape, np.allclose(R.T @ R, X.T @ X)
    ((8, 8), True)
    """
    R = None
    for X in batches:
        X = decomposable(X, "activations")
        xp = array_namespace(X, R)
        R = xp.linalg.qr(X if R is None else xp.concat([R, X], axis=0), mode="reduced")[1]
    if R is None:
        raise InputError("activation_factor needs at least one batch of activations; got none")
    return R


def rank_errors(s, norm="frobenius"):
    """Error of the best approximation of each rank r = 0 .. n, from the singular values s (n,) alone.

    Frobenius: sqrt(sum_{i > r} s_i^2), summed from the smallest up, so that nothing cancels, and in units of the
    largest, so that no square over- or underflows. Spectral: s_{r + 1}.

    >>> import numpy as np, lorabook as lb
    >>> lb.rank_errors(np.array([4.0, 3.0])).round(9).tolist()
    [5.0, 3.0, 0.0]
    """
    s, largest = _singular_values(s)
    if norm == "spectral":
        return np.append(s, 0.0)
    if norm != "frobenius":
        raise InputError(f"norm must be frobenius or spectral; got {norm!r}")
    return np.append(largest * np.sqrt(np.cumsum((s / (largest or 1))[::-1] ** 2)[::-1]), 0.0)


def _singular_values(s):
    """(s as float64 on the host, the largest of them), checked."""
    s = to_numpy(s).astype(np.float64)
    if s.ndim != 1 or not len(s) or not (np.isfinite(s) & (s >= 0)).all():
        raise InputError(f"expected singular values, a vector of finite numbers >= 0; got {s!r}")
    return s, float(s.max())


# ---- PCA, and what rank means for a matrix ---------------------------------------------------------------------------


def pca(X, r):
    """Principal components of the rows of X (N, d): mean (d,), components (r, d), variances (r,) with divisor N - 1.

    PCA is the SVD of X - mean, not of X: how the rows differ from each other, not from zero. Computed in float64, in
    which a mean far from zero does not drown the differences; returned in the dtype of X, of float16 in float32. Raises
    InputError for fewer than two rows, which have no variance, and for variances that this dtype cannot hold.

    >>> import numpy as np, lorabook as lb
    >>> X = np.array([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0]])
    >>> mean, components, variances = lb.pca(X, 1)
    >>> mean.tolist(), abs(components).round(9).tolist(), variances.round(9).tolist()  # the sign is free
    ([2.0, 5.0], [[1.0, 0.0]], [1.0])
    """
    X = decomposable(X, "data")
    if X.shape[0] < 2:
        raise InputError(f"PCA needs at least two rows, which can differ from each other; got shape {tuple(X.shape)}")
    xp = array_namespace(X)
    wide = xp.astype(X, xp.float64)
    mean = xp.mean(wide, axis=0)
    _, s, Vt = truncated_svd(wide - mean, r)
    spread = s / math.sqrt(X.shape[0] - 1)
    if float(spread[0]) > math.sqrt(xp.finfo(X.dtype).max):
        raise InputError(f"the variances are too large for {X.dtype}; choose a larger unit, or convert to float64")
    return tuple(xp.astype(a, X.dtype) for a in (mean, Vt, spread**2))


def stable_rank(s):
    """||W||_F^2 / ||W||_2^2 = sum s_i^2 / s_1^2, from 1 to the rank: small singular values hardly move it.

    0.0 for a matrix of zeros.

    >>> import numpy as np, lorabook as lb
    >>> [round(lb.stable_rank(np.array(s)), 9) for s in ([1.0, 1.0, 1.0], [1.0, 0.1, 0.1])]
    [3.0, 1.02]
    """
    s, largest = _singular_values(s)
    return float(np.sum((s / largest) ** 2)) if largest else 0.0


def energy_rank(s, energy=0.9):
    """The smallest r whose best approximation keeps this share, in 0 .. 1, of ||W||_F^2; 0 for a matrix of zeros.

    >>> import numpy as np, lorabook as lb
    >>> s = np.array([4.0, 3.0])  # squares 16 and 9 of 25: the first keeps 64 %
    >>> [lb.energy_rank(s, energy) for energy in (0.6, 0.9)]
    [1, 2]
    """
    if isinstance(energy, bool) or not isinstance(energy, Real) or not 0 < energy <= 1:
        raise InputError(f"energy is a share, above 0 and at most 1 (0.9 for 90 %); got {energy!r}")
    s, largest = _singular_values(s)
    lost = rank_errors(s / (largest or 1)) ** 2
    return int(np.argmax(lost <= (1 - energy) * lost[0]))


def break_even_rank(d_out, d_in):
    """d_out d_in / (d_out + d_in): below this rank two factors store fewer numbers than the matrix.

    >>> import lorabook as lb
    >>> lb.break_even_rank(384, 384)
    192.0
    """
    return d_out * d_in / (d_out + d_in)
