"""Plot of chapter 06: truncation, best possible and trained error on a problem whose best update is known."""

import matplotlib.pyplot as plt

from .style import PALETTE, _name, styled


@styled
def known_bound(plain, best, trained):
    """Root mean squared error against rank. plain, best: of each rank from 0 on; trained: {r: error}."""
    figure, axes = plt.subplots(figsize=(7.2, 3.6))
    axes.plot(plain, color=PALETTE["svd"], marker="s")
    axes.plot(best, color=PALETTE["activation_svd"], linestyle="--")
    axes.plot(list(trained), list(trained.values()), "o", color=PALETTE["lora"], markerfacecolor="none")
    _name(axes, "plain truncation of the least-squares update", (5, plain[5]), (8, 6), PALETTE["svd"])
    _name(axes, "best possible: activation-aware truncation", (4, best[4]), (0, -16), PALETTE["activation_svd"])
    _name(axes, "circles: LoRA, trained for 1,000 steps", (3, best[3]), (10, 3), PALETTE["lora"])
    axes.set_xlabel("rank r")
    axes.set_ylabel("root mean squared error")
    axes.set_ylim(0, None)
    axes.set_xticks(range(0, len(plain), 2))
    axes.set_title("Planted update of rank 4, input scales from 1 to 1/300")
    return figure
