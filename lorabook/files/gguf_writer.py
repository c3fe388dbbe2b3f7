"""GGUF files written: the other direction of `gguf`, as strict, whole or not at all, a tensor at a time.

magic, version 3, counts | keys with the type of each value | names, shapes, types and offsets | tensors, each begun at
the next multiple of the alignment. All that the header says is known before the first number is asked for.
"""

import math
import struct

import numpy as np

from ..errors import InputError
from ..quantization import BLOCKS, quantize_blocks, row_bytes
from .atomic import write_atomic
from .configs import short
from .gguf import ARRAY, LONGEST, SCALARS, STRING
from .safetensors import check_finite

TYPES = {np.dtype(code): kind for kind, code in SCALARS.items()}
ALIGNMENT = "general.alignment"
LARGEST = {"F16": 65504.0, "BF16": 3.3895313892515355e38}
SMALL_BLOCKS = ("Q4_0", "Q4_1", "Q8_0")
WRITTEN = ("F32", "F16", "BF16", *SMALL_BLOCKS)  # what numbers can be turned into here


class GGUFArray:
    """A tensor to write: numbers, as they will stand in the file. What `GGUFTensor` is to one that is copied.

    kind: of WRITTEN. array (..., width): host numbers, or a function without arguments that gives them when they are
    written, and then their shape.
    """

    def __init__(self, array, kind="F32", shape=None):
        self.shape = tuple(array.shape) if shape is None else tuple(shape)
        self.kind, self._array = kind, array
        if kind not in WRITTEN:
            raise InputError(f"no number can be written as {short(kind)} here; expected one of {', '.join(WRITTEN)}")
        if self.shape:
            row_bytes(kind, self.shape[-1])  # whole blocks

    def raw(self):
        """The bytes, uint8 (..., bytes of a row). Raises FormatError for NaN and Inf, and what the type cannot hold."""
        array = np.asarray(self._array() if callable(self._array) else self._array)
        if array.shape != self.shape:
            raise InputError(f"expected numbers of shape {self.shape}; got {array.shape}")
        return encode_ggml(array, self.kind)


def encode_ggml(array, kind):
    """The bytes uint8 (..., bytes of a row) of numbers in one of the types WRITTEN, rounded to the nearest.

    Raises FormatError for NaN or Inf, InputError for numbers that the type cannot hold.
    """
    with np.errstate(over="ignore"):
        array = np.ascontiguousarray(array, "<f4")
    check_finite(array, "a tensor")
    if kind in LARGEST and array.size and (most := float(np.abs(array).max())) > LARGEST[kind]:
        raise InputError(f"the largest number is {most:g}; {kind} holds up to {LARGEST[kind]:g}: choose F32")
    if kind == "F32":
        raw = array
    elif kind == "F16":
        raw = array.astype("<f2")
    elif kind == "BF16":
        bits = array.view("<u4").astype("u8")
        raw = (bits + 0x7FFF + (bits >> 16 & 1) >> 16).astype("<u2")  # half to even
    else:
        raw = quantize_blocks(array.reshape(-1, BLOCKS[kind].weights), kind)
    return raw.reshape(-1).view("u1").reshape(*array.shape[:-1], row_bytes(kind, array.shape[-1]))


def write_gguf(path, metadata, tensors):
    """Write a GGUF file, atomically, which `read_gguf` reads.

    metadata: {key: value}, in this order: a text, a list of texts, a NumPy array of one axis, a NumPy scalar, each
    written in its own type, or Python's bool, int (as uint32, int32, or what holds it) and float (as float32).
    general.alignment is that of the tensors. tensors: {name: GGUFTensor, copied as it is, or GGUFArray}. Raises
    InputError, with nothing written, for what the format does not hold; OSError if the file cannot be written.

    >>> import numpy as np, lorabook.files as files
    >>> files.write_gguf("a.gguf", {"general.name": "a"}, {"w": files.GGUFArray(np.eye(2))})
    >>> metadata, tensors = files.read_gguf("a.gguf")
    >>> metadata, tensors["w"].read().tolist()
    ({'general.name': 'a'}, [[1.0, 0.0], [0.0, 1.0]])
    """
    alignment = metadata.get(ALIGNMENT, 32)
    if isinstance(alignment, bool) or not isinstance(alignment, int | np.integer) or not 8 <= alignment <= 1 << 20:
        alignment = None
    if alignment is None or (alignment := int(alignment)) & (alignment - 1):
        raise InputError(f"{ALIGNMENT} must be a power of two from 8 on; got {short(metadata[ALIGNMENT])}")
    keys = b"".join(_name(key, "key") + _value(key, value) for key, value in metadata.items())
    entries, end = [], 0
    for name, tensor in tensors.items():
        at = -(-end // alignment) * alignment
        if not 1 <= len(tensor.shape) <= 4 or 0 in tensor.shape:
            raise InputError(f"tensor {name} has the shape {tensor.shape}; expected 1 to 4 axes, none of them empty")
        sides = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *reversed(tensor.shape))
        entries.append(_name(name, "tensor") + sides + struct.pack("<IQ", BLOCKS[tensor.kind].id, at))
        end = at + _nbytes(tensor)
    start = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)) + keys + b"".join(entries)
    write_atomic(path, _file(start, tensors, alignment))


def _file(start, tensors, alignment):
    """The whole file, in pieces."""
    yield start + (bytes(-len(start) % alignment) if tensors else b"")
    end = 0
    for name, tensor in tensors.items():
        yield bytes(-end % alignment)
        try:
            raw = tensor.raw()
        except InputError as error:
            raise type(error)(f"tensor {name}: {error}") from None
        yield raw.reshape(-1).data
        end = -(-end // alignment) * alignment + _nbytes(tensor)


def _nbytes(tensor):
    return math.prod(tensor.shape[:-1]) * row_bytes(tensor.kind, tensor.shape[-1])


def _name(name, what):
    if not isinstance(name, str) or not name or not name.isprintable() or len(name) > 500:
        raise InputError(f"a {what} is called {short(name)}; expected a name")
    return _text(name, name)


def _text(text, key):
    try:
        data = text.encode()
    except UnicodeEncodeError:
        raise InputError(f"{key} holds half of a surrogate pair, which is no text: {short(text)}") from None
    if len(data) > LONGEST:
        raise InputError(f"{key} has {len(data):,} bytes; expected at most {LONGEST:,}")
    return struct.pack("<Q", len(data)) + data


def _value(key, value):
    """The type of a value and the value, as bytes."""
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _text(value, key)
    if isinstance(value, list | tuple) and all(isinstance(text, str) for text in value):
        return struct.pack("<IIQ", ARRAY, STRING, len(value)) + b"".join(_text(text, key) for text in value)
    if isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.newbyteorder("=") in TYPES:
        dtype = value.dtype.newbyteorder("<")
        head = struct.pack("<IIQ", ARRAY, TYPES[value.dtype.newbyteorder("=")], value.size)
        return head + value.astype(dtype).tobytes()
    if isinstance(value, bool | int | float | np.generic):
        number = value if isinstance(value, np.generic) else _scalar(value)
        if number is not None and (dtype := np.dtype(type(number))) in TYPES:
            return struct.pack("<I", TYPES[dtype]) + np.asarray(number, dtype.newbyteorder("<")).tobytes()
    raise InputError(
        f"{key} is {short(value)}; expected a number, a text, a list of texts or a NumPy array of one axis"
    )


def _scalar(value):
    """A Python number in the first of the format's types that holds it, or None."""
    if isinstance(value, bool):
        return np.bool_(value)
    if isinstance(value, float):
        return np.float32(value)
    ranges = (("u4", 0, 1 << 32), ("i4", -(1 << 31), 1 << 31), ("u8", 0, 1 << 64), ("i8", -(1 << 63), 1 << 63))
    return next((np.dtype(code).type(value) for code, low, high in ranges if low <= value < high), None)
