"""What `bench` measured, drawn: its rows in, Figure out, as in all `plots`."""

from collections import Counter

import matplotlib.pyplot as plt
from matplotlib.ticker import NullFormatter

from .style import _log_axis, _name, styled

SIDES = {"lorabook": ("lorabook", "#D55E00"), "peft": ("PEFT", "#0072B2"), "full": ("full fine-tuning", "#000000")}


@styled
def step_time(rows):
    """Time and peak memory as shares of PEFT's, a bar a setting, from the rows of `bench.series.step_time`."""
    own = [row for row in rows if row["side"] == "lorabook"][::-1]  # the first on top
    other = [row for row in rows if row["side"] == "peft"][::-1]
    (_, color), (name, other_color) = SIDES["lorabook"], SIDES["peft"]
    figure, panels = plt.subplots(1, 2, figsize=(9.6, 0.9 + 0.62 * len(own)), sharey=True)
    for axes, ratio, value, unit in (
        (panels[0], "time_ratio", "median", "s"),
        (panels[1], "memory_ratio", "peak_mb", "MB"),
    ):
        ratios = [row[ratio] for row in own]
        axes.barh(range(len(own)), ratios, height=0.55, color=color)
        axes.axvline(1, color=other_color, zorder=0.9)
        right = 1.05 * max(1, *ratios)
        axes.set_xlim(0, 1.4 * right)
        axes.set_xticks([tick / 4 for tick in range(int(4 * right) + 1)])
        for y, (row, against) in enumerate(zip(own, other, strict=True)):
            _name(axes, f"{row[ratio]:.2f}", (row[ratio], y), (-4, 0), "white", ha="right", va="center")
            amounts = " : ".join(_amount(side[value], unit) for side in (row, against))
            _name(axes, amounts, (right, y), (0, 0), "black", va="center")
        axes.grid(axis="y", visible=False)
    _name(panels[0], f"{name} = 1", (1, len(own) - 0.6), (4, 4), other_color)
    panels[0].set_yticks(range(len(own)), [_setting(row) for row in own])
    panels[0].set_ylabel("tokens, adapted matrices")
    panels[0].set_xlabel("time of a step, share of PEFT's")
    panels[1].set_xlabel("peak memory, share of PEFT's")
    note = f"lorabook : {name}, r = {rows[0]['r']}, {_where(rows[0])}"
    figure.suptitle(f"{note}\n{rows[0]['versions']}", x=0.01, ha="left", fontsize=9.5, color="#444444")
    return figure


def _where(row):
    return f"{row['model']}, float32, {row['threads']} threads; {row['machine']}"


def _amount(value, unit):
    if unit == "MB":
        return f"{value:.0f} MB"
    return f"{value:.2f} s" if value >= 0.1 else f"{1000 * value:.1f} ms"


def _setting(row):
    targets = "inference, merged" if row["what"] == "forward" else row["target_modules"].replace(" ", ", ")
    return f"{row['batch_size']} x {row['seq_len']}\n{targets}"


@styled
def step_scaling(rows):
    """Time and peak memory of a step against what is varied, from the rows of `bench.series.scaling`."""
    titles = {
        "batch_size": "texts in a batch",
        "seq_len": "tokens a text",
        "r": "rank r",
        "adapted": "adapted matrices",
    }
    series = list(dict.fromkeys(row["varied"] for row in rows))
    figure, panels = plt.subplots(2, len(series), figsize=(9.6, 5.4), sharey="row", sharex="col")
    for column, varied in zip(panels.T, series, strict=True):
        own = [row for row in rows if row["varied"] == varied]
        value = list(dict.fromkeys(row["value"] for row in own))
        for axes, y in zip(column, ("median", "peak_mb"), strict=True):
            sides = {side: [row[y] for row in own if row["side"] == side] for side in SIDES}
            for side, numbers in sides.items():
                axes.plot(value[: len(numbers)], numbers, color=SIDES[side][1], marker="o")
            if varied == series[0]:
                _name_rising(axes, value, sides)
        for axes in column:
            axes.set_xscale("log", base=2) if varied != "adapted" else axes.set_xlim(left=0)
            axes.set_xticks(value, [str(v) for v in value])
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.set_xlabel(titles[varied])
            axes.tick_params(labelbottom=True)  # of the upper row, too
    for axes, ticks in (
        (panels[0, 0], (0.01, 0.03, 0.1, 0.3, 1, 3, 10)),
        (panels[1, 0], (100, 200, 500, 1000, 2000, 5000)),
    ):
        _log_axis(axes, ticks)
    panels[0, 0].set_ylabel("seconds a step")
    panels[1, 0].set_ylabel("peak memory, MB")
    fields = ("batch_size", "seq_len", "r", "target_modules")
    base = Counter(tuple(row[field] for field in fields) for row in rows).most_common(1)[0][0]  # all series meet there
    setting = f"{base[0]} x {base[1]} tokens, r = {base[2]}, {base[3].replace(' ', ', ')}"
    note = f"One is varied, the others stay at {setting}. Lower is better.\n{_where(rows[0])}"
    figure.suptitle(note, x=0.01, ha="left", fontsize=9.5, color="#444444")
    return figure


def _name_rising(axes, value, sides):
    """Names beside the middle of rising lines: the highest above on its left, the others below on their right."""
    middle = len(value) // 2
    heights = {side: numbers[middle] for side, numbers in sides.items() if numbers}
    for side, y in heights.items():
        top = y == max(heights.values())
        offset, how = ((-5, 3), ("right", "bottom")) if top else ((5, -3), ("left", "top"))
        _name(axes, SIDES[side][0], (value[middle], y), offset, SIDES[side][1], ha=how[0], va=how[1])
