"""The three ways in which lorabook says no, which the command line turns into exit codes, and how it says anything
else: a note on stderr, which leaves the result on stdout as it is. Checks of a number; how text from outside is shown.
"""

import math
import multiprocessing
import operator
import sys
import threading

from tqdm import tqdm


class InputError(ValueError):
    """What the caller gave cannot be used (exit code 2). The message says what came, what was expected, what to do."""


class FormatError(InputError):
    """A file is malformed, truncated, altered, or belongs to something else (exit code 2)."""


class NonFiniteError(RuntimeError):
    """A loss or a gradient became NaN or Inf (exit code 1). Weights and optimizer state are as before the step."""


def check_integer(name, value, least=1, most=None, of=None):
    """`value` as an int. Raises InputError unless it is an integer, Python's or NumPy's, from `least` to `most`.

    of: `most` in words, for the message: "the 9 steps of the run".
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < least or (most is not None and number > most):
        expected = f"of at least {least}" if most is None else f"from {least} to {of or most}"
        raise InputError(f"{name} must be an integer {expected}; got {value!r}")
    return number


def check_number(name, value, below=math.inf, positive=False):
    """`value` as a float, so that it changes no array's dtype. Raises InputError unless 0 <= value < below.

    positive: 0 is refused too.
    """
    try:
        number = math.nan if isinstance(value, bool | str) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not 0 <= number < below or (positive and not number):
        expected = f"number in [0, {below})" if math.isfinite(below) else f"finite number {'>' if positive else '>='} 0"
        raise InputError(f"{name} must be a {expected}; got {value!r}")
    return number


def printable(text):
    """The text on one line that every terminal and file can show: other characters escaped, as in Python."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


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
