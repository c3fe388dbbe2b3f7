"""Data parallelism: the batch of a step in shards, on threads of one machine.

A layer stores nothing in forward and backward, so all shards work on one read-only model, each on a thread with one
BLAS thread: NumPy lets go of the interpreter while it computes. That way everything is shared out, not the matrix
products alone. A batch of texts too small to be cut leaves the sharing to BLAS. How a batch is cut does not depend on
the number of workers, and gradients are added in the order of the shards: the same bits on one core and on many.
`ranks` deals the same shards out to the processes of an MPI job.
"""

import collections
import contextlib
import contextvars
import ctypes
import itertools
import os
from concurrent.futures import ThreadPoolExecutor

from threadpoolctl import ThreadpoolController, threadpool_limits

from ..adapters import effective_weights
from ..backend import array_namespace
from ..errors import InputError, check_integer
from ..layers import Run, add_grads

SHARD_TOKENS = 512  # what one thread computes at a time: enough for full speed of the products, little enough to cache


def cores():
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cut(model, batch, size=SHARD_TOKENS):
    """The slices of a batch's rows: an even number of shards of about `size` tokens, or one for a small batch.

    At most one shard a row; on a GPU always one: there, one large product is what is fast.
    """
    rows, tokens = model.rows(batch), model.tokens(batch)
    small = tokens < SHARD_TOKENS / 2 or array_namespace(*batch.values()).__name__ == "cupy"
    n = 1 if small else min(rows, 2 * max(1, round(tokens / (2 * size))))
    edges = [i * rows // n for i in range(n + 1)]
    return [slice(*edge) for edge in itertools.pairwise(edges)]


class Workers:
    """Threads that share the work of a step: `with Workers(2) as workers: workers.loss_and_grad(model, batch)`.

    size, first: the processes that work together, and whether this one prints and writes; here it is alone.
    """

    size, first = 1, True

    def __init__(self, n=None):
        """n: number of threads; default: one a core."""
        self.n = cores() if n is None else check_integer("workers", n)
        self._stack, self._pool, self._process = contextlib.ExitStack(), None, None

    def __enter__(self):
        self._process = os.getpid()
        keep_freed_memory()
        self._blas = ThreadpoolController().select(user_api="blas")
        self._stack.enter_context(self._blas.limit(limits=1))
        if self.n > 1:
            pool = ThreadPoolExecutor(self.n, initializer=_settle, initargs=(iter(_own_cores(self.n)),))
            self._pool = self._stack.enter_context(pool)
        return self

    def __exit__(self, *error):
        self._process = None
        self._stack.__exit__(*error)

    def _at_work(self):
        """The process that the threads are in."""
        if self._process is None:
            raise InputError("these workers are not at work; use them inside `with Workers() as workers:`")
        return self._process

    def _blas_threads(self, n):
        """Context in which BLAS has n threads."""
        self._at_work()
        return self._blas.limit(limits=n)

    def map(self, function, *arguments):
        """Like the builtin `map`: results in order, whichever thread is first. NumPy's error state goes along.

        In a process that was forked meanwhile, which has no threads but one, it is the builtin.
        """
        if self._at_work() != os.getpid() or self._pool is None:
            return map(function, *arguments)
        return self._in_order(function, zip(*arguments, strict=False))

    def _in_order(self, function, arguments):
        """Results in order; at most one more than there are threads is computed ahead, so few are in memory at once."""
        waiting = collections.deque()
        try:
            for own in arguments:
                waiting.append(self._pool.submit(contextvars.copy_context().run, function, *own))
                if len(waiting) > self.n:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def shards(self, model, batch, rng=None, part=slice(None), tell=None):
        """(loss, {name: gradient}) of one shard of the batch after another; they add up to the batch's mean.

        With `rng`, each shard draws its dropout from a generator of its own, spawned from it. part: compute only those
        of the shards, as if the others were computed too. tell: as in `Run`; threads call it, each for its own shard.
        """
        shards = cut(model, batch)
        few = len(shards) == 1 and model.large
        rngs = [None] * len(shards) if rng is None else rng.spawn(len(shards))
        parts = [batch] if len(shards) == 1 else [model.part(batch, shard) for shard in shards]
        counts = [1] if len(shards) == 1 else [model.count(own) for own in parts]
        if not any(counts):
            raise InputError("no label of the batch counts: all are below 0; expected one from 0 on at least")

        def one(own, rng, count):
            if not count:
                return 0.0, {}
            share = count / sum(counts)
            loss, grads = model.loss_and_grad(own, Run(rng=rng, weights=weights, tell=tell), share)
            return share * loss, grads

        if parts[part]:
            weights = effective_weights(model, model.tokens(batch), Run(rng=rng), self.map)
            with self._blas_threads(self.n if few else 1):
                yield from (map if few else self.map)(one, parts[part], rngs[part], counts[part])

    def loss_and_grad(self, model, batch, rng=None, tell=None):
        """(loss, {name: gradient}) of the mean over the batch, as model.loss_and_grad gives it for the whole."""
        loss, grads = 0.0, {}
        for shard_loss, shard_grads in self.shards(model, batch, rng, tell=tell):
            loss, grads = loss + shard_loss, add_grads(grads, shard_grads)
        return loss, grads

    def answer(self, model, batch):
        """The model's output for a batch; shards are twice as large as in training, since nothing is kept of them."""
        shards = cut(model, batch, 2 * SHARD_TOKENS)
        few = len(shards) == 1 and model.large
        with self._blas_threads(self.n if few else 1):
            parts = list((map if few else self.map)(lambda shard: model.answer(model.part(batch, shard)), shards))
        return parts[0] if len(parts) == 1 else array_namespace(*parts).concat(parts)

    # What takes several processes, and is nothing for one: see `ranks.Ranks`.

    def spread(self, function, items):
        """[function(item), ...] in order, the items dealt out to all processes."""
        return list(self.map(function, items))

    def agree(self, facts, error=InputError):
        """Raise `error` on all processes unless facts(), a flat JSON-able dict, is the same on all."""

    def share(self, value):
        """The first process's JSON-able `value`, on all."""
        return value

    def copy(self, arrays):
        """Copy the first process's arrays into those of all others, {name: array}, in place."""


def _settle(own):
    """What a thread of a pool does first: limit its BLAS, where that is built on OpenMP and knows it, and stay put.

    Threads hand the interpreter's lock to each other some thousand times a step. Where the system moves the one that
    wakes to the core of the one that woke it, they wait for each other; with a core of its own for each, a step took 3
    to 7 % less on two cores. `own`: an iterator of cores, shared by the threads.
    """
    threadpool_limits(1, "blas")
    if (core := next(own, None)) is not None:
        with contextlib.suppress(OSError):  # taken away in the meantime
            os.sched_setaffinity(0, {core})  # of this thread alone


def _own_cores(n):
    """A core for each of n threads if they are as many as the cores; otherwise none, and the system places them."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") and n == cores() else []


def team(workers=None):
    """Context of the Workers that `workers` says: a number of threads, None for one a core, or Workers at work."""
    return contextlib.nullcontext(workers) if isinstance(workers, Workers) else Workers(workers)


def keep_freed_memory():
    """Ask glibc to keep what is freed for the next array instead of handing its pages back to the system.

    A step makes and drops the same arrays again and again; fetching zeroed pages anew each time costs about 5 %.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another system, another allocator
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in ((-8, 1), (-3, 1 << 25), (-1, 1 << 30)):  # ARENA_MAX, MMAP_THRESHOLD, TRIM_THRESHOLD
            mallopt(option, value)
