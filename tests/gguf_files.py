"""GGUF files put together by hand, so that every number in them can be another than an honest writer's."""

import struct

import numpy as np

from lorabook.quantization import BLOCKS


def text(word):
    data = word.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(data)) + data


def value(content):
    """A metadata value with its type: bool, int (uint32), float, str, list of str or of int (int32)."""
    if isinstance(content, bool):
        return struct.pack("<IB", 7, content)
    if isinstance(content, int):
        return struct.pack("<II", 4, content)
    if isinstance(content, float):
        return struct.pack("<If", 6, content)
    if isinstance(content, str):
        return struct.pack("<I", 8) + text(content)
    if content and isinstance(content[0], int):
        return struct.pack(f"<IIQ{len(content)}i", 9, 5, len(content), *content)
    return struct.pack("<IIQ", 9, 8, len(content)) + b"".join(map(text, content))


def tensor(name, sides, type_id, offset):
    """The entry of a tensor. sides: the length of a row first."""
    return text(name) + struct.pack(f"<I{len(sides)}QIQ", len(sides), *sides, type_id, offset)


def header(keys=(), tensors=(), version=3, n_keys=None, n_tensors=None):
    """All before the data. keys: (name, bytes of `value`); tensors: bytes of `tensor`."""
    counts = (len(tensors) if n_tensors is None else n_tensors, len(keys) if n_keys is None else n_keys)
    start = b"GGUF" + struct.pack("<IQQ", version, *counts)
    return start + b"".join(text(key) + content for key, content in keys) + b"".join(tensors)


def gguf_bytes(metadata, arrays, kinds=None):
    """A whole file. kinds: {name: (type, shape)} of arrays that are raw bytes; the others are float32."""
    alignment, entries, data = metadata.get("general.alignment", 32), [], b""
    for name, array in arrays.items():
        kind, shape = (kinds or {}).get(name, ("F32", array.shape))
        data += bytes(-len(data) % alignment)
        entries.append(tensor(name, shape[::-1], BLOCKS[kind].id, len(data)))
        data += np.ascontiguousarray(array).tobytes()
    start = header([(key, value(content)) for key, content in metadata.items()], entries)
    return start + bytes(-len(start) % alignment) + data


def write_gguf(path, metadata, arrays, kinds=None):
    path.write_bytes(gguf_bytes(metadata, arrays, kinds))
    return path
