"""Plots of chapter 03: what merging first is worth, and the first step at every rank. Higher is better in both."""

import matplotlib.pyplot as plt

from .style import _name, _rank_axis, styled

RSLORA = {False: ("s = lora_alpha / r", "#D55E00", "o"), True: (r"s = lora_alpha / $\sqrt{r}$", "#0072B2", "s")}


@styled
def merging_first(rows, threshold, title):
    """How much cheaper the merged order is than the factored one. rows: N, flops and time, both ratios."""
    figure, axes = plt.subplots(figsize=(7.6, 3.6))
    N = [row["N"] for row in rows]
    axes.axhline(1, color="#666666", linewidth=1)
    axes.axvline(threshold, color="#666666", linewidth=1, linestyle="--")
    labels = {"flops": ("by FLOPs", "#0072B2", "o--", 0.92), "time": ("by time, measured", "#D55E00", "s-", 0.83)}
    for what, (label, color, style, y) in labels.items():
        axes.plot(N, [row[what] for row in rows], style, color=color)
        axes.text(0.03, y, label, transform=axes.transAxes, color=color, fontsize=9)
    axes.set_xscale("log", base=2)
    axes.set_xticks(N, N)
    axes.minorticks_off()
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.15 * (high - low))
    axes.text(threshold * 1.04, 0.03, f"N* = {threshold:.0f}", color="#666666", transform=axes.get_xaxis_transform())
    axes.set_xlabel("rows in the batch, N (sequences times tokens)")
    axes.set_ylabel("cost factored / cost merged")
    axes.set_title(title)
    return figure


@styled
def first_steps(rows):
    """Drop of the loss in the first step, relative to r = 1. rows: optimizer, use_rslora, r, drop."""
    figure, panels = plt.subplots(1, 2, figsize=(9.4, 3.7), sharey=True)
    ranks = sorted({row["r"] for row in rows})
    for axes, optimizer in zip(panels, dict.fromkeys(row["optimizer"] for row in rows), strict=True):
        for use_rslora, (label, color, marker) in RSLORA.items():
            own = {
                row["r"]: row["drop"]
                for row in rows
                if (row["optimizer"], row["use_rslora"]) == (optimizer, use_rslora)
            }
            values = [own[r] / own[1] for r in ranks]
            axes.plot(ranks, values, marker + "-", color=color)
            rises = values[-1] > 2
            place = {"ha": "right"} if rises else {"ha": "left"}
            _name(axes, label, (ranks[3], values[3]), (-8, 4) if rises else (4, 7), color, **place)
        axes.set_yscale("log", base=2)
        axes.set_yticks([1 / 32, 1 / 8, 1 / 2, 2, 8], ["1/32", "1/8", "1/2", "2", "8"])
        _rank_axis(axes, ranks)
        axes.set_title(f"First step of {optimizer}")
    panels[0].set_ylabel("loss drop, relative to r = 1")
    return figure
