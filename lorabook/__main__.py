"""`python -m lorabook` is the command `lorabook`."""

import atexit
import os
import signal
import sys

STOPPED = (130, 143)  # by ^C, by SIGTERM


def run():
    """The command, as a process; returns its exit code. When it is done, ^C has nothing left to stop."""
    code = 0
    # The first to be registered is the last to be called: all others have cleared up. Threads that a sweep was stopped
    # in may still be there, and CPython 3.11 can abort when it takes itself to pieces under them.
    atexit.register(lambda: _leave(code) if code in STOPPED else None)
    try:
        from .cli import main

        code = main()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    except KeyboardInterrupt:  # before `main` could catch it, or after
        print("lorabook: interrupted", file=sys.stderr)
        code = 130
    return code


def _leave(code):
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except OSError:  # nobody reads it
            pass
    os._exit(code)


if __name__ == "__main__":
    sys.exit(run())
