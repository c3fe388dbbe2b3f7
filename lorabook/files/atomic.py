"""Files written whole or not at all, whatever happens between. Nothing is unpickled or executed."""

import contextlib
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..errors import InputError

TEMPORARY = re.compile(r"\.lorabook-[0-9a-f]{16}\.tmp")  # of write_atomic, and of nobody else


def temporary_name():
    """The name of a file, or folder, that no other call, run or user chooses."""
    return f".lorabook-{secrets.token_hex(8)}.tmp"


def temporaries(folder):
    """What was being written in a folder: now, or when a run was killed."""
    return [path for path in Path(folder).iterdir() if TEMPORARY.fullmatch(path.name)]


def prepare_folder(path):
    """Create the output folder, with its parents, and check that it can be written to."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise InputError(
            f"cannot write to the output folder {path}: {error.strerror}. Choose another one with --out"
        ) from None
    return path


def sweep_temporaries(folder):
    """Remove what killed runs left half-written. Only for the one who holds the folder's lock."""
    for leftover in temporaries(folder):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        with contextlib.suppress(OSError):
            leftover.unlink()


def write_atomic(path, data):
    """Write bytes or text so that `path` holds either what it held before or all of `data`, whatever happens between.

    data may be an iterator of bytes too: a file of any size then takes the memory of one piece. Temporary file in
    the same folder, fsync, rename, fsync of the folder: safe against kill -9 and against power loss. Raises OSError
    with the name of `path`.
    """
    path = Path(path)
    write_together(path.parent, {path.name: data})


def write_together(folder, files):
    """The same for several {name: bytes or text} of one folder, created if need be: if one cannot be written, none is.

    The last one comes last, and goes away first if it was there: a process killed between the renames leaves a folder
    without it. So a reader that begins with it never takes a mixture of old and new.
    """
    folder, names, replaced = Path(folder), list(files), []
    temporaries, kept = {name: folder / temporary_name() for name in files}, folder / temporary_name()
    name = names[0]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for name in names:
            with open(temporaries[name], "xb") as file:
                for piece in _pieces(files[name]):
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
        if len(names) > 1 and (folder / name).exists():
            os.replace(folder / name, kept)
        for name in names:
            os.replace(temporaries[name], folder / name)
            replaced.append(name)
        if os.name == "posix":  # a folder cannot be opened on Windows; there the rename itself is journalled
            _sync_folder(folder)
    except OSError as error:
        if kept.exists() and not replaced:
            os.replace(kept, folder / names[-1])
        raise OSError(error.errno, error.strerror, str(folder / name)) from None
    finally:
        for path in (*temporaries.values(), kept):
            with contextlib.suppress(OSError):  # after the rename there is none
                os.unlink(path)


def _pieces(data):
    """Bytes to write one after another."""
    if isinstance(data, str):
        return [data.encode()]
    return data if isinstance(data, Iterator) else [data]


def _sync_folder(path):
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
