"""Drawing: the transformer block, its six frozen matrices, and where adapters may sit; norms after or before."""

import matplotlib.pyplot as plt
from matplotlib.patches import FancyBboxPatch, Rectangle

from .drawing_lora import FROZEN, TRAINED, arrow, round_sign
from .style import styled

PLAIN = ("#FFFFFF", "#555555")  # fill, edge of what holds no matrix


def _part(axes, x, y, name, width=9.5, height=4.2, colors=PLAIN, adapter=False):
    """A rounded box centred at height y, from x on; with `adapter` an orange strip under it. Returns its right edge."""
    fill, edge = colors
    style = {"boxstyle": "round,pad=0,rounding_size=0.8", "linewidth": 1.2}
    axes.add_patch(FancyBboxPatch((x, y - height / 2), width, height, facecolor=fill, edgecolor=edge, **style))
    axes.text(x + width / 2, y, name, ha="center", va="center", fontsize=9.5)
    if adapter:
        fill, edge = TRAINED
        low = y - height / 2 - 1.5
        axes.add_patch(Rectangle((x, low), width, 1, facecolor=fill, edgecolor=edge, linewidth=1))
    return x + width


def _projections(axes, x, y, stop):
    """query, key and value one below the other, between the arrows from x and those to `stop`."""
    for part, level in (("query", 7), ("key", 0), ("value", -7)):
        arrow(axes, (x, y), (x, y + level), (x + 2.5, y + level))
        right = _part(axes, x + 2.5, y + level, part, 10, colors=FROZEN, adapter=True)
        arrow(axes, (right, y + level), (stop, y + level))


def _matrix(axes, x, y, name, width=10):
    return _part(axes, x, y, name, width, colors=FROZEN, adapter=True)


def _attention(axes, x, y):
    """query, key and value from x on, attention, output. Returns the right edge."""
    _projections(axes, x, y, x + 15.5)
    right = _part(axes, x + 15.5, y, "attention\n(tokens meet)", 13.5, 19.5)
    arrow(axes, (right, y), (right + 2.5, y))
    return _matrix(axes, right + 2.5, y, "output")


def _mlp(axes, x, y):
    """up, gelu and down from x on. Returns the right edge."""
    right = _matrix(axes, x, y, "up", 7.5)
    arrow(axes, (right, y), (right + 2.5, y))
    right = _part(axes, right + 2.5, y, "gelu", 6)
    arrow(axes, (right, y), (right + 2.5, y))
    return _matrix(axes, right + 2.5, y, "down", 7.5)


def _residual(axes, start, stop, y, height, name):
    arrow(axes, (start, y), (start, y + height), (stop, y + height), (stop, y + 2))
    axes.text((start + stop) / 2, y + height - 0.7, name, fontsize=8.5, color="#555555", va="top", ha="center")
    round_sign(axes, (stop, y), "+")


def _post(axes, y):
    axes.text(0, y, "$x$", fontsize=13, va="center", ha="center")
    axes.plot((2, 6), (y, y), color="#333333", linewidth=1.2)
    right = _attention(axes, 6, y)
    arrow(axes, (right, y), (right + 2.2, y))
    _residual(axes, 4, right + 4.2, y, 13, "residual")
    right += 6.2
    arrow(axes, (right, y), (right + 2.2, y))
    right = _part(axes, right + 2.2, y, "norm", 7)
    axes.text(right + 2, y + 1, "$u$", fontsize=12, ha="center")
    arrow(axes, (right, y), (right + 6, y))
    start, right = right + 4, _mlp(axes, right + 6, y)
    arrow(axes, (right, y), (right + 2.2, y))
    _residual(axes, start, right + 4.2, y, 7.5, "residual")
    arrow(axes, (right + 6.2, y), (right + 8.4, y))
    right = _part(axes, right + 8.4, y, "norm", 7)
    arrow(axes, (right, y), (right + 3, y))
    axes.text(right + 5, y, "$y$", fontsize=13, va="center", ha="center")


def _pre(axes, y):
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
    arrow(axes, (right, y), (right + 2.2, y))
    right = _mlp(axes, right + 2.2, y)
    arrow(axes, (right, y), (right + 2.2, y))
    _residual(axes, start, right + 4.2, y, 7.5, "residual")
    arrow(axes, (right + 6.2, y), (right + 9.2, y))
    axes.text(right + 11.2, y, "$y$", fontsize=13, va="center", ha="center")


@styled
def block(rows):
    """Post-norm above pre-norm, from left to right. rows: part, rows, columns, numbers, adapter."""
    figure, axes = plt.subplots(figsize=(10.4, 5.8))
    axes.set(xlim=(-2, 117), ylim=(-14, 52.5), aspect="equal")
    axes.axis("off")
    for draw, y, name in ((_post, 26, "post-norm, as in BERT"), (_pre, -2, "pre-norm, as in GPT-2")):
        axes.text(-1.5, y + 14.5, name, fontsize=10, weight="bold")
        draw(axes, y)
    sizes = {row["part"]: f"{row['rows']} x {row['columns']}" for row in rows}
    shapes = f"four of {sizes['query']}, up {sizes['up']}, down {sizes['down']}"
    frozen, trained = (sum(row[name] for row in rows) for name in ("numbers", "adapter"))
    axes.text(
        -1.5, 51, f"Blue: a frozen matrix. In MiniLM {shapes}: {frozen:,} numbers.", fontsize=9.5, color=FROZEN[1]
    )
    orange = f"Orange: where LoRA's factors may sit. With r = 8 on all six: {trained:,} numbers."
    axes.text(-1.5, 47.5, orange, fontsize=9.5, color=TRAINED[1])
    return figure
