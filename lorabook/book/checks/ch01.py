"""Checks of the exercises of chapter 01."""

import numpy as np

from ...linalg import low_rank
from . import exercise, need


@exercise
def geometric(answer):
    """A function of rho and r: the relative error of the best rank r, for singular values 1, rho, rho^2, ..."""
    need(callable(answer), "expected a function of rho and r")
    for rho, r in ((0.8, 0), (0.8, 3), (0.5, 1), (0.9, 12)):
        sigma = rho ** np.arange(2000)
        want, got = low_rank.rank_errors(sigma)[r] / np.linalg.norm(sigma), float(answer(rho, r))
        need(
            abs(got - want) < 1e-9,
            f"at rho = {rho}, r = {r} you say {got:.4g}; 2000 such singular values give another error",
        )


@exercise
def shared(answer):
    """A function of two updates and r: the least error with two B and one A."""
    need(callable(answer), "expected a function of dW_1, dW_2 and r")
    rng = np.random.default_rng(7)
    for d_1, d_2, d_in, r in ((9, 7, 8, 2), (6, 12, 5, 3), (8, 8, 8, 1)):
        dW_1, dW_2 = rng.standard_normal((d_1, d_in)), rng.standard_normal((d_2, d_in))
        got, want = float(answer(dW_1, dW_2, r)), _shared(dW_1, dW_2, r)
        where = f"for updates of {d_1} x {d_in} and {d_2} x {d_in} at rank {r}"
        need(got > want - 1e-9, f"{where} you promise {got:.3f}, which no shared A reaches")
        need(got < want + 1e-9, f"{where} there are factors with a smaller error than {got:.3f}")


def _shared(dW_1, dW_2, r):
    return low_rank.rank_errors(low_rank.svd(np.concatenate([dW_1, dW_2]))[1])[r]


@exercise
def budget(answer):
    """(r with two pairs of factors, r with two B and one A) for 100,000 numbers and two matrices of 768 x 768."""
    need(np.shape(answer) == (2,), "expected two ranks: (separate, shared)")
    for name, r, each in (("separate", answer[0], 4 * 768), ("shared", answer[1], 3 * 768)):
        need(r == int(r), f"{name}: expected an integer")
        need(r * each <= 100_000, f"{name}: factors of rank {r} are over the budget")
        need((r + 1) * each > 100_000, f"{name}: a larger rank is within the budget, too")


@exercise
def not_the_only_one(answer):
    """A rank-1 matrix, other than diag(3, 0, 0), whose spectral distance from diag(3, 2, 1) is 2."""
    need(np.shape(answer) == (3, 3), "expected a 3 x 3 array")
    need(np.linalg.matrix_rank(answer) == 1, "its rank is not 1")
    need(not np.allclose(answer, np.diag([3.0, 0, 0])), "this is the best one in the Frobenius norm; give another")
    error = np.linalg.norm(np.diag([3.0, 2.0, 1.0]) - answer, 2)
    need(abs(error - 2) < 1e-12, f"its spectral error is {error:.3f}, not 2")


@exercise
def other_order(answer):
    """Inputs (N, 2) for which the aware truncation of diag(2, 1) to rank 1 is diag(0, 1)."""
    need(np.ndim(answer) == 2 and np.shape(answer)[1] == 2, "expected an array with two columns")
    aware = low_rank.truncate_for_inputs(np.diag([2.0, 1.0]), low_rank.activation_factor([np.asarray(answer, float)]))
    kept = np.round(aware.weight(1), 3)
    need(np.allclose(kept, np.diag([0, 1.0])), f"with these inputs the truncation is {kept.tolist()}")


@exercise
def random_share(answer):
    """The share of the side n that the rank for 90 % of the energy of a Gaussian n x n matrix takes, for large n."""
    need(0 < float(answer) < 1, "expected a share, between 0 and 1")
    rng = np.random.default_rng(11)
    ranks = [low_rank.energy_rank(low_rank.svd(rng.standard_normal((400, 400)))[1], 0.9) for _ in range(2)]
    away = float(answer) - np.mean(ranks) / 400
    need(abs(away) < 0.02, f"two matrices of 400 x 400 have a {'smaller' if away > 0 else 'larger'} share")
