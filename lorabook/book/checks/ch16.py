"""Checks of the exercises of chapter 16."""

import math

import numpy as np

from ...training import AdamW
from .. import counted, recorder
from . import exercise, need

BANDWIDTH = counted.DATA_SHEET["bandwidth"]
EXPRESSIONS = {
    "a": lambda x: x * 0.5,
    "b": lambda x: x * np.float64(0.5),
    "c": lambda x: x / np.sqrt(64),
    "d": lambda x: x * float(np.sqrt(64)),
    "e": lambda x: x - x.mean(),
    "f": lambda x: x + np.arange(3),
    "g": lambda x: x + np.arange(3).sum() / 3,
}


@exercise
def ridge(answer):
    """The d from which on a product of two d x d matrices is compute-bound."""
    need(callable(answer), "expected a function of peak, bandwidth and itemsize")
    for peak, itemsize in ((67e12, 4), (990e12, 2)):
        d = answer(peak, BANDWIDTH, itemsize)
        compute, move = 2 * d**3 / peak, 3 * itemsize * d**2 / BANDWIDTH
        where = f"with {itemsize} bytes a number, at d = {d:.0f},"
        need(math.isclose(compute, move), f"{where} it computes for {compute:.3g} s and moves for {move:.3g} s")
        print(f"{itemsize} bytes, {peak / 1e12:.0f} TFLOP/s: d = {d:.0f}")


@exercise
def few_tokens(answer):
    """(FLOPs per byte of N rows, the N from which on the product is compute-bound), for a large weight in float32."""
    need(isinstance(answer, tuple) and len(answer) == 2, "expected a pair of functions")
    per_byte, least = answer
    d = 1e9
    want = 2 * 4 * d * d / (4 * (4 * d + d * d + 4 * d))
    need(math.isclose(per_byte(4), want, rel_tol=1e-6), "not the FLOPs per byte at N = 4")
    N = least(67e12, BANDWIDTH)
    need(math.isclose(per_byte(N), 67e12 / BANDWIDTH), f"at N = {N:.0f} the product is not on the ridge")
    print(f"from {N:.0f} rows on")


@exercise
def last_copies(answer):
    """How many launches AdamW takes, if the parameters are views of one vector."""
    need(isinstance(answer, int), "expected an integer")
    flat = {"all": recorder.recorded(np.random.default_rng(0).standard_normal(1000).astype("f4"))}
    optimizer, alive = AdamW(1e-3), np.isfinite(recorder.recorded(np.ones(())))
    optimizer.step(flat, flat)
    log, _ = recorder.begin()
    optimizer.step(flat, flat, alive=alive)  # of a single array nothing is laid end to end, nothing copied back
    recorder.begin()
    need(answer == len(log) + 1, "not what is counted; remember that the gradients are still laid end to end")


@exercise
def other_order(answer):
    """Launches of a step in MiniLM's sizes with every adapter in the factored order."""
    need(isinstance(answer, int), "expected an integer")
    log, _, _ = counted.record(counted.prepare(counted.MINILM, order="factored"), 6, 128)
    need(answer == len(log), "the recorder counts another number; ask it")


@exercise
def float64(answer):
    """The letters of the EXPRESSIONS that are not float32."""
    need(isinstance(answer, str), "expected a string of letters")
    x = np.ones(3, "f4")
    wide = {letter for letter, expression in EXPRESSIONS.items() if expression(x).dtype != np.float32}
    missed, wrong = wide - set(answer), set(answer) - wide
    need(not wrong, f"{len(wrong)} of your letters are float32")
    need(not missed, f"{len(missed)} are missing")
