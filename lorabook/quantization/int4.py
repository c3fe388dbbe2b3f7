"""Plain symmetric 4-bit integers: evenly spaced levels, to compare NF4 with."""

import numpy as np

LARGEST = 7  # the scale maps the largest weight of a block to it; -8 has no counterpart, and is not used


def int4_levels():
    """The integers -8 .. 7 as levels (16,) in float32; rounding to the nearest after W / scale = absmax / 7."""
    return np.arange(-8, 8, dtype="f4")
