"""`lorabook figures`: rebuild the figures of README and chapters, numbers and pictures."""

from pathlib import Path

from ..files import format_table
from .arguments import add_jobs, where_jobs_run

HELP = "rebuild figures of README and chapters from scratch; without a name, list them and how long each takes"
EXAMPLE = "lorabook figures rank_vs_error"
SHARED = ()


def add_arguments(parser):
    """Options of the command."""
    parser.add_argument("names", nargs="*", metavar="NAME", help="figures to rebuild; none: list them")
    parser.add_argument("--out", default="figures", help="folder (default: %(default)s)")
    add_jobs(parser)
    runs = "runs behind reviews_* (hours of them) and domains; finished ones are not repeated (default: runs/reviews, "
    runs += "runs/domains)"
    parser.add_argument("--runs", metavar="DIR", help=runs)
    parser.add_argument(
        "--redraw",
        action="store_true",
        help="draw from the CSV files that are there, compute nothing; without a name, all",
    )


def run(args):
    """Check every name first, then rebuild one after another."""
    from ..errors import InputError
    from ..files import output_folder, require

    require("book", "a figure", "matplotlib")
    from ..book import figures

    if not args.names and not args.redraw:
        return _listed(figures.FIGURES)
    names = args.names or list(figures.FIGURES)
    if unknown := [name for name in names if name not in figures.FIGURES]:
        raise InputError(f"unknown figure {unknown[0]!r}; expected one of {', '.join(figures.FIGURES)}")
    if args.scheduler and (here := [name for name in names if figures.FIGURES[name].runs or name.startswith("step_")]):
        raise InputError(f"{here[0]} is made on this machine, not on a cluster: name other figures, or no --scheduler")
    left = dict.fromkeys(figures.FIGURES[name].runs for name in names if figures.FIGURES[name].runs)
    kept = " and ".join(left and [args.runs] if args.runs else left)
    args.after_interrupt = lambda: f"; the same command goes on with the finished runs in {kept}" if kept else ""
    with where_jobs_run(args), output_folder(args.out), output_folder(Path(args.out) / "data"):
        if args.redraw:
            paths = [str(figures.redraw(name, args.out)) for name in names]
        else:
            paths = [str(figures.rebuild(name, args.out, args.jobs, True, args.runs)) for name in names]
    return {"figures": paths}, "\n".join(f"wrote {path}" for path in paths)


def _listed(figures):
    """What there is, and how long each takes: nothing starts that nobody asked for."""
    columns = {"figure": lambda name: name, "on two cores, about": lambda name: _duration(figures[name].minutes)}
    text = format_table(list(figures), columns)
    text += "\n\nreviews_*, domains: far less where the runs are in --runs already. "
    text += "Rebuild one: lorabook figures rank_vs_error"
    return {"figures": {name: {"minutes": figure.minutes} for name, figure in figures.items()}}, text


def _duration(minutes):
    return "under 1 min" if minutes < 1 else f"{minutes:g} min" if minutes < 60 else f"{minutes / 60:.0f} h"
