"""Plots of chapter 16: the roofline of a device with the parts of a step below it; launches against work."""

import matplotlib.pyplot as plt
import numpy as np

from .style import _name, styled

BLUE, LIGHT, ORANGE = "#0072B2", "#56B4E9", "#D55E00"
GROUPS = {  # label: the parts of a step that it stands for
    "products with W": ("products with W",),
    "products with A or B, r = 8": ("products with A or B",),
    "products of attention": ("products of attention",),
    "GELU, fused": ("GELU",),
    "other elementwise": (
        "attention: softmax, scaling",
        "layer norm",
        "W + s B A, scaling",
        "the rest: bias, residual",
        "norm of the gradient, AdamW",
    ),
}


@styled
def roofline(rows, sheet, title):
    """TFLOP/s that the device can reach, against FLOPs per byte, and where the parts of a step lie on it.

    rows: part, flops, bytes. sheet: {"float32", "TF32", "bandwidth"} of the data sheet.
    """
    figure, axes = plt.subplots(figsize=(7.6, 4.2))
    intensity = np.geomspace(0.05, 2000, 200)
    for name, color in (("TF32", LIGHT), ("float32", BLUE)):
        axes.plot(intensity, np.minimum(sheet[name], intensity * sheet["bandwidth"]) / 1e12, color=color)
        _name(axes, name, (1900, sheet[name] / 1e12), (0, 4), color, ha="right")
    for name, parts in GROUPS.items():
        own = [row for row in rows if row["part"] in parts]
        x = sum(row["flops"] for row in own) / sum(row["bytes"] for row in own)
        y = min(sheet["float32"], x * sheet["bandwidth"]) / 1e12
        axes.plot(x, y, "o", color=ORANGE)
        _name(axes, name, (x, y), (7, -9), ORANGE)
    axes.set(xscale="log", yscale="log", xlabel="FLOP / byte", ylabel="TFLOP/s, at most", ylim=(0.1, 2000))
    axes.set_title(title)
    return figure


@styled
def launches_or_work(steps, launch, sizes):
    """Milliseconds a step against the texts in a batch: the host's launches, and the device's least time.

    steps: {name: `counted.Step`}, a panel each. launch: seconds of one launch, drawn with a band of half as much.
    """
    figure, panels = plt.subplots(1, len(steps), figsize=(9.2, 3.8), sharey=True)
    for axes, (name, step) in zip(panels, steps.items(), strict=True):
        host = 1e3 * len(step.parts) * launch
        axes.axhline(host, color="black")
        axes.axhspan(0.5 * host, 1.5 * host, color="black", alpha=0.1, linewidth=0)
        _name(axes, f"host: {len(step.parts):,} launches", (1, host), (2, 4), "black")
        for tf32, color, label in ((False, BLUE, "device, float32"), (True, LIGHT, "device, TF32")):
            axes.plot(sizes, [1e3 * step.seconds(B, tf32).sum() for B in sizes], color=color)
            at, offset, ha = (sizes[3], (8, -12), "left") if tf32 else (sizes[9], (-8, 2), "right")
            _name(axes, label, (at, 1e3 * step.seconds(at, tf32).sum()), offset, color, ha=ha)
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes[::2], [str(B) for B in sizes[::2]])
        axes.set(yscale="log", xlabel="texts in a batch, T = 128", title=f"{name}: predicted, not measured")
    panels[0].set_ylabel("milliseconds a step")
    return figure
