"""Files of text from outside: bytes become lines, and lines become the rows of CSV, TSV or JSON lines.

* Text is UTF-8 unless another encoding is named. A byte order mark is passed over.
* CSV: commas. A cell in quotes may hold commas, line ends, and quotes written twice (RFC 4180).
* TSV: a row is a line, a cell holds neither tab nor line end. `"..."` with every quote inside written twice is what
  spreadsheets make of a cell with quotes, and read as such; any other quote is an ordinary character.
* JSON lines: one object a line, strict (`configs.parse_json`).

Lines end with \\n, \\r\\n or \\r and are counted from 1; a row has the number of the line on which it begins. Lines of
blanks between rows are passed over. Nothing is held but the row at hand, and that is bounded: rows come as lines do.
"""

import codecs
import contextlib
import csv
import json
import re
from pathlib import Path

from ..errors import FormatError, InputError
from .configs import parse_json, short

LONGEST = 1 << 24  # characters of a line and of a cell: more than any text has, less than fills the memory
NOT_TEXT = re.compile("[\0\ud800-\udfff]")  # Python reads a byte that it cannot decode as half of a surrogate pair
LETTERS = re.compile("[\x80-\ud7ff\ue000-\U0010ffff]")
MARKS = {  # UTF-32 first: its mark begins as that of UTF-16
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
SAVE = 'save it as UTF-8 (a spreadsheet calls that "CSV UTF-8")'


@contextlib.contextmanager
def opened(path):
    """Context of a file of text, for `numbered_lines`. Raises InputError if there is none to be read."""
    try:
        if Path(path).exists() and not Path(path).is_file():
            raise InputError(f"cannot read {path}: not a file")  # opening a pipe would wait for somebody to write to it
        with open(path, encoding="utf-8") as file:
            yield file
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None


def numbered_lines(file, name, encoding="utf-8"):
    """Yield (number, text with its line end) of each line of an open text file, such as sys.stdin, as they come.

    The file is set to `encoding`, so nothing may have been read from it before. name: what errors call it. Raises
    InputError for an unknown encoding or a file that cannot be read; FormatError for bytes that are no text in this
    encoding (saying which one they look like), for a NUL, and for a line of more than LONGEST characters.
    """
    number = 0
    try:
        file.reconfigure(encoding=encoding, errors="surrogateescape", newline="")
        while line := file.readline(LONGEST + 1):
            number += 1
            if number == 1:
                line = line.removeprefix("\ufeff")
            if len(line) > LONGEST:
                raise FormatError(f"{name}, line {number} has more than {LONGEST:,} characters; expected shorter ones")
            if ("\0" in line or not line.isascii()) and (bad := NOT_TEXT.search(line)):
                raise FormatError(f"{name}, line {number}: {_no_text(line, bad[0], encoding)}")
            yield number, line
    except LookupError:
        raise InputError(f"unknown encoding {encoding!r}; expected one such as utf-8, cp1252, utf-16") from None
    except OSError as error:
        raise InputError(f"cannot read {name}: {error.strerror or error}") from None
    except UnicodeError as error:  # some encodings cannot mark the bytes that they do not know
        why = short(error)
        raise FormatError(
            f"{name}, after line {number}: not {encoding} ({why}); name its encoding, or {SAVE}"
        ) from None


def _no_text(line, character, encoding):
    """What is wrong with a line in which this character stands, and what to do."""
    what = "a NUL character" if character == "\0" else f"byte 0x{ord(character) & 0xFF:02x} is not {encoding}"
    if codecs.lookup(encoding).name not in ("utf-8", "utf-8-sig"):
        return f"{what}; name the encoding in which it was saved, or {SAVE}"
    if looks := _looks_like(line.encode("utf-8", "surrogateescape"), line):
        return f"{what}; the file looks like {looks}: pass --encoding {looks}, or {SAVE}"
    return f"{what}; the file is damaged, or in another encoding: name that with --encoding, or {SAVE}"


def _looks_like(data, line):
    """The encoding that a line's bytes suggest, or None. `line`: the same read as UTF-8, unknown bytes marked."""
    for mark, encoding in MARKS.items():
        if data.startswith(mark):
            return encoding
    even, odd = data[::2].count(0), data[1::2].count(0)
    if even or odd:  # in UTF-16, every other byte of Latin letters is 0
        likely = max(even, odd) > max(len(data) / 4, 4 * min(even, odd))
        return f"utf-16-{'be' if even > odd else 'le'}" if likely else None
    marked, plain = len(NOT_TEXT.findall(line)), sum(map(str.isalpha, line))
    if marked > max(3, plain) or LETTERS.search(line):
        return None  # no Western language has so many accents; or the line's other characters are UTF-8
    try:
        data.decode("cp1252")  # latin-1 has the same letters at the same places
    except UnicodeDecodeError:
        return None
    return "cp1252"


# ---- rows ------------------------------------------------------------------------------------------------------------


def csv_rows(lines, name):
    """(line, cells) of each row of comma-separated lines. Raises FormatError for quotes that do not match."""
    csv.field_size_limit(max(LONGEST, csv.field_size_limit()))  # one limit a process; it is only ever raised
    first = last = None  # numbers of the lines of the row at hand

    def texts():
        nonlocal first, last
        for last, line in lines:
            first = first or last
            yield line

    rows = csv.reader(texts(), strict=True)
    while True:
        first = None
        try:
            cells = next(rows, None)
        except csv.Error as error:
            raise FormatError(f"{name}, line {first}: {_malformed(error, last - first)}") from None
        if cells is None:
            return
        if cells and not (len(cells) == 1 and cells[0].isspace()):  # "" in quotes is a cell, a line of blanks is not
            yield first, cells


def _malformed(error, further):
    where = f", {further} lines further down" if further else ""
    if "end of data" in str(error):
        return "a cell opens with a quote that is never closed"
    if "expected after" in str(error):
        return f"a quoted cell goes on after its closing quote{where}; write every quote inside it twice"
    return f"malformed{where}: {error}"


QUOTED = re.compile(r'"((?:[^"]++|"")*+)"(?=\t|\Z)')


def tsv_rows(lines, name):
    """(line, cells) of each line that is not blank."""
    for number, line in lines:
        line = line.rstrip("\r\n")
        if not line.strip(" "):
            continue
        yield number, _tsv_cells(line) if '"' in line else line.split("\t")


def _tsv_cells(line):
    cells, at = [], 0
    while at <= len(line):
        if quoted := QUOTED.match(line, at):
            end = quoted.end()
            cells.append(quoted[1].replace('""', '"'))
        else:
            end = line.find("\t", at)
            end = len(line) if end < 0 else end
            cells.append(line[at:end])
        at = end + 1
    return cells


def json_rows(lines, name):
    """(line, dict) of each line that is not blank. Raises FormatError for a line that is no strict JSON object."""
    for number, line in lines:
        if not line.strip():
            continue
        try:
            row = parse_json(line.strip())
        except json.JSONDecodeError as error:
            one = "; expected one object a line" if number == 1 and line.strip() in ("[", "{") else ""
            raise FormatError(f"{name}, line {number} is not JSON: {error.msg} at column {error.colno}{one}") from None
        except UnicodeEncodeError:
            raise FormatError(f"{name}, line {number}: half of a surrogate pair, which is no character") from None
        except ValueError as error:
            raise FormatError(f"{name}, line {number} is not JSON: {short(error)}") from None
        if not isinstance(row, dict):
            raise FormatError(f"{name}, line {number}: expected a JSON object, one a line; got {short(row)}")
        yield number, row
