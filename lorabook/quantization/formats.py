"""The table of formats in which a weight can be held, and the weight itself in one of them."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ..backend import array_namespace, to_numpy
from ..errors import InputError
from . import ggml_blocks
from .blockwise import (
    dequantize_bytes,
    dequantize_packed,
    in_blocks,
    nearest,
    pack,
    padded_size,
    pair_table,
    quotients,
)
from .double_quant import dequantize_scales, quantize_scales
from .int4 import LARGEST, int4_levels
from .nf4 import nf4_levels

BLOCK_64 = 64  # weights that share a scale, as in QLoRA


@dataclass(frozen=True)
class Format:
    """One way to hold a matrix: `quantize(W float32) -> arrays`; `levels()`: what codes stand for (None: 8-bit ones).

    block: weights that share a scale. bits: a weight, as files have it; here, scales are always float32.
    """

    what: str
    block: int
    bits: float
    quantize: Callable
    levels: Callable | None


@dataclass(frozen=True)
class Quantized:
    """A weight (d_out, d_in) in one of FORMATS: {name: array} of what it holds; `dequantize` gives the numbers back."""

    format: str
    shape: tuple
    arrays: dict = field(repr=False)

    @property
    def size(self):
        """Entries of `out` in `dequantize`."""
        return padded_size(self.shape, FORMATS[self.format].block)

    @property
    def nbytes(self):
        """Bytes in memory."""
        return sum(math.prod(a.shape) * to_numpy(a[:0]).itemsize for a in self.arrays.values())

    def dequantize(self, out=None, dtype="float32"):
        """W (d_out, d_in) in float32 or float64, on the backend of the arrays.

        out: NumPy memory, flat, of this dtype and at least `size` entries; W is then a view of it.
        """
        arrays, levels = self.arrays, FORMATS[self.format].levels
        xp = array_namespace(*arrays.values())
        scale = arrays["scale"] if "scale" in arrays else dequantize_scales(arrays)
        if levels is None:
            flat = dequantize_bytes(arrays["codes"], scale, xp.empty(0, dtype=getattr(xp, dtype)), out)
        else:
            table = _table(levels, dtype)
            flat = dequantize_packed(arrays["codes"], scale, table, out, arrays.get("minimum"))
        return xp.reshape(flat[: math.prod(self.shape)], self.shape)


@functools.cache
def _table(levels, dtype):
    return pair_table(levels().astype(dtype))


def quantize_weight(W, format="nf4"):
    """W (d_out, d_in), of any backend, as a `Quantized` of NumPy arrays.

    Raises InputError for an unknown format, for NaN or Inf, and for a scale that the format cannot hold.

    >>> import numpy as np
    >>> from lorabook.quantization import quantize_weight
    >>> W = np.random.default_rng(0).standard_normal((32, 64)).astype("f4")
    >>> q = quantize_weight(W, "nf4")
    >>> q.nbytes, W.nbytes, bool(np.abs(q.dequantize() - W).max() < 0.6)
    (1152, 8192, True)
    """
    if format not in FORMATS:
        raise InputError(f"unknown format {format!r}; expected one of {', '.join(FORMATS)}")
    W = to_numpy(W)
    if W.ndim != 2 or not W.size or W.dtype.kind != "f":
        raise InputError(f"expected a weight (d_out, d_in) of floats; got shape {W.shape}, dtype {W.dtype}")
    with np.errstate(over="ignore"):
        W = W.astype("f4", copy=False)
    if not np.isfinite(W).all():
        raise InputError("the weight holds NaN or Inf in float32; nothing can be quantised to that")
    return Quantized(format, W.shape, FORMATS[format].quantize(W))


def from_ggml(raw, kind, shape):
    """The `Quantized` that holds what the bytes of a GGML tensor do, to the last bit. kind: Q4_0, Q4_1 or Q8_0.

    raw: uint8, as in the file; shape (d_out, d_in). Raises InputError for another kind.
    """
    if kind.lower() not in FORMATS:
        raise InputError(f"a weight of type {kind} cannot be kept as it is; expected Q4_0, Q4_1 or Q8_0: dequantise it")
    return Quantized(kind.lower(), tuple(shape), ggml_blocks.to_codes(raw, kind))


def _nf4(W):
    blocks = in_blocks(W, BLOCK_64)
    scale = np.max(np.abs(blocks), axis=1)  # the largest of a block has the level 1 or -1
    return {"codes": pack(nearest(quotients(blocks, scale), nf4_levels()).reshape(-1)), "scale": scale}


def _nf4_double(W):
    """Codes for the scales that will be read back, not for those that they stand for: errors do not add up."""
    blocks = in_blocks(W, BLOCK_64)
    second = quantize_scales(np.max(np.abs(blocks), axis=1))
    scale = dequantize_scales(second)
    return {"codes": pack(nearest(quotients(blocks, scale), nf4_levels()).reshape(-1)), **second}


def _int4(W):
    blocks = in_blocks(W, BLOCK_64)
    scale = np.max(np.abs(blocks), axis=1) / np.float32(LARGEST)
    return {"codes": pack(nearest(quotients(blocks, scale), int4_levels()).reshape(-1)), "scale": scale}


def _ggml(kind):
    def quantize(W):
        return ggml_blocks.to_codes(ggml_blocks.quantize_blocks(in_blocks(W, ggml_blocks.SMALL), kind), kind)

    return quantize


def zero_to_fifteen():
    """0 .. 15 in float32: codes of a format with a minimum."""
    return np.arange(16, dtype="f4")


DOUBLE_BITS = 4 + 8 / 64 + 32 / (64 * 256)
FORMATS = {
    "nf4": Format("normal quantiles, a float32 scale for 64", BLOCK_64, 4.5, _nf4, nf4_levels),
    "nf4_double": Format("the same, scales in 8 bits", BLOCK_64, DOUBLE_BITS, _nf4_double, nf4_levels),
    "int4": Format("even levels -7 .. 7, a float32 scale for 64", BLOCK_64, 4.5, _int4, int4_levels),
    "q4_0": Format("GGML: even levels -8 .. 7, a float16 scale for 32", 32, 4.5, _ggml("Q4_0"), int4_levels),
    "q4_1": Format("GGML: even levels from a minimum, two float16 for 32", 32, 5.0, _ggml("Q4_1"), zero_to_fifteen),
    "q8_0": Format("GGML: 8 bits, a float16 scale for 32", 32, 8.5, _ggml("Q8_0"), None),
}
