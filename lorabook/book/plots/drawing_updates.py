"""Drawing: the full, the truncated and the trained update in the space of matrices, each at its true place."""

import math

import matplotlib.pyplot as plt
import numpy as np

from .style import PALETTE, _name, styled

GREY, RIGHT = "#666666", 0.94  # from this share of held-out rows right on, a mark is filled
SHOWN = {  # update: (label, colour, marker, offset of the label in points, its alignment)
    "full, other order": ("full, another order of batches", PALETTE["full"], "D", (10, 1), "left"),
    "full, lr 0.01": ("full, lr 0.01", PALETTE["full"], "D", (16, 14), "center"),
    "full, lr 0.003": ("full, lr 0.003", PALETTE["full"], "D", (10, -1), "left"),
    "LoRA, r = 4": ("LoRA, r = 4", PALETTE["lora"], "o", (-10, 0), "right"),
    "LoRA, r = 16": ("LoRA, r = 16", PALETTE["lora"], "o", (-10, 0), "right"),
    "LoRA, r = 16, other seed": ("LoRA, r = 16, another seed", PALETTE["lora"], "o", (-10, 0), "right"),
    "activation_svd, r = 4": ("activation_svd, r = 4", PALETTE["activation_svd"], "^", (-2, -24), "center"),
    "svd, r = 1": ("svd, r = 1", PALETTE["svd"], "s", (-10, -8), "right"),
    "svd, r = 4": ("svd, r = 4", PALETTE["svd"], "s", (8, -10), "left"),
    "svd, r = 16": ("svd, r = 16", PALETTE["svd"], "s", (10, -7), "left"),
}
RULED = {"LoRA, r = 4": (0.78, 8, "left"), "svd, r = 4": (0.4, -9, "right")}  # where the distance is written


@styled
def updates(rows):
    """A plane with no update at (0, 0) and Delta W at (1, 0). rows: update, length, cosine, distance, test_accuracy.

    Each mark keeps its length and its distance to Delta W; trained updates are drawn above the line between the two,
    truncations below.
    """
    own = {row["update"]: row for row in rows}
    figure, axes = plt.subplots(figsize=(8.6, 6.5))
    axes.set(xlim=(-0.62, 1.78), ylim=(-0.72, 1.65), aspect="equal")
    axes.axis("off")
    angle = np.linspace(0, math.pi, 100)
    axes.plot(0.5 - 0.5 * np.cos(angle), -0.5 * np.sin(angle), color=PALETTE["svd"], linewidth=1, linestyle=":")
    near = angle[(angle > 0) & (angle < math.pi)]
    axes.plot(1 - np.cos(near), np.sin(near), color=GREY, linewidth=1, linestyle=":")
    _name(axes, "as far from $\\Delta W$\nas no update is", (1 + math.cos(1.25), math.sin(1.25)), (6, 6), GREY)
    axes.plot((0, 1), (0, 0), color="black", linewidth=1.2)
    for name, (along, offset, ha) in RULED.items():
        x, y = _place(own[name])
        axes.plot((1, x), (0, y), color=SHOWN[name][1], linewidth=0.9, linestyle="--", zorder=1)
        text = f"distance {own[name]['distance']:.2f}"
        _name(axes, text, (1 + along * (x - 1), along * y), (offset, 0), SHOWN[name][1], ha=ha, va="center")
    for name, (label, color, marker, offset, ha) in SHOWN.items():
        share = own[name]["test_accuracy"]
        fill = color if share >= RIGHT else "white"
        axes.plot(*_place(own[name]), marker, color=color, markerfacecolor=fill, markersize=8)
        _name(axes, f"{label}: {100 * share:.0f} %", _place(own[name]), offset, color, ha=ha, va="center")
    axes.plot(0, 0, "o", color="black", markerfacecolor="white", markersize=9)
    _name(axes, "no update:\nthe base model", (0, 0), (-10, 0), "black", ha="right", va="center")
    full = own["full, lr 0.03"]
    axes.plot(1, 0, "D", color="black", markersize=10)
    text = f"$\\Delta W$ of full fine-tuning:\n{100 * full['test_accuracy']:.0f} %"
    _name(axes, text, (1, 0), (13, 0), "black", va="center")
    _name(axes, "every truncation lies on this half circle", (0.5, -0.5), (0, -46), PALETTE["svd"], ha="center")
    note = "above the line: trained.  below: cut from $\\Delta W$.\n%: held-out digits right; filled from 94 % on"
    axes.text(0.72, 1.5, note, color="#444444", fontsize=9.5, va="center")
    return figure


def _place(row):
    """Where an update lies in the plane, from its length and its angle to Delta W."""
    x, height = row["length"] * row["cosine"], row["length"] * math.sqrt(max(0.0, 1 - row["cosine"] ** 2))
    return x, -height if "svd" in row["update"] else height
