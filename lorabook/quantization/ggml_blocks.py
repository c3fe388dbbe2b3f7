"""The blocks of GGML, in which GGUF files hold tensors: bytes of a row -> float32, by hand.

A block is a few scales followed by codes. In the small ones (32 weights) byte j holds the codes of the weights j (low
half) and j + 16 (high half). Those called K have 256 weights, cut into groups whose scales are integers themselves,
times a float16 of the whole block: double quantisation.
"""

import math
from typing import NamedTuple

import numpy as np

from ..errors import InputError
from .blockwise import pack, quotients

SMALL, LARGE = 32, 256
HALF = np.dtype("<f2")


class Block(NamedTuple):
    """`id`: the type's number in a file. `weights` a block, in `nbytes` bytes. decode: (n, nbytes) -> (n, weights)."""

    id: int
    weights: int
    nbytes: int
    decode: object


def _halves(qs):
    """Codes 0 .. 15 of bytes (n, k): the low halves of all, then the high halves, (n, 2 k)."""
    return np.concatenate([qs & 15, qs >> 4], axis=1)


def _half(raw, at):
    """The float16 at this byte of each block, as float32 (n, 1)."""
    return np.ascontiguousarray(raw[:, at : at + 2]).view(HALF).astype("f4")


def _f32(raw):
    return np.ascontiguousarray(raw).view("<f4").astype("f4", copy=False)


def _f16(raw):
    return np.ascontiguousarray(raw).view(HALF).astype("f4")


def _bf16(raw):
    return (np.ascontiguousarray(raw).view("<u2").astype("u4") << 16).view("f4")


def _q4_0(raw):
    """W = d (q - 8)."""
    return _half(raw, 0) * (_halves(raw[:, 2:]).astype("f4") - 8)


def _q4_1(raw):
    """W = d q + m."""
    return _half(raw, 0) * _halves(raw[:, 4:]).astype("f4") + _half(raw, 2)


def _q8_0(raw):
    """W = d q, q from -128 to 127."""
    return _half(raw, 0) * raw[:, 2:].view("i1").astype("f4")


def _q4_k(raw):
    """W = (d sc_g) q - (dmin m_g) in 8 groups of 32; sc and m are 6-bit integers, in 12 bytes together."""
    d, dmin, packed, n = _half(raw, 0), _half(raw, 2), raw[:, 4:16].reshape(-1, 3, 4), len(raw)
    low, high, rest = packed[:, 0], packed[:, 1], packed[:, 2]  # (n, 4)
    sc = np.concatenate([low & 63, (rest & 15) | ((low >> 2) & 48)], axis=1).astype("f4")  # (n, 8)
    m = np.concatenate([high & 63, (rest >> 4) | ((high >> 2) & 48)], axis=1).astype("f4")
    q = raw[:, 16:].reshape(n, 4, 1, 32) >> np.array([0, 4], "u1")[:, None] & 15  # (n, 4, 2, 32)
    return ((d * sc)[..., None] * q.reshape(n, 8, 32).astype("f4") - (dmin * m)[..., None]).reshape(n, LARGE)


def _q6_k(raw):
    """W = (d sc_g) (q - 32) in 16 groups of 16; of each q, 4 bits lie in the first 128 bytes, 2 in the next 64."""
    n = len(raw)
    low = (raw[:, :128].reshape(n, 2, 1, 64) >> np.array([0, 4], "u1")[:, None] & 15).reshape(n, 8, 32)
    high = (raw[:, 128:192].reshape(n, 2, 1, 32) >> np.array([0, 2, 4, 6], "u1")[:, None] & 3).reshape(n, 8, 32)
    q = (low | high << 4).reshape(n, 16, 16).astype("f4") - 32
    scale = _half(raw, 208) * np.ascontiguousarray(raw[:, 192:208]).view("i1").astype("f4")  # (n, 16)
    return (scale[..., None] * q).reshape(n, LARGE)


BLOCKS = {
    "F32": Block(0, 1, 4, _f32),
    "F16": Block(1, 1, 2, _f16),
    "Q4_0": Block(2, SMALL, 18, _q4_0),
    "Q4_1": Block(3, SMALL, 20, _q4_1),
    "Q8_0": Block(8, SMALL, 34, _q8_0),
    "Q4_K": Block(12, LARGE, 144, _q4_k),
    "Q6_K": Block(14, LARGE, 210, _q6_k),
    "BF16": Block(30, 1, 2, _bf16),
}
PIECE = 1 << 18  # weights that are decoded at a time


def row_bytes(kind, width):
    """Bytes of a row of so many weights. Raises InputError unless whole blocks make it up."""
    block = BLOCKS[kind]
    if width % block.weights:
        raise InputError(f"a row of {width} weights cannot be of type {kind}, whose blocks have {block.weights}")
    return width // block.weights * block.nbytes


def dequantize_ggml(raw, kind, shape, out=None):
    """float32 of this shape from the bytes of a tensor, uint8 in any shape. out: float32, contiguous, to be filled."""
    block = BLOCKS[kind]
    raw = raw.reshape(-1, block.nbytes)
    if raw.shape[0] * block.weights != math.prod(shape):
        raise InputError(f"{raw.size} bytes of type {kind} are no tensor of shape {tuple(shape)}")
    out = np.empty(shape, "f4") if out is None else out
    flat, step = out.reshape(-1, block.weights), max(1, PIECE // block.weights)
    with np.errstate(invalid="ignore", over="ignore"):  # inf * 0 in a damaged block: whoever reads it looks
        for start in range(0, len(flat), step):
            flat[start : start + step] = block.decode(raw[start : start + step])
    return out


# ---- the small blocks, both ways -------------------------------------------------------------------------------------


def to_codes(raw, kind):
    """{"codes", "scale", of Q4_1 "minimum"} from the bytes of blocks. A byte then holds the codes of neighbours."""
    raw = raw.reshape(-1, BLOCKS[kind].nbytes)
    scale = _half(raw, 0)[:, 0]
    if kind == "Q8_0":
        return {"codes": raw[:, 2:].view("i1").reshape(-1), "scale": scale}
    if kind == "Q4_0":
        return {"codes": pack(_halves(raw[:, 2:]).reshape(-1)), "scale": scale}
    return {"codes": pack(_halves(raw[:, 4:]).reshape(-1)), "scale": scale, "minimum": _half(raw, 2)[:, 0]}


def quantize_blocks(blocks, kind):
    """The bytes uint8 (n, nbytes) of blocks (n, 32) float32, rounded as llama.cpp's own reference does.

    Q4_0: the weight of largest magnitude becomes -8 exactly. Q4_1: the range from the least to the largest in 15 steps.
    """
    minimum = None
    if kind == "Q8_0":
        scale = np.max(np.abs(blocks), axis=1) / np.float32(127)
        q = quotients(blocks, scale)
        codes = (np.sign(q) * np.floor(np.abs(q) + np.float32(0.5))).astype("i1").view("u1")
    elif kind == "Q4_0":
        largest = np.take_along_axis(blocks, np.argmax(np.abs(blocks), axis=1)[:, None], axis=1)[:, 0]
        scale = largest / np.float32(-8)
        codes = np.clip(quotients(blocks, scale) + np.float32(8.5), 0, 15).astype("u1")
    else:
        minimum = np.min(blocks, axis=1)
        scale = (np.max(blocks, axis=1) - minimum) / np.float32(15)
        codes = np.clip(quotients(blocks - minimum[:, None], scale) + np.float32(0.5), 0, 15).astype("u1")
    if kind != "Q8_0":
        codes = codes[:, : SMALL // 2] | codes[:, SMALL // 2 :] << 4
    with np.errstate(over="ignore"):
        halves = [np.asarray(s).astype(HALF) for s in (scale, minimum) if s is not None]
    if not all(np.isfinite(half).all() for half in halves):
        raise InputError(f"the weight holds numbers too large for the float16 scales of {kind}; expected below 65504")
    return np.concatenate([*(half[:, None].view("u1") for half in halves), codes], axis=1)
