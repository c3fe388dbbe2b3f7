"""Tricks that were tried for the library and left out: what of them can be measured in a moment, in small."""

import math

import numpy as np

from .stopwatch import medians

TURNS = 101


def _random(*shape):
    return np.random.default_rng(0).standard_normal(shape, dtype="f4")


def _starting_at(offset, *shape):
    """Ones whose memory starts `offset` bytes behind a multiple of 64."""
    memory = np.empty(4 * math.prod(shape) + 128, np.uint8)
    start = -memory.ctypes.data % 64 + offset
    array = memory[start : start + 4 * math.prod(shape)].view("f4").reshape(shape)
    array[...] = 1
    return array


def stacked_weights(N=512, d=384):
    """Time of one product with three weights stacked, as a share of three products."""
    x, W = _random(N, d), _random(3 * d, d)
    parts = np.split(W, 3)
    t = medians(TURNS, three=lambda: [x @ w.T for w in parts], stacked=lambda: x @ W.T)
    return t["stacked"] / t["three"]


def stacked_factors(N=512, d=384, r=8):
    """(the same for three A, what is saved as a share of one product with W)"""
    x, A, W = _random(N, d), _random(3 * r, d), _random(d, d)
    parts = np.split(A, 3)
    t = medians(TURNS, three=lambda: [x @ a.T for a in parts], stacked=lambda: x @ A.T, W=lambda: x @ W.T)
    return t["stacked"] / t["three"], (t["three"] - t["stacked"]) / t["W"]


def bordered(N=512, d=384, r=8):
    """(what x A^T adds to x W^T as a product of its own, what it adds as a border of W)"""
    x, W, A = _random(N, d), _random(d, d), _random(r, d)
    border = np.concatenate([W, A])
    t = medians(TURNS, apart=lambda: (x @ W.T, x @ A.T), border=lambda: x @ border.T, W=lambda: x @ W.T)
    return t["apart"] / t["W"] - 1, t["border"] / t["W"] - 1


def cut_out(N=512, d=384, border=8):
    """How much longer a product of two arrays takes if all are cut out of wider ones."""
    dense = [_random(N, d) for _ in range(3)]
    cut = [_random(N, d + border)[:, :d] for _ in range(3)]
    t = medians(
        TURNS,
        dense=lambda: np.multiply(*dense[:2], out=dense[2]),
        cut=lambda: np.multiply(*cut[:2], out=cut[2]),
    )
    return t["cut"] / t["dense"]


def aligned(N=128, d=384):
    """How much longer a product of two arrays takes 16 bytes behind a multiple of 64."""
    on, off = ([_starting_at(offset, N, d) for _ in range(3)] for offset in (0, 16))
    t = medians(TURNS, on=lambda: np.multiply(*on[:2], out=on[2]), off=lambda: np.multiply(*off[:2], out=off[2]))
    return t["off"] / t["on"]
