"""Plots of chapter 14: error against bits, and where trainings over a base in few bits end."""

import matplotlib.pyplot as plt
import numpy as np

from .style import _name, _percent, styled

CURVES = {"NF4's levels": ("#D55E00", (6, 8)), "even levels": ("#0072B2", (8, 6))}
PLACES = {"nf4": (8, 0), "nf4_double": (-10, -16), "int4": (8, 4), "q4_0": (-10, -17), "q4_1": (-8, -16)}
SOURCES = {"minilm": "MiniLM: 36 matrices, their mean", "smollm2": "SmolLM2: rows of the embedding"}
STARTS = {"B = 0": ("#0072B2", "o", -0.13), "LoftQ": ("#D55E00", "s", 0.13)}


@styled
def format_errors(rows):
    """Relative error against bits a weight: lines over the block length at float16 scales, marks for the formats."""
    figure, panels = plt.subplots(1, 2, figsize=(9.6, 4.2), sharey=True)
    for axes, (source, title) in zip(panels, SOURCES.items(), strict=True):
        found = {}
        for row in rows:
            if row["source"] == source:
                found.setdefault((row["what"], row["block"], row["bits"]), []).append(row["relative_error"])
        mean = {key: 100 * float(np.mean(values)) for key, values in found.items()}
        for what, (color, offset) in CURVES.items():
            line = sorted((bits, block, error) for (w, block, bits), error in mean.items() if w == what)
            bits, _, errors = zip(*line, strict=True)
            axes.plot(bits, errors, "o-", color=color, markersize=3.5)
            _name(axes, what.split()[0].removesuffix("'s"), (bits[0], errors[0]), (7, 2), color)
            if what == "even levels":
                for x, block, y in line[2:]:
                    _name(axes, str(block), (x, y), offset, color, alpha=0.8)
        for (what, _, x), y in mean.items():
            if what in PLACES:
                axes.plot(x, y, "D", color="black", markersize=5)
                _name(axes, what, (x, y), PLACES[what], "black")
        axes.set_xlabel("bits a weight, scales included")
        axes.set_title(title)
        axes.set_xlim(3.97, 5.12)
    panels[0].set_ylim(bottom=6.5)
    panels[0].set_ylabel("relative error")
    _percent(panels[0].yaxis)
    note = "Lines: levels of NF4 and even ones, blocks of 16 to 1024 (numbers), a float16 scale each. Diamonds: formats"
    figure.suptitle(note, x=0.01, ha="left", fontsize=9.5, color="#444444")
    return figure


@styled
def trainings(rows):
    """Right on held-out rows after training, by the base's format: a mark a seed, the median as a bar."""
    formats = list(dict.fromkeys(row["format"] for row in rows))
    figure, axes = plt.subplots(figsize=(7.6, 3.8))
    for start, (color, marker, shift) in STARTS.items():
        for k, format in enumerate(formats):
            own = [100 * row["test_accuracy"] for row in rows if (row["format"], row["start"]) == (format, start)]
            if own:
                axes.plot([k + shift] * len(own), own, marker, color=color, alpha=0.55, markersize=5)
                axes.hlines(np.median(own), k + shift - 0.1, k + shift + 0.1, color=color, linewidth=2.5)
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.2 * (high - low))
    for i, (start, (color, marker, _)) in enumerate(STARTS.items()):
        axes.plot(0.03 + 0.3 * i, 0.93, marker, color=color, transform=axes.transAxes)
        axes.text(0.05 + 0.3 * i, 0.93, f"start: {start}", color=color, transform=axes.transAxes, va="center")
    axes.set_xticks(range(len(formats)), formats)
    axes.set_xlabel("what the frozen base is held in")
    axes.set_ylabel("right, held-out rows")
    _percent(axes.yaxis)
    about = rows[0]
    axes.set_title(f"MLP, digits turned by 90 degrees, LoRA at r = {about['r']}: a mark a seed, bars: medians")
    return figure
