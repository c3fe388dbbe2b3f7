r"""Regular expressions from outside, matched in bounded time.

Python's `re` tries one way after another, and `(a+)+$` has more ways to fit a layer's name than anybody can wait for.
A plain expression, a name with a few `.*` as nearly all are, has few, and is matched here; any other in a process of
its own, by the very same `re`, which is killed when its time is up. So there is no other dialect, no thread that goes
on, and nothing that ordinary expressions pay.
"""

import functools
import json
import re
import subprocess
import sys
import time

from ..errors import InputError
from ..files import short

SECONDS = 3.0  # for all expressions of one call; ordinary ones take less than a millisecond
TOKEN = r"(?:[\w.-]|\\[.dw]|\[\w+\]|\[\w-\w\])"
PLAIN = re.compile(rf"\^?(?:{TOKEN}[*+?]?)*(?:\((?:\?:)?{TOKEN}+(?:\|{TOKEN}+)*\))?(?:{TOKEN}[*+?]?)*\$?")
SUFFIX = r"(.*\.)?({})$"  # a path of which an end, from a dot on, matches
CHILD = """
import json, re, sys, warnings
warnings.simplefilter("ignore")
for expression, method, paths in json.load(sys.stdin):
    try:
        match = getattr(re.compile(expression), method)
        found = [(m.groupdict().get("index") or True) if (m := match(path)) else False for path in paths]
    except (re.error, RecursionError, OverflowError) as error:
        found = str(error)
    print(json.dumps(found), flush=True)
"""


def matches(expressions, paths=()):
    """[{path: what it found} for each expression]: False, True, or the text that its group `index` found.

    expressions: [(option, pattern, expression, method)]: the first two name it in a message, method is "match" or
    "fullmatch". Raises InputError if one is no regular expression, or if they take longer than `SECONDS` together.
    """
    return _matches(tuple(expressions), tuple(paths))


@functools.lru_cache(maxsize=64)
def _matches(expressions, paths):
    deadline = time.monotonic() + SECONDS
    plain = {i for i, (_, pattern, _, _) in enumerate(expressions) if _is_plain(pattern)}
    others = [expression for i, expression in enumerate(expressions) if i not in plain]
    answers = iter(_in_a_process(others, paths, deadline) if others else ())
    return [_here(*e, paths, deadline) if i in plain else next(answers) for i, e in enumerate(expressions)]


def _is_plain(pattern):
    """Names, one group of alternatives, at most three repeats: of degree three in the length of a path, at worst."""
    repeats = sum(map(pattern.count, "*+?"))
    return len(pattern) <= 200 and repeats - pattern.count("(?:") <= 3 and PLAIN.fullmatch(pattern) is not None


def _here(option, pattern, expression, method, paths, deadline):
    try:
        match = getattr(re.compile(expression), method)
    except re.error as error:
        raise _no_expression(option, pattern, error) from None
    found = {path: (m.groupdict().get("index") or True) if (m := match(path)) else False for path in paths}
    if time.monotonic() > deadline:
        raise _too_long(option, pattern)
    return found


def _in_a_process(expressions, paths, deadline):
    """The same for expressions that are not plain. The process answers line by line, so that a hang has a name."""
    task = json.dumps([(expression, method, paths) for _, _, expression, method in expressions])
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", CHILD],
            input=task.encode(),
            capture_output=True,
            timeout=deadline - time.monotonic(),
        ).stdout
    except subprocess.TimeoutExpired as expired:
        done = expired.stdout or b""
    except OSError as error:
        why = f"is matched in a process of its own, which cannot start ({error.strerror}); write it with names and .*"
        raise InputError(f"{_named(*expressions[0][:2])} {why}") from None
    answers = [json.loads(line) for line in done.splitlines(keepends=True) if line.endswith(b"\n")]
    for (option, pattern, _, _), found in zip(expressions, answers, strict=False):
        if isinstance(found, str):
            raise _no_expression(option, pattern, found)
    if len(answers) < len(expressions):
        raise _too_long(*expressions[len(answers)][:2])
    return [dict(zip(paths, found, strict=True)) for found in answers]


def _named(option, pattern):
    return f"{option} {short(pattern)}"


def _no_expression(option, pattern, error):
    return InputError(f"{_named(option, pattern)} is not a regular expression: {error}")


def _too_long(option, pattern):
    how = "a repeat inside a repeat, as in (a+)+, tries too many ways"
    return InputError(f"{_named(option, pattern)} is not matched within {SECONDS:g} seconds; {how}")
