# %% [markdown]
# # Solutions: what are dA and dB, and why is dW never formed?

# %%
import numpy as np

from lorabook import LoRALinear
from lorabook.book.checks import ch03
from lorabook.files import environment
from lorabook.layers import Linear

print(environment.summary())

# %% [markdown]
# **1. A gate.** Only the branch depends on $\mathrm{gate}$. Its change is
# $\delta y = s\,(z \odot \delta\mathrm{gate})\,B^\top$, with the same $\delta\mathrm{gate}$ in
# every row, so
#
# $$\delta L = \langle \mathrm{dout},\, s\,(z \odot \delta\mathrm{gate}) B^\top \rangle
# = \langle s\,\mathrm{dout}\,B,\, z \odot \delta\mathrm{gate} \rangle
# = \sum_{n,k} (s\,\mathrm{dout}\,B)_{nk}\, z_{nk}\, \delta\mathrm{gate}_k$$
#
# What stands in front of $\delta\mathrm{gate}_k$, with the rows added up, is its gradient:
#
# $$\mathrm{dgate}_k = s \sum_{n} z_{nk}\, (\mathrm{dout}\,B)_{nk}$$

# %%
answer = lambda dout, z, B, s: s * (z * (dout @ B)).sum(axis=0)  # noqa: E731
ch03.gate(answer)

# %% [markdown]
# **2. One A for two.** $A$ acts through $z$ alone, and $z$ goes two ways. So two terms come back to
# $z$, as two came back to $x$ in the chapter:
#
# $$\mathrm{d}z = s\,(\mathrm{dout}_q B_q + \mathrm{dout}_v B_v)
# \qquad\qquad \mathrm{d}A = \mathrm{d}z^\top x$$
#
# The thin product with $x$ is done once instead of twice: sharing saves numbers and time. What it
# costs is freedom: both layers look at the input through one window.


# %%
def answer(dout_q, dout_v, x, B_q, B_v, s):
    return s * (dout_q @ B_q + dout_v @ B_v).T @ x


ch03.shared_A(answer)

# %% [markdown]
# **3. Another start.** The average is $s^2\, r\, \lVert \mathrm{d}W \rVert^2$ times the variance of
# an entry of $A$, whatever the distribution, as long as entries are independent with mean 0. The
# variance changes from $1/(3\,d_\mathrm{in})$ to $1/r^2$, so the factor is predicted to be
#
# $$\frac{3\, d_\mathrm{in}}{r^2} = \frac{3 \cdot 64}{16} = 12 .$$
#
# It grows with $d_\mathrm{in}$: for $d_\mathrm{in} = 768$ and $r = 4$ it is 144. A learning rate
# that was found with one start is not one for the other.

# %%
rng = np.random.default_rng(0)
x, dout = rng.standard_normal((64, 64)), rng.standard_normal((64, 48))


def square(start, seed):
    layer = LoRALinear(Linear(np.zeros((48, 64))), r=4, init_lora_weights=start, rng=seed)
    _, grads = layer.backward(dout, layer(x)[1])
    return np.sum(grads["lora_B"] ** 2)


means = [np.mean([square(start, seed) for seed in range(300)]) for start in ("gaussian", True)]
answer = means[0] / means[1]
print(f"measured: {answer:.2f}, predicted: 12")
assert abs(answer / 12 - 1) < 0.1
ch03.gaussian_start(answer)

# %% [markdown]
# **4. Double `lora_alpha`.** After the first step the update is $s\,B A$, where $B$ has moved by
# $\mathrm{lr}$ times something. With SGD that something is $\mathrm{d}B = s\,\mathrm{dout}^\top z$,
# which contains another $s$: the update is proportional to $\mathrm{lr}\,s^2$, and $\mathrm{lr}$
# has to become a quarter. AdamW divides the size of the gradient out, so its update is proportional
# to $\mathrm{lr}\,s$, and half of $\mathrm{lr}$ will do. This is what the LoRA paper means when it
# says that, with Adam, tuning `alpha` is roughly the same as tuning the learning rate.

# %%
answer = (1 / 4, 1 / 2)
ch03.double_alpha(answer)

# %% [markdown]
# **5. Convert.** $x\,a\,b = x A^\top B^\top$ gives $A = a^\top$ and $B = b^\top$. The multiplier
# here is `lora_alpha / r`, so `lora_alpha = scale * r`, with $r$ the number of columns of `lora_a`.

# %%
answer = lambda lora_a, lora_b, scale: (lora_a.T, lora_b.T, scale * lora_a.shape[1])  # noqa: E731
ch03.convert(answer)
