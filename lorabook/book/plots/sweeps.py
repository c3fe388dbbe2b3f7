"""Rank against error, drawn: the rank sweep, the planted bound, spectra. Lines are medians, bands span the seeds."""

import matplotlib.pyplot as plt
from matplotlib.ticker import PercentFormatter

from ...files import median_by
from .style import LABELS, PALETTE, _curve, _log_axis, _name, _outside, _percent, _rank_axis, styled


@styled
def rank_vs_error(rows, title=None, repeated="seeds"):
    """Two panels from the rows of `rank_sweep`: distance to the full update, and errors on the task, against rank.

    repeated: what the seeds stand for, in the note of the figure.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 4.2))
    ranked = [row for row in rows if row["r"] is not None]
    ranks, seeds = {row["r"] for row in ranked}, {row["seed"] for row in ranked}
    wrong = [100 * (1 - row["test_accuracy"]) for row in rows]
    least = min((w for w in wrong if w > 1e-9), default=1.0) / 2  # where a logarithmic axis shows "no mistakes"
    rows = [row | {"test_error": max(w, least)} for row, w in zip(rows, wrong, strict=True)]
    for method in ("svd", "activation_svd", "lora"):
        own = [row for row in rows if row["method"] == method]
        for axes, value in ((left, "weight_error"), (right, "test_error")):
            _curve(axes, own, method, value)

    def at(method, value, r):
        return r, median_by([row for row in rows if row["method"] == method and row["r"] == r], (), value)[()][0]

    first, middle = min(ranks), sorted(ranks)[len(ranks) // 2]
    left.axhline(1, color="#666666", linewidth=1, linestyle="--")
    _name(left, "no update at all", (max(ranks), 1), (0, 4), "#666666", ha="right")
    _name(left, LABELS["lora"], at("lora", "weight_error", middle), (0, 10), PALETTE["lora"], ha="center")
    _name(
        left, LABELS["activation_svd"], at("activation_svd", "weight_error", middle), (6, 6), PALETTE["activation_svd"]
    )
    _name(
        left, "SVD: the lower bound", at("svd", "weight_error", middle), (-6, -8), PALETTE["svd"], ha="right", va="top"
    )
    _log_axis(left, (0.01, 0.03, 0.1, 0.3, 1, 3, 10))
    left.set_ylabel(r"$\Vert$update $-\ \Delta W\Vert_F\ /\ \Vert\Delta W\Vert_F$")
    left.set_title("How far from the update of full fine-tuning?")

    full, low, high = median_by([row for row in rows if row["method"] == "full"], (), "test_error")[()]
    right.axhline(full, color="black", linewidth=1.2, linestyle="--")
    right.axhspan(low, high, color="black", alpha=0.08, linewidth=0)
    perfect = full <= least
    _name(right, f"full fine-tuning: {0 if perfect else full:.1f} %", (first, full), (0, -4), "black", va="top")
    steep = sorted(ranks)[len(ranks) // 3]
    _name(right, LABELS["lora"], at("lora", "test_error", max(ranks)), (0, 9), PALETTE["lora"], ha="right")
    _name(right, LABELS["svd"], at("svd", "test_error", steep), (6, 8), PALETTE["svd"])
    _name(
        right,
        LABELS["activation_svd"],
        at("activation_svd", "test_error", steep),
        (-8, -6),
        PALETTE["activation_svd"],
        ha="right",
    )
    right.set_ylim(bottom=min(full, least * 2) / 2)
    _log_axis(right, (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100))
    _percent(right.yaxis)
    right.set_ylabel("wrong on held-out rows")
    right.set_title("How many mistakes?")
    for axes in (left, right):
        _rank_axis(axes, ranks)
    note = f"line: median of {len(seeds)} {repeated}, band: lowest to highest" if len(seeds) > 1 else "one seed"
    figure.suptitle(f"{_outside(title)}\n{note}" if title else note, x=0.01, ha="left", fontsize=9.5, color="#444444")
    return figure


@styled
def planted_bound(rows):
    """Error against rank with its closed-form bound, one panel per conditioning, from the rows of `bound_sweep`."""
    conditions, budgets = sorted({row["condition"] for row in rows}), sorted({row["steps"] for row in rows})
    figure, panels = plt.subplots(1, len(conditions), figsize=(9.6, 4), sharey=True)
    for axes, condition in zip(panels, conditions, strict=True):
        own = [row for row in rows if row["condition"] == condition]
        for steps, shade in zip(budgets, ("#F9B384", "#E6843C", "#A84800"), strict=True):
            points = median_by([row for row in own if row["steps"] == steps], ("r",), "loss")
            r, middle = zip(*((r, spread[0]) for (r,), spread in points.items()), strict=True)
            axes.plot(r, middle, color=shade, marker="o")
            axes.fill_between(
                r, *zip(*(s[1:] for s in points.values()), strict=True), color=shade, alpha=0.15, linewidth=0
            )
            if axes is panels[-1]:
                _name(axes, f"{steps} steps", (r[-1], middle[-1]), (7, -9 if steps == budgets[-1] else 1), shade)
        bound = median_by(own, ("r",), "bound")
        axes.plot(
            [r for (r,) in bound], [s[0] for s in bound.values()], color=PALETTE["svd"], linestyle="--", linewidth=2.4
        )
        last = max(r for (r,) in bound)
        _name(
            axes, "best possible at this rank", (last, bound[(last,)][0]), (0, -8), PALETTE["svd"], ha="right", va="top"
        )
        axes.set_title(f"input scales from 1 to 1/{condition:g}")
        axes.set_xlabel("rank r")
        axes.set_xticks([r for (r,) in bound])
    panels[0].set_ylim(bottom=0.014)
    _log_axis(panels[0], (0.02, 0.05, 0.1, 0.2))
    panels[0].set_ylabel("root mean squared error")
    problems = len({row["seed"] for row in rows})
    note = f"LoRA trained (orange) to find a planted update of rank 4; median and range of {problems} problems"
    figure.suptitle(note, x=0.01, ha="left", fontsize=9.5, color="#444444")
    return figure


@styled
def spectrum(curves, shown):
    """Singular values and truncation errors of every matrix, thin, and of the one that is `shown`, thick.

    curves: {name: rows of `spectra.spectrum`}, of one matrix or several.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.8))
    for name, curve in curves.items():
        largest = max(row["singular_value"] for row in curve[1:]) or 1
        one = name == shown
        style = {"color": PALETTE["svd"], "zorder": 3} if one else {"color": "#9A9A9A", "linewidth": 0.6, "alpha": 0.6}
        marker = {"marker": "."} if one and len(curve) < 80 else {}
        ranks = [row["r"] for row in curve]
        left.plot(ranks[1:], [row["singular_value"] / largest for row in curve[1:]], **style, **marker)
        right.plot(ranks, [row["weight_error"] for row in curve], **style)
    lines = {
        "weight_error": ("in the weight, svd: the best there is", PALETTE["svd"], "-"),
        "svd_output_error": ("in the outputs, svd", PALETTE["lora"], "--"),
        "activation_svd_output_error": ("in the outputs, activation_svd", PALETTE["activation_svd"], "-"),
    }
    labels = [(_outside(shown), "#000000")]
    for column, (label, color, style) in lines.items():
        if column in curves[shown][0]:
            labels.append((label, color))
            right.plot([row["r"] for row in curves[shown]], [row[column] for row in curves[shown]], style, color=color)
    if others := len(curves) - 1:
        labels.append((f"in the weight, the other {others}" if others > 1 else "in the weight, the other", "#7A7A7A"))
    for i, (label, color) in enumerate(labels):
        right.text(
            0.98, 0.97 - 0.08 * i, label, color=color, transform=right.transAxes, ha="right", va="top", fontsize=9
        )
    left.set_xlabel("index i")
    left.set_ylabel(r"singular value $\sigma_i / \sigma_1$")
    left.set_title("Spectrum" if len(curves) == 1 else f"Spectra of {len(curves)} matrices")
    right.set_xlabel("rank r")
    right.set_ylabel("relative error (Frobenius)")
    right.set_title("Error of the rank-r truncation")
    for axes in (left, right):
        axes.set_ylim(0, 1.03)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    return figure
