# %% [markdown]
# # Solutions: how good can a rank-r matrix be?
#
# The exercises of [chapter 01](../01_low_rank.ipynb), each with the same check.

# %%
import numpy as np

from lorabook.book.checks import ch01
from lorabook.files import environment
from lorabook.linalg import low_rank

print(environment.summary())

# %% [markdown]
# **1. Derive.** The tail of a geometric series is the series again, times its first term:
#
# $$ \sum_{i > r} \sigma_i^2 = \sum_{k=r}^{\infty} \rho^{2k}
# = \rho^{2r} \sum_{k=0}^{\infty} \rho^{2k} = \rho^{2r}\, \lVert W \rVert_F^2 . $$
#
# The series cancels, and the root leaves
#
# $$ \frac{\lVert W - W_r \rVert_F}{\lVert W \rVert_F} = \rho^r . $$
#
# Each further rank takes away the same share of what is left. At $\rho = 0.8$ an error of 5 % takes
# $r = \log 0.05 / \log 0.8 = 13.4$, that is 14 directions.

# %%
answer = lambda rho, r: rho**r  # noqa: E731
ch01.geometric(answer)

# %% [markdown]
# **2. Change LoRA: a shared A.** Write the two updates below each other. Then the two factors $B$
# stand below each other, too, and the problem is the one of the chapter:
#
# $$ \begin{pmatrix} \Delta W_1 \\ \Delta W_2 \end{pmatrix} \approx
# \begin{pmatrix} B_1 \\ B_2 \end{pmatrix} A . $$
#
# The sum of the two squared errors is the squared error of the stack, and $B_1$, $B_2$ are as free
# as one large factor is. So the least error is that of the best rank $r$ of the stack, from its
# singular values.
#
# It is never below the error with separate factors: what is shared must serve both. It equals it if
# the two updates read the same directions of $x$.

# %%
answer = lambda dW_1, dW_2, r: low_rank.rank_errors(  # noqa: E731
    low_rank.svd(np.concatenate([dW_1, dW_2]))[1]
)[r]
ch01.shared(answer)

# %% [markdown]
# **3. What does it save?** Each rank costs one column of every $B$ and one row of every $A$:
# $4 \cdot 768$ numbers with two pairs, $3 \cdot 768$ with a shared $A$. The shared one affords a
# third more rank. Whether that pays depends on the updates; exercise 2 says how to find out.

# %%
answer = 100_000 // (4 * 768), 100_000 // (3 * 768)
print(answer)
ch01.budget(answer)

# %% [markdown]
# **4. Not the only one.** The spectral error is the largest singular value of what is left. The
# entry 2 is lost in any case, so the first entry may be wrong by up to 2 as well: any
# `diag(first, 0, 0)` with a first entry from 1 to 5 does.
#
# The Frobenius norm counts every error, so it has one minimiser only, where no two singular values
# tie at the cut.

# %%
answer = np.diag([2.0, 0.0, 0.0])
ch01.not_the_only_one(answer)

# %% [markdown]
# **5. Inputs that change the order.** The two outputs are $2 x_0$ and $1 x_1$. The second matters
# more as soon as the second input is more than twice as large as the first, in the mean square.
# With these two inputs $R$ is `diag(1, 3)` up to signs, and $W R^\top$ is `diag(2, 3)`: the order
# has changed.

# %%
answer = np.array([[1.0, 0.0], [0.0, 3.0]])
ch01.other_order(answer)

# %% [markdown]
# **6. Measure: how concentrated is nothing?** The share settles at about 0.51: random numbers have
# their energy spread over half of their directions, at every size. So 66 of 128 for the random
# start is what nothing looks like, and 12 of 128 for the update is structure.
#
# (The histogram of $\sigma^2$ of such a matrix has a limit, the Marchenko-Pastur law, from which
# 0.51 can be computed.)

# %%
rng = np.random.default_rng(0)
for side in (32, 64, 128, 256, 512):
    sigma = low_rank.svd(rng.standard_normal((side, side)))[1]
    print(f"side {side:3}: {low_rank.energy_rank(sigma, 0.9) / side:.3f}")
answer = low_rank.energy_rank(sigma, 0.9) / side
ch01.random_share(answer)
