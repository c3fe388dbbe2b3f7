"""Labels as files write them: which are the same, what they are called, how they are numbered.

* A label is text, or in JSON lines a number. Truth values, null, lists, objects and blank text are none.
* Blanks around a label do not count: ` pos` is `pos`. In JSON lines, a whole number is its digits: 1.0 is `1`.
* Labels that are one number written in two ways (`1` and `1.0` in a CSV file) are refused.
* Numbers are numbered by size, so that 2 stands before 10; if any label is no number, all are numbered as text.
"""

import math
import unicodedata

from ..errors import FormatError
from ..files import parse_number, short


def label_name(value):
    """What the label of a row is called. Raises ValueError if it is none."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = isinstance(value, str) and value.strip()
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not text and not number:
        raise ValueError(f"a label must be text or a number; got {short(value)}: write one, or drop the row")
    return text or str(value)


def named_labels(labels, name):
    """The names of all (line, label) of a file, one a row. Raises FormatError with the line of one that is refused.

    name: what errors call the file.
    """
    names, first, written = [], {}, {}
    for line, value in labels:
        try:
            label = label_name(value)
        except ValueError as error:
            raise FormatError(f"{name}, line {line}: {error}") from None
        if label not in first:
            first[label], number = line, parse_number(label)
            if number is not None and written.setdefault(number, label) != label:
                other = f"{written[number]!r} in line {first[written[number]]}"
                raise FormatError(
                    f"{name}, line {line}: the label {label!r} is the same number as {other}; write them alike"
                )
        names.append(label)
    return names


def placeholders(n):
    """What transformers calls classes to which nobody gave names."""
    return [f"LABEL_{i}" for i in range(n)]


def among(labels, names):
    """The labels of a file, by the names that a model has for them: 0, 1, ... for a model that has none of its own."""
    if list(names) != placeholders(len(names)):
        return labels
    number = {str(i): name for i, name in enumerate(names)}
    return [number.get(label, label) for label in labels]


def in_order(names):
    """The different names, sorted: by size if all are numbers, else as text."""
    different = sorted({*names})
    numbers = {name: parse_number(name) for name in different}
    return different if None in numbers.values() else sorted(different, key=numbers.get)


def alike(names):
    """[(a, b)] of names that differ in capitals or blanks alone, or not to the eye: likely one label in two ways.

    Unicode has characters that look the same: an accent may be part of a letter, or stand behind it.
    """
    seen, pairs = {}, []
    for name in names:
        other = seen.setdefault(" ".join(unicodedata.normalize("NFKC", name).casefold().split()), name)
        if other != name:
            pairs.append((other, name))
    return pairs
