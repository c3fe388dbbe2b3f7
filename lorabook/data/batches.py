"""Batches {name: array} of a table or of texts, shuffled from step to step, with random access."""

import copy
import math

import numpy as np

from ..errors import InputError, check_integer
from ..files import fingerprint

POOL = 50  # batches of texts that are sorted by length together


class Table:
    """Examples that are rows of arrays: {name: array (n, ...)}, e.g. {"x": (n, d), "labels": (n,)}."""

    lengths = None

    def __init__(self, arrays):
        self.arrays = {name: np.asarray(array) for name, array in arrays.items()}
        if len(sizes := {len(array) for array in self.arrays.values()}) != 1:
            came = ", ".join(f"{name} {array.shape}" for name, array in self.arrays.items()) or "none"
            raise InputError(f"expected arrays of as many rows each; got {came}")
        (self.n,) = sizes

    def fingerprint(self):
        """sha256 of the arrays."""
        return fingerprint(self.arrays)

    def rows(self, rows):
        """The batch {name: array} of the rows with these numbers."""
        return {name: array[rows] for name, array in self.arrays.items()}

    def first(self, n):
        """The first n rows alone."""
        return Table({name: array[:n] for name, array in self.arrays.items()})


class Batches:
    """Shuffled batches {name: array}: `at(step)` depends on seed and step alone, so a resumed run needs no cursor.

    Every epoch is a new permutation; the last rows that do not fill a batch are left out of that epoch. Where examples
    have lengths, as texts do, those of similar length go together: an epoch shuffles them, sorts pools of `pool`
    batches by length, cuts them into batches and shuffles those. That is little padding, and still another composition
    in every epoch.

    >>> import numpy as np, lorabook as lb
    >>> batches = lb.Batches({"x": np.arange(6.0).reshape(3, 2), "labels": np.array([0, 1, 0])}, batch_size=2)
    >>> len(batches), sorted(batches.at(0)), batches.at(0)["x"].shape
    (1, ['labels', 'x'], (2, 2))
    """

    def __init__(self, examples, batch_size, seed=0, pool=POOL):
        """examples: {name: array (n, ...)}, or an object with `n`, `lengths` (or None), `rows`, `first` and
        `fingerprint`, such as `text.Texts`.
        """
        self.examples = Table(examples) if isinstance(examples, dict) else examples
        n = self.examples.n
        self.batch_size = check_integer("batch_size", batch_size, 1, n, f"the {n:,} training rows")
        self.seed, self.pool = seed, pool
        self._epoch, self._order = None, None

    @property
    def n(self):
        """Rows."""
        return self.examples.n

    def __len__(self):
        """Steps an epoch."""
        return self.n // self.batch_size

    def fingerprint(self):
        """sha256 of the examples."""
        return self.examples.fingerprint()

    def at(self, step):
        """The batch of one step, counted over all epochs."""
        epoch, i = divmod(step, len(self))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._shuffled(np.random.default_rng([self.seed, epoch]))
        return self.examples.rows(self._order[i])

    def _shuffled(self, rng):
        """(steps, batch_size) numbers of rows."""
        order = rng.permutation(self.n)[: len(self) * self.batch_size]
        if (lengths := self.examples.lengths) is None:
            return order.reshape(len(self), self.batch_size)
        size = self.pool * self.batch_size
        pools = [order[i : i + size] for i in range(0, len(order), size)]
        by_length = np.concatenate([pool[np.argsort(lengths[pool], kind="stable")] for pool in pools])
        return rng.permutation(by_length.reshape(len(self), self.batch_size))

    def first(self, share):
        """Batches of the first examples alone, a share of 0 .. 1 of them."""
        part = copy.copy(self)
        part.examples, part._epoch = self.examples.first(round(share * self.n)), None
        return part

    def in_order(self):
        """Yield (rows, batch) of batches that cover every example once, shortest first: for evaluation."""
        lengths = self.examples.lengths
        order = np.arange(self.n) if lengths is None else np.argsort(lengths, kind="stable")
        for i in range(math.ceil(self.n / self.batch_size)):
            rows = order[i * self.batch_size : (i + 1) * self.batch_size]
            yield rows, self.examples.rows(rows)
