"""`lorabook evaluate`: loss, accuracy, F1 and confusions of a model on labelled rows."""

import shutil

from ..backend import get_xp
from ..notes import note
from ..tables import cut, format_table
from .arguments import add_encoding, add_workers, integer

HELP = "loss, accuracy, F1 and the confusion matrix of a model on labelled rows, with or without an adapter"
EXAMPLE = "lorabook evaluate runs/mine reviews.csv"
SHARED = ("seed", "backend")
SHOWN = 12  # labels in a table


def add_arguments(parser):
    """Options of the command."""
    model = "an adapter folder; or mlp-digits, minilm, or a Hugging Face folder with a BERT encoder"
    parser.add_argument("model", metavar="MODEL", help=model)
    parser.add_argument("data", metavar="DATA", help="digits-rotated etc.; movie-reviews; a .csv, .tsv or .jsonl file")
    parser.add_argument("--adapter", metavar="DIR", help="PEFT adapter folder, if MODEL is the model under it")
    which = "rows as `train` divides them, or all (default: test of movie-reviews and digits, all of a file)"
    parser.add_argument("--split", choices=("test", "train", "all"), help=which)
    length = "tokens a text (default: as the adapter was trained, else 128)"
    parser.add_argument("--max-length", type=integer(2), metavar="T", help=length)
    add_encoding(parser)
    add_workers(parser)


def run(args):
    """Evaluate; nothing is written."""
    import numpy as np

    from ..adapters import merge
    from ..jobs import make_test
    from ..metrics import report
    from ..predictions import outputs

    xp = get_xp(args.backend)
    options = {"seed": args.seed, "max_length": args.max_length, "encoding": args.encoding}
    test = make_test(args.model, args.data, args.adapter, args.split, **options)
    random = f"the classifier of {args.model} is random: it was never trained; this is how well guessing does"
    model = test.model.to(xp)
    merge(model)
    logits = np.concatenate(outputs(model, test.batches, args.workers, progress=True))
    found = report(logits, np.concatenate([y for _, y in test.batches]))
    for line in [*test.notes, *([] if test.trained else [random])]:
        note(line)
    text = _text(args, test, found) + ("" if test.trained else f"\n\nNote: {random}.")
    return _result(test, found), text


def _result(test, found):
    columns = {name: getattr(found, name).tolist() for name in ("precision", "recall", "f1")}
    columns = {"rows": found.counts.tolist(), "predicted": found.predicted.tolist()} | columns
    return {
        "rows": found.rows,
        "loss": found.loss,
        "accuracy": found.accuracy,
        "macro_f1": found.macro_f1,
        "classes": [
            {"label": label} | {name: values[i] for name, values in columns.items()}
            for i, label in enumerate(test.labels)
        ],
        "confusion": found.confusion.tolist(),
        "trained": test.trained,
    }


def _text(args, test, found):
    rows = f"{found.rows:,} row{'s' * (found.rows > 1)}"
    occur = int((found.counts + found.predicted > 0).sum())
    lines = [
        f"{rows} of {args.data}: loss {found.loss:.4f} nats, {100 * found.accuracy:.1f} % right",
        f"macro F1 {found.macro_f1:.4f}: the mean over the {occur} labels that a row has or was given",
        "",
    ]
    classes = _result(test, found)["classes"]
    shown = sorted(sorted(range(len(classes)), key=lambda i: -found.counts[i])[:SHOWN])
    columns = {"label": lambda i: cut(classes[i]["label"], 32)}
    columns |= {name: lambda i, name=name: f"{classes[i][name]:,}" for name in ("rows", "predicted")}
    columns |= {name: lambda i, name=name: f"{classes[i][name]:.3f}" for name in ("precision", "recall", "f1")}
    lines += [format_table(shown, columns), "", "Rows of each label, by the label that they were given:"]
    lines += [_confusion(test.labels, found.confusion, shown)]
    if len(shown) < len(classes):
        lines += ["", f"The {len(shown)} labels with most rows, of {len(classes)}; --json shows all."]
    return "\n".join(lines)


def _confusion(labels, confusion, shown):
    """The matrix as a table, its columns by name, or by number where the names are too long or alike.

    What the labels that are shown were taken for beside them is in the column `others`.
    """
    names = [cut(labels[i], 32) for i in shown]
    width = sum(max(6, len(name)) + 2 for name in names) + max(map(len, names))
    by_name = width <= shutil.get_terminal_size().columns and len({*names, "label", "others"}) == len(names) + 2
    numbers = [str(n) for n in range(1, len(shown) + 1)]
    row_names = dict(zip(shown, names if by_name else map(" ".join, zip(numbers, names, strict=True)), strict=True))
    columns = {"label": row_names.get}
    for j, heading in zip(shown, names if by_name else numbers, strict=True):
        columns[heading] = lambda i, j=j: f"{confusion[i, j]:,}"
    if len(shown) < len(labels):
        columns["others"] = lambda i: f"{confusion[i].sum() - confusion[i, shown].sum():,}"
    return format_table(shown, columns)
