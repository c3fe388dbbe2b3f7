# %% [markdown]
# # Solutions: how do I derive a backward pass, and how do I know it is right?
#
# The exercises of [chapter 02](../02_backprop_by_hand.ipynb), each with the same check.

# %%
import numpy as np

from lorabook import functional as F
from lorabook.book.checks import ch02
from lorabook.files import environment

print(environment.summary())

# %% [markdown]
# **1. An activation.** The chain rule on $\log(1 + e^x)$ gives
#
# $$ f'(x) = \frac{e^x}{1 + e^x} = \frac{1}{1 + e^{-x}}, $$
#
# the sigmoid. Softplus is the smooth version of ReLU, so it is no surprise that its slope is the
# smooth version of a step from 0 to 1.

# %%
answer = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
ch02.softplus_slope(answer)

# %% [markdown]
# **2. Derive: RMS norm.** As for layer norm, but $\mathrm{xc}$ is $x$ itself:
#
# $$ \begin{aligned}
# \delta\mathrm{rstd} &= -\mathrm{rstd}^3\, m(x \odot \delta x) \\
# \delta\mathrm{xhat} &= \mathrm{rstd} \cdot \big( \delta x
# {} - \mathrm{xhat} \cdot m(\mathrm{xhat} \odot \delta x) \big)
# \end{aligned} $$
#
# The mean changes sides,
#
# $$ \delta L = \langle \mathrm{dxhat},\, \delta\mathrm{xhat} \rangle
# = \langle \mathrm{rstd} \cdot
# (\mathrm{dxhat} - \mathrm{xhat} \cdot m(\mathrm{dxhat} \odot \mathrm{xhat})),\,
# \delta x \rangle, $$
#
# and what stands beside $\delta x$ is the answer. One direction is taken out instead of two: RMS
# norm does not see a stretching of the row, but it does see an added constant.


# %%
def answer(dxhat, xhat, rstd):
    return rstd * (dxhat - xhat * F.row_means(dxhat * xhat))


ch02.rms_norm_dx(answer)

# %% [markdown]
# **3. Change LoRA: a norm in the gate.** Write $\mathrm{zhat} = \mathrm{rms}(z)$. Only the branch
# depends on $A$, so two changes matter:
#
# $$ \delta y = s\; \delta\mathrm{zhat}\, B^\top, \qquad \delta z = x\, \delta A^\top . $$
#
# From the output to the norm, through the norm (exercise 2), and from there to $A$:
#
# $$ \mathrm{dzhat} = s\, \mathrm{dout}\, B, \qquad
# \mathrm{d}z = \mathrm{rstd} \cdot \big( \mathrm{dzhat}
# {} - \mathrm{zhat} \cdot m(\mathrm{dzhat} \odot \mathrm{zhat}) \big), \qquad
# \mathrm{d}A = \mathrm{d}z^\top x . $$
#
# Compared with plain LoRA one thing has changed: $\mathrm{d}z$ has lost its component along
# $\mathrm{zhat}$. In each row, no gradient asks $A$ to read more or less of everything, only to
# read something else. With $r = 1$ there is nothing else to read, and (but for $\mathrm{eps}$)
# $\mathrm{d}A$ is 0: this branch can only flip its sign. A variant of LoRA can be wrong although
# its gradients are right.


# %%
def answer(dout, x, A, B, s):
    z = x @ A.T
    rstd = (F.row_means(z * z) + 1e-5) ** -0.5
    zhat, dzhat = z * rstd, s * dout @ B
    dz = rstd * (dzhat - zhat * F.row_means(dzhat * zhat))
    return dz.T @ x


ch02.normed_gate_dA(answer)
rng = np.random.default_rng(0)
x, dout = 100 * rng.standard_normal((4, 7)), rng.standard_normal((4, 5))  # eps counts for nothing
dA = answer(dout, x, rng.standard_normal((1, 7)), rng.standard_normal((5, 1)), 1.0)
print(f"r = 1: the largest entry of dA is {np.abs(dA).max():.0e}")
assert np.abs(dA).max() < 1e-4

# %% [markdown]
# **4. Derive: a weight used twice.** The product rule gives one term for each use:
#
# $$ \delta y = \delta z\, W^\top + z\, \delta W^\top, \qquad
# \delta z = x\, \delta W^\top + \dots $$
#
# $$ \delta L = \langle \mathrm{dout},\, z\, \delta W^\top \rangle
# {} + \langle \mathrm{dout}\, W,\, x\, \delta W^\top \rangle
# = \langle \mathrm{dout}^\top z + (\mathrm{dout}\, W)^\top x,\, \delta W \rangle . $$
#
# Each term is the gradient of a linear layer on its own; the second one has
# $\mathrm{d}z = \mathrm{dout}\, W$ as its $\mathrm{dout}$. A backward pass that writes the second
# gradient over the first, instead of adding, is wrong, although each of its lines is right.

# %%
answer = lambda dout, x, z, W: dout.T @ z + (dout @ W).T @ x  # noqa: E731
ch02.used_twice_dW(answer)

# %% [markdown]
# **5. Measure: single precision.** The loop is the library's, in float32. The best step lies near
# $\epsilon^{1/3}$, whatever $\epsilon$ is: in float32 that is 5e-3. The error there is about
# $\epsilon^{2/3}$, some 2e-5. That finds a wrong sign, not a small mistake: check in float64
# whenever you can.

# %%
x32, dout32 = np.random.default_rng(0).standard_normal((2, 4, 7)).astype("f4")
slope32 = dout32 * F.gelu_tanh(x32)[1]


def loss32(x):
    return np.sum(dout32 * F.gelu_tanh(x)[0])


errors = {}
for step in 10.0 ** np.arange(-5, 0, 0.5, dtype="f4"):
    measured = np.zeros(x32.shape)
    for i in np.ndindex(*x32.shape):
        above, below = x32.copy(), x32.copy()
        above[i] += step
        below[i] -= step
        measured[i] = (loss32(above) - loss32(below)) / (2 * step)
    errors[float(step)] = F.relative_error(measured, slope32)
    print(f"step {step:.0e}: error {errors[float(step)]:.0e}")
answer = min(errors, key=errors.get)
print(f"best step {answer:.0e}; eps^(1/3) = {np.finfo('f4').eps ** (1 / 3):.0e}")
ch02.single_precision(answer)
