"""One line on stderr about what was passed over, changed or assumed; the result on stdout stays as it is."""

import sys

from tqdm import tqdm


def note(text):
    """Print "note: ..." on stderr, above a progress bar if there is one."""
    tqdm.write(f"note: {text}", file=sys.stderr)
