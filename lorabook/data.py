"""Tasks: real digits, pretrained upright and adapted to a shifted version; planted problems whose best answer is known.

Everything is seeded and drawn on the host, so that every backend sees the same numbers.
"""

import csv
from dataclasses import dataclass

import numpy as np

from .errors import InputError
from .io import fingerprint


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
        raise InputError(f"unknown data {name!r}; expected one of {', '.join(SHIFTS)}, or the path of a .csv file")
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


def csv_task(path, seed=0, test_share=1 / 3):
    """A Task from a .csv file: a header, a column `label` (any text), all other columns numbers.

    Columns are shifted and scaled to mean 0, standard deviation 1 on the training rows; labels are numbered in order.
    """
    from sklearn.model_selection import train_test_split

    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            numbered = [(reader.line_num, [cell.strip() for cell in line]) for line in reader if line] or [(1, [])]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read {path} as CSV: {error}") from None
    (_, header), *lines = numbered
    if header.count("label") != 1 or len(header) < 2 or not lines:
        expected = "a header with one column `label`, others with numbers, and rows, separated by commas"
        raise InputError(f"{path}: expected {expected}; got the header {', '.join(header)[:60]!r}")
    at = header.index("label")
    x = np.empty((len(lines), len(header) - 1), np.float32)
    for row, (number, line) in zip(x, lines, strict=True):
        if len(line) != len(header):
            raise InputError(f"{path}, row {number}: expected {len(header)} cells, as in the header; got {len(line)}")
        try:
            with np.errstate(over="ignore"):  # too large for float32: Inf, which is reported
                row[:] = [float(cell) for cell in line[:at] + line[at + 1 :]]
        except ValueError as error:
            raise InputError(f"{path}, row {number}: expected numbers but for the label; {error}") from None
        if not np.isfinite(row).all():
            raise InputError(f"{path}, row {number}: NaN or Inf; drop that row or fill it in")
    names, y, counts = np.unique([line[at] for _, line in lines], return_inverse=True, return_counts=True)
    if len(names) < 2 or counts.min() < 2 or int(test_share * len(x)) < len(names):
        found = ", ".join(f"{n}: {c}" for n, c in zip(names[:8], counts, strict=False))
        raise InputError(f"{path}: expected two labels or more and at least three rows of each; got {found}")
    x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=test_share, random_state=seed, stratify=y)
    mean, scale = x_train.mean(axis=0), x_train.std(axis=0)
    scale[scale == 0] = 1
    return Task(str(path), (x_train - mean) / scale, y_train, (x_test - mean) / scale, y_test)


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
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or not 1 <= batch_size <= len(x):
            raise InputError(f"batch_size must be an integer from 1 to the {len(x)} training rows; got {batch_size!r}")
        self.x, self.y, self.batch_size, self.seed = x, y, batch_size, seed
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
