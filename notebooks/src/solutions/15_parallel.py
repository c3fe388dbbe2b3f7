# %% [markdown]
# # Solutions: why does LoRA make data parallelism nearly free?

# %%
import math

import numpy as np

from lorabook import environment
from lorabook.gradcheck import relative_error

print(environment.summary())
rng = np.random.default_rng(0)

# %% [markdown]
# **1. Labels that do not count.** The share of a shard is its part of the labels that count, not of the rows:
# `Workers` counts them before it starts. A shard without any has share 0, and its mean is not defined; leave it out.

# %%
answer = lambda grads, labels: (  # noqa: E731
    sum(grad * np.sum(y >= 0) for grad, y in zip(grads, labels, strict=True)) / sum(np.sum(y >= 0) for y in labels)
)

# %%
g = rng.standard_normal((6, 5))
y = np.array([1, -100, 0, 2, -100, 1])
cuts = (slice(0, 2), slice(2, 6))
grads = [g[s][y[s] >= 0].mean(axis=0) for s in cuts]
assert relative_error(answer(grads, [y[s] for s in cuts]), g[y >= 0].mean(axis=0)) < 1e-12
wrong = sum(grad * (s.stop - s.start) / 6 for grad, s in zip(grads, cuts, strict=True))
print(f"right; by rows instead of labels: off by {relative_error(wrong, g[y >= 0].mean(axis=0)):.0%}")

# %% [markdown]
# **2. Forget and form again.** Now merging costs `4 N r (d_in + d_out) + 4 r d_in d_out` on top, against
# `6 N r (d_in + d_out)`: from `2 N*` on.

# %%
answer = lambda d_in, d_out: 2 * d_in * d_out / (d_in + d_out)  # noqa: E731

# %%
r = 8
for d_in, d_out in ((384, 384), (384, 1536)):
    N = answer(d_in, d_out)
    factored, merged = 6 * N * r * (d_in + d_out), 4 * N * r * (d_in + d_out) + 4 * r * d_in * d_out
    assert math.isclose(factored, merged)
    print(f"{d_in} x {d_out}: from N = {N:.0f} on")
print("right")

# %% [markdown]
# **3. A slow network.** `exchange / (compute + exchange) = 1 / 10`, so the step must compute for nine times the
# exchange.

# %%
answer = lambda numbers, p: 9 * 2 * (p - 1) / p * numbers * 4 / (1e9 / 8)  # noqa: E731

# %%
for name, numbers in (("GPT-2 small, LoRA", 1_179_648), ("GPT-2 small, full", 124_439_808)):
    exchange = 2 * 7 / 8 * numbers * 4 / (1e9 / 8)
    assert math.isclose(exchange / (answer(numbers, 8) + exchange), 0.1)
    print(f"{name}: {answer(numbers, 8):.1f} s")
print("right")

# %% [markdown]
# **4. More cores.** `p` to infinity leaves `1 / (1 - f) = 3.33`. Half of it: `1 - f + f / p = 2 (1 - f)`, so
# `p = f / (1 - f) = 2.33`. Three cores are past half of what any number of them could do.

# %%
answer = 1 / (1 - 0.7), 0.7 / (1 - 0.7)

# %%
limit, threads = answer
assert math.isclose(limit, 1 / (1 - 0.7 + 0.7 / 1e12), rel_tol=1e-9)
assert math.isclose(1 / (1 - 0.7 + 0.7 / threads), limit / 2)
print(f"limit {limit:.2f}, half of it with {threads:.2f} threads: right")
