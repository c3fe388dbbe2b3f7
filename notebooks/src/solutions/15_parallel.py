# %% [markdown]
# # Solutions: why does LoRA make data parallelism nearly free?

# %%
import tracemalloc

import numpy as np

from lorabook.book import speed
from lorabook.book.checks import ch15
from lorabook.files import environment
from lorabook.parallel import Workers

print(environment.summary())

# %% [markdown]
# **1. Labels that do not count.** The share of a shard is its part of the labels that count, not of
# the rows:
#
# $$
# \nabla L = \sum_k \frac{n_k}{\sum_m n_m}\, \nabla L_k ,
# \qquad n_k = \text{labels of shard } k \text{ that count.}
# $$
#
# `Workers` counts them before it starts. A shard without any has share 0, and its mean is not
# defined: leave it out.


# %%
def answer(grads, labels):
    counts = [np.sum(y >= 0) for y in labels]
    return sum(n * grad for n, grad in zip(counts, grads, strict=True)) / sum(counts)


ch15.labels_that_count(answer)

# %% [markdown]
# **2. Freeze A.** In both orders $\mathrm{d}A$ falls away. In the merged order so does
# $\mathrm{d}z$, which served nothing else: $\mathrm{d}x$ is a product with $W + s B A$. In the
# factored order $\mathrm{d}z$ stays, because $\mathrm{d}x$ needs $\mathrm{d}z\,A$. On top of the
# products with $W$:
#
# $$
# \begin{aligned}
# \text{factored}\quad & z,\; z B^\top,\; \mathrm{d}z,\; \mathrm{d}B,\; \mathrm{d}z\,A:
#   & 2 N r\,(2\, d_{\mathrm{in}} + 3\, d_{\mathrm{out}}) \\
# \text{merged}\quad & B A,\; z,\; \mathrm{d}B:
#   & 2 N r\,(d_{\mathrm{in}} + d_{\mathrm{out}}) + 2\, r\, d_{\mathrm{in}} d_{\mathrm{out}}
# \end{aligned}
# $$
#
# They are equal at
#
# $$
# N = \frac{d_{\mathrm{in}}\, d_{\mathrm{out}}}{d_{\mathrm{in}} + 2\, d_{\mathrm{out}}} ,
# $$
#
# a third of $d$ for a square matrix instead of a half. Merging pays earlier: the factored order has
# lost less.

# %%
answer = lambda d_in, d_out: d_in * d_out / (d_in + 2 * d_out)  # noqa: E731
ch15.frozen_A(answer)

# %% [markdown]
# **3. Memory.** One untimed pass first, so that nothing is counted that is made once and stays.


# %%
def peak(work):
    work()
    tracemalloc.start()
    work()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most


model, batch = speed.random_bert(speed.SMALL), speed.random_batch(32, 64)
with Workers(1) as workers:
    cut = peak(lambda: workers.loss_and_grad(model, batch))
    whole = peak(lambda: model.loss_and_grad(batch))
print(f"{cut / 1e6:.1f} of {whole / 1e6:.1f} MB: {cut / whole:.2f}")
answer = cut / whole
ch15.memory_share(answer)

# %% [markdown]
# Four shards, and somewhat more than a quarter: the gradients and the effective weights are there
# as a whole in either case. With $n$ workers, $n$ shards are in memory at once.
#
# **4. A slow network.** If the exchange is one tenth of the step, computing is nine tenths: nine
# times the exchange,
#
# $$
# 9 \cdot 2\, \frac{n - 1}{n}\, P
# \cdot \frac{4\ \text{bytes}}{125 \cdot 10^6\ \text{bytes a second}} .
# $$


# %%
def answer(P, n):
    return 9 * 2 * (n - 1) / n * P * 4 / 125e6


ch15.slow_network(answer)
for name, P in (("LoRA", 1_179_648), ("full fine-tuning", 124_439_808)):
    print(f"GPT-2 small, 8 ranks, {name}: {answer(P, 8):.1f} s")

# %% [markdown]
# **5. More cores.** Ever more threads leave $1 / (1 - \varphi) = 1 / 0.3 = 3.33$. Half of it is
# reached where the time is twice $1 - \varphi$:
#
# $$
# 1 - \varphi + \frac{\varphi}{n} = 2\,(1 - \varphi)
# \qquad\Rightarrow\qquad n = \frac{\varphi}{1 - \varphi} = 2.33 .
# $$
#
# Three cores are past half of what any number of them could do.

# %%
answer = 1 / 0.3, 0.7 / 0.3
ch15.more_cores(answer)
