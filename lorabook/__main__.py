"""`python -m lorabook` is the command `lorabook`."""

import signal
import sys


def run():
    """The command, as a process; returns its exit code. When it is done, ^C has nothing left to stop."""
    try:
        from .cli import main

        code = main()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    except KeyboardInterrupt:  # before `main` could catch it, or after
        print("lorabook: interrupted", file=sys.stderr)
        code = 130
    return code


if __name__ == "__main__":
    sys.exit(run())
