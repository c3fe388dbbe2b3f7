"""Checks of the exercises of chapter 06, and what its drawing measures."""

import math
from pathlib import Path

import numpy as np
import pytest

from lorabook.book import rank_tables
from lorabook.book.checks import NotYet, ch06
from lorabook.files import read_csv

DATA = Path(__file__).parents[2] / "figures" / "data"

WRONG = [
    (ch06.budget, ("svd", 1172)),
    (ch06.budget, ("lora", 586)),
    (ch06.budget, 1172),
    (ch06.best_multiple, lambda cosine: 1 - cosine**2),
    (ch06.best_multiple, 0.98),
    (ch06.below_the_noise, 0.02),
    (ch06.below_the_noise, 0.02 * (1 - 32 / 512)),
    (ch06.below_the_noise, 1),
    (ch06.impatience, "no"),
]


@pytest.mark.parametrize(("check", "answer"), WRONG, ids=lambda value: getattr(value, "__name__", "answer"))
def test_wrong_answers_are_told(check, answer):
    with pytest.raises(NotYet) as caught:
        check(answer)
    assert "cannot be used" not in str(caught.value)


def test_a_start_whose_product_is_not_the_truncation_is_told():
    def without_scaling(matrix, r, s):
        U, sigma, Vt = np.linalg.svd(matrix, full_matrices=False)
        return Vt[:r], U[:, :r] * sigma[:r]

    with pytest.raises(NotYet, match="s B A is not the truncation"):
        ch06._put(None, {"fc1": np.eye(6)}, without_scaling)
    with pytest.raises(NotYet, match="shapes"):
        ch06._put(None, {"fc1": np.eye(6)}, lambda matrix, r, s: (matrix, matrix))


def test_each_update_of_the_drawing_is_where_its_distance_says():
    rows = read_csv(DATA / "updates.csv")
    for row in rows:
        squared = 1 + row["length"] ** 2 - 2 * row["length"] * row["cosine"]
        assert math.isclose(row["distance"] ** 2, squared, rel_tol=1e-5, abs_tol=1e-5)  # of six digits in the file
    cut = [row for row in rows if "svd" in row["update"]]
    assert len(cut) == 10 and all(math.isclose(row["cosine"], row["length"], rel_tol=1e-5) for row in cut)


def test_tables_of_the_chapter_fit_a_page():
    rows = read_csv(DATA / "rank_vs_error.csv")
    rates, bounds = (read_csv(DATA / f"{name}.csv") for name in ("learning_rates", "planted_bound"))
    made = [f(rows) for f in (rank_tables.right, rank_tables.distances, rank_tables.costs)]
    made += [rank_tables.repeated(rows[:3], rows), rank_tables.rates(rates), rank_tables.bound_ratios(bounds)]
    assert max(len(line) for table in made for line in table.split("\n")) <= 100
