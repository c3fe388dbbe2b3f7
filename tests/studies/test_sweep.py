from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from checks import one_problem, sweep_setting, without_seconds

from lorabook import InputError
from lorabook.data import NumberTask, digits, planted
from lorabook.files import median_by
from lorabook.models import MLP
from lorabook.studies import (
    Recipe,
    Setting,
    against_full,
    best_losses,
    best_recipes,
    bound_sweep,
    described,
    learning_rate_sweep,
    override,
    rank_sweep,
    setting_for,
    trained,
    trained_loss,
)
from lorabook.tasks import Problem, digits_problem

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
    base = setting.problem(0).base
    before = {n: a.copy() for n, a in base.named_params().items()}
    rank_sweep(setting, [1], [0])
    for name, array in base.named_params().items():
        np.testing.assert_array_equal(array, before[name])


def test_sweep_on_another_backend(setting, rows):
    strict = replace(setting, backend="array_api_strict")
    for got, want in zip(
        rank_sweep(strict, [2], [0]), [r for r in rows if r["seed"] == 0 and r["r"] in (2, None)], strict=True
    ):
        assert (got["method"], got["params"]) == (want["method"], want["params"])
        assert got["weight_error"] == pytest.approx(want["weight_error"], rel=1e-3)
        assert got["test_loss"] == pytest.approx(want["test_loss"], rel=1e-3)


def test_a_seed_is_another_split_another_base_and_other_batches():
    setting, _ = setting_for()
    one, other = setting.problem(0), setting.problem(1)
    assert not np.array_equal(one.task.x_test, other.task.x_test)
    weights = [problem.base.named_params()["fc1.weight"] for problem in (one, other)]
    assert not np.array_equal(*weights)
    assert setting.problem(0) is one  # made once


def rows_of(x):
    """The digits as they are upright, turned back, as a set of bytes."""
    return {row.tobytes() for row in np.rot90(x.reshape(-1, 8, 8), -1, axes=(1, 2)).reshape(-1, 64)}


@pytest.mark.parametrize("validation", [False, True])
def test_no_row_that_is_tested_on_was_seen_by_the_base_or_in_training(monkeypatch, validation):
    seen = []
    monkeypatch.setattr("lorabook.tasks.pretrain.pretrained_mlp", lambda task, seed: seen.append(task.x_train))
    task = digits_problem.__wrapped__("digits-rotated", 3, validation).task
    tested = rows_of(task.x_test)
    assert not tested & {row.tobytes() for row in seen[0]} and not tested & rows_of(task.x_train)
    real = digits("digits-rotated", 3)
    if validation:
        assert len(task.x_test) == round(0.25 * len(real.x_train))
        assert not rows_of(real.x_test) & (tested | rows_of(task.x_train) | {row.tobytes() for row in seen[0]})
    else:
        assert len(task.x_train) + len(task.x_test) == 1797


def test_the_seed_of_a_row_is_its_problem():
    def problem(seed, validation=False):
        rng = np.random.default_rng(seed)
        x = rng.standard_normal((9, 4)).astype("f4")
        return Problem(MLP((4, 3, 2), rng=rng), NumberTask("noise", x[:6], np.arange(6) % 2, x[6:], np.arange(3) % 2))

    both, second = (rank_sweep(Setting(problem, epochs=1), [1], seeds) for seeds in ([0, 1], [1]))
    assert without_seconds([row for row in both if row["seed"] == 1]) == without_seconds(second)
    losses = {row["seed"]: row["test_loss"] for row in both if row["method"] == "full"}
    assert losses[0] != losses[1]


def test_the_difference_to_full_is_taken_seed_by_seed():
    rows = [{"method": "full", "r": None, "seed": seed, "test_accuracy": a} for seed, a in enumerate((0.9, 0.7, 0.8))]
    rows += [{"method": "lora", "r": 2, "seed": seed, "test_accuracy": a} for seed, a in enumerate((0.7, 0.7, 0.9))]
    mean, error = against_full(rows)["lora", 2]  # of -0.2, 0 and 0.1
    assert mean == pytest.approx(-1 / 30) and error == pytest.approx(np.sqrt(7) / 30)
    mean, error = against_full([row for row in rows if row["seed"] == 0])["lora", 2]
    assert mean == pytest.approx(-0.2) and np.isnan(error)


# ---- rates and scaling -----------------------------------------------------------------------------------------------


def test_each_rank_trains_by_its_own_recipe(setting):
    recipes = {None: Recipe(1e-2), 1: Recipe(1e-2), 4: Recipe(1e-3, 64, True)}
    assert Setting(None, recipes=recipes).recipe(None) == Recipe(1e-2)
    recipes[64] = Recipe(5e-3)
    nearest = {r: Setting(None, recipes=recipes).recipe(r).lr for r in (1, 3, 4, 9, 20)}
    assert nearest == {1: 1e-2, 3: 1e-3, 4: 1e-3, 9: 1e-3, 20: 5e-3}  # 20 is 5 times 4, and 64 is 3.2 times 20
    problem = setting.problem(0)

    def loss(*recipe, r=2):
        model, _ = trained(replace(setting, recipes={r: Recipe(*recipe)}), problem, r, 0)
        return problem.evaluate(model)[0]

    plain = loss(1e-3, 64, True)
    for other in ((2e-3, 64, True), (1e-3, 32, True), (1e-3, 64, False)):
        assert loss(*other) != plain
    assert loss(1e-3, 64 * np.sqrt(2), False) == pytest.approx(plain, rel=1e-5)
    assert loss(1e-2, r=None) != loss(2e-2, r=None)


def test_rates_are_chosen_on_validation_rows(setting):
    tried = [(None, Recipe(1e-3)), (None, Recipe(1e-2)), (2, Recipe(1e-3, 16, True)), (2, Recipe(1e-2))]
    rows = learning_rate_sweep(setting, tried, [0])
    assert [(row["r"], row["lora_alpha"], row["use_rslora"], row["lr"]) for row in rows] == [
        (None, None, None, 1e-3), (None, None, None, 1e-2), (2, 16, 1, 1e-3), (2, 16, 0, 1e-2)
    ]  # fmt: skip
    base, task = (getattr(setting.problem(0), name) for name in ("base", "task"))
    scrambled = NumberTask("scrambled", task.x_train, task.y_train, task.x_test * 9, task.y_test)
    other = replace(setting, problem=partial(one_problem, Problem(base, scrambled)))
    assert without_seconds(rows) == without_seconds(learning_rate_sweep(other, tried, [0]))
    held_out = task.validation()
    model, _ = trained(replace(setting, recipes={2: Recipe(1e-2)}), Problem(base, held_out), 2, 0)
    assert (rows[-1]["validation_loss"], rows[-1]["validation_accuracy"]) == Problem(base, held_out).evaluate(model)


def test_the_best_recipe_is_that_of_highest_mean_accuracy_then_lowest_loss():
    def row(r, lr, accuracy, loss, scaling=(64, 1)):
        values = {"lora_alpha": scaling[0], "use_rslora": scaling[1], "validation_accuracy": accuracy}
        return {"r": r, "lr": lr, "validation_loss": loss} | values

    rows = [row(4, 1e-2, 0.9, 1.0), row(4, 1e-2, 0.9, 1.0), row(4, 1e-3, 0.99, 0.1), row(4, 1e-3, 0.7, 0.1)]
    assert best_recipes(rows) == {4: Recipe(1e-2, 64, True)}
    rows += [row(4, 2e-2, 0.9, 0.9, (16, 0)), row(None, 0.1, 0.2, 0.3, (None, None))]
    assert best_recipes(rows) == {4: Recipe(2e-2, 16, False), None: Recipe(0.1)}


def test_what_a_user_sets_takes_the_place_of_what_was_tuned():
    tuned = {None: Recipe(0.1), 1: Recipe(0.2, 3), 8: Recipe(0.3, 4, True)}
    assert override(tuned) == tuned
    assert override(tuned, lr=1, lr_full=2) == {None: Recipe(2), 1: Recipe(1, 3), 8: Recipe(1, 4, True)}
    assert override(tuned, lora_alpha=5) == {None: Recipe(0.1), 1: Recipe(0.2, 5), 8: Recipe(0.3, 5)}
    assert override(tuned, use_rslora=True)[8] == Recipe(0.3, 16, True)
    assert override(tuned, lora_alpha=5, use_rslora=True)[1] == Recipe(0.2, 5, True)


def test_recipes_in_words():
    given = Setting(None, recipes={None: Recipe(0.02), 1: Recipe(0.005)}, one_full=True)
    assert described(given, [2]).startswith("full fine-tuning: as it came\nLoRA, r = 2: lr 0.005")
    recipes = {None: Recipe(0.02), 1: Recipe(0.005), 4: Recipe(0.002, 64, True), 16: Recipe(0.002, 64, True)}
    assert described(Setting(None, recipes=recipes), [16, 1, 4, 4]) == (
        "full fine-tuning: lr 0.02\n"
        "LoRA, r = 1: lr 0.005, lora_alpha 16, scaling lora_alpha / r\n"
        "LoRA, r = 4, 16: lr 0.002, lora_alpha 64, scaling lora_alpha / sqrt(r)"
    )


@pytest.mark.parametrize("options", [(-1,), (float("nan"),), ("a",), (True,), (0.1, float("inf")), (0.1, "x")])
def test_bad_recipes_are_refused(options):
    with pytest.raises(InputError, match="lr must be a finite number|lora_alpha must be a finite number"):
        Recipe(*options)


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
