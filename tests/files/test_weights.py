"""Weights in one file or in parts with an index: written as transformers does, and refused unless they fit."""

import json
import os

import numpy as np
import pytest

from lorabook.errors import FormatError, InputError
from lorabook.files import (
    INDEX,
    WEIGHTS,
    FilesTogether,
    open_weights,
    read_weights,
    weights,
    write_safetensors,
    write_weights,
)

ARRAYS = {name: np.full((2, n), n, "f4") for n, name in enumerate(["d", "a", "c", "b"], 1)}  # 8, 16, 24, 32 bytes


def written(folder, size, arrays=ARRAYS):
    write_weights(folder.joinpath, arrays, size)
    return sorted(os.listdir(folder))


def same(got, want=ARRAYS):
    assert got.keys() == want.keys()
    for name, array in want.items():
        np.testing.assert_array_equal(got[name], array)


@pytest.fixture
def parts(tmp_path):
    """Two parts: d, a and c; b."""
    written(tmp_path, 50)
    return tmp_path


def index_of(folder):
    return json.loads((folder / INDEX).read_text())


def change_index(folder, **changes):
    places = {n: f for n, f in (index_of(folder)["weight_map"] | changes).items() if f is not None}
    (folder / INDEX).write_text(json.dumps({"weight_map": places}))


# ---- written and read ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "names"),
    [
        (80, [""]),
        (79, ["dac", "b"]),
        (48, ["dac", "b"]),
        (47, ["da", "c", "b"]),
        (24, ["da", "c", "b"]),
        (8, [*"dacb"]),
    ],
)
def test_parts_hold_up_to_their_limit(tmp_path, size, names):
    n = len(names)
    files = [f"model-{i + 1:05}-of-{n:05}.safetensors" for i in range(n)] + [INDEX] if n > 1 else [WEIGHTS]
    assert written(tmp_path, size) == files
    same(read_weights(tmp_path))
    if n > 1:
        index = index_of(tmp_path)
        assert index["metadata"] == {"total_size": 80}
        assert index["weight_map"] == {name: files[i] for i, group in enumerate(names) for name in group}
        for file, group in zip(files, names, strict=False):
            assert set(read_weights(tmp_path / file)) == set(group)


def test_shapes_are_known_before_anything_is_read(parts, monkeypatch):
    opened = []
    read = weights.read_header
    monkeypatch.setattr(weights, "read_header", lambda path: opened.append(path.name) or read(path))
    tensors = open_weights(parts)
    assert {name: t.shape for name, t in tensors.items()} == {name: a.shape for name, a in ARRAYS.items()}
    assert opened == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


def test_one_file_comes_before_an_index(parts):
    write_safetensors(parts / WEIGHTS, {"x": ARRAYS["a"]})
    same(read_weights(parts), {"x": ARRAYS["a"]})
    same(read_weights(parts / WEIGHTS), {"x": ARRAYS["a"]})


# ---- parts that do not fit -------------------------------------------------------------------------------------------

FIRST, SECOND = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))


def refused(folder, message):
    with pytest.raises(FormatError) as error:
        open_weights(folder)
    assert message in str(error.value) and INDEX in str(error.value) and "\n" not in str(error.value)


def test_a_missing_part(parts):
    (parts / SECOND).unlink()
    refused(parts, f"part {SECOND} is missing")


def test_a_part_that_the_index_does_not_know(parts):
    write_safetensors(parts / "model-00003-of-00003.safetensors", ARRAYS)
    refused(parts, "part model-00003-of-00003.safetensors is not in the index")


def test_a_missing_tensor(parts):
    change_index(parts, e=SECOND)
    refused(parts, f"e is missing in {SECOND}")


def test_a_tensor_that_the_index_does_not_know(parts):
    change_index(parts, c=None)
    refused(parts, f"c in {FIRST} is not in the index")


def test_a_tensor_in_another_part(parts):
    change_index(parts, c=SECOND)
    refused(parts, f"c is in {FIRST}, not in {SECOND}")


def test_a_tensor_in_two_parts(parts):
    write_safetensors(parts / SECOND, {"b": ARRAYS["b"], "c": ARRAYS["c"]})
    refused(parts, f"c is in {FIRST} and in {SECOND}")


@pytest.mark.parametrize(
    "file",
    [
        "../outside.safetensors",
        "/outside.safetensors",
        "..\\outside.safetensors",
        "C:outside.safetensors",
        "inside/x.safetensors",
        "model.bin",
        "",
        "..",
        "a\nb.safetensors",
        "a\0.safetensors",
        "a" * 300 + ".safetensors",
    ],
    ids=repr,
)
def test_a_part_is_a_file_beside_the_index(parts, file):
    folder = parts / "inside"
    folder.mkdir()
    for path in [*parts.glob("*.safetensors"), parts / INDEX]:
        path.rename(folder / path.name)
    write_safetensors(parts / "outside.safetensors", {"b": ARRAYS["b"]})
    change_index(folder, b=file)
    refused(folder, "expected the name of a .safetensors file beside it")


@pytest.mark.parametrize("content", [{}, {"weight_map": {}}, {"weight_map": ["a"]}, {"weight_map": {"a": 1}}], ids=str)
def test_an_index_without_a_map(parts, content):
    (parts / INDEX).write_text(json.dumps(content))
    refused(parts, "weight_map must say the file of each tensor")


def test_an_index_that_names_a_tensor_twice(parts):
    (parts / INDEX).write_text('{"weight_map": {"a": "%s", "a": "%s"}}' % (FIRST, SECOND))  # noqa: UP031
    refused(parts, "a key stands there twice: 'a'")


def test_no_weights(tmp_path):
    with pytest.raises(InputError, match=r"model\.safetensors: No such file"):
        open_weights(tmp_path)
    (tmp_path / "pytorch_model-00001-of-00002.bin").write_bytes(b"")
    with pytest.raises(InputError, match="00002.bin is a pickle"):
        open_weights(tmp_path)


# ---- files that appear together --------------------------------------------------------------------------------------


def test_nan_and_inf_are_not_written(tmp_path):
    for bad in (np.nan, np.inf):
        with pytest.raises(InputError, match="the weight c holds 1 numbers that are NaN or infinite in float32"):
            write_weights(tmp_path.joinpath, ARRAYS | {"c": np.array([1, bad], "f4")})
    assert os.listdir(tmp_path) == []


def test_files_get_their_names_together(tmp_path):
    (tmp_path / "other").write_text("stays")
    with FilesTogether(tmp_path) as place:
        for name in ("b", "a"):
            place(name).write_text(name)
        assert not {"a", "b"} & set(os.listdir(tmp_path))
    assert place.files == ["b", "a"]
    assert {name: (tmp_path / name).read_text() for name in os.listdir(tmp_path)} == {
        "a": "a",
        "b": "b",
        "other": "stays",
    }


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_or_none_of_them_does(tmp_path, error):
    with pytest.raises(error), FilesTogether(tmp_path) as place:
        place("a").write_text("a")
        place("never written")
        raise error
    assert os.listdir(tmp_path) == []


def test_they_get_them_in_order(tmp_path, monkeypatch):
    def full(written, path, replace=os.replace):
        if path.name == "c":
            raise OSError(28, "No space left on device")
        replace(written, path)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError), FilesTogether(tmp_path) as place:
        for name in "bacd":
            place(name).write_text(name)
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]
