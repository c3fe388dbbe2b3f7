"""Drawings of the idea: what a LoRA layer adds to a frozen weight, with the shapes of everything in it."""

import itertools

import matplotlib.pyplot as plt
from matplotlib.patches import Circle, FancyArrowPatch, Rectangle

from .style import styled

FROZEN, TRAINED, NUMBERS = ("#DCE6EE", "#4A6A80"), ("#F7D3BC", "#B34A00"), ("#FFFFFF", "#555555")  # fill, edge


def box(axes, at, size, name, colors, shape=None, below=True):
    """A rectangle with its left lower corner `at`, its name inside, and its shape below or above it."""
    (x, y), (width, height), (fill, edge) = at, size, colors
    axes.add_patch(Rectangle(at, width, height, facecolor=fill, edgecolor=edge, linewidth=1.4))
    axes.text(x + width / 2, y + height / 2, name, ha="center", va="center", fontsize=14)
    if shape:
        place = (y - 1, "top") if below else (y + height + 1, "bottom")
        axes.text(x + width / 2, place[0], shape, ha="center", va=place[1], fontsize=9, color=edge)


def arrow(axes, *corners):
    """A line through the corners, with a head at the last."""
    for start, stop in itertools.pairwise(corners[:-1]):
        axes.plot(*zip(start, stop, strict=True), color="#333333", linewidth=1.2, solid_capstyle="round")
    style = {"arrowstyle": "-|>", "mutation_scale": 11, "color": "#333333", "linewidth": 1.2}
    axes.add_patch(FancyArrowPatch(*corners[-2:], shrinkA=0, shrinkB=0, **style))


def round_sign(axes, at, sign):
    """A sign in a circle."""
    axes.add_patch(Circle(at, 2, facecolor="white", edgecolor="#333333", linewidth=1.2, zorder=3))
    axes.text(*at, sign, ha="center", va="center", fontsize=12, zorder=4)


@styled
def lora(rows):
    """x into the frozen W, and x into A, r numbers, B, times s; plus. rows: array, rows, columns, numbers, trains."""
    sizes = {row["array"]: row for row in rows}
    frozen, trained = sizes["W"]["numbers"], sizes["A"]["numbers"] + sizes["B"]["numbers"]
    figure, axes = plt.subplots(figsize=(9.2, 4.1))
    axes.set(xlim=(0, 100), ylim=(-3.5, 43.5), aspect="equal")
    axes.axis("off")

    box(axes, (2, 13), (10, 14), "$x$", NUMBERS, "$(N,\\ d_{in})$")
    box(axes, (30, 23), (16, 16), "$W$", FROZEN, "$(d_{out},\\ d_{in})$")
    box(axes, (24, 7), (16, 4), "$A$", TRAINED, "$(r,\\ d_{in})$")
    box(axes, (49, 2), (3, 14), "$z$", NUMBERS, "$(N,\\ r)$", below=False)
    box(axes, (60, 1), (4, 16), "$B$", TRAINED, "$(d_{out},\\ r)$", below=False)
    box(axes, (88, 13), (10, 14), "$y$", NUMBERS, "$(N,\\ d_{out})$")
    arrow(axes, (12, 20), (17, 20), (17, 31), (30, 31))
    arrow(axes, (12, 20), (17, 20), (17, 9), (24, 9))
    arrow(axes, (40, 9), (49, 9))
    arrow(axes, (52, 9), (60, 9))
    arrow(axes, (64, 9), (72, 9))
    arrow(axes, (46, 31), (79, 31), (79, 22))
    arrow(axes, (74, 9), (79, 9), (79, 18))
    arrow(axes, (81, 20), (88, 20))
    round_sign(axes, (73, 9), "$s$")
    round_sign(axes, (79, 20), "$+$")
    axes.text(50.5, 1, "$r$ numbers a row", ha="center", va="top", fontsize=9, color=NUMBERS[1])
    axes.text(56, 32, "$x W^\\top$", ha="center", fontsize=11)
    axes.text(81, 10, "$s\\,z B^\\top$", va="center", fontsize=11)
    d_out, d_in, r = sizes["W"]["rows"], sizes["W"]["columns"], sizes["A"]["rows"]
    axes.text(38, 40.5, f"frozen: {frozen:,} numbers", ha="center", fontsize=10, color=FROZEN[1])
    axes.text(24, 14.5, f"trained: {trained:,} numbers", fontsize=10, color=TRAINED[1])
    note = f"numbers for a {d_out} x {d_in} weight and r = {r}: {trained / frozen:.1%} train"
    axes.text(100, 40.5, note.replace("%", " %"), ha="right", fontsize=9, color="#555555")
    return figure
