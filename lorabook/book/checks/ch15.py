"""Checks of the exercises of chapter 15."""

import math
import tracemalloc

import numpy as np

from ...functional import relative_error
from ...parallel import Workers
from ..speed import SMALL, random_batch, random_bert
from . import exercise, need


@exercise
def labels_that_count(answer):
    """A function of the shards' gradients and labels: the gradient of the batch."""
    need(callable(answer), "expected a function of grads and labels")
    g = np.random.default_rng(15).standard_normal((6, 5))  # gradient of the loss of each row
    y = np.array([1, -100, 0, 2, -100, 1])
    cuts = (slice(0, 2), slice(2, 6))
    grads = [g[rows][y[rows] >= 0].mean(axis=0) for rows in cuts]
    got = np.asarray(answer(grads, [y[rows] for rows in cuts]))
    need(got.shape == (5,), f"expected the shape of one gradient, (5,); got {got.shape}")
    apart = relative_error(got, g[y >= 0].mean(axis=0))
    need(apart < 1e-12, f"it is {apart:.0%} away from the mean over all labels that count")


@exercise
def frozen_A(answer):
    """A function of d_in and d_out: the rows from which on merging costs fewer FLOPs, where A does not train."""
    need(callable(answer), "expected a function of d_in and d_out")
    for d_in, d_out in ((384, 384), (384, 1536), (1536, 384)):
        N = float(answer(d_in, d_out))
        sides = [_flops(order, N, d_in, d_out, 8) for order in ("factored", "merged")]
        less, more = sorted(sides)
        cheaper = "factored" if sides[0] == less else "merged"
        where = f"at your N = {N:.4g} of a {d_out} x {d_in} weight"
        need(more - less < 1e-9 * more, f"{where} the {cheaper} order is cheaper; expected equal FLOPs")


def _flops(order, N, d_in, d_out, r):
    """On top of the two products with the weight: a product (a, b) by (b, c) costs 2 a b c."""
    products = [(N, d_in, r), (d_out, N, r)]  # z and dB
    if order == "merged":
        products += [(d_out, r, d_in)]
    else:
        products += [(N, r, d_out), (N, d_out, r), (N, r, d_in)]  # y, dz, dx
    return sum(2 * math.prod(sizes) for sizes in products)


@exercise
def memory_share(answer):
    """Peak memory of a step in shards on one worker, as a share of that of the whole batch at once."""
    need(0 < float(answer), "expected a share")

    def peak(work):
        work()
        tracemalloc.start()
        work()
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    model, batch = random_bert(SMALL), random_batch(32, 64)
    with Workers(1) as workers:
        share = peak(lambda: workers.loss_and_grad(model, batch)) / peak(lambda: model.loss_and_grad(batch))
    away = float(answer) / share - 1
    need(abs(away) < 0.15, f"measured here it is {'smaller' if away > 0 else 'larger'}")


@exercise
def slow_network(answer):
    """A function of P and n: seconds that a rank must compute, so that the exchange is a tenth of the step."""
    need(callable(answer), "expected a function of P and n")
    for P, n in ((331_776, 8), (1_179_648, 2), (124_439_808, 8)):
        exchange = 2 * (n - 1) * P * 4 / (n * 125e6)
        share = exchange / (float(answer(P, n)) + exchange)
        need(abs(share - 0.1) < 1e-9, f"{P:,} numbers, {n} ranks: the exchange is {share:.1%} of the step")


@exercise
def more_cores(answer):
    """(the limit for ever more threads, threads for half of it) where 70 % of the time are products."""
    need(np.shape(answer) == (2,), "expected two numbers: (limit, threads)")
    faster = [1 / (0.3 + 0.7 / threads) for threads in (1e15, float(answer[1]))]
    need(abs(answer[0] / faster[0] - 1) < 1e-3, f"with 10^15 threads it is not {answer[0]:.4g} times as fast")
    need(abs(faster[1] / faster[0] - 0.5) < 1e-3, f"with {answer[1]:.4g} threads it is {faster[1]:.3f} times as fast")
