"""How each row of a rank sweep is computed: one training, or the truncations of one full update to every rank.

setting: `sweep.Setting`. problem: the base model and the task of a seed, `pretrain.Problem` or one like it. Rows of a
seed need what full fine-tuning of that seed left, {name: array} of all parameters that it changed, and nothing else of
each other: they may be computed in any order, on several processes, and by several runs.
"""

import copy
import math
import time

import numpy as np

from ..adapters import LoRAConfig, adapters, count, inject, is_saved
from ..backend import asarray_like, get_xp, to_numpy
from ..errors import FormatError, InputError, NonFiniteError
from ..linalg import truncate, truncate_for_inputs
from ..parallel import team
from ..training import AdamW, train

COLUMNS = ("method", "r", "seed", "params", "weight_error", "test_loss", "test_accuracy", "seconds")
OVERFLOWS = np.errstate(all="ignore")  # what overflows becomes an error in one line, not a warning


@OVERFLOWS
def full_rows(setting, problem, seed):
    """([row], {name: host array} of all that changed) of full fine-tuning, or of the problem's own tuned model."""
    with team(setting.workers) as workers:
        model, seconds = trained(setting, problem, None, seed, workers)
        arrays = {name: to_numpy(array) for name, array in model.trainable_params().items()}
        if not any(delta.any() for delta in _differences(arrays, problem).values()):
            raise InputError("full fine-tuning changed no matrix: there is no update to compare with")
        result = problem.evaluate(model, workers)
    return [_row("full", None, seed, count(arrays), 0.0, result, seconds)], arrays


@OVERFLOWS
def truncation_rows(setting, problem, seed, ranks, arrays):
    """The rows of svd and activation_svd at these ranks."""
    _check(arrays, problem)
    with team(setting.workers) as workers:
        tuned, update = _fresh(setting, problem), _differences(arrays, problem)
        _put(arrays, tuned)
        factors = problem.factors(tuned, seed, workers)
        del tuned
        rest = {name: a for name, a in arrays.items() if name.removesuffix(".weight") not in update}
        rows = []
        for method in ("svd", "activation_svd"):
            begin = time.perf_counter()
            if method == "svd":
                found = workers.map(truncate, update.values())
            else:
                found = workers.map(truncate_for_inputs, update.values(), [factors[path] for path in update])
            truncations = dict(zip(update, found, strict=True))
            seconds = time.perf_counter() - begin
            for r in ranks:
                truncated = {path: truncations[path].weight(k) for path, k in capped(r, problem.shapes).items()}
                model = _fresh(setting, problem)
                _put(rest, model)
                weights = model.named_params()
                for path, delta in truncated.items():
                    weights[f"{path}.weight"] += asarray_like(delta, weights[f"{path}.weight"])
                params = sum(k * sum(problem.shapes[path]) for path, k in capped(r, problem.shapes).items())
                error, result = relative_error(truncated, update), problem.evaluate(model, workers)
                rows.append(_row(method, r, seed, params + count(rest), error, result, seconds))
    return rows


@OVERFLOWS
def lora_rows(setting, problem, seed, r, arrays):
    """[the row] of one LoRA training, compared with the update of full fine-tuning."""
    _check(arrays, problem)
    with team(setting.workers) as workers:
        model, seconds = trained(setting, problem, r, seed, workers)
        error = relative_error(update_of(model, problem), _differences(arrays, problem))
        result = problem.evaluate(model, workers)
    return [_row("lora", r, seed, count(model.trainable_params()), error, result, seconds)]


def _row(method, r, seed, params, weight_error, result, seconds):
    row = dict(zip(COLUMNS, (method, r, seed, params, weight_error, *result, seconds), strict=True))
    if not math.isfinite(row["test_loss"]):
        raise NonFiniteError(f"{method}, r = {r}, seed {seed}: the loss on held-out rows is {row['test_loss']}")
    return row


# ---- parts of it -----------------------------------------------------------------------------------------------------


def trained(setting, problem, r, seed, workers=1):
    """(model, seconds) of one training from the problem's base: LoRA, or in full for an r of None.

    `seed` draws lora_A and the order of the batches. workers: as in `train`. A problem that brings a model which was
    fine-tuned in full already gives that one.
    """
    if r is None and problem.tuned is not None:
        return copy.deepcopy(problem.tuned).to(get_xp(setting.backend)), 0.0
    recipe, model = setting.recipe(r), start(setting, problem, r, seed)
    batches, begin = problem.batches(setting.batch_size, seed), time.perf_counter()
    options = {"epochs": setting.epochs, "lr_schedule": setting.lr_schedule, "seed": seed}
    train(model, batches, AdamW(recipe.lr), workers=workers, **options)
    return model, time.perf_counter() - begin


def start(setting, problem, r, seed):
    """The model as it is before training: with adapters, or ready to train in full for an r of None."""
    recipe, model, shapes = setting.recipe(r), _fresh(setting, problem), problem.shapes
    if r is None:
        heads = [n for n in model.named_params() if any(is_saved(n.rpartition(".")[0], m) for m in problem.head)]
        model.set_trainable([*(f"{path}.weight" for path in shapes), *heads])
    else:
        config = LoRAConfig(
            r=r,
            lora_alpha=recipe.lora_alpha,
            use_rslora=recipe.use_rslora,
            target_modules=list(shapes),
            rank_pattern={path: k for path, k in capped(r, shapes).items() if k != r},
            modules_to_save=problem.head,
        )
        inject(model, config, np.random.default_rng(seed))
    return model


def update_of(model, problem):
    """{path: float64 update of the matrix on the host}: of a model that was trained from the problem's base."""
    if layers := adapters(model):
        return {path: _host(layer.delta_weight()) for path, layer in layers.items()}
    return _differences(model.named_params(), problem)


def _differences(after, problem):
    before = problem.base.named_params()
    names = {path: f"{path}.weight" for path in problem.shapes}
    return {path: _host(after[name]) - _host(before[name]) for path, name in names.items()}


def relative_error(got, want):
    """||got - want||_F / ||want||_F over all matrices of {path: matrix} together."""
    lost = sum(np.sum((got[path] - want[path]) ** 2) for path in want)
    return float(np.sqrt(lost / sum(np.sum(w**2) for w in want.values())))


def capped(r, shapes):
    """{path: min(r, d_out, d_in)}."""
    return {path: min(r, *shape) for path, shape in shapes.items()}


def _fresh(setting, problem):
    """A copy of the base on the backend."""
    return copy.deepcopy(problem.base).to(get_xp(setting.backend))


def _check(arrays, problem):
    """Raise FormatError unless what full fine-tuning left fits the model; it may come from a file."""
    own, needed = problem.base.named_params(), {f"{path}.weight" for path in problem.shapes}
    shapes = {name: tuple(own[name].shape) if name in own else "no such parameter" for name in needed.union(arrays)}
    for name, shape in sorted(shapes.items()):
        if (came := tuple(arrays[name].shape) if name in arrays else "missing") != shape:
            raise FormatError(f"what full fine-tuning left does not fit the model: {name} is {came}, expected {shape}")
        if arrays[name].dtype.kind != "f" or not np.isfinite(arrays[name]).all():
            came = arrays[name].dtype if arrays[name].dtype.kind != "f" else "NaN or Inf in it"
            raise FormatError(f"what full fine-tuning left is no weight: {name} has {came}; expected finite numbers")


def _put(arrays, model):
    """Copy {name: host array} into those parameters of the model."""
    params = model.named_params()
    for name, array in arrays.items():
        params[name][...] = asarray_like(array, params[name])


def _host(array):
    return to_numpy(array).astype("f8")
