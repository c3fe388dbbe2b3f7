"""What the choices behind the headline picture are worth: rates, scaling and split. Rows in, Figure out."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import FixedLocator, NullFormatter

from ...studies import best_recipes, mean_and_error, split_gaps
from .style import PALETTE, _log_axis, _name, _percent, _rank_axis, styled

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
    """LoRA minus tuned full fine-tuning, in points. Left: rates and scalings, mean over splits; right: each split."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 4.2), width_ratios=(1.2, 1), sharey=True)
    splits, ranks = (sorted({row[k] for row in rows if row[k] is not None}) for k in ("split", "r"))
    aside, lr = ranks[-1] * 1.25, {row["choice"]: row["lr"] for row in rows if row["r"] is None}
    mean, error = mean_and_error([*split_gaps(rows, "first", None).values()])
    left.axhspan(mean - error, mean + error, color="black", alpha=0.12, linewidth=0)
    _name(left, f"full fine-tuning, rate {lr['first']:g}", (aside, mean), (0, -3), "#555555")
    _name(left, f"full fine-tuning, rate {lr['tuned']:g}", (aside, 0), (0, 4), "black")
    places = {"first": (ranks[-1], (10, -3)), "rslora": (ranks[1], (14, -20)), "tuned": (ranks[1], (-10, 28))}
    words = ("LoRA, 16 / r, rate 0.01", r"LoRA, 16 / $\sqrt{r}$, rate 0.01", "LoRA, own scaling and rate")
    for (choice, (r, offset)), (_, color, marker), text in zip(places.items(), SCALINGS.values(), words, strict=True):
        points = {r: mean_and_error([*split_gaps(rows, choice, r).values()]) for r in ranks}
        left.errorbar(ranks, *zip(*points.values(), strict=True), color=color, marker=marker, capsize=3, elinewidth=1)
        _name(left, text, (r, points[r][0]), offset, color)
    _rank_axis(left, ranks)
    left.set_xlim(ranks[0] * 0.85, ranks[-1] * 9)
    left.set_ylabel("LoRA minus full fine-tuning, points")
    left.set_title(f"Rate and scaling: mean of {len(splits)} splits")

    tuned = {r: split_gaps(rows, "tuned", r) for r in ranks if r >= 16}
    order = sorted(splits, key=lambda split: np.mean([own[split] for own in tuned.values()]))
    for (r, own), shift, color, marker in zip(
        tuned.items(), (-0.18, 0, 0.18), ("#E8924A", PALETTE["lora"], "#7F3300"), "o^s", strict=False
    ):
        right.plot([i + shift for i in range(len(order))], [own[s] for s in order], marker, color=color)
        y = 0.22 - 0.08 * list(tuned).index(r)
        right.plot(0.06, y, marker, color=color, transform=right.transAxes)
        right.text(0.1, y, f"LoRA, r = {r}", color=color, transform=right.transAxes, va="center")
    right.set_xticks(range(len(order)), order)
    right.set_xlabel("split (seed that drew it)")
    right.set_title("Own scaling and rate: each split alone")
    for axes in (left, right):
        axes.axhline(0, color="black", linewidth=1.2, linestyle="--")
    seeds = len({row["seed"] for row in rows})
    note = f"Right on test rows, digits turned by 90 degrees, against tuned full fine-tuning; {seeds} seeds a split"
    figure.suptitle(f"{note}; bars: standard error", x=0.01, ha="left", fontsize=9.5, color="#444444")
    return figure
