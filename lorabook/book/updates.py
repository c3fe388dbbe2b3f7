"""Updates of one network for one task, and where each lies: its length, its angle to the full one, and what it can do.

All are measured against Delta W, the update of full fine-tuning with the sweep's settings, all matrices end to end:

    length = ||update|| / ||Delta W||     cosine = <update, Delta W> / (||update|| ||Delta W||)
    distance = ||update - Delta W|| / ||Delta W||
"""

import copy

import numpy as np

from ..linalg import truncate, truncate_for_inputs
from ..studies import Recipe, setting_for, trained, update_of

TRUNCATED = (1, 2, 4, 8, 16)
TRAINED = {  # name: (rank, recipe or that of the sweep, seed)
    "full, lr 0.03": (None, None, 0),
    "full, other order": (None, None, 1),
    "full, lr 0.01": (None, Recipe(0.01), 0),
    "full, lr 0.003": (None, Recipe(0.003), 0),
    "LoRA, r = 1": (1, None, 0),
    "LoRA, r = 4": (4, None, 0),
    "LoRA, r = 16": (16, None, 0),
    "LoRA, r = 16, other seed": (16, None, 1),
}


def end_to_end(update):
    """One vector of all the numbers of {path: matrix}."""
    return np.concatenate([matrix.ravel() for matrix in update.values()])


def trained_updates(setting, problem, names=tuple(TRAINED)):
    """{name: {path: matrix}}: the update that each training named in TRAINED makes, from one base on one split."""
    updates = {}
    for name in names:
        r, recipe, seed = TRAINED[name]
        model, _ = trained(setting.using({r: recipe}) if recipe else setting, problem, r, seed)
        updates[name] = update_of(model, problem)
    return updates


def truncated_updates(problem, full):
    """{name: {path: matrix}}: the update `full`, cut to low rank with and without an eye on the inputs."""
    model = with_update(problem, full)
    factors = problem.factors(model, 0, 1)
    plain = {path: truncate(matrix) for path, matrix in full.items()}
    aware = {path: truncate_for_inputs(matrix, factors[path]) for path, matrix in full.items()}
    kinds = {"svd": plain, "activation_svd": aware}
    return {
        f"{kind}, r = {r}": {path: cut.weight(r) for path, cut in cuts.items()}
        for kind, cuts in kinds.items()
        for r in TRUNCATED
    }


def with_update(problem, update):
    """A copy of the base model with the update added to its matrices."""
    model = copy.deepcopy(problem.base)
    weights = model.named_params()
    for path, matrix in update.items():
        weights[f"{path}.weight"] += matrix.astype(weights[f"{path}.weight"].dtype)
    return model


def places(problem, updates, full):
    """Rows {update, length, cosine, distance, train_accuracy, test_accuracy} of {name: {path: matrix}}."""
    delta, rows = end_to_end(full), []
    for name, update in updates.items():
        vector, model = end_to_end(update), with_update(problem, update)
        size, unit = np.linalg.norm(vector), np.linalg.norm(delta)
        right = (model.evaluate(problem.task.part(part))[1] for part in ("train", "test"))
        row = {"update": name, "length": float(size / unit), "cosine": float(vector @ delta / size / unit)}
        row["distance"] = float(np.linalg.norm(vector - delta) / unit)
        rows.append(row | dict(zip(("train_accuracy", "test_accuracy"), right, strict=True)))
    return rows


def rows(jobs=1, progress=False, runs=None):
    """The rows of the figure: seed 0 of the rank sweep on turned digits."""
    setting, _ = setting_for("digits-rotated")
    problem = setting.problem(0)
    updates = trained_updates(setting, problem)
    full = updates["full, lr 0.03"]
    return places(problem, updates | truncated_updates(problem, full), full)
