"""Data parallelism over processes: the shards of a batch on the ranks of an MPI job, on one machine or on many.

Every rank holds the whole model and takes a contiguous part of a batch's shards, on threads, as `threads` do. What
has to travel is the gradient of what trains, and an ordinary all-reduce adds it up in an order that depends on the
number of ranks: other bits with every number. Here every shard's loss and gradients are one row of n numbers, and the
columns are dealt out: each of the p ranks receives its c = ceil(n / p) columns of all s rows, adds them up in the order
of the shards, and hands the sums to all. That is bit for bit the sum of one process. In a step

    rank k receives (s - s_k + p - 1) c numbers,        all ranks together (p - 1) (s + p) c,

where s_k is the rank's own number of shards. The least that an all-reduce of n numbers can do is 2 (p - 1) n together
(Patarasuk and Yuan 2009, J. Parallel Distrib. Comput. 69, 117). With one shard a rank, that is what is received here;
with s / p shards a rank, (s / p + 1) / 2 times as much.
"""

import itertools
import math
import sys

import numpy as np

from ..adapters import base_params, count
from ..backend import asarray_like, to_numpy
from ..errors import InputError
from .mpi import MpiJob
from .threads import Workers, cut


class Ranks(Workers):
    """The threads of all processes of an MPI job as one team: `with Ranks() as ranks: train(..., workers=ranks)`.

    Every process runs the same lines; the result is that of one process, bit for bit. Only the first prints and writes,
    and an error in one ends all: see `mpi.MpiJob`.
    """

    def __init__(self, n=None):
        """n: threads of each rank; default: the cores of its machine, shared out among the ranks there."""
        self.job = MpiJob()
        super().__init__(self.job.cores() if n is None else n)
        self.size, self.first = self.job.size, self.job.first
        self.steps, self.shards_seen, self.received = 0, 0, 0
        self._told = False

    def __enter__(self):
        self._stack.enter_context(self.job)
        return super().__enter__()

    def loss_and_grad(self, model, batch, rng=None, tell=None):
        params = model.trainable_params()
        places, numbers = _places(params)
        parts = self._parts(len(cut(model, batch)))
        own, c = parts[self.job.rank], math.ceil(numbers / self.size)
        rows = np.full((own.stop - own.start, self.size * c), -0.0, _dtype(params))  # -0.0 + a has the bits of a
        for row, (loss, grads) in zip(rows, self.shards(model, batch, rng, own, tell), strict=True):
            row[0] = to_numpy(loss)
            for name, grad in grads.items():  # none of a shard without labels that count
                row[places[name]] = to_numpy(grad).reshape(-1)
        total = self._add(rows, [part.stop - part.start for part in parts])
        grads = {name: total[places[name]].reshape(tuple(a.shape)) for name, a in params.items()}
        return total[0], {name: asarray_like(grad, params[name]) for name, grad in grads.items()}

    def _parts(self, shards):
        """The slice of the shards that each rank computes; where they do not come out even, the first have one more."""
        if shards < self.size and not self._told:
            self._told = True
            idle = f"{self.size - shards} of {self.size} ranks idle"
            print(f"note: a batch of {shards} shards leaves {idle}; try a larger --batch-size", file=sys.stderr)
        edges = [math.ceil(i * shards / self.size) for i in range(self.size + 1)]
        return [slice(*edge) for edge in itertools.pairwise(edges)]

    def _add(self, rows, counts):
        """The sum, in order, of the rows of all ranks, counts[k] on rank k: (s_k, p c) -> (p c,)."""
        comm, (own, width) = self.job.comm, rows.shape
        c = width // self.size
        send = np.ascontiguousarray(rows.reshape(own, self.size, c).swapaxes(0, 1))  # (p, s_k, c)
        columns, total = np.empty((sum(counts), c), rows.dtype), np.empty(width, rows.dtype)
        self.job.exchange()  # is all well everywhere?
        self.job.transfer(comm.Ialltoallv([send, [own * c] * self.size], [columns, [n * c for n in counts]]))
        mine = columns[0].copy()
        for row in columns[1:]:
            mine += row
        self.job.transfer(comm.Iallgather(mine, total))
        self.received += columns.nbytes - own * mine.nbytes + total.nbytes - mine.nbytes
        self.steps, self.shards_seen = self.steps + 1, self.shards_seen + len(columns)
        return total

    def spread(self, function, items):
        items = list(items)
        every = self.job.exchange(list(self.map(function, items[self.job.rank :: self.size])))
        return [every[i % self.size][i // self.size] for i in range(len(items))]

    def agree(self, facts, error=InputError):
        every = self.job.exchange(facts())
        for rank, facts in enumerate(every):
            for name in sorted(facts.keys() | every[0].keys()):
                if (came := facts.get(name)) != (expected := every[0].get(name)):
                    came, expected = (repr(value)[:24] for value in (came, expected))  # of a hash, its beginning
                    raise error(f"rank {rank} differs from rank 0 in {name}: {came}, on rank 0 {expected}")

    def share(self, value):
        return self.job.exchange(value if self.first else None)[0]

    def copy(self, arrays):
        self.job.exchange()
        for _, array in sorted(arrays.items()):
            host = np.ascontiguousarray(to_numpy(array))
            self.job.transfer(self.job.comm.Ibcast(host))
            array[...] = asarray_like(host, array)

    def traffic(self, model):
        """What the steps so far have cost: a dict; every rank calls this.

        {ranks, threads, steps, shards, numbers, itemsize; bytes: received by all ranks together, counted; all_reduce,
        full: bytes of the best all-reduce of these gradients, and of those of full fine-tuning, by arithmetic}.
        """
        params = model.trainable_params()
        size, steps, itemsize = self.size, self.steps, _dtype(params).itemsize
        least = 2 * (size - 1) * steps * itemsize
        return {
            "ranks": size,
            "threads": self.n,
            "steps": steps,
            "shards": self.shards_seen,
            "numbers": 1 + count(params),
            "itemsize": itemsize,
            "bytes": sum(self.job.exchange(self.received)),
            "all_reduce": least * count(params),
            "full": least * count(base_params(model)),
        }


def _places(params):
    """({name: its slice of a row}, numbers in a row): the loss at 0, then the gradients one after another."""
    edges = list(itertools.accumulate((math.prod(a.shape) for a in params.values()), initial=1))
    return dict(zip(params, map(slice, edges, edges[1:]), strict=True)), edges[-1]


def _dtype(params):
    """The dtype that all parameters have."""
    names = {str(a.dtype).rpartition(".")[2] for a in params.values()}
    if len(names) > 1:
        raise InputError(f"ranks add numbers of one dtype; the trainable parameters have {' and '.join(sorted(names))}")
    return np.dtype(names.pop())
