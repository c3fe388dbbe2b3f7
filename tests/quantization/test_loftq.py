import numpy as np
import pytest
from checks import assert_close

from lorabook import InputError
from lorabook.linalg import rank_errors, svd
from lorabook.quantization import loftq, quantize_weight


@pytest.mark.parametrize("scaling", [1.0, 2.0])
def test_what_each_round_guarantees(rng, scaling):
    """The factors are the best there are for their Q, so Q + s B A is never worse than Q; the best round comes."""
    W = rng.standard_normal((48, 64)).astype("f4")
    Q, lora_A, lora_B, errors = loftq(W, 4, "nf4", rounds=6, scaling=scaling)
    assert (lora_A.shape, lora_B.shape, len(errors)) == ((4, 64), (48, 4), 7)
    quantised, norm = Q.dequantize(), np.linalg.norm(W)
    assert_close(errors[0], np.linalg.norm(W - quantize_weight(W).dequantize()) / norm, 1e-6)
    error = np.linalg.norm(W - quantised - scaling * lora_B @ lora_A) / norm
    assert_close(error, min(errors), 1e-5)
    best = rank_errors(svd((W - quantised).astype("f8"))[1])[4] / norm
    assert_close(error, best, 1e-5)
    assert errors[1] <= errors[0]


def test_more_rounds_are_never_worse(rng):
    W = rng.standard_normal((48, 64)).astype("f4")
    found = [min(loftq(W, 8, "int4", rounds)[3]) for rounds in (1, 2, 5)]
    assert found[0] >= found[1] >= found[2] and found[2] < found[0]


def test_each_round_by_its_definition(rng):
    """Q of W less the last update, then the best update for that Q; the best of all rounds comes, not the last."""
    W, update, errors, kept = rng.standard_normal((6, 64)).astype("f4"), 0, [], []
    for _ in range(8):
        Q = quantize_weight(W - update, "int4").dequantize()
        U, S, Vt = np.linalg.svd((W - Q).astype("f8"), full_matrices=False)
        update = ((U[:, :2] * S[:2]) @ Vt[:2]).astype("f4")
        errors.append(np.linalg.norm(W - Q - update) / np.linalg.norm(W))
        kept.append(Q)
    found, _, _, own = loftq(W, 2, "int4", rounds=8)
    assert_close(own[1:], errors, 1e-4)
    assert 1 < np.argmin(errors) < 7  # so neither the first nor the last
    assert_close(found.dequantize(), kept[np.argmin(errors)], 1e-6)


def test_one_round_is_quantise_and_then_truncate(rng):
    W = rng.standard_normal((20, 64))
    Q, lora_A, lora_B, _ = loftq(W, 20, rounds=1)
    assert_close(Q.dequantize() + lora_B @ lora_A, W.astype("f4"), 1e-5)  # of full rank: nothing is lost
    assert_close(lora_A @ lora_A.T, lora_B.T @ lora_B, 1e-5)  # the singular values are shared evenly


@pytest.mark.parametrize(
    ("W", "options", "message"),
    [
        (np.ones((3, 4)), {"r": 5}, "r must be an integer from 1 to 3"),
        (np.ones((3, 4)), {"r": 1, "rounds": 0}, "rounds must be an integer of at least 1"),
        (np.ones((3, 4)), {"r": 1, "scaling": 0}, "scaling must be a finite number > 0"),
        (np.zeros((3, 4)), {"r": 1}, "W is zero"),
        (np.ones((3, 4)), {"r": 1, "format": "x"}, "unknown format 'x'"),
        (np.full((3, 4), np.inf), {"r": 1}, "NaN or Inf"),
    ],
)
def test_what_is_refused(W, options, message):
    with pytest.raises(InputError, match=message):
        loftq(W, **options)
