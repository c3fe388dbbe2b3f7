"""Does an array library compute what NumPy does? Every case on both, in float32 and in float64."""

import statistics
import time

import numpy as np
from tqdm import tqdm

from ..backend import get_xp, to_numpy
from .selftest_cases import FUNCTIONS, Arrays
from .selftest_models import MODELS

# Largest difference relative to the largest entry: some tens of roundings. In TF32 a GPU would be off by 1e-3.
TOLERANCES = {"functions": {"float32": 1e-5, "float64": 1e-12}, "models": {"float32": 5e-5, "float64": 1e-11}}
DTYPES = ("float64", "float32")
RUNS = 3  # of which the fastest counts; one before, in which kernels are compiled
CASES = FUNCTIONS | {"models": MODELS}


def selftest(backend, progress=False, cases=None):
    """Rows {module, name, dtype, abs, rel, tolerance, numpy_seconds, seconds, ok, problem} of a backend, by its name.

    abs, rel: the largest difference, and the same relative to the largest entry of its array or its gradients; None
    where the case failed, with `problem` in words. seconds: until the result is on the host. cases: default CASES.
    """
    xp = get_xp(backend)
    todo = [(m, name, case, dtype) for m, own in (cases or CASES).items() for name, case in own.items()
            for dtype in DTYPES]  # fmt: skip
    return [_row(xp, *one) for one in tqdm(todo, delay=2, disable=None if progress else True, unit="case", leave=False)]


def _row(xp, module, name, case, dtype):
    tolerance = TOLERANCES["models" if module == "models" else "functions"][dtype]
    row = {"module": module, "name": name, "dtype": dtype, "abs": None, "rel": None, "tolerance": tolerance}
    want, numpy_seconds = _timed(case, np.asarray, dtype)
    try:
        got, seconds = _timed(case, _put(xp), dtype)
        row["abs"], row["rel"] = _difference(got, want)
        problem = None if row["rel"] <= tolerance else f"differs by {row['rel']:.1e}, expected {tolerance:.0e} at most"
    except Exception as error:  # whatever goes wrong there, the other cases have their turn
        seconds, problem = None, f"{type(error).__name__}: {error}"
    return row | {"numpy_seconds": numpy_seconds, "seconds": seconds, "ok": problem is None, "problem": problem}


def _put(xp):
    """Host array -> array on the backend: of array-api-strict on the device that refuses conversion to NumPy."""
    device = {"device": xp.Device("device1")} if xp.__name__ == "array_api_strict" else {}
    return lambda host: xp.asarray(np.array(host), **device)


def _timed(case, put, dtype):
    """(what the case gives, in groups of arrays on the host; the fewest seconds of RUNS)."""
    times = []
    for _ in range(RUNS + 1):
        arrays = Arrays(put, dtype)
        start = time.perf_counter()
        groups = _groups(case(arrays))
        times.append(time.perf_counter() - start)
    return groups, min(times[1:])


def _groups(result):
    """[[array on the host]]: the members of a tuple are groups, and so is a dict."""
    members = result if isinstance(result, tuple) else (result,)
    return [[*_leaves(member)] for member in members]


def _leaves(value):
    if isinstance(value, dict):
        value = [value[name] for name in sorted(value)]
    if isinstance(value, tuple | list):
        for one in value:
            yield from _leaves(one)
    elif value is not None:
        yield np.asarray(to_numpy(value))


def _difference(got, want):
    """(largest difference, largest relative to the largest entry of its group). Raises if they cannot be compared."""
    if (came := [*map(len, got)]) != (expected := [*map(len, want)]):
        raise ValueError(f"got groups of {came} arrays, expected {expected}")
    largest = relative = 0.0
    for ours, theirs in zip(got, want, strict=True):
        scale = max((float(np.abs(array).max(initial=0)) for array in theirs), default=0.0) or 1.0
        for a, b in zip(ours, theirs, strict=True):
            if a.shape != b.shape or a.dtype.kind != b.dtype.kind:
                raise ValueError(f"got {a.dtype} {a.shape}, expected {b.dtype} {b.shape}")
            difference = float(np.abs(a.astype("f8") - b.astype("f8")).max(initial=0))
            if not np.isfinite(difference):
                raise ValueError("a number is not finite")
            largest, relative = max(largest, difference), max(relative, difference / scale)
    return largest, relative


def summary(rows):
    """{cases, wrong, rel: {dtype: the largest}, speed: NumPy's time over the backend's, median over the cases}."""
    worst = {dtype: max((row["rel"] or 0 for row in rows if row["dtype"] == dtype), default=0) for dtype in DTYPES}
    ratios = [row["numpy_seconds"] / row["seconds"] for row in rows if row["seconds"]]
    speed = statistics.median(ratios) if ratios else None
    return {"cases": len(rows), "wrong": sum(not row["ok"] for row in rows), "rel": worst, "speed": speed}
