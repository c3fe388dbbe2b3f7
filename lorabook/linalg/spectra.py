"""How compressible matrices are: singular values, truncation errors at every rank, and one line that sums them up."""

import numpy as np

from ..errors import InputError
from .low_rank import (
    activation_factor,
    break_even_rank,
    check_matrix,
    energy_rank,
    output_errors,
    rank_errors,
    stable_rank,
    truncate_for_inputs,
)

LONGEST = 120  # characters of a name in an error


def spectrum(name, W, X=None):
    """(rows, summary) of a matrix W (d_out, d_in); X (N, d_in): inputs, for the errors that are weighed by them.

    rows: {layer, r, singular_value, weight_error} for r = 0 .. n, with X also svd_output_error and
    activation_svd_output_error, the error in the outputs X W^T of either truncation. Errors are relative to rank 0; of
    a matrix of zeros they are 0.
    """
    W = np.asarray(W)
    check_matrix(W, name if len(name) <= LONGEST else f"{name[:LONGEST]}...")
    W = W.astype("f8")
    s = np.linalg.svd(W, compute_uv=False)
    columns = {"singular_value": [None, *s.tolist()], "weight_error": _relative(rank_errors(s))}
    if X is not None:
        R = activation_factor([X.astype("f8")])
        plain = output_errors(W, R)
        columns["svd_output_error"] = _relative(plain)
        columns["activation_svd_output_error"] = _relative(truncate_for_inputs(W, R).errors, plain[0])
    rows = [{"layer": name, "r": r} | {c: _float(v[r]) for c, v in columns.items()} for r in range(len(s) + 1)]
    summary = {
        "layer": name,
        "shape": list(W.shape),
        "stable_rank": stable_rank(s),
        "rank_90": energy_rank(s, 0.9),
        "rank_99": energy_rank(s, 0.99),
        "break_even_rank": break_even_rank(*W.shape),
        "half": rows[min(W.shape) // 2],
    }
    return rows, summary


def _relative(errors, unit=None):
    unit = errors[0] if unit is None else unit
    return errors / unit if unit else np.zeros_like(errors)


def _float(value):
    return None if value is None else float(value)


def most_compressible(summaries):
    """The layer that keeps 90 % of its squared norm at the least share of its full rank.

    Lookup tables (embeddings) and matrices of zeros come last: a table's rows are no weights of a linear layer.
    """

    def order(row):
        return "embedding" in row["layer"], not row["rank_90"], row["rank_90"] / min(row["shape"])

    return min(summaries, key=order)["layer"]


def find_layers(names, wanted):
    """The names that are `wanted`, or end with it from a dot on, with or without `.weight`; InputError if none is."""
    found = [
        name for name in names if any(f".{n}".endswith(f".{wanted}") for n in (name, name.removesuffix(".weight")))
    ]
    if not found:
        raise InputError(f"no matrix is called {wanted!r}; expected one of {', '.join(list(names)[:8])}, or its end")
    return found
