"""GGUF files, in which llama.cpp keeps models: a header of metadata and tensors' names, then the tensors, aligned.

Read by hand, strictly. Each length is checked against the file before anything is allocated, and the tensors must
cover the bytes that the file really has, one after another. Numbers are read a tensor at a time, and not mapped into
memory: if somebody cuts a mapped file short, the system ends the process.
"""

import math
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import FormatError, InputError
from ..quantization import BLOCKS, Quantized, dequantize_ggml, from_ggml, row_bytes
from .configs import short
from .safetensors import check_finite, file_stamp

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
KINDS = {block.id: kind for kind, block in BLOCKS.items()}
OTHERS = {3: "Q4_1 (old)", 6: "Q5_0", 7: "Q5_1", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 13: "Q5_K", 15: "Q8_K",
          16: "IQ2_XXS", 20: "IQ4_NL", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64"}  # fmt: skip
STRINGS = 1 << 22  # in one list: more than any vocabulary has
ENTRIES = 1 << 16  # keys and tensors
LONGEST = 1 << 24  # bytes of a string


@dataclass(frozen=True)
class GGUFTensor:
    """A tensor in a file: its numbers are still there. kind: of `quantization.BLOCKS`; shape: rows first, as in NumPy.

    start: its first byte. stamp: of the file when its header was read.
    """

    path: Path
    name: str
    kind: str
    shape: tuple
    start: int
    stamp: tuple

    @property
    def nbytes(self):
        """Bytes in the file."""
        return math.prod(self.shape[:-1]) * row_bytes(self.kind, self.shape[-1])

    def raw(self):
        """Its bytes, uint8 (..., bytes of a row). Raises FormatError if the file has changed since."""
        raw = np.empty((*self.shape[:-1], row_bytes(self.kind, self.shape[-1])), "u1")
        try:
            with open(self.path, "rb") as file:
                same = file_stamp(file) == self.stamp
                file.seek(self.start)
                count = file.readinto(raw.reshape(-1))
        except OSError as error:
            raise InputError(f"cannot read tensor {self.name} of {self.path}: {error.strerror}") from None
        if not same or count != raw.nbytes:
            raise FormatError(f"{self.path} has changed while it was read; try again when no run writes to it")
        return raw

    def read(self, dtype="float32"):
        """The numbers, dequantised. Raises FormatError for NaN or Inf."""
        array = dequantize_ggml(self.raw(), self.kind, self.shape)
        check_finite(array, f"{self.path}: tensor {self.name}")
        return array.astype(dtype, copy=False)

    def quantized(self):
        """The `Quantized` with the very codes and scales of the file: of type Q4_0, Q4_1 or Q8_0, two axes."""
        return checked_quantized(from_ggml(self.raw(), self.kind, self.shape), f"{self.path}: tensor {self.name}")


def checked_quantized(quantized: Quantized, what):
    """The same; FormatError if a scale is NaN or infinite."""
    for part, array in quantized.arrays.items():
        if array.dtype.kind == "f":
            check_finite(array, f"{what}, {part},")
    return quantized


def read_gguf(path, typed=False):
    """(metadata, {name: GGUFTensor}) of a GGUF file, versions 2 and 3.

    metadata: {key: int, float, bool, str, list of str, or NumPy array}; typed: numbers as NumPy's scalars of the very
    types that the file has, so that `write_gguf` writes them as they were. Raises InputError for a file that cannot be
    read, FormatError unless all of its header is well formed and the tensors fill the file.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"cannot read {path}: not a file")
        with open(path, "rb") as file:
            return _read(path, _Walk(file, typed))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except InputError:
        raise
    except ValueError as error:
        raise FormatError(
            f"{path} is not a GGUF file that can be read ({short(error)}); it may be truncated or damaged. "
            "Fetch or write it again"
        ) from None


class _Walk:
    """The header, from front to back: nothing is asked for that is more than the file has left."""

    def __init__(self, file, typed):
        self.file, self.stamp, self.typed = file, file_stamp(file), typed
        self.size, self.at = self.stamp[-1], 0

    def bytes(self, n, what):
        if n > self.size - self.at:
            raise ValueError(f"{what} takes {n:,} bytes; the file has {self.size - self.at:,} left")
        data = self.file.read(n)
        self.at += n
        if len(data) != n:
            raise ValueError(f"{what} was cut short while it was read")
        return data

    def number(self, code, what):
        return struct.unpack("<" + code, self.bytes(struct.calcsize("<" + code), what))[0]

    def string(self, what):
        length = self.number("Q", f"the length of {what}")
        if length > LONGEST:
            raise ValueError(f"{what} has {length:,} bytes; expected at most {LONGEST:,}")
        data = self.bytes(length, what)
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise ValueError(f"{what} is no UTF-8 text: {data[:40]!r}") from None

    def name(self, what, seen):
        name = self.string(what)
        if not name or not name.isprintable() or len(name) > 500:
            raise ValueError(f"{what} is {short(name)}; expected a name")
        if name in seen:
            raise ValueError(f"{what} stands there twice: {short(name)}")
        return name

    def value(self, key):
        kind = self.number("I", f"the type of {key}")
        if kind == STRING:
            return self.string(key)
        if kind == ARRAY:
            return self.array(key)
        if kind not in SCALARS:
            raise ValueError(f"{key} has the type {kind}; expected 0 to 12")
        number = self.number(SCALARS[kind], key)
        return np.dtype(SCALARS[kind]).type(number) if self.typed else number

    def array(self, key):
        kind, count = self.number("I", f"the type of {key}"), self.number("Q", f"the length of {key}")
        if kind == STRING:
            if count > STRINGS or 8 * count > self.size - self.at:
                raise ValueError(f"{key} has {count:,} strings; the file has {self.size - self.at:,} bytes left")
            return [self.string(f"string {i} of {key}") for i in range(count)]
        if kind not in SCALARS:
            raise ValueError(f"{key} is a list of the type {kind}; expected numbers or strings")
        dtype = np.dtype("<" + SCALARS[kind])
        data = np.frombuffer(self.bytes(count * dtype.itemsize, key), "u1" if kind == 7 else dtype)
        return data != 0 if kind == 7 else data


def _read(path, walk):
    if walk.bytes(min(4, walk.size), "the magic") != b"GGUF":
        raise ValueError("it does not begin with GGUF")
    version = walk.number("I", "the version")
    if version not in (2, 3):
        swapped = version & 0xFFFF == 0 and version
        raise ValueError("it is big-endian" if swapped else f"version {version}; expected 2 or 3")
    n_tensors, n_keys = walk.number("Q", "the number of tensors"), walk.number("Q", "the number of keys")
    for n, least, what in ((n_keys, 13, "keys"), (n_tensors, 32, "tensors")):
        if n > ENTRIES or n * least > walk.size - walk.at:
            raise ValueError(f"{n:,} {what} are promised in a file of {walk.size:,} bytes")
    metadata = {}
    for i in range(n_keys):
        key = walk.name(f"key {i}", metadata)
        metadata[key] = walk.value(key)
    if not _is_int(parts := metadata.get("split.count", 1)) or parts > 1:
        how = "join the parts first: llama-gguf-split --merge"
        raise FormatError(f"{path} is one of {short(parts)} parts of a model; {how}")
    alignment = metadata.get("general.alignment", 32)
    if not _is_int(alignment) or not 8 <= alignment <= 1 << 20 or alignment & (alignment - 1):
        raise ValueError(f"general.alignment is {short(alignment)}; expected a power of two from 8 on")
    alignment = int(alignment)
    entries = {}
    for i in range(n_tensors):
        name = walk.name(f"tensor {i}", entries)
        entries[name] = _entry(walk, name)
    return metadata, _placed(path, walk, entries, alignment)


def _is_int(value):
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _entry(walk, name):
    """(kind, shape, offset) of a tensor."""
    n = walk.number("I", f"the number of axes of {name}")
    if not 1 <= n <= 4:
        raise ValueError(f"tensor {name} has {n:,} axes; expected 1 to 4")
    sides = [walk.number("Q", f"the shape of {name}") for _ in range(n)]
    type_id = walk.number("I", f"the type of {name}")
    if type_id not in KINDS:
        came = f"{OTHERS[type_id]} ({type_id})" if type_id in OTHERS else type_id
        raise ValueError(f"tensor {name} has the type {came}; only {', '.join(KINDS.values())} are read here")
    kind, offset = KINDS[type_id], walk.number("Q", f"the offset of {name}")
    if not all(0 < side < 1 << 40 for side in sides):
        raise ValueError(f"tensor {name} has the sides {sides}")
    if sides[0] % (whole := BLOCKS[kind].weights):
        raise ValueError(
            f"rows of tensor {name} have {sides[0]} weights; expected whole blocks of {kind}, {whole} each"
        )
    return kind, tuple(reversed(sides)), offset


def _placed(path, walk, entries, alignment):
    """The tensors, which stand one after another, each at the next multiple of the alignment."""

    def aligned(at):
        return -(-at // alignment) * alignment

    base = end = aligned(walk.at)
    tensors = {}
    for name, (kind, shape, offset) in sorted(entries.items(), key=lambda item: item[1][2]):
        if base + offset != aligned(end):
            raise ValueError(f"tensor {name} begins at byte {offset:,} of the data; expected {aligned(end) - base:,}")
        tensors[name] = GGUFTensor(path, name, kind, shape, base + offset, walk.stamp)
        end = base + offset + tensors[name].nbytes
        if end > walk.size:
            raise ValueError(f"tensor {name} ends at byte {end:,} of a file of {walk.size:,}")
    if entries and walk.size > aligned(end):
        raise ValueError(f"the tensors end at byte {end:,} of a file of {walk.size:,}")
    return {name: tensors[name] for name in entries}
