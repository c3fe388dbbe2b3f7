"""What the choices behind the headline picture are worth: rates, scaling and split. Rows in, Figure out."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import FixedLocator, NullFormatter

from .plotting import PALETTE, _log_axis, _name, _percent, _rank_axis, styled
from .sweep import mean_and_error
from .tuning import best_recipes

SCALINGS = {  # (lora_alpha, use_rslora): label, colour, marker
    (16, 0): ("16 / r", "#0072B2", "s"),
    (16, 1): (r"16 / $\sqrt{r}$", "#009E73", "^"),
    (64, 1): (r"64 / $\sqrt{r}$", "#D55E00", "o"),
}


def _means(rows, key, value):
    """(keys, means, standard errors) of value(row), the rows with the same key together."""
    groups = {}
    for row in rows:
        groups.setdefault(row[key], []).append(value(row))
    keys = sorted(groups)
    return keys, *np.array([mean_and_error(groups[k]) for k in keys]).T


def _wrong(row):
    return 100 * (1 - row["validation_accuracy"])


@styled
def learning_rates(rows):
    """Mistakes on validation rows against the learning rate, a panel a rank, a line a scaling, the best in a ring."""
    ranks, best = sorted({row["r"] for row in rows if row["r"]}), best_recipes(rows)
    columns = min(4, 1 + len(ranks))
    height = -(-(1 + len(ranks)) // columns)
    figure, panels = plt.subplots(
        height, columns, figsize=(9.6, 0.7 + 2.3 * height), sharey=True, sharex=True, squeeze=False
    )
    for axes, r in zip(panels.flat, [None, *ranks], strict=False):
        lines = SCALINGS if r else {(None, None): ("", "black", "D")}
        for scaling, (_, color, marker) in lines.items():
            own = [row for row in rows if row["r"] == r and (row["lora_alpha"], row["use_rslora"]) == scaling]
            if own:
                lr, mean, error = _means(own, "lr", _wrong)
                axes.errorbar(lr, mean, error, color=color, marker=marker, capsize=2, elinewidth=1)
                if best[r].cells(r) == {k: own[0][k] for k in ("lora_alpha", "use_rslora")} | {"lr": best[r].lr}:
                    axes.plot(best[r].lr, mean[lr.index(best[r].lr)], "o", ms=13, mfc="none", mec="black", mew=1.2)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator((1e-3, 1e-2)))
        axes.set_xticks((1e-3, 1e-2), ("0.001", "0.01"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_title(f"LoRA, r = {r}" if r else "full fine-tuning")
        axes.set_xlabel("learning rate")
    for axes in panels.flat[1 + len(ranks) :]:
        axes.set_visible(False)
    first = panels[0, 0]
    _log_axis(first, (2, 3, 5, 10, 20, 50, 100))
    for column in panels[:, 0]:
        _percent(column.yaxis)
        column.set_ylabel("wrong, validation rows")
    first.text(0.06, 0.93, "LoRA's scaling:", transform=first.transAxes, va="top", fontsize=9)
    for i, (label, color, marker) in enumerate(SCALINGS.values()):
        y = 0.8 - 0.12 * i
        first.plot(0.1, y, marker=marker, color=color, transform=first.transAxes)
        first.text(0.16, y, label, color=color, transform=first.transAxes, va="center", fontsize=9)
    first.text(0.06, 0.42, "ring: chosen", transform=first.transAxes, va="top", fontsize=9)
    splits = len({row["seed"] for row in rows})
    note = f"Each side chosen on rows held out of the training rows: mean of {splits} splits and its standard error"
    figure.suptitle(note, x=0.01, ha="left", fontsize=9.5, color="#444444")
    return figure


@styled
def headline_choices(rows):
    """Left: LoRA against tuned full fine-tuning, choice by choice. Right: what the splits and the seeds do to both."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 4.2), width_ratios=(1.25, 1))
    by_split = {}  # (choice, r, split): accuracies of its seeds, in percent
    for row in rows:
        by_split.setdefault((row["choice"], row["r"], row["split"]), []).append(100 * row["test_accuracy"])
    mean = {key: np.mean(found) for key, found in by_split.items()}
    splits, ranks = (sorted({row[k] for row in rows if row[k] is not None}) for k in ("split", "r"))

    def gap(choice, r):
        return mean_and_error([mean[choice, r, split] - mean["tuned", None, split] for split in splits])

    left.axhline(0, color="black", linewidth=1.2, linestyle="--")
    _name(left, "full fine-tuning at its own rate", (ranks[0], 0), (-8, 5), "black")
    first, error = gap("first", None)
    left.axhspan(first - error, first + error, color="black", alpha=0.12, linewidth=0)
    lr = {row["choice"]: row["lr"] for row in rows if row["r"] is None}
    _name(left, f"full fine-tuning at {lr['first']:g}", (ranks[0], first), (-8, 5), "#555555")
    for choice, (_, color, marker), label in zip(
        ("first", "rslora", "tuned"),
        SCALINGS.values(),
        ("scaling 16 / r, rate 0.01", r"scaling 16 / $\sqrt{r}$, rate 0.01", "own scaling and rate"),
        strict=True,
    ):
        points = np.array([gap(choice, r) for r in ranks])
        left.errorbar(ranks, *points.T, color=color, marker=marker, capsize=3, elinewidth=1)
        _name(left, label, (ranks[-1], points[-1, 0]), (8, -3), color)
    _rank_axis(left, ranks)
    left.set_xlim(ranks[0] * 0.8, ranks[-1] * 6)
    left.set_ylabel("LoRA minus tuned full fine-tuning, points")
    left.set_title("The choices: rate and scaling")

    r = ranks[len(ranks) // 2]
    order = sorted(splits, key=lambda split: mean["tuned", None, split])
    for (key, label, color, marker), shift in zip(
        ((("tuned", None), "full fine-tuning", "black", "D"), (("tuned", r), f"LoRA, r = {r}", PALETTE["lora"], "o")),
        (-0.12, 0.12),
        strict=True,
    ):
        at = np.arange(len(order)) + shift
        seeds = [by_split[(*key, split)] for split in order]
        right.vlines(at, [min(s) for s in seeds], [max(s) for s in seeds], color=color, linewidth=1)
        right.plot(at, [mean[(*key, split)] for split in order], marker, color=color)
        _name(
            right, label, (0.03, 0.95 if color == "black" else 0.88), (0, 0), color, xycoords="axes fraction", va="top"
        )
    right.set_xticks(range(len(order)), order)
    right.set_xlabel("split, from hard to easy")
    right.set_ylabel("right on test rows")
    _percent(right.yaxis)
    right.set_title("The split")
    n = len({row["seed"] for row in rows})
    note = f"Digits turned by 90 degrees. Left: mean over {len(splits)} splits and its standard error; "
    figure.suptitle(note + f"right: mean and range of {n} seeds", x=0.01, ha="left", fontsize=9.5, color="#444444")
    return figure
