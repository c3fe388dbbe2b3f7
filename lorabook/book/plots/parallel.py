"""Plot of chapter 15: two contraction orders of LoRA, by FLOPs and by time."""

import matplotlib.pyplot as plt
import numpy as np

from .style import _name, styled


@styled
def orders(rows, N, by_flops):
    """Cost factored / cost merged against the rows N, a panel a matrix.

    rows: {(d_in, d_out): (measured ratios for N, N*)}. by_flops(n, d_in, d_out): the ratio by FLOPs.
    """
    figure, panels = plt.subplots(1, len(rows), figsize=(9.6, 3.7), sharey=True)
    fine = np.geomspace(N[0], N[-1], 100)
    for axes, ((d_in, d_out), (measured, star)) in zip(panels, rows.items(), strict=True):
        flops = [by_flops(n, d_in, d_out) for n in fine]
        axes.plot(fine, flops, "--", color="#0072B2")
        axes.plot(N, measured, "o-", color="#D55E00")
        axes.axhline(1, color="black", linewidth=0.8)
        axes.axvline(star, color="black", linewidth=0.8, linestyle=":")
        axes.set_xscale("log", base=2)
        axes.set_xticks(N, [str(n) for n in N])
        axes.minorticks_off()
        axes.set(xlabel="rows N", title=f"d_in = {d_in}, d_out = {d_out}", xlim=(N[0] / 1.2, 2.6 * N[-1]))
        ends = {"measured": (measured[-1], "#D55E00"), "by FLOPs": (flops[-1], "#0072B2")}
        (top, (high, _)), (_, (low, _)) = sorted(ends.items(), key=lambda item: -item[1][0])
        close = high - low < 0.02
        for name, (value, color) in ends.items():
            above = 0 if not close else 6 if name == top else -6
            _name(axes, name, (N[-1], value), (7, above), color, va="center")
        axes.annotate("N*", (star, 0.02), (4, 0), xycoords=("data", "axes fraction"), textcoords="offset points")
    panels[0].set_ylabel("cost factored / cost merged")
    panels[0].text(0.03, 0.97, "above 1: merge first", transform=panels[0].transAxes, va="top", fontsize=9)
    return figure
