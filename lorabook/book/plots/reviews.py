"""The encoder's experiments drawn: rows of the reviews_* CSV files in, Figure out, as in all `plots`."""

import matplotlib.pyplot as plt
import numpy as np

from ...files import median_by
from ...studies import PEFT
from .style import PALETTE, _curve, _log_axis, _name, _percent, _rank_axis, styled

ALL = "query key value attention.output.dense"
SHORT = {"query": "Wq", "key": "Wk", "value": "Wv", "attention.output.dense": "Wo"}
COLORS = {"query": "#0072B2", "query value": "#D55E00", ALL: "#009E73"}
GREY = "#666666"


def _short(targets):
    return ", ".join(SHORT[target] for target in targets.split())


def _epochs(rows):
    (epochs,) = {row["epochs"] for row in rows}
    return _span(epochs)


def _span(epochs):
    return {0.5: "half an epoch", 1: "1 epoch"}.get(epochs, f"{epochs} epochs")


def _note(figure, text):
    figure.suptitle(text, x=0.01, ha="left", fontsize=9.5, color="#444444")


def _names(axes, ends):
    """Names at the ends of lines, {name: ((x, y), color)}, moved apart where they would overlap."""
    to, back = (np.log, np.exp) if axes.get_yscale() == "log" else (float, float)
    low, high = map(to, axes.get_ylim())
    floor = -np.inf
    for name, ((x, y), color) in sorted(ends.items(), key=lambda item: item[1][0][1]):
        floor = max(to(y), floor + (high - low) / 16)
        _name(axes, name, (x, back(floor)), (7, -3), color)


def _dots(axes, groups, colors):
    """A line of dots, one a seed, with a bar at their median, for every (label, rows) of `groups`, the first on top."""
    for y, ((_, rows), color) in enumerate(zip(groups, colors, strict=True)):
        right = [100 * row["test_accuracy"] for row in rows]
        middle = 100 * median_by(rows, (), "test_accuracy")[()][0]
        axes.plot(right, [y] * len(right), "o", color=color, alpha=0.6, markeredgewidth=0)
        axes.plot([middle, middle], [y - 0.28, y + 0.28], color=color, linewidth=2.4)
        _name(axes, f"{middle:.1f} %", (max(*right, middle), y), (8, 0), color, va="center")
    axes.set_yticks(range(len(groups)), [label for label, _ in groups])
    axes.set_ylim(len(groups) - 0.4, -0.6)
    low, high = axes.get_xlim()
    axes.set_xlim(low, high + 0.08 * (high - low))  # room for the number of the best
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("right on held-out reviews")
    axes.set_ylabel("what trains")
    _percent(axes.xaxis)


@styled
def recipe(rows):
    """Accuracy of full fine-tuning, LoRA and the head alone, with what PEFT reached, from the rows of the recipe."""
    names = {"full": "everything", "head": "pooler and classifier", "classifier": "classifier"}
    figure, axes = plt.subplots(figsize=(7.8, 4.2))
    keys = list(dict.fromkeys((row["method"], row["r"]) for row in rows))
    groups = []
    for method, r in keys:
        own = [row for row in rows if (row["method"], row["r"]) == (method, r)]
        label = names.get(method, f"LoRA on query and value, r = {r}")
        groups.append((f"{label}\n{own[0]['params']:,} numbers", own))
    colors = [PALETTE.get(method, GREY) for method, _ in keys]
    _dots(axes, groups, colors)
    for y, key in enumerate(keys):
        if key in PEFT:
            axes.plot(100 * PEFT[key], y + 0.36, "D", color="#CC79A7", markerfacecolor="none")
            at_least = "PEFT: more than " if key[0] == "full" else "PEFT: "
            text = f"{at_least}{100 * PEFT[key]:.3g} %"
            _name(axes, text, (100 * PEFT[key], y + 0.36), (-8, -3), "#A0467A", ha="right")
    seeds = len({row["seed"] for row in rows})
    axes.set_title("What has to train?")
    note = f"dot: one of {seeds} seeds, bar and number: their median; diamond: PEFT, one run on a split of its own"
    _note(figure, f"MiniLM on movie reviews, {_epochs(rows)}\n{note}")
    return figure


@styled
def matrices(rows):
    """Accuracy for each choice of matrices at a fixed number of parameters: the LoRA paper's Table 5."""
    figure, axes = plt.subplots(figsize=(7.2, 3.8))
    groups = []
    for targets in dict.fromkeys(row["targets"] for row in rows):
        own = [row for row in rows if row["targets"] == targets]
        groups.append((f"{_short(targets)}   r = {own[0]['r']}", own))
    _dots(axes, groups, [PALETTE["lora"]] * len(groups))
    (params,) = {row["params"] for row in rows}
    axes.set_title("Which matrices, when the number of parameters is fixed?")
    seeds = len({row["seed"] for row in rows})
    note = f"dot: one of {seeds} seeds, bar and number: their median; {params:,} numbers train in every line"
    _note(figure, f"MiniLM on movie reviews, {_epochs(rows)}\n{note}")
    return figure


@styled
def ranks(rows):
    """Accuracy against rank, a line for each choice of matrices: the LoRA paper's Table 6."""
    figure, axes = plt.subplots(figsize=(7.2, 3.8))
    ends = {}
    for targets, color in COLORS.items():
        own = [row for row in rows if row["targets"] == targets]
        ends[targets] = _curve(axes, own, None, "test_accuracy", scale=100, color=color)[:2]
    _names(axes, {_short(targets): (ends[targets], COLORS[targets]) for targets in ends})
    _rank_axis(axes, {row["r"] for row in rows})
    axes.set_xlim(right=190)
    _percent(axes.yaxis)
    axes.set_ylabel("right on held-out reviews")
    seeds = len({row["seed"] for row in rows})
    axes.set_title("Which rank?")
    note = f"line: median of {seeds} seeds, band: lowest to highest"
    _note(figure, f"MiniLM on movie reviews, {_epochs(rows)}\n{note}")
    return figure


@styled
def subspaces(rows):
    """phi of the first i and the first j directions of two lora_A, and of two random matrices, numbers in the cells."""
    pairs = list(dict.fromkeys((row["r1"], row["r2"]) for row in rows))
    columns = {"query": "Wq", "value": "Wv", None: "random matrices"}
    heights = [len({row["i"] for row in rows if row["r1"] == r1}) for r1, _ in pairs]
    figure, panels = plt.subplots(len(pairs), 3, figsize=(9.6, 6.4), height_ratios=heights)
    for (r1, r2), line in zip(pairs, panels, strict=True):
        for (matrix, name), axes in zip(columns.items(), line, strict=True):
            own = [row for row in rows if (row["r1"], row["r2"], row["matrix"]) == (r1, r2, matrix)]
            phi = {key: middle for key, (middle, _, _) in median_by(own, ("i", "j"), "phi").items()}
            first, second = (list(dict.fromkeys(key[side] for key in phi)) for side in (0, 1))
            cells = np.array([[phi[i, j] for j in second] for i in first])
            axes.imshow(cells, cmap="Blues", vmin=0, vmax=1, aspect="auto")
            for (y, x), value in np.ndenumerate(cells):
                color = "white" if value > 0.6 else "black"
                axes.text(x, y, f"{value:.2f}", color=color, fontsize=8, ha="center", va="center")
            axes.set_xticks(range(len(second)), second)
            axes.set_yticks(range(len(first)), first)
            axes.grid(visible=False)
            axes.set_xlabel(f"first j directions, r = {r2}")
            axes.set_ylabel(f"first i directions, r = {r1}")
            axes.set_title(f"{name}: r = {r1} and r = {r2}" if matrix else f"{name}, {r1} and {r2} rows")
    layers, seeds = ({row[column] for row in rows} - {None} for column in ("layer", "seed1"))
    text = r"how much of one subspace lies in the other: $\phi$, from 0 to 1, of lora_A after two trainings"
    note = f"with different seeds; median of {len(layers)} layers and {len(seeds)} pairs of seeds"
    _note(figure, f"{text}\n{note}")
    return figure


@styled
def amplifications(rows):
    """Amplification factor of every layer, a line for each rank; a panel for each matrix."""
    figure, panels = plt.subplots(1, 2, figsize=(9.6, 3.9), sharey=True)
    ranks = sorted({row["r"] for row in rows})
    shades = plt.get_cmap("YlOrBr")(np.linspace(0.4, 0.95, len(ranks)))
    ends = {matrix: {} for matrix in ("query", "value")}
    for axes, matrix in zip(panels, ends, strict=True):
        for r, color in zip(ranks, shades, strict=True):
            own = [row for row in rows if (row["matrix"], row["r"]) == (matrix, r)]
            points = [(layer, *spread) for (layer,), spread in median_by(own, ("layer",), "amplification").items()]
            layer, middle, low, high = zip(*sorted(points), strict=True)
            axes.plot(layer, middle, color=color, marker="o")
            axes.fill_between(layer, low, high, color=color, alpha=0.2, linewidth=0)
            ends[matrix][f"r = {r}"] = (layer[-1], middle[-1]), color
        axes.set_xticks(layer)
        axes.set_xlim(right=layer[-1] + 0.9)
        axes.set_xlabel("layer")
        axes.set_title(f"Update of {SHORT[matrix]}")
    _log_axis(panels[0], (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000))
    for axes, names in zip(panels, ends.values(), strict=True):
        _names(axes, names)
    panels[0].set_ylabel("amplification factor")
    seeds = len({row["seed"] for row in rows})
    text = r"$\Vert\Delta W\Vert_F\ /\ \Vert U^T W V\Vert_F$: the update against what W does in its directions"
    _note(figure, f"{text}\nline: median of {seeds} seeds, band: lowest to highest; {_epochs(rows)}")
    return figure


@styled
def spectra(rows):
    """Singular values of W, of the update of full fine-tuning and of LoRA's, a panel for each matrix."""
    figure, panels = plt.subplots(1, 2, figsize=(9.6, 3.9), sharey=True)
    styles = {"weight": ("W itself", GREY), "full": ("full fine-tuning", "black"), "lora": ("LoRA", PALETTE["lora"])}
    for axes, matrix in zip(panels, ("query", "value"), strict=True):
        own = [row for row in rows if row["matrix"] == matrix]
        for what, r in dict.fromkeys((row["what"], row["r"]) for row in own):
            label, color = styles[what]
            values = median_by([row for row in own if (row["what"], row["r"]) == (what, r)], ("i",), "singular_value")
            points = [(i, *spread) for (i,), spread in values.items()]
            i, middle, low, high = zip(*sorted(points), strict=True)
            axes.plot(i, middle, color=color, marker="o")
            axes.fill_between(i, low, high, color=color, alpha=0.15, linewidth=0)
            at = len(i) - 1 if r else len(i) // 2 + 1  # left of where the line falls
            _name(axes, f"{label}, r = {r}" if r else label, (i[at], middle[at]), (6, 5), color)
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks := (1, 2, 4, 8, 16, 32, 64, 128, 256), [str(tick) for tick in ticks])
        axes.set_xlabel("index i")
        axes.set_title(SHORT[matrix])
    _log_axis(panels[0], (1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1, 10))
    panels[0].set_ylabel("singular value")
    layers, seeds = ({row[column] for row in rows} - {None} for column in ("layer", "seed"))
    text = "singular values of the query and value matrices, and of what training added to them"
    _note(figure, f"{text}\nline: median of {len(layers)} layers and {len(seeds)} seeds, band: lowest to highest")
    return figure


@styled
def intruders(rows):
    """Cosine of the least like leading direction of W + update with W's: a dot a layer, for each way of training.

    Below each rank stands how many of the leading directions are new, in the mean over layers and seeds.
    """
    figure, panels = plt.subplots(1, 2, figsize=(9.6, 4.6), sharey=True)
    runs = sorted({(row["epochs"], row["r"]) for row in rows if row["r"]})
    (full,) = {(row["epochs"], None) for row in rows if row["r"] is None}
    short, long = runs[0][0], runs[-1][0]
    columns = {full: 0.0} | {run: i + 1.6 + 0.6 * (run[0] == long) for i, run in enumerate(runs)}
    styles = {short: (PALETTE["lora"], "o"), long: ("#7F3300", "s")}
    for axes, matrix in zip(panels, ("query", "value"), strict=True):
        own = [row for row in rows if row["matrix"] == matrix]
        labels = []
        for run, x in columns.items():
            here = [row for row in own if (row["epochs"], row["r"]) == run]
            color, marker = styles[run[0]] if run[1] else (PALETTE["full"], "o")
            by_layer = {
                layer: middle for (layer,), (middle, _, _) in median_by(here, ("layer",), "smallest_cosine").items()
            }
            at = [x + 0.11 * (layer - (len(by_layer) - 1) / 2) for layer in by_layer]
            axes.plot(at, list(by_layer.values()), marker, color=color, markersize=4.5, alpha=0.8, markeredgewidth=0)
            middle = median_by(here, (), "smallest_cosine")[()][0]
            axes.plot((x - 0.4, x + 0.4), (middle, middle), color=color, linewidth=2)
            labels.append(f"{run[1] or 'full'}\n{np.mean([row['intruders'] for row in here]):.1f}")
        axes.axhline(0.5, color=GREY, linewidth=1, linestyle="--")
        _name(axes, "below:\nintruders", (-0.5, 0.5), (0, -3), GREY, va="top")
        _name(axes, f"LoRA, {_span(short)}", (columns[short, runs[0][1]] - 0.4, 1.04), (0, 4), styles[short][0])
        _name(axes, f"{_span(long)}", (columns[runs[-1]] + 0.4, 1.04), (0, 4), styles[long][0], ha="right")
        _name(axes, _span(full[0]), (-0.5, 1.04), (0, 4), PALETTE["full"])
        axes.set_xticks(list(columns.values()), labels)
        axes.set_xlim(-0.6, columns[runs[-1]] + 0.6)
        axes.set_ylim(0, 1.12)
        axes.grid(axis="x", visible=False)
        axes.set_xlabel("rank r, and below it the intruders among the first 10")
        axes.set_title(f"{SHORT[matrix]} and its update")
    panels[0].set_yticks(np.linspace(0, 1, 6))
    panels[0].set_ylabel("cosine with the closest direction of W")
    layers, seeds = ({row[column] for row in rows} for column in ("layer", "seed"))
    text = "of the first 10 left singular vectors of W + update: the one least like any of W's"
    note = f"dots: layers 0 to {max(layers)}, from left to right, median of {len(seeds)} seeds; bar: median of all"
    _note(figure, f"{text}\n{note}")
    return figure
