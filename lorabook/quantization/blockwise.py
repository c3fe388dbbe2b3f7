"""Weights as 4-bit codes in blocks, two codes a byte: W[i] = levels[code[i]] * scale[block of i] (+ minimum).

A matrix is taken in row-major order and cut into blocks of equal length, each with a scale of its own, so that one
large weight spoils the resolution of its block only. The last block is filled up with zeros.
"""

import math

import numpy as np

from ..backend import BLOCK, array_namespace, asarray_like, empty


def padded_size(shape, block):
    """Entries of a matrix of this shape once its last block is full."""
    return math.ceil(math.prod(shape) / block) * block


def in_blocks(W, block):
    """W (d_out, d_in) as blocks (n, block) in its own dtype; zeros fill the last one."""
    flat = np.zeros(padded_size(W.shape, block), W.dtype)
    flat[: W.size] = W.reshape(-1)
    return flat.reshape(-1, block)


def nearest(values, levels):
    """Indices uint8 of the ascending `levels` that are nearest to the values; half way, the upper one.

    Errors of half a gap at most: the number of midpoints below a value is the index of its level.
    """
    return np.searchsorted((levels[1:] + levels[:-1]) / 2, values, side="right").astype("u1")


def quotients(blocks, scale):
    """blocks (n, block) / scale (n,); 0 where the scale is 0, or so small that its reciprocal overflows."""
    with np.errstate(divide="ignore", over="ignore"):
        inverse = 1 / scale
    return blocks * np.where(np.isfinite(inverse), inverse, 0)[:, None]


def pack(codes):
    """Codes 0 .. 15, uint8 (2 n,) -> bytes (n,): the even one in the low half, the odd one in the high half."""
    return codes[0::2] | (codes[1::2] << 4)


def unpack(packed):
    """The codes uint8 (2 n,) of bytes (n,)."""
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(-1)  # (2 n,)


def pair_table(levels):
    """(256, 2): the two levels that each byte stands for. One look-up then gives two weights."""
    byte = np.arange(256)
    return np.stack([levels[byte & 15], levels[byte >> 4]], axis=-1)


def dequantize_packed(packed, scale, table, out=None, minimum=None):
    """The weights, flat: table[byte] (2,) * scale of its block, + minimum.

    packed (n,) uint8, scale (blocks,) and minimum (blocks,) or None on any backend; table: host, of `pair_table`. The
    result has the table's dtype. out: NumPy memory for the 2 n numbers, else it is new. On NumPy it is done in pieces
    that fit the cache, so that what is looked up is scaled before it goes to memory.
    """
    xp = array_namespace(packed, scale, minimum)
    block = 2 * packed.shape[0] // scale.shape[0]
    if xp is not np:
        table = asarray_like(table, scale, dtype=getattr(xp, str(table.dtype)))
        pairs = xp.take(table, xp.astype(packed, xp.int64), axis=0)  # (n, 2)
        return _scaled(xp.reshape(pairs, (-1, block)), scale, minimum)
    out = np.empty(2 * packed.size, table.dtype) if out is None else out[: 2 * packed.size]
    pair = np.dtype(f"c{2 * table.itemsize}")  # two floats side by side, moved as one: as a complex number
    table, pairs, rows = np.ascontiguousarray(table).view(pair)[:, 0], out.view(pair), out.reshape(-1, block)
    step = max(1, BLOCK // block)  # blocks at a time
    for start in range(0, len(rows), step):
        part = slice(start * block // 2, (start + step) * block // 2)
        np.take(table, packed[part], out=pairs[part], mode="clip")  # "raise", the default, would buffer
        stop = start + step
        _scaled_in_place(rows[start:stop], scale[start:stop], None if minimum is None else minimum[start:stop])
    return out


def dequantize_bytes(codes, scale, like, out=None):
    """The weights, flat, from signed 8-bit codes (n,): code * scale. like: an array of the dtype to come."""
    xp = array_namespace(codes, scale)
    block = codes.shape[0] // scale.shape[0]
    if xp is not np:
        return _scaled(xp.reshape(xp.astype(codes, like.dtype), (-1, block)), scale, None)
    out = empty(codes.shape, like) if out is None else out[: codes.size]
    np.multiply(codes.reshape(-1, block), scale[:, None], out=out.reshape(-1, block), dtype=out.dtype, casting="unsafe")
    return out


def _scaled(rows, scale, minimum):
    xp = array_namespace(rows)
    rows = rows * xp.astype(scale, rows.dtype)[:, None]
    if minimum is not None:
        rows = rows + xp.astype(minimum, rows.dtype)[:, None]
    return xp.reshape(rows, (-1,))


def _scaled_in_place(rows, scale, minimum):
    rows *= scale[:, None]
    if minimum is not None:
        rows += minimum[:, None]
