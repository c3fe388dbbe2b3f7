"""Checks of the exercises of chapter 06."""

import copy
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from ...adapters import LoRAConfig, inject
from ...data import Batches, planted
from ...files import read_csv
from ...linalg import truncate
from ...studies import best_losses, rank_sweep, setting_for, update_of
from ...training import AdamW, train
from .. import rank_tables, updates
from . import exercise, need

SWEEP = Path(__file__).parents[3] / "figures" / "data" / "rank_vs_error.csv"
R, SCALING, LR = 4, 4.0, 0.003


@exercise
def budget(answer):
    """(method, numbers stored): the fewest numbers with which at least 94 % are right."""
    rows = read_csv(SWEEP)
    share, params = rank_tables.medians(rows, "test_accuracy"), rank_tables.medians(rows, "params")
    need(isinstance(answer, tuple) and len(answer) == 2, "expected (method, numbers stored)")
    method, best = min((params[key], key) for key in share if share[key] >= 0.94)[1][0], answer[1]
    need(answer[0] == method, "another method needs fewer numbers")
    need(best == min(params[k] for k in share if share[k] >= 0.94), "the right method; its numbers are not the fewest")


@exercise
def best_multiple(answer):
    """Distance of the best multiple of an update to Delta W, as a function of their cosine."""
    need(callable(answer), "expected a function of the cosine")
    rng = np.random.default_rng(0)
    for tilt in (0.1, 0.5, 2.0):
        delta = rng.standard_normal(50)
        update = 3 * (delta + tilt * rng.standard_normal(50))
        norms = np.linalg.norm(delta), np.linalg.norm(update)
        cosine = float(update @ delta / norms[0] / norms[1])
        t = np.linalg.lstsq(update[:, None], delta, rcond=None)[0]
        least = np.linalg.norm(t * update - delta) / norms[0]
        said = float(answer(cosine))
        hint = "no multiple comes that near" if said < least else "a multiple comes nearer"
        need(abs(said - least) < 1e-9, f"at cosine {cosine:.3f} you say {said:.3f}; {hint}")


@exercise
def warm_start(answer):
    """A function of (matrix, r, s) that gives A and B with s B A the truncation of the matrix to rank r."""
    need(callable(answer), "expected a function of the matrix, r and s")
    setting, _ = setting_for("digits-rotated")
    problem = setting.problem(0)
    full = updates.trained_updates(setting, problem, ("full, lr 0.03",))["full, lr 0.03"]
    ends = {}
    for name in ("B = 0", "truncation"):
        model = copy.deepcopy(problem.base)
        inject(model, LoRAConfig(r=R, lora_alpha=R * SCALING), 0)
        if name == "truncation":
            _put(model, full, answer)
        with threadpool_limits(1):
            train(model, Batches(problem.task.part("train"), 64, 0), AdamW(LR), epochs=60, seed=0, workers=1)
        (ends[name],) = updates.places(problem, {name: update_of(model, problem)}, full)
    for name, row in ends.items():
        print(f"start at {name}: {row['test_accuracy']:.1%} right, distance {row['distance']:.2f}")


def _put(model, full, answer):
    for path, matrix in full.items():
        A, B = (np.asarray(part) for part in answer(matrix.copy(), R, SCALING))
        shapes = (R, matrix.shape[1]), (matrix.shape[0], R)
        need((A.shape, B.shape) == shapes, f"expected A, B of shapes {shapes}; got {A.shape}, {B.shape}")
        cut = truncate(matrix).weight(R)
        need(np.allclose(SCALING * B @ A, cut, atol=1e-9), "s B A is not the truncation of the matrix")
        layer = model.children[path]
        layer.params["lora_A"][...], layer.params["lora_B"][...] = A, B


@exercise
def below_the_noise(answer):
    """The best root mean squared error at full rank, of planted problems with noise 0.02."""
    need(isinstance(answer, float), "expected a number")
    problems = [planted(condition=3, noise=0.02, seed=seed) for seed in range(20)]
    found = np.mean([math.sqrt(best_losses(problem)[-1]) for problem in problems])
    need(abs(found / answer - 1) < 0.005, "more than 0.5 % off the average over 20 problems")
    print(f"{found:.5f} on average over 20 problems")


@exercise
def impatience(answer):
    """Whether four times as many epochs bring LoRA at r = 4 level with full fine-tuning."""
    need(answer in (True, False), "expected True or False")
    setting, _ = setting_for("digits-rotated")
    longer = rank_sweep(replace(setting, epochs=4 * setting.epochs), ranks=(4,), seeds=range(2))
    reached = rank_tables.medians(longer, "test_accuracy", ("method",))
    print({method: f"{share:.1%}" for (method,), share in reached.items()})
    need(answer == (reached["lora",] >= reached["full",]), "the runs say otherwise")
