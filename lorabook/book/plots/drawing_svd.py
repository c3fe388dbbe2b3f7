"""The drawing of the SVD: what a 2 x 2 matrix, and its truncation to rank 1, make of the unit circle."""

import numpy as np

from ...linalg import low_rank
from .style import styled

MATRIX = ((2.0, 1.0), (0.0, 1.0))
FIRST, SECOND, GREY = "#0072B2", "#D55E00", "#8A8A8A"


def rows(*_):
    """Points x on the unit circle, one each 5 degrees, with y = W x and y_1 = W_1 x."""
    W = np.array(MATRIX)
    W_1 = low_rank.truncate(W).weight(1)
    found = []
    for degrees in range(0, 360, 5):
        x = np.array([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))])
        row = {"degrees": degrees}
        for name, point in (("x", x), ("y", W @ x), ("y_1", W_1 @ x)):
            row |= {f"{name}[0]": float(point[0]), f"{name}[1]": float(point[1])}
        found.append(row)
    return found


@styled
def svd(rows):
    """Three panels: the unit circle, the ellipse it becomes, the line that the truncation to rank 1 makes of it."""
    import matplotlib.pyplot as plt

    x, y, y_1 = (np.array([[row[f"{name}[{i}]"] for i in (0, 1)] for row in rows]) for name in ("x", "y", "y_1"))
    W = np.linalg.lstsq(x, y, rcond=None)[0].T
    U, sigma, Vt = np.linalg.svd(W)
    signs = np.sign(U[0])  # either sign is right; these arrows point to the right
    U, Vt = U * signs, signs[:, None] * Vt

    figure, axes = plt.subplots(1, 3, figsize=(9.6, 3.2), width_ratios=(3, 5, 5))
    _closed(axes[0], x, "#000000")
    for v, color, name, offset in ((Vt[0], FIRST, "v_1", (6, 2)), (Vt[1], SECOND, "v_2", (4, -12))):
        _arrow(axes[0], v, color)
        axes[0].annotate(f"${name}$", v, xytext=offset, textcoords="offset points", color=color)
    axes[0].set(title="$x$: the unit circle", xlabel="$x[0]$", ylabel="$x[1]$")

    _closed(axes[1], y, "#000000")
    for i, color, at, shift in ((0, FIRST, 0.62, (-0.12, 0.22)), (1, SECOND, 1.0, (0.1, -0.42))):
        axis = sigma[i] * U[:, i]
        _arrow(axes[1], axis, color)
        text = rf"$\sigma_{i + 1} u_{i + 1}$, length {sigma[i]:.2f}"
        axes[1].text(*(at * axis + shift), text, color=color, ha="right" if i == 0 else "left")
    axes[1].set(title="$y = W x$: an ellipse", xlabel="$y[0]$", ylabel="$y[1]$")

    _closed(axes[2], y, GREY, linestyle=":")
    for start, end in zip(y[::3], y_1[::3], strict=True):
        axes[2].plot(*zip(start, end, strict=True), color=SECOND, linewidth=0.8)
    ends = sigma[0] * np.array([-U[:, 0], U[:, 0]])
    axes[2].plot(*ends.T, color=FIRST, linewidth=3)
    axes[2].text(-2.35, 1.32, rf"lost: at most $\sigma_2$ = {sigma[1]:.2f}", color=SECOND)
    axes[2].text(2.35, -1.5, r"kept: $\sigma_1 u_1 v_1^T x$", color=FIRST, ha="right")
    axes[2].set(title="$y = W_1 x$, rank 1: a line", xlabel="$y[0]$", ylabel="$y[1]$")

    for panel, side in zip(axes, (1.5, 2.5, 2.5), strict=True):
        panel.set(xlim=(-side, side), ylim=(-1.75, 1.75), aspect="equal")
        panel.set(xticks=range(-int(side), int(side) + 1), yticks=(-1, 0, 1))
    return figure


def _closed(axes, points, color, **style):
    axes.plot(*np.vstack([points, points[:1]]).T, color=color, linewidth=1.4, **style)


def _arrow(axes, end, color):
    style = {"arrowstyle": "-|>", "color": color, "linewidth": 2, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", end, xytext=(0, 0), arrowprops=style)
