# %% [markdown]
# # Solutions: when does the same code pay on a GPU, and where does the time go?

# %%
import math

import numpy as np

from lorabook import environment
from lorabook.optim import AdamW, clip_grad_norm

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
# **3. A flat optimizer.** Square, sum, and the sum over the one array for the norm; 13 operations for AdamW.

# %%
answer = 3 + 13

# %%
launches = []


class Counted(np.ndarray):
    """Counts the operations on it."""

    __module__ = "numpy"

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        launches.append(ufunc.__name__)
        out = kwargs.pop("out", None)
        if out is not None:
            kwargs["out"] = tuple(np.asarray(a) for a in out)
        arrays = [np.asarray(a) if isinstance(a, Counted) else a for a in inputs]
        result = np.asarray(getattr(ufunc, method)(*arrays, **kwargs)).view(Counted)
        return result if out is None else out[0]


params, grads = ({"flat": rng.standard_normal(1000).astype("f4").view(Counted)} for _ in range(2))
optimizer = AdamW(1e-3)
optimizer.prepare(params)
launches.clear()
clip_grad_norm(grads, None)
optimizer.step(params, grads)
print(launches)
assert answer == len(launches)
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
