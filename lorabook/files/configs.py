"""JSON from outside: one strict reader, and checks of the values that this code depends on, by key.

Strict: UTF-8, no key twice, no NaN or Infinity, no half of a surrogate pair, bounded size and nesting. So what comes
out can be compared, printed and written again.
"""

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..errors import FormatError, InputError

SIZE = 1 << 24  # bytes of a file
DEPTH = 64  # objects and lists inside each other


def read_json(path, what=None):
    """The JSON object in a file, as a dict. `what`, for the message if there is no such file: "a PEFT adapter folder".

    Raises InputError if the file cannot be read, FormatError if it holds anything but one strict JSON object.
    """
    data = read_file(path, SIZE, what)
    try:
        content = parse_json(data)
    except ValueError as error:
        raise FormatError(f"{path} is not JSON: {short(error)}") from None
    if not isinstance(content, dict):
        raise FormatError(f"{path}: expected a JSON object; got {short(content)}")
    return content


def read_file(path, size, what=None):
    """The bytes of a file that others wrote: InputError if it cannot be read, FormatError above `size` bytes."""
    try:
        if Path(path).exists() and not Path(path).is_file():
            raise InputError(f"cannot read {path}: not a file")  # opening a pipe would wait for somebody to write to it
        with open(path, "rb") as file:
            data = file.read(min(size, os.fstat(file.fileno()).st_size) + 1)
    except OSError as error:
        expected = f"; expected {what}" if what else ""
        raise InputError(f"cannot read {path}: {error.strerror}{expected}") from None
    if len(data) > size:
        raise FormatError(f"{path} has more than {size:,} bytes; expected a smaller file")
    return data


def parse_json(text):
    """The value of one strict JSON text, str or UTF-8 bytes. Raises ValueError with what is wrong, and where."""
    try:
        text = text.decode() if isinstance(text, bytes) else text
        value = json.loads(text, object_pairs_hook=_object, parse_float=_finite, parse_constant=_finite)
    except RecursionError:
        raise ValueError(f"nested more than {DEPTH} deep") from None
    _check(value)
    return value


def _object(pairs):
    content = dict(pairs)
    if len(content) < len(pairs):
        seen = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"a key stands there twice: {short(twice)}")
    return content


def _finite(text):
    if not math.isfinite(value := float(text)):
        raise ValueError(f"no finite number: {short(text)}")
    return value


def _check(value, depth=0):
    if depth > DEPTH:
        raise ValueError(f"nested more than {DEPTH} deep")
    if isinstance(value, str):
        value.encode()  # UnicodeEncodeError, a ValueError, for half of a surrogate pair
    elif isinstance(value, list | dict):
        for key in value:
            _check(key, depth + 1)
        for item in value.values() if isinstance(value, dict) else ():
            _check(item, depth + 1)


def short(value):
    """A value for a message: its repr (the text of an exception), cut to what fits a line."""
    text = " ".join(str(value).split()) if isinstance(value, Exception) else repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


# ---- values ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    """What a key's value must be, in words and as a test. `default` stands for a missing key, and must pass too."""

    expected: str
    holds: Callable
    default: object = None


def integer(low, high=None, default=None):
    """From `low` to `high`, both included, or from `low` on; `default=None`: the key must be there."""
    expected = f"an integer from {low} on" if high is None else f"an integer from {low} to {high}"
    return Rule(expected, lambda v: _is(v, int) and low <= v and (high is None or v <= high), default)


def number(low, high, default=None):
    """From `low` to `high`, both included."""
    return Rule(f"a number from {low:g} to {high:g}", lambda v: _is(v, int | float) and low <= v <= high, default)


def one_of(*choices):
    """One of these values, the first of which is the default."""
    expected = repr(choices[0]) if len(choices) == 1 else f"one of {', '.join(map(repr, choices))}"
    return Rule(expected, lambda v: any(type(v) is type(c) and v == c for c in choices), choices[0])


def optional(rule):
    """The same, or null, which is the default."""
    return Rule(f"{rule.expected}, or null", lambda v: v is None or rule.holds(v))


def check_values(path, content, rules):
    """Raise FormatError with file, key, what came and what was expected for a value that breaks its rule."""
    for key, rule in rules.items():
        if not rule.holds(value := content.get(key, rule.default)):
            raise FormatError(f"{path}: {key} must be {rule.expected}; got {short(value)}")


def _is(value, kind):
    return isinstance(value, kind) and not isinstance(value, bool)
