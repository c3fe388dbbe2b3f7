"""The command line: parsing and printing only. Each command is a file in `commands/`."""

import argparse
import importlib
import json
import os
import shlex
import sys
import textwrap

from . import __version__
from .errors import InputError, NonFiniteError

COMMANDS = ("sweep", "spectrum", "train", "evaluate", "merge", "bench", "figures", "notebooks", "fetch", "doctor")


class Parser(argparse.ArgumentParser):
    """argparse with one line for an error, as every other bad input gets."""

    def error(self, message):
        print(f"{self.prog}: {message} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)


def seed(text):
    """A seed: an integer from 0 on."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected an integer from 0 on; got {text!r}")
    return int(text)


SHARED = {
    "seed": {"type": seed, "default": 0, "help": "seed of everything random (default: %(default)s)"},
    "backend": {
        "choices": ("numpy", "cupy", "auto"),
        "default": os.environ.get("LORABOOK_BACKEND", "numpy"),
        "help": "array library; cupy needs a GPU (default: LORABOOK_BACKEND, else numpy)",
    },
}


def parser():
    """The parser of all commands; `commands` says what a command's module holds."""
    main = Parser(prog="lorabook", description="LoRA derived by hand: rank against error, training, figures, chapters.")
    main.add_argument("--version", action="version", version=f"lorabook {__version__}")
    commands = main.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
    for name in COMMANDS:
        module = importlib.import_module(f".commands.{name}", __package__)
        command = commands.add_parser(
            name,
            help=module.HELP,
            description=textwrap.fill(module.HELP, 78),
            epilog=f"example:\n  {module.EXAMPLE}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
        for option in module.SHARED:
            command.add_argument(f"--{option}", **SHARED[option])
        command.add_argument("--json", action="store_true", help="print one JSON object instead of text")
        command.set_defaults(run=module.run)
    return main


def main(argv=None):
    """Run one command; returns the exit code: 0 done, 1 the run failed, 2 the input cannot be used, 130 interrupted."""
    argv = sys.argv[1:] if argv is None else argv
    args = parser().parse_args(argv or ["--help"])
    args.command_line = shlex.join(["lorabook", *_computation(argv)])
    try:
        result, text = args.run(args)
        print(json.dumps(result) if args.json else text, flush=True)
    except InputError as error:
        return _fail(args, error, 2)
    except (NonFiniteError, OSError, RuntimeError) as error:
        return _fail(args, error, 1)
    except KeyboardInterrupt:
        return _fail(args, "interrupted" + getattr(args, "after_interrupt", str)(), 130)
    return 0


def _computation(argv):
    """The arguments that decide what is computed: without those for where, where it goes and how it is shown."""
    valued = ("--out", "--scheduler", "--workers")
    words = iter(argv)
    for word in words:
        if word in valued:
            next(words, None)
        elif word not in ("--resume", "--json", "--distributed") and word.partition("=")[0] not in valued:
            yield word


def _fail(args, error, code):
    print(f"lorabook {args.command}: {error}", file=sys.stderr)
    return code
