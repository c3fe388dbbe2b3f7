"""The book's style, and what its plots have in common: colours, axes, labels at the lines, a file always alike."""

import io
import warnings
from functools import wraps
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter, NullFormatter

from ...errors import printable
from ...files import median_by, write_atomic

STYLE = Path(__file__).with_name("lorabook.mplstyle")
PALETTE = {"lora": "#D55E00", "svd": "#0072B2", "activation_svd": "#009E73", "full": "#000000"}
MARKERS = {"lora": "o", "svd": "s", "activation_svd": "^", "full": ""}
LABELS = {"lora": "LoRA, trained", "svd": "SVD truncation", "activation_svd": "activation_svd"}


def styled(plot):
    """Draw in the book's style, whatever the caller's settings; no window keeps the figure alive."""

    @wraps(plot)
    def draw(*args, **kwargs):
        with plt.style.context(STYLE):
            figure = plot(*args, **kwargs)
            plt.close(figure)
        return figure

    return draw


def save(figure, path):
    """Write a figure so that the same numbers give the same bytes (SVG, or PNG at 150 dots an inch), atomically."""
    with plt.style.context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)  # a box in the picture says it
        kind = "svg" if str(path).endswith(".svg") else "png"
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        drawn = io.BytesIO()
        figure.savefig(drawn, format=kind, dpi=150, metadata=metadata)
    write_atomic(path, drawn.getvalue())


def _outside(text):
    """A name from outside, drawn as it is: nothing that no font can draw, no dollar that begins a formula."""
    return printable(text).replace("$", r"\$")


def _curve(axes, rows, method, value, label=None, scale=1.0, color=None):
    """Median line and band over the seeds of one method's `value` against r; returns the line's last point."""
    points = [(r, *(scale * v for v in spread)) for (r,), spread in median_by(rows, ("r",), value).items()]
    r, middle, low, high = zip(*sorted(points), strict=True)
    style = {"color": color or PALETTE.get(method), "marker": MARKERS.get(method, "o")}
    (line,) = axes.plot(r, middle, label=label, **style)
    axes.fill_between(r, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    return r[-1], middle[-1], line.get_color()


def _rank_axis(axes, ranks):
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(ranks), [str(r) for r in sorted(ranks)])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("rank r")


def _log_axis(axes, ticks):
    """Logarithmic y axis, numbers written out at those of the `ticks` that are in sight."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.set_yticks([y for y in ticks if low <= y <= high], minor=False)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _percent(axis):
    axis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g} %"))


def _name(axes, text, at, offset, color, **kwargs):
    axes.annotate(text, at, xytext=offset, textcoords="offset points", color=color, fontsize=9, **kwargs)
