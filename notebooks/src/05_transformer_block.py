# %% [markdown]
# # What is the backward pass of a transformer block, with LoRA on any of its matrices?
#
# At the end of this chapter you can derive the gradient of attention on a sheet of paper, say what
# an adapter costs in each place of a block, and guess which places a new task needs.
#
# A number to begin with. An adapter of rank 8 on MiniLM's `query` trains 6,144 numbers, 0.3 % of
# its block. To reach them, the gradient has to pass through **75 %** of the block's frozen weights.
# We shall see why, and why it is worth it.
#
# ![The transformer block: query, key and value go into attention, then output; a residual adds the
# input, norm; up, gelu, down; a second residual, norm. In the pre-norm block the norms stand first.
# The six matrices are frozen; each may get factors.](../figures/block.svg)
#
# A transformer is this block, repeated. Chapters 02 and 03 derived all of it but attention: linear
# layers, norms, the activation, and LoRA. So attention comes first, then the whole block, and then
# adapters on each of its six matrices in turn.

# %%
import inspect
import math
import re

import numpy as np
from threadpoolctl import threadpool_limits

from lorabook.book import copier, plain, probes
from lorabook.book.checks import ch05
from lorabook.book.plots import transformer
from lorabook.book.stopwatch import medians
from lorabook.files import environment, format_table
from lorabook.functional import attention, causal_bias, complex_step, padding_bias, relative_error
from lorabook.layers import Activation, Sequential, check_layer
from lorabook.models import BLOCK, PostNormBlock, PreNormBlock

threadpool_limits(1)  # steadier times: such small products do not profit from more threads
print(environment.summary())
rng = np.random.default_rng(0)
normal = rng.standard_normal

# %% [markdown]
# ## The block in two lines
#
# The input $x$ is `(B_, T, d)`: `B_` sequences of `T` tokens, `d` numbers each. (The underscore
# keeps it apart from the factor $B$.) With the norm after each half, as in BERT (post-norm),
#
# $$
# \begin{aligned}
# u &= \mathrm{norm}_1\big(x + \mathrm{output}(\mathrm{attention}(x))\big) \\
# y &= \mathrm{norm}_2\big(u + \mathrm{down}(\mathrm{gelu}(\mathrm{up}(u)))\big)
# \end{aligned}
# $$
#
# and with the norm before each half, as in GPT-2 and most models since (pre-norm),
#
# $$
# \begin{aligned}
# u &= x + \mathrm{output}(\mathrm{attention}(\mathrm{norm}_1(x))) \\
# y &= u + \mathrm{down}(\mathrm{gelu}(\mathrm{up}(\mathrm{norm}_2(u))))
# \end{aligned}
# $$
#
# Everything but attention treats each token by itself. Only in attention does a token see others.
#
# ## Attention, forward
#
# Token $i$ asks a question $q_i$. Every token $j$ offers a key $k_j$ and a value $v_j$. How well
# the key answers the question is their inner product; what the token gets is an average of the
# values. The three come from three linear layers:
#
# $$
# q = \mathrm{query}(x) \qquad k = \mathrm{key}(x) \qquad v = \mathrm{value}(x)
# $$
#
# All this happens in several *heads*, each with its own $d_{\mathrm{head}} = d / \mathrm{heads}$
# features. In one head, with $c = 1 / \sqrt{d_{\mathrm{head}}}$:
#
# $$
# \begin{aligned}
# \mathrm{scores} &= c\, q k^\top + \mathrm{bias} & (T, T) \\
# p &= \mathrm{softmax}(\mathrm{scores}) & (T, T), \text{ each row adds up to 1} \\
# o &= p\, v & (T, d_{\mathrm{head}})
# \end{aligned}
# $$
#
# Row $i$ of $o$ is $\sum_j p_{ij} v_j$. This bias is no layer's and never trains. It hides tokens: it
# is hugely negative where token $i$ must not look, and softmax turns that into an exact 0. A causal
# model hides every $j > i$; a batch of texts of different lengths hides the padding. The heads'
# outputs, side by side, go into the layer `output`.
#
# This is all of it in code. `split_heads` cuts the `d` features into heads, `merge_heads` puts them
# back; `softmax` returns its cache, too. `.mT` transposes the last two axes, so the products run
# over all texts and heads at once.

# %%
print(inspect.getsource(plain.attention))

# %% [markdown]
# Two texts, the second with three tokens and one of padding, in a causal model:

# %%
B_, T, d, heads = 2, 4, 6, 2
q, k, v = normal((3, B_, T, d))
mask = np.array([[1, 1, 1, 1], [1, 1, 1, 0]])
bias = causal_bias(T, q) + padding_bias(mask, q)  # (B_, 1, T, T)

y, cache = plain.attention(q, k, v, heads, bias)
p = cache[3]
print("p of the second text, first head:")
print(np.round(p[1, 0], 2))
assert np.all(p[..., *np.triu_indices(T, 1)] == 0) and np.all(p[1, :, :, 3] == 0)

same = relative_error(attention(q, k, v, heads, bias)[0], y)
print(f"the library's own attention: {same:.0e} apart")
assert same < 1e-13

# %% [markdown]
# No token looks ahead, and none looks at the padding. The library's attention gives the same and is
# faster; chapter 15 says how.
#
# ## Attention, backward
#
# We need $\mathrm{d}q$, $\mathrm{d}k$ and $\mathrm{d}v$, given $\mathrm{d}o$: what arrives at the
# output of a head. The recipe is that of chapter 02. Let $\langle P, Q \rangle$ be the sum of the
# products of all entries. A factor of a matrix product may change sides,
#
# $$
# \langle P, Q R \rangle = \langle Q^\top P,\; R \rangle = \langle P R^\top,\; Q \rangle ,
# $$
#
# and what then stands beside a small change $\delta$ of something is its gradient. Start at the
# output, $\delta o = p\,\delta v + \delta p\,v$:
#
# $$
# \begin{aligned}
# \langle \mathrm{d}o,\; p\,\delta v \rangle &= \langle p^\top \mathrm{d}o,\; \delta v \rangle
#   & \Rightarrow\quad \mathrm{d}v &= p^\top \mathrm{d}o \\
# \langle \mathrm{d}o,\; \delta p\,v \rangle &= \langle \mathrm{d}o\,v^\top,\; \delta p \rangle
#   & \Rightarrow\quad \mathrm{d}p &= \mathrm{d}o\,v^\top
# \end{aligned}
# $$
#
# Through softmax, row by row, as in chapter 02:
#
# $$
# \mathrm{dscores}_{ij} = p_{ij} \Big( \mathrm{d}p_{ij} - \sum_m \mathrm{d}p_{im}\, p_{im} \Big)
# $$
#
# And through the scores, $\delta\mathrm{scores} = c\,\delta q\,k^\top + c\,q\,\delta k^\top$:
#
# $$
# \mathrm{d}q = c\;\mathrm{dscores}\;k \qquad\qquad \mathrm{d}k = c\;\mathrm{dscores}^\top q
# $$
#
# That would do. But one step can be saved: the row sum runs over two $T \times T$ arrays, and need
# not. Since $\mathrm{d}p_{im} = \langle \mathrm{d}o_i, v_m \rangle$,
#
# $$
# \sum_m \mathrm{d}p_{im}\, p_{im}
# = \Big\langle \mathrm{d}o_i,\; \sum_m p_{im} v_m \Big\rangle
# = \langle \mathrm{d}o_i, o_i \rangle ,
# $$
#
# a sum over $d_{\mathrm{head}}$ numbers, all at hand. (FlashAttention, which never holds a whole
# row of $p$, relies on it.) Now every line of the code is one of the lines above:

# %%
print(inspect.getsource(plain.attention_backward))

# %% [markdown]
# Is it right? As always, every entry against the complex step, with a random `dout`:

# %%
dout = normal(y.shape)
for name, array, grad in zip("qkv", (q, k, v), plain.attention_backward(dout, cache), strict=True):

    def loss(value, name=name):
        inputs = {"q": q, "k": k, "v": v} | {name: value}
        inputs = {name: array.astype(complex) for name, array in inputs.items()}
        return np.sum(dout * plain.attention(**inputs, heads=heads, bias=bias)[0])

    error = relative_error(grad, complex_step(loss, array))
    print(f"d{name} against the complex step: {error:.0e}")
    assert error < 1e-12

# %% [markdown]
# ### What the gradient of a score means
#
# Put the row sum back into the formula, and $\mathrm{dscores}$ can be read:
#
# $$
# \mathrm{dscores}_{ij} = p_{ij}\, \langle \mathrm{d}o_i,\; v_j - o_i \rangle
# $$
#
# Looking more at token $j$ moves the output from $o_i$ towards $v_j$. If the two are equal, the
# score does not matter. We shall meet that case below.
#
# ## A parameter that cannot learn
#
# Here is a first use of the formulas. Add the same vector $b$ to every key, which is what the bias
# of the key's layer does. Each score of row $i$ changes by the same $c\,\langle q_i, b \rangle$.
# Softmax does not see a constant, so the output does not change at all. And the gradient,
#
# $$
# \sum_j \mathrm{d}k_j = c \sum_i q_i \sum_j \mathrm{dscores}_{ij} = 0 ,
# $$
#
# is zero because each row of $\mathrm{dscores}$ adds up to zero. BERT has such a bias in every
# block; training it (PEFT's option `bias="all"`) would be for nothing.

# %%
block = PostNormBlock.random(d, heads, 4 * d, rng).to(np, "float64")
x = normal((B_, T, d))
y, cache = block(x)
_, grads = block.backward(normal(y.shape), cache)
size = {n: np.abs(grads[f"attention.self.{n}.bias"]).max() for n in ("query", "key", "value")}
print("largest gradient of a bias:", {name: f"{value:.0e}" for name, value in size.items()})

block.named_params()["attention.self.key.bias"] += 10
moved = relative_error(block(x)[0], y)
print(f"bias of the key + 10: the output moves by {moved:.0e}")
assert size["key"] < 1e-14 < 1e-4 < size["query"] and moved < 1e-13

# %% [markdown]
# <details><summary>A remark: models with rotary positions</summary>
#
# Rotary positions turn each key after the bias was added, by an angle that depends on $j$. Then the
# bias no longer adds a constant to a row, and does matter.
#
# </details>
#
# ## The block, backward
#
# With attention done, two rules put the block together.
#
# * **A sum hands its gradient to both terms.** The residual adds, so what arrives at the sum goes
#   into the layers *and* past them.
# * **A value used twice adds its gradients.** $x$ feeds query, key, value and the residual.
#
# For the post-norm block, from the top down (a layer's name with a prime stands for its backward
# pass, and $\mathrm{sum}_1$, $\mathrm{sum}_2$ for what goes into the norms):
#
# $$
# \begin{aligned}
# \mathrm{dsum}_2 &= \mathrm{norm}_2'(\mathrm{d}y) \\
# \mathrm{d}u &= \mathrm{dsum}_2 +
#   \mathrm{up}'\big(\mathrm{gelu}'(\mathrm{down}'(\mathrm{dsum}_2))\big) \\
# \mathrm{dsum}_1 &= \mathrm{norm}_1'(\mathrm{d}u) \\
# \mathrm{d}x &= \mathrm{dsum}_1 + \mathrm{attention}'(\mathrm{output}'(\mathrm{dsum}_1))
# \end{aligned}
# $$
#
# In code, forward above backward: `call` runs a layer and keeps its cache, `back` runs it backward
# and keeps its gradients.

# %%
print(inspect.getsource(plain.block))
print(inspect.getsource(plain.block_backward))

# %% [markdown]
# The library's block does the same, and decides one thing more at each layer: does anything below
# still train? If not, the pass ends there. Its gradients are ours:

# %%
block = PostNormBlock.random(d, heads, 4 * d, rng).to(np, "float64")
found = dict(block.named_layers())
layers = {part: found[path] for part, path in BLOCK.items()} | {"gelu": Activation("gelu")}

y, caches = plain.block(x, layers, heads)
dy = normal(y.shape)
dx, grads = plain.block_backward(dy, layers, caches)
library_dx, library_grads = block.backward(dy, block(x)[1])
errors = {"x": relative_error(dx, library_dx)}
for part, path in BLOCK.items():
    for name, grad in grads[part].items():
        if (part, name) != ("key", "bias"):  # zero, as we know
            errors[f"{part}.{name}"] = relative_error(grad, library_grads[f"{path}.{name}"])
print(f"{len(errors)} gradients, at most {max(errors.values()):.0e} apart")
assert len(errors) == 16 and max(errors.values()) < 1e-12

# %% [markdown]
# So the library's block may be checked for both. The check is that of chapter 02, harder: a stack
# of two blocks, all parameters random (those of the norms, too), everything trainable, every entry
# by complex step. Then the same stack, frozen, with LoRA on all six matrices.

# %%
rows = []
for Block in (PostNormBlock, PreNormBlock):
    for kind in ("everything", "LoRA on all six"):
        stack = Sequential({str(i): Block.random(4, 2, 6, rng) for i in range(2)}).to(np, "float64")
        for array in stack.named_params().values():
            array[...] = 0.7 * normal(array.shape)
        if kind != "everything":
            stack = probes.adapted(stack, "all-linear")
        errors = check_layer(stack, normal((2, 3, 4)), rng)
        entries = sum(array.size for array in stack.trainable_params().values())
        row = {"block": Block.__name__, "trains": kind, "entries": entries}
        rows.append(row | {"error of dx": errors["x"], "worst error": max(errors.values())})
        assert rows[-1]["worst error"] < 1e-11
columns = {n: lambda row, n=n: str(row[n]) for n in ("block", "trains", "entries")}
columns |= {n: lambda row, n=n: f"{row[n]:.0e}" for n in ("error of dx", "worst error")}
print(format_table(rows, columns))

# %% [markdown]
# ## LoRA on one matrix at a time
#
# Now the question of the title. An adapter needs two things: its own input $x$, and the gradient
# that arrives at its output. How much that takes depends on where it sits. Two experiments find
# out.
#
# * *Through which frozen layers does the gradient pass?* `passes_through` notes every linear layer
#   that is asked for the gradient of its input, the product `dout @ W`.
# * *Which arrays must be kept from the forward pass?* `needed` overwrites one at a time with NaN,
#   and looks whether a gradient of the adapter turns into NaN.

# %%
block = PostNormBlock.random(d, heads, 4 * d, rng).to(np, "float64")
six = {part: path for part, path in BLOCK.items() if not part.startswith("norm")}
short = {path: part for part, path in six.items()}
weights = {part: block.named_params()[f"{path}.weight"].size for part, path in six.items()}
rows = []
for part, path in reversed(six.items()):  # from the top down
    layer = probes.adapted(block, re.escape(path))
    through = [short[p] for p in probes.passes_through(layer, x)]
    share = sum(weights[n] for n in through) / sum(weights.values())
    row = {"LoRA on": part, "gradient passes through": ", ".join(through) or "-"}
    row |= {"of the weights": f"{share:.0%}", "needs": " ".join(probes.needed(layer, x))}
    rows.append(row)
print(format_table(rows, {name: lambda row, name=name: row[name] for name in rows[0]}))

needs = {row["LoRA on"]: set(row["needs"].split()) for row in rows}
assert needs["down"] == {"hidden", "norm2"}
assert needs["value"] == {"x", "p", "norm1", "slope", "norm2"}
assert needs["query"] - needs["key"] == {"k"} and needs["key"] - needs["query"] == {"q"}
assert [row["of the weights"] for row in rows] == ["0%", "33%", "67%", "75%", "75%", "75%"]

# %% [markdown]
# (`a` goes into `output`: it is `o` with its heads side by side. `u` goes into `up`, `hidden` into
# `down`; `slope` is the derivative of gelu, `norm1` and `norm2` are the normalised rows of the two
# norms.) Read it from the top, each line against the formulas:
#
# * `down` sits at the top: no gradient through any frozen weight, two arrays kept.
# * `value` needs $p$, but neither $q$, $k$, $v$ nor $o$: $\mathrm{d}v = p^\top \mathrm{d}o$.
# * `query` needs $k$ and not $q$, `key` needs $q$ and not $k$. Both need the gradient through three
#   frozen matrices, 75 % of the block's weights, and then through softmax.
# * `a`, `u` and `hidden` serve only the layer that they enter. Freeze it, and they could go.
#
# So adapters on query and value are few numbers, but they lie at the *bottom* of the block: a
# gradient must come all the way down to them. What LoRA saves for certain is $\mathrm{d}W$
# everywhere, and everything below the lowest adapter. In a tower of six blocks:

# %%
tower = Sequential({str(i): PostNormBlock.random(96, 4, 384, rng) for i in range(6)})
x_tower = normal((4, 32, 96)).astype("f4")
places = {f"query of block {i}": [f"{i}.attention.self.query"] for i in (5, 3, 0)}
layers = {name: probes.adapted(tower, targets) for name, targets in places.items()}
layers["query of every block"] = probes.adapted(tower, ["query"])

works = {}
for name, layer in layers.items():
    y, cache = layer(x_tower)
    works[name] = lambda layer=layer, y=y, cache=cache: layer.backward(y, cache, need_dx=False)
times = medians(**works)
for name, layer in layers.items():
    through = len(probes.passes_through(layer, x_tower))
    print(f"{name:20}: through {through:2} of 36 layers, backward {times[name]:5.1f} ms")
    lowest = int(name[-1]) if name[-1].isdigit() else 0
    assert through == 6 * (5 - lowest) + 3

# %% [markdown]
# (Times are medians of one run on one machine; only their order matters.) One adapter at the very
# bottom sends the gradient through as many frozen matrices as one in every block does. The way down
# is the expensive part, and once it is paid for, more adapters cost little.
#
# ## Where the FLOPs are
#
# How little? Count the FLOPs, the multiplications and additions of numbers. A linear layer costs 2
# for each weight and token. With an MLP four times
# as wide as the block, the six matrices have $12 d^2$ weights. The two products of attention,
# $q k^\top$ and $p\,v$, cost $2 T d$ each for a token, all heads together. Per block and
# sequence:
#
# | | linear layers | attention's products | equal at |
# |:--|:--|:--|:--|
# | forward | $24\,T d^2$ | $4\,T^2 d$ | $T = 6 d$ |
# | full fine-tuning, a step | $72\,T d^2$ | $12\,T^2 d$ | $T = 6 d$ |
# | LoRA, a step | $48\,T d^2$ | $12\,T^2 d$ | $T = 4 d$ |
#
# Full fine-tuning takes three products a layer, $y$, $\mathrm{d}x$ and $\mathrm{d}W$; LoRA two
# (above the lowest adapter). Attention takes two products forward and four backward in either case.
# Attention has no weights to freeze, so LoRA saves nothing there, and attention overtakes the
# linear layers earlier.
#
# The factors come on top. Each of their numbers costs $2T$ FLOPs forward and $4T$ backward (chapter
# 03). On all six matrices they have $18\,r d$ numbers, on query and value $4\,r d$:
#
# $$
# 6T \cdot 18\,r d = 108\,T r d \qquad\text{against}\qquad 6T \cdot 4\,r d = 24\,T r d .
# $$
#
# In MiniLM's sizes, where the forward pass of one block comes first:

# %%
T, d, heads, r = 128, 384, 12, 8
block = PostNormBlock.random(d, heads, 4 * d, rng)
flops = {n: 2 * T * block.named_params()[f"{path}.weight"].size for n, path in six.items()}
flops["q k^T and p v"] = 4 * T * T * d
total = sum(flops.values())
for name, value in flops.items():
    print(f"{name:14} {value / 1e6:6.1f} MFLOP {value / total:6.1%}")

linear, products = total - flops["q k^T and p v"], flops["q k^T and p v"]
equal = {"forward": T * linear / products, "LoRA step": T * 2 * linear / (3 * products)}
print("equal at T =", {name: round(value) for name, value in equal.items()})
assert linear == 24 * T * d**2 and equal == {"forward": 6 * d, "LoRA step": 4 * d}

# %% [markdown]
# Then a whole step, forward and backward, in FLOPs by the formulas and in time; query and value
# are the unit. Full fine-tuning trains biases and norms, too:

# %%
x = normal((1, T, d)).astype("f4")
rows, works = [], {}
trained = {"query, value": ["query", "value"], "all six": "all-linear", "full": None}
for name, targets in trained.items():
    layer = probes.adapted(block, targets, r) if targets else block
    numbers = sum(array.size for array in layer.trainable_params().values())
    cost = (2 * linear + 6 * T * numbers if targets else 3 * linear) + 3 * products
    rows.append({"trains": name, "numbers": numbers, "flops": cost})
    works[name] = lambda layer=layer: layer.backward(x, layer(x)[1])
times = medians(31, **works)
columns = {
    "what trains": lambda row: row["trains"],
    "numbers": lambda row: f"{row['numbers']:,}",
    "FLOPs, relative": lambda row: f"{row['flops'] / rows[0]['flops']:.2f}",
    "time, measured": lambda row: f"{times[row['trains']] / times['query, value']:.2f}",
}
print(format_table(rows, columns))
assert [row["numbers"] for row in rows[:2]] == [4 * r * d, 18 * r * d]
assert 2 * r * d == 6144 and round(2 * r * d / (12 * d**2), 3) == 0.003  # query alone
assert rows[1]["flops"] - 2 * linear - 3 * products == 108 * T * r * d
assert 1.02 < rows[1]["flops"] / rows[0]["flops"] < 1.05
assert 1.4 < rows[2]["flops"] / rows[0]["flops"] < 1.5

# %% [markdown]
# At T = 128 attention's products are 5 % of the forward FLOPs. Adapters on all six matrices train
# 4.5 times as many numbers as those on query and value, for 3 % more FLOPs. (The last column is one
# run on one machine; a few per cent are noise. Norms, softmax and gelu, of which freezing saves
# nothing, are in the times and not in the FLOPs.)
#
# ## Do gradients reach the lower blocks?
#
# The way down is long. Does anything arrive at its end? Six random blocks, an adapter with $B = 0$
# on every matrix, a random `dout` on top: how large is $\mathrm{d}B$ in each block? It depends on
# how large the weights are drawn. The picture has variance $1 / d_{\mathrm{in}}$, the table below it
# a third of that, too. Five seeds; line: median, band: lowest to highest.

# %%
gains = {"variance 1 / (3 d_in)": 1, "variance 1 / d_in": math.sqrt(3)}  # the first as drawn
measured = {
    (Block, name): np.array([probes.at_the_start(Block, gain, seed) for seed in range(5)])
    for Block in (PostNormBlock, PreNormBlock)
    for name, gain in gains.items()
}  # {case: (seeds, blocks, 4)}
drawn = {B.__name__: table for (B, name), table in measured.items() if name == "variance 1 / d_in"}
transformer.gradients_by_depth(drawn)

# %%
ratios = {key: np.median(table[:, 0] / table[:, 5], axis=0) for key, table in measured.items()}
columns = {"median of block 0 / block 5": lambda key: f"{key[0].__name__}, {key[1]}"}
for n, name in enumerate(("query", "value", "up")):
    columns[name] = lambda key, n=n: f"{ratios[key][n]:.2f}"
for i in (0, 5):
    columns[f"v differs, block {i}"] = lambda key, i=i: f"{np.median(measured[key][:, i, 3]):.2f}"
print(format_table(list(measured), columns))

post, pre = (ratios[Block, "variance 1 / d_in"] for Block in (PostNormBlock, PreNormBlock))
print(f"\npost-norm, variance 1 / d_in: what differs in v, low / high, squared: {post[3] ** 2:.1f}")
small = [ratio for (_, name), ratio in ratios.items() if name == "variance 1 / (3 d_in)"]
assert all(0.75 < value < 1.3 for ratio in small for value in ratio[:3])
assert 3 < post[0] < 5 and 3 < pre[0] < 5 and min(pre[:3]) > 1.5 and min(post[:3]) > 0.5
assert all(ratio[3] > 1.04 for ratio in ratios.values()) and 3 < post[3] ** 2 < 5

# %% [markdown]
# In these six blocks no gradient vanishes on its way down. With the library's own initialisation, a
# third of the variance, the lowest block gets 0.8 to 1.2 times what the highest gets. With the
# larger weights the pre-norm gradients *grow* on the way, where each half adds its own to the one
# that passes by.
#
# What is small is the gradient of the query in the *upper* blocks, in both. There the tokens have
# become more alike: the last two columns are the share of $v$ that differs from token to token. And
# we know what that does, from
# $\mathrm{dscores}_{ij} = p_{ij} \langle \mathrm{d}o_i, v_j - o_i \rangle$: where all values are
# the same, it does not matter where a token looks.
#
# <details><summary>Why the square?</summary>
#
# The keys enter as well. The rows of $\mathrm{dscores}$ add up to 0, so
# $\mathrm{d}q = c\;\mathrm{dscores}\;k$ sees only what differs between keys, and keys become as
# alike as values do. Two factors: the square of what differs is indeed close to the ratio of the
# gradients in the post-norm tower. A trained model is another matter, and so are more blocks.
#
# </details>
#
# ## Where to look, and what to say
#
# Costs are one side. Does it matter for *learning* which matrices get the adapters? Here is a model
# of two causal pre-norm blocks on frozen random embeddings. It was trained to repeat: at every
# position, say the symbol that stood **one** place back. (There are 8 symbols, so guessing is right
# in 1 of 8 cases.) Then it is frozen, and LoRA has to change its mind in one of two ways:
#
# * **where to look**: say the symbol that stood *three* places back;
# * **what to say**: look one place back as before, but say each symbol by a new name.
#
# Adapters sit in one of four places, with the ranks that make exactly 3,072 numbers each time, the
# same scaling, and the same 150 steps of AdamW. Which will learn what? Guess before you run it.

# %%
rows = []
for seed in range(3):
    base, right = copier.taught(seed)
    print(f"seed {seed}: one place back, all weights trained: {right:.1%} right")
    rows += [copier.changed(base, place, task, seed) for place, task in copier.CASES]
assert all(row["numbers"] == 3072 for row in rows)
print(copier.table(rows))

# %%
four = list(copier.PLACES)[:4]
transformer.places([row for row in rows if row["place"] in four], four, math.log(copier.SYMBOLS))

# %%
LOOK, SAY = copier.TASKS
share = {key: sorted(values) for key, values in copier.shares(rows).items()}
assert share["query and key", LOOK][0] > 0.9 and share["query and key", SAY][2] < 0.6
for place in ("value and output", "up and down"):
    assert share[place, LOOK][1] < 0.3 and share[place, SAY][0] > 0.98
assert all(share["all six", task][0] > 0.97 for task in copier.TASKS)
assert share["up and down, 4 times the steps", LOOK][0] > 0.85
assert share["the same, upper block alone", LOOK][2] < 0.4

# %% [markdown]
# Query and key learn where to look, on all three seeds, and fail to rename. Value and output, or
# the MLP, learn to rename, and in two of three seeds stay below 30 % at looking elsewhere. Adapters
# on all six do both, with the same 3,072 numbers spread thinner.
#
# What a matrix does in the block decides what its adapter learns easily. *Easily*: with four times
# the steps the MLP's adapters learn to look elsewhere, too. How, if an MLP treats each token by
# itself? The MLP of the *lower* block stands below the attention of the upper one, and can change
# what its frozen query and key read. The control agrees: on the upper MLP alone it fails.
#
# (Two blocks of width 32, one learning rate and three seeds: a demonstration, not a rule for real
# models. Chapter 08 asks one.)
#
# > **What to remember**
# >
# > * Attention backward is four products, $\mathrm{d}v = p^\top \mathrm{d}o$,
# >   $\mathrm{d}p = \mathrm{d}o\,v^\top$, $\mathrm{d}q = c\;\mathrm{dscores}\;k$,
# >   $\mathrm{d}k = c\;\mathrm{dscores}^\top q$, and between them
# >   $\mathrm{dscores}_{ij} = p_{ij} \langle \mathrm{d}o_i, v_j - o_i \rangle$.
# > * A sum hands its gradient to both terms; a value used twice adds its gradients.
# > * The bias of the key has gradient zero.
# > * An adapter needs its own input and the gradient at its output. One on `query` pulls the
# >   gradient through three quarters of its block's weights and through all blocks above. Nothing
# >   below the lowest adapter is computed.
# > * LoRA on all six matrices costs 3 % more FLOPs than on query and value (MiniLM's sizes, r = 8).
# > * Query and key decide where to look; value, output and the MLP what to say. With adapters on
# >   all six you need not know which.
#
# What all six can do, they do at a small rank. How close does a rank-r update come to a full one?
# That is [chapter 06](06_rank_vs_error.ipynb). How attention is made fast is in [chapter
# 15](15_parallel.ipynb).
#
# ## Exercises
#
# Replace `None` and run the cell. Solutions are in
# [solutions/05_transformer_block.ipynb](solutions/05_transformer_block.ipynb).
#
# **1. The bias of a value.** Add a vector `b` to the bias of `value`. Which change of the bias of
# the layer `output`, whose weight is `W_o`, has the same effect on the block? (So two of
# attention's four biases are superfluous.)

# %%
answer = None  # your turn: lambda W_o, b: ...
ch05.value_bias(answer)

# %% [markdown]
# **2. Change LoRA: an adapter on the scores.** Query and key matter only through their product. So
# adapt that: in one head, let two factors `A` and `B`, both `(r, d)`, add a bilinear form to the
# scores, $\mathrm{scores} = c\,\big(q k^\top + s\,(x A^\top)(x B^\top)^\top\big)$. Derive
# $\mathrm{d}A$, given `dscores (T, T)`, the input `x (T, d)`, and `B`, `c`, `s`.

# %%
answer = None  # your turn: lambda dscores, x, B, c, s: ...
ch05.scores_A(answer)

# %% [markdown]
# **3. A derivation: shared keys.** In many newer models, SmolLM2 among them, `group` neighbouring
# heads share one key head: head number `n` uses key head `n // group`. Before the heads are merged
# `attention_backward` has `dk`, `(B_, heads, T, d_head)`, as if each head had its own key. What is
# the gradient of the shared keys, whose second axis has `heads // group` entries?

# %%
answer = None  # your turn: lambda dk, group: ...
ch05.shared_keys(answer)

# %% [markdown]
# **4. A measurement: why divide by $\sqrt{d_{\mathrm{head}}}$?** Draw `q` and `k` from the standard
# normal distribution, one head, T = 64 and d_head = 64, no bias. How large is the largest $p$ of a
# row, in the mean over many rows, with the factor $c$ and without it? And what becomes of a typical
# entry of $\mathrm{dscores}$?

# %%
answer = None  # your turn: (with c, without c)
ch05.unscaled(answer)

# %% [markdown]
# **5. The way down.** In a stack of six post-norm blocks, LoRA sits on `value` in blocks 2 and 4 (0
# is the lowest). How many linear layers hand a gradient to their input? Count before you measure.

# %%
answer = None  # your turn: an integer
ch05.way_down(answer)

# %% [markdown]
# <details><summary>Sources</summary>
#
# A. Vaswani et al., *Attention Is All You Need*, 2017, arXiv:1706.03762. J. Devlin et al., *BERT*,
# 2018, arXiv:1810.04805. R. Xiong et al., *On Layer Normalization in the Transformer Architecture*,
# 2020, arXiv:2002.04745 (post-norm and pre-norm gradients at initialisation). T. Dao et al.,
# *FlashAttention*, 2022, arXiv:2205.14135 (the row sum as an inner product with $o$, its appendix
# B). E. J. Hu et al., *LoRA*, 2021, arXiv:2106.09685 (query and value only). J. He et al., *Towards
# a Unified View of Parameter-Efficient Transfer Learning*, 2021, arXiv:2110.04366, and T. Dettmers
# et al., *QLoRA*, 2023, arXiv:2305.14314 (adapters on the MLP, and on all linear layers).
#
# </details>
