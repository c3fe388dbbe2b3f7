"""Each side at its own rate and scaling: chosen on validation rows, which are held out of the training rows."""

import itertools
from dataclasses import replace

import joblib
import numpy as np
from tqdm import tqdm

from .rank_rows import trained
from .sweep import Recipe

RATES_FULL = (1e-3, 3e-3, 1e-2, 2e-2, 3e-2, 5e-2)
RATES_LORA = (1e-3, 2e-3, 5e-3, 1e-2, 2e-2)
SCALINGS = ((16, False), (16, True), (64, True))  # lora_alpha, use_rslora


def candidates(ranks):
    """[(r, Recipe)] to choose from: every rate for full fine-tuning (None), every rate and scaling for each rank."""
    full = [(None, Recipe(lr)) for lr in RATES_FULL]
    return full + [(r, Recipe(lr, *scaling)) for r, scaling, lr in itertools.product(ranks, SCALINGS, RATES_LORA)]


def learning_rate_sweep(setting, candidates, seeds, jobs=1, progress=False):
    """Rows {r, lr, lora_alpha, use_rslora, seed, validation_loss, validation_accuracy, seconds} of every candidate.

    candidates: (r, `Recipe`); an r of None stands for full fine-tuning. What is measured are validation rows, held out
    of the training rows of each seed.
    """
    problems = {seed: setting.problem(seed, validation=True) for seed in seeds}
    runs = [(r, recipe, seed) for seed in seeds for r, recipe in candidates]
    run = joblib.Parallel(n_jobs=jobs, return_as="generator")
    rows = run(joblib.delayed(_rate_row)(setting, problems[seed], r, recipe, seed) for r, recipe, seed in runs)
    return list(tqdm(rows, total=len(runs), delay=2, disable=None if progress else True, unit="run"))


def best_recipes(rows):
    """{r: Recipe} from the rows of `learning_rate_sweep`: of highest mean accuracy, then of lowest mean loss."""
    found = {}
    for row in rows:
        key = row["r"], Recipe(row["lr"], row["lora_alpha"] or 16, bool(row["use_rslora"]))
        found.setdefault(key, []).append((row["validation_accuracy"], -row["validation_loss"]))
    best = {}
    for (r, recipe), scores in found.items():
        best[r] = max(best.get(r, ((-1,), None)), (tuple(np.mean(scores, axis=0)), recipe), key=lambda pair: pair[0])
    return {r: recipe for r, (_, recipe) in best.items()}


def _rate_row(setting, problem, r, recipe, seed):
    model, seconds = trained(setting.using({r: recipe}), problem, r, seed)
    loss, accuracy = problem.evaluate(model)
    measured = {"validation_loss": loss, "validation_accuracy": accuracy, "seconds": seconds}
    return {"r": r} | recipe.cells(r) | {"seed": seed} | measured


def tune(setting, ranks, seeds, jobs=1, progress=False):
    """(the setting with the best recipe of every rank and of full fine-tuning, the rows behind the choice)."""
    setting.check(ranks, seeds)
    rows = learning_rate_sweep(setting, candidates(sorted(set(ranks))), seeds, jobs, progress)
    return setting.using(best_recipes(rows)), rows


def override(recipes, lr=None, lr_full=None, lora_alpha=None, use_rslora=False):
    """The recipes with a user's options in their place; who sets a scaling sets it for every rank, by PEFT's rule."""
    scaling = {"lora_alpha": 16 if lora_alpha is None else lora_alpha, "use_rslora": use_rslora}
    given = ({} if lr is None else {"lr": lr}) | (scaling if use_rslora or lora_alpha is not None else {})
    ours = {r: replace(recipe, **given) for r, recipe in recipes.items() if r}
    return ours | {None: recipes[None] if lr_full is None else Recipe(lr_full)}


def described(setting, ranks):
    """How each side trains, in lines: ranks with the same recipe together."""
    lines = {}
    for r in sorted(set(ranks)):
        lines.setdefault(setting.recipe(r), []).append(str(r))
    full = "full fine-tuning: " + ("as it came" if setting.one_full else f"lr {setting.recipe(None).lr:g}")
    return "\n".join([full, *(f"LoRA, r = {', '.join(rs)}: {_words(recipe)}" for recipe, rs in lines.items())])


def _words(recipe):
    scaling = f"lora_alpha {recipe.lora_alpha:g}, scaling lora_alpha / {'sqrt(r)' if recipe.use_rslora else 'r'}"
    return f"lr {recipe.lr:g}, {scaling}"
