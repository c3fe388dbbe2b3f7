"""Arguments that several commands share."""

import argparse
import contextlib


def add_model_and_data(parser):
    """MODEL, DATA and --max-length, as `jobs.make_job` takes them."""
    parser.add_argument(
        "model", metavar="MODEL", help="mlp-digits, minilm, or a Hugging Face folder with a BERT encoder"
    )
    parser.add_argument("data", metavar="DATA", help="digits-rotated etc.; movie-reviews; a .csv, .tsv or .jsonl file")
    parser.add_argument("--max-length", type=int, default=128, metavar="T", help="tokens a text (default: %(default)s)")


def add_jobs(parser):
    """Where joblib computes: --jobs, a positive number of processes or -1, or --scheduler, a Dask cluster."""
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--jobs", type=jobs_or_all, default=-1, metavar="N", help="processes; -1: one per core (default)"
    )
    where.add_argument(
        "--scheduler", metavar="ADDRESS", help="compute on the workers of this Dask scheduler, e.g. tcp://HOST:8786"
    )


def where_jobs_run(args):
    """Context in which joblib computes on the workers of --scheduler, if that is given."""
    if args.scheduler is None:
        return contextlib.nullcontext()
    from ..cluster import dask_workers

    return dask_workers(args.scheduler)


def jobs_or_all(text):
    """A number of processes, or -1."""
    if text != "-1" and not (text.isdecimal() and 1 <= int(text) <= 1024):
        raise argparse.ArgumentTypeError(f"expected a number of processes from 1 to 1024, or -1; got {text!r}")
    return int(text)


def add_workers(parser, where=""):
    """--workers: a positive number of threads."""
    text = f"threads that share the work{where} (default: one a core)"
    parser.add_argument("--workers", type=_workers, metavar="N", help=text)


def _workers(text):
    if not text.isdecimal() or not 1 <= int(text) <= 1024:
        raise argparse.ArgumentTypeError(f"expected a number of threads from 1 to 1024; got {text!r}")
    return int(text)
