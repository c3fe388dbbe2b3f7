"""Files: atomic writing, safetensors, checkpoints. Nothing is unpickled or executed."""

import contextlib
import hashlib
import json
import os
import re
import secrets
import tempfile
from pathlib import Path

import numpy as np
import safetensors.numpy

from .backend import to_numpy
from .configs import parse_json, short
from .errors import FormatError, InputError
from .tensors import read_safetensors

# ---- writing ---------------------------------------------------------------------------------------------------------

TEMPORARY = re.compile(r"\.lorabook-[0-9a-f]{16}\.tmp")  # of write_atomic, and of nobody else


def temporary_name():
    """A file name that no other call, run or user chooses."""
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
        with contextlib.suppress(OSError):
            leftover.unlink()


def write_atomic(path, data):
    """Write bytes or text so that `path` holds either what it held before or all of `data`, whatever happens between.

    Temporary file in the same folder, fsync, rename, fsync of the folder: safe against kill -9 and against power loss.
    Raises OSError with the name of `path`.
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
                file.write(files[name].encode() if isinstance(files[name], str) else files[name])
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


def _sync_folder(path):
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


# ---- safetensors -----------------------------------------------------------------------------------------------------


def write_safetensors(path, arrays, metadata=None):
    """Write {name: array} of any backend, atomically."""
    write_atomic(path, as_safetensors(arrays, metadata))


def as_safetensors(arrays, metadata=None):
    """The bytes of a safetensors file with {name: array} of any backend."""
    return safetensors.numpy.save({n: np.asarray(to_numpy(a), order="C") for n, a in arrays.items()}, metadata)


def fingerprint(arrays, text=""):
    """sha256 over names, dtypes, shapes and bytes of {name: array}, and `text`."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(to_numpy(arrays[name]))
        digest.update(f"|{name}|{array.dtype.str}|{array.shape}|".encode())
        digest.update(array.reshape(-1).view("u1"))  # its own bytes, not a copy
    return digest.hexdigest()


# ---- checkpoints: one safetensors file with a checksum over everything in it -----------------------------------------


def write_checkpoint(path, arrays, state):
    """Write arrays and a JSON-able `state` as one verified safetensors file, atomically; same content, same bytes."""
    text = json.dumps(state, sort_keys=True, allow_nan=False)
    write_safetensors(path, arrays, {"lorabook": f"{fingerprint(arrays, text)} {text}"})


def read_checkpoint(path):
    """(arrays, state) of `write_checkpoint`. Raises FormatError if a single bit differs from what was written."""
    arrays, metadata = read_safetensors(path, finite=False)  # what training keeps may be any number
    if list(metadata) != ["lorabook"]:
        raise FormatError(
            f"{path} is no lorabook checkpoint: expected lorabook in its metadata, got {sorted(metadata)}"
        )
    sha256, _, text = metadata["lorabook"].partition(" ")
    if fingerprint(arrays, text) != sha256:
        raise FormatError(f"{path} is damaged: its content does not match its sha256. Restore a copy, or start over")
    try:
        state = parse_json(text)
    except ValueError as error:
        raise FormatError(f"{path}: its state is not JSON: {short(error)}") from None
    if not isinstance(state, dict):
        raise FormatError(f"{path}: expected its state to be a JSON object; got {short(state)}")
    return arrays, state
