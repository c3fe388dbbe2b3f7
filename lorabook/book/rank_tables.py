"""The tables of chapter 06: rows in, text out."""

import numpy as np

from ..files import format_table, median_by
from ..studies import against_full, best_recipes

METHODS = ("svd", "activation_svd", "lora")


def medians(rows, column, by=("method", "r")):
    """{key: median of the column over the seeds}."""
    return {key: middle for key, (middle, _, _) in median_by(rows, by, column).items()}


def ranks(rows):
    """The ranks that occur, the smallest first."""
    return sorted({row["r"] for row in rows if row["r"]})


def _table(heading, items, columns):
    return f"{heading}\n{format_table(items, columns)}"


def right(rows):
    """Share of held-out rows right, by rank and method, and LoRA's difference to full fine-tuning."""
    share, gaps = medians(rows, "test_accuracy"), against_full(rows)
    columns = {"r": str} | {m: lambda r, m=m: f"{100 * share[m, r]:.1f} %" for m in METHODS}
    columns["lora minus full"] = lambda r: "{:+.1f} +- {:.1f}".format(*(100 * part for part in gaps["lora", r]))
    return _table(f"right; full fine-tuning: {100 * share['full', None]:.1f} %", ranks(rows), columns)


def distances(rows):
    """Weight error by rank and method."""
    error = medians(rows, "weight_error")
    columns = {"r": str} | {m: lambda r, m=m: f"{error[m, r]:.2f}" for m in METHODS}
    return _table("distance to the update of full fine-tuning", ranks(rows), columns)


def repeated(live, recorded):
    """Rows computed now, beside those of the file."""
    known = {(row["method"], row["r"], row["seed"]): row["test_accuracy"] for row in recorded}
    columns = {
        "method": lambda row: row["method"],
        "r": lambda row: str(row["r"] or ""),
        "seed": lambda row: str(row["seed"]),
        "right": lambda row: f"{100 * row['test_accuracy']:.1f} %",
        "in the file": lambda row: f"{100 * known[row['method'], row['r'], row['seed']]:.1f} %",
    }
    return format_table(live, columns)


def places(rows):
    """Where updates lie, from the rows of `updates.places`."""
    columns = {"update": lambda row: row["update"]}
    columns |= {name: lambda row, name=name: f"{row[name]:.2f}" for name in ("length", "cosine", "distance")}
    columns["right, training"] = lambda row: f"{100 * row['train_accuracy']:.1f} %"
    columns["held out"] = lambda row: f"{100 * row['test_accuracy']:.1f} %"
    return format_table(rows, columns)


def costs(rows):
    """Seconds and stored numbers of each rank."""
    seconds, params = medians(rows, "seconds"), medians(rows, "params")
    columns = {
        "r": str,
        "numbers in the factors": lambda r: f"{params['lora', r]:,}",
        "of the matrices": lambda r: f"{params['lora', r] / params['full', None]:.0%}",
        "one training": lambda r: f"{seconds['lora', r]:.2f} s",
    }
    return format_table(ranks(rows), columns)


def bound_ratios(rows):
    """Trained error over the best possible one: a line for each scaling and number of steps."""
    ratios = medians(rows, "ratio", ("condition", "steps", "r"))
    runs, found = list(dict.fromkeys(key[:2] for key in ratios)), sorted({row["r"] for row in rows})
    columns = {"inputs, steps": lambda run: f"1 to 1/{run[0]}, {run[1]:4} steps"}
    columns |= {f"r = {r}": lambda run, r=r: f"{ratios[(*run, r)]:.3f}" for r in found}
    worst = {run: max(row["ratio"] for row in rows if (row["condition"], row["steps"]) == run) for run in runs}
    columns["worst run"] = lambda run: f"{worst[run]:.3f}"
    return _table("trained error / best possible error, median of 5 problems", runs, columns)


def wrong_at(rows):
    """{(r, lora_alpha, use_rslora, lr): percent wrong on validation rows, mean of the splits}."""
    found = {}
    for row in rows:
        key = row["r"], row["lora_alpha"], row["use_rslora"], row["lr"]
        found.setdefault(key, []).append(100 * (1 - row["validation_accuracy"]))
    return {key: float(np.mean(values)) for key, values in found.items()}


def rates(rows):
    """The best rate and scaling of each rank, and what the usual ones cost."""
    wrong, best = wrong_at(rows), best_recipes(rows)

    def least(r):
        cells = best[r].cells(r)
        return f"{wrong[r, cells['lora_alpha'], cells['use_rslora'], best[r].lr]:.1f} %"

    columns = {
        "": lambda r: f"LoRA, r = {r}" if r else "full fine-tuning",
        "lr": lambda r: f"{best[r].lr:g}",
        "scaling": lambda r: f"{best[r].lora_alpha} / {'sqrt(r)' if best[r].use_rslora else 'r'}" if r else "",
        "wrong": least,
        "wrong at 0.01, 16 / r": lambda r: f"{wrong[r, 16, 0, 0.01]:.1f} %" if r else "",
    }
    return format_table([None, *ranks(rows)], columns)
