"""What 4 bits cost: the error of each format on given matrices."""

import numpy as np

from ..backend import to_numpy
from ..linalg import low_rank
from .formats import FORMATS, quantize_weight


def error_table(matrices, formats=tuple(FORMATS)):
    """A row for each format and each matrix of {name: W (d_out, d_in)}.

    Each row: format, matrix, bits (a weight, scales included, as the format's files have it), relative_error
    (||W - Q||_F / ||W||_F) and max_error (largest |W - Q| divided by the largest |W|). Both are 0 for a zero matrix.

    >>> import numpy as np
    >>> from lorabook.quantization import error_table
    >>> W = np.random.default_rng(0).standard_normal((256, 256)).astype("f4")
    >>> [(row["format"], round(row["relative_error"], 3)) for row in error_table({"W": W}, ["nf4", "int4"])]
    [('nf4', 0.092), ('int4', 0.108)]
    """
    rows = []
    for name, W in matrices.items():
        exact = to_numpy(W).astype("f8")
        norm, largest = low_rank.frobenius(exact), float(np.max(np.abs(exact)))
        for format in formats:
            difference = exact - quantize_weight(W, format).dequantize(dtype="float64")
            rows.append(
                {
                    "format": format,
                    "matrix": name,
                    "bits": FORMATS[format].bits,
                    "relative_error": low_rank.frobenius(difference) / norm if norm else 0.0,
                    "max_error": float(np.max(np.abs(difference))) / largest if largest else 0.0,
                }
            )
    return rows
