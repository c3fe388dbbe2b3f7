"""What a language model learned of one domain and forgot of others: rows of domains.csv in, Figure out."""

import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter, NullFormatter

from ...files import median_by
from .style import _name, styled

LEARNED, OTHERS = "#D55E00", {"reviews": "#0072B2", "products": "#009E73", "editorials": "#7A5195"}
METHODS = {("full", None): "full fine-tuning", ("lora", 1): "LoRA, r = 1", ("lora", 8): "LoRA, r = 8"}
METHODS |= {("lora", 64): "LoRA, r = 64"}


@styled
def domains(rows):
    """Perplexity after learning one domain, relative to that before: a line a method, a dot a seed, a bar the median.

    rows: of `studies.domains`; those of the rates' choice are passed over. The learned domain is that of these.
    """
    learned = next(row["domain"] for row in rows if row["part"] == "validation")
    measured = [row for row in rows if row["part"] == "test"]
    before = {row["domain"]: row["perplexity"] for row in measured if row["method"] == "base"}
    keys = [key for key in METHODS if any((row["method"], row["r"]) == key for row in measured)]
    figure, axes = plt.subplots(figsize=(8.2, 1.6 + 0.8 * len(keys)))
    colors = {learned: LEARNED} | {name: color for name, color in OTHERS.items() if name in before}
    for y, key in enumerate(keys):
        for i, (domain, color) in enumerate(colors.items()):
            own = [row for row in measured if (row["method"], row["r"], row["domain"]) == (*key, domain)]
            shares, at = [row["perplexity"] / before[domain] for row in own], y + 0.18 * (i - 1.5)
            axes.plot(shares, [at] * len(own), "o", color=color, alpha=0.6, markeredgewidth=0, markersize=6)
            middle = median_by(own, (), "perplexity")[()][0] / before[domain]
            axes.plot([middle, middle], [at - 0.08, at + 0.08], color=color, linewidth=2.4)
            beside = {"xycoords": axes.get_yaxis_transform(), "annotation_clip": False}
            _name(axes, f"{domain}  x {middle:.2f}", (1.01, at), (0, 0), color, va="center", **beside)
    axes.axvline(1, color="#444444", linewidth=1)
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, 0.9), max(high, 1.1) * 1.25)
    ticks = (0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 10, 20)
    axes.set_xticks([x for x in ticks if axes.get_xlim()[0] <= x <= axes.get_xlim()[1]])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    labels = []
    for key in keys:
        own = next(row for row in measured if (row["method"], row["r"]) == key)
        labels.append(f"{METHODS[key]}\n{own['params']:,} numbers")
    axes.set_yticks(range(len(keys)), labels)
    axes.set_ylim(len(keys) - 0.5, -0.6)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("perplexity on held-out texts, after / before (left of 1: better)")
    axes.set_ylabel("what trains")
    axes.set_title(f"What a language model learns of {learned}, and what that does to other texts")
    seeds = len({row["seed"] for row in measured if row["method"] != "base"})
    told = ", ".join(f"{name} {value:.0f}" for name, value in before.items())
    note = f"dot: one of {seeds} seed{'s' * (seeds > 1)}, bar and number: their median"
    text = f"SmolLM2-135M-Instruct, trained on {learned} alone; {note}\nperplexity before: {told}"
    figure.suptitle(text, x=0.01, ha="left", fontsize=9.5, color="#444444")
    return figure
