# %% [markdown]
# # Why does LoRA make data parallelism nearly free?
#
# At the end of this chapter you can share a training step among threads or machines so that it
# gives the same bits on any number of them, say what has to travel between machines, and read the
# library's fast kernels: attention in blocks, the first token without keys, and the choice of
# contraction order.
#
# The number to begin with: eight machines on a 1 Gbit/s link that train GPT-2 small exchange
# gradients for 7 seconds a step. With LoRA at r = 8 it is **0.07 seconds**.
#
# ![A batch of 16 texts is cut into four shards. All read one model. Each gives a gradient of A and
# B alone; they are added in the order of the shards.](../figures/shards.svg)
#
# The first half of the chapter shares the work out. The second half makes what remains faster.
# Times are of one run on one machine that may have had other work to do: read the ratios, and run
# the chapter again before you believe them.

# %%
import functools
import math

import numpy as np
from threadpoolctl import threadpool_limits

from lorabook.adapters import LoRAConfig, count, effective_weights, inject, merging_is_cheaper
from lorabook.bench import SIX
from lorabook.book import parts, plain, speed, tricks
from lorabook.book.checks import ch15
from lorabook.book.listing import code
from lorabook.book.plots import parallel
from lorabook.files import environment, format_table
from lorabook.functional import absorbed, absorbing_is_cheaper, attend, relative_error
from lorabook.layers import Run, add_grads
from lorabook.models import BertForSequenceClassification
from lorabook.parallel import Workers, cores, cut

threadpool_limits(1, "blas")  # one BLAS thread, unless a cell says otherwise
print(environment.summary())
print(f"cores that this process may use: {cores()}")
rng = np.random.default_rng(0)

# %% [markdown]
# ## A batch can be cut
#
# Why can a step be shared at all? The loss of a batch is a mean over its $N$ rows. Cut the rows
# into shards with $N_1 + N_2 + \dots = N$ of them, and let $L_k$ be the mean over shard $k$. Then
#
# $$
# L = \sum_k \frac{N_k}{N}\, L_k
# \qquad\Rightarrow\qquad
# \nabla L = \sum_k \frac{N_k}{N}\, \nabla L_k .
# $$
#
# So every shard can be computed on its own, and $N_k / N$, its `share`, goes in at the top, as the
# gradient of the loss. That is a loop of five lines:


# %%
def in_shards(model, batch, shards):
    """{name: gradient} of the batch, one shard after another."""
    total = {}
    for rows in shards:
        share = (rows.stop - rows.start) / model.rows(batch)
        _, grads = model.loss_and_grad(model.part(batch, rows), share=share)
        total = add_grads(total, grads)
    return total


# %% [markdown]
# To run the body of the loop on several threads at once, the model must be read-only meanwhile.
# Here it is: `forward` and `backward` store nothing on a layer, and what backward needs is in the
# cache that forward returned.
#
# A small BERT with random weights, LoRA on all six matrices of a block, and 32 texts of 64 tokens.
# The library cuts into shards of about 512 tokens, here 8 texts:

# %%
model, batch = speed.random_bert(speed.SMALL), speed.random_batch(32, 64)
shards = cut(model, batch)
print("shards:", [(rows.start, rows.stop) for rows in shards])

_, whole = model.loss_and_grad(batch)
looped = in_shards(model, batch, shards)
error = max(relative_error(looped[name], whole[name]) for name in whole)
print(f"the loop against the whole batch at once: {error:.0e} apart")
assert error < 1e-4

# %% [markdown]
# That is rounding, in float32. The library's `Workers` has the same loop. Its `shards` does the
# body on the threads, and hands the results over in the order of the shards:

# %%
print(code(Workers.loss_and_grad))

# %%
results = {}
for n in (1, 2, 3):
    with Workers(n) as workers:
        results[n] = workers.loss_and_grad(model, batch)

loss, grads = results[1]
for n, (own_loss, own) in results.items():
    same = own_loss == loss and all(np.array_equal(own[name], grads[name]) for name in grads)
    error = max(relative_error(own[name], whole[name]) for name in whole)
    print(f"workers: {n}; the bits of 1 worker: {same}; from the whole batch {error:.0e}")
    assert same and own.keys() == whole.keys() and error < 1e-4

# %% [markdown]
# One, two or three threads give the same bits. Why does that need care?
#
# ## The order of addition
#
# In floating point $(a + b) + c$ is not $a + (b + c)$. `Workers` fixes the order in two places. How
# a batch is cut depends on the batch, not on the number of workers. And the gradients are added in
# the order of the shards, whichever thread is ready first. (With dropout, each shard also has a
# generator of its own.)
#
# Here are the same four gradients, added in order and backwards:


# %%
def flat(grads):
    return np.concatenate([grads[name].ravel() for name in sorted(grads)])


weights = effective_weights(model, model.tokens(batch))  # W + s B A, once for all shards: see below
run, rows = Run(weights=weights), []  # a row for each shard
for shard in shards:
    share = (shard.stop - shard.start) / model.rows(batch)
    rows.append(flat(model.loss_and_grad(model.part(batch, shard), run, share)[1]))
rows = np.stack(rows)

in_order, backwards = functools.reduce(np.add, rows), functools.reduce(np.add, rows[::-1])
differ = np.mean(in_order != backwards)
print(f"in order: the bits of Workers: {np.array_equal(in_order, flat(grads))}")
print(f"backwards: {differ:.0%} of {in_order.size:,} entries differ,", end=" ")
print(f"by {relative_error(backwards, in_order):.0e}")
assert np.array_equal(in_order, flat(grads)) and differ > 0.05

# %% [markdown]
# A difference of one rounding is harmless in one step. But it grows from step to step, and then no
# checkpoint, no second machine and no bug report can be compared with the first run. Fixing the
# order costs nothing here.
#
# ## Why shards, and not BLAS threads?
#
# BLAS brings threads of its own: let it share out every matrix product, and leave the batch alone?
# But a step is more than products. Softmax, GELU, layer norm and the residuals are NumPy functions,
# which use one thread. Call the share of the time that the products take $\mathrm{products}$. With
# $n$ BLAS threads it becomes an $n$-th, and the rest stays: a step is at most
#
# $$
# \frac{1}{1 - \mathrm{products} + \mathrm{products} / n}
# $$
#
# times as fast (Amdahl's law).
#
# Shards share out everything, and a thread keeps what the backward pass needs of 512 tokens at a
# time, not of a batch. Each thread then computes with *one* BLAS thread; two levels of threads
# would fight over the cores. That Python threads work at all here is because NumPy lets go of the
# interpreter while it computes.

# %%
n = 2
products = speed.product_share()
print(f"products = {products:.2f}: {n} BLAS threads make a step", end=" ")
print(f"at most {1 / (1 - products + products / n):.2f} times as fast\n")
assert 0.4 < products < 0.95

seconds = speed.ways(threads=n)
base = seconds["whole batch, 1 BLAS thread"]
columns = {"one step": str, "times as fast": lambda way: f"{base / seconds[way]:.2f}"}
print(format_table(list(seconds), columns))

# %% [markdown]
# (The share is of processor time; below it the least time of five turns each.) On two idle cores
# shards are ahead, for they share out more. If they are not here, the cores had other work while
# this page was made, or there is only one: then BLAS threads, which wait for each other at every
# product, suffer most. `lorabook bench step` measures a step in a process of its own, and `lorabook
# bench gemm` the products in both ways.
#
# ## Several machines: what has to travel
#
# Threads share memory. Processes on several machines do not: each holds the whole model and
# computes its shards, and what has to travel is the gradient of what trains. Nothing else:
# parameters start equal, and equal gradients keep them equal.
#
# Let the gradient have $P$ numbers, on each of $n$ processes. (MPI numbers them and calls each a
# *rank*, and so do we; it has nothing to do with $r$.) All ranks need the sum. The best exchange,
# an *all-reduce*, cuts the numbers into $n$ chunks, and each rank adds up one of them. So a rank
# receives the others' parts of its chunk, and then the sums of the other chunks:
#
# $$
# (n - 1)\, \frac{P}{n} + (n - 1)\, \frac{P}{n} = 2\, \frac{n - 1}{n}\, P
# $$
#
# numbers, and it sends as many. Full fine-tuning has all parameters in $P$. LoRA has
#
# $$
# P = \sum_{\text{adapted}} r\,(d_{\mathrm{in}} + d_{\mathrm{out}}) ,
# \qquad\text{for one square matrix}\qquad
# \frac{d^2}{2\, r\, d} = \frac{d}{2 r}
# $$
#
# times fewer: the wider the model, the more LoRA saves. First the formula on a model, then three
# models from the shapes in their papers.


# %%
def block(d, d_mlp, gated=False):
    """(d_in, d_out) of a block's matrices, query, key and value apart; gated: three in the MLP."""
    return [(d, d)] * 4 + [(d, d_mlp)] * (1 + gated) + [(d_mlp, d)]


def lora_numbers(blocks, matrices, r=8):
    return blocks * sum(r * (d_in + d_out) for d_in, d_out in matrices)


GPT2 = [(768, 2304), (768, 768), (768, 3072), (3072, 768)]
MODELS = {  # blocks, matrices of each, all parameters
    "MiniLM": (6, block(384, 1536), 22_713_216),
    "GPT-2 small": (12, GPT2, 12 * (12 * 768**2 + 13 * 768) + (50257 + 1024) * 768 + 2 * 768),
    "Llama-7B": (32, block(4096, 11008, gated=True), 6_738_415_616),
}
encoder = BertForSequenceClassification(parts.MINILM, labels=2)
assert count(encoder.named_params()) == MODELS["MiniLM"][2] + 2 * 384 + 2  # and a classifier
inject(encoder, LoRAConfig(r=8, lora_alpha=16, target_modules=SIX))
assert count(encoder.trainable_params()) == lora_numbers(*MODELS["MiniLM"][:2])
llama = 32 * (4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096)
assert MODELS["Llama-7B"][2] == llama + 2 * 32000 * 4096 + 4096

# %% [markdown]
# The seconds are for 8 ranks and a link of 1 Gbit/s, used fully in both directions. They are
# arithmetic, not measurements.

# %%
ITEMSIZE, LINK = 4, 1e9 / 8  # float32; bytes a second


def exchange(P, n):
    """Seconds of the best exchange."""
    return 2 * (n - 1) / n * P * ITEMSIZE / LINK


table = [
    {"model": name, "full": full, "lora": lora_numbers(blocks, matrices)}
    for name, (blocks, matrices, full) in MODELS.items()
]
columns = {"r = 8, all matrices": lambda row: row["model"]}
for kind in ("full", "lora"):
    columns[f"{kind}, MB"] = lambda row, kind=kind: f"{row[kind] * ITEMSIZE / 1e6:,.1f}"
    columns[f"{kind}, seconds"] = lambda row, kind=kind: f"{exchange(row[kind], 8):.3f}"
columns["ratio"] = lambda row: f"{row['full'] / row['lora']:.0f}"
print(format_table(table, columns))

ratios = [row["full"] / row["lora"] for row in table]
assert np.allclose(ratios, (68, 105, 337), rtol=0.01)
assert math.isclose(exchange(table[1]["full"], 8), 7.0, rel_tol=0.01)
assert math.isclose(exchange(table[1]["lora"], 8), 0.066, rel_tol=0.01)

# %% [markdown]
# Full fine-tuning of GPT-2 small exchanges for seconds over such a link, LoRA for hundredths of a
# second. For Llama-7B it is minutes, against about a second. Two remarks for honesty:
#
# * LoRA does not make the *computing* much cheaper (chapter 03: two of three products remain). It
#   is the exchange that nearly vanishes, and with it the need for a fast network.
# * A larger batch for each rank, or gradients accumulated over several batches, divides the
#   exchange in either case.
#
# ## The same bits on any number of ranks
#
# An ordinary all-reduce adds in an order that depends on $n$. Below, a ring: each rank first adds
# up its own shards, then each chunk of the numbers goes round and collects the sums. The other way
# deals out the *columns*: each rank receives its columns of every shard's gradient, adds them in
# the order of the shards, and hands the sums to all.


# %%
def ring(rows, n):
    """Sum of the rows (K, P) as n ranks in a ring compute it: chunk j starts at rank j."""
    own = [np.array_split(functools.reduce(np.add, part), n) for part in np.array_split(rows, n)]
    chunks = [functools.reduce(np.add, [own[(j + i) % n][j] for i in range(n)]) for j in range(n)]
    return np.concatenate(chunks)


def dealt_out(rows, n):
    """The same sum, each rank adding its columns of all rows in order."""
    columns = np.array_split(rows, n, axis=1)
    return np.concatenate([functools.reduce(np.add, own) for own in columns])


for n in (1, 2, 3, 4):
    by_ring, by_columns = (np.mean(way(rows, n) != in_order) for way in (ring, dealt_out))
    print(f"n = {n}: other bits than in one process:", end=" ")
    print(f"ring {by_ring:.0%}, dealt out {by_columns:.0%}")
    assert by_columns == 0 and (n == 1) == (by_ring == 0)

# %% [markdown]
# What does it cost to deal out? Let there be $K$ shards, $K / n$ on each rank. A rank sends to each
# of the $n - 1$ others their $P / n$ columns of each of its shards, and then, as before, the sums
# of its own columns. Against the all-reduce that is
#
# $$
# \frac{(n - 1)\, \frac{K}{n} \frac{P}{n} + (n - 1)\, \frac{P}{n}}{2\,(n - 1)\, \frac{P}{n}}
# = \frac{K / n + 1}{2}
# $$
#
# times the numbers: no more with one shard a rank, 1.5 times with two, 2.5 times with four. For
# full fine-tuning that would be a high price for equal bits. For LoRA it is a few megabytes, and
# `lorabook.parallel.ranks` pays it. It needs an MPI library (extra `mpi`), and then a run is
#
# ```bash
# pip install -e '.[mpi]'
# mpiexec -n 2 python -m mpi4py -m lorabook train minilm movie-reviews --r 8 --epochs 2 \
#     --out runs/two --distributed
# ```
#
# At its end it prints how many bytes a step cost, counted, beside the least and beside full
# fine-tuning. On one machine threads do the same with less: `--workers` says how many.
#
# ## Attention that stays in the processor's cache
#
# Now to what each worker computes. Chapter 05 derived attention and its gradient; here is what the
# library makes of the same formulas. There are $T / d_{\mathrm{head}}$ times as many scores as
# numbers in $q$, and softmax goes over them several times. So what costs is memory traffic, and
# three changes save some of it.
#
# **Transpose the scores.** Keys in rows, a column for each question. Maxima and sums then run down
# the columns, and NumPy takes those of all columns at once, row by row; along a row it must bring
# many numbers down to one.
#
# **Do not form p.** Divide what is small. Let $c = 1 / \sqrt{d_{\mathrm{head}}}$, as in chapter 05,
# and let $\mathrm{bias}$ be the mask, 0 or a very negative number. With a column's maximum
# subtracted,
#
# $$
# \begin{aligned}
# e &= \exp\big(c\, k q^\top + \mathrm{bias}^\top - \max\big) & (T, T) \\
# \mathrm{inv} &= 1 / (1^\top e) & (1, T) \\
# p^\top &= e \odot \mathrm{inv} & \text{never computed} \\
# o &= (e^\top v) \odot \mathrm{inv}^\top & (T, d_{\mathrm{head}})
# \end{aligned}
# $$
#
# where $1$ is a column of ones, and a row ($\mathrm{inv}$) or a column ($\mathrm{inv}^\top$)
# multiplies every row or column.
#
# On the way back start from chapter 05's $\mathrm{d}v = p^\top \mathrm{d}o$ and
# $\mathrm{dscores}_{ij} = p_{ij} \langle \mathrm{d}o_i, v_j - o_i \rangle$. With
# $D_i = \langle \mathrm{d}o_i, o_i \rangle$ in a row, and transposed as the scores are,
#
# $$
# \begin{aligned}
# \mathrm{d}v &= p^\top \mathrm{d}o
#   = e\,(\mathrm{inv}^\top \odot \mathrm{d}o) \\
# \mathrm{dscores}^\top &= p^\top \odot \big(v\,\mathrm{d}o^\top - D\big) \\
#   &= e \odot \big(v\,(\mathrm{inv}^\top \odot \mathrm{d}o)^\top - \mathrm{inv} \odot D\big)
# \end{aligned}
# $$
#
# $\mathrm{inv}$ goes into $\mathrm{d}o$ and $D$, which are small, and $e$ is used as it is.
#
# **Work in blocks.** A few heads at a time, with about `SCORES` of the scores (1 MB in float32):
# what the first pass has brought into the processor's cache, the last pass still finds there.
#
# In the library's code a block is `b` texts times `h` heads, with `T` questions and `S` keys, here
# as many; `ahead` hides later keys in a causal model, and `shift` is the maximum.

# %%
print(code(attend._attend))
print(f"SCORES = {attend.SCORES:,}")

# %% [markdown]
# Is it worth it? First the parts on small arrays, against chapter 05's plain attention: same
# numbers, and $e \odot \mathrm{inv}$ is $p^\top$.

# %%
q, k, v, dout = rng.standard_normal((4, 2, 5, 6))
o, cache = attend.attention(q, k, v, 2)
plain_o, plain_cache = plain.attention(q, k, v, 2)
*_, e, inv = cache[0][0][1]  # of the only block
errors = {"o": relative_error(o, plain_o), "p": relative_error((e * inv).mT, plain_cache[3])}
fast = attend.attention_backward(dout, cache)
simple = plain.attention_backward(dout, plain_cache)
for name, ours, theirs in zip("qkv", fast, simple, strict=True):
    errors[f"d{name}"] = relative_error(ours, theirs)
print({name: f"{error:.0e}" for name, error in errors.items()})
assert max(errors.values()) < 1e-13

# %% [markdown]
# Then the time, forward and backward, with 12 heads and d = 384 as in MiniLM: a batch of 16 texts,
# a shard of 4, and longer texts. Processor time, medians of turns.

# %%
sizes = ((16, 128), (4, 128), (4, 512))
times = {(B_, T): speed.attention_times(B_, T) for B_, T in sizes}
columns = {"texts x tokens": lambda size: f"{size[0]} x {size[1]}"}
for way in times[16, 128]:
    columns[way] = lambda size, way=way: f"{times[size][way]:.1f} ms"
columns["plain / in blocks"] = lambda size: f"{gain[size]:.2f}"
gain = {size: own["plain"] / own["transposed, in blocks"] for size, own in times.items()}
print(format_table(sizes, columns))
assert gain[16, 128] > 1.05 and gain[4, 512] > 1.05

# %% [markdown]
# With texts of 512 tokens the library's attention is about 1.5 times as fast as the plain one, in a
# batch of 16 x 128 about 1.3 times. In a shard of 4 x 128 tokens, which is what a thread computes
# at a time, it is 1.1 to 1.2 times: there the plain one's arrays nearly fit into the processor's
# cache as well. Cutting the batch has done most of the work already.
#
# ## The first token alone
#
# A larger gain comes from not computing at all. A classifier on top reads one token of a text, the
# first. So in the last block one token asks, and $T$ keys and $T$ values are made for a single
# question. They need not be made. Let $q$ be that question, in one head, $W_k$ and $W_v$ the rows
# of this head:
#
# $$
# \begin{aligned}
# \mathrm{scores} &= c\, q\, (x W_k^\top + 1 b_k^\top)^\top
#   = c\,(q W_k)\, x^\top + c\,\langle q, b_k \rangle\, 1^\top \\
# o &= p\,(x W_v^\top + 1 b_v^\top) = (p\,x)\, W_v^\top + b_v^\top
#   & \text{since } p \text{ adds up to } 1
# \end{aligned}
# $$
#
# The question is carried through $W_k$ to the inputs, asks *them*, and their average is carried
# through $W_v$: the weights are *absorbed* into question and output. The last term of the scores is
# the same for every token, and softmax does not see it. So $b_k$ does not occur: one more way to
# see that its gradient is zero.
#
# Count the FLOPs of one text with $f$ questions, forward. A product of $T$ rows with a $d \times d$
# matrix costs $2\, T d^2$, and there are two of each kind:
#
# $$
# \begin{aligned}
# \text{keys and values:} \quad & x W_k^\top,\; x W_v^\top & 4\,d \cdot T d \\
# \text{absorbed, all heads:} \quad & q W_k,\; (p\,x)\, W_v^\top & 4\,d \cdot f d \\
# \text{and, in each head:} \quad & (q W_k)\, x^\top,\; p\,x
#   & 4\,d \cdot f\, \mathrm{heads}\; T
# \end{aligned}
# $$
#
# So absorbing is cheaper if
#
# $$
# f\,(d + \mathrm{heads}\; T) < T d .
# $$
#
# For $f = 1$ that is nearly always so; for $f = T$, all tokens asking, never. (In the library's
# code `B` is the number of texts.)

# %%
print(code(absorbed.absorbed_attention))

# %%
T, d, heads = 128, 384, 12
for f in (1, 8, T):
    print(f"f = {f:3}: f (d + heads T) = {f * (d + heads * T):7,}, T d = {T * d:,}")
    assert absorbing_is_cheaper(f, T, heads, d) == (f * (d + heads * T) < T * d)

sizes = ((16, 128), (32, 32), (1, 512))
times = {size: speed.first_token_times(*size) for size in sizes}
gain = {size: own["keys and values"] / own["absorbed"] for size, own in times.items()}
columns = {"texts x tokens": lambda size: f"{size[0]} x {size[1]}"}
for way in ("keys and values", "absorbed"):
    columns[way] = lambda size, way=way: f"{times[size][way]:.1f} ms"
print("\n" + format_table(sizes, columns | {"ratio": lambda size: f"{gain[size]:.1f}"}))
assert absorbing_is_cheaper(1, T, heads, d) and min(gain.values()) > 2

# %% [markdown]
# Four to ten times as fast, forward and backward: for the attention of the last block, which is
# one of MiniLM's six.
#
# <details><summary>What it means for an adapter on key or value</summary>
#
# On the way back, the gradient of $W_k$ comes out whole, $q^\top \mathrm{d}t$ with $t = q W_k$;
# with one row a text it costs little. An adapter there takes its gradients from it,
# $\mathrm{d}A = s\,B^\top \mathrm{d}W$ and $\mathrm{d}B = s\,\mathrm{d}W A^\top$. With $T$ rows a
# text, $\mathrm{d}W$ would be the product to avoid (chapter 03).
#
# </details>
#
# ## Which contraction order?
#
# The last choice is about LoRA itself. Its forward pass can be computed as
# $x W^\top + s\,(x A^\top) B^\top$ (*factored*) or as $x\,(W + s B A)^\top$ (*merged*). Both need
# the two products with $W$, forward and backward. On top of these, for $N$ rows:
#
# | order | forward | backward |
# |:--|:--|:--|
# | factored | $z$, $z B^\top$ | $\mathrm{d}z$, $\mathrm{d}A$, $\mathrm{d}B$, $\mathrm{d}z\,A$ |
# | merged | $B A$ | $z$, $\mathrm{d}z$, $\mathrm{d}A$, $\mathrm{d}B$ |
#
# A product that ends or starts at $x$ costs $2 N r\,d_{\mathrm{in}}$ FLOPs ($z$, $\mathrm{d}A$,
# $\mathrm{d}z\,A$), one at $y$ $2 N r\,d_{\mathrm{out}}$ ($z B^\top$, $\mathrm{d}z$,
# $\mathrm{d}B$), and $B A$ costs $2\,r\,d_{\mathrm{in}} d_{\mathrm{out}}$. Added up:
#
# $$
# \begin{aligned}
# \text{factored} &: \quad 6\,N r\,(d_{\mathrm{in}} + d_{\mathrm{out}}) \\
# \text{merged} &: \quad 4\,N r\,(d_{\mathrm{in}} + d_{\mathrm{out}})
#   {} + 2\,r\,d_{\mathrm{in}} d_{\mathrm{out}}
# \end{aligned}
# $$
#
# Set the two equal, and the rank cancels:
#
# $$
# N^* = \frac{d_{\mathrm{in}}\, d_{\mathrm{out}}}{d_{\mathrm{in}} + d_{\mathrm{out}}}
# \qquad (= d / 2 \text{ for a square matrix}).
# $$
#
# (The idea of choosing is RunLoRA's.) Is that where the times cross? The library's `order` fixes
# the one or the other:


# %%
def by_flops(N, d_in, d_out, r=8):
    """FLOPs of the factored order over those of the merged one, forward and backward."""
    both = 4 * N * d_in * d_out + 4 * N * r * (d_in + d_out)
    return (both + 2 * N * r * (d_in + d_out)) / (both + 2 * r * d_in * d_out)


ROWS = (32, 64, 128, 256, 512, 1024, 2048)
measured = {}
for d_in, d_out in ((384, 384), (384, 1536)):
    star = d_in * d_out / (d_in + d_out)
    own = [speed.order_ratio(d_in, d_out, N, turns=15) for N in ROWS]
    measured[d_in, d_out] = own, star
    assert math.isclose(by_flops(star, d_in, d_out), 1)
    assert not merging_is_cheaper(0.99 * star, d_in, d_out)
    assert merging_is_cheaper(1.01 * star, d_in, d_out)
    crossed = speed.crossing(ROWS, own)
    where = "do not cross in this range" if crossed is None else f"cross at about N = {crossed:.0f}"
    print(f"{d_in} x {d_out}: FLOPs equal at N* = {star:.0f}, times {where}")
parallel.orders(measured, ROWS, by_flops)

# %% [markdown]
# The direction is right: few rows want the factors, many rows want $W + s B A$. The size is not,
# for FLOPs are not all equally fast:
#
# * A product with a side of r = 8 runs far below the peak: it reads all of `x` or `dout` for few
#   FLOPs. The factored order has more of these, so at large $N$ it loses by more than the blue line
#   says.
# * Forming $W + s B A$ goes twice over arrays of the size of $W$. In FLOPs that is little, in
#   memory traffic it is not, so at small $N$ the merged order loses by more than the blue line
#   says.
#
# Where the two errors balance, the crossing may lie on either side of $N^*$, and differs from
# machine to machine. The library decides by FLOPs, with a margin (`order="auto"` merges from $2 N^*$
# on): in between a wrong choice costs little time, and the factored order less memory.
#
# With shards there is one thing more. Each shard has fewer rows, but they share the weights. So
# `effective_weights` decides by the rows of all shards, and forms $W + s B A$ once a step:

# %%
adapted = len([name for name in model.trainable_params() if name.endswith("lora_A")])
with speed.counting_formed(model) as formed:
    with Workers(2) as workers:
        workers.loss_and_grad(model, batch)
    once = len(formed)
    in_shards(model, batch, shards)
    alone = len(formed) - once
print(f"{adapted} adapters, {len(shards)} shards: W + s B A is formed {once} times with Workers,")
print(f"{alone} times by shards on their own")
assert once == adapted and alone == len(shards) * (6 + 2)

# %% [markdown]
# (Not 4 times as often: the last block computes its query, output and MLP for the first token of
# each text only. Eight rows a shard are far below $N^*$, so on their own they would take the
# factored order.)
#
# ## Tried, and not worth it
#
# A step offers many places for a clever trick. A trick costs readers of the code something, so it
# had to make a whole step 5 % faster to stay. Here is what can be measured in a moment of four that
# were left out:

# %%
print(f"query, key, value stacked: {tricks.stacked_weights():.2f} of the time of three products")
share, saved = tricks.stacked_factors()
print(f"their factors A stacked: {share:.2f} of the time; saved: {saved:.1%} of one x W^T")
own, border = tricks.bordered()
print(f"x A^T adds {own:.1%} to x W^T on its own, {border:.1%} as a border of W", end=" ")
print(f"({8 / 384:.1%} of the FLOPs)")
longer = tricks.cut_out()
print(f"but a * b takes {longer:.1f} times as long if all arrays are cut out of wider ones")
print(f"a * b 16 bytes off a multiple of 64: {tricks.aligned():.2f} times as long")
assert share < 1 and longer > 1.2

# %% [markdown]
# <details><summary>What each was, and what it did to a whole step</summary>
#
# What is said of a whole step was seen once, on one machine (two x86-64 cores with AVX-512), and is
# not measured here.
#
# * **Stacked weights.** Query, key and value have the same input, so one product of width $3 d$
#   could replace three. But each is large enough already. The price: adapters on query and value
#   but not on key, $W + s B A$ inside a slice, a checkpoint with other names.
# * **Stacked factors.** The thin products do gain, for $x$ is read once and not three times. But
#   what is saved is a small part of one of a block's 24 products of width $d$: 1 to 2 % of a step.
# * **Bordered weights.** One product gives $x W^\top$ and $x A^\top$. But then the rows of what
#   comes out do not follow each other in memory, and every bias, residual, norm and activation
#   after it takes longer. The whole step became 5 % *slower*.
# * **Aligned arrays.** NumPy's arrays start at multiples of 16 bytes, a cache line has 64. With all
#   arrays aligned, a step became 2 to 3 % faster.
# * **Larger shards**, 1024 tokens instead of 512: 2 % faster, half as much memory again. (For
#   inference, where nothing is kept for a way back, `Workers.answer` does take them twice as
#   large.)
# * **Huge pages** for large arrays: no difference.
# * **Another BLAS**: MKL multiplied the shapes of a step 5 to 10 % faster than the OpenBLAS in
#   NumPy's wheels. A NumPy that is built on another BLAS needs no change here.
# * **Processes instead of threads.** Between two calls of NumPy a thread needs the interpreter, and
#   may find it taken. Two threads took about 8 % longer for a forward pass than two processes. What
#   helps, and was kept: fewer and larger calls, and a core of its own for each thread.
#
# </details>
#
# > **What to remember**
# >
# > * The gradient of a mean is the weighted sum of the shards' gradients. Layers that store nothing
# >   can be used by many threads at once.
# > * Floating-point sums depend on their order. Cut by the batch and add in the order of the
# >   shards: the same bits on any number of threads or ranks.
# > * Shards share out the elementwise work too; BLAS threads share out only the products.
# > * LoRA exchanges $\sum r\,(d_{\mathrm{in}} + d_{\mathrm{out}})$ numbers a step instead of all
# >   parameters: 68 times fewer for MiniLM, 105 for GPT-2 small, 337 for Llama-7B, at r = 8 on all
# >   matrices.
# > * Attention is bound by memory traffic: transposed scores in blocks, undivided. Where one token
# >   asks, keys and values need not be formed.
# > * Merge above $N^* = d_{\mathrm{in}} d_{\mathrm{out}} / (d_{\mathrm{in}} + d_{\mathrm{out}})$
# >   rows. The rank cancels.
#
# The same code runs where one processor has thousands of threads: [chapter 16](16_gpu.ipynb).
#
# ## Exercises
#
# Replace `None` and run the cell. Solutions are in
# [solutions/15_parallel.ipynb](solutions/15_parallel.ipynb).
#
# **1. A derivation: labels that do not count.** In tagging, labels below 0 do not count, and each
# shard's loss is the mean over its own labels that do. Given the list of the shards' gradients
# (arrays, of these means) and the list of their labels, what is the gradient of the batch?

# %%
answer = None  # your turn: lambda grads, labels: ...
ch15.labels_that_count(answer)

# %% [markdown]
# **2. Change LoRA: freeze A.** LoRA-FA (Zhang et al. 2023, arXiv:2308.03303) trains $B$ alone, and
# $\mathrm{d}A$ is not computed. That halves what has to travel. But it also moves $N^*$: which
# products fall away in each order, and from how many rows on does merging now cost fewer FLOPs? (In
# both orders $\mathrm{d}x$ is wanted.)

# %%
answer = None  # your turn: lambda d_in, d_out: ...
ch15.frozen_A(answer)

# %% [markdown]
# **3. A measurement: memory.** Shards keep less for the backward pass at a time. How much less?
# Measure the peak memory of `workers.loss_and_grad(model, batch)` with one worker, as a share of
# that of `model.loss_and_grad(batch)`. (NumPy tells `tracemalloc` what it allocates.)

# %%
answer = None  # your turn: a share
ch15.memory_share(answer)

# %% [markdown]
# **4. A slow network.** How many seconds must a step compute, on each of `n` ranks, so that the
# exchange takes a tenth of the whole step? `P` numbers in float32, the link from above, the best
# all-reduce.

# %%
answer = None  # your turn: lambda P, n: ...
ch15.slow_network(answer)

# %% [markdown]
# **5. More cores.** The products are 70 % of the time of a step. With ever more BLAS threads, how
# many times as fast can it become? And with how many threads, a number that need not be whole, is
# half of that reached?

# %%
answer = None  # your turn: (limit, threads)
ch15.more_cores(answer)

# %% [markdown]
# <details><summary>Sources</summary>
#
# G. M. Amdahl, *Validity of the single processor approach to achieving large scale computing
# capabilities*, AFIPS 1967. P. Patarasuk and X. Yuan, *Bandwidth optimal all-reduce algorithms for
# clusters of workstations*, J. Parallel Distrib. Comput. 69, 117 (2009). T. Dao et al.,
# *FlashAttention*, 2022, arXiv:2205.14135 (attention in blocks, undivided). A. Liu et al.,
# *DeepSeek-V2*, 2024, arXiv:2405.04434, section 2.1.2 (absorbed weights). D. Cherniuk et al.,
# *RunLoRA*, 2023, arXiv:2312.03415 (contraction orders). E. J. Hu et al., *LoRA*, 2021,
# arXiv:2106.09685. Shapes: A. Radford et al., *Language Models are Unsupervised Multitask
# Learners*, 2019 (GPT-2); H. Touvron et al., *LLaMA*, 2023, arXiv:2302.13971; W. Wang et al.,
# *MiniLM*, 2020, arXiv:2002.10957.
#
# </details>
