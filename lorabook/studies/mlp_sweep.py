"""The rank sweep of a small MLP on numbers: shifted digits, or the reader's own table."""

import hashlib
from functools import partial
from pathlib import Path

from ..data import SHIFTS
from ..errors import check_integer
from ..files import is_table
from ..tasks import csv_problem, digits_problem
from .sweep import Setting


def setting_for(data="digits-rotated", seed=0, encoding="utf-8", batch_size=None, **options):
    """(Setting, title) of a sweep: from upright digits to a shifted version of them, or on the user's own table.

    A table has no upright version to pretrain on: its base is an untrained MLP, so Delta W is all that training does.
    seed: the one whose problem the title describes. encoding: of the table. batch_size: by default the Setting's, or
    all rows where those are fewer; more than there are is refused, as in training.
    """
    own = is_table(data)
    problem = partial(csv_problem, data, encoding=encoding) if own else partial(digits_problem, data)
    first = problem(seed)
    if batch_size is not None:
        n = len(first.task.x_train)
        options["batch_size"] = check_integer("batch_size", batch_size, 1, n, f"the {n:,} training rows")
    setting, sizes = Setting(problem, about={"data": data}, **options), _sizes(first.base)
    if own:
        with open(data, "rb") as file:
            setting.about["data"] = hashlib.file_digest(file, "sha256").hexdigest()
    return setting, f"MLP {sizes} on {Path(data).name}, from random weights" if own else digits_title(data, sizes)


def digits_title(data="digits-rotated", sizes="64-128-128-10"):
    """What the sweep on shifted digits shows, in words."""
    return f"MLP {sizes}, pretrained on upright handwritten digits; now {SHIFTS[data][0]}"


def _sizes(model):
    weights = [array for array in model.named_params().values() if array.ndim == 2]
    return "-".join(str(n) for n in (weights[0].shape[1], *(W.shape[0] for W in weights)))
