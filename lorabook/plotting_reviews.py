"""The encoder's experiments drawn: rows of the reviews_* CSV files in, Figure out, as in `plotting`."""

import matplotlib.pyplot as plt
import numpy as np

from .plotting import PALETTE, _curve, _name, _percent, _rank_axis, styled
from .reviews import PEFT
from .tables import median_by

ALL = "query key value attention.output.dense"
SHORT = {"query": "Wq", "key": "Wk", "value": "Wv", "attention.output.dense": "Wo"}
COLORS = {"query": "#0072B2", "query value": "#D55E00", ALL: "#009E73"}
GREY = "#666666"


def _short(targets):
    return ", ".join(SHORT[target] for target in targets.split())


def _epochs(rows):
    (epochs,) = {row["epochs"] for row in rows}
    return "1 epoch" if epochs == 1 else f"{epochs} epochs"


def _note(figure, text):
    figure.suptitle(text, x=0.01, ha="left", fontsize=9.5, color="#444444")


def _names(axes, ends):
    """Names at the ends of lines, {name: ((x, y), color)}, moved apart where they would overlap."""
    low, high = axes.get_ylim()
    gap, floor = (high - low) / 16, -np.inf
    for name, ((x, y), color) in sorted(ends.items(), key=lambda item: item[1][0][1]):
        floor = max(y, floor + gap)
        _name(axes, name, (x, floor), (7, -3), color)


def _dots(axes, groups, colors):
    """A line of dots, one a seed, with a bar at their median, for every (label, rows) of `groups`, the first on top."""
    for y, ((_, rows), color) in enumerate(zip(groups, colors, strict=True)):
        right = [100 * row["test_accuracy"] for row in rows]
        middle = 100 * median_by(rows, (), "test_accuracy")[()][0]
        axes.plot(right, [y] * len(right), "o", color=color, alpha=0.6, markeredgewidth=0)
        axes.plot([middle, middle], [y - 0.28, y + 0.28], color=color, linewidth=2.4)
        _name(axes, f"{middle:.1f} %", (middle, y - 0.28), (0, 1), color, ha="center", va="bottom")
    axes.set_yticks(range(len(groups)), [label for label, _ in groups])
    axes.set_ylim(len(groups) - 0.4, -0.8)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("right on held-out reviews")
    axes.set_ylabel("what trains")
    _percent(axes.xaxis)


@styled
def recipe(rows):
    """Accuracy of full fine-tuning, LoRA and the head alone, with what PEFT reached, from the rows of the recipe."""
    names = {"full": "everything", "head": "pooler and classifier", "classifier": "classifier"}
    figure, axes = plt.subplots(figsize=(7.6, 3.8))
    keys = list(dict.fromkeys((row["method"], row["r"]) for row in rows))
    groups = []
    for method, r in keys:
        own = [row for row in rows if (row["method"], row["r"]) == (method, r)]
        label = names.get(method, f"LoRA on query and value, r = {r}")
        groups.append((f"{label}\n{own[0]['params']:,} numbers", own))
    colors = [PALETTE.get(method, GREY) for method, _ in keys]
    _dots(axes, groups, colors)
    for y, key in enumerate(keys):
        if key in PEFT:
            axes.plot(100 * PEFT[key], y + 0.28, "D", color="#CC79A7", markerfacecolor="none")
            at_least = "PEFT: more than " if key[0] == "full" else "PEFT: "
            text = f"{at_least}{100 * PEFT[key]:.3g} %"
            _name(axes, text, (100 * PEFT[key], y + 0.28), (-8, -3), "#CC79A7", ha="right")
    seeds = len({row["seed"] for row in rows})
    axes.set_title("What has to train?")
    note = f"dot: one of {seeds} seeds, bar: their median; diamond: PEFT, one run on a split of its own"
    _note(figure, f"MiniLM on movie reviews, {_epochs(rows)}\n{note}")
    return figure


@styled
def matrices(rows):
    """Accuracy for each choice of matrices at a fixed number of parameters: the LoRA paper's Table 5."""
    figure, axes = plt.subplots(figsize=(7.2, 3.8))
    groups = []
    for targets in dict.fromkeys(row["targets"] for row in rows):
        own = [row for row in rows if row["targets"] == targets]
        groups.append((f"{_short(targets)}   r = {own[0]['r']}", own))
    _dots(axes, groups, [PALETTE["lora"]] * len(groups))
    (params,) = {row["params"] for row in rows}
    axes.set_title("Which matrices, when the number of parameters is fixed?")
    seeds = len({row["seed"] for row in rows})
    note = f"dot: one of {seeds} seeds, bar: their median; {params:,} numbers train in every line"
    _note(figure, f"MiniLM on movie reviews, {_epochs(rows)}\n{note}")
    return figure


@styled
def ranks(rows):
    """Accuracy against rank, a line for each choice of matrices: the LoRA paper's Table 6."""
    figure, axes = plt.subplots(figsize=(7.2, 3.8))
    ends = {}
    for targets, color in COLORS.items():
        own = [row for row in rows if row["targets"] == targets]
        ends[targets] = _curve(axes, own, None, "test_accuracy", scale=100, color=color)[:2]
    _names(axes, {_short(targets): (ends[targets], COLORS[targets]) for targets in ends})
    _rank_axis(axes, {row["r"] for row in rows})
    axes.set_xlim(right=190)
    _percent(axes.yaxis)
    axes.set_ylabel("right on held-out reviews")
    seeds = len({row["seed"] for row in rows})
    axes.set_title("Which rank?")
    note = f"line: median of {seeds} seeds, band: lowest to highest"
    _note(figure, f"MiniLM on movie reviews, {_epochs(rows)}\n{note}")
    return figure
