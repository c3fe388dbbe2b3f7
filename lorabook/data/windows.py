"""Texts to answer, in windows: lists of some hundred texts of a file; of standard input, whatever has come."""

import itertools
import queue
import sys
import threading
from pathlib import Path

from ..errors import FormatError, InputError, note
from ..files import FORMATS, is_table, numbered_lines, opened, table_rows
from .pairs import PAIR, text_of
from .text import check_text

WINDOW = 1600  # texts in memory at once, among which those of similar length are computed together
END = object()


def file_windows(path, encoding="utf-8", beside=None):
    """Yield lists of the texts of a .csv, .tsv or .jsonl file with a column `text`, or of the lines of a .txt file.

    A column `text_pair` makes each text a pair of two.

    beside: a list, to which the whole row of each text of a table is added, {column: cell}.
    Of lines, here and on standard input: blanks around them do not count, and blank ones are passed over.
    """
    path = Path(path)
    if is_table(path):
        rows = _kept(table_rows(path, ("text",), (PAIR,), encoding, rest=beside is not None), beside)
    elif path.suffix.lower() == ".txt":
        rows = _lines_of(path, encoding)
    else:
        raise InputError(f"{path}: expected a {', '.join(FORMATS)} file with a column `text`, or a .txt file of lines")
    texts, some = (_checked(path, *row) for row in rows), False
    while window := list(itertools.islice(texts, WINDOW)):
        some = True
        yield window
    if not some:
        raise FormatError(f"{path} holds no texts")


def _kept(rows, beside):
    for line, row in rows:
        text = text_of(row)
        if beside is not None:
            beside.append({name: cell for name, cell in row.items() if name != PAIR or cell is not None})
        yield line, text


def _lines_of(path, encoding):
    with opened(path) as file:
        yield from _texts(file, path, encoding)


def _texts(file, name, encoding):
    """(line, text) of each line but the blank ones, which are counted in a note at the end."""
    blank = 0
    for line, text in numbered_lines(file, name, encoding):
        if text := text.strip():
            yield line, text
        else:
            blank += 1
    if blank:
        note(f"{name}: {blank} blank line{'s' * (blank > 1)} passed over")


def _checked(name, line, text):
    check_text(text, f"{name}, line {line}")
    return text


def input_windows(encoding="utf-8", most=WINDOW):
    """Yield lists of the lines of standard input, each list as soon as there is one: what has come, at most `most`.

    A thread reads on meanwhile, so the list is short where lines come slowly, and long where answers take longer.
    """
    came, name = queue.Queue(2 * most), "standard input"

    def read():
        last = END
        try:
            for line, text in _texts(_own(sys.stdin), name, encoding):
                came.put(_checked(name, line, text))
        except Exception as error:
            last = error
        came.put(last)

    threading.Thread(target=read, daemon=True).start()
    last = None
    while last is None:
        window, item = [], _next(came)
        while isinstance(item, str):
            window.append(item)
            if len(window) == most or came.empty():
                break
            item = came.get()
        else:
            last = item
        if window:
            yield window
    if last is not END:
        raise last


def _next(came):
    """The next item, however long it takes; on Windows a wait without an end would not hear ^C."""
    while True:
        try:
            return came.get(timeout=0.5)
        except queue.Empty:
            continue


def _own(stdin):
    """A reader of its own on the same input: when the program ends, nobody waits for the thread that reads."""
    try:
        return open(stdin.fileno(), encoding="utf-8", closefd=False)
    except (OSError, ValueError):  # no file of the system stands behind it
        return stdin
