import numpy as np
import pytest
from checks import sweep_setting, without_seconds

from lorabook import InputError
from lorabook.bounds import best_losses, bound_sweep, trained_loss
from lorabook.data import Task, planted
from lorabook.sweep import Setting, learning_rate_sweep, rank_sweep
from lorabook.tables import median_by

RANKS = [1, 2, 3, 8]


@pytest.fixture(scope="module")
def setting():
    return sweep_setting()


@pytest.fixture(scope="module")
def rows(setting):
    return rank_sweep(setting, RANKS, [0, 1])


def of(rows, method):
    return {(row["r"], row["seed"]): row for row in rows if row["method"] == method}


def test_one_row_for_every_method_rank_and_seed(rows):
    assert [len(of(rows, m)) for m in ("full", "svd", "activation_svd", "lora")] == [2, 8, 8, 8]
    assert len(rows) == 26


def test_no_row_is_below_the_bound(rows):
    bound = of(rows, "svd")
    for method in ("activation_svd", "lora"):
        for key, row in of(rows, method).items():
            assert row["weight_error"] >= bound[key]["weight_error"] * (1 - 1e-12) - 1e-12


def test_a_full_rank_truncation_is_the_full_model(rows):
    full = of(rows, "full")
    for method in ("svd", "activation_svd"):
        for seed in (0, 1):
            row = of(rows, method)[8, seed]
            assert row["weight_error"] < 1e-6
            assert row["test_loss"] == pytest.approx(full[None, seed]["test_loss"], rel=1e-4)


def test_parameters_are_counted_with_the_rank_capped_at_the_smaller_side(rows):
    assert of(rows, "full")[None, 0]["params"] == 7 * 9 + 9 * 8 + 8 * 3
    for r in RANKS:
        expected = min(r, 7) * (7 + 9) + min(r, 8) * (9 + 8) + min(r, 3) * (8 + 3)
        assert {of(rows, m)[r, 0]["params"] for m in ("svd", "activation_svd", "lora")} == {expected}


def test_results_do_not_depend_on_the_number_of_jobs(setting, rows):
    assert without_seconds(rank_sweep(setting, RANKS, [0, 1], jobs=2)) == without_seconds(rows)


def test_a_rank_named_twice_counts_once(setting):
    assert len(rank_sweep(setting, [2, 1, 2], [0])) == 1 + 3 * 2


def test_the_base_is_left_alone(setting):
    before = {n: a.copy() for n, a in setting.base.named_params().items()}
    rank_sweep(setting, [1], [0])
    for name, array in setting.base.named_params().items():
        np.testing.assert_array_equal(array, before[name])


def test_sweep_on_another_backend(setting, rows):
    strict = Setting(setting.base, setting.task, epochs=5, batch_size=10, backend="array_api_strict")
    for got, want in zip(
        rank_sweep(strict, [2], [0]), [r for r in rows if r["seed"] == 0 and r["r"] in (2, None)], strict=True
    ):
        assert (got["method"], got["params"]) == (want["method"], want["params"])
        assert got["weight_error"] == pytest.approx(want["weight_error"], rel=1e-3)
        assert got["test_loss"] == pytest.approx(want["test_loss"], rel=1e-3)


def test_learning_rates_are_chosen_without_the_test_rows(setting):
    rows = learning_rate_sweep(setting, (None, 2), (1e-3, 1e-2), [0])
    assert [(row["r"], row["lr"]) for row in rows] == [(None, 1e-3), (None, 1e-2), (2, 1e-3), (2, 1e-2)]
    scrambled = Task(
        "scrambled", setting.task.x_train, setting.task.y_train, setting.task.x_test * 9, setting.task.y_test
    )
    other = learning_rate_sweep(Setting(setting.base, scrambled, epochs=5, batch_size=10), (None, 2), (1e-3, 1e-2), [0])
    assert [row["test_loss"] for row in rows] == [row["test_loss"] for row in other]


@pytest.mark.parametrize(
    ("ranks", "seeds", "message"),
    [
        ([0], [0], "positive integers"),
        ([-3], [0], "positive integers"),
        ([2.0], [0], "positive integers"),
        ([True], [0], "positive integers"),
        ([], [0], "positive integers"),
        ([9], [0], "rank 9 is larger than the largest possible one, 8"),
        ([1], [], "at least one seed"),
    ],
)
def test_bad_ranks_are_refused_before_work(setting, ranks, seeds, message):
    with pytest.raises(InputError, match=message):
        rank_sweep(setting, ranks, seeds)


# ---- the closed-form bound -------------------------------------------------------------------------------------------


def test_bound_at_rank_zero_and_full_is_the_loss_without_update_and_of_least_squares():
    problem = planted(noise=0.1)
    losses = best_losses(problem)
    assert losses[0] == pytest.approx(np.mean((problem.x @ problem.weight.T - problem.y) ** 2))
    fit = np.linalg.lstsq(problem.x, problem.y, rcond=None)[0]
    assert losses[-1] == pytest.approx(np.mean((problem.x @ fit - problem.y) ** 2))


def test_without_noise_the_bound_vanishes_at_the_planted_rank():
    losses = best_losses(planted(rank=4, noise=0.0))
    assert losses[3] > 1e-4
    assert losses[4] < 1e-28


@pytest.mark.parametrize("r", [1, 3, 4, 8])
def test_trained_lora_reaches_the_bound_and_never_passes_it(r):
    problem = planted(noise=0.02, condition=3.0, seed=1)
    ratio = np.sqrt(trained_loss(problem, r, seed=1) / best_losses(problem)[r])
    assert 1 - 1e-9 <= ratio <= 1.01


def test_bound_rows_cover_every_combination():
    rows = bound_sweep((1, 4), range(2), conditions=(3,), steps=(5, 50))
    assert [(row["steps"], row["r"], row["seed"]) for row in rows] == [
        (s, r, i) for s in (5, 50) for r in (1, 4) for i in (0, 1)
    ]
    assert all(row["ratio"] >= 1 - 1e-9 for row in rows)
    ratios = median_by(rows, ("steps",), "ratio")
    assert ratios[5,][0] > ratios[50,][0]
