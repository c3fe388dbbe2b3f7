"""Arguments that several commands share."""

import argparse
import contextlib
import math
import os
import re

from ..files import CAUSAL_LMS, ENCODERS

ENCODER = f"{', '.join(ENCODERS)}, or a Hugging Face folder with an encoder"  # what MODEL may be, of texts
CAUSAL_LM = f"{', '.join(CAUSAL_LMS)}, a Hugging Face folder with a decoder, or a .gguf file"  # and that continues them
BASE_DTYPES = ("float32", "q4", "nf4")  # `models.BASE_DTYPES`, which takes long to import


def integer(least, most=10**9, *also):
    """The type of an option that is an integer from `least` to `most`, or one of `also`."""

    def read(text):
        number = int(text) if re.fullmatch(r"[+-]?[0-9]{1,20}", text) else None
        if number is None or not (least <= number <= most or number in also):
            expected = ", or ".join([f"an integer from {least} to {most}", *map(str, also)])
            raise argparse.ArgumentTypeError(f"expected {expected}; got {text!r}")
        return number

    return read


def add_encoding(parser):
    """--encoding of text files."""
    parser.add_argument(
        "--encoding", default="utf-8", metavar="E", help="of a file of texts or numbers (default: %(default)s)"
    )


def number(above=-math.inf):
    """The type of an option that is a finite number, larger than `above`."""

    def read(text):
        try:
            value = float(text) if re.fullmatch(r"[+-]?[0-9.eE+-]{1,40}", text) else math.nan
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value > above):
            bound = "" if above == -math.inf else f" above {above}"
            raise argparse.ArgumentTypeError(f"expected a finite number{bound}; got {text!r}")
        return value

    return read


def add_jobs(parser):
    """Where joblib computes: --jobs, a positive number of processes or -1, or --scheduler, a Dask cluster."""
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--jobs", type=integer(1, 1024, -1), default=-1, metavar="N", help="processes; -1: one per core (default)"
    )
    where.add_argument(
        "--scheduler", metavar="ADDRESS", help="compute on the workers of this Dask scheduler, e.g. tcp://HOST:8786"
    )


# joblib's processes have one beside them that clears up after killed ones, and after ^C says so below our one line. The
# environment is the only way to tell it not to; what it clears away is a semaphore, and it does so all the same.
QUIET = "ignore:resource_tracker:UserWarning"


def where_jobs_run(args):
    """Context in which joblib computes on the workers of --scheduler, if that is given."""
    if QUIET not in (own := os.environ.get("PYTHONWARNINGS", "")):
        os.environ["PYTHONWARNINGS"] = f"{own},{QUIET}" if own else QUIET
    if args.scheduler is None:
        return contextlib.nullcontext()
    from ..parallel import dask_workers

    return dask_workers(args.scheduler)


def add_workers(parser, where=""):
    """--workers: a positive number of threads."""
    text = f"threads that share the work{where} (default: one a core)"
    parser.add_argument("--workers", type=integer(1, 1024), metavar="N", help=text)


def add_base_dtype(parser):
    """--base-dtype of a language model."""
    held = "how a language model's matrices are held: float32; q4, the 4-bit blocks of a GGUF file as they are; nf4, "
    held += "rounded to 4 bits (default: as the adapter was trained, else float32)"
    parser.add_argument("--base-dtype", choices=BASE_DTYPES, help=held)


def add_as_chat(parser):
    """--as-chat of rows with a prompt and a completion."""
    text = "rows of prompt and completion become chats, by the model's chat template (default: as the adapter was "
    parser.add_argument(
        "--as-chat", action=argparse.BooleanOptionalAction, help=f"{text}trained, else joined as they stand)"
    )
