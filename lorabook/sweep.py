"""Rank versus error: how close a rank-r update comes to the full one, by truncation and by training.

Pretrain a base model once. For each seed, fine-tune every weight matrix in full, which gives the update Delta W; then
compare at every rank r, matrix by matrix,

    svd             the best rank-r approximation of Delta W: the closed-form lower bound of the weight error
    activation_svd  the rank-r approximation of Delta W that changes the outputs of each matrix least
    lora            lora_B lora_A of rank r, trained on the task from the base model, never having seen Delta W

All methods change the same matrices; biases stay at their pretrained values. A matrix whose smaller side is less than r
gets the rank of that side. The batches of a seed are the same for every method.
"""

import copy
import itertools
import time
from dataclasses import dataclass, replace

import joblib
import numpy as np
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from .adapters import LoRAConfig, adapters, inject
from .adapters.lora import scaling_of
from .adapters.memory import count
from .backend import asarray_like, data_like, get_xp, to_numpy
from .data import Batches, Task
from .errors import InputError
from .layers import Layer
from .low_rank import activation_factor, truncate, truncate_for_inputs
from .optim import AdamW
from .train import train


@dataclass(frozen=True)
class Setting:
    """What all runs of a sweep share. Its learning rates: within 10 % of the best validation loss
    in figures/data/learning_rates.csv."""

    base: Layer
    task: Task
    epochs: int = 60
    batch_size: int = 64
    lr_full: float = 3e-3
    lr_lora: float = 1e-2
    lora_alpha: float = 16
    backend: str = "numpy"

    def __post_init__(self):
        """Check the options under their own names, before any work."""
        if self.epochs < 1 or self.batch_size < 1:
            raise InputError(f"epochs and batch_size must be at least 1; got {self.epochs} and {self.batch_size}")
        scaling_of(1, self.lora_alpha, use_rslora=False)

    def check(self, ranks, seeds):
        """Raise InputError unless there are seeds, and ranks that the matrices can have."""
        if not ranks or any(isinstance(r, bool) or not isinstance(r, int) or r < 1 for r in ranks):
            raise InputError(f"ranks must be positive integers; got {ranks}")
        if max(ranks) > (largest := max(min(shape) for shape in self.shapes.values())):
            raise InputError(f"rank {max(ranks)} is larger than the largest possible one, {largest}, of {self.shapes}")
        if not seeds:
            raise InputError("at least one seed is needed; got none")

    def fresh_model(self):
        """A copy of the base on the backend."""
        return copy.deepcopy(self.base).to(get_xp(self.backend))

    @property
    def shapes(self):
        """{path: (d_out, d_in)} of the matrices that are adapted."""
        layers = self.base.named_layers()
        return {path: tuple(layer.params["weight"].shape) for path, layer in layers if "weight" in layer.params}

    def ranks(self, r):
        """{path: min(r, d_out, d_in)}."""
        return {path: min(r, *shape) for path, shape in self.shapes.items()}


def rank_sweep(setting, ranks, seeds, jobs=1, progress=False):
    """Rows {method, r, seed, params, weight_error, test_loss, test_accuracy, seconds}, sorted by method, r, seed.

    weight_error: ||update - Delta W||_F / ||Delta W||_F over all matrices together. seconds: of one training, or of the
    SVDs, one per matrix, that serve every rank. jobs: processes; each computes with one BLAS thread, so that no number
    but the seconds depends on how many there are.
    """
    setting.check(ranks, seeds)
    ranks = sorted(set(ranks))
    run = joblib.Parallel(n_jobs=jobs, return_as="generator_unordered")
    with tqdm(total=len(seeds) * (1 + len(ranks)), delay=2, disable=None if progress else True, unit="run") as bar:
        rows, updates = [], {}
        for seed, update, new in run(joblib.delayed(_full_and_truncations)(setting, ranks, seed) for seed in seeds):
            updates[seed] = update
            rows += new
            bar.update()
        longest_first = itertools.product(reversed(ranks), seeds)
        for row in run(joblib.delayed(_lora)(setting, r, seed, updates[seed]) for r, seed in longest_first):
            rows.append(row)
            bar.update()
    order = ("full", "svd", "activation_svd", "lora")
    return sorted(rows, key=lambda row: (order.index(row["method"]), row["r"] or 0, row["seed"]))


def learning_rate_sweep(setting, ranks, rates, seeds, jobs=1, progress=False):
    """Rows {method, r, lr, seed, ...as rank_sweep} on validation rows held out of the training rows, for every rate.

    A rank of None stands for full fine-tuning. weight_error is left out: validation runs see less data.
    """
    runs = list(itertools.product(ranks, rates, seeds))
    run = joblib.Parallel(n_jobs=jobs, return_as="generator")
    rows = run(joblib.delayed(_rate_row)(setting, r, rate, seed) for r, rate, seed in runs)
    return list(tqdm(rows, total=len(runs), delay=2, disable=None if progress else True, unit="run"))


def _rate_row(setting, r, lr, seed):
    setting = replace(setting, task=setting.task.validation(), lr_full=lr, lr_lora=lr)
    with threadpool_limits(1):
        row = _full(setting, seed)[0] if r is None else _lora(setting, r, seed, None)
    return {"lr": lr} | {k: v for k, v in row.items() if k != "weight_error"}


def _fit(setting, model, lr, seed):
    task = setting.task
    train(
        model,
        Batches(task.x_train, task.y_train, setting.batch_size, seed),
        AdamW(lr),
        epochs=setting.epochs,
        seed=seed,
    )


def _row(setting, method, r, seed, params, weight_error, model, seconds):
    like = next(iter(model.named_params().values()))
    loss, accuracy = model.evaluate(data_like(setting.task.x_test, like), data_like(setting.task.y_test, like))
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


def _relative_error(got, want):
    """||got - want||_F / ||want||_F over all matrices of {path: matrix} together."""
    lost = sum(np.sum((got[path] - want[path]) ** 2) for path in want)
    return float(np.sqrt(lost / sum(np.sum(w**2) for w in want.values())))


def _host_update(model, base):
    """{path: float64 weight of the model minus that of the base}, on the host."""
    after, before = model.named_params(), base.named_params()
    names = [name for name in before if name.endswith("weight")]
    return {
        n.removesuffix(".weight"): to_numpy(after[n]).astype("f8") - to_numpy(before[n]).astype("f8") for n in names
    }


def _full(setting, seed):
    """(row, model) of one full fine-tuning."""
    model = setting.fresh_model()
    model.set_trainable(f"{path}.weight" for path in setting.shapes)
    start = time.perf_counter()
    _fit(setting, model, setting.lr_full, seed)
    seconds = time.perf_counter() - start
    return _row(setting, "full", None, seed, count(model.trainable_params()), 0.0, model, seconds), model


def _full_and_truncations(setting, ranks, seed):
    """(seed, {path: Delta W}, rows) of one full fine-tuning and of its truncations to every rank."""
    with threadpool_limits(1):
        row, model = _full(setting, seed)
        rows, update = [row], _host_update(model, setting.base)
        inputs = model.inputs_of(data_like(setting.task.x_train, next(iter(model.named_params().values()))))
        factors = {path: activation_factor([to_numpy(x).astype("f8")]) for path, x in inputs.items()}
        for method in ("svd", "activation_svd"):
            start = time.perf_counter()
            truncations = {
                path: truncate(delta) if method == "svd" else truncate_for_inputs(delta, factors[path])
                for path, delta in update.items()
            }
            seconds = time.perf_counter() - start
            for r in ranks:
                truncated = {path: truncations[path].weight(k) for path, k in setting.ranks(r).items()}
                model = setting.fresh_model()
                for path, delta in truncated.items():
                    weight = model.named_params()[f"{path}.weight"]
                    weight += asarray_like(delta, weight)
                params = sum(k * sum(setting.shapes[path]) for path, k in setting.ranks(r).items())
                rows.append(_row(setting, method, r, seed, params, _relative_error(truncated, update), model, seconds))
    return seed, update, rows


def _lora(setting, r, seed, update):
    """The row of one LoRA training, compared with the update of full fine-tuning on the same batches."""
    with threadpool_limits(1):
        model = setting.fresh_model()
        config = LoRAConfig(r=r, lora_alpha=setting.lora_alpha, rank_pattern=setting.ranks(r))
        inject(model, config, np.random.default_rng(seed))
        start = time.perf_counter()
        _fit(setting, model, setting.lr_lora, seed)
        seconds = time.perf_counter() - start
        got = {path: to_numpy(layer.delta_weight()).astype("f8") for path, layer in adapters(model).items()}
        params = count(model.trainable_params())
        weight_error = None if update is None else _relative_error(got, update)
        return _row(setting, "lora", r, seed, params, weight_error, model, seconds)
