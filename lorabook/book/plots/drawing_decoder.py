"""Drawing: the block of a Llama, its seven frozen matrices with adapters, and which key head each query head asks."""

import matplotlib.pyplot as plt
from matplotlib.patches import Rectangle

from .drawing_block import _matrix, _part, _residual
from .drawing_lora import FROZEN, TRAINED, arrow, round_sign
from .style import styled


def _attention(axes, x, y):
    """q, k and v from x on, the turn of q and k, attention, o. Returns the right edge."""
    for name, level in (("q", 7), ("k", 0), ("v", -7)):
        arrow(axes, (x, y), (x, y + level), (x + 2.5, y + level))
        right = _matrix(axes, x + 2.5, y + level, f"{name}_proj", 9.5)
        if name != "v":
            arrow(axes, (right, y + level), (right + 2.5, y + level))
            right = _part(axes, right + 2.5, y + level, "rotary", 8.5)
        arrow(axes, (right, y + level), (x + 25.5, y + level))
    right = _part(axes, x + 25.5, y, "attention\n(tokens meet)", 15.5, 19.5)
    arrow(axes, (right, y), (right + 2.5, y))
    return _matrix(axes, right + 2.5, y, "o_proj", 9.5)


def _mlp(axes, x, y):
    """gate and up from x on, silu, their product, down. Returns the right edge."""
    arrow(axes, (x, y), (x, y + 3.8), (x + 2.5, y + 3.8))
    right = _matrix(axes, x + 2.5, y + 3.8, "gate_proj", 11)
    arrow(axes, (right, y + 3.8), (right + 2.5, y + 3.8))
    right = _part(axes, right + 2.5, y + 3.8, "silu", 6)
    arrow(axes, (right, y + 3.8), (right + 4.5, y + 3.8), (right + 4.5, y + 2))
    arrow(axes, (x, y), (x, y - 3.8), (x + 2.5, y - 3.8))
    low = _matrix(axes, x + 2.5, y - 3.8, "up_proj", 11)
    arrow(axes, (low, y - 3.8), (right + 4.5, y - 3.8), (right + 4.5, y - 2))
    round_sign(axes, (right + 4.5, y), r"$\odot$")
    arrow(axes, (right + 6.5, y), (right + 9, y))
    return _matrix(axes, right + 9, y, "down_proj", 11)


def _heads(axes, x, y, heads, kv_heads, d_head):
    """Query heads above key heads, a line from each to the one that it asks."""
    group, step = heads // kv_heads, 5.2
    asked = [x + (i * group + (group - 1) / 2) * step for i in range(kv_heads)]
    for i in range(heads):
        axes.plot((x + i * step, asked[i // group]), (y, y - 6), color="#888888", linewidth=1, zorder=0)
    places = [(x + i * step, y, 4.4, f"q{i}") for i in range(heads)]
    places += [(at, y - 6, 7.5, f"k{i}, v{i}") for i, at in enumerate(asked)]
    for at, level, width, name in places:
        corner, style = (at - width / 2, level - 1.5), {"facecolor": "white", "edgecolor": "#555555", "linewidth": 1}
        axes.add_patch(Rectangle(corner, width, 3, **style))
        axes.text(at, level, name, ha="center", va="center", fontsize=8.5)
    text = f"attention: {heads} heads of queries, {kv_heads} of keys and values, {d_head} numbers each"
    axes.text(x + heads * step, y - 3, text, fontsize=9.5, va="center")


@styled
def decoder(rows):
    """The block from left to right, its heads below. rows: part, rows, columns, numbers, adapter, d_head."""
    figure, axes = plt.subplots(figsize=(10.4, 4.2))
    axes.set(xlim=(-2, 143), ylim=(-24, 33), aspect="equal")
    axes.axis("off")
    y = 6
    axes.text(0, y, "$x$", fontsize=13, va="center", ha="center")
    arrow(axes, (2, y), (6.5, y))
    right = _part(axes, 6.5, y, "norm", 7)
    axes.plot((right, right + 2), (y, y), color="#333333", linewidth=1.2)
    right = _attention(axes, right + 2, y)
    arrow(axes, (right, y), (right + 2.2, y))
    _residual(axes, 4, right + 4.2, y, 13, "residual")
    right += 6.2
    axes.text(right + 2, y + 1, "$u$", fontsize=12, ha="center")
    arrow(axes, (right, y), (right + 6.2, y))
    start, right = right + 4, _part(axes, right + 6.2, y, "norm", 7)
    axes.plot((right, right + 2), (y, y), color="#333333", linewidth=1.2)
    right = _mlp(axes, right + 2, y)
    arrow(axes, (right, y), (right + 2.2, y))
    _residual(axes, start, right + 4.2, y, 13, "residual")
    arrow(axes, (right + 6.2, y), (right + 9.2, y))
    axes.text(right + 11.2, y, "$y$", fontsize=13, va="center", ha="center")

    size = {row["part"]: row for row in rows}
    (d_head,) = {row["d_head"] for row in rows}
    _heads(axes, 8, -14, *(size[part]["rows"] // d_head for part in ("q_proj", "k_proj")), d_head)
    frozen, trained = (sum(row[name] for row in rows) for name in ("numbers", "adapter"))
    shapes = {part: f"{row['rows']} x {row['columns']}" for part, row in size.items()}
    told = f"q and o {shapes['q_proj']}; k and v {shapes['k_proj']}; gate and up {shapes['up_proj']}; down "
    blue = f"Blue: a frozen matrix. In SmolLM2-135M {told}{shapes['down_proj']}: {frozen:,} numbers."
    axes.text(-1.5, 30, blue, fontsize=9.5, color=FROZEN[1])
    orange = f"Orange: where LoRA's factors may sit. With r = 8 on all seven: {trained:,} numbers. 30 such blocks."
    axes.text(-1.5, 25.5, orange, fontsize=9.5, color=TRAINED[1])
    return figure
