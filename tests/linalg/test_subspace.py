import numpy as np
import pytest

from lorabook import InputError
from lorabook.linalg import subspace


def test_similarity_of_a_matrix_with_itself_and_with_its_rotation_is_1(rng):
    A = rng.standard_normal((4, 30))
    Q = np.linalg.qr(rng.standard_normal((4, 4)))[0]
    np.testing.assert_allclose(np.diag(subspace.subspace_similarity(A, A)), 1)
    assert subspace.subspace_similarity(A, 3 * Q @ A)[3, 3] == pytest.approx(1)


def test_similarity_follows_its_definition(put, rng):
    A1, A2 = rng.standard_normal((3, 12)), rng.standard_normal((5, 12))
    phi = subspace.subspace_similarity(put(A1), put(A2))
    V1, V2 = (np.linalg.svd(A, full_matrices=False)[2].T for A in (A1, A2))
    for i in range(1, 4):
        for j in range(1, 6):
            expected = np.linalg.norm(V1[:, :i].T @ V2[:, :j]) ** 2 / min(i, j)
            assert phi[i - 1, j - 1] == pytest.approx(expected)
    assert (phi >= 0).all()
    assert (phi <= 1 + 1e-12).all()


def test_similarity_of_random_subspaces_is_about_their_share_of_the_space():
    d, i, j = 200, 4, 20
    draws = [np.random.default_rng(seed).standard_normal((i + j, d)) for seed in range(50)]
    mean = np.mean([subspace.subspace_similarity(A[:i], A[i:])[-1, -1] for A in draws])
    assert mean == pytest.approx(j / d, rel=0.1)


def test_orthogonal_subspaces_have_similarity_0():
    assert subspace.subspace_similarity(np.eye(6)[:2], np.eye(6)[2:5]).max() < 1e-28


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_amplification_has_no_units(rng, scale):
    W, delta = rng.standard_normal((5, 6)), rng.standard_normal((5, 2)) @ rng.standard_normal((2, 6))
    expected = subspace.amplification(W, delta, 2)
    assert subspace.amplification(scale * W, scale * delta, 2) == pytest.approx(expected)
    assert subspace.amplification(W.astype("f2"), delta.astype("f2"), 2) == pytest.approx(expected, rel=0.01)


def test_amplification_of_the_weight_itself_is_1_and_of_a_new_direction_is_large(rng):
    W = np.diag([5.0, 4.0, 3.0, 0.1, 0.0])
    assert subspace.amplification(W, 0.3 * W, 3) == pytest.approx(0.3)
    assert subspace.amplification(W, np.diag([0.0, 0, 0, 2.0, 0]), 1) == pytest.approx(20)


def test_amplification_follows_its_definition(put, rng):
    W, delta = rng.standard_normal((6, 8)), rng.standard_normal((6, 2)) @ rng.standard_normal((2, 8))
    U, _, Vt = np.linalg.svd(delta)
    expected = np.linalg.norm(delta) / np.linalg.norm(U[:, :2].T @ W @ Vt[:2].T)
    assert subspace.amplification(put(W), put(delta), 2) == pytest.approx(expected)


def test_norm_between_directions_of_the_matrix_itself_and_of_random_ones(put, rng):
    W = rng.standard_normal((30, 50))
    s = np.linalg.svd(W, compute_uv=False)
    assert subspace.norm_between(put(W), put(W), 4) == pytest.approx(np.sqrt(np.sum(s[:4] ** 2)))
    draws = [np.random.default_rng(seed).standard_normal((30, 50)) for seed in range(1, 41)]
    norms = [subspace.norm_between(W, draw, 4) for draw in draws]
    expected = np.linalg.norm(W) * 4 / np.sqrt(30 * 50)
    assert np.sqrt(np.mean(np.square(norms))) == pytest.approx(expected, rel=0.1)


def test_largest_cosine_is_1_where_a_direction_stays_and_small_where_it_is_new():
    W = np.diag([5.0, 4.0, 3.0, 2.0, 1.0, 0.5, 0.4, 0.3])
    new = np.ones(8) / np.sqrt(8)
    np.testing.assert_allclose(subspace.largest_cosines(W, 0 * W, top=3), 1)
    assert subspace.largest_cosines(W, 1e6 * np.outer(new, new), top=1) == pytest.approx(8**-0.5, rel=1e-3)


def test_a_strong_new_direction_is_an_intruder_and_a_stronger_old_one_is_not(rng):
    W = np.diag([5.0, 4.0, 3.0, 2.0, 1.0, 0.5, 0.4, 0.3])
    new = np.ones(8) / np.sqrt(8)
    assert subspace.intruder_dimensions(W, 50 * np.outer(new, new), top=4).tolist() == [0]
    assert subspace.intruder_dimensions(W, np.diag([9.0, *[0] * 7]), top=4).tolist() == []
    assert subspace.intruder_dimensions(W, 1e-3 * rng.standard_normal((8, 8)), top=4).tolist() == []


def test_bad_input(rng):
    with pytest.raises(InputError, match=r"as many columns; got \(2, 3\) and \(2, 4\)"):
        subspace.subspace_similarity(np.ones((2, 3)), np.ones((2, 4)))
    for call in (subspace.amplification, subspace.intruder_dimensions):
        with pytest.raises(InputError, match="r must be an integer from 1 to 3"):
            call(np.ones((3, 4)), np.ones((3, 4)), 5)
