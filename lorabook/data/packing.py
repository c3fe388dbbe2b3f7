"""Several texts in one row of T tokens: a batch without much padding, in which no text sees another.

Rows as long as the longest text of a batch are mostly padding where lengths differ. Packed rows are as full as they
get: the texts, longest first, each go where the least room is left that will do (best fit decreasing, which needs
11/9 of the fewest rows at most, and 4 more; Johnson and others, 1974). What a row holds depends on the lengths alone,
which rows make a batch on the seed.

`segment_ids` number the texts of a row from 1, 0 is padding: a model lets t see u where both have the same and u <= t.
`position_ids` begin at 0 in each text. So every text is computed as if it stood alone, and the loss is the same but
for rounding: that is what `tests/data/test_packing.py` compares.
"""

import bisect
import copy

import numpy as np

from ..errors import InputError, check_integer
from ..files import fingerprint
from .sequences import IGNORED


def pack(lengths, T):
    """[[number of a text, ...], ...]: the texts of each row, by best fit decreasing. lengths: (n,), each at most T.

    >>> from lorabook.data import pack
    >>> pack([3, 5, 2, 6], T=8)
    [[3, 2], [1, 0]]
    """
    lengths = np.asarray(lengths)
    if len(lengths) and not 0 < lengths.min() <= lengths.max() <= T:
        raise InputError(f"expected texts of 1 to {T} tokens each; got {lengths.min()} to {lengths.max()}")
    rows, room, open_rows = [], [], {}  # room: the different numbers of places left, sorted; open_rows: {room: rows}
    for i in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[i])
        at = bisect.bisect_left(room, length)
        if at == len(room):
            row, left = len(rows), T
            rows.append([])
        else:
            left = room[at]
            row = open_rows[left].pop()
            if not open_rows[left]:
                del open_rows[left], room[at]
        rows[row].append(i)
        if left := left - length:
            if left not in open_rows:
                bisect.insort(room, left)
            open_rows.setdefault(left, []).append(row)
    return rows


class Packed:
    """`Sequences` packed into rows of T tokens: examples for `batches.Batches`, as `Sequences` are.

    A batch has besides position_ids and segment_ids (B, T). lengths (n,): tokens of each row.
    """

    def __init__(self, sequences, T=None):
        """T: tokens of a row (default: the max_length of the sequences)."""
        self.T = sequences.max_length if T is None else check_integer("T", T, 2)
        self.sequences, self.packed = sequences, pack(sequences.lengths, self.T)
        self.lengths = np.array([sequences.lengths[own].sum() for own in self.packed])

    @property
    def n(self):
        """Rows."""
        return len(self.packed)

    @property
    def tokens(self):
        """How many tokens count in the loss."""
        return sum(int(np.count_nonzero(self.sequences.labels[i] >= 0)) for own in self.packed for i in own)

    @property
    def padding(self):
        """The share of rows of T tokens that is padding, 0 .. 1."""
        return 1 - float(self.lengths.sum()) / (self.n * self.T)

    @property
    def notes(self):
        """Those of the sequences, and how much is padding."""
        texts = sum(map(len, self.packed))
        apart = 1 - float(self.sequences.lengths.mean() / self.sequences.lengths.max())
        return (
            *self.sequences.notes,
            f"packed {texts:,} texts, {self.T} tokens a row, rows: {self.n:,}; {100 * self.padding:.1f} % padding, "
            f"and {100 * apart:.1f} % with each text in a row as long as the longest",
        )

    def fingerprint(self):
        """sha256 of the sequences and of which row each is in."""
        own = np.array([i for own in self.packed for i in own])
        arrays = {"texts": own, "sizes": np.array([len(own) for own in self.packed])}
        return fingerprint(arrays, self.sequences.fingerprint())

    def rows(self, rows):
        """The batch of the rows with these numbers, as long as the fullest."""
        shape = len(rows), int(self.lengths[rows].max())
        names = ("input_ids", "attention_mask", "position_ids", "segment_ids")
        batch = {name: np.zeros(shape, np.int64) for name in names} | {"labels": np.full(shape, IGNORED, np.int64)}
        for line, row in enumerate(rows):
            at = 0
            for segment, i in enumerate(self.packed[row], start=1):
                ids = self.sequences.ids[i]
                own = line, slice(at, at := at + len(ids))
                batch["input_ids"][own], batch["labels"][own] = ids, self.sequences.labels[i]
                batch["position_ids"][own], batch["segment_ids"][own] = np.arange(len(ids)), segment
                batch["attention_mask"][own] = 1
        return batch

    def first(self, n):
        """The first n rows alone."""
        part = copy.copy(self)
        part.packed, part.lengths = self.packed[:n], self.lengths[:n]
        return part
