"""`lorabook evaluate`: loss, accuracy, F1 and confusions of a model on labelled rows; a language model's perplexity."""

import shutil

from ..backend import get_xp
from ..errors import note
from ..files import cut, format_table
from .arguments import CAUSAL_LM, ENCODER, add_as_chat, add_base_dtype, add_encoding, add_workers, integer

HELP = "loss, accuracy, F1 and the confusion matrix of a model on labelled rows, or a language model's perplexity"
EXAMPLE = "lorabook evaluate runs/mine reviews.csv"
SHARED = ("seed", "backend")
DATA = (
    "digits-rotated etc.; movie-reviews; for a language model reviews, shakespeare, messages-fr etc.; a .csv, .tsv or "
)
DATA += ".jsonl file"
SHOWN = 12  # labels in a table


def add_arguments(parser):
    """Options of the command."""
    model = f"an adapter folder; or mlp-digits, {ENCODER}; or {CAUSAL_LM}"
    parser.add_argument("model", metavar="MODEL", help=model)
    parser.add_argument("data", metavar="DATA", help=DATA)
    parser.add_argument("--adapter", metavar="DIR", help="PEFT adapter folder, if MODEL is the model under it")
    which = "rows as `train` divides them, or all (default: test of movie-reviews and digits, all of a file); says how "
    which += "many test rows of a file the adapter was trained on, should it have been sorted, cut or edited since"
    parser.add_argument("--split", choices=("test", "train", "all"), help=which)
    length = "tokens a text (default: as the adapter was trained, else 128)"
    parser.add_argument("--max-length", type=integer(2), metavar="T", help=length)
    add_base_dtype(parser)
    add_as_chat(parser)
    add_encoding(parser)
    add_workers(parser)


def run(args):
    """Evaluate; nothing is written."""
    import numpy as np

    from ..adapters import merge
    from ..data import report
    from ..tasks import evaluate, evaluation_job, outputs

    xp = get_xp(args.backend)
    options = {name: getattr(args, name) for name in ("seed", "max_length", "encoding", "base_dtype", "as_chat")}
    test = evaluation_job(args.model, args.data, args.adapter, args.split, **options)
    random = f"the classifier of {args.model} is random: it was never trained; this is how well guessing does"
    model = test.model.to(xp)
    merge(model)
    if "perplexity" in model.metrics:
        for line in test.notes:
            note(line)
        found = evaluate(model, test.batches, args.workers, progress=True)
        text = f"{found.tokens:,} tokens of {args.data}: loss {found.loss:.4f} nats a token, "
        return found._asdict(), text + f"perplexity {found.perplexity:.4g}"
    logits = np.concatenate(outputs(model, test.batches, args.workers, progress=True))
    found = report(logits, np.concatenate([batch["labels"] for batch in test.batches]))
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
        "seen_in_training": test.seen,
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
