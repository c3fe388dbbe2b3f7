"""What chapter 01 plots of what it has computed: rivals of the truncation, errors at every rank, images."""

import numpy as np

from ...linalg import low_rank
from .style import PALETTE, styled

SPECTRA = {  # line style, colour, where the label stands
    "random start": (":", "#555555", (42, 59)),
    "pretrained W": ("-", "#0072B2", (21, 43)),
    "added by pretraining": ("--", "#009E73", (11, 3)),
    "added by fine-tuning": ("-", "#D55E00", (23, 20)),
}


@styled
def rivals(bound, random_pairs, alternating):
    """The least error of every rank, and what others reach. bound (n + 1,); the others {r: errors}, {r: error}."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.8, 3.5))
    axes.plot(bound, color=PALETTE["svd"])
    low, high = ([pick(errors) for errors in random_pairs.values()] for pick in (np.min, np.max))
    axes.fill_between(list(random_pairs), low, high, color="#999999", alpha=0.45, linewidth=0)
    axes.plot(alternating.keys(), alternating.values(), "o", color=PALETTE["lora"], markerfacecolor="none")
    axes.text(7.6, 21.3, "1000 random A per rank, each with its best B", color="#555555")
    axes.text(0.6, 8.5, "SVD: the bound", color=PALETTE["svd"])
    axes.text(0.6, 5.8, "o  alternating least squares, 200 turns", color=PALETTE["lora"])
    axes.set(xlabel="rank r", ylabel=r"$\Vert W - B A\Vert_F$", ylim=(0, None), xticks=[0, 4, 8, 12, 16, 20])
    axes.set_title("A random 30 x 20 matrix: how close rank-r factors come")
    return figure


@styled
def errors_at_every_rank(spectra, break_even):
    """Relative error of the best rank r, for the singular values of each of the SPECTRA."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.8, 3.5))
    for name, sigma in spectra.items():
        style, color, place = SPECTRA[name]
        axes.plot(100 * low_rank.rank_errors(sigma) / np.linalg.norm(sigma), color=color, linestyle=style)
        axes.text(*place, name.replace("added by", "by"), color=color)
    axes.axvline(break_even, color="#999999", linewidth=1)
    axes.text(break_even + 1, 92, "break-even rank", color="#555555")
    axes.set(xlabel="rank r", ylabel="error of the best rank r, %", xlim=(0, 128), ylim=(0, 103))
    axes.set_title("fc2: the weight is not low-rank, what training adds is nearer to it")
    return figure


@styled
def images(named):
    """{title: 64 numbers} as 8 x 8 pictures, signs in colour."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(named), figsize=(2.2 * len(named), 2.6))
    for axes, (name, image) in zip(panels, named.items(), strict=True):
        limit = np.abs(image).max()
        axes.imshow(image.reshape(8, 8), cmap="RdBu_r", vmin=-limit, vmax=limit)
        axes.set(title=name, xticks=[], yticks=[])
        axes.grid(False)
    figure.supxlabel("red: positive, blue: negative, white: zero", fontsize=9)
    return figure


def spectrum_rows(W, plain, aware):
    """Rows for `plots.spectrum`: errors in the weight and in the outputs, of the plain and the aware truncation."""
    sigma = low_rank.svd(W)[1]
    weight = low_rank.rank_errors(sigma) / np.linalg.norm(W)
    return [
        {
            "r": r,
            "singular_value": sigma[r - 1] if r else None,
            "weight_error": weight[r],
            "svd_output_error": plain[r] / plain[0],
            "activation_svd_output_error": aware.errors[r] / plain[0],
        }
        for r in range(len(sigma) + 1)
    ]
