"""What the writer writes, our reader and the library gguf's read: values in their types, tensors number for number."""

import os
import weakref

import numpy as np
import pytest
from checks import same_bits

from lorabook import FormatError, InputError
from lorabook.files import GGUFArray, encode_ggml, read_gguf, write_gguf
from lorabook.quantization import BLOCKS, dequantize_ggml

KINDS = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8")
METADATA = {
    "general.architecture": "llama",
    "texts": ["a", "", "\u0120\u4e2d"],
    "none": [],
    "true": True,
    "half": 0.1,
    "negative": -5,
    "large": 1 << 40,
    "largest": (1 << 64) - 1,
    "least": -(1 << 63),
    **{f"scalar {code}": np.dtype(code).type(3) for code in KINDS},
    **{f"list {code}": np.arange(3, dtype=code) for code in KINDS},
    "list of truths": np.array([True, False]),
    "big-endian": np.arange(3, dtype=">i4"),
}  # fmt: skip


def plain(value):
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def arrays_of(rng):
    return {
        "w": GGUFArray(rng.standard_normal((3, 5)).astype("f4")),
        "one": GGUFArray(np.ones(1, "f8")),
        "half": GGUFArray(rng.standard_normal((2, 3, 7)), "F16"),
        "brain": GGUFArray(rng.standard_normal((4, 3)), "BF16"),
        "q8": GGUFArray(rng.standard_normal((3, 64)), "Q8_0"),
        "q4": GGUFArray(rng.standard_normal((2, 32)), "Q4_1"),
    }


@pytest.mark.parametrize("alignment", [None, 8, np.uint32(64)])
def test_what_is_written_is_read(tmp_path, rng, alignment):
    path, tensors = tmp_path / "a.gguf", arrays_of(rng)
    metadata = METADATA | ({} if alignment is None else {"general.alignment": alignment})
    write_gguf(path, metadata, tensors)
    found, own = read_gguf(path)
    assert list(found) == list(metadata) and list(own) == list(tensors)
    for key, value in metadata.items():
        expected = np.float32(0.1).item() if key == "half" else plain(value)
        assert plain(found[key]) == expected, key
    for name, tensor in tensors.items():
        assert (own[name].kind, own[name].shape) == (tensor.kind, tensor.shape)
        assert same_bits(own[name].raw(), tensor.raw())
        assert own[name].start % (alignment or 32) == 0
    assert same_bits(own["w"].read(), tensors["w"]._array)
    assert os.listdir(tmp_path) == ["a.gguf"]


def test_a_file_is_copied_byte_for_byte(tmp_path, rng):
    first, second = tmp_path / "a.gguf", tmp_path / "b.gguf"
    write_gguf(first, METADATA, arrays_of(rng))
    write_gguf(second, *read_gguf(first, typed=True))
    assert first.read_bytes() == second.read_bytes()


def test_without_tensors(tmp_path):
    write_gguf(tmp_path / "a.gguf", {"a": 1}, {})
    assert read_gguf(tmp_path / "a.gguf") == ({"a": 1}, {})


def test_the_librarys_reader_reads_the_same(tmp_path, rng):
    gguf = pytest.importorskip("gguf", reason="comparison with the library: pip install gguf")
    path, tensors = tmp_path / "a.gguf", arrays_of(rng)
    write_gguf(path, METADATA, tensors)
    theirs = gguf.GGUFReader(path)
    for key, value in METADATA.items():
        if key != "none":  # of an empty list the library cannot tell what it would hold
            expected = np.float32(0.1).item() if key == "half" else plain(value)
            assert theirs.fields[key].contents() == expected, key
    kinds = {name: theirs.fields[f"scalar {name}"].types[0].name for name in ("u1", "i2", "u4", "i8", "f4", "f8")}
    assert kinds == {"u1": "UINT8", "i2": "INT16", "u4": "UINT32", "i8": "INT64", "f4": "FLOAT32", "f8": "FLOAT64"}
    for tensor in theirs.tensors:
        own = tensors[tensor.name]
        assert (own.kind, own.shape) == (tensor.tensor_type.name, tuple(reversed(tensor.shape.tolist())))
        want = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(own.shape)
        assert same_bits(dequantize_ggml(own.raw(), own.kind, own.shape), want.astype("f4"))
    for kind in ("F16", "BF16", "Q8_0", "Q4_0", "Q4_1"):
        array = rng.standard_normal((5, 64)).astype("f4")
        want = gguf.quants.quantize(array, gguf.GGMLQuantizationType[kind])
        assert same_bits(encode_ggml(array, kind), want.view("u1").reshape(5, -1)), kind


def test_bfloat16_is_the_nearest_and_a_tie_is_even():
    bits = [0x3F807FFF, 0x3F808000, 0x3F808001, 0x3F818000, 0xBF818000, 0x7F7F0000, 0x00000001, 0x80000000]
    raw = encode_ggml(np.array(bits, "u4").view("f4"), "BF16").view("<u2")
    assert raw.tolist() == [0x3F80, 0x3F80, 0x3F81, 0x3F82, 0xBF82, 0x7F7F, 0, 0x8000]
    with pytest.raises(InputError, match="the largest number is"):
        encode_ggml(np.array([0x7F7FFFFF], "u4").view("f4"), "BF16")


@pytest.mark.parametrize(
    ("metadata", "tensors", "message"),
    [
        ({"a": None}, {}, "a is None; expected a number, a text, a list of texts or a NumPy array of one axis"),
        ({"a": [1, 2]}, {}, "a is [1, 2]; expected a number"),
        ({"a": ["x", 2]}, {}, "expected a number, a text, a list of texts"),
        ({"a": 1 << 64}, {}, "a is 18446744073709551616"),
        ({"a": np.zeros((2, 2))}, {}, "a NumPy array of one axis"),
        ({"a": np.float16(1)}, {}, "expected a number"),
        ({"a": {"b": 1}}, {}, "expected a number"),
        ({"a": "\ud800"}, {}, "a holds half of a surrogate pair"),
        ({"": 1}, {}, "a key is called ''; expected a name"),
        ({1: 1}, {}, "a key is called 1"),
        ({"a\n": 1}, {}, "a key is called"),
        ({"general.alignment": 24}, {}, "general.alignment must be a power of two from 8 on; got 24"),
        ({"general.alignment": 4}, {}, "got 4"),
        ({"general.alignment": True}, {}, "got True"),
        ({"general.alignment": 2.0}, {}, "got 2.0"),
        ({}, {"": GGUFArray(np.ones(1))}, "a tensor is called ''"),
        ({}, {"a": GGUFArray(np.ones((1,) * 5))}, "tensor a has the shape (1, 1, 1, 1, 1); expected 1 to 4 axes"),
        ({}, {"a": GGUFArray(np.float32(1))}, "tensor a has the shape (); expected 1 to 4 axes"),
        ({}, {"a": GGUFArray(np.ones((2, 0)))}, "expected 1 to 4 axes, none of them empty"),
        ({}, {"a": GGUFArray(np.array([1, np.nan]))}, "tensor a: a tensor holds 1 numbers that are NaN or infinite"),
        ({}, {"a": GGUFArray(np.array([1e39]))}, "tensor a: a tensor holds 1 numbers that are NaN or infinite"),
        ({}, {"a": GGUFArray(np.array([1e5]), "F16")}, "tensor a: the largest number is 100000; F16 holds up to 65504"),
        (
            {},
            {"a": GGUFArray(np.full(32, 1e8), "Q8_0")},
            "tensor a: the weight holds numbers too large for the float16",
        ),
        ({}, {"a": GGUFArray(lambda: np.ones(3), "F32", (2,))}, "tensor a: expected numbers of shape (2,); got (3,)"),
    ],
)
def test_what_is_refused(tmp_path, metadata, tensors, message):
    path = tmp_path / "a.gguf"
    path.write_text("was here")
    with pytest.raises(InputError) as caught:
        write_gguf(path, metadata, tensors)
    assert message in str(caught.value)
    assert path.read_text() == "was here" and os.listdir(tmp_path) == ["a.gguf"]


def test_kinds_that_numbers_cannot_be_turned_into():
    assert {"Q4_K", "Q6_K"} < BLOCKS.keys()
    for kind in ("Q4_K", "F64", None):
        with pytest.raises(InputError, match="no number can be written as"):
            GGUFArray(np.ones((2, 256)), kind)
    with pytest.raises(InputError, match="a row of 33 weights cannot be of type Q8_0"):
        GGUFArray(np.ones((2, 33)), "Q8_0")


def test_a_copied_file_that_changes_meanwhile(tmp_path, rng):
    path = tmp_path / "a.gguf"
    write_gguf(path, {}, arrays_of(rng))
    found = read_gguf(path)
    path.write_bytes(path.read_bytes() + bytes(32))
    with pytest.raises(FormatError, match="has changed while it was read"):
        write_gguf(tmp_path / "b.gguf", *found)
    assert os.listdir(tmp_path) == ["a.gguf"]


@pytest.mark.parametrize("kind", ["F32", "F16"])
def test_a_large_file_takes_the_memory_of_one_tensor(tmp_path, kind):
    """Numbers are asked for when they are written, one tensor after another."""
    refs = []

    def numbers():
        assert sum(ref() is not None for ref in refs) <= 1
        array = np.ones((4, 8), "f4")
        refs.append(weakref.ref(array))
        return array

    write_gguf(tmp_path / "a.gguf", {}, {f"w{i}": GGUFArray(numbers, kind, (4, 8)) for i in range(5)})
    assert len(refs) == 5
