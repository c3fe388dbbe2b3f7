"""Rank versus error: how close a rank-r update comes to the full one, by truncation and by training.

A seed is one independent repetition: its own split into training and test rows, its own base model, its own batches
and factors. Each time, fine-tune every weight matrix in full, which gives the update Delta W; then compare at every
rank r, matrix by matrix,

    svd             the best rank-r approximation of Delta W: the closed-form lower bound of the weight error
    activation_svd  the rank-r approximation of Delta W that changes the outputs of each matrix least
    lora            lora_B lora_A of rank r, trained on the task from the base model, never having seen Delta W

All methods change the same matrices. What else trains (the head of an encoder; nothing of an MLP) trains in full in
every method, and the truncations take it from full fine-tuning. A matrix whose smaller side is less than r gets the
rank of that side. Split, base model and batches of a seed are the same for every method.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import joblib
import numpy as np
from tqdm import tqdm

from ..adapters import scaling_of
from ..errors import InputError, check_number
from .rank_rows import full_rows, lora_rows, truncation_rows

METHODS = ("full", "svd", "activation_svd", "lora")


@dataclass(frozen=True)
class Recipe:
    """How the matrices train: the learning rate; for LoRA also its scaling, by PEFT's options."""

    lr: float
    lora_alpha: float = 16
    use_rslora: bool = False

    def __post_init__(self):
        """Check the options under their own names, before any work."""
        check_number("lr", self.lr)
        scaling_of(1, self.lora_alpha, self.use_rslora)

    def cells(self, r):
        """Columns lr, lora_alpha, use_rslora (0 or 1) of a row; full fine-tuning, r None, has no scaling."""
        scaling = (self.lora_alpha, int(self.use_rslora)) if r else (None, None)
        return {"lr": self.lr, "lora_alpha": scaling[0], "use_rslora": scaling[1]}


# {rank: Recipe}, None for full fine-tuning: those of highest accuracy on validation rows of digits turned by 90
# degrees, mean of 10 splits. `lorabook figures learning_rates` tries them; its rows: figures/data/learning_rates.csv.
TUNED = {
    None: Recipe(3e-2),
    1: Recipe(1e-2, 16),
    4: Recipe(1e-2, 16, use_rslora=True),
    **{r: Recipe(5e-3, 64, use_rslora=True) for r in (2, 8, 16, 32, 64)},
}


@dataclass(frozen=True)
class Setting:
    """What all runs of a sweep share.

    problem(seed, validation=False): the base model and the task of a seed (`pretrain.Problem`); with `validation` the
    task's test rows are held out of the seed's training rows. recipes: {rank: `Recipe`}, None for full fine-tuning; a
    rank without one takes that of the nearest. batch_size: at most; fewer rows make one batch. workers: threads of a
    run. one_full: full fine-tuning is the same for every seed (a problem's own tuned model). about: {what: JSON-able}
    that decides what `problem` gives, but for the seed.
    """

    problem: Callable
    epochs: int = 60
    batch_size: int = 64
    recipes: dict = field(default_factory=lambda: TUNED)
    backend: str = "numpy"
    lr_schedule: str = "cosine"
    workers: int | None = 1
    one_full: bool = False
    about: dict = field(default_factory=dict)

    def __post_init__(self):
        """Check the options under their own names, before any work."""
        if self.epochs < 1 or self.batch_size < 1:
            raise InputError(f"epochs and batch_size must be at least 1; got {self.epochs} and {self.batch_size}")

    def check(self, ranks, seeds):
        """Raise InputError unless there are seeds, and ranks that the matrices can have."""
        if not ranks or any(isinstance(r, bool) or not isinstance(r, int) or r < 1 for r in ranks):
            raise InputError(f"ranks must be positive integers; got {ranks}")
        if not seeds:
            raise InputError("at least one seed is needed; got none")
        shapes = self.problem(seeds[0]).shapes
        if max(ranks) > (largest := max(min(shape) for shape in shapes.values())):
            sizes = ", ".join(f"{d_out} x {d_in}" for d_out, d_in in dict.fromkeys(shapes.values()))
            raise InputError(
                f"rank {max(ranks)} is larger than the largest possible one, {largest}, of matrices {sizes}"
            )

    def using(self, recipes):
        """This setting with other recipes."""
        return replace(self, recipes=recipes)

    def recipe(self, r):
        """The recipe of rank r, of full fine-tuning for None."""
        if r is None:
            return self.recipes[None]
        return self.recipes[min((k for k in self.recipes if k), key=lambda k: abs(math.log(k / r)))]

    def description(self):
        """{what: JSON-able} that decides a row beside its method, rank and seed."""
        recipes = {
            f"{name}, {_rank(r)}": v for r, recipe in self.recipes.items() for name, v in recipe.cells(r).items()
        }
        options = {name: getattr(self, name) for name in ("epochs", "batch_size", "lr_schedule", "backend")}
        return options | recipes | self.about

    def source(self, seed, seeds):
        """The seed whose full update the rows of `seed` are compared with."""
        return seeds[0] if self.one_full else seed


def _rank(r):
    return "full fine-tuning" if r is None else f"r = {r}"


def rank_sweep(setting, ranks, seeds, jobs=1, progress=False, kept=None):
    """Rows {method, r, seed, params, weight_error, test_loss, test_accuracy, seconds}, sorted by method, r, seed.

    weight_error: ||update - Delta W||_F / ||Delta W||_F over all matrices together. seconds: of one training, or of the
    SVDs, one per matrix, that serve every rank. jobs: processes; no number but the seconds depends on how many there
    are. kept: `Kept`, whose rows are not computed again; it gets the new ones as they come.
    """
    setting.check(ranks, seeds)
    kept, run = Kept() if kept is None else kept, joblib.Parallel(n_jobs=jobs, return_as="generator_unordered")
    groups = [[seed] for seed in seeds] if joblib.effective_n_jobs(jobs) == 1 else [seeds]  # alone: seed by seed
    todo = [(group, *open_tasks(setting, ranks, group, seeds, kept)) for group in groups]
    runs = sum(len(fulls) + len(others) for _, fulls, others in todo)
    with tqdm(total=runs, delay=2, disable=None if progress else True, unit="run") as bar:
        for group, fulls, others in todo:
            problems = {seed: setting.problem(seed) for seed in group if fulls or others}
            for rows, arrays in run(joblib.delayed(full_rows)(setting, problems[seed], seed) for seed in fulls):
                kept.add_full(rows[0]["seed"], arrays)
                kept.add(rows)
                bar.update()
            for rows in run(
                joblib.delayed(task)(setting, problems[seed], seed, what, kept.full(source))
                for task, seed, what, source in others
            ):
                kept.add(rows)
                bar.update()
    found = {key(row): row for row in kept.rows}
    wanted = [("full", None, seed) for seed in seeds]
    wanted += [(method, r, seed) for method in METHODS[1:] for r in sorted(set(ranks)) for seed in seeds]
    return [
        found[method, r, seed if method == "lora" else setting.source(seed, seeds)] | {"seed": seed}
        for method, r, seed in wanted
    ]


def open_tasks(setting, ranks, group, seeds, kept):
    """(seeds to fine-tune in full, [(function, seed, its argument, seed of the full update)]): what is still to do.

    Of the seeds in `group` alone.
    """
    done, ranks = {key(row) for row in kept.rows}, sorted(set(ranks), reverse=True)  # the longest first
    own = [seed for seed in group if setting.source(seed, seeds) == seed]
    others = []
    for seed in own:
        left = [r for r in ranks if {("svd", r, seed), ("activation_svd", r, seed)} - done]
        others += [(truncation_rows, seed, left, seed)] if left else []
    loras = [(r, seed) for r in ranks for seed in group if ("lora", r, seed) not in done]
    others += [(lora_rows, seed, r, setting.source(seed, seeds)) for r, seed in loras]
    needed = {source for *_, source in others if not kept.has_full(source)}
    return [seed for seed in own if seed in needed or ("full", None, seed) not in done], others


class Kept:
    """What a sweep has so far: its rows, and what full fine-tuning left, which rows to come need."""

    def __init__(self):
        self.rows, self._full = [], {}

    def add(self, rows):
        """More rows; one of the same method, rank and seed is replaced."""
        new = {key(row) for row in rows}
        self.rows = in_order([row for row in self.rows if key(row) not in new] + rows)

    def add_full(self, seed, arrays):
        """{name: array} of all parameters that full fine-tuning changed."""
        self._full[seed] = arrays

    def has_full(self, seed):
        """Whether they are there."""
        return seed in self._full

    def full(self, seed):
        """Those arrays."""
        return self._full[seed]


def key(row):
    """(method, r, seed) of a row."""
    return row["method"], row["r"], row["seed"]


def in_order(rows):
    """Rows sorted by method, r, seed."""
    return sorted(rows, key=lambda row: (METHODS.index(row["method"]), row["r"] or 0, row["seed"]))


def against_full(rows, value="test_accuracy"):
    """{(method, r): (mean, standard error)} of value minus that of full fine-tuning with the same seed.

    Both were tested on the same rows and began at the same base. One seed has no standard error: NaN.
    """
    full = {row["seed"]: row[value] for row in rows if row["method"] == "full"}
    gaps = {}
    for row in rows:
        if row["method"] != "full":
            gaps.setdefault((row["method"], row["r"]), []).append(row[value] - full[row["seed"]])
    return {key: mean_and_error(found) for key, found in gaps.items()}


def mean_and_error(values):
    """(mean, its standard error: standard deviation / sqrt(n))."""
    n = len(values)
    return float(np.mean(values)), float(np.std(values, ddof=1) / math.sqrt(n)) if n > 1 else math.nan
