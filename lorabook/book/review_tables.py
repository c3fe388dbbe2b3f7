"""The tables of chapter 08, beside those of the paper it repeats (Hu et al. 2021): rows in, text out."""

import numpy as np

from ..files import format_table, median_by
from ..studies import reviews
from .rank_tables import medians

ALL = " ".join(reviews.ATTENTION)
TABLE_5 = {  # WikiSQL and MNLI, GPT-3 with 18 million parameters
    "query": (70.4, 91.0),
    "key": (70.0, 90.8),
    "value": (73.0, 91.0),
    "attention.output.dense": (73.2, 91.3),
    "query key": (71.4, 91.3),
    "query value": (73.7, 91.3),
    ALL: (73.7, 91.7),
}
TABLE_6 = {  # WikiSQL, at the ranks of `reviews.RANKS`
    "query": (68.8, 69.6, 70.5, 70.4, 70.0),
    "query value": (73.4, 73.3, 73.7, 73.8, 73.5),
    ALL: (74.1, 73.7, 74.0, 74.0, 73.9),
}
TABLE_7 = {  # norm of W, of the update; of U^T W V with U, V from the update, from W, random
    4: {"norm_weight": 61.95, "norm_update": 6.91, "from_update": 0.32, "from_weight": 21.67, "random": 0.02},
    64: {"norm_weight": 61.95, "norm_update": 3.57, "from_update": 1.90, "from_weight": 37.71, "random": 0.33},
}


def percent(values):
    """Median, lowest and highest of the seeds."""
    return "{:.1f} % ({:.1f} - {:.1f})".format(*(100 * v for v in values))


def _peft(key):
    """What PEFT reached; of full fine-tuning only a lower bound was noted."""
    return ("> " if key[0] == "full" else "") + f"{100 * reviews.PEFT[key]:.3g} %" if key in reviews.PEFT else ""


def recipe(rows):
    """What trains, how many numbers, at which rate, and how many reviews are right."""
    spread, params = median_by(rows, ("method", "r"), "test_accuracy"), medians(rows, "params")
    rates = {row["method"]: row["lr"] for row in rows}
    columns = {
        "trains": lambda key: key[0],
        "r": lambda key: str(key[1] or ""),
        "numbers": lambda key: f"{params[key]:,}",
        "lr": lambda key: f"{rates[key[0]]:g}",
        "right": lambda key: percent(spread[key]),
        "PEFT": _peft,
    }
    return format_table(list(spread), columns)


def matrices(rows):
    """Right for each choice of matrices, beside table 5 of the paper."""
    spread = median_by(rows, ("targets",), "test_accuracy")
    rank = {row["targets"]: row["r"] for row in rows}
    columns = {
        "matrices": lambda targets: targets.replace("attention.output.dense", "Wo"),
        "r": lambda targets: str(rank[targets]),
        "reviews": lambda targets: percent(spread[targets,]),
        "WikiSQL": lambda targets: f"{TABLE_5[targets][0]:.1f} %",
        "MNLI": lambda targets: f"{TABLE_5[targets][1]:.1f} %",
    }
    return format_table(list(TABLE_5), columns)


def ranks(rows):
    """Right at each rank, beside table 6 of the paper: one table for each choice of matrices."""
    spread, tables = median_by(rows, ("targets", "r"), "test_accuracy"), []
    for targets, paper in TABLE_6.items():
        columns = {
            targets.replace("attention.output.dense", "Wo"): lambda pair: f"r = {pair[0]}",
            "reviews": lambda pair, targets=targets: percent(spread[targets, pair[0]]),
            "WikiSQL": lambda pair: f"{pair[1]:.1f} %",
        }
        tables.append(format_table(list(zip(reviews.RANKS, paper, strict=True)), columns))
    return "\n\n".join(tables)


def phi_medians(rows):
    """{(r1, matrix): {(i, j): median phi over layers and pairs of seeds}}; the matrix None is a random one."""
    keys = dict.fromkeys((row["r1"], row["matrix"]) for row in rows)
    return {key: medians([row for row in rows if (row["r1"], row["matrix"]) == key], "phi", ("i", "j")) for key in keys}


def first_directions(rows):
    """phi(1, 1) of each layer, as {(r1, matrix, layer): median} and as a table."""
    first = [row for row in rows if row["i"] == row["j"] == 1 and row["matrix"]]
    one, layers = medians(first, "phi", ("r1", "matrix", "layer")), sorted({row["layer"] for row in first})
    columns = {"phi(1, 1)": lambda key: f"r = {key[0]} and 64, {key[1]}"}
    columns |= {f"layer {n}": lambda key, n=n: f"{one[(*key, n)]:.2f}" for n in layers}
    return one, format_table([(r1, matrix) for r1 in (8, 64) for matrix in ("query", "value")], columns)


def amplification(rows):
    """One matrix of one layer beside table 7 of the paper: as {name: {column: value}} and as a table."""
    lines = {}
    for r, paper in TABLE_7.items():
        own = [row for row in rows if (row["matrix"], row["layer"], row["r"]) == ("query", 3, r)]
        lines[f"MiniLM, r = {r}"] = {column: median_by(own, (), column)[()][0] for column in (*paper, "amplification")}
        lines[f"GPT-3, r = {r}"] = paper | {"amplification": paper["norm_update"] / paper["from_update"]}
    headings = {"norm_weight": "||W||", "norm_update": "||update||", "from_update": "in update's"}
    headings |= {"from_weight": "in W's", "random": "in random", "amplification": "factor"}
    columns = {"query, one layer": str}
    columns |= {text: lambda name, column=column: f"{lines[name][column]:.2f}" for column, text in headings.items()}
    return lines, format_table(list(lines), columns)


def factors(rows):
    """Median amplification factor over layers and seeds, by matrix and rank."""
    factor = medians(rows, "amplification", ("matrix", "r"))
    columns = {"median factor": str}
    columns |= {f"r = {r}": lambda matrix, r=r: f"{factor[matrix, r]:.1f}" for r in reviews.RANKS}
    return format_table(["query", "value"], columns)


def spectra(rows):
    """{(what, r, matrix): largest singular value}, and a table with the energy in the first directions."""
    value, energy = (medians(rows, name, ("what", "r", "matrix", "i")) for name in ("singular_value", "energy"))
    kinds = [
        (*kind, m) for kind in (("weight", None), ("full", None), ("lora", 8), ("lora", 1)) for m in ("query", "value")
    ]
    largest = {kind: value[(*kind, 1)] for kind in kinds}
    columns = {
        "median": lambda key: f"{key[0]}{f', r = {key[1]}' if key[1] else ''}: {key[2]}",
        "largest singular value": lambda key: f"{largest[key]:.2f}",
    }
    for n in (1, 8, 64):
        columns[f"energy in {n}"] = lambda key, n=n: f"{energy[(*key, n)]:.0%}" if (*key, n) in energy else ""
    return largest, format_table(kinds, columns)


def energy_by_layer(rows):
    """{(matrix, layer): share of the full update's energy in its first 8 directions}, and a table."""
    own = [row for row in rows if row["what"] == "full" and row["i"] == 8]
    in_eight = medians(own, "energy", ("matrix", "layer"))
    columns = {"full update, energy in 8": str}
    columns |= {
        f"layer {n}": lambda matrix, n=n: f"{in_eight[matrix, n]:.0%}" for n in sorted({row["layer"] for row in own})
    }
    return in_eight, format_table(["query", "value"], columns)


def intruders(rows):
    """Means of the counts and medians of the cosines by (epochs, r, matrix), and a table."""
    cosine = medians(rows, "smallest_cosine", ("epochs", "r", "matrix"))
    found = {
        key: np.mean([row["intruders"] for row in rows if (row["epochs"], row["r"], row["matrix"]) == key])
        for key in cosine
    }
    columns = {
        "update": lambda key: f"LoRA, r = {key[1]}" if key[1] else "full fine-tuning",
        "epochs": lambda key: f"{key[0]:g}",
        "matrix": lambda key: key[2],
        "intruders of 10, mean": lambda key: f"{found[key]:.1f}",
        "smallest cosine, median": lambda key: f"{cosine[key]:.2f}",
    }
    order = sorted(cosine, key=lambda key: (key[2], key[0], key[1] or 0))
    return found, cosine, format_table(order, columns)
