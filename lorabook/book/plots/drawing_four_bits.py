"""Drawing: real weights in blocks with their scales, and the 16 levels of NF4 under the normal density."""

import matplotlib.pyplot as plt
import numpy as np

from .style import styled

WEIGHT, LEVEL, GREY = "#0072B2", "#D55E00", "#666666"


@styled
def four_bits(rows):
    """Left: weights (dots) in three blocks, each with 16 levels of its own. Right: where the levels come from."""
    weights, levels = ([row for row in rows if row["what"] == what] for what in ("weight", "level"))
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 4.2), width_ratios=(1.9, 1))
    scales = [row["scale"] for row in weights]
    starts = [i for i, s in enumerate(scales) if not i or s != scales[i - 1]]
    value = np.array([row["value"] for row in levels])
    for start, end in zip(starts, [*starts[1:], len(scales)], strict=True):
        s = scales[start]
        left.hlines(value * s, start - 0.5, end - 1.5, color=LEVEL, linewidth=0.6)
        left.annotate(
            f"scale {s:.3f}", ((start + end) / 2, s), (0, 6), textcoords="offset points", color=LEVEL, ha="center"
        )
    left.plot([row["value"] for row in weights], "o", color=WEIGHT, markersize=3)
    top = 1.25 * max(scales)
    left.set(xlim=(-3, len(scales) + 1), ylim=(-top, top), xticks=[*starts, len(scales)])
    left.set(xlabel="weights of a matrix, in their order", ylabel="value")
    left.set_title(f"{len(starts)} blocks of 64, each with the same 16 levels times its own scale")
    left.grid(False)

    z = np.array([row["z"] for row in levels])
    line = np.linspace(-2.9, 2.9, 400)
    right.plot(line, np.exp(-(line**2) / 2), color="black")
    right.vlines(z, 0, np.exp(-(z**2) / 2), color=LEVEL, linewidth=1.2)
    right.plot(z, np.exp(-(z**2) / 2), "o", color=LEVEL, markersize=4)
    for k, text in ((0, "-1"), (len(z) // 2 - 1, "0"), (len(z) - 1, "1")):
        right.annotate(text, (z[k], 0), (0, -13), textcoords="offset points", color=LEVEL, ha="center")
    right.set(xlabel="level", ylim=(-0.02, 1.12), xticks=[], yticks=[])
    right.xaxis.labelpad = 14
    right.set_title("The levels: quantiles of N(0, 1)")
    right.text(-2.9, 0.93, "7 below zero", color=GREY, fontsize=9)
    right.text(2.9, 0.93, "8 above", color=GREY, fontsize=9, ha="right")
    right.grid(False)
    return figure
