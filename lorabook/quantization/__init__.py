"""Weights in four bits: what the codes stand for, how they lie in memory, and what is lost.

Levels: `nf4`, `int4`. Storage: `blockwise` (a scale a block, two codes a byte), `double_quant` (8-bit scales),
`ggml_blocks` (the layouts in GGUF files). `formats` is the table of all; `errors` compares them; `few_bits` rounds to
fewer than four, without storing it; `loftq` makes up for the loss with LoRA factors.
"""

from .blockwise import pack, unpack
from .double_quant import dequantize_scales, quantize_scales
from .errors import error_table
from .few_bits import FEW, Rounded, even_levels, quantizer, round_weight
from .formats import FORMATS, Format, Quantized, from_ggml, quantize_weight
from .ggml_blocks import BLOCKS, dequantize_ggml, quantize_blocks, row_bytes
from .int4 import int4_levels
from .loftq import loftq
from .nf4 import nf4_levels, normal_levels

__all__ = [
    "BLOCKS",
    "FEW",
    "FORMATS",
    "Format",
    "Quantized",
    "Rounded",
    "dequantize_ggml",
    "dequantize_scales",
    "error_table",
    "even_levels",
    "from_ggml",
    "int4_levels",
    "loftq",
    "nf4_levels",
    "normal_levels",
    "pack",
    "quantize_blocks",
    "quantize_scales",
    "quantize_weight",
    "quantizer",
    "round_weight",
    "row_bytes",
    "unpack",
]
