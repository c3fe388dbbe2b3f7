import numpy as np
import pytest
from sklearn.utils.extmath import randomized_svd as sklearn_randomized_svd

from lorabook import InputError
from lorabook.linalg import low_rank, randomized


def decaying(rng, d_out=60, d_in=40, decay=0.8):
    """A matrix with singular values decay^i."""
    U, _ = np.linalg.qr(rng.standard_normal((d_out, d_out)))
    V, _ = np.linalg.qr(rng.standard_normal((d_in, d_in)))
    s = decay ** np.arange(min(d_out, d_in))
    return (U[:, : len(s)] * s) @ V[:, : len(s)].T, s


def test_range_finder_stays_below_its_published_bounds(rng):
    W, s = decaying(rng)
    for r, p in ((4, 4), (10, 5), (1, 2)):
        for q in (0, 1, 2):
            spectral, frobenius = [], []
            for seed in range(60):
                Q = randomized.range_finder(W, r + p, q, np.random.default_rng(seed))
                np.testing.assert_allclose(Q.T @ Q, np.eye(r + p), atol=1e-12)
                residual = W - Q @ (Q.T @ W)
                spectral.append(np.linalg.norm(residual, 2))
                frobenius.append(np.linalg.norm(residual))
            assert np.mean(spectral) <= randomized.range_finder_bound(s, r, p, q)
            if q == 0:
                assert np.mean(frobenius) <= randomized.range_finder_bound(s, r, p, 0, "frobenius")


def test_randomized_svd_is_as_good_as_scikit_learns(rng):
    W, _ = decaying(rng, decay=0.9)
    bound = low_rank.truncate(W).errors[8]
    ours, theirs = [], []
    for seed in range(20):
        U, s, Vt = randomized.randomized_svd(W, 8, oversampling=10, power_iterations=2, rng=np.random.default_rng(seed))
        ours.append(np.linalg.norm(W - (U * s) @ Vt))
        U, s, Vt = sklearn_randomized_svd(W, 8, n_oversamples=10, n_iter=2, random_state=seed)
        theirs.append(np.linalg.norm(W - (U * s) @ Vt))
    assert min(ours) >= bound * (1 - 1e-12)
    assert np.mean(ours) <= np.mean(theirs) * 1.01


def test_power_iterations_survive_a_steep_spectrum(rng):
    W, s = decaying(rng, decay=0.3)
    assert np.allclose(randomized.randomized_svd(W, 10, power_iterations=4)[1], s[:10], rtol=1e-9)


def test_half_precision_is_computed_in_single(rng):
    W = rng.standard_normal((5, 4)).astype("f2")
    np.testing.assert_array_equal(randomized.randomized_svd(W, 2)[1], randomized.randomized_svd(W.astype("f4"), 2)[1])


@pytest.mark.parametrize("scale", [1e-200, 1e-165, 1e155, 1e200])
def test_extreme_scales_change_the_units_of_the_bound_and_nothing_else(rng, scale):
    s = low_rank.svd(rng.standard_normal((8, 6)))[1]
    for q, norm in ((0, "frobenius"), (0, "spectral"), (2, "spectral")):
        bound = randomized.range_finder_bound(s, 2, 3, q, norm)
        assert randomized.range_finder_bound(scale * s, 2, 3, q, norm) == pytest.approx(scale * bound, rel=1e-12)


def test_bounds_that_are_not_proven_are_refused():
    with pytest.raises(InputError, match="oversampling >= 2"):
        randomized.range_finder_bound(np.ones(3), 1, 1)
    with pytest.raises(InputError, match="power_iterations = 0; got 2, 1"):
        randomized.range_finder_bound(np.ones(3), 1, 2, 1, "frobenius")
    with pytest.raises(InputError, match="singular values"):
        randomized.range_finder_bound(np.array([1.0, -1.0]), 1, 2)
