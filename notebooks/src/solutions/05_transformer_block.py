# %% [markdown]
# # Solutions: what is the backward pass of a transformer block, with LoRA on any of its matrices?

# %%
import numpy as np

from lorabook.book import probes
from lorabook.book.checks import ch05
from lorabook.files import environment
from lorabook.functional import softmax, softmax_backward
from lorabook.layers import Sequential
from lorabook.models import PostNormBlock

print(environment.summary())
rng = np.random.default_rng(0)

# %% [markdown]
# **1. The bias of a value.** Each row of $p$ adds up to 1, so every output of attention moves by
# the same $b$, and `output` turns that into $W_o\,b$:
#
# $$
# p\,(v + 1 b^\top) = p\,v + (p\,1)\,b^\top = p\,v + 1 b^\top .
# $$

# %%
answer = lambda W_o, b: W_o @ b  # noqa: E731
ch05.value_bias(answer)

# %% [markdown]
# **2. An adapter on the scores.** With $\delta\mathrm{scores} = c\,s\,x\,\delta A^\top B\,x^\top$,
#
# $$
# \langle \mathrm{dscores},\; c\,s\,x\,\delta A^\top (B x^\top) \rangle
# = \langle c\,s\,(x B^\top)^\top \mathrm{dscores}^\top x,\; \delta A \rangle .
# $$
#
# It is what $\mathrm{d}A$ of an ordinary adapter on the query would be: $x A^\top$ plays the
# question, $x B^\top$ the key. One pair of factors learns where to look; an adapter on query and
# one on key hold two. At $B = 0$ the scores are those of the frozen model, as with LoRA.

# %%
answer = lambda dscores, x, B, c, s: c * s * (x @ B.T).T @ dscores.T @ x  # noqa: E731
ch05.scores_A(answer)

# %% [markdown]
# **3. Shared keys.** A value used `group` times: its gradients add. The heads of a group are
# neighbours, so give each group an axis of its own and sum over it.


# %%
def answer(dk, group):
    B_, heads, T, d_head = dk.shape
    return dk.reshape(B_, heads // group, group, T, d_head).sum(axis=2)


ch05.shared_keys(answer)

# %% [markdown]
# **4. Why divide by $\sqrt{d_{\mathrm{head}}}$?** An inner product of two standard normal vectors
# has variance $d_{\mathrm{head}}$. So without $c$ the scores have the standard deviation 8, and
# softmax picks nearly one token a row. For the others $p_{ij} \approx 0$, and with it
# $\mathrm{dscores}_{ij} = p_{ij} \langle \mathrm{d}o_i, v_j - o_i \rangle$. The norm of a row of
# $\mathrm{dscores}$ hardly changes, but it sits in the few rows and tokens that are still
# undecided: the median entry falls by six orders of magnitude. A token that is not looked at gets
# no gradient that would change that.

# %%
q, k, dp = rng.standard_normal((3, 50, 64, 64))
answer = []
for c in (1 / 8, 1):
    p, _ = softmax(c * (q @ k.mT))
    answer.append(p.max(axis=-1).mean())
    dscores = softmax_backward(dp, p)
    print(f"c = {c:5}: largest p {answer[-1]:.2f}, norm of dscores a row", end=" ")
    print(f"{np.linalg.norm(dscores, axis=-1).mean():.3f}, median {np.median(abs(dscores)):.0e}")
ch05.unscaled(answer)

# %% [markdown]
# **5. The way down.** All six layers of blocks 5, 4 and 3 hand a gradient on. In block 4 that
# includes the adapter on `value`, and `query` and `key`: block 2 is still to come. In block 2 only
# `down`, `up` and `output` do; nothing below `value` needs one. Blocks 0 and 1 are not visited.

# %%
answer = 3 * 6 + 3
ch05.way_down(answer)

tower = Sequential({str(i): PostNormBlock.random(8, 2, 32, rng) for i in range(6)})
tower = probes.adapted(tower, r"[24]\..*value")
found = probes.passes_through(tower, rng.standard_normal((2, 3, 8)).astype("f4"))
print(f"{len(found)} layers, from {found[0]} to {found[-1]}")
