"""By how much each choice of the comparison matters: the learning rates, the scaling, and the split.

The same experiment as in `sweep`, with the settings that one would first think of and with tuned ones, over many
splits, and with several seeds on each: what differs between the seeds of one split is not what differs between splits.
"""

import joblib
import numpy as np
from tqdm import tqdm

from ..linalg import energy_rank, svd
from .rank_rows import trained, update_of
from .sweep import TUNED, Recipe

RANKS = (4, 16, 32, 64)
FULL = {"first": Recipe(3e-3), "tuned": TUNED[None]}
LORA = {
    "first": lambda r: Recipe(1e-2, 16),  # one rate and PEFT's scaling for every rank
    "rslora": lambda r: Recipe(1e-2, 16, use_rslora=True),
    "tuned": lambda r: TUNED[r],
}


def choice_rows(setting, splits=range(10), seeds=range(3), ranks=RANKS, jobs=1, progress=False):
    """Rows {choice, r, split, seed, lr, lora_alpha, use_rslora, test_accuracy, directions_*}; r None: full fine-tuning.

    seed: of batches and factors, on the base and split of `split`. directions_fc1 ...: how many singular directions
    hold 90 % of the energy of that matrix's update.
    """
    problems = {split: setting.problem(split) for split in splits}
    choices = [(name, None, recipe) for name, recipe in FULL.items()]
    choices += [(name, r, recipe(r)) for name, recipe in LORA.items() for r in ranks]
    runs = [(choice, split, seed) for seed in seeds for split in splits for choice in choices]
    run = joblib.Parallel(n_jobs=jobs, return_as="generator")
    rows = run(joblib.delayed(_row)(setting, problems[split], *choice, split, seed) for choice, split, seed in runs)
    return list(tqdm(rows, total=len(runs), delay=2, disable=None if progress else True, unit="run"))


def split_gaps(rows, choice, r):
    """{split: accuracy of this choice minus that of tuned full fine-tuning, in points; means over the seeds}."""
    means = {}
    for row in rows:
        if (key := (row["choice"], row["r"])) in ((choice, r), ("tuned", None)):
            means.setdefault(key, {}).setdefault(row["split"], []).append(100 * row["test_accuracy"])
    full = means["tuned", None]
    return {split: float(np.mean(found) - np.mean(full[split])) for split, found in means[choice, r].items()}


def _row(setting, problem, choice, r, recipe, split, seed):
    model, _ = trained(setting.using({r: recipe}), problem, r, seed)
    row = {"choice": choice, "r": r, "split": split, "seed": seed}
    row |= recipe.cells(r) | {"test_accuracy": problem.evaluate(model)[1]}
    spectra = {path: svd(update)[1] for path, update in update_of(model, problem).items()}
    return row | {f"directions_{path}": energy_rank(s, 0.9) for path, s in spectra.items()}
