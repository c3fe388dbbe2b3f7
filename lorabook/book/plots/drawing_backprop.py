"""The drawing of backpropagation: a linear layer, ReLU and a loss, with the numbers that flow through them."""

import numpy as np

from ... import functional as F
from .style import styled

FORWARD, BACKWARD, FRAME = "#0072B2", "#D55E00", "#444444"
GIVEN = {"x": [[1.0, 2.0]], "W": [[1.0, 0.5], [-1.0, 0.5]], "b": [0.5, -0.5], "target": [[2.0, 1.0]]}


def rows(*_):
    """One row for each entry of each array: its value from the forward pass, its gradient from the backward pass."""
    x, W, b, target = (np.array(value) for value in GIVEN.values())
    y, linear = F.linear(x, W, b)
    a, slope = F.relu(y)
    L = 0.5 * np.sum((a - target) ** 2)
    da = a - target
    dy = F.activation_backward(da, slope)
    dx, dW, db = F.linear_backward(dy, linear)
    pairs = {"x": (x, dx), "W": (W, dW), "b": (b, db), "y": (y, dy), "a": (a, da), "L": (L, 1.0)}
    found = []
    for name, (value, gradient) in pairs.items():
        value, gradient = np.atleast_2d(value), np.atleast_2d(gradient)
        for i, j in np.ndindex(*value.shape):
            found.append({"array": name, "row": i, "column": j, "value": value[i, j], "gradient": gradient[i, j]})
    return found


@styled
def backprop(rows):
    """Boxes are functions; above each arrow what flows forward, below it the gradient that flows back."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9.6, 3.0))
    boxes = {"linear": (3.0, r"$y = x\,W^T + b$"), "relu": (6.3, "$a = $ relu$(y)$")}
    boxes["loss"] = (9.6, r"$L = \frac{1}{2}\Vert a - t\Vert^2$")
    for place, text in boxes.values():
        box = {"boxstyle": "round,pad=0.55", "facecolor": "#F4F4F4", "edgecolor": FRAME}
        axes.text(place, 0, text, ha="center", va="center", fontsize=12, bbox=box, zorder=3)
    a, da = ([row[what] for row in rows if row["array"] == "a"] for what in ("value", "gradient"))
    target = "  ".join(_number(value - change) for value, change in zip(a, da, strict=True))
    axes.text(9.6, -0.42, f"target $t$ = [{target}]", color=FRAME, ha="center", va="top")
    wires = {"x": (0.3, 1.9, "(1, 2)"), "y": (4.1, 5.4, "(1, 2)"), "a": (7.2, 8.5, "(1, 2)")}
    wires["L"] = (10.7, 12.0, "")
    for name, (left, right, shape) in wires.items():
        _flow(axes, (left, 0.16), (right, 0.16), FORWARD)
        _flow(axes, (right, -0.16), (left, -0.16), BACKWARD)
        middle, (value, gradient) = (left + right) / 2, _numbers(rows, name)
        axes.text(middle, 0.32, f"${name}$ {shape}\n{value}", color=FORWARD, ha="center", va="bottom")
        below = rf"{gradient}" + "\n" + rf"$\mathrm{{d}}{name}$"
        axes.text(middle, -0.32, below, color=BACKWARD, ha="center", va="top")
    for name, left, shape in (("W", 2.5, "(2, 2)"), ("b", 3.5, "(2,)")):
        value, gradient = _numbers(rows, name)
        _flow(axes, (left - 0.1, 1.25), (left - 0.1, 0.42), FORWARD)
        _flow(axes, (left + 0.1, 0.42), (left + 0.1, 1.25), BACKWARD)
        side, align = (left - 0.25, "right") if name == "W" else (left + 0.25, "left")
        axes.text(side, 1.3, f"${name}$ {shape}\n{value}", color=FORWARD, ha=align, va="bottom")
        axes.text(side, 1.1, rf"$\mathrm{{d}}{name}$ = " + gradient, color=BACKWARD, ha=align, va="top")
    axes.text(12.1, 2.0, "values flow forward", color=FORWARD, ha="right", va="top", fontsize=12)
    axes.text(12.1, 1.68, "gradients of $L$ flow backward", color=BACKWARD, ha="right", va="top", fontsize=12)
    axes.set(xlim=(0.1, 12.3), ylim=(-0.95, 2.1))
    axes.axis("off")
    return figure


def _numbers(rows, name):
    """The values and the gradients of an array as text, one line a row."""
    mine = [row for row in rows if row["array"] == name]
    if name == "L":
        return [f"{mine[0][what]:g}" for what in ("value", "gradient")]
    lines = sorted({row["row"] for row in mine})
    return [
        "\n".join("[" + "  ".join(_number(row[what]) for row in mine if row["row"] == line) + "]" for line in lines)
        for what in ("value", "gradient")
    ]


def _number(value):
    return f"{value + 0.0:g}".replace("-", "\N{MINUS SIGN}")  # + 0.0: a zero has no sign


def _flow(axes, start, end, color):
    style = {"arrowstyle": "-|>", "color": color, "linewidth": 1.6, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", end, xytext=start, arrowprops=style)
