"""`lorabook sweep`: rank versus error on a task, as table, CSV and picture."""

import textwrap
from pathlib import Path

from ..backend import get_xp
from ..data import SHIFTS
from ..errors import InputError
from ..io import prepare_folder
from ..tables import format_table, median_by, write_csv
from .arguments import add_jobs, where_jobs_run

HELP = "rank versus error: truncated and trained updates of every rank, as table, CSV and picture"
EXAMPLE = "lorabook sweep --data digits-mirrored --ranks 1 2 4 8 --seeds 3"
SHARED = ("seed", "backend")


def add_arguments(parser):
    """Options of the command."""
    shifts = ", ".join(name for name in SHIFTS if name != "digits")
    data = f"{shifts}; or a .csv of numbers with a column `label` (default: %(default)s)"
    parser.add_argument("--data", default="digits-rotated", help=data)
    ranks = "ranks to compare (default: 1 2 4 8 16 32 64)"
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64], metavar="R", help=ranks)
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="runs of each method (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=60, help="epochs of each run (default: %(default)s)")
    parser.add_argument("--lora-alpha", type=float, default=16, help="scaling is lora_alpha / r (default: %(default)s)")
    add_jobs(parser)
    parser.add_argument("--out", metavar="DIR", help="folder of the CSV and the picture (default: runs/sweep-DATA)")


def run(args):
    """Sweep, write rank_vs_error.csv and rank_vs_error.svg, return the rows and their table."""
    from .. import plotting
    from ..figures import setting_for
    from ..sweep import rank_sweep

    backend = get_xp(args.backend).__name__  # "auto" is decided here, not by each worker
    if backend == "cupy" and args.scheduler:
        raise InputError("--scheduler computes on the processors of the workers, not on a GPU: pass --backend numpy")
    jobs = 1 if backend == "cupy" else args.jobs  # several processes would share one card
    options = {"epochs": args.epochs, "lora_alpha": args.lora_alpha, "backend": backend}
    seeds = range(args.seed, args.seed + args.seeds)
    with where_jobs_run(args):
        setting, title = setting_for(args.data, args.seed, **options)
        setting.check(args.ranks, seeds)
        out = prepare_folder(args.out or f"runs/sweep-{Path(args.data).stem}")
        if (out / "adapter_config.json").exists():
            raise InputError(f"{out} holds an adapter; choose another --out")
        rows = rank_sweep(setting, args.ranks, seeds, jobs, progress=True)
    write_csv(out / "rank_vs_error.csv", rows, args.command_line)
    plotting.save(plotting.rank_vs_error(rows, title), out / "rank_vs_error.svg")
    files = [str(out / "rank_vs_error.csv"), str(out / "rank_vs_error.svg")]
    text = (
        f"{textwrap.fill(title, 79)}\n\n{_table(rows)}\n\n{_reading(args.seeds)}\n\nwrote {files[0]}\n      {files[1]}"
    )
    return {"data": args.data, "seeds": args.seeds, "rows": rows, "files": files}, text


def _table(rows):
    values = ("params", "weight_error", "test_loss", "test_accuracy", "seconds")
    medians = {value: median_by(rows, ("method", "r"), value) for value in values}
    summary = [{"key": key} | {value: medians[value][key] for value in values} for key in medians["params"]]

    def spread(value, scale=1):
        return lambda row: "{:.1f} ({:.1f}-{:.1f})".format(*(scale * v for v in row[value]))

    columns = {
        "method": lambda row: row["key"][0],
        "r": lambda row: "" if row["key"][1] is None else str(row["key"][1]),
        "numbers": lambda row: f"{row['params'][0]:,.0f}",
        "weight err": lambda row: f"{row['weight_error'][0]:.3f}",
        "test loss": lambda row: f"{row['test_loss'][0]:.3f}",
        "accuracy %": spread("test_accuracy", 100),
        "seconds": lambda row: f"{row['seconds'][0]:.3f}",
    }
    return format_table(summary, columns)


def _reading(seeds):
    of = f"Medians of {seeds} seeds, accuracy with lowest and highest." if seeds > 1 else "One seed."
    return (
        f"{of}\n"
        "weight err: distance to the full update, relative; for svd the lower bound.\n"
        "seconds: of one training, or of the SVDs that give every rank at once."
    )
