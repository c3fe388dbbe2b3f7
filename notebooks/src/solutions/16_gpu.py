# %% [markdown]
# # Solutions: when does the same code pay on a GPU, and where does the time go?

# %%
import math

import numpy as np

from lorabook import environment
from lorabook.optim import AdamW

print(environment.summary())
rng = np.random.default_rng(0)
BANDWIDTH = 3.35e12  # data sheet, not measured

# %% [markdown]
# **1. The ridge.** `2 n^3 / peak = 3 itemsize n^2 / bandwidth`: two matrices are read, one is written.

# %%
answer = lambda peak, bandwidth, itemsize: 1.5 * itemsize * peak / bandwidth  # noqa: E731

# %%
for peak, itemsize in ((67e12, 4), (990e12, 2)):
    n = answer(peak, BANDWIDTH, itemsize)
    assert math.isclose(2 * n**3 / peak, 3 * itemsize * n**2 / BANDWIDTH)
    print(f"{itemsize} bytes, {peak / 1e12:.0f} TFLOP/s: n = {n:.0f}")
print("right")

# %% [markdown]
# **2. Few tokens.** Nearly all bytes are those of `W`: `2 B d_in d_out` FLOPs for `4 d_in d_out` bytes, `B / 2`
# FLOP/byte. So it is compute-bound from `B = 2 peak / bandwidth` on. One text at a time uses a fortieth of the float32
# peak.

# %%
answer = (lambda B: B / 2, lambda peak, bandwidth: 2 * peak / bandwidth)

# %%
per_byte, least = answer
d = 1e9
assert math.isclose(per_byte(4), 2 * 4 * d * d / (4 * (4 * d + d * d + 4 * d)), rel_tol=1e-6)
assert math.isclose(per_byte(least(67e12, BANDWIDTH)), 67e12 / BANDWIDTH)
print(f"right: from {least(67e12, BANDWIDTH):.0f} texts on")

# %% [markdown]
# **3. The last copies.** One launch less for laying the parameters end to end, and `tensors` copies less. What remains:
# one for the gradients, 13 for the two lines, and 9 for `alive`: p, m and v are kept, chosen from, and written.

# %%
launches, tensors = {"AdamW": 98}, 74  # as the chapter counts them
answer = launches["AdamW"] - 1 - tensors

# %%
log = []


class Counted(np.ndarray):
    """Counts the operations on it."""

    __module__ = "numpy"

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        log.append(ufunc.__name__)
        out = kwargs.pop("out", None)
        if out is not None:
            kwargs["out"] = tuple(np.asarray(a) for a in out)
        arrays = [np.asarray(a) if isinstance(a, Counted) else a for a in inputs]
        result = np.asarray(getattr(ufunc, method)(*arrays, **kwargs)).view(Counted)
        return result if out is None else out[0]

    def __array_function__(self, function, types, args, kwargs):
        if function not in (np.reshape, np.may_share_memory):  # no work for a device
            log.append(function.__name__)
        return super().__array_function__(function, types, args, kwargs)

    def __setitem__(self, key, value):
        if not np.may_share_memory(self, value):
            log.append("copy")
        super().__setitem__(key, value)


flat = {"all": rng.standard_normal(1000).astype("f4").view(Counted)}
optimizer, alive = AdamW(1e-3), np.ones((), bool).view(Counted)
optimizer.step(flat, flat)
log.clear()
optimizer.step(flat, flat, alive=alive)
print(*log)
assert answer == len(log) + 1
print("right")

# %% [markdown]
# **4. Which are float64?** A Python float is weak, a NumPy scalar is not. `np.arange(3)` is int64, and float32 with
# int64 gives float64. The mean of a float32 array is float32.

# %%
answer = "bcfg"

# %%
EXPRESSIONS = {
    "a": "x * 0.5",
    "b": "x * np.float64(0.5)",
    "c": "x / np.sqrt(64)",
    "d": "x * float(np.sqrt(64))",
    "e": "x - x.mean()",
    "f": "x + np.arange(3)",
    "g": "x + np.arange(3).sum() / 3",
}
x = np.ones(3, "f4")
assert set(answer) == {name for name, text in EXPRESSIONS.items() if eval(text).dtype != np.float32}
print("right")
