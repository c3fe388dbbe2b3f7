"""Drawing: the host puts the operations of a step into a queue, the device works them off; what crosses between."""

import matplotlib.pyplot as plt
from matplotlib.patches import Rectangle

from .drawing_lora import FROZEN, NUMBERS, TRAINED, arrow, box
from .style import styled

SHADES = {"W + s B A": "#F7D3BC", "forward": "#CFE3F1", "backward": "#A9CCE3", "AdamW": "#F3B58F"}
LEFT, RIGHT = 3, 97


@styled
def host_device(rows):
    """The launches of a step, each phase as wide as it has of them. rows: phase, launches, read_every."""
    total, every = sum(row["launches"] for row in rows), rows[0]["read_every"]
    figure, axes = plt.subplots(figsize=(9.2, 5.0))
    axes.set(xlim=(0, 100), ylim=(0, 54), aspect="equal")
    axes.axis("off")
    axes.add_patch(Rectangle((0, 36), 100, 17.5, facecolor="#FAFAFA", edgecolor="#888888", linewidth=1))
    axes.text(1.5, 51, "host: Python and NumPy", fontsize=11, va="center", weight="bold")
    axes.text(98.5, 51, f"{total:,} launches a step, whatever the batch", fontsize=9.5, va="center", ha="right")
    x = LEFT
    for row in rows:
        width = (RIGHT - LEFT) * row["launches"] / total
        fill = SHADES.get(row["phase"], "white")
        axes.add_patch(Rectangle((x, 38.5), width, 6, facecolor=fill, edgecolor="#555555", linewidth=0.8))
        if row["phase"] in SHADES:
            axes.text(x + width / 2, 41.5, f"{row['launches']}", ha="center", va="center", fontsize=10)
            axes.text(x + width / 2, 46, row["phase"], ha="center", va="center", fontsize=9)
        x += width

    axes.add_patch(Rectangle((0, 0.5), 100, 19, facecolor="#FAFAFA", edgecolor="#888888", linewidth=1))
    axes.text(1.5, 17, "device: the GPU and its memory", fontsize=11, va="center", weight="bold")
    axes.text(98.5, 17, "works the queue off in order; clips, and checks for NaN, itself", fontsize=9.5, va="center",
              ha="right")  # fmt: skip
    box(axes, (4, 4), (22, 8), "$W$", FROZEN)
    box(axes, (29, 4), (15, 8), "$A$, $B$", TRAINED)
    box(axes, (47, 4), (20, 8), "AdamW's $m$, $v$", TRAINED)
    box(axes, (70, 4), (26, 8), "activations, gradients", NUMBERS)
    axes.texts[-1].set_fontsize(11)
    for text in axes.texts[-3:-1]:
        text.set_fontsize(12)
    arrow(axes, (10, 36), (10, 19.5))
    axes.text(11.5, 28, "ids and labels,\nonce a batch", fontsize=9.5, va="center")
    for x in (40, 43, 46, 49, 52):
        arrow(axes, (x, 36), (x, 19.5))
    axes.text(53.5, 28, "launches, one after another:\nthe host does not wait", fontsize=9.5, va="center")
    arrow(axes, (94, 19.5), (94, 36))
    axes.text(
        92.5, 28, f"losses and norms,\nonce in {every} steps:\nhere it waits", fontsize=9.5, va="center", ha="right"
    )
    return figure
