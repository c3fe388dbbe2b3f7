"""Rows of numbers: CSV files that say how they were made, and aligned tables for the terminal."""

import csv
import io

from .environment import summary
from .errors import FormatError, InputError
from .io import write_atomic


def write_csv(path, rows, command):
    """Write dictionaries with the same keys as CSV, under two comment lines: the command, and the versions."""
    text = io.StringIO()
    text.write(f"# {command}\n# {summary()}\n")
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    write_atomic(path, text.getvalue())


def read_csv(path):
    """The rows of `write_csv`: numbers as int or float, an empty cell as None."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            lines = [line for line in file if not line.startswith("#")]
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    rows = list(csv.DictReader(lines))
    if any(None in row or None in row.values() for row in rows):
        raise FormatError(f"{path}: not every line has as many cells as the header")
    return [{k: _number(v) for k, v in row.items()} for row in rows]


def _number(cell):
    for kind in (int, float):
        try:
            return kind(cell)
        except ValueError:
            continue
    return cell or None


def format_table(rows, columns):
    """Aligned text, the first column on the left, the others on the right. columns: {heading: function row -> cell}."""
    cells = [list(columns), *([cell(row) for cell in columns.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for first, *others in cells:
        right = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        lines.append("  ".join([first.ljust(widths[0]), *right]))
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def median_by(rows, keys, value):
    """{key tuple: (median, lowest, highest) of `value` over the rows that share the keys}, in order of appearance."""
    groups = {}
    for row in rows:
        groups.setdefault(tuple(row[k] for k in keys), []).append(row[value])
    return {key: (_median(values), min(values), max(values)) for key, values in groups.items()}


def _median(values):
    ordered, middle = sorted(values), len(values) // 2
    return ordered[middle] if len(values) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
