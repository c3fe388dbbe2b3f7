"""Tables: one reader for files of texts and of numbers, ours and others'; CSV files that say how they were made."""

import csv
import io
import itertools
import math
import re
import statistics
from array import array
from pathlib import Path

import numpy as np

from ..errors import FormatError, InputError, note
from .atomic import write_atomic
from .configs import short
from .environment import summary
from .readers import csv_rows, json_rows, numbered_lines, opened, tsv_rows

# ---- reading ---------------------------------------------------------------------------------------------------------

SEPARATED = {".csv": (csv_rows, ","), ".tsv": (tsv_rows, "\t")}
FORMATS = (*SEPARATED, ".jsonl")
NUMBER = re.compile(r"[+-]?(\d{1,400}|\d*\.\d+|\d+\.)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
NOT_FINITE = re.compile(r"[+-]?(nan|inf|infinity)", re.IGNORECASE)
SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}


def is_table(path):
    """Whether a file's name ends as one of FORMATS does, in small letters or capitals."""
    return Path(path).suffix.lower() in FORMATS


def read_table(path, columns, optional=(), encoding="utf-8", comments=None):
    """`table_rows` as a list, of one row or more."""
    rows = list(table_rows(path, columns, optional, encoding, comments))
    if not rows:
        raise FormatError(f"{path} holds no rows")
    return rows


def table_rows(path, columns, optional=(), encoding="utf-8", comments=None, rest=False, nested=()):
    """Yield (line, {column: cell}) for each row of a .csv, .tsv or .jsonl file; `line` is the one where it begins.

    columns: what every row must have. optional: what may be missing, and is None then; if this is None, every other
    column of the file, which all rows must have. Further columns are passed over, or with `rest` are there too, as
    they came and where they stand; of two of one name the second is called as `free_name` says. Cells are text; in JSON
    lines also numbers and truth values. Blanks around a name do not count, and `Text` is `text` where that is asked
    for; two names that differ in blanks or capitals alone are refused. A row of empty cells is passed over. comments:
    what the lines begin with that are passed over at the top. nested: columns whose cells, in JSON lines, may be lists
    or objects.
    Raises InputError or FormatError with file, line, what came, and what to do.
    """
    if not is_table(path):
        raise InputError(f"{path}: expected a .csv, .tsv or .jsonl file")
    with opened(path) as file:
        form = Path(path).suffix.lower()
        yield from stream_table(file, form, columns, optional, encoding, path, comments, rest, nested)


def read_numbers(path, encoding="utf-8"):
    """The matrix (rows, columns) of a .csv or .tsv file of numbers, float64; one line of names at its top is left out.

    Names that are numbers, 0, 1, 2, ..., as pandas gives them to columns and rows, cannot be told from numbers: a note.
    Raises FormatError with file and line for a cell that is no finite number, and for rows of different lengths.
    """
    read, _ = SEPARATED[Path(path).suffix.lower()]
    numbers, width = array("d"), None
    with opened(path) as file:
        for line, cells in read(numbered_lines(file, path, encoding), path):
            if _empty(cells):
                continue
            if width is None and not any(NUMBER.fullmatch(c.strip()) or NOT_FINITE.fullmatch(c.strip()) for c in cells):
                width = len(cells)
                continue
            width = width or len(cells)
            if len(cells) != width:
                raise FormatError(f"{path}, line {line}: {len(cells)} cells; the rows above have {width}")
            numbers.extend(number_in(cell, f"{path}, line {line}") for cell in cells)
    if not numbers:
        raise FormatError(f"{path} holds no rows of numbers")
    matrix = np.frombuffer(numbers).reshape(-1, width)
    if (matrix % 1).any():  # some are no integers
        for place, own in (("the first row", matrix[0]), ("the first column", matrix[:, 0])):
            if len(own) > 2 and (own == np.arange(len(own))).all():
                note(f"{path}: {place} is 0, 1, 2, ..., read as numbers of the matrix; if they are names, remove it")
    return matrix


def _empty(cells):
    """Whether a row is a line of separators alone, as spreadsheets write for rows that were cleared."""
    return len(cells) > 1 and not any(cell.strip() for cell in cells)


def parse_number(text):
    """The int or float that a text is in full, or None: `inf`, `nan` and `1_000` are no numbers here."""
    if not NUMBER.fullmatch(text):
        return None
    return float(text) if any(c in text for c in ".eE") else int(text)


def number_in(cell, where):
    """The finite number in a cell; FormatError says where it is and what came."""
    text = str(cell).strip()
    if isinstance(cell, bool) or not NUMBER.fullmatch(text):
        advice = "drop that row or fill it in"
        if not isinstance(cell, bool) and any(separator in text for separator in SEPARATORS):
            advice = "separate numbers by commas, in a .tsv file by tabs, and write decimals with a point"
        raise FormatError(f"{where}: expected a number such as 0.5; got {short(cell)}: {advice}")
    if math.isinf(number := float(text)):
        raise FormatError(f"{where}: {short(cell)} is too large for a number of 64 bits")
    return number


def stream_table(
    file,
    form,
    columns,
    optional=(),
    encoding="utf-8",
    name="standard input",
    comments=None,
    rest=False,
    nested=(),
):
    """The same from an open text file (see `numbered_lines`), each row as soon as it ends. form: one of FORMATS."""
    lines = numbered_lines(file, name, encoding)
    if comments:
        lines = itertools.dropwhile(lambda numbered: numbered[1].startswith(comments), lines)
    if form == ".jsonl":
        return _objects(json_rows(lines, name), name, columns, optional, rest, nested)
    read, separator = SEPARATED[form]
    rows = read(_separated(lines, name, separator, columns), name)
    return _under_header(rows, name, separator, columns, optional, rest)


def _separated(lines, name, separator, columns):
    """The lines, unless the columns stand in the first of them between other separators than this."""
    lines = itertools.dropwhile(lambda numbered: not numbered[1].strip(), lines)
    for number, line in itertools.islice(lines, 1):
        fitting = [
            by for by in SEPARATORS if {_plain(cell.strip(' "\r\n')) for cell in line.split(by)}.issuperset(columns)
        ]
        if fitting and separator not in fitting:
            expected = f"expected {SEPARATORS[separator]}: save the file with {SEPARATORS[separator]}"
            call_it = {",": ", or call it .csv", "\t": ", or call it .tsv"}.get(fitting[0], "")
            words = SEPARATORS[fitting[0]]
            raise FormatError(f"{name}, line {number}: the columns are separated by {words}; {expected}{call_it}")
        yield number, line
    yield from lines


def free_name(name, taken):
    """The name, or where that is taken, the name after `input_`."""
    while name in taken:
        name = f"input_{name}"
    return name


def _under_header(rows, name, separator, columns, optional, rest):
    line, header = next(rows, (1, None))
    if header is None:
        raise FormatError(f"{name} is empty; expected a header and rows")
    header = [cell.strip() for cell in header]
    try:
        wanted = _wanted(header, columns, optional)
    except ValueError as error:
        raise FormatError(f"{name}, line {line}: {error}") from None
    places = {column: header.index(name) for column, name in wanted.items()}
    missing = {column: None for column in optional or () if column not in places}
    if rest:
        called, places = {came: column for column, came in wanted.items()}, {}
        for place, came in enumerate(header):
            places[free_name(called.get(came, came), places)] = place
    for line, cells in rows:
        if _empty(cells):
            continue
        if len(cells) != len(header):
            came = f"{len(cells)} cell{'s' * (len(cells) > 1)}, beginning with {short(cells[0])}"
            hint = {",": "put a cell that has a comma in quotes", "\t": "a cell can hold neither tab nor line end"}
            raise FormatError(f"{name}, line {line}: {came}; the header has {len(header)} ({hint[separator]})")
        yield line, {column: cells[place] for column, place in places.items()} | missing


def _objects(rows, name, columns, optional, rest, nested):
    known, wanted = None, None
    for line, row in rows:
        try:
            if (keys := [*row]) != known:
                before, wanted, known = wanted, _wanted(keys, columns, optional), keys
                if optional is None and before is not None and {*before} != {*wanted}:
                    raise ValueError(f"expected {_listed(before)}, as before; got {_listed(wanted)}")
        except ValueError as error:
            raise FormatError(f"{name}, line {line}: {error}") from None
        cells = dict.fromkeys((*columns, *(optional or ()))) | {column: row[name] for column, name in wanted.items()}
        for column, cell in cells.items():
            if (isinstance(cell, list | dict) and column not in nested) or (
                cell is None and column not in (optional or ())
            ):
                raise FormatError(f"{name}, line {line}: expected text or a number as `{column}`; got {short(cell)}")
        if rest:
            called = {name: column for column, name in wanted.items()}
            cells = {called.get(name, name): cell for name, cell in row.items()}
        yield line, cells


def _wanted(names, columns, optional):
    """{column: its name in the file} of those to read. Raises ValueError if one is missing, or there twice."""
    alike, wanted = {}, {}
    for name in names:
        alike.setdefault(_plain(name), []).append(name)
    for column in (*columns, *(names if optional is None else optional)):
        there = alike.get(_plain(column), [])
        if len(there) > 1:
            raise ValueError(f"two columns are called {short(there[0])} and {short(there[1])}; rename or remove one")
        if not column:
            raise ValueError(f"column {names.index(column) + 1} has no name; name it or remove it")
        if there and there[0] not in wanted.values():
            wanted[column] = there[0]
    if missing := [column for column in columns if column not in wanted]:
        raise ValueError(f"expected a column {' and a column '.join(f'`{c}`' for c in missing)}; got {_listed(names)}")
    return wanted


def _plain(name):
    """What makes two names of columns one."""
    return name.strip().casefold()


def _listed(names):
    text = ", ".join(map(str, itertools.islice(names, 8)))
    return short(text + ", ..." if len(names) > 8 else text)


# ---- our own tables: numbers, and how they were made -----------------------------------------------------------------


def write_csv(path, rows, command, notes=()):
    """Write dictionaries with the same keys as CSV, under comment lines: the command, the versions, and the notes."""
    if not rows:
        raise InputError(f"{path}: there are no rows to write")
    text = io.StringIO()
    for line in (command, summary(), *notes):
        text.write(f"# {' '.join(line.splitlines())}\n")
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    write_atomic(path, text.getvalue().encode("utf-8", "backslashreplace"))  # a file may be called by any bytes


def read_csv(path):
    """The rows of `write_csv`: numbers as int or float, an empty cell as None."""
    return [{k: _number(v) for k, v in row.items()} for _, row in read_table(path, (), None, comments="#")]


def _number(cell):
    for kind in (int, float):
        try:
            return kind(cell)
        except ValueError:
            continue
    return cell or None


# ---- in the terminal -------------------------------------------------------------------------------------------------


def format_table(rows, columns):
    """Aligned text, the first column on the left, the others on the right. columns: {heading: function row -> cell}."""
    cells = [list(columns), *([cell(row) for cell in columns.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for first, *others in cells:
        right = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        lines.append("  ".join([first.ljust(widths[0]), *right]))
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def cut(text, width):
    """Text in one line of at most `width` characters."""
    text = " ".join(text.split())
    return text if len(text) <= width else f"{text[: width - 1]}…"


def median_by(rows, keys, value):
    """{key tuple: (median, lowest, highest) of `value` over the rows that share the keys}, in order of appearance."""
    groups = {}
    for row in rows:
        groups.setdefault(tuple(row[k] for k in keys), []).append(row[value])
    return {key: (statistics.median(values), min(values), max(values)) for key, values in groups.items()}
