import numpy as np
import pytest

from lorabook import InputError
from lorabook.backend import array_namespace, to_numpy
from lorabook.linalg import low_rank

SHAPES = [(9, 6), (6, 9), (7, 7), (1, 5), (5, 1)]


@pytest.mark.parametrize("shape", SHAPES)
def test_every_rank_has_the_closed_form_error(rng, shape):
    W = rng.standard_normal(shape)
    truncation = low_rank.truncate(W)
    assert len(truncation.errors) == min(shape) + 1
    for r, bound in enumerate(truncation.errors):
        assert abs(np.linalg.norm(W - truncation.weight(r)) - bound) <= 1e-12 * np.linalg.norm(W)


@pytest.mark.parametrize("shape", SHAPES)
def test_spectral_error_is_the_next_singular_value(rng, shape):
    W = rng.standard_normal(shape)
    errors = low_rank.rank_errors(low_rank.svd(W)[1], "spectral")
    for r in range(1, min(shape) + 1):
        U, s, Vt = low_rank.truncated_svd(W, r)
        assert abs(np.linalg.norm(W - (U * s) @ Vt, 2) - errors[r]) <= 1e-12 * errors[0]


def test_small_singular_values_do_not_cancel():
    s = np.array([1.0, 1e-9, 1e-12])
    np.testing.assert_allclose(low_rank.rank_errors(s), [1.0, 1e-9, 1e-12, 0.0], rtol=1e-6)


def test_no_rank_r_matrix_beats_the_bound(rng):
    W = rng.standard_normal((12, 9)) * 0.8 ** np.arange(9)
    bounds = low_rank.truncate(W).errors
    for r in range(1, 9):
        B = rng.standard_normal((12, r))
        for _ in range(50):  # alternating least squares: each step is the best A for B, then the best B for A
            A = np.linalg.lstsq(B, W, rcond=None)[0]
            B = np.linalg.lstsq(A.T, W.T, rcond=None)[0].T
            assert np.linalg.norm(W - B @ A) >= bounds[r] * (1 - 1e-12)


def test_a_larger_rank_never_has_a_larger_bound(rng):
    W, X = rng.standard_normal((8, 11)), rng.standard_normal((30, 11))
    R = low_rank.activation_factor([X])
    for errors in (
        low_rank.truncate(W).errors,
        low_rank.truncate_for_inputs(W, R).errors,
        low_rank.output_errors(W, R),
    ):
        assert (np.diff(errors) <= 0).all()


def test_factors_are_nested_and_work_on_every_backend(xp, put, rng):
    W = rng.standard_normal((6, 9))
    truncation = low_rank.truncate(put(W))
    assert array_namespace(truncation.B, truncation.A) is xp
    reference = low_rank.truncate(W)
    for r in range(7):
        np.testing.assert_allclose(to_numpy(truncation.weight(r)), reference.weight(r), atol=1e-12)


@pytest.mark.parametrize("rows", [200, 11, 5])  # more inputs than dimensions, as many, fewer
def test_activation_aware_truncation_is_exact_and_beats_plain(rng, rows):
    W = rng.standard_normal((8, 11))
    X = rng.standard_normal((rows, 11)) * np.geomspace(1, 1e-3, 11)
    R = low_rank.activation_factor([X])
    aware, plain = low_rank.truncate_for_inputs(W, R), low_rank.truncate(W)
    output_errors = low_rank.output_errors(W, R)
    for r in range(9):
        got = np.linalg.norm(X @ (W - aware.weight(r)).T)
        assert abs(got - aware.errors[r]) <= 1e-12 * aware.errors[0]
        assert abs(np.linalg.norm(X @ (W - plain.weight(r)).T) - output_errors[r]) <= 1e-12 * aware.errors[0]
        assert got <= output_errors[r] + 1e-12 * aware.errors[0]
    assert np.linalg.matrix_rank(aware.weight(3)) == 3


def test_activation_aware_truncation_agrees_with_the_inverse_where_that_exists(rng):
    W, X = rng.standard_normal((6, 8)), rng.standard_normal((50, 8))
    R = low_rank.activation_factor([X])
    U, s, Vt = np.linalg.svd(W @ R.T, full_matrices=False)
    by_inverse = np.linalg.solve(R, ((U[:, :3] * s[:3]) @ Vt[:3]).T).T
    np.testing.assert_allclose(low_rank.truncate_for_inputs(W, R).weight(3), by_inverse, atol=1e-12)


def test_rank_deficient_activations_do_no_harm(rng):
    W = rng.standard_normal((6, 8))
    X = rng.standard_normal((50, 3)) @ rng.standard_normal((3, 8))  # rank 3
    truncation = low_rank.truncate_for_inputs(W, low_rank.activation_factor([X]))
    assert truncation.errors[3] <= 1e-12 * truncation.errors[0]
    assert np.linalg.norm(X @ (W - truncation.weight(3)).T) <= 1e-12 * np.linalg.norm(X @ W.T)
    assert np.abs(truncation.weight(3)).max() <= np.linalg.norm(W)  # an inverse of R would blow up


def test_activation_factor_by_batches_equals_the_whole(xp, put, rng):
    X = rng.standard_normal((40, 6))
    R = to_numpy(low_rank.activation_factor([put(X[:7]), put(X[7:9]), put(X[9:])]))
    np.testing.assert_allclose(R.T @ R, X.T @ X, rtol=1e-12)


def test_pca_centres_and_svd_does_not(rng):
    X = rng.standard_normal((100, 5)) * [3, 1, 1, 1, 1] + 10
    mean, components, variances = low_rank.pca(X, 2)
    covariance = np.cov(X.T)
    np.testing.assert_allclose(mean, X.mean(axis=0))
    np.testing.assert_allclose(variances, np.linalg.eigvalsh(covariance)[::-1][:2])
    np.testing.assert_allclose(covariance @ components.T, components.T * variances, atol=1e-9)
    first = low_rank.truncated_svd(X, 1)[2][0]
    assert abs(first @ (mean / np.linalg.norm(mean))) > 0.99 > abs(first @ components[0]) * 2


def test_the_matrix_1_to_16():
    M = np.arange(1.0, 17.0).reshape(4, 4)
    _, s, _ = low_rank.svd(M)
    np.testing.assert_allclose(s[:2], [38.6227, 2.0713], atol=5e-5)
    assert s[2] < 1e-14 * s[0]
    assert low_rank.break_even_rank(4, 4) == 2
    printed = np.array([[1, 0], [0, 1], [1, 0], [0, 1]]) @ M[:2]
    assert round(100 * np.linalg.norm(M - printed) / np.linalg.norm(M), 1) == 58.5


def test_kinds_of_rank():
    s = np.array([2.0, 1.0, 1.0, 0.0])
    assert low_rank.stable_rank(s) == 6 / 4
    assert [low_rank.energy_rank(s, e) for e in (0.5, 0.8, 0.99, 1.0)] == [1, 2, 3, 3]
    assert low_rank.stable_rank(np.zeros(3)) == 0.0
    assert low_rank.break_even_rank(128, 64) == pytest.approx(42.67, abs=0.01)


def test_principal_components_far_from_zero_in_float32(xp, put, rng):
    X = (rng.standard_normal((200_000, 4)) + 1000).astype("f4")
    mean, components, variances = low_rank.pca(put(X), 4)
    assert {mean.dtype, components.dtype, variances.dtype} == {xp.asarray(1.0, dtype=xp.float32).dtype}
    np.testing.assert_allclose(to_numpy(mean), X.astype("f8").mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(to_numpy(variances), np.linalg.eigvalsh(np.cov(X.astype("f8").T))[::-1], rtol=1e-5)


def test_principal_components_need_two_rows():
    with pytest.raises(InputError, match=r"two rows.*\(1, 3\)"):
        low_rank.pca(np.ones((1, 3)), 1)


def test_variances_beyond_the_dtype(rng):
    X = 2000 * rng.standard_normal((50, 3))
    for half, single in zip(low_rank.pca(X.astype("f2"), 3), low_rank.pca(X.astype("f2").astype("f4"), 3), strict=True):
        assert half.dtype == np.float32 and np.array_equal(half, single)
    assert low_rank.pca(X.astype("f2"), 3)[2][0] > np.finfo("f2").max
    for large in ((X * 1e18).astype("f4"), X * 1e160):
        with pytest.raises(InputError, match=f"too large for {large.dtype}"):
            low_rank.pca(large, 3)


def test_half_precision_is_computed_in_single(rng):
    W, X = rng.standard_normal((5, 4)).astype("f2"), rng.standard_normal((9, 4)).astype("f2")
    R = low_rank.activation_factor([X])
    for half, single in (
        (low_rank.truncate(W), low_rank.truncate(W.astype("f4"))),
        (low_rank.truncate_for_inputs(W, R), low_rank.truncate_for_inputs(W.astype("f4"), R)),
    ):
        assert half.weight(2).dtype == np.float32
        np.testing.assert_array_equal(half.errors, single.errors)
    np.testing.assert_array_equal(low_rank.output_errors(W, R), low_rank.output_errors(W.astype("f4"), R))
    with pytest.raises(InputError, match="float(96|128)|longdouble"):
        low_rank.svd(W.astype(np.longdouble))


@pytest.mark.parametrize("scale", [1e-200, 1e-165, 1e155, 1e200])
def test_extreme_scales_change_the_units_and_nothing_else(rng, scale):
    W, X = rng.standard_normal((8, 6)), rng.standard_normal((20, 6)) * np.geomspace(1, 0.01, 6)
    s, R = low_rank.svd(W)[1], low_rank.activation_factor([X])
    assert low_rank.stable_rank(scale * s) == pytest.approx(low_rank.stable_rank(s))
    assert low_rank.energy_rank(scale * s, 0.8) == low_rank.energy_rank(s, 0.8)
    np.testing.assert_allclose(low_rank.rank_errors(scale * s), scale * low_rank.rank_errors(s))
    for curve in (low_rank.output_errors, lambda W, R: low_rank.truncate_for_inputs(W, R).errors):
        np.testing.assert_allclose(curve(scale * W, R), scale * curve(W, R), atol=scale * 1e-12)
        np.testing.assert_allclose(curve(W, scale * R), scale * curve(W, R), atol=scale * 1e-12)
    both = low_rank.truncate_for_inputs(scale * W, R * min(scale, 1 / scale)).weight(2)
    np.testing.assert_allclose(both, scale * low_rank.truncate_for_inputs(W, R).weight(2))
    tiny = low_rank.truncate_for_inputs(1e-200 * W, 1e-200 * R).weight(2)  # where every product underflows
    np.testing.assert_allclose(tiny, 1e-200 * low_rank.truncate_for_inputs(W, R).weight(2))


@pytest.mark.parametrize("energy", [1.5, -1, 90, 0, np.nan, np.inf, True, "0.9", None])
def test_a_share_of_energy_is_above_0_and_at_most_1(energy):
    with pytest.raises(InputError, match="share.*got"):
        low_rank.energy_rank(np.ones(3), energy)


@pytest.mark.parametrize("s", [np.array([]), np.array([1.0, np.nan]), np.array([-1.0]), np.ones((2, 2))])
def test_what_is_no_vector_of_singular_values_is_refused(s):
    for function in (low_rank.stable_rank, low_rank.energy_rank, low_rank.rank_errors):
        with pytest.raises(InputError, match="singular values"):
            function(s)


@pytest.mark.parametrize("r", [0, -1, 4, 2.5, True, "2", None, np.nan])
def test_a_rank_that_does_not_exist_is_refused(r):
    with pytest.raises(InputError, match=r"integer from 1 to 3.*5x3.*got"):
        low_rank.truncated_svd(np.ones((5, 3)), r)


@pytest.mark.parametrize(
    ("W", "message"),
    [
        (np.array([[1.0, np.nan]]), "NaN or Inf"),
        (np.array([[1.0, np.inf]]), "NaN or Inf"),
        (np.ones(3), r"2-D.*\(3,\)"),
        (np.ones((0, 3)), "non-empty"),
        (np.ones((2, 3), int), "int64"),
    ],
)
def test_a_matrix_that_cannot_be_decomposed_is_refused(W, message):
    with pytest.raises(InputError, match=message):
        low_rank.truncate(W)


def test_other_bad_input(rng):
    W = rng.standard_normal((5, 4))
    with pytest.raises(InputError, match=r"d_in = 4 columns.*\(3, 3\)"):
        low_rank.truncate_for_inputs(W, np.eye(3))
    with pytest.raises(InputError, match="at least one batch"):
        low_rank.activation_factor([])
    with pytest.raises(InputError, match="frobenius or spectral"):
        low_rank.rank_errors(np.ones(3), "nuclear")
