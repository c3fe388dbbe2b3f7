"""The blocks of GGML against the library `gguf`, bit for bit."""

import gguf
import numpy as np
import pytest
from checks import same_bits

from lorabook import InputError
from lorabook.quantization import BLOCKS, dequantize_ggml, from_ggml, quantize_blocks, quantize_weight, row_bytes

SMALL = ("Q4_0", "Q4_1", "Q8_0")


def bytes_of(rng, kind, rows, width):
    """Random codes under scales that are finite numbers of either sign."""
    block = BLOCKS[kind]
    if block.weights == 1:
        W = rng.standard_normal((rows, width)).astype("f4")
        return gguf.quants.quantize(W, gguf.GGMLQuantizationType[kind]).view("u1").reshape(rows, -1)
    raw = rng.integers(0, 256, (rows * width // block.weights, block.nbytes)).astype("u1")
    for at in {"Q4_1": (0, 2), "Q4_K": (0, 2), "Q6_K": (208,)}.get(kind, (0,)):
        raw[:, at : at + 2] = rng.standard_normal((len(raw), 1)).astype("<f2").view("u1")
    return raw.reshape(rows, -1)


@pytest.mark.parametrize("kind", BLOCKS)
def test_decoded_as_the_library_does(rng, kind):
    for rows, width in ((3, 512), (1, 256), (1300, 256)):  # the last in several pieces
        raw = bytes_of(rng, kind, rows, width)
        assert raw.shape[1] == row_bytes(kind, width)
        want = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind])
        got = dequantize_ggml(raw, kind, (rows, width))
        assert same_bits(got, want)
        out = np.empty((rows, width), "f4")
        assert dequantize_ggml(raw, kind, (rows, width), out) is out and same_bits(out, want)


@pytest.mark.parametrize("kind", BLOCKS)
def test_numbers_and_sizes_are_the_librarys(kind):
    type_id = gguf.GGMLQuantizationType[kind]
    assert (type_id.value, gguf.GGML_QUANT_SIZES[type_id]) == (BLOCKS[kind].id, BLOCKS[kind][1:3])


@pytest.mark.parametrize("kind", SMALL)
def test_kept_in_four_bits_nothing_changes(rng, kind):
    raw = bytes_of(rng, kind, 5, 96)
    kept = from_ggml(raw, kind, (5, 96))
    assert same_bits(kept.dequantize(), dequantize_ggml(raw, kind, (5, 96)))
    assert kept.format == kind.lower() and kept.nbytes < 5 * 96 * 1.25


@pytest.mark.parametrize("kind", SMALL)
def test_rounded_as_the_library_does(rng, kind):
    W = rng.standard_normal((7, 96)).astype("f4")
    W[2, :32], W[3, 32:64] = 0, 2.5  # a scale of zero; a range of zero
    W[4, :32] = np.arange(-15.5, 16.5)  # half way between two codes, once the largest is a code
    W[4, 0] = 127
    raw = gguf.quants.quantize(W, gguf.GGMLQuantizationType[kind])
    assert same_bits(quantize_blocks(W.reshape(-1, 32), kind), raw.reshape(-1, BLOCKS[kind].nbytes))
    want = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind])
    assert same_bits(quantize_weight(W, kind.lower()).dequantize(), want)


def test_what_is_refused(rng):
    with pytest.raises(InputError, match="a row of 40 weights cannot be of type Q4_1, whose blocks have 32"):
        row_bytes("Q4_1", 40)
    with pytest.raises(InputError, match=r"64 bytes of type F32 are no tensor of shape \(3, 4\)"):
        dequantize_ggml(np.zeros(64, "u1"), "F32", (3, 4))
    with pytest.raises(InputError, match="of type Q6_K cannot be kept as it is; expected Q4_0, Q4_1 or Q8_0"):
        from_ggml(bytes_of(rng, "Q6_K", 1, 256), "Q6_K", (1, 256))
