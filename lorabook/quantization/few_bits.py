"""Fewer than four bits: what a weight loses to three or two. Computed, not stored: nothing here is packed."""

from dataclasses import dataclass, field
from functools import partial

import numpy as np

from ..backend import to_numpy
from .blockwise import in_blocks, nearest, quotients
from .formats import BLOCK_64, FORMATS, quantize_weight
from .nf4 import normal_levels


def even_levels(bits):
    """Evenly spaced levels from -1 to 1, zero among them: 2^bits - 1, as int4 has them."""
    largest = 2 ** (bits - 1) - 1
    return (np.arange(-largest, largest + 1) / largest).astype("f4")


FEW = {
    "nf3": partial(normal_levels, 3),
    "int3": partial(even_levels, 3),
    "nf2": partial(normal_levels, 2),
    "int2": partial(even_levels, 2),
}


@dataclass(frozen=True)
class Rounded:
    """A weight (d_out, d_in) whose numbers are those that codes would stand for; read as a `Quantized` is."""

    values: np.ndarray = field(repr=False)

    def dequantize(self, dtype="float32"):
        """The numbers, a new array."""
        return self.values.astype(dtype)


def round_weight(W, levels, block=BLOCK_64, scales="f4"):
    """W (d_out, d_in) as a `Rounded`: to the nearest of `levels` (ascending, within -1 .. 1) times absmax of its block.

    scales: dtype that the scales are rounded to. With the levels of NF4, blocks of 64 and float32 it has the numbers of
    `quantize_weight(W, "nf4")`, bit for bit.
    """
    W = to_numpy(W).astype("f4", copy=False)
    blocks = in_blocks(W, block)
    scale = np.max(np.abs(blocks), axis=1).astype(scales).astype("f4")
    rounded = levels[nearest(quotients(blocks, scale), levels)] * scale[:, None]  # (n, block)
    return Rounded(rounded.reshape(-1)[: W.size].reshape(W.shape))


def quantizer(name):
    """A function of W that gives what has `dequantize`. name: one of FORMATS, or of FEW."""
    return partial(quantize_weight, format=name) if name in FORMATS else lambda W: round_weight(W, FEW[name]())
