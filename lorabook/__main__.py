"""`python -m lorabook` is the command `lorabook`."""

import signal
import sys

from .cli import main


def run():
    """The command, as a process: its exit code. When it is done, ^C has nothing left to interrupt but the farewell."""
    code = main()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return code


if __name__ == "__main__":
    sys.exit(run())
