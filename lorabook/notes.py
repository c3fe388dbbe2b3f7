"""One line on stderr about what was passed over, changed or assumed; the result on stdout stays as it is."""

import sys

from tqdm import tqdm


def note(text):
    """Print "note: ..." on stderr, above a progress bar if there is one.

    Not `warnings.warn`: that prints two lines, with a place in the code that says nothing to a user, is quiet from the
    second time on, and where warnings are errors it would raise in the middle of a change.
    """
    tqdm.write(f"note: {text}", file=sys.stderr)
