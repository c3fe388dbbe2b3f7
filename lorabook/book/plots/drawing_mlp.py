"""Drawing: the network of chapter 04, a frozen weight and two thin factors in each of its layers."""

import matplotlib.pyplot as plt

from .drawing_lora import FROZEN, NUMBERS, TRAINED, arrow, box
from .style import styled

SCALE = 0.12  # drawn units a number


@styled
def mlp(rows):
    """The layers from left to right, all to one scale. rows: layer, array, rows, columns, numbers, trains."""
    figure, axes = plt.subplots(figsize=(9.2, 3.5))
    axes.set(xlim=(0, 92), ylim=(0, 34), aspect="equal")
    axes.axis("off")
    layers, middle, x = list(dict.fromkeys(row["layer"] for row in rows)), 17, 16
    box(axes, (1, middle - 5), (10, 10), "$8 \\times 8$", NUMBERS, "a digit")
    arrow(axes, (11, middle), (x, middle))
    for layer in layers:
        own = {row["array"]: row for row in rows if row["layer"] == layer}
        (d_out, d_in), r = (own["W"][side] for side in ("rows", "columns")), own["A"]["rows"]
        width, height, thin = SCALE * d_in, SCALE * d_out, max(SCALE * r, 0.6)
        low = middle - height / 2
        box(axes, (x, low), (width, height), "$W$" if height > 4 else "", FROZEN)
        box(axes, (x, low - 1 - thin), (width, thin), "", TRAINED)
        box(axes, (x + width + 1, low), (thin, height), "", TRAINED)
        axes.text(x, middle + 1 + height / 2, f"{layer}: {d_out} x {d_in}", fontsize=9.5, va="bottom", color=FROZEN[1])
        text = f"$A$: {r} x {d_in}\n$B$: {d_out} x {r}"
        axes.text(x, low - 2 - thin, text, fontsize=9, va="top", color=TRAINED[1])
        x += width + 1 + thin
        arrow(axes, (x + 1, middle), (x + 6, middle))
        x += 7
    axes.text(x + 0.5, middle, "ten logits,\none a digit", fontsize=9.5, va="center")
    trained, frozen = (sum(row["numbers"] for row in rows if row["trains"] == trains) for trains in (1, 0))
    note = f"{trained:,} numbers train (orange), {frozen:,} weights are frozen (blue): {trained / frozen:.1%}"
    axes.text(0, 33, note.replace("%", " %"), fontsize=10, va="top", color="#444444")
    return figure
