"""The command line: parsing and printing only. Each command is a file in `commands/`.

Whatever ends a command ends it with one line and an exit code. Commands are imported only inside `main`, so that this
holds while they load, too.
"""

import argparse
import contextlib
import importlib
import json
import os
import shlex
import signal
import sys
import textwrap

from . import __version__
from .commands import integer
from .errors import InputError, printable

COMMANDS = ("sweep", "spectrum", "train", "evaluate", "predict", "generate", "merge", "export", "bench", "figures",
            "notebooks", "fetch", "doctor")  # fmt: skip
BACKENDS = ("numpy", "cupy", "auto")
BAD_PATHS = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)


class Parser(argparse.ArgumentParser):
    """argparse with one line for an error, as every other bad input gets; help that cannot be written is one."""

    def error(self, message):
        print(f"{self.prog}: {printable(message)} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)

    def _print_message(self, message, file=None):  # argparse's own passes over what fails, or leaves it to the end
        print(message, end="", file=file or sys.stderr, flush=True)


class Terminated(KeyboardInterrupt):
    """SIGTERM has come."""


SHARED = {
    "seed": {"type": integer(0, 2**32 - 1), "default": 0, "help": "seed of everything random (default: %(default)s)"},
    "backend": {
        "choices": BACKENDS,
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
        own = module.SHARED if isinstance(module.SHARED, dict) else {option: {} for option in module.SHARED}
        for option, changes in own.items():
            command.add_argument(f"--{option}", **SHARED[option] | changes)
        command.add_argument("--json", action="store_true", help="print one JSON object instead of text")
        command.set_defaults(run=module.run, backends=own.get("backend", {}).get("choices", BACKENDS))
    return main


def main(argv=None):
    """Run one command; returns the exit code.

    0 done, 1 the run failed, 2 the input cannot be used, 130 interrupted, 141 nobody reads the output any more, 143
    terminated.
    """
    args = argparse.Namespace(command=None)
    for stream in (sys.stdout, sys.stderr):  # that a terminal lacks a character is no reason to fail
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        with _terminable():
            for piece in _run(args, sys.argv[1:] if argv is None else argv):
                print(piece, end="", flush=True)
        return getattr(args, "code", 0)
    except SystemExit as end:  # argparse has printed the help, or what is wrong
        return end.code
    except KeyboardInterrupt as error:
        return _interrupted(args, error)
    except Exception as error:
        if interrupt := _interrupt_behind(error):
            return _interrupted(args, interrupt)
        return _failed(args, error)
    finally:
        _flush()


def _run(args, argv):
    """What the command prints, in pieces; `args` is filled in as far as it gets."""
    if empty := [word for word in argv if word.startswith("--") and word.endswith("=--")]:
        raise InputError(f"{empty[0]!r} gives no value")  # argparse takes it for an empty list, whatever the option
    if unknown := parser().parse_known_args(argv or ["--help"], args)[1]:
        raise InputError(f"unrecognized arguments: {shlex.join(unknown)} (see lorabook {args.command} --help)")
    if (backend := getattr(args, "backend", BACKENDS[0])) not in args.backends:  # argparse lets defaults pass
        raise InputError(f"LORABOOK_BACKEND is {backend!r}; expected one of {', '.join(BACKENDS)}")
    args.command_line = printable(shlex.join(["lorabook", *_computation(argv)]))
    result, text = args.run(args)
    if not isinstance(text, str) and not args.json:  # of a command that answers while it is asked
        return text
    return [f"{json.dumps(result) if args.json else text}\n"]


@contextlib.contextmanager
def _terminable():
    """Context in which SIGTERM ends the command as ^C does: by an exception, so that what it holds is cleared away."""

    def terminate(*_):
        raise Terminated

    try:
        before = signal.signal(signal.SIGTERM, terminate)
    except ValueError:  # only the main thread hears signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _flush():
    """Write what was printed; where that fails (`| head`), let the interpreter not try again when it ends."""
    try:
        if sys.stdout:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _computation(argv):
    """The arguments that decide what is computed: without those for where, where it goes and how it is shown."""
    valued = ("--out", "--scheduler", "--workers")
    words = iter(argv)
    for word in words:
        if word in valued:
            next(words, None)
        elif word not in ("--resume", "--json", "--distributed") and word.partition("=")[0] not in valued:
            yield word


def _interrupt_behind(error):
    """The KeyboardInterrupt that another error has covered, or None.

    Python 3.11 wraps what is raised while a class is made, and a lock that ^C kept from being taken complains on its
    release: threading's by a RuntimeError, multiprocessing's by an AssertionError. tqdm has both.
    """
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error


def _failed(args, error):
    """Say in one line what ended the command; returns the exit code. What is a bug is raised on."""
    match error:
        case InputError():
            return _fail(args, printable(error), 2)
        case BrokenPipeError():
            return 141
        case OSError():
            message = f"{error.filename}: {error.strerror}" if error.filename else error.strerror or error
            return _fail(args, printable(message), 2 if isinstance(error, BAD_PATHS) else 1)
        case MemoryError():
            return _fail(args, f"out of memory. {error}", 1)
        case RuntimeError():
            return _fail(args, error, 1)
    raise error


def _interrupted(args, error):
    what, code = ("terminated", 143) if isinstance(error, Terminated) else ("interrupted", 130)
    return _fail(args, what + getattr(args, "after_interrupt", str)(), code)


def _fail(args, message, code):
    with contextlib.suppress(OSError):  # nobody reads it: the code says it too
        print(f"{' '.join(filter(None, ('lorabook', args.command)))}: {message}", file=sys.stderr, flush=True)
    return code
