"""The tables of chapter 14: rows in, text out."""

import numpy as np

from ..files import format_table
from ..studies import mean_and_error
from .rank_tables import medians

NAMES = {"minilm": "MiniLM, 36 matrices", "smollm2": "SmolLM2, embedding"}


def formats(rows):
    """({(source, format): (relative error, largest error)}, a table): means over the matrices of a source."""
    found, bits = {}, {}
    for row in rows:
        if row["max_error"] is not None:
            key = row["source"], row["what"]
            found.setdefault(key, []).append((row["relative_error"], row["max_error"]))
            bits[row["what"]] = row["bits"]
    error = {key: tuple(float(v) for v in np.mean(values, axis=0)) for key, values in found.items()}
    columns = {"format": str, "bits": lambda what: f"{bits[what]:.3f}"}
    for source, name in NAMES.items():
        columns[name] = lambda what, source=source: f"{100 * error[source, what][0]:.2f} %"
    columns["largest error, MiniLM"] = lambda what: f"{100 * error['minilm', what][1]:.1f} %"
    return error, format_table(list(bits), columns)


def ratios(rows, one, other, source="minilm"):
    """Relative error of one format over that of another, matrix by matrix."""
    errors = {(row["what"], row["matrix"]): row["relative_error"] for row in rows if row["source"] == source}
    names = [matrix for what, matrix in errors if what == one]
    return [errors[one, name] / errors[other, name] for name in dict.fromkeys(names)]


def lines(rows):
    """{(source, levels, block): mean relative error} of what is no format."""
    found = {}
    for row in rows:
        if row["max_error"] is None:
            found.setdefault((row["source"], row["what"], row["block"]), []).append(row["relative_error"])
    return {key: float(np.mean(values)) for key, values in found.items()}


def memory(tables):
    """Megabytes of weights, gradients and optimizer of {name: rows of `memory_table`}."""
    first = next(iter(tables.values()))[0]
    items = [("full fine-tuning", first), *((f"LoRA over {name}", rows[1]) for name, rows in tables.items())]
    columns = {"": lambda item: item[0], "numbers that train": lambda item: f"{item[1]['trained']:,}"}
    for part in ("weights", "gradients", "optimizer", "total"):
        columns[part] = lambda item, part=part: f"{item[1][part] / 1e6:.1f} MB"
    return format_table(items, columns)


def trainings(rows):
    """({(format, start): (weight error, right before, right after)}, a table): medians over the seeds."""
    names = "weight_error", "before", "test_accuracy"
    parts = [medians(rows, name, ("format", "start")) for name in names]
    found = {key: tuple(part[key] for part in parts) for key in parts[0]}
    own = {}
    for row in rows:
        own.setdefault((row["format"], row["start"]), []).append(row["test_accuracy"])
    columns = {
        "base": lambda key: key[0],
        "start": lambda key: key[1],
        "error": lambda key: f"{found[key][0]:.3f}",
        "upright, before": lambda key: f"{100 * found[key][1]:.1f} %",
        "turned, after": lambda key: f"{100 * found[key][2]:.1f} %",
        "lowest - highest": lambda key: f"{100 * min(own[key]):.1f} - {100 * max(own[key]):.1f}",
    }
    return found, format_table(list(found), columns)


def gap(rows, one, other):
    """(mean, standard error) of the difference in points between two (format, start), seed by seed."""
    right = {((row["format"], row["start"]), row["seed"]): 100 * row["test_accuracy"] for row in rows}
    seeds = sorted({row["seed"] for row in rows})
    return mean_and_error([right[one, seed] - right[other, seed] for seed in seeds])
