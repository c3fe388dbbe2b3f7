"""Rank versus error: how close a rank-r update comes to the full one, by truncation and by training.

A seed is one independent repetition: its own split into training and test rows, its own base model, its own batches
and factors. Each time, fine-tune every weight matrix in full, which gives the update Delta W; then compare at every
rank r, matrix by matrix,

    svd             the best rank-r approximation of Delta W: the closed-form lower bound of the weight error
    activation_svd  the rank-r approximation of Delta W that changes the outputs of each matrix least
    lora            lora_B lora_A of rank r, trained on the task from the base model, never having seen Delta W

All methods change the same matrices; biases stay at their pretrained values. A matrix whose smaller side is less than r
gets the rank of that side. Split, base model and batches of a seed are the same for every method.
"""

import copy
import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import joblib
import numpy as np
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from .adapters import LoRAConfig, adapters, inject
from .adapters.lora import scaling_of
from .adapters.memory import count
from .backend import asarray_like, data_like, get_xp, to_numpy
from .data import Batches
from .errors import InputError
from .low_rank import activation_factor, truncate, truncate_for_inputs
from .optim import AdamW, check_number
from .train import train

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
    rank without one takes that of the nearest. batch_size: at most; fewer rows make one batch.
    """

    problem: Callable
    epochs: int = 60
    batch_size: int = 64
    recipes: dict = field(default_factory=lambda: TUNED)
    backend: str = "numpy"

    def __post_init__(self):
        """Check the options under their own names, before any work."""
        if self.epochs < 1 or self.batch_size < 1:
            raise InputError(f"epochs and batch_size must be at least 1; got {self.epochs} and {self.batch_size}")

    def check(self, ranks, seeds):
        """Raise InputError unless there are seeds, and ranks that the matrices can have."""
        check_ranks(ranks)
        if not seeds:
            raise InputError("at least one seed is needed; got none")
        shapes = shapes_of(self.problem(seeds[0]).base)
        if max(ranks) > (largest := max(min(shape) for shape in shapes.values())):
            raise InputError(f"rank {max(ranks)} is larger than the largest possible one, {largest}, of {shapes}")

    def using(self, recipes):
        """This setting with other recipes."""
        return replace(self, recipes=recipes)

    def recipe(self, r):
        """The recipe of rank r, of full fine-tuning for None."""
        if r is None:
            return self.recipes[None]
        return self.recipes[min((k for k in self.recipes if k), key=lambda k: abs(math.log(k / r)))]


def rank_sweep(setting, ranks, seeds, jobs=1, progress=False):
    """Rows {method, r, seed, params, weight_error, test_loss, test_accuracy, seconds}, sorted by method, r, seed.

    weight_error: ||update - Delta W||_F / ||Delta W||_F over all matrices together. seconds: of one training, or of the
    SVDs, one per matrix, that serve every rank. jobs: processes; each computes with one BLAS thread, so that no number
    but the seconds depends on how many there are.
    """
    setting.check(ranks, seeds)
    ranks, rows = sorted(set(ranks)), []
    with tqdm(total=len(seeds) * (1 + len(ranks)), delay=2, disable=None if progress else True, unit="run") as bar:
        for new in finished(setting, ranks, seeds, jobs):
            rows += new
            bar.update()
    return in_order(rows)


def finished(setting, ranks, seeds, jobs=1):
    """The rows of `rank_sweep`, in lists, one a training, as they come."""
    run = joblib.Parallel(n_jobs=jobs, return_as="generator_unordered")
    problems = {seed: setting.problem(seed) for seed in seeds}
    updates = {}
    fulls = (joblib.delayed(_full_and_truncations)(setting, problems[seed], ranks, seed) for seed in seeds)
    for seed, update, rows in run(fulls):
        updates[seed] = update
        yield rows
    longest_first = itertools.product(reversed(ranks), seeds)
    loras = (joblib.delayed(_lora)(setting, problems[seed], r, seed, updates[seed]) for r, seed in longest_first)
    for row in run(loras):
        yield [row]


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


# ---- parts of a row --------------------------------------------------------------------------------------------------


def check_ranks(ranks):
    """Raise InputError unless these are positive integers, and some."""
    if not ranks or any(isinstance(r, bool) or not isinstance(r, int) or r < 1 for r in ranks):
        raise InputError(f"ranks must be positive integers; got {ranks}")


def shapes_of(model):
    """{path: (d_out, d_in)} of the matrices that are adapted: all of the model's."""
    return {
        path: tuple(layer.params["weight"].shape) for path, layer in model.named_layers() if "weight" in layer.params
    }


def capped(r, shapes):
    """{path: min(r, d_out, d_in)}."""
    return {path: min(r, *shape) for path, shape in shapes.items()}


def factor_numbers(r, shapes):
    """Numbers in the two factors of every matrix at rank r."""
    return sum(k * sum(shapes[path]) for path, k in capped(r, shapes).items())


def relative_error(got, want):
    """||got - want||_F / ||want||_F over all matrices of {path: matrix} together."""
    lost = sum(np.sum((got[path] - want[path]) ** 2) for path in want)
    return float(np.sqrt(lost / sum(np.sum(w**2) for w in want.values())))


def in_order(rows):
    """Rows sorted by method, r, seed."""
    return sorted(rows, key=lambda row: (METHODS.index(row["method"]), row["r"] or 0, row["seed"]))


def mean_and_error(values):
    """(mean, its standard error: standard deviation / sqrt(n))."""
    n = len(values)
    return float(np.mean(values)), float(np.std(values, ddof=1) / math.sqrt(n)) if n > 1 else math.nan


def sweep_row(method, r, seed, params, weight_error, loss, accuracy, seconds):
    """One row of rank_vs_error.csv."""
    return {
        "method": method,
        "r": r,
        "seed": seed,
        "params": params,
        "weight_error": weight_error,
        "test_loss": loss,
        "test_accuracy": accuracy,
        "seconds": seconds,
    }


# ---- the runs --------------------------------------------------------------------------------------------------------


def trained(setting, problem, r, seed):
    """(model, seconds) of one training from the problem's base, on one BLAS thread: LoRA, or in full for an r of None.

    `seed` draws lora_A and the order of the batches.
    """
    recipe, task, model = setting.recipe(r), problem.task, _fresh(setting, problem)
    shapes = shapes_of(model)
    if r is None:
        model.set_trainable(f"{path}.weight" for path in shapes)
    else:
        scaling = {"lora_alpha": recipe.lora_alpha, "use_rslora": recipe.use_rslora}
        inject(model, LoRAConfig(r=r, rank_pattern=capped(r, shapes), **scaling), np.random.default_rng(seed))
    batches = Batches(task.x_train, task.y_train, min(setting.batch_size, len(task.x_train)), seed)
    with threadpool_limits(1):
        start = time.perf_counter()
        train(model, batches, AdamW(recipe.lr), epochs=setting.epochs, seed=seed)
        return model, time.perf_counter() - start


def update_of(model, problem):
    """{path: float64 update of the matrix on the host}: of a model that was trained from the problem's base."""
    if layers := adapters(model):
        return {path: to_numpy(layer.delta_weight()).astype("f8") for path, layer in layers.items()}
    after, before = model.named_params(), problem.base.named_params()
    names = {path: f"{path}.weight" for path in shapes_of(model)}
    return {path: to_numpy(after[n]).astype("f8") - to_numpy(before[n]).astype("f8") for path, n in names.items()}


def loss_and_accuracy(model, task):
    """(loss, accuracy) on the test rows."""
    like = next(iter(model.named_params().values()))
    with threadpool_limits(1):
        return model.evaluate(data_like(task.x_test, like), data_like(task.y_test, like))


def _fresh(setting, problem):
    """A copy of the base on the backend."""
    return copy.deepcopy(problem.base).to(get_xp(setting.backend))


def _full_and_truncations(setting, problem, ranks, seed):
    """(seed, {path: Delta W}, rows) of one full fine-tuning and of its truncations to every rank."""
    model, seconds = trained(setting, problem, None, seed)
    update, shapes, task = update_of(model, problem), shapes_of(model), problem.task
    rows = [
        sweep_row("full", None, seed, count(model.trainable_params()), 0.0, *loss_and_accuracy(model, task), seconds)
    ]
    with threadpool_limits(1):
        inputs = model.inputs_of(data_like(task.x_train, next(iter(model.named_params().values()))))
        factors = {path: activation_factor([to_numpy(x).astype("f8")]) for path, x in inputs.items()}
        for method in ("svd", "activation_svd"):
            start = time.perf_counter()
            truncations = {
                path: truncate(delta) if method == "svd" else truncate_for_inputs(delta, factors[path])
                for path, delta in update.items()
            }
            seconds = time.perf_counter() - start
            for r in ranks:
                truncated = {path: truncations[path].weight(k) for path, k in capped(r, shapes).items()}
                model = _fresh(setting, problem)
                for path, delta in truncated.items():
                    weight = model.named_params()[f"{path}.weight"]
                    weight += asarray_like(delta, weight)
                error, numbers = relative_error(truncated, update), factor_numbers(r, shapes)
                rows.append(sweep_row(method, r, seed, numbers, error, *loss_and_accuracy(model, task), seconds))
    return seed, update, rows


def _lora(setting, problem, r, seed, update):
    """The row of one LoRA training, compared with the update of full fine-tuning on the same batches."""
    model, seconds = trained(setting, problem, r, seed)
    error = relative_error(update_of(model, problem), update)
    return sweep_row(
        "lora", r, seed, count(model.trainable_params()), error, *loss_and_accuracy(model, problem.task), seconds
    )
