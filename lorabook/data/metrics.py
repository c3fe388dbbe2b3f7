"""How well a classifier does, from its logits and the true labels: loss, accuracy, F1, and who is taken for whom."""

from dataclasses import dataclass

import numpy as np

from ..errors import InputError, NonFiniteError


@dataclass(frozen=True)
class Report:
    """What `report` finds. confusion (k, k): how many rows of each true class (row) were given each label (column)."""

    loss: float
    confusion: np.ndarray

    @property
    def rows(self):
        """How many rows were counted."""
        return int(self.confusion.sum())

    @property
    def accuracy(self):
        """The share of rows that are right, in 0 .. 1."""
        return float(np.trace(self.confusion) / self.rows)

    @property
    def counts(self):
        """(k,) rows of each true class."""
        return self.confusion.sum(axis=1)

    @property
    def predicted(self):
        """(k,) rows that were given each label."""
        return self.confusion.sum(axis=0)

    @property
    def precision(self):
        """(k,) of the rows that were given a label, the share that is right; 0 where there are none."""
        return _share(np.diag(self.confusion), self.predicted)

    @property
    def recall(self):
        """(k,) of the rows of a class, the share that is right; 0 where there are none."""
        return _share(np.diag(self.confusion), self.counts)

    @property
    def f1(self):
        """(k,) the harmonic mean of precision and recall: 2 right / (rows of the class + rows given its label)."""
        return _share(2 * np.diag(self.confusion), self.counts + self.predicted)

    @property
    def macro_f1(self):
        """The plain mean of F1 over the classes that some row has or was given: scikit-learn's, average="macro"."""
        return float(self.f1[self.counts + self.predicted > 0].mean())


def report(logits, labels):
    """The Report of logits (N, k) for true labels (N,) from 0 to k - 1. Of equal logits the first class is taken.

    loss: the mean cross entropy in nats, computed in float64. Raises NonFiniteError if a logit is NaN or Inf.
    """
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels)
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not labels.size:
        raise InputError(f"expected logits (N, k) and labels (N,), N >= 1; got {logits.shape} and {labels.shape}")
    k = logits.shape[1]
    if not 0 <= labels.min() <= labels.max() < k:
        raise InputError(f"labels must be from 0 to {k - 1}; got {labels.min()} to {labels.max()}")
    if not (finite := np.isfinite(logits).all(axis=1)).all():
        raise NonFiniteError(f"the model answers NaN or Inf, first for row {int(finite.argmin()) + 1} of {len(labels)}")
    shifted = logits - logits.max(axis=1, keepdims=True)
    loss = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels]
    pairs = labels * k + logits.argmax(axis=1)
    return Report(float(loss.mean()), np.bincount(pairs, minlength=k * k).reshape(k, k))


def _share(part, whole):
    return np.divide(part, whole, out=np.zeros(len(whole)), where=whole > 0)
