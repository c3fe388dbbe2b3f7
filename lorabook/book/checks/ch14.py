"""Checks of the exercises of chapter 14."""

import numpy as np

from ...quantization import even_levels, nf4_levels, round_weight
from . import exercise, need

BLOCK = 64


def normal_weights(seed):
    """A matrix (256, 1024) of normal weights."""
    return np.random.default_rng(seed).standard_normal((256, 1024)).astype("f4")


def lost(W, levels, block=BLOCK):
    """Relative error of rounding to the levels, in blocks."""
    return float(np.linalg.norm(W - round_weight(W, levels, block).dequantize()) / np.linalg.norm(W))


@exercise
def bits(answer):
    """Bits a weight, as a function of code bits, block length, scale bits, group length and bits of a group's scale."""
    need(callable(answer), "expected a function of (code, block, scale, group, second)")
    for case in ((4, 64, 8, 256, 32), (3, 32, 16, 1024, 32), (2, 128, 6, 8, 16)):
        code, block, scale, group, second = case
        n = 3 * block * group  # weights: three groups of blocks
        want = (n * code + 3 * group * scale + 3 * second) / n
        said = float(answer(*case))
        need(abs(said - want) < 1e-9, f"{said:.4f} for {case}; count the bits of {n} weights, and divide")


@exercise
def noise(answer):
    """The share of a random matrix's energy that its first r directions hold at most, as a function of r, m, n."""
    need(callable(answer), "expected a function of (r, m, n)")
    rng = np.random.default_rng(0)
    for m, n in ((384, 384), (384, 1536), (100, 400)):
        s = np.linalg.svd(rng.standard_normal((m, n)), compute_uv=False)
        for r in (1, 4):
            held, said = np.sum(s[:r] ** 2) / np.sum(s**2), float(answer(r, m, n))
            need(said > 0.97 * held, f"{m} x {n}, r = {r}: {said:.4f} is below what is there, {held:.4f}")
            need(said < 1.25 * held, f"{m} x {n}, r = {r}: {said:.4f} is far above what is there, {held:.4f}")


@exercise
def better_levels(answer):
    """A function of values in -1 .. 1 that gives 16 levels, -1, 0 and 1 among them, and loses less than NF4."""
    need(callable(answer), "expected a function of the values")
    W = normal_weights(0).reshape(-1, BLOCK)
    levels = np.asarray(answer((W / np.abs(W).max(axis=1, keepdims=True)).ravel()), "f4")
    need(levels.shape == (16,) and (np.diff(levels) > 0).all(), "expected 16 levels, ascending")
    need({-1.0, 0.0, 1.0} <= set(levels.tolist()), "keep -1, 0 and 1: the largest of a block, and zeros, stay exact")
    fresh = normal_weights(1)
    ours, nf4 = lost(fresh, levels), lost(fresh, nf4_levels())
    print(f"on new weights: {ours:.4f}, NF4 {nf4:.4f}")
    need(ours < 0.985 * nf4, "that is not 1.5 % less than NF4 loses")


@exercise
def equal_block(answer):
    """The longest block, a power of two, at which even levels lose no more than NF4 with blocks of 64."""
    need(isinstance(answer, int | np.integer), "expected an integer")
    W = normal_weights(2)
    found = {block: lost(W, even_levels(4), block) for block in (4, 8, 16, 32, 64, 128)}
    good = [block for block, error in found.items() if error <= lost(W, nf4_levels())]
    print({block: round(error, 4) for block, error in found.items()}, "NF4, 64:", round(lost(W, nf4_levels()), 4))
    need(answer == max(good), "not the longest one" if answer in good else "at that length even levels lose more")
