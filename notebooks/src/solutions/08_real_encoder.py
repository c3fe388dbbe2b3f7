# %% [markdown]
# # Solutions: which matrices, which rank, which directions?
#
# The exercises of [chapter 08](../08_real_encoder.ipynb). They need the model and the files that
# the chapter reads, and no training.

# %%
import numpy as np

from lorabook.book.checks import ch08
from lorabook.files import environment
from lorabook.linalg import subspace

print(environment.summary())

# %% [markdown]
# **1. Count.** Every matrix is 384 x 384: $A$ and $B$ hold $384\,r$ numbers each. There are
# six times as many as are `adapted` in a layer. The classifier has two rows of 384 and two biases:
#
# $$6 \cdot \mathrm{adapted} \cdot 2 \cdot 384\, r + 2 \cdot 384 + 2$$

# %%
answer = lambda r, adapted: 6 * adapted * 2 * 384 * r + 2 * 384 + 2  # noqa: E731
ch08.count(answer)

# %% [markdown]
# **2. Two random subspaces.** The $d$ squared coordinates of a unit vector add up to 1, and for a
# random one none is preferred. So its projection onto $j$ given dimensions has the squared length
# $j / d$ on average. $\phi$ averages that over the $\min(i, j)$ vectors of the smaller subspace:
#
# $$\mathrm{mean}\; \phi(i, j) = \frac{\max(i, j)}{d}$$
#
# With 64 of 384 dimensions a sixth of everything lies in the other subspace by chance.

# %%
answer = lambda i, j, d: max(i, j) / d  # noqa: E731
ch08.random_phi(answer)

# %% [markdown]
# **3. A shared A.** $A$ is used twice, in $s\,x A^\top B_q^\top$ and in $s\,x A^\top B_v^\top$.
# What is used twice gets two gradients, and they add (chapter 02). Each is that of chapter 03:
#
# $$\mathrm{d}A = s\,(\mathrm{d}q\, B_q + \mathrm{d}v\, B_v)^\top x$$

# %%
answer = lambda dq, dv, x, A, B_q, B_v, s: s * (dq @ B_q + dv @ B_v).T @ x  # noqa: E731
ch08.shared_A(answer)

# %% [markdown]
# It saves one $A$ of four factors, a quarter of the adapter's numbers, and one product with $x$.
#
# **4. Louder.** For large `times` the first eight singular vectors become those of the update, all
# new. The ninth and tenth cannot come from it, for it has rank 8: they are what is left of $W$.
# Measured with a random $W$ as well:

# %%
rng = np.random.default_rng(0)
W, (B, A) = rng.standard_normal((384, 384)) / 384**0.5, rng.standard_normal((2, 384, 8))
for times in (1e-4, 1e-3, 1e-2, 1.0):
    print(f"times = {times:g}: {len(subspace.intruder_dimensions(W, times * B @ A.T))} intruders")
answer = 8
ch08.louder(answer)

# %% [markdown]
# An intruder is a matter of size, not only of direction: the same update with small `times` has none.
