"""Plots of chapter 05: gradients by depth, and the losses of adapters in several places."""

import math

import matplotlib.pyplot as plt
import numpy as np

from .style import _name, styled

COLORS = ("#0072B2", "#D55E00", "#009E73", "#000000")


@styled
def gradients_by_depth(tables, names=("query", "value", "up")):
    """Norm of dB against the block, a panel for each title. tables: {title: (seeds, blocks, at least 3)}."""
    figure, panels = plt.subplots(1, len(tables), figsize=(9.6, 3.5), sharey=True)
    for axes, (title, table) in zip(panels, tables.items(), strict=True):
        blocks = range(table.shape[1])
        ends = np.median(table[:, -1, : len(names)], axis=0)
        for n, (name, color) in enumerate(zip(names, COLORS, strict=False)):
            own = table[:, :, n]
            axes.plot(np.median(own, axis=0), "o-", color=color)
            axes.fill_between(blocks, own.min(axis=0), own.max(axis=0), color=color, alpha=0.2, linewidth=0)
            crowded = any(0 < abs(math.log(other / ends[n])) < 0.2 for other in ends)
            above = (
                0 if not crowded else 7 if ends[n] == max(e for e in ends if abs(math.log(e / ends[n])) < 0.2) else -7
            )
            _name(axes, name, (blocks[-1], ends[n]), (8, above), color, va="center")
        axes.set(yscale="log", xlabel="block (0 is the lowest)", xlim=(-0.2, blocks[-1] + 1.1), xticks=blocks)
        axes.set_title(title)
    panels[0].set_ylabel("norm of dB")
    return figure


@styled
def places(rows, order, guessing):
    """Training loss by step, a panel a task; a line for each place of `order` and seed. rows: of `copier.changed`."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    figure, panels = plt.subplots(1, len(tasks), figsize=(9.6, 4), sharey=True)
    for axes, task in zip(panels, tasks, strict=True):
        axes.axhline(guessing, color="#666666", linewidth=1, linestyle="--")
        ends = []
        for place, color in zip(order, COLORS, strict=True):
            own = [row["losses"] for row in rows if (row["place"], row["task"]) == (place, task)]
            smooth = [np.convolve(losses, np.ones(10) / 10, "valid") for losses in own]
            for line in smooth:
                axes.plot(line, color=color, linewidth=1.2)
            ends.append((float(np.median([line[-1] for line in smooth])), place, color))
        y = -math.inf
        for end, place, color in sorted(ends):  # names beside the ends of their lines, one above the other
            y = max(end, y + 0.36)
            axes.text(147, y, place, color=color, fontsize=9, va="center")
        axes.set(xlabel="step", title=f"New: {task}", ylim=(-0.2, 5), xlim=(0, 215), xticks=range(0, 151, 50))
        axes.set_yticks((0, 1, guessing, 3, 4, 5), ("0", "1", f"guessing\n{guessing:.2f}", "3", "4", "5"))
    panels[0].set_ylabel("training loss, nats (mean of 10 steps)")
    return figure
