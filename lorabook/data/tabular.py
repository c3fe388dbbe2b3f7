"""Tasks of numbers: a table of the reader's own, with a column of labels, split into training and test rows."""

from array import array
from collections import Counter
from dataclasses import dataclass

import numpy as np

from ..errors import InputError
from ..files import number_in, short, table_rows
from .labels import in_order, named_labels


@dataclass(frozen=True)
class NumberTask:
    """Training and test rows on the host: x (N, d) float32, y (N,) int64 labels or (N, k) float targets."""

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray

    def __post_init__(self):
        for part in ("train", "test"):
            x, y = getattr(self, f"x_{part}"), getattr(self, f"y_{part}")
            if len(x) != len(y) or len(x) == 0:
                raise InputError(
                    f"{self.name}: {len(x)} {part} rows but {len(y)} labels; expected as many, and at least one"
                )
            bad = ~np.isfinite(x).all(axis=tuple(range(1, x.ndim)))
            if bad.any():
                where = f"{bad.sum()} of {len(x)} {part} rows, first in row {int(bad.argmax())}"
                raise InputError(f"{self.name}: NaN or Inf in {where}; drop those rows or fill them in")
            if y.dtype.kind in "iu" and y.min() < 0:
                raise InputError(f"{self.name}: label {y.min()} in the {part} rows; labels are numbered from 0")

    def validation(self, share=0.25, seed=0):
        """This task with its test rows replaced by rows held out of the training rows: to choose hyperparameters on."""
        order = np.random.default_rng(seed).permutation(len(self.x_train))
        held_out, kept = np.split(order, [round(share * len(order))])
        x, y = self.x_train, self.y_train
        return NumberTask(f"{self.name}, validation", x[kept], y[kept], x[held_out], y[held_out])

    def part(self, name):
        """The rows {"x", "labels"} for "train" or for "test"."""
        return {"x": getattr(self, f"x_{name}"), "labels": getattr(self, f"y_{name}")}

    @property
    def classes(self):
        """Number of classes, from the largest label."""
        return int(max(self.y_train.max(), self.y_test.max())) + 1


def csv_task(path, seed=0, test_share=1 / 3, encoding="utf-8"):
    """A NumberTask from a .csv, .tsv or .jsonl file: a column `label` (see `labels`), all other columns numbers.

    Columns are shifted and scaled to mean 0, standard deviation 1 on the training rows, so that no choice of units
    matters; one that is constant there becomes 0. The seed draws a stratified split.
    """
    from sklearn.model_selection import train_test_split

    numbers, labels, columns = array("d"), [], None
    for line, row in table_rows(path, ("label",), None, encoding):
        labels.append((line, row.pop("label")))
        columns = columns or [*row]
        numbers.extend(number_in(row[c], f"{path}, line {line}, column {short(c)}") for c in columns)
    if not columns:
        raise InputError(f"{path}: expected rows, and a column of numbers beside `label`")
    labels = named_labels(labels, path)
    x = np.frombuffer(numbers).reshape(len(labels), len(columns))
    names, counts = in_order(labels), Counter(labels)
    if len(names) < 2 or min(counts.values()) < 2 or int(test_share * len(x)) < len(names):
        found = ", ".join(f"{name}: {counts[name]}" for name in names[:8])
        raise InputError(f"{path}: expected two labels or more and at least three rows of each; got {short(found)}")
    place = {name: i for i, name in enumerate(names)}
    y = np.array([place[label] for label in labels], np.int64)
    x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=test_share, random_state=seed, stratify=y)
    x_train, x_test = _standardised(x_train, x_test)
    return NumberTask(str(path), x_train, y_train, x_test, y_test)


def _standardised(x_train, x_test):
    """Both in float32, shifted and scaled column by column to mean 0, standard deviation 1 on the training rows.

    In float64, in units of the column's largest entry (a power of two, so exact) and from its first row on: no offset
    or unit takes digits from the statistics. What differs by rounding alone is constant, and becomes 0.
    """
    exponent = np.frexp(np.abs(x_train).max(axis=0))[1]
    with np.errstate(over="ignore"):  # a test row far outside of the training rows: Inf, which NumberTask reports
        train, test = (np.ldexp(x, -exponent) for x in (x_train, x_test))
        train, test = train - train[0], test - train[0]
        mean, scale = train.mean(axis=0), train.std(axis=0)
        varies = np.ptp(train, axis=0) > 8 * np.finfo(np.float64).eps
        scale[~varies] = 1
        return [np.where(varies, (x - mean) / scale, 0).astype(np.float32) for x in (train, test)]
