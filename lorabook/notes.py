"""One line on stderr about what was passed over, changed or assumed; the result on stdout stays as it is."""

import multiprocessing
import sys
import threading

from tqdm import tqdm

if multiprocessing.parent_process() is not None and not hasattr(tqdm, "_lock"):
    # A process of a sweep draws no bars. The lock that tqdm would share with other processes is a semaphore of the
    # system: it stays when the process is killed, and then Python warns about it below the one line of ^C.
    tqdm.set_lock(threading.RLock())


def note(text):
    """Print "note: ..." on stderr, above a progress bar if there is one.

    Not `warnings.warn`: that prints two lines, with a place in the code that says nothing to a user, is quiet from the
    second time on, and where warnings are errors it would raise in the middle of a change.
    """
    tqdm.write(f"note: {text}", file=sys.stderr)
