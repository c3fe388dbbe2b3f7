"""The three ways in which lorabook says no, which the command line turns into exit codes; checks of a number; and
how text from outside is shown.
"""

import math
import operator


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
