"""Plots of chapter 04: the digits, the first steps of AdamW, training curves, rank against accuracy."""

import matplotlib.pyplot as plt
import numpy as np

from ...files import median_by
from .style import PALETTE, _name, _rank_axis, styled

COLORS = {
    "full fine-tuning": PALETTE["full"],
    "LoRA, r = 4": PALETTE["lora"],
    "last layer only": "#0072B2",
    "biases only": "#009E73",
}


@styled
def before_and_now(upright, turned, labels):
    """Images (n, 64) as they were, above what became of them."""
    figure, panels = plt.subplots(2, len(labels), figsize=(7.2, 2.1))
    for column, before, now, label in zip(panels.T, upright, turned, labels, strict=True):
        for axes, image in zip(column, (before, now), strict=True):
            axes.imshow(image.reshape(8, 8), cmap="gray_r")
            axes.set(xticks=[], yticks=[])
        column[0].set_title(label, loc="center")
    panels[0, 0].set_ylabel("before")
    panels[1, 0].set_ylabel("now")
    return figure


@styled
def first_steps_of_adam(rows):
    """Length of each step over the learning rate. rows: t, corrected, plain; for a gradient that stays the same."""
    figure, axes = plt.subplots(figsize=(7.2, 3.2))
    t = [row["t"] for row in rows]
    for what, label, color, style, offset in (
        ("plain", "averages as they are", "#0072B2", "--", (8, 6)),
        ("corrected", "averages corrected", "#D55E00", "-", (-40, -15)),
    ):
        axes.plot(t, [row[what] for row in rows], style, color=color)
        at = min(range(len(t)), key=lambda i: abs(t[i] - 30))
        _name(axes, label, (t[at], rows[at][what]), offset, color)
    axes.set_xscale("log")
    axes.set_ylim(0, None)
    axes.set_xticks([1, 10, 100, 1000, 10000], ["1", "10", "100", "1,000", "10,000"])
    axes.set_xlabel("step t")
    axes.set_ylabel("length of the step / lr")
    axes.set_title("A gradient that stays the same: the correct length is 1")
    return figure


@styled
def training_curves(losses):
    """Training loss against the epoch, median and range. losses: {method: (seeds, epochs)}."""
    figure, axes = plt.subplots(figsize=(7.6, 3.6))
    for method, loss in losses.items():
        epochs, middle, color = np.arange(1, loss.shape[1] + 1), np.median(loss, axis=0), COLORS[method]
        axes.plot(epochs, middle, "--" if color == "#000000" else "-", color=color)
        axes.fill_between(epochs, loss.min(axis=0), loss.max(axis=0), color=color, alpha=0.2, linewidth=0)
        _name(axes, method, (epochs[-1], middle[-1]), (6, -3), color)
    axes.set_yscale("log")
    axes.set_xlim(0, 1.32 * len(epochs))
    axes.set_xticks(range(0, len(epochs) + 1, 10))
    axes.set_xlabel("epoch")
    axes.set_ylabel("training loss (nats)")
    axes.set_title("Training loss: median and range of five seeds")
    return figure


@styled
def accuracy_by_rank(rows, last_layer):
    """Two panels: right on held-out digits against rank, and against trained numbers.

    rows: those of `rank_sweep`. last_layer: (numbers, median, lowest, highest) of training the last layer alone.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.4, 3.8), sharey=True)
    own = [row for row in rows if row["method"] == "lora"]
    (full_numbers,) = {row["params"] for row in rows if row["method"] == "full"}
    full = 100 * median_by([row for row in rows if row["method"] == "full"], (), "test_accuracy")[()][0]
    by_rank = {r: spread for (r,), spread in median_by(own, ("r",), "test_accuracy").items()}
    numbers = {row["r"]: row["params"] for row in own}
    for axes, at in ((left, list(by_rank)), (right, list(numbers.values()))):
        middle, low, high = (100 * np.array(part) for part in zip(*by_rank.values(), strict=True))
        axes.plot(at, middle, "o-", color=PALETTE["lora"])
        axes.fill_between(at, low, high, color=PALETTE["lora"], alpha=0.2, linewidth=0)
        axes.set_ylim(80, 100)
        axes.set_yticks(range(80, 101, 5))
    left.axhline(full, color="black", linestyle="--", linewidth=1.2)
    _name(left, "full fine-tuning", (1, full), (0, 4), "black")
    _name(left, "LoRA", (2, 100 * by_rank[2][0]), (8, -12), PALETTE["lora"])
    _rank_axis(left, by_rank)
    left.set_ylabel("right on held-out digits (%)")

    n, middle, low, high = last_layer
    bar = [[100 * (middle - low)], [100 * (high - middle)]]
    right.errorbar([n], [100 * middle], bar, fmt="s", color=COLORS["last layer only"])
    _name(right, "last layer only", (n, 100 * low), (6, -12), COLORS["last layer only"])
    right.plot(full_numbers, full, "D", color="black")
    _name(right, "full fine-tuning", (full_numbers, full), (0, 14), "black", ha="right")
    for r in (1, 4, 16, 64):
        _name(right, f"r = {r}", (numbers[r], 100 * by_rank[r][1]), (0, -12), PALETTE["lora"], ha="center")
    right.set_xscale("log")
    right.set_xlim(400, 80_000)
    right.set_xticks([1e3, 1e4], ["1,000", "10,000"])
    right.set_xlabel("trained numbers")
    note = "Digits turned by 90 degrees: median and range of five splits"
    figure.suptitle(note, x=0.01, ha="left", fontsize=9.5, color="#444444")
    return figure
