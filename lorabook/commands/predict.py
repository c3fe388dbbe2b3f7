"""`lorabook predict`: labels with probabilities for texts, as they come."""

import csv
import io
import itertools
import json
import shutil
import sys
from collections import Counter
from pathlib import Path

from ..backend import get_xp
from ..data import PAIR, columns_of
from ..errors import InputError, note
from ..files import cut, free_name, prepare_folder, write_atomic
from .arguments import ENCODER, add_encoding, add_workers, integer

HELP = "label texts by a trained model: one line a text, with the label's probability"
EXAMPLE = 'lorabook predict runs/mine --text "a fine film" "a dull one"'
SHARED = ("backend",)


def add_arguments(parser):
    """Options of the command."""
    model = f"an adapter folder; or, with --adapter or a trained classifier, {ENCODER}"
    parser.add_argument("model", metavar="MODEL", help=model)
    file = "texts: a .csv, .tsv or .jsonl file with a column `text`, or a .txt file, one text a line; default, and -: "
    parser.add_argument("file", metavar="FILE", nargs="?", help=f"{file}standard input, answered line by line")
    parser.add_argument("--text", nargs="+", action="extend", metavar="TEXT", help="texts, instead of a file")
    parser.add_argument("--adapter", metavar="DIR", help="PEFT adapter folder, if MODEL is the model under it")
    out = "write the columns of FILE, then label, probability and the probability of each label there, instead of "
    out += "printing; a column of FILE that is called like one of these is input_label etc."
    parser.add_argument("--out", metavar="FILE.csv|.jsonl", help=out)
    length = "tokens a text, of longer ones the rest is left out (default: as the adapter was trained, else 128)"
    parser.add_argument("--max-length", type=integer(2), metavar="T", help=length)
    size = "texts computed together, those of similar length (default: %(default)s)"
    parser.add_argument("--batch-size", type=integer(1), default=16, metavar="N", help=size)
    add_encoding(parser)
    add_workers(parser)


def run(args):
    """Answer: with --out and --json when all is done, else as texts come, aligned on a terminal, elsewhere as CSV."""
    from ..adapters import merge, unload
    from ..tasks import answers, find

    xp, out, beside = get_xp(args.backend), _out(args), []
    columns, windows = _windows(args, beside if out else None)
    model = find(args.model, args.adapter, answers="labels").load(max_length=args.max_length)
    merge(model)
    unload(model)  # the weights without the update are needed no more
    seen, labels = Counter(), model.about.labels
    found = answers(model.to(xp), windows, args.batch_size, args.workers, progress=out or args.json)
    found = _counted(found, model.about, seen)
    if out:
        write_atomic(out, FORMS[out.suffix.lower()](labels, found, beside))
        counts = {label: seen[i] for i, label in enumerate(labels)}
        told = ", ".join(f"{label} {n:,}" for label, n in counts.items() if n)
        return {"out": str(out), "texts": sum(counts.values()), "labels": counts}, f"wrote {out}: {told}"
    if args.json:
        return {"labels": list(labels), "predictions": list(_objects(labels, found))}, ""
    return None, _aligned(labels, found) if sys.stdout.isatty() else _csv(columns, labels, found)


def _windows(args, beside):
    """(the columns of a text, texts in lists). What is wrong with a file's first ones is said before a model is opened.

    beside: as of `file_windows`.
    """
    from ..data import check_text, file_windows, input_windows

    if args.text and args.file:
        raise InputError(f"expected a file or --text; got both: {args.file} and {len(args.text)} texts")
    if args.text:
        for i, text in enumerate(args.text):
            check_text(text, f"text number {i + 1}")
        return columns_of(""), [args.text]
    if args.file not in (None, "-"):
        windows = file_windows(args.file, args.encoding, beside)
        first = next(windows)
        return columns_of(first[0]), itertools.chain([first], windows)
    if sys.stdin is None:
        raise InputError("standard input is closed; expected a FILE, or --text")
    if sys.stdin.isatty():
        print("reading texts from the terminal, one a line, up to Ctrl-D (on Windows Ctrl-Z, Enter)", file=sys.stderr)
    return columns_of(""), input_windows(args.encoding)


def _out(args):
    """The file to write, in a folder that can be written to; or None."""
    if args.out is None:
        return None
    out = Path(args.out)
    if out.suffix.lower() not in FORMS:
        raise InputError(f"--out must be a file whose name ends in .csv or .jsonl; got {out}")
    if args.file and out.exists() and Path(args.file).exists() and out.samefile(args.file):
        raise InputError(f"--out {out} is the file of the texts; choose another one")
    prepare_folder(out.parent)
    return out


def _counted(found, about, seen):
    """The same, counting in `seen` how often each class was the answer; at the end a note on texts that were cut."""
    cut = 0
    for texts, rows, too_long in found:
        seen.update(rows.argmax(axis=1).tolist())
        cut += too_long
        yield texts, rows
    if cut:
        limit = f"longer than {about.max_length} tokens, of which the rest was left out; --max-length sets the limit"
        note(f"{cut:,} of {seen.total():,} texts are {limit}")


# ---- forms: from windows of (texts, probabilities) to pieces of the output -------------------------------------------


def _aligned(labels, found):
    """Label, probability and text, in lines as wide as the terminal."""
    width = min(24, max(map(len, labels)))
    room = max(20, shutil.get_terminal_size().columns - width - 12)
    for texts, rows in found:
        answers = zip(texts, rows.argmax(axis=1), rows.max(axis=1), strict=True)
        shown = ((" | ".join(columns_of(text).values()), i, p) for text, i, p in answers)
        yield "".join(f"{cut(labels[i], width):<{width}}  {p:7.2%}  {cut(text, room)}\n" for text, i, p in shown)


def _csv(columns, labels, found):
    yield _csv_lines([[*columns, "label", "probability", *(f"p({label})" for label in labels)]])
    for texts, rows in found:
        answers = zip(texts, rows.argmax(axis=1), rows, strict=True)
        yield _csv_lines(
            [*columns_of(text).values(), labels[i], *(f"{p:.6g}" for p in (row[i], *row))] for text, i, row in answers
        )


def _csv_lines(rows):
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _objects(labels, found):
    for texts, rows in found:
        for text, row in zip(texts, rows, strict=True):
            probabilities = {label: float(f"{p:.6g}") for label, p in zip(labels, row, strict=True)}
            label = labels[row.argmax()]
            yield columns_of(text) | {
                "label": label,
                "probability": probabilities[label],
                "probabilities": probabilities,
            }


# ---- files: each row of the input, {column: cell}, with its answer behind --------------------------------------------


def _csv_file(labels, found, beside):
    ours = ["label", "probability", *(f"p({label})" for label in labels)]
    answers = []
    for one in _objects(labels, found):
        numbers = [f"{p:.6g}" for p in (one["probability"], *one["probabilities"].values())]
        answers.append(one | dict(zip(ours, [one["label"], *numbers], strict=True)))
    rows = _joined(answers, ours, beside)
    theirs = dict.fromkeys(name for row in rows for name in row if name not in ours) or ["text"]
    columns = [*theirs, *ours]
    return _csv_lines([columns, *([_cell(row.get(column)) for column in columns] for row in rows)])


def _cell(value):
    """What stands in a cell for a value of JSON lines."""
    return value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)


def _jsonl_file(labels, found, beside):
    rows = _joined(list(_objects(labels, found)), ["label", "probability", "probabilities"], beside)
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _joined(answers, ours, beside):
    """[{column: cell}] of the input's rows, or else of the texts alone, and behind them what we answer: `ours`."""
    renamed, rows = {}, []
    texts = [{name: answer[name] for name in ("text", PAIR) if name in answer} for answer in answers]
    plain = {name.casefold() for name in ours}
    for row, answer in zip(beside or texts, answers, strict=True):
        taken = {*ours, *(name for name in row if name.strip().casefold() in plain)}  # `Label` beside `label`: no table
        names = {name: free_name(name, taken | (row.keys() - {name})) for name in row}
        renamed |= {name: other for name, other in names.items() if name != other}
        rows.append({names[name]: cell for name, cell in row.items()} | {name: answer[name] for name in ours})
    if renamed:
        note(", ".join(f"the input's column `{name}` is called `{other}`" for name, other in renamed.items()))
    return rows


FORMS = {".csv": _csv_file, ".jsonl": _jsonl_file}
