"""Safetensors files: 8 bytes with the header's length, a JSON header, then the tensors' bytes, end to end.

Every length is checked against the file before anything is allocated, and tensors are read one at a time. Values that
are no finite numbers are refused here, by the tensor's name, so that nothing is computed from them or written again.
"""

import hashlib
import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.numpy

from ..backend import array_namespace, to_numpy
from ..errors import FormatError, InputError
from .atomic import write_atomic
from .configs import parse_json, short

HEADER = 100_000_000  # bytes: the format's own limit
LARGEST = 1 << 63
DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",  # read as bits, the upper half of a float32's
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "u1",
    "BOOL": "?",
}


@dataclass(frozen=True)
class Tensor:
    """A tensor in a file: its shape is known, its numbers are still there.

    dtype: the format's word. start: its first byte. stamp: of the file when its header was read, see `file_stamp`.
    """

    path: Path
    name: str
    dtype: str
    shape: tuple
    start: int
    stamp: tuple

    @property
    def floating(self):
        """Whether it holds floating-point numbers."""
        return self.dtype == "BF16" or DTYPES[self.dtype].startswith("<f")

    def __array__(self, dtype=None, copy=None):
        """What NumPy calls where it needs the numbers: a Tensor can stand in the place of its array."""
        return self.read(dtype)

    def read(self, dtype=None, finite=True):
        """The NumPy array, as `dtype` if given; bfloat16 becomes float32, which holds it exactly.

        Raises FormatError for NaN or Inf, of which some may come from `dtype`, unless `finite` is False.
        """
        try:
            array = np.empty(self.shape, DTYPES[self.dtype])
            with open(self.path, "rb") as file:
                same = file_stamp(file) == self.stamp
                file.seek(self.start)
                count = file.readinto(array.reshape(-1).view("u1"))
        except (OSError, MemoryError) as error:
            raise InputError(f"cannot read tensor {self.name} {self.shape} of {self.path}: {error}") from None
        if not same or count != array.nbytes:  # a run may have put another file in its place
            raise FormatError(f"{self.path} has changed while it was read; try again when no run writes to it")
        if self.dtype == "BF16":
            array = (array.astype("u4") << 16).view("f4")
        if dtype is not None:
            with np.errstate(over="ignore"):
                array = array.astype(dtype, copy=False)
        if finite:
            check_finite(array, f"{self.path}: tensor {self.name}")
        return array


def check_finite(array, what):
    """Raise FormatError if numbers of an array of any backend are NaN or infinite. what: for the message."""
    xp = array_namespace(array)
    if not xp.isdtype(array.dtype, "real floating") or not math.prod(array.shape):
        return
    with np.errstate(invalid="ignore"):
        ends = float(xp.min(array)), float(xp.max(array))  # NaN if any number is
    if not all(map(math.isfinite, ends)):
        n = int(xp.sum(xp.astype(~xp.isfinite(array), xp.int64)))
        raise FormatError(
            f"{what} holds {n:,} numbers that are NaN or infinite in {str(array.dtype).rpartition('.')[2]}; nothing "
            "can be computed from it. Fetch, convert or train it again"
        )


def read_safetensors(path, finite=True):
    """({name: NumPy array}, metadata) of a safetensors file. Raises what `read_header` and `Tensor.read` raise."""
    tensors, metadata = read_header(path)
    return {name: tensor.read(finite=finite) for name, tensor in tensors.items()}, metadata


def read_header(path):
    """({name: Tensor} by name, metadata {str: str}) of a safetensors file.

    Raises InputError if it cannot be read; FormatError unless header, names, dtypes, shapes and offsets are well formed
    and the tensors cover the bytes that the file really has, without gap or overlap.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"cannot read {path}: not a file")
        with open(path, "rb") as file:
            stamp = file_stamp(file)
            size = stamp[-1]
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, HEADER):
                raise ValueError(f"a header of {length:,} bytes is promised in a file of {size:,}")
            header = parse_json(file.read(length))
        return _checked(path, header, 8 + length, stamp)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except InputError:
        raise
    except ValueError as error:
        raise FormatError(
            f"{path} is not a valid safetensors file ({short(error)}); it may be truncated or damaged. "
            "Fetch or write it again"
        ) from None


def file_stamp(file):
    """What tells an open file from one that took its place, and from itself once it is written to; its size last."""
    info = os.fstat(file.fileno())
    return info.st_dev, info.st_ino, info.st_mtime_ns, info.st_size


def _checked(path, header, start, stamp):
    if not isinstance(header, dict):
        raise ValueError("the header is no object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise ValueError("__metadata__ is no object of texts")
    tensors, spans = {}, []
    for name, entry in sorted(header.items()):
        if not name.isprintable() or len(name) > 500:
            raise ValueError(f"a tensor is called {short(name)}")
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise ValueError(f"expected dtype, shape and data_offsets of tensor {name}; got {short(entry)}")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise ValueError(f"dtype {short(dtype)} of tensor {name}; expected one of {', '.join(DTYPES)}")
        if not _sizes(shape) or not _sizes(offsets) or len(offsets) != 2:
            raise ValueError(f"shape or data_offsets of tensor {name} are no lists of sizes: {short(entry)}")
        itemsize = np.dtype(DTYPES[dtype]).itemsize
        if math.prod(side or 1 for side in shape) * itemsize >= LARGEST:  # NumPy counts without the zeros
            raise ValueError(f"no array can have the shape of tensor {name}: {shape}")
        if offsets[1] - offsets[0] != math.prod(shape) * itemsize:
            raise ValueError(f"data_offsets {offsets} of tensor {name} do not fit {dtype} of shape {shape}")
        spans.append((*offsets, name))
        tensors[name] = Tensor(path, name, dtype, tuple(shape), start + offsets[0], stamp)
    end, size = 0, stamp[-1]
    for first, last, name in sorted(spans):
        if first != end:
            raise ValueError(f"tensor {name} begins at byte {first} of the data; expected {end}")
        end = last
    if start + end != size:
        raise ValueError(f"the tensors take {end:,} of the {size - start:,} bytes that there are")
    return tensors, metadata


def _sizes(values):
    """Whether it is a list that may be a shape: NumPy has up to 64 axes."""
    return isinstance(values, list) and len(values) <= 64 and all(type(v) is int and 0 <= v < LARGEST for v in values)


def write_safetensors(path, arrays, metadata=None):
    """Write {name: array} of any backend, atomically."""
    write_atomic(path, as_safetensors(arrays, metadata))


def as_safetensors(arrays, metadata=None):
    """The bytes of a safetensors file with {name: array} of any backend."""
    return safetensors.numpy.save({n: np.asarray(to_numpy(a), order="C") for n, a in arrays.items()}, metadata)


def fingerprint(arrays, text=""):
    """sha256 over names, dtypes, shapes and bytes of {name: array}, and `text`.

    In the place of an array may stand what has it as `weight`, made when it is asked for.
    """
    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(to_numpy(getattr(arrays[name], "weight", arrays[name])))
        digest.update(f"|{name}|{array.dtype.str}|{array.shape}|".encode())
        digest.update(array.reshape(-1).view("u1"))  # its own bytes, not a copy
    return digest.hexdigest()
