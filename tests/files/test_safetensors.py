"""Safetensors files from outside: read to the bit, or refused before anything is allocated."""

import json
import os
import tracemalloc

import numpy as np
import pytest

from lorabook import files
from lorabook.errors import FormatError, InputError
from lorabook.files import read_header, read_safetensors, safetensors


def forged(folder, header, data=bytes(16)):
    """A file with this header (text, or what becomes JSON) and these bytes after it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = folder / "x.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(dtype="F32", shape=(4,), offsets=(0, 16)):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


# ---- what is read ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "?"])
def test_every_dtype_comes_back_to_the_bit(tmp_path, rng, dtype):
    arrays = {
        "b": np.arange(24).reshape(2, 3, 4).astype(dtype),
        "a": np.array(1).astype(dtype),
        "e": np.ones((0, 5), dtype),
    }
    files.write_safetensors(tmp_path / "x.safetensors", arrays, {"format": "pt"})
    again, metadata = read_safetensors(tmp_path / "x.safetensors")
    assert metadata == {"format": "pt"} and list(again) == ["a", "b", "e"]
    for name, array in arrays.items():
        assert again[name].dtype == array.dtype and again[name].shape == array.shape
        assert again[name].tobytes() == array.tobytes()


def test_bfloat16_is_read_exactly(tmp_path):
    values = np.array([1.0, -2.5, 3.140625, 2.0**127], np.float32)
    bits = (values.view(np.uint32) >> 16).astype(np.uint16)
    path = forged(tmp_path, {"w": entry("BF16", [2, 2], [0, 8])}, bits.tobytes())
    (array,) = read_safetensors(path)[0].values()
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, values.reshape(2, 2))


def test_a_header_alone_says_names_and_shapes(tmp_path):
    arrays = {"w": np.ones((3, 4), "f4"), "n": np.ones(2, "i8")}
    files.write_safetensors(tmp_path / "x.safetensors", arrays)
    found, metadata = read_header(tmp_path / "x.safetensors")
    assert {name: (t.shape, t.floating) for name, t in found.items()} == {"n": ((2,), False), "w": ((3, 4), True)}
    assert metadata == {}
    np.testing.assert_array_equal(np.asarray(found["w"]), arrays["w"])


def test_spaces_after_the_header_and_nothing_else(tmp_path):
    assert read_safetensors(forged(tmp_path, b"{}   ", b"")) == ({}, {})


# ---- what is refused -------------------------------------------------------------------------------------------------

FORGED = {
    "too large a product": {"w": entry(shape=[2**40, 2**40])},
    "more than the file": {"w": entry(shape=[2**31], offsets=[0, 2**33])},
    "negative": {"w": entry(shape=[-1])},
    "fraction": {"w": entry(shape=[4.0])},
    "boolean": {"w": entry("U8", [True], [0, 1])},
    "offset from the end": {"w": entry(offsets=[-16, 0])},
    "offsets turned round": {"w": entry(offsets=[16, 0])},
    "three offsets": {"w": entry(offsets=[0, 8, 16])},
    "a gap before": {"w": entry(offsets=[8, 24])},
    "a gap between": {"v": entry(shape=[1], offsets=[0, 4]), "w": entry(shape=[2], offsets=[8, 16])},
    "bytes left over": {"w": entry(shape=[3], offsets=[0, 12])},
    "overlap": {"v": entry(shape=[3], offsets=[0, 12]), "w": entry(shape=[2], offsets=[8, 16])},
    "the same bytes": {name: entry() for name in "vw"},
    "unknown dtype": {"w": entry("F99")},
    "dtype of another kind": {"w": entry(["F32"])},
    "a number for a shape": {"w": entry(shape=4)},
    "an entry too many": {"w": entry() | {"more": 1}},
    "an entry too few": {"w": {"dtype": "F32", "shape": [4]}},
    "no entry": {"w": None},
    "sides that no array can have": {"v": entry(shape=[0, 2**62, 2**62], offsets=[0, 0]), "w": entry()},
    "a side that no array can have": {"v": entry(shape=[0, 2**70], offsets=[0, 0]), "w": entry()},
    "too many axes": {"w": entry(shape=[1] * 64 + [4])},
    "a line in a name": {"w\nv": entry()},
    "no metadata": {"__metadata__": None, "w": entry()},
    "metadata of another kind": {"__metadata__": [1], "w": entry()},
    "metadata that is no text": {"__metadata__": {"format": 1}, "w": entry()},
    "nested metadata": {"__metadata__": {"a": {"b": "c"}}, "w": entry()},
    "a list": [],
    "nested": b'{"a":' * 50_000,
    "twice": b'{"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},' * 1
    + b' "w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}',
    "no UTF-8": b'{"\xff": 1}',
    "half of a pair": rb'{"\ud800": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}',
    "nothing": b"",
}


@pytest.mark.parametrize("header", FORGED.values(), ids=FORGED)
def test_a_header_that_lies_is_refused_before_memory_is_taken(tmp_path, header):
    path = forged(tmp_path, header)
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match="x.safetensors is not a valid safetensors file") as error:
            read_safetensors(path)
        assert tracemalloc.get_traced_memory()[1] < 3e6
    finally:
        tracemalloc.stop()
    assert "\n" not in str(error.value) and len(str(error.value)) < len(str(path)) + 260


def test_the_same_header_without_the_lie_is_read(tmp_path):
    names = {"__metadata__": {"format": "pt"}, "v": entry("U8", [0, 2**50], [0, 0]), "w": entry()}
    arrays, metadata = read_safetensors(forged(tmp_path, names))
    assert arrays["v"].shape == (0, 2**50) and not arrays["w"].any() and metadata == {"format": "pt"}


@pytest.mark.parametrize("data", [b"", b"1234567", b"\xff" * 8, (9).to_bytes(8, "little") + b"{}", bytes(8)])
def test_a_file_that_is_too_short_for_its_header(tmp_path, data):
    (tmp_path / "x.safetensors").write_bytes(data)
    with pytest.raises(FormatError, match="x.safetensors is not a valid safetensors file"):
        read_header(tmp_path / "x.safetensors")


def test_every_truncation_is_noticed(tmp_path, rng):
    files.write_safetensors(tmp_path / "x.safetensors", {"w": rng.standard_normal((2, 3))})
    data = (tmp_path / "x.safetensors").read_bytes()
    for end in range(len(data)):
        (tmp_path / "x.safetensors").write_bytes(data[:end])
        with pytest.raises(FormatError):
            read_header(tmp_path / "x.safetensors")


def test_a_header_beyond_the_limit_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors, "HEADER", 10)
    with pytest.raises(FormatError, match="a header of 11 bytes"):
        read_header(forged(tmp_path, b"{}         ", b""))
    assert read_header(forged(tmp_path, b"{}        ", b"")) == ({}, {})


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match=r"nothing\.safetensors: No such file"):
        read_header(tmp_path / "nothing.safetensors")
    with pytest.raises(InputError, match="not a file"):
        read_header(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.safetensors")
    with pytest.raises(InputError, match="not a file"):
        read_header(tmp_path / "x.safetensors")


def test_a_file_cut_short_meanwhile(tmp_path):
    files.write_safetensors(tmp_path / "x.safetensors", {"w": np.ones(9)})
    found, _ = read_header(tmp_path / "x.safetensors")
    os.truncate(tmp_path / "x.safetensors", os.path.getsize(tmp_path / "x.safetensors") - 1)
    with pytest.raises(FormatError, match="has changed while it was read"):
        found["w"].read()


# ---- numbers that are none -------------------------------------------------------------------------------------------


def test_a_file_that_another_took_the_place_of_meanwhile(tmp_path):
    path = tmp_path / "m.safetensors"
    files.write_safetensors(path, {"a": np.zeros(4, "f4")})
    safetensors, _ = read_header(path)
    files.write_safetensors(path, {"a": np.ones(4, "f4")})  # as long, and well formed: numbers of two files would mix
    with pytest.raises(FormatError, match=r"m.safetensors has changed while it was read; try again"):
        safetensors["a"].read()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["f8", "f4", "f2"])
def test_nan_and_inf_are_refused_by_the_tensors_name(tmp_path, bad, dtype):
    array = np.ones((4, 5), dtype)
    array[2, 3] = bad
    files.write_safetensors(tmp_path / "x.safetensors", {"fine": np.ones(3), "layer.weight": array})
    with pytest.raises(FormatError, match=r"x\.safetensors: tensor layer\.weight holds 1 numbers that are NaN or inf"):
        read_safetensors(tmp_path / "x.safetensors")
    again, _ = read_safetensors(tmp_path / "x.safetensors", finite=False)
    assert again["layer.weight"].tobytes() == array.tobytes()


def test_nan_in_bfloat16(tmp_path):
    path = forged(tmp_path, {"w": entry("BF16", [2], [0, 4])}, b"\x80\x3f\xc0\x7f")
    with pytest.raises(FormatError, match="tensor w holds 1 numbers"):
        read_safetensors(path)


def test_numbers_beyond_float32(tmp_path):
    files.write_safetensors(tmp_path / "x.safetensors", {"w": np.array([1.0, 1e300, -1e39])})
    tensor = read_header(tmp_path / "x.safetensors")[0]["w"]
    assert tensor.read()[1] == 1e300
    with pytest.raises(FormatError, match="tensor w holds 2 numbers that are NaN or infinite in float32"):
        np.asarray(tensor, dtype="float32")
