# %% [markdown]
# # Solutions: how close does trained LoRA come to the best rank-r update?
#
# The exercises of [chapter 06](../06_rank_vs_error.ipynb).

# %%
from pathlib import Path

import numpy as np

import lorabook
from lorabook.book import rank_tables
from lorabook.book.checks import ch06
from lorabook.files import environment, read_csv

DATA = Path(lorabook.__file__).parents[1] / "figures" / "data"
print(environment.summary())

# %% [markdown]
# **1. A storage budget.** For each method look for the smallest rank that reaches 94 %, and for the
# numbers that it stores: $r\,(d_\mathrm{in} + d_\mathrm{out})$ a matrix.

# %%
rows = read_csv(DATA / "rank_vs_error.csv")
accuracy, params = (rank_tables.medians(rows, name) for name in ("test_accuracy", "params"))
for method in rank_tables.METHODS:
    r = min(r for m, r in accuracy if m == method and accuracy[m, r] >= 0.94)
    share = f"{100 * accuracy[method, r]:.1f} %"
    print(f"{method:14} r = {r:2}: {params[method, r]:6,} numbers, {share} right")
answer = ("lora", 1172)
ch06.budget(answer)

# %% [markdown]
# LoRA reaches it at $r = 2$ already. The activation-aware truncation needs four times as many
# numbers, the plain one seven times; full fine-tuning stores 25,856.
#
# **2. Is it only the length?** Multiplying by a number changes the length and not the cosine. So
# minimise over the length:
#
# $$\frac{\partial}{\partial\, \mathrm{length}} \big( 1 + \mathrm{length}^2
# {} - 2\, \mathrm{length} \cdot \mathrm{cosine} \big)
# = 2\, \mathrm{length} - 2\, \mathrm{cosine} = 0$$
#
# The best length is the cosine, as it is for every truncation, and
#
# $$\mathrm{distance}^2 = 1 + \mathrm{cosine}^2 - 2\, \mathrm{cosine}^2 = 1 - \mathrm{cosine}^2$$

# %%
answer = lambda cosine: (1 - cosine**2) ** 0.5  # noqa: E731
ch06.best_multiple(answer)
print(f"at the cosine of LoRA, r = 4, which is 0.19: {answer(0.19):.2f}")

# %% [markdown]
# With a cosine of 0.19 the best multiple is still at distance 0.98. It is not the length: the
# direction is another one.
#
# **3. Start at the truncation.** With $\mathrm{matrix} = U\,\mathrm{diag}(\sigma)\,V^\top$ any
# $A$ and $B$ do whose product is $U_r\,\mathrm{diag}(\sigma_1, \dots, \sigma_r)\,V_r^\top / s$.
# Half of each singular value to either side makes them equally large, so that neither learns much
# faster than the other:
#
# $$A = \mathrm{diag}\sqrt{\sigma_i / s}\; V_r^\top
# \qquad B = U_r\, \mathrm{diag}\sqrt{\sigma_i / s}$$


# %%
def answer(matrix, r, s):
    U, sigma, Vt = np.linalg.svd(matrix, full_matrices=False)
    root = np.sqrt(sigma[:r] / s)
    return root[:, None] * Vt[:r], U[:, :r] * root


ch06.warm_start(answer)

# %% [markdown]
# It began at distance 0.64, a third of the digits right. Training makes the digits right, and
# takes it *away* from $\Delta W$: what a rank-4 update needs for the task is not what is left of
# the full one. The knowledge of $\Delta W$ buys a place nearer by, and no better answers.
#
# **4. Below the noise.** At full rank the best update is the one of least squares. It has
# $d_\mathrm{in} = 32$ free numbers for each output, and fits that share of the noise as well. The
# residual is the noise, projected on the directions perpendicular to the columns of $x$, which are
# $N - d_\mathrm{in}$ out of $N$:
#
# $$\mathrm{rmse} = \mathrm{noise}\, \sqrt{1 - d_\mathrm{in} / N}$$

# %%
answer = 0.02 * (1 - 32 / 512) ** 0.5
print(f"{answer:.5f} predicted")
ch06.below_the_noise(answer)

# %% [markdown]
# **5. Only impatience?** No. LoRA had every training digit right after 60 epochs. From then on the
# loss is nearly flat, and more of the same adds little on held-out digits.

# %%
answer = False
ch06.impatience(answer)
