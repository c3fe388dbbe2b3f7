# %% [markdown]
# # Solutions: what does a weight in four bits cost, and can LoRA train on top of it?
#
# The exercises of [chapter 14](../14_quantization.ipynb).

# %%
import numpy as np

from lorabook.book.checks import ch14
from lorabook.book.four_bits import block_error
from lorabook.files import environment
from lorabook.quantization import even_levels, nf4_levels

print(environment.summary())

# %% [markdown]
# **1. Bits a weight.** Count for one group: `block * group` weights have a code each, `group`
# scales, and one number for all of them. Divided by the weights:
#
# $$\mathrm{code} + \frac{\mathrm{scale}}{\mathrm{block}}
# {} + \frac{\mathrm{second}}{\mathrm{block} \cdot \mathrm{group}}$$

# %%
answer = lambda code, block, scale, group, second: (  # noqa: E731
    code + scale / block + second / (block * group)
)
ch14.bits(answer)
print(f"NF4 with double quantisation: {answer(4, 64, 8, 256, 32):.3f}")

# %% [markdown]
# **2. What an SVD finds in noise.** The energy is the sum of $m n$ squares with mean 1, about
# $m n$. No direction holds more than the first, so $r$ of them hold at most $r \sigma_1^2$:
#
# $$\frac{r\, \sigma_1^2}{m n} \approx \frac{r\, (\sqrt m + \sqrt n)^2}{m n}$$
#
# For a square matrix this is $4 r / d$: four times the share $r / d$ that $r$ directions out of $d$
# would hold if all held the same. A larger matrix gives less of its error back at the same rank.

# %%
answer = lambda r, m, n: r * (m**0.5 + n**0.5) ** 2 / (m * n)  # noqa: E731
ch14.noise(answer)
for d in (384, 4096):
    print(f"d = {d}, r = 8: error after one round at least {(1 - answer(8, d, d)) ** 0.5:.3f}")

# %% [markdown]
# **3. Better levels.** For given levels, a value belongs to the nearest one, so the border between
# two lies half way. For a given group of values the number with the least squared error is their
# mean, as the derivative says:
#
# $$\frac{\partial}{\partial \ell} \sum_i (w_i - \ell)^2 = -2 \sum_i (w_i - \ell) = 0
# \quad\Rightarrow\quad \ell = \frac1n \sum_i w_i$$
#
# Alternating between the two never makes the error larger (Lloyd 1957; k-means in one dimension).
# The three fixed levels are put back after each round.


# %%
def answer(values, rounds=60):
    levels = nf4_levels().astype("f8")
    for _ in range(rounds):
        codes = np.searchsorted((levels[1:] + levels[:-1]) / 2, values)
        levels = np.bincount(codes, values, 16) / np.bincount(codes, minlength=16)
        levels[[0, 7, 15]] = -1, 0, 1
    return levels


ch14.better_levels(answer)

# %% [markdown]
# A few per cent less, from levels that know the block length. QLoRA's quantiles are those of a
# normal weight; what is rounded is a normal weight divided by the largest of 64. In the sense of
# the squared error NF4 is good, and not optimal.
#
# **4. What shorter blocks are worth.** Shorter blocks have smaller scales, so finer levels:

# %%
W = np.random.default_rng(0).standard_normal((256, 1024)).astype("f4")
print("NF4, blocks of 64:", round(block_error(W, nf4_levels(), 64), 4))
for block in (8, 16, 32, 64):
    print(f"even levels, {block:2}: {block_error(W, even_levels(4), block):.4f}")
answer = 16
ch14.equal_block(answer)

# %% [markdown]
# Blocks of 16 need four times as many scales. With float16 scales that is 5 bits instead of 4.25:
# the good levels are worth three quarters of a bit here. (`q4_0` is not in this list: it uses a
# sixteenth level, and sets the sign of the scale so that the largest weight gets it.)
