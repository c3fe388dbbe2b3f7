"""Trained LoRA against the best update of its rank, where that is known in closed form: linear regression.

The loss of an update D on y = x W^T + ... is ||X (W + D)^T - Y||^2, over N rows and k outputs. With D* the
least-squares update, X D*^T the projection of Y - X W^T on the columns of X, Pythagoras splits it:

    ||X (W + D)^T - Y||^2 = ||X (D - D*)^T||^2 + ||X (W + D*)^T - Y||^2

so the best D of rank r is the activation-aware truncation of D*, and every rank's loss is one cumulative sum.
"""

import itertools
import math

import joblib
import numpy as np
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from ..adapters import LoRAConfig, inject
from ..data import planted
from ..linalg import activation_factor, truncate_for_inputs
from ..models import MLP
from ..training import AdamW, schedule


def best_losses(problem):
    """Mean squared error of the best update of each rank r = 0 .. min(d_out, d_in), for a `Planted` problem."""
    residual = problem.y - problem.x @ problem.weight.T
    update = np.linalg.lstsq(problem.x, residual, rcond=None)[0].T
    floor = np.sum((problem.x @ update.T - residual) ** 2)
    errors = truncate_for_inputs(update, activation_factor([problem.x])).errors
    return (errors**2 + floor) / residual.size


def trained_loss(problem, r, seed, steps=1000, lr=0.02):
    """Mean squared error that LoRA of rank r reaches by AdamW on the whole data set, cosine schedule, float64."""
    d_out, d_in = problem.weight.shape
    model = MLP((d_in, d_out), loss="mean_squared_error", rng=np.random.default_rng(seed)).to(np, "float64")
    model.load({"fc1.weight": problem.weight, "fc1.bias": np.zeros(d_out)})
    inject(model, LoRAConfig(r=r, lora_alpha=r), np.random.default_rng(seed))
    optimizer, factor, params = AdamW(lr), schedule("cosine", steps), model.trainable_params()
    batch = {"x": problem.x, "labels": problem.y}
    for step in range(steps):
        _, grads = model.loss_and_grad(batch)
        optimizer.step(params, grads, factor(step))
    return float(model.loss_and_grad(batch)[0])


def bound_sweep(ranks, seeds, conditions=(3, 300), steps=(30, 100, 1000), noise=0.02, jobs=1, progress=False):
    """Rows {condition, steps, r, seed, bound, loss, ratio} for every combination; each seed is another planted problem.

    bound, loss: root mean squared error of the best update of rank r, and of the trained one; ratio = loss / bound.
    condition: ratio of the inputs' largest to smallest scale.
    """
    runs = list(itertools.product(conditions, steps, ranks, seeds))
    parallel = joblib.Parallel(n_jobs=jobs, return_as="generator")
    results = parallel(joblib.delayed(_bound_row)(*run, noise) for run in runs)
    return list(tqdm(results, total=len(runs), delay=2, disable=None if progress else True, unit="run"))


def _bound_row(condition, steps, r, seed, noise):
    with threadpool_limits(1):
        problem = planted(condition=condition, noise=noise, seed=seed)
        bound, loss = math.sqrt(best_losses(problem)[r]), math.sqrt(trained_loss(problem, r, seed, steps))
    return {
        "condition": condition,
        "steps": steps,
        "r": r,
        "seed": seed,
        "bound": bound,
        "loss": loss,
        "ratio": loss / bound,
    }
