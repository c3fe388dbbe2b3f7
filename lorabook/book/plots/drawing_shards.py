"""Drawing: a batch in shards, one model for all, gradients added in the order of the shards; and what has to travel."""

import matplotlib.pyplot as plt

from .drawing_lora import FROZEN, NUMBERS, TRAINED, arrow, box, round_sign
from .style import styled


@styled
def shards(rows):
    """The texts of a batch dealt out, a gradient from each shard, their sum.

    rows: shard, start, stop, texts, full, lora.
    """
    figure, axes = plt.subplots(figsize=(10, 4.6))
    axes.set(xlim=(0, 100), ylim=(-2.5, 44), aspect="equal")
    axes.axis("off")
    texts, n = rows[0]["texts"], len(rows)
    top, height, step = 38, 7, 9.5
    low = top - step * (n - 1) - height
    axes.text(7, top + 2, f"a batch of {texts} texts", ha="center", fontsize=9.5)
    axes.text(38, top + 2, "one model, read by all", ha="center", fontsize=9.5, color=FROZEN[1])
    axes.text(67, top + 2, "gradients of $A$, $B$ alone", ha="center", fontsize=9.5, color=TRAINED[1])
    box(axes, (31, low), (14, top - low), "$W$\n\n$+\\,s B A$", FROZEN)
    for row in rows:
        y = top - step * row["shard"] - height
        share = (row["stop"] - row["start"]) / texts
        box(axes, (1, y), (12, height), "", NUMBERS)
        count = row["stop"] - row["start"]
        for i in range(1, count):
            axes.plot((1, 13), (y + height * i / count,) * 2, color="#BBBBBB", linewidth=0.8)
        name = f"{row['start']} - {row['stop'] - 1}"
        axes.text(7, y + height / 2, name, ha="center", va="center", fontsize=9.5, backgroundcolor="white")
        arrow(axes, (13, y + height / 2), (31, y + height / 2))
        share = f"share {count}/{texts}"
        axes.text(22, y + height / 2 + 0.6, share, ha="center", va="bottom", fontsize=9, color="#555555")
        arrow(axes, (45, y + height / 2), (62, y + height / 2))
        box(axes, (62, y + height / 2 - 1.5), (10, 3), "", TRAINED)
        axes.text(67, y + height / 2, f"$g_{row['shard']}$", ha="center", va="center", fontsize=11)
        if row["shard"]:
            round_sign(axes, (80, y + height / 2), "+")
            arrow(axes, (72, y + height / 2), (78, y + height / 2))
            arrow(axes, (80, y + height / 2 + (step if row["shard"] == 1 else step - 2)), (80, y + height / 2 + 2))
        else:
            axes.plot((72, 80), (y + height / 2,) * 2, color="#333333", linewidth=1.2)
    axes.text(81.5, top - 1, "in this order,\nwhoever is\nready first", fontsize=9, color="#555555", va="top")
    last = top - step * (n - 1) - height / 2
    arrow(axes, (82, last), (87, last))
    box(axes, (87, last - 1.5), (10, 3), "", TRAINED)
    axes.text(92, last, "sum", ha="center", va="center", fontsize=10)
    full, lora = rows[0]["full"], rows[0]["lora"]
    note = f"MiniLM, r = 8 on all matrices: each $g$ has {lora:,} numbers; in full fine-tuning {full:,}, "
    axes.text(1, -1.5, f"{note}{full / lora:.0f} times as many.", fontsize=9.5, color="#444444")
    return figure
