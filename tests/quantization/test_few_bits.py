import numpy as np
import pytest
from checks import assert_close, same_bits

from lorabook.quantization import (
    FEW,
    even_levels,
    loftq,
    nf4_levels,
    normal_levels,
    quantize_weight,
    quantizer,
    round_weight,
)


@pytest.mark.parametrize("bits", [2, 3, 4, 5])
def test_levels(bits):
    normal, even = normal_levels(bits), even_levels(bits)
    assert (normal.size, even.size) == (2**bits, 2**bits - 1)
    for levels in (normal, even):
        assert (levels[0], levels[-1]) == (-1, 1) and (np.diff(levels) > 0).all() and 0 in levels
    assert np.sum(normal > 0) == np.sum(normal < 0) + 1
    assert np.array_equal(even, -even[::-1])


@pytest.mark.parametrize("shape", [(24, 64), (5, 7), (3, 100)])
def test_it_has_the_numbers_of_the_packed_formats(rng, shape):
    W = rng.standard_normal(shape).astype("f4")
    assert same_bits(round_weight(W, nf4_levels()).dequantize(), quantize_weight(W, "nf4").dequantize())
    assert_close(round_weight(W, even_levels(4)).dequantize(), quantize_weight(W, "int4").dequantize(), 1e-6)


def test_zeros_stay_and_the_largest_of_a_block_is_exact(rng):
    W = rng.standard_normal((2, 64)).astype("f4")
    W[0, :5], W[1] = 0, 0
    Q = round_weight(W, normal_levels(2)).dequantize()
    assert not Q[0, :5].any() and not Q[1].any()
    k = np.abs(W[0]).argmax()
    assert Q[0, k] == W[0, k]


def test_fewer_bits_lose_more_and_normal_levels_lose_less(rng):
    W = rng.standard_normal((64, 256)).astype("f4")
    lost = {name: np.linalg.norm(W - quantizer(name)(W).dequantize()) for name in ("nf4", "int4", *FEW)}
    assert lost["nf4"] < lost["nf3"] < lost["nf2"] and lost["int4"] < lost["int3"] < lost["int2"]
    assert all(lost[f"nf{bits}"] < lost[f"int{bits}"] for bits in (2, 3, 4))


def test_loftq_takes_a_function(rng):
    W = rng.standard_normal((48, 64)).astype("f4")
    Q, lora_A, lora_B, errors = loftq(W, 4, quantizer("nf2"), rounds=3, scaling=2.0)
    assert_close(np.linalg.norm(W - Q.dequantize() - 2 * lora_B @ lora_A) / np.linalg.norm(W), min(errors), 1e-5)
    assert errors[1] < errors[0]
    same = loftq(W, 4, quantizer("nf4"))[3]
    assert same == loftq(W, 4, "nf4")[3]
