"""Keys and values of what a decoder has read, owned by whoever generates: the layers keep nothing."""

import numpy as np

from ..backend import array_namespace, empty
from ..errors import InputError, check_integer
from ..files import short


class KVCache:
    """The keys and values of up to `capacity` tokens in each of `rows` texts: the field `kv` of a `Run`.

    A pass with it reads input_ids (rows, T) as what comes next in each row, and afterwards `lengths` has grown. Rows
    may be of different lengths: where a row has fewer than T tokens, its attention_mask is 0 behind them, and its next
    tokens follow on the last that was real. Lengths may be set back: what stands behind them is forgotten.

        cache = KVCache(rows=2, capacity=512)
        logits = model.answer(batch, INFERENCE.but(kv=cache, asked=last_tokens(batch)))
    """

    def __init__(self, rows, capacity):
        self.rows, self.capacity = check_integer("rows", rows), check_integer("capacity", capacity)
        self.lengths = np.zeros(rows, int)
        self._held = {}

    def tokens(self, batch):
        """How many tokens of each row the batch {input_ids, attention_mask} adds, (rows,), host integers.

        Raises InputError unless the batch has as many rows, padding stands behind the tokens, and there is room.
        """
        rows, T = batch["input_ids"].shape
        if rows != self.rows:
            raise InputError(f"the cache is for {self.rows} rows; got input_ids {(rows, T)}")
        counts = np.full(rows, T)
        if (mask := batch.get("attention_mask")) is not None:
            xp = array_namespace(mask)
            real = mask != 0
            if bool(xp.any(real[:, 1:] & ~real[:, :-1])):
                raise InputError(
                    "with a cache, padding stands behind a row's tokens (on the right): attention_mask has 0 before 1"
                )
            counts = np.array([int(n) for n in xp.sum(xp.astype(real, xp.int64), axis=1)])
        if (longest := int(self.lengths.max()) + T) > self.capacity:
            raise InputError(f"the cache has room for {self.capacity} tokens a row; got {longest}")
        return counts

    def extend(self, layer, k, v):
        """(k, v) of all tokens so far, (rows, longest, d), of one attention layer, with those of this pass behind."""
        if layer not in self._held:
            self._held[layer] = tuple(empty((self.rows, self.capacity, x.shape[-1]), x) for x in (k, v))
            for held in self._held[layer]:
                held[...] = 0  # what is hidden is multiplied by 0: it must be a number
        T, longest = k.shape[1], int(self.lengths.max()) + k.shape[1]
        for held, new in zip(self._held[layer], (k, v), strict=True):
            if (self.lengths == self.lengths[0]).all():
                held[:, longest - T : longest, :] = new
            else:
                for row, n in enumerate(self.lengths.tolist()):
                    held[row, n : n + T, :] = new[row, ...]
        return tuple(held[:, :longest, :] for held in self._held[layer])

    def take(self, rows):
        """The cache of these rows (a list of numbers; one may occur more than once), as a new one: for beams."""
        array = np.asarray(rows)
        if (
            array.ndim != 1
            or not array.size
            or array.dtype.kind not in "iu"
            or not 0 <= array.min() <= array.max() < self.rows
        ):
            raise InputError(f"expected a list of rows of the cache, each from 0 to {self.rows - 1}; got {short(rows)}")
        rows = array.tolist()
        new = KVCache(len(rows), self.capacity)
        new.lengths = self.lengths[rows].copy()
        for layer, pair in self._held.items():
            new._held[layer] = tuple(array_namespace(x).stack([x[row, ...] for row in rows]) for x in pair)
        return new
