# %% [markdown]
# # Solutions: how do I derive a backward pass, and how do I know it is right?

# %%
import numpy as np

from lorabook import environment
from lorabook.gradcheck import complex_step, relative_error

print(environment.summary())
rng = np.random.default_rng(0)

# %% [markdown]
# **1. An activation.** The chain rule on `log(1 + e^x)` gives `e^x / (1 + e^x)`, which is the sigmoid
# `1 / (1 + e^-x)`. Softplus is the smooth version of ReLU, so it is no surprise that its slope is the smooth version of
# a step from 0 to 1.

# %%
answer = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731

# %%
points = np.linspace(-3, 3, 7)
error = relative_error(answer(points), complex_step(lambda u: np.log(1 + np.exp(u)).sum(), points))
assert error < 1e-11, f"not the slope of softplus: relative error {error:.0e}"
print("right")

# %% [markdown]
# **2. RMS norm.** As for layer norm, but `xc` is `x` itself:
#
# ```
# drstd = -rstd^3 m(x * dx)
# dxhat = rstd * dx + x * drstd = rstd * (dx - xhat * m(xhat * dx))
#
# dL = <v, dxhat> = rstd <v - xhat * m(v * xhat), dx>        (the mean changes sides)
# ```
#
# So `dx = rstd * (v - xhat * m(v * xhat))`. One direction is taken out instead of two: RMS norm does not see a
# stretching of the row, but it does see an added constant.


# %%
def m(v):
    return v.mean(axis=-1, keepdims=True)


answer = lambda v, xhat, rstd: rstd * (v - xhat * m(v * xhat))  # noqa: E731

# %%
x, v = rng.standard_normal((2, 4, 7))
rstd = (m(x * x) + 1e-5) ** -0.5
exact = complex_step(lambda u: np.sum(v * u * (m(u * u) + 1e-5) ** -0.5), x)
error = relative_error(answer(v, x * rstd, rstd), exact)
assert error < 1e-11, f"not dx: relative error {error:.0e}"
print("right")

# %% [markdown]
# **3. Single precision.** The sweet spot is near `eps^(1/3)`, whatever `eps` is. In float32 it is 5e-3, and the error
# there is about `eps^(2/3)`, 2e-5: enough to find a wrong sign, not enough to find a small mistake. Check in float64.

# %%
answer = np.finfo(np.float32).eps ** (1 / 3)
print(f"h = {answer:.1e}, error about {np.finfo(np.float32).eps ** (2 / 3):.0e}")

# %%
assert 1 / 3 < answer / np.finfo(np.float32).eps ** (1 / 3) < 3, "not within a factor of 3 of a good step"
print("right")

# %% [markdown]
# **4. A weight used twice.** The product rule gives one term for each use:
#
# ```
# dy = dz W^T + z dW^T,    dz = x dW^T + (terms in dx)
#
# dL = <dout, z dW^T> + <dout W, x dW^T> = <dout^T z + (dout W)^T x, dW>
# ```
#
# Each term is the gradient of a linear layer on its own; the second one has `dz = dout W` as its `dout`. A backward
# pass that writes the second gradient over the first, instead of adding, is wrong, although each of its lines is right.

# %%
answer = lambda dout, x, z, W: dout.T @ z + (dout @ W).T @ x  # noqa: E731

# %%
x, dout, W = rng.standard_normal((4, 7)), rng.standard_normal((4, 7)), rng.standard_normal((7, 7))
exact = complex_step(lambda u: np.sum(dout * (x @ u.T @ u.T)), W)
error = relative_error(answer(dout, x, x @ W.T, W), exact)
assert error < 1e-11, f"not dW: relative error {error:.0e}"
print("right")
