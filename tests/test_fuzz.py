"""No file makes a reader raise anything but InputError, in one line that names the file, and soon."""

import importlib
import os
from pathlib import Path

import fuzz
import pytest

from lorabook import InputError

A_FEW, MANY = 200, 100_000

for more in sorted(Path(__file__).parent.glob("fuzz_*.py")):  # they add to GENERATORS
    importlib.import_module(more.stem)


@pytest.mark.parametrize("name", fuzz.GENERATORS)
def test_a_few_malformed_files(name, tmp_path):
    refused = [fuzz.refusal(name, seed, tmp_path) for seed in range(A_FEW)]
    assert any(refused)


@pytest.mark.fuzz
@pytest.mark.parametrize("name", fuzz.GENERATORS)
def test_many_malformed_files(name, tmp_path):
    first = int(os.environ.get("LORABOOK_FUZZ_SEED", A_FEW))
    for seed in range(first, first + MANY // len(fuzz.GENERATORS)):
        try:
            fuzz.refusal(name, seed, tmp_path)
        except Exception as error:
            error.add_note(f"file {seed} of {name}: fuzz.refusal({name!r}, {seed}, folder)")
            raise


def fails(error):
    def read(path):
        raise error

    return fuzz.Kind(lambda rng: b"", read, ".csv")


@pytest.mark.parametrize(
    ("kind", "caught"),
    [
        (fails(ValueError("mine.csv")), ValueError),
        (fails(InputError("no name")), AssertionError),
        (fails(InputError("mine.csv\nand more")), AssertionError),
        (fails(InputError("mine.csv" + "a" * 1000)), AssertionError),
        (fuzz.Kind(lambda rng: b"", lambda path: [None for _ in iter(int, 1)], ".csv"), TimeoutError),
    ],
)
def test_a_reader_that_is_wrong_is_caught(kind, caught, tmp_path, monkeypatch):
    monkeypatch.setitem(fuzz.GENERATORS, "mine", kind)
    monkeypatch.setattr(fuzz, "SECONDS", 0.05)
    with pytest.raises(caught):
        fuzz.refusal("mine", 0, tmp_path)
