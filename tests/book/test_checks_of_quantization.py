"""Checks of the exercises of chapter 14, and the numbers of its pictures."""

from pathlib import Path

import numpy as np
import pytest

from lorabook.book import four_bits, four_bits_tables
from lorabook.book.checks import NotYet, ch14
from lorabook.files import read_csv
from lorabook.quantization import even_levels, nf4_levels, quantize_weight
from lorabook.studies import quantized

DATA = Path(__file__).parents[2] / "figures" / "data"

WRONG = [
    (ch14.bits, lambda code, block, scale, group, second: code + scale / block + second / group),
    (ch14.bits, lambda code, block, scale, group, second: code + scale / block),
    (ch14.bits, 4.127),
    (ch14.noise, lambda r, m, n: r / min(m, n)),
    (ch14.noise, lambda r, m, n: 1.0),
    (ch14.noise, 0.08),
    (ch14.better_levels, lambda values: nf4_levels()),
    (ch14.better_levels, lambda values: np.sort(np.append(even_levels(4), 0.01))),
    (ch14.better_levels, lambda values: np.linspace(-1, 1, 16)),
    (ch14.better_levels, lambda values: np.zeros(16)),
    (ch14.better_levels, 16),
    (ch14.equal_block, 32),
    (ch14.equal_block, 8),
    (ch14.equal_block, "16"),
]


@pytest.mark.parametrize(("check", "answer"), WRONG, ids=lambda value: getattr(value, "__name__", "answer"))
def test_wrong_answers_are_told(check, answer):
    with pytest.raises(NotYet) as caught:
        check(answer)
    assert "cannot be used" not in str(caught.value)


def test_error_of_blocks_is_that_of_the_format_but_for_the_scales_in_float16(rng):
    W = rng.standard_normal((32, 64)).astype("f4")
    want = np.linalg.norm(W - quantize_weight(W, "nf4").dequantize()) / np.linalg.norm(W)
    assert abs(four_bits.block_error(W, nf4_levels(), 64) / want - 1) < 1e-3


def test_numbers_of_the_drawing():
    rows = read_csv(DATA / "four_bits.csv")
    weights, levels = ([row for row in rows if row["what"] == what] for what in ("weight", "level"))
    assert (len(weights), len(levels)) == (3 * 64, 16)
    assert np.abs(np.array([row["value"] for row in levels]) - nf4_levels()).max() < 1e-5  # six digits in the file
    for row in weights:
        fits = np.abs(row["value"] - row["scale"] * nf4_levels())
        assert abs(abs(row["value"] - row["rounded"]) - fits.min()) < 1e-5


def test_trainings_are_of_each_base_with_the_same_seeds():
    rows = read_csv(DATA / "few_bits.csv")
    runs = {(row["format"], row["start"]) for row in rows}
    assert runs == set(quantized.RUNS) and len(rows) == 5 * len(runs)
    assert {(row["format"], row["start"], row["seed"]) for row in rows} == {(*run, k) for run in runs for k in range(5)}
    error = {key: value[0] for key, value in four_bits_tables.trainings(rows)[0].items()}
    for format in ("nf4", "nf3", "nf2", "int2"):
        assert error[format, "LoftQ"] < error[format, "B = 0"]


def test_tables_of_the_chapter_fit_a_page():
    rows, runs = read_csv(DATA / "format_errors.csv"), read_csv(DATA / "few_bits.csv")
    made = [four_bits_tables.formats(rows)[1], four_bits_tables.trainings(runs)[1]]
    assert max(len(line) for table in made for line in table.split("\n")) <= 100
