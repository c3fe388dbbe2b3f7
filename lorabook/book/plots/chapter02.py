"""What chapter 02 plots: the error of a measured derivative against the step size."""

import numpy as np

from .style import styled

CENTRAL, SIDEWAYS = "#D55E00", "#0072B2"
FLOOR = 1e-17


@styled
def step_sizes(steps, central, sideways):
    """Two panels with the same axes, relative errors (n,) for the steps (n,); no error at all is drawn at FLOOR."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(9.0, 3.7), sharex=True, sharey=True)
    for axes, errors, color, marker in ((panels[0], central, CENTRAL, "o"), (panels[1], sideways, SIDEWAYS, "s")):
        axes.loglog(steps, np.maximum(errors, FLOOR), marker + "-", color=color)
        axes.set(xlabel="step", ylim=(FLOOR / 3, 1e5), xticks=10.0 ** np.arange(-20, 1, 4))
        axes.set_yticks(10.0 ** np.arange(-16, 5, 4))
    left, right = panels
    left.set(ylabel="relative error of the derivative", title="central differences: a sweet spot")
    left.axvline(np.finfo(float).eps ** (1 / 3), color="#555555", linewidth=1, linestyle="--")
    left.text(3e-6, 1e-15, r"step $= \epsilon^{1/3}$", color="#555555", ha="right")
    left.text(2e-20, 1e-7, "digits lost by\nsubtracting:\n" r"error $\propto \epsilon\,/\,$step", color=CENTRAL)
    left.text(0.9, 1e2, "formula too\ncoarse: step$^2$", color=CENTRAL, ha="right")
    right.set_title("complex step: the smaller, the better")
    right.text(0.9, 1e2, "formula too\ncoarse: step$^2$", color=SIDEWAYS, ha="right")
    right.text(2e-20, 1e-12, "nothing is subtracted,\nnothing is lost", color=SIDEWAYS)
    return figure
