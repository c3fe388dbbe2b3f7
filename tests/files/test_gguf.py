"""GGUF files: what the library `gguf` writes is read, what no writer wrote is refused in one line."""

import struct

import gguf
import numpy as np
import pytest
from checks import same_bits
from gguf_files import header, tensor, value, write_gguf

from lorabook import FormatError, InputError
from lorabook.files import read_gguf
from lorabook.quantization import BLOCKS

TYPES = gguf.GGMLQuantizationType


@pytest.fixture
def written(tmp_path, rng):
    """(path, {name: (float32 array, type)}) of a file as the library writes it."""
    path, W = tmp_path / "a.gguf", {}
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("a.count", 7)
    writer.add_float32("a.number", 0.1)
    writer.add_bool("a.flag", True)
    writer.add_string("a.text", "caf\u00e9")
    writer.add_array("a.words", ["x", "", "\u4e2d"])
    writer.add_array("a.numbers", [1, -2, 3])
    for kind in ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q8_0"):
        array = rng.standard_normal((3, 64)).astype("f4")
        W[kind.lower()] = array, TYPES[kind]
        writer.add_tensor(kind.lower(), gguf.quants.quantize(array, TYPES[kind]), raw_dtype=TYPES[kind])
    writer.add_tensor("vector", np.arange(5, dtype="f4"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, W


def test_what_the_library_writes_is_read(written):
    path, W = written
    metadata, tensors = read_gguf(path)
    assert metadata["general.architecture"] == "llama" and metadata["a.text"] == "caf\u00e9"
    assert (metadata["a.count"], metadata["a.flag"], metadata["a.words"]) == (7, True, ["x", "", "\u4e2d"])
    assert metadata["a.number"] == np.float32(0.1) and metadata["a.numbers"].tolist() == [1, -2, 3]
    assert list(tensors) == [*W, "vector"] and tensors["vector"].read().tolist() == [0, 1, 2, 3, 4]
    for name, (array, kind) in W.items():
        raw = gguf.quants.quantize(array, kind)
        assert tensors[name].kind == kind.name and tensors[name].shape == (3, 64)
        assert same_bits(tensors[name].raw(), np.ascontiguousarray(raw).view("u1").reshape(3, -1))
        assert same_bits(tensors[name].read(), gguf.quants.dequantize(raw, kind))
        assert tensors[name].read("float64").dtype == np.float64
    for name in ("q4_0", "q4_1", "q8_0"):
        assert same_bits(tensors[name].quantized().dequantize(), tensors[name].read())


@pytest.mark.parametrize("alignment", [8, 64, 4096])
def test_alignment(tmp_path, alignment):
    arrays = {"a": np.ones((1, 3), "f4"), "b": np.full((2, 5), 2, "f4")}
    path = write_gguf(tmp_path / "x.gguf", {"general.alignment": alignment}, arrays)
    assert {name: t.read().ravel()[0] for name, t in read_gguf(path)[1].items()} == {"a": 1, "b": 2}
    assert all(t.start % alignment == 0 for t in read_gguf(path)[1].values())


def test_a_file_of_version_2_and_one_without_tensors(tmp_path):
    (path := tmp_path / "x.gguf").write_bytes(header(version=2, keys=[("a", value(1))]))
    assert read_gguf(path) == ({"a": 1}, {})


U32, U64 = struct.Struct("<I").pack, struct.Struct("<Q").pack
ONE = tensor("t", (32, 2), BLOCKS["Q4_0"].id, 0)
DATA = bytes(36)
LIES = {
    "empty": (b"", "does not begin with GGUF"),
    "another magic": (b"GGML" + bytes(40), "does not begin with GGUF"),
    "cut in the header": (header()[:20], "8 bytes; the file has 4 left"),
    "version 1": (header(version=1), "version 1; expected 2 or 3"),
    "big-endian": (header(version=3 << 24), "it is big-endian"),
    "2^60 tensors": (header(n_tensors=1 << 60), "1,152,921,504,606,846,976 tensors are promised"),
    "2^60 keys": (header(n_keys=1 << 60), "keys are promised in a file of 24 bytes"),
    "a key too many": (header(keys=[("a", value(1))], n_keys=2) + bytes(30), "key 1 is ''; expected a name"),
    "a long key": (header(n_keys=1) + U64(1 << 62) + bytes(30), "key 0 has 4,611,686,018,427,387,904 bytes"),
    "a long text": (
        header(n_keys=1) + b"\1" + bytes(7) + b"a" + U32(8) + U64(1000),
        "takes 1,000 bytes; the file has 0",
    ),
    "many texts": (
        header(n_keys=1) + b"\1" + bytes(7) + b"a" + U32(9) + U32(8) + U64(1 << 40),
        "1,099,511,627,776 str",
    ),
    "many numbers": (
        header(n_keys=1) + b"\1" + bytes(7) + b"a" + U32(9) + U32(6) + U64(1 << 61),
        "the file has 0 left",
    ),
    "a list of lists": (header(n_keys=1) + b"\1" + bytes(7) + b"a" + U32(9) + U32(9) + U64(1), "a list of the type 9"),
    "an unknown type": (header(n_keys=1) + b"\1" + bytes(7) + b"a" + U32(77) + bytes(8), "a has the type 77"),
    "a key twice": (header(keys=[("a", value(1)), ("a", value(2))]), "stands there twice: 'a'"),
    "no text": (header(n_keys=1) + b"\1" + bytes(7) + b"\xff" + bytes(12), "no UTF-8 text"),
    "a tensor twice": (header(tensors=[ONE, ONE]) + bytes(200), "tensor 1 stands there twice: 't'"),
    "five axes": (header(tensors=[tensor("t", (1,) * 5, 0, 0)]) + bytes(99), "5 axes; expected 1 to 4"),
    "no axes": (header(tensors=[tensor("t", (), 0, 0)]) + bytes(99), "0 axes; expected 1 to 4"),
    "2^63 axes": (header(n_tensors=1) + U64(1) + b"t" + U32(2**32 - 1) + bytes(99), "4,294,967,295 axes"),
    "a side of nothing": (header(tensors=[tensor("t", (32, 0), 0, 0)]) + bytes(99), "has the sides [32, 0]"),
    "huge": (header(tensors=[tensor("t", (1 << 39,) * 4, 0, 0)]) + bytes(99), "ends at byte"),
    "a type not read here": (
        header(tensors=[tensor("t", (256,), 13, 0)]) + bytes(300),
        "type Q5_K (13); only F32, F16",
    ),
    "no type": (header(tensors=[tensor("t", (256,), 999, 0)]) + bytes(300), "the type 999; only F32"),
    "half a block": (
        header(tensors=[tensor("t", (33,), 2, 0)]) + bytes(300),
        "33 weights; expected whole blocks of Q4_0, 32 each",
    ),
    "behind the end": (
        header(tensors=[tensor("t", (32, 2), 2, 1 << 40)]) + bytes(99),
        "begins at byte 1,099,511,627,776",
    ),
    "not aligned": (
        header(tensors=[tensor("t", (32, 2), 2, 8)]) + bytes(99),
        "begins at byte 8 of the data; expected 0",
    ),
    "one over the other": (
        header(tensors=[ONE, tensor("u", (32, 2), 2, 0)]) + bytes(200),
        "tensor u begins at byte 0 of the data; expected 64",
    ),
    "alignment of 0": (header(keys=[("general.alignment", value(0))]), "general.alignment is 0"),
    "alignment of 12": (header(keys=[("general.alignment", value(12))]), "general.alignment is 12"),
    "alignment of 2^31": (header(keys=[("general.alignment", value(1 << 31))]), "general.alignment is 2147483648"),
    "alignment in words": (header(keys=[("general.alignment", value("32"))]), "general.alignment is '32'"),
    "in parts": (header(keys=[("split.count", value(3))]), "one of 3 parts of a model; join the parts first"),
}


@pytest.mark.parametrize("name", LIES)
def test_lies_are_refused(tmp_path, name):
    content, message = LIES[name]
    (path := tmp_path / "lie.gguf").write_bytes(content)
    with pytest.raises(FormatError) as caught:
        read_gguf(path)
    assert message in str(caught.value) and "lie.gguf" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("cut", [1, 30, 37, 90])
def test_a_file_cut_short_and_one_with_more(tmp_path, cut):
    path = write_gguf(tmp_path / "x.gguf", {}, {"t": np.ones((2, 64), "f4")})
    content = path.read_bytes()
    path.write_bytes(content[:-cut])
    with pytest.raises(FormatError, match="ends at byte|cut short|left"):
        read_gguf(path)
    path.write_bytes(content + bytes(cut + 32))
    with pytest.raises(FormatError, match="the tensors end at byte"):
        read_gguf(path)


def test_a_file_that_changes_under_the_reader(tmp_path):
    path = write_gguf(tmp_path / "x.gguf", {}, {"t": np.ones((2, 64), "f4")})
    lazy = read_gguf(path)[1]["t"]
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(FormatError, match="has changed while it was read"):
        lazy.read()
    other = write_gguf(tmp_path / "y.gguf", {}, {"t": np.zeros((2, 64), "f4")})
    other.replace(path)  # as long as the first
    with pytest.raises(FormatError, match="has changed while it was read"):
        lazy.read()
    path.unlink()
    with pytest.raises(InputError, match=r"cannot read tensor t of .*x\.gguf: No such file"):
        lazy.read()


def test_numbers_that_are_none(tmp_path):
    W = np.ones((2, 64), "f4")
    W[1, 3] = np.nan
    with pytest.raises(FormatError, match=r"x\.gguf: tensor t holds 1 numbers that are NaN"):
        read_gguf(write_gguf(tmp_path / "x.gguf", {}, {"t": W}))[1]["t"].read()
    raw = gguf.quants.quantize(np.ones((2, 64), "f4"), TYPES.Q4_0)
    raw[0, :2] = np.array([np.inf], "<f2").view("u1")
    lazy = read_gguf(write_gguf(tmp_path / "y.gguf", {}, {"t": raw}, kinds={"t": ("Q4_0", (2, 64))}))[1]["t"]
    for read in (lazy.read, lazy.quantized):
        with pytest.raises(FormatError, match=r"y\.gguf: tensor t.* NaN or infinite"):
            read()


@pytest.mark.parametrize("make", ["missing", "folder"])
def test_what_is_no_file(tmp_path, make):
    path = tmp_path / "x.gguf"
    if make == "folder":
        path.mkdir()
    with pytest.raises(InputError, match=r"cannot read .*x\.gguf"):
        read_gguf(path)
