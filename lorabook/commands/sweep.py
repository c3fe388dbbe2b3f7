"""`lorabook sweep`: rank versus error on a task, as table, CSV and picture."""

import math
import textwrap
from pathlib import Path

from ..backend import get_xp
from ..data import SHIFTS
from ..errors import InputError
from ..locks import output_folder
from ..tables import format_table, median_by, write_csv
from .arguments import add_encoding, add_jobs, integer, number, where_jobs_run

HELP = "rank versus error: truncated and trained updates of every rank, as table, CSV and picture"
EXAMPLE = "lorabook sweep --data digits-mirrored --ranks 1 2 4 8 --seeds 3"
SHARED = ("seed", "backend")


def add_arguments(parser):
    """Options of the command."""
    shifts = ", ".join(name for name in SHIFTS if name != "digits")
    data = f"{shifts}; or a table of numbers with a column `label`: .csv, .tsv, .jsonl (default: %(default)s)"
    parser.add_argument("--data", default="digits-rotated", help=data)
    ranks = "ranks to compare (default: 1 2 4 8 16 32 64)"
    parser.add_argument(
        "--ranks", type=integer(1), nargs="+", default=[1, 2, 4, 8, 16, 32, 64], metavar="R", help=ranks
    )
    seeds = "runs of each method, each with its own split, base and batches (default: %(default)s)"
    parser.add_argument("--seeds", type=integer(1, 1000), default=5, metavar="N", help=seeds)
    parser.add_argument("--epochs", type=integer(1), default=60, help="epochs of each run (default: %(default)s)")
    add_recipes(parser)
    add_encoding(parser)
    add_jobs(parser)
    parser.add_argument("--out", metavar="DIR", help="folder of the CSV and the picture (default: runs/sweep-DATA)")


def add_recipes(parser):
    """How each side trains: the options that take the place of what was tuned."""
    tuned = "(default: tuned, see the lines under the table)"
    parser.add_argument("--lr", type=number(), help=f"learning rate of LoRA, at every rank {tuned}")
    parser.add_argument("--lr-full", type=number(), metavar="LR", help=f"learning rate of full fine-tuning {tuned}")
    parser.add_argument("--lora-alpha", type=number(), help=f"scaling is lora_alpha / r at every rank {tuned}")
    parser.add_argument(
        "--use-rslora", action="store_true", help="scaling is lora_alpha / sqrt(r), lora_alpha 16 if not given"
    )
    tune = "first choose rates and scaling on validation rows of --data; takes some ten times as long"
    parser.add_argument("--tune", action="store_true", help=tune)


def run(args):
    """Sweep, write rank_vs_error.csv and rank_vs_error.svg, return the rows and their table."""
    from .. import plotting
    from ..figures import setting_for
    from ..sweep import TUNED, rank_sweep
    from ..tuning import described, override, tune

    backend = get_xp(args.backend).__name__  # "auto" is decided here, not by each worker
    if backend == "cupy" and args.scheduler:
        raise InputError("--scheduler computes on the processors of the workers, not on a GPU: pass --backend numpy")
    jobs = 1 if backend == "cupy" else args.jobs  # several processes would share one card
    given = {name: getattr(args, name) for name in ("lr", "lr_full", "lora_alpha", "use_rslora")}
    if args.tune and (set_too := [name for name, value in given.items() if value not in (None, False)]):
        raise InputError(f"--tune chooses --{set_too[0].replace('_', '-')}: pass one or the other")
    options = {"epochs": args.epochs, "recipes": override(TUNED, **given), "backend": backend}
    seeds = range(args.seed, args.seed + args.seeds)
    with where_jobs_run(args):
        setting, title = setting_for(args.data, args.seed, args.encoding, **options)
        setting.check(args.ranks, seeds)
        with output_folder(args.out or f"runs/sweep-{Path(args.data).stem}") as out:
            if (out / "adapter_config.json").exists():
                raise InputError(f"{out} holds an adapter; choose another --out")
            if args.tune:
                setting, tried = tune(setting, args.ranks, seeds[:3], jobs, progress=True)
                write_csv(out / "learning_rates.csv", tried, args.command_line)
            rows = rank_sweep(setting, args.ranks, seeds, jobs, progress=True)
            write_csv(out / "rank_vs_error.csv", rows, args.command_line)
            plotting.save(plotting.rank_vs_error(rows, title), out / "rank_vs_error.svg")
    names = ("rank_vs_error.csv", "rank_vs_error.svg", *(("learning_rates.csv",) if args.tune else ()))
    files = [str(out / name) for name in names]
    wrote = "\n".join(("wrote " if file == files[0] else "      ") + file for file in files)
    how = f"{described(setting, args.ranks)}\n{_origin(args)}"
    text = "\n\n".join((textwrap.fill(title, 79), _table(rows), _reading(args.seeds), how, wrote))
    recipes = {"full" if r is None else str(r): setting.recipe(r).cells(r) for r in (None, *sorted(set(args.ranks)))}
    return {"data": args.data, "seeds": args.seeds, "recipes": recipes, "rows": rows, "files": files}, text


def _origin(args):
    """Where rates and scaling are from."""
    if args.tune:
        return "Chosen on validation rows of these data (learning_rates.csv)."
    default = "Where you set nothing: " if args.lr or args.lr_full or args.lora_alpha or args.use_rslora else ""
    if args.data == "digits-rotated":
        return f"{default}chosen on validation rows of these digits (lorabook figures learning_rates)."
    return f"{default}chosen on digits turned by 90 degrees, not on these data; --tune chooses on these."


def _table(rows):
    from ..sweep import against_full

    values = ("params", "weight_error", "test_accuracy", "seconds")
    medians = {value: median_by(rows, ("method", "r"), value) for value in values}
    summary = [{"key": key} | {value: medians[value][key] for value in values} for key in medians["params"]]

    def spread(value, scale=1):
        return lambda row: "{:.1f} ({:.1f}-{:.1f})".format(*(scale * v for v in row[value]))

    gaps = against_full(rows)
    columns = {
        "method": lambda row: row["key"][0],
        "r": lambda row: "" if row["key"][1] is None else str(row["key"][1]),
        "numbers": lambda row: f"{row['params'][0]:,.0f}",
        "weight err": lambda row: f"{row['weight_error'][0]:.3f}",
        "accuracy %": spread("test_accuracy", 100),
        "minus full": lambda row: _points(gaps.get(row["key"])),
        "seconds": lambda row: f"{row['seconds'][0]:.3f}",
    }
    return format_table(summary, columns)


def _points(gap):
    if gap is None:
        return ""
    mean, error = (100 * part for part in gap)
    return f"{mean:+.1f}" if math.isnan(error) else f"{mean:+.1f} +- {error:.1f}"


def _reading(seeds):
    of = (
        f"Medians of {seeds} seeds, each with its own split; accuracy with lowest and highest."
        if seeds > 1
        else "One seed."
    )
    return (
        f"{of}\n"
        "weight err: distance to the full update, relative; for svd the lower bound.\n"
        "minus full: points of accuracy, against full fine-tuning on the same split; mean +- standard error.\n"
        "seconds: of one training, or of the SVDs that give every rank at once."
    )
