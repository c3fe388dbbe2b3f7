import numpy as np
import pytest
from checks import assert_close, same_bits

from lorabook import InputError
from lorabook.backend import to_numpy
from lorabook.quantization import (
    FORMATS,
    Quantized,
    dequantize_scales,
    error_table,
    int4_levels,
    nf4_levels,
    pack,
    quantize_scales,
    quantize_weight,
    unpack,
)

# whole blocks, less than one, an odd number, a last block in part, more than one piece of the cache
SHAPES = [(6, 64), (5, 7), (1, 1), (3, 100), (64, 96), (130, 1100)]
LEVELS = {"nf4": nf4_levels, "nf4_double": nf4_levels, "int4": int4_levels}


def plainly(W, format):
    """The same by the definition: block by block, weight by weight, the nearest of the levels."""
    flat, levels = W.reshape(-1).astype("f4"), LEVELS[format]()
    out = np.empty_like(flat)
    scales = np.array([np.abs(flat[i : i + 64]).max() for i in range(0, flat.size, 64)]) / levels[-1]
    if format == "nf4_double":
        scales = dequantize_scales(quantize_scales(scales))
    for i, scale in zip(range(0, flat.size, 64), scales, strict=True):
        values = np.float32(scale) * levels
        out[i : i + 64] = values[np.abs(flat[i : i + 64, None] - values).argmin(axis=1)]
    return out.reshape(W.shape)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("format", LEVELS)
def test_every_weight_is_the_nearest_level_times_its_scale(rng, format, shape):
    W = rng.standard_normal(shape).astype("f4")
    assert_close(quantize_weight(W, format).dequantize(), plainly(W, format), 1e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("format", FORMATS)
def test_what_is_on_the_levels_stays(rng, format, shape):
    """Quantising again changes no weight by more than rounding; but for scales that are quantised themselves."""
    once = quantize_weight(rng.standard_normal(shape), format).dequantize()
    assert_close(quantize_weight(once, format).dequantize(), once, {"nf4_double": 0.03, "q4_1": 1e-3}.get(format, 1e-6))


@pytest.mark.parametrize("format", FORMATS)
def test_no_weight_is_off_by_more_than_half_a_gap(rng, format):
    W = rng.standard_normal((64, 96)).astype("f4")
    error = np.abs(quantize_weight(W, format).dequantize() - W).reshape(-1, FORMATS[format].block).max(axis=1)
    blocks = W.reshape(-1, FORMATS[format].block)
    largest, extent = np.abs(blocks).max(axis=1), np.ptp(blocks, axis=1)
    bound = {
        "nf4": largest * np.diff(nf4_levels()).max() / 2,
        "nf4_double": largest * 0.18,
        "int4": largest / 14,
        "q4_0": largest / 8,  # +8 is missing: the other end is cut to 7
        "q4_1": extent / 30,
        "q8_0": largest / 254,
    }[format]
    halves = 2.0**-11 if format.startswith("q") else 1e-6  # how far float16 scales, and float32 products, are off
    assert (error <= bound + halves * (largest + extent)).all()


@pytest.mark.parametrize("format", FORMATS)
def test_backends_and_memory(rng, put, xp, format):
    """Every backend gives the numbers of NumPy; on NumPy they may go to given memory, of either dtype."""
    q = quantize_weight(rng.standard_normal((5, 37)), format)
    moved = Quantized(q.format, q.shape, {name: put(array) for name, array in q.arrays.items()})
    for dtype in ("float32", "float64"):
        W = moved.dequantize(dtype=dtype)
        assert W.dtype == getattr(xp, dtype) and same_bits(W, q.dequantize(dtype=dtype))
        out = np.full(q.size + 3, 7.0, dtype)
        into = q.dequantize(out, dtype)
        assert np.shares_memory(into, out) and same_bits(into, to_numpy(W)) and (out[q.size :] == 7).all()
    assert moved.nbytes == q.nbytes == sum(array.nbytes for array in q.arrays.values())


@pytest.mark.parametrize("format", FORMATS)
def test_bits_a_weight(format):
    q = quantize_weight(np.ones((256, 256)), format)
    more = {"q4_0": 0.5, "q4_1": 1.0, "q8_0": 0.5}.get(format, 0)  # scales are float32 in memory
    assert abs(8 * q.nbytes / 256**2 - FORMATS[format].bits - more) < 1e-3


@pytest.mark.parametrize("format", FORMATS)
def test_zeros_and_very_small_weights(format):
    W = np.zeros((3, 128), "f4")
    W[1, 70] = 1e-42  # its reciprocal is infinite
    got = quantize_weight(W, format).dequantize()
    assert (got[[0, 2]] == 0).all() and np.abs(got[1]).max() <= 1e-42


def test_a_large_weight_spoils_its_block_only(rng):
    W = rng.standard_normal((4, 64)).astype("f4")
    spoilt = W.copy()
    spoilt[2, 5] = 1000
    a, b = (quantize_weight(w, "nf4").dequantize() for w in (W, spoilt))
    assert same_bits(a[[0, 1, 3]], b[[0, 1, 3]]) and b[2, 5] == 1000 and not np.delete(b[2], 5).any()


def test_packing(rng):
    codes = rng.integers(0, 16, 30).astype("u1")
    assert pack(codes).shape == (15,) and same_bits(unpack(pack(codes)), codes)
    assert pack(np.array([1, 15], "u1")).tolist() == [0xF1]  # the even one in the low half


def test_scales_in_eight_bits(rng):
    scale = rng.uniform(0.5, 2, 600).astype("f4")
    arrays = quantize_scales(scale)
    assert {name: (array.shape, str(array.dtype)) for name, array in arrays.items()} == {
        "scale_codes": ((600,), "int8"),
        "scale_steps": ((3,), "float32"),
        "scale_mean": ((1,), "float32"),
    }
    scale[300:] *= 0.01  # less spread out: smaller steps
    arrays = quantize_scales(scale)
    step = [np.abs(scale[i : i + 256] - scale.mean(dtype="f8")).max() / 127 for i in (0, 256, 512)]
    assert_close(arrays["scale_steps"], step, 1e-6)
    error = np.abs(dequantize_scales(arrays) - scale)
    assert (error <= np.repeat(arrays["scale_steps"], 256)[:600] * 0.501).all()
    assert_close(dequantize_scales(quantize_scales(np.full(5, 3, "f4"))), np.full(5, 3, "f4"))


@pytest.mark.parametrize(
    ("W", "format", "message"),
    [
        (np.ones((2, 2)), "nf5", "unknown format 'nf5'; expected one of nf4, nf4_double, int4"),
        (np.ones(4), "nf4", "expected a weight (d_out, d_in) of floats; got shape (4,), dtype float64"),
        (np.ones((2, 0)), "nf4", "got shape (2, 0)"),
        (np.ones((2, 2), int), "nf4", "dtype int64"),
        (np.array([[1, np.nan]]), "nf4", "NaN or Inf"),
        (np.array([[1e39, 1]]), "int4", "NaN or Inf in float32"),
        (np.array([[1e7, 1]]), "q4_0", "too large for the float16 scales of Q4_0"),
        (np.array([[-1e6, 1]]), "q4_1", "too large for the float16 scales of Q4_1"),
    ],
)
def test_what_is_refused(W, format, message):
    with pytest.raises(InputError) as caught:
        quantize_weight(W, format)
    assert message in str(caught.value)


def test_error_table(rng):
    """Of normal weights NF4 loses less than even levels; 8 bits a tenth of it; a table has a row for each pair."""
    matrices = {"a": rng.standard_normal((64, 128)), "b": np.zeros((3, 64))}
    rows = {(row["format"], row["matrix"]): row for row in error_table(matrices)}
    assert len(rows) == 2 * len(FORMATS)
    error = {format: rows[format, "a"]["relative_error"] for format in FORMATS}
    assert error["nf4"] < error["int4"] and error["q4_1"] < error["q4_0"] and error["q8_0"] < error["nf4"] / 10
    assert abs(error["nf4_double"] / error["nf4"] - 1) < 0.01  # scales in 8 bits cost next to nothing
    W, Q = matrices["a"], quantize_weight(matrices["a"], "nf4").dequantize(dtype="float64")
    assert_close(rows["nf4", "a"]["relative_error"], np.linalg.norm(W - Q) / np.linalg.norm(W))
    assert_close(rows["nf4", "a"]["max_error"], np.abs(W - Q).max() / np.abs(W).max())
    assert all(rows[format, "b"]["relative_error"] == rows[format, "b"]["max_error"] == 0 for format in FORMATS)
