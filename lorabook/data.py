"""Tasks: real digits, pretrained upright and adapted to a shifted version; planted problems whose best answer is known.

Everything is seeded and drawn on the host, so that every backend sees the same numbers.
"""

from array import array
from collections import Counter
from dataclasses import dataclass

import numpy as np

from .configs import short
from .errors import InputError, check_integer
from .io import fingerprint
from .labels import in_order, named_labels
from .tables import number_in, table_rows


@dataclass(frozen=True)
class Task:
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
        return Task(f"{self.name}, validation", x[kept], y[kept], x[held_out], y[held_out])

    @property
    def classes(self):
        """Number of classes, from the largest label."""
        return int(max(self.y_train.max(), self.y_test.max())) + 1


# ---- digits ----------------------------------------------------------------------------------------------------------


def _rotate(images, degrees):
    from scipy import ndimage

    return ndimage.rotate(images, degrees, axes=(1, 2), reshape=False, order=1)


def _permute(images):
    order = np.random.default_rng(0).permutation(64)
    return images.reshape(-1, 64)[:, order].reshape(-1, 8, 8)


SHIFTS = {
    "digits": ("upright, as scanned", lambda images: images),
    "digits-rotated": ("turned by 90 degrees", lambda images: np.rot90(images, axes=(1, 2))),
    "digits-tilted": ("turned by 45 degrees, interpolated", lambda images: _rotate(images, 45)),
    "digits-mirrored": ("left and right exchanged", lambda images: images[:, :, ::-1]),
    "digits-permuted": ("the 64 pixels in one fixed random order", _permute),
}


def digits(name="digits", seed=0, test_share=1 / 3):
    """The 1,797 handwritten digits of scikit-learn, 8 x 8 grey values in 0 .. 1, under one of SHIFTS.

    The same seed gives the same stratified split for every shift, so no test digit is seen in pretraining either.
    """
    if name not in SHIFTS:
        raise InputError(
            f"unknown data {name!r}; expected one of {', '.join(SHIFTS)}, or the path of a .csv, .tsv or .jsonl file"
        )
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    images = SHIFTS[name][1](images.reshape(-1, 8, 8) / 16)
    x = np.ascontiguousarray(images.reshape(-1, 64), dtype=np.float32)
    x_train, x_test, y_train, y_test = train_test_split(
        x, labels.astype(np.int64), test_size=test_share, random_state=seed, stratify=labels
    )
    return Task(name, x_train, y_train, x_test, y_test)


# ---- the reader's own numbers ----------------------------------------------------------------------------------------


def csv_task(path, seed=0, test_share=1 / 3, encoding="utf-8"):
    """A Task from a .csv, .tsv or .jsonl file: a column `label` (see `labels`), all other columns numbers.

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
    return Task(str(path), x_train, y_train, x_test, y_test)


def _standardised(x_train, x_test):
    """Both in float32, shifted and scaled column by column to mean 0, standard deviation 1 on the training rows.

    In float64, in units of the column's largest entry (a power of two, so exact) and from its first row on: no offset
    or unit takes digits from the statistics. What differs by rounding alone is constant, and becomes 0.
    """
    exponent = np.frexp(np.abs(x_train).max(axis=0))[1]
    with np.errstate(over="ignore"):  # a test row far outside of the training rows: Inf, which Task reports
        train, test = (np.ldexp(x, -exponent) for x in (x_train, x_test))
        train, test = train - train[0], test - train[0]
        mean, scale = train.mean(axis=0), train.std(axis=0)
        varies = np.ptp(train, axis=0) > 8 * np.finfo(np.float64).eps
        scale[~varies] = 1
        return [np.where(varies, (x - mean) / scale, 0).astype(np.float32) for x in (train, test)]


# ---- planted: linear regression whose best update of every rank is known ---------------------------------------------


@dataclass(frozen=True)
class Planted:
    """y = x (W + delta)^T + noise. `weight` W (d_out, d_in) is the frozen base; the low-rank `delta` is to be found."""

    weight: np.ndarray
    delta: np.ndarray
    x: np.ndarray
    y: np.ndarray


def planted(d_out=24, d_in=32, rank=4, n=512, noise=0.0, condition=10.0, seed=0):
    """A Planted problem in float64, n rows.

    The singular values of delta fall from 1 to 1/2; the inputs' standard deviations along random orthogonal directions
    fall from 1 to 1 / condition. noise: standard deviation of the noise on y.
    """
    if not 1 <= rank <= min(d_out, d_in) or condition < 1 or noise < 0 or n < 1:
        expected = f"1 <= rank <= {min(d_out, d_in)}, condition >= 1, noise >= 0, n >= 1"
        raise InputError(f"expected {expected}; got {rank}, {condition}, {noise}, {n}")
    rng = np.random.default_rng(seed)

    def orthogonal(rows, columns):
        return np.linalg.qr(rng.standard_normal((rows, columns)))[0]

    weight = rng.standard_normal((d_out, d_in)) / np.sqrt(d_in)
    delta = orthogonal(d_out, rank) * np.linspace(1, 0.5, rank) @ orthogonal(d_in, rank).T
    x = rng.standard_normal((n, d_in)) * np.geomspace(1, 1 / condition, d_in) @ orthogonal(d_in, d_in).T
    y = x @ (weight + delta).T + noise * rng.standard_normal((n, d_out))
    return Planted(weight, delta, x, y)


# ---- batches ---------------------------------------------------------------------------------------------------------


class Batches:
    """Shuffled batches with random access: `at(step)` depends on seed and step alone, so a resumed run needs no cursor.

    Every epoch is a new permutation; the last rows that do not fill a batch are left out of that epoch.
    """

    def __init__(self, x, y, batch_size, seed=0):
        self.batch_size = check_integer("batch_size", batch_size, 1, len(x), f"the {len(x)} training rows")
        self.x, self.y, self.seed = x, y, seed
        self._epoch, self._order = None, None

    @property
    def n(self):
        """Rows."""
        return len(self.x)

    def __len__(self):
        """Steps an epoch."""
        return self.n // self.batch_size

    def fingerprint(self):
        """sha256 of x and y."""
        return fingerprint({"x": self.x, "y": self.y})

    def at(self, step):
        """(x, y) of one step, counted over all epochs."""
        epoch, i = divmod(step, len(self))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, np.random.default_rng([self.seed, epoch]).permutation(len(self.x))
        rows = self._order[i * self.batch_size : (i + 1) * self.batch_size]
        return self.x[rows], self.y[rows]
