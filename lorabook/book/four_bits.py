"""The numbers in the pictures of chapter 14: a row of real weights in blocks, the levels of NF4, errors by format."""

from statistics import NormalDist

import numpy as np

from ..files import open_weights, read_gguf
from ..hub import locate
from ..linalg import low_rank
from ..quantization import FORMATS, error_table, even_levels, nf4_levels, quantize_weight, round_weight

SHOWN, BLOCK = 3, 64  # blocks in the drawing, and weights in each
MATRIX = "encoder.layer.3.attention.self.query.weight"
BLOCKS = (16, 32, 64, 128, 256, 1024)
LEVELS = {"NF4's levels": nf4_levels, "even levels": lambda: even_levels(4)}
SIDES = ("nf4", "nf4_double", "int4", "q4_0", "q4_1")
ROWS = 4096  # of SmolLM2's embedding


def minilm_matrices():
    """{name: W (d_out, d_in)}: the 36 matrices in the blocks of MiniLM."""
    tensors = open_weights(locate("minilm"))
    return {n: np.asarray(W) for n, W in tensors.items() if "encoder.layer." in n and len(W.shape) == 2}


def smollm2_embedding():
    """The first rows of SmolLM2's embedding, which its file holds in 8 bits: the nearest to full precision in it."""
    path = next(locate("smollm2").glob("*.gguf"))
    tensors = read_gguf(path)[1]
    return tensors["token_embd.weight"].read("float32")[:ROWS]


def drawing(jobs=1, progress=False, runs=None):
    """Rows {what, i, value, rounded, scale, z}: weights of three blocks, and levels with their quantile z."""
    W = np.asarray(open_weights(locate("minilm"))[MATRIX])
    start = 64 * 2
    weights = W.reshape(-1)[start : start + SHOWN * BLOCK]
    rounded = quantize_weight(weights[None], "nf4").dequantize()[0]
    scale = np.abs(weights.reshape(SHOWN, BLOCK)).max(axis=1)
    rows = [
        {"what": "weight", "i": i, "value": float(w), "rounded": float(q), "scale": float(scale[i // BLOCK]), "z": None}
        for i, (w, q) in enumerate(zip(weights, rounded, strict=True))
    ]
    largest = NormalDist().inv_cdf((2 - 1 / 32 - 1 / 30) / 2)
    levels = [{"what": "level", "i": i, "value": float(level)} for i, level in enumerate(nf4_levels())]
    return rows + [row | {"rounded": None, "scale": None, "z": row["value"] * largest} for row in levels]


def format_errors(jobs=1, progress=False, runs=None):
    """Rows {source, matrix, what, block, bits, relative_error}: formats of the library, then levels by block length.

    What is no format has float16 scales: 4 + 16 / block bits. max_error as in `error_table`; of formats only.
    """
    rows = []
    for source, matrices in (("minilm", minilm_matrices()), ("smollm2", {"token_embd": smollm2_embedding()})):
        for row in error_table(matrices, SIDES):
            about = {"source": source, "matrix": row["matrix"], "what": row["format"]}
            about["block"] = FORMATS[row["format"]].block
            rows.append(about | {name: row[name] for name in ("bits", "relative_error", "max_error")})
        for name, W in matrices.items():
            for what, levels in LEVELS.items():
                for block in BLOCKS:
                    about = {"source": source, "matrix": name, "what": what, "block": block, "bits": 4 + 16 / block}
                    rows.append(about | {"relative_error": block_error(W, levels(), block), "max_error": None})
    return rows


def block_error(W, levels, block):
    """||W - Q||_F / ||W||_F of rounding to the levels times float16 scales, the absmax of each block."""
    lost = W - round_weight(W, levels, block, "f2").dequantize()
    return low_rank.frobenius(lost.astype("f8")) / low_rank.frobenius(W.astype("f8"))
