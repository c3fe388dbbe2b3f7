"""The tokenizer of a Hugging Face folder (library `tokenizers`): the one place that opens it and calls it.

The library is compiled. A file or a text that it cannot handle comes out as a plain Exception, or as a panic, which is
no Exception at all and prints a report of its own; here both become one line. A regular expression that would search
for ever is given up by the library itself, after ten million steps, with a panic.
"""

import contextlib
import os
import threading
from pathlib import Path

from ..errors import FormatError, InputError
from ..files import read_file, short

SIZE = 1 << 28  # bytes of a tokenizer.json
_LOCK = threading.Lock()  # the process has one stderr


def load_tokenizer(path, max_length=128):
    """The tokenizer of a folder, cutting texts after `max_length` tokens.

    Raises InputError if there is no tokenizer.json; FormatError if it is none, or fails on every text.
    """
    from tokenizers import Tokenizer

    path = Path(path) / "tokenizer.json"
    if not path.is_file():
        raise InputError(f"no tokenizer.json in {path.parent}; expected a Hugging Face folder with a fast tokenizer")
    content = read_file(path, SIZE)

    def load():
        tokenizer = Tokenizer.from_buffer(content)
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_length)
        return tokenizer

    return checked_tokenizer(load, path)


def checked_tokenizer(build, path):
    """What build() makes of the file at `path`: a tokenizer that encodes. Raises FormatError if it is none."""

    def tried():
        tokenizer = build()
        tokenizer.encode("a")
        return tokenizer

    tokenizer, failure = _call(tried)
    if failure:
        raise FormatError(f"{path} is not a tokenizer that can be used: {failure}")
    return tokenizer


def encode(tokenizer, texts, add_special_tokens=True):
    """The library's encodings of the texts, in order. Raises InputError for the first text that it cannot handle.

    add_special_tokens: those that the model wants around a text; not for one that has them, as a rendered chat does.
    """
    options = {} if add_special_tokens else {"add_special_tokens": False}
    encodings, failure = _call(lambda: tokenizer.encode_batch(texts, **options))
    if failure:
        failures = ((text, _call(lambda text=text: tokenizer.encode(text, **options))[1]) for text in texts)
        text, failure = next(((text, why) for text, why in failures if why), (texts, failure))
        raise InputError(f"the model's tokenizer.json fails on {short(text)}: {failure}")
    return encodings


def without_truncation(tokenizer):
    """The tokenizer itself, or one like it, that cuts no text."""
    if tokenizer.truncation is None:
        return tokenizer
    whole = type(tokenizer).from_str(tokenizer.to_str())
    whole.no_truncation()
    return whole


def _call(function):
    """(what it returns, None), or (None, why it failed)."""
    with _LOCK, _silence():
        try:
            return function(), None
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException as error:  # a panic is no Exception
            return None, short(error)


@contextlib.contextmanager
def _silence():
    """What is printed on the process's stderr meanwhile is lost: a panic's report goes there, past sys.stderr."""
    try:
        own = os.dup(2)
    except OSError:  # there is none
        yield
        return
    try:
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(own, 2)
        os.close(own)
