# %% [markdown]
# # What are dA and dB, and why is dW never formed?
#
# A LoRA layer is a linear layer whose weight is frozen, with two thin matrices beside it that
# train. At the end of this chapter you can
#
# * derive its backward pass, and write forward and backward in nine lines;
# * say why one factor starts at zero, and not both;
# * say what `lora_alpha / r` does, and what changes when you change `r`;
# * decide whether to multiply through the thin matrices or to merge them into the weight first.
#
# ![LoRA: the input x goes through the frozen weight W, and beside it through A and B; the two
# results are added](../figures/lora.svg)
#
# Blue is frozen, orange trains: 12,288 numbers beside 589,824. Everything in this chapter is a
# statement about this drawing: one line forward, and four gradients backward.

# %%
import timeit
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
from threadpoolctl import threadpool_limits

from lorabook import LoRALinear, memory_table
from lorabook.adapters import merging_is_cheaper
from lorabook.book.checks import ch03
from lorabook.book.listing import code
from lorabook.book.plots import lora_layer
from lorabook.data import planted
from lorabook.files import environment
from lorabook.functional import complex_step, relative_error
from lorabook.layers import Linear, check_layer
from lorabook.training import SGD, AdamW

threadpool_limits(1)  # steadier times
plt.rcParams["figure.dpi"] = 110
print(environment.summary())
rng = np.random.default_rng(0)

# %% [markdown]
# ## Forward: a detour through r numbers
#
# The input $x$ goes two ways. The upper way is the layer as it was. On the lower way $A$ squeezes
# each row of $x$ into $r$ numbers, $z$, and $B$ spreads them out again:
#
# $$z = x\,A^\top \qquad\qquad y = x\,W^\top + s\,z\,B^\top$$
#
# | | shape | |
# |---|---|---|
# | $x$ | $(N, d_\mathrm{in})$ | $N$ rows of input |
# | $W$ | $(d_\mathrm{out}, d_\mathrm{in})$ | the weight, frozen |
# | $A$ | $(r, d_\mathrm{in})$ | `lora_A`, trains |
# | $B$ | $(d_\mathrm{out}, r)$ | `lora_B`, trains |
# | $s$ | a number | `scaling`, which is `lora_alpha / r` |
# | $y$ | $(N, d_\mathrm{out})$ | output |
#
# (A bias $b$ is frozen too; it adds nothing to what follows and is left out.) The same line, with
# $x$ in front of a bracket, says that LoRA adds a matrix of rank $r$ at most to the weight:
#
# $$y = x\,(W + s\,B A)^\top$$
#
# ## Backward: four gradients
#
# Training needs to know how the loss $L$ changes when $A$ and $B$ do. From the layers above comes
# $\mathrm{dout}$, the gradient of the output: it has the shape of $y$, and a small change
# $\delta y$ changes the loss by
#
# $$\delta L = \langle \mathrm{dout},\, \delta y \rangle
# \qquad\text{with}\qquad \langle P, Q \rangle = \sum_{ij} P_{ij}\, Q_{ij} .$$
#
# This is the recipe of chapter 02: express $\delta y$ by the changes of what goes in, then move
# everything but the change to the left of the comma. What stands there is the gradient. One rule
# does the moving: a factor changes sides as its transpose,
#
# $$\langle P,\, Q R \rangle = \langle Q^\top P,\, R \rangle = \langle P R^\top,\, Q \rangle .$$
#
# First the changes, with $W$ held fixed, by the product rule:
#
# $$\delta z = \delta x\,A^\top + x\,\delta A^\top \qquad\qquad
# \delta y = \delta x\,W^\top + s\,\delta z\,B^\top + s\,z\,\delta B^\top$$
#
# **B** is nearest to the output, so it comes first. Its term in $\delta L$ is
#
# $$\langle \mathrm{dout},\, s\,z\,\delta B^\top \rangle
# = \langle s\,z^\top \mathrm{dout},\, \delta B^\top \rangle
# = \langle s\,\mathrm{dout}^\top z,\, \delta B \rangle$$
#
# $$\boxed{\;\mathrm{d}B = s\,\mathrm{dout}^\top z\;} \qquad (d_\mathrm{out}, r)$$
#
# **z** is what both $A$ and $x$ act through, so its gradient is worth having once for both:
#
# $$\langle \mathrm{dout},\, s\,\delta z\,B^\top \rangle
# = \langle s\,\mathrm{dout}\,B,\, \delta z \rangle$$
#
# $$\boxed{\;\mathrm{d}z = s\,\mathrm{dout}\,B\;} \qquad (N, r)$$
#
# **A** now takes one step:
#
# $$\langle \mathrm{d}z,\, x\,\delta A^\top \rangle = \langle \mathrm{d}z^\top x,\, \delta A \rangle$$
#
# $$\boxed{\;\mathrm{d}A = \mathrm{d}z^\top x\;} \qquad (r, d_\mathrm{in})$$
#
# **x** is needed by the layer below. It went two ways, so two terms come back:
#
# $$\boxed{\;\mathrm{d}x = \mathrm{dout}\,W + \mathrm{d}z\,A\;} \qquad (N, d_\mathrm{in})$$
#
# ## The whole idea in nine lines
#
# Each line is one of the formulas:


# %%
def lora_forward(x, W, A, B, s):
    z = x @ A.T  # (N, r)
    return x @ W.T + s * z @ B.T, z  # (N, d_out)


def lora_backward(dout, x, z, W, A, B, s):
    dB = s * dout.T @ z  # (d_out, r)
    dz = s * dout @ B  # (N, r)
    dA = dz.T @ x  # (r, d_in)
    dx = dout @ W + dz @ A  # (N, d_in)
    return dx, dA, dB


# %% [markdown]
# Is it right? The complex step of chapter 02 computes each derivative from the forward pass alone.
# All sizes are different, so that no transpose goes unnoticed. And $B$ is random: at $B = 0$ every
# wrong $\mathrm{d}A$ that has a factor $B$ in it would pass.

# %%
N, d_in, d_out, r, s = 11, 7, 5, 2, 3.0
shapes = (N, d_in), (d_out, d_in), (r, d_in), (d_out, r)
x, W, A, B = (rng.standard_normal(shape) for shape in shapes)
y, z = lora_forward(x, W, A, B, s)
dout = rng.standard_normal(y.shape)
dx, dA, dB = lora_backward(dout, x, z, W, A, B, s)


def loss(x, A, B):
    return np.sum(dout * lora_forward(x, W, A, B, s)[0])


for name, got, want in (
    ("dx", dx, complex_step(lambda x: loss(x, A, B), x)),
    ("dA", dA, complex_step(lambda A: loss(x, A, B), A)),
    ("dB", dB, complex_step(lambda B: loss(x, A, B), B)),
):
    print(f"{name}: relative error {relative_error(got, want):.0e}")
    assert relative_error(got, want) < 1e-13

# %% [markdown]
# ## Two windows on the full gradient
#
# How much of what full fine-tuning would do can LoRA see? Full fine-tuning uses
# $\mathrm{d}W = \mathrm{dout}^\top x$. Put $z = x A^\top$ into $\mathrm{d}B$ and
# $\mathrm{d}z = s\,\mathrm{dout}\,B$ into $\mathrm{d}A$:
#
# $$\mathrm{d}B = s\,\mathrm{d}W A^\top \qquad\qquad \mathrm{d}A = s\,B^\top \mathrm{d}W$$
#
# LoRA sees the full gradient through two thin windows: $\mathrm{d}B$ is what $A$ lets through from
# the right, $\mathrm{d}A$ is what $B$ lets through from the left. What lies outside both is
# invisible to this step, however large it is.

# %%
dW = dout.T @ x
print(f"dB against s dW A^T: {relative_error(dB, s * dW @ A.T):.0e}")
print(f"dA against s B^T dW: {relative_error(dA, s * B.T @ dW):.0e}")
assert relative_error(dB, s * dW @ A.T) < 1e-13 and relative_error(dA, s * B.T @ dW) < 1e-13

# %% [markdown]
# ## Why dW is never formed
#
# Both ways give the same two gradients, so the cheaper one should be taken. But
# $\mathrm{dout}^\top x$ is a product of full size, only to be shrunk to $r$ columns or rows at
# once. Shrinking *first*, as the nine lines do, never leaves width $r$.
#
# Count multiplications and additions (FLOPs): of a product of full size, of one pass through both
# thin factors, and of shrinking a $\mathrm{d}W$ that has been formed.
#
# $$\mathrm{big} = 2\,N\,d_\mathrm{in}\,d_\mathrm{out} \qquad
# \mathrm{thin} = 2\,N\,r\,(d_\mathrm{in} + d_\mathrm{out}) \qquad
# \mathrm{shrink} = 4\,r\,d_\mathrm{in}\,d_\mathrm{out}$$
#
# | one training step | forward | backward | together |
# |---|---|---|---|
# | full fine-tuning | big | 2 big ($\mathrm{d}x$ and $\mathrm{d}W$) | 3 big |
# | LoRA through $\mathrm{d}W$ | big + thin | 2 big + thin + shrink | 3 big + 2 thin + shrink |
# | LoRA, thin first | big + thin | big + 2 thin | 2 big + 3 thin |
#
# So LoRA saves one of three large products, a third of the work, and no more: $\mathrm{d}x$ still
# has to pass through $W$. For a square matrix the saving is gone when 3 thin = big, at $r = d / 6$.

# %%
N, d_in, d_out = 1024, 768, 768
big = 2 * N * d_in * d_out
print(f"FLOPs of one step against full fine-tuning, {d_out} x {d_in}, N = {N}:")
for r in (1, 8, 64, 128, 256):
    thin, shrink = 2 * N * r * (d_in + d_out), 4 * r * d_in * d_out
    through_dW = (3 * big + 2 * thin + shrink) / (3 * big)
    thin_first = (2 * big + 3 * thin) / (3 * big)
    print(f"  r = {r:3}: thin first {thin_first:.3f}   through dW {through_dW:.3f}")
    assert through_dW > 1 and (r != d_in // 6 or thin_first == 1)

# %% [markdown]
# FLOPs are not time, so here is the time of the two factor gradients, on the machine that built
# this page:

# %%
x, dout = rng.standard_normal((2, N, d_in)).astype("f4")
A, B = rng.standard_normal((8, d_in)).astype("f4"), rng.standard_normal((d_out, 8)).astype("f4")
z = x @ A.T


def milliseconds(work):
    return 1e3 * min(timeit.repeat(work, number=1, repeat=15))


thin_first = milliseconds(lambda: (dout.T @ z, (dout @ B).T @ x))
through_dW = milliseconds(lambda: ((dW := dout.T @ x) @ A.T, B.T @ dW))
print(f"dA and dB at r = 8: {thin_first:.2f} ms thin first, {through_dW:.2f} ms through dW")
assert thin_first < through_dW

# %% [markdown]
# It saves memory, too: $\mathrm{d}W$ would be an array of the size of $W$, and the two averages
# that Adam keeps of it (chapter 04) two more.
#
# ## Why B = 0
#
# The model should start as the pretrained model, so $s\,B A = 0$. And it should be able to learn.
# The two windows say what each way to start does:
#
# * $A$ random, $B = 0$: $\mathrm{d}A = s\,B^\top \mathrm{d}W = 0$, but
#   $\mathrm{d}B = s\,\mathrm{d}W A^\top$ is not. $B$ moves first, then $A$ can.
# * $A = 0$, $B$ random: the mirror image.
# * both zero: both gradients are zero, now and for ever.
# * both random: it learns, but the model was changed before it saw the first example.
#
# Let the nine lines learn. The problem is planted: targets come from $W$ plus an update of rank 4
# that has to be found. 200 steps of plain gradient descent:

# %%
problem = planted(d_out=24, d_in=32, rank=4, n=512, condition=3)  # sigma_1 = 3 sigma_4
x, W, target = problem.x, problem.weight, problem.y


def learn(A, B, s=1.0, lr=0.1, steps=200):
    """[the loss before each step, and at the end]; A and B change in place."""
    losses = []
    for _ in range(steps + 1):
        y, z = lora_forward(x, W, A, B, s)
        losses.append(np.sum((y - target) ** 2) / 2 / len(x))
        _, dA, dB = lora_backward((y - target) / len(x), x, z, W, A, B, s)
        A -= lr * dA
        B -= lr * dB
    return losses


A = rng.uniform(-(32**-0.5), 32**-0.5, (4, 32))
B = rng.uniform(-0.5, 0.5, (24, 4))
starts = {
    "A random, B = 0": (1, 0),
    "A = 0, B random": (0, 1),
    "both zero": (0, 0),
    "both random": (1, 1),
}
losses = {}
for name, (keep_A, keep_B) in starts.items():
    same = np.array_equal(lora_forward(x, W, keep_A * A, keep_B * B, 1.0)[0], x @ W.T)
    losses[name] = learn(keep_A * A, keep_B * B)
    first, last = losses[name][0], losses[name][-1]
    bits = "the same bits as" if same else "another than"
    print(f"{name:15}  loss {first:.4f} -> {last:.4f};  at the start {bits} the base model")
    assert same == (name != "both random")

unchanged = losses["A random, B = 0"][0]
assert losses["both zero"][-1] == unchanged and losses["both random"][0] > 1.1 * unchanged
assert losses["A = 0, B random"][-1] > losses["A random, B = 0"][-1]
assert all(own[-1] < 0.5 * own[0] for name, own in losses.items() if name != "both zero")

# %% [markdown]
# The mirror image learns too; here it is slower. "The same bits" is meant literally: adding an
# exact zero changes nothing, so a fresh adapter *is* the base model.
#
# How much two random factors disturb it grows with the rank. An entry of $B A$ is a sum of $r$
# products; if all entries of $A$ and $B$ have standard deviation 1, as in write-ups that fill both
# with `randn`, its standard deviation is $\sqrt{r}$:

# %%
for r in (1, 8, 64):
    entries = rng.standard_normal((400, r)) @ rng.standard_normal((r, 400))
    print(f"r = {r:2}: standard deviation of B A = {entries.std():5.2f}, sqrt(r) = {r**0.5:5.2f}")
    assert abs(entries.std() / r**0.5 - 1) < 0.1

# %% [markdown]
# ## What lora_alpha / r does
#
# The number $s$ multiplies the update, nothing else. `lora_alpha` sets its size; dividing by $r$ is
# meant to make one `lora_alpha` and one learning rate serve every rank. Does it? Look at the very
# first step, where everything can be worked out.
#
# **Gradient descent** (`SGD`). At $B = 0$ only $B$ moves, by $-\mathrm{lr}\,\mathrm{d}B$ at the
# learning rate $\mathrm{lr}$, and the output is linear in $B$. So, to first order, the loss falls
# by $\mathrm{lr}\,\lVert \mathrm{d}B \rVert^2$. How large is that on average over the random $A$?
#
# Let $A_k$ be row $k$ of $A$. Then column $k$ of $\mathrm{d}B = s\,\mathrm{d}W A^\top$ is
# $s\,\mathrm{d}W A_k^\top$. The entries of $A$ are drawn uniformly from
# $\pm 1/\sqrt{d_\mathrm{in}}$: they are independent, with mean 0 and variance
# $1/(3\,d_\mathrm{in})$. In the average square of $\sum_j \mathrm{d}W_{ij}\, A_{kj}$ all cross
# terms vanish, and each square brings the variance:
#
# $$\mathrm{mean}\,\lVert \mathrm{d}B \rVert^2
# = s^2 \sum_{k=1}^{r} \mathrm{mean}\,\lVert \mathrm{d}W A_k^\top \rVert^2
# = s^2 \sum_{k=1}^{r} \sum_{ij} \frac{\mathrm{d}W_{ij}^2}{3\, d_\mathrm{in}}
# = \frac{s^2\, r\, \lVert \mathrm{d}W \rVert^2}{3\, d_\mathrm{in}}$$
#
# With $s = \alpha / r$ (where $\alpha$ is `lora_alpha`) this falls like $1/r$: a larger rank learns
# *more slowly*. With $s = \alpha / \sqrt{r}$ it does not depend on $r$. That is rank-stabilised
# LoRA, `use_rslora=True`.
#
# **AdamW**, which nearly everyone uses, moves every number in its first step by the same
# $\mathrm{lr}$, against the sign of its gradient (chapter 04 derives it). The drop is then
# $\mathrm{lr} \sum |\mathrm{d}B_{ik}|$: $r$ columns of equal size, each proportional to $s$. So it
# grows like $s\,r$, and it is $s = \alpha / r$ that makes it independent of the rank.
#
# Measured, with 20 draws of $A$ for each point:

# %%
d_in, d_out, N, lr, alpha = 64, 48, 64, 1e-3, 16
W = rng.standard_normal((d_out, d_in)) / d_in**0.5
x, dout = rng.standard_normal((N, d_in)), rng.standard_normal((N, d_out)) / N
ranks = [1, 2, 4, 8, 16, 32]


def first_step(optimizer, r, s, seed):
    """(drop of the loss, root mean square change of the outputs) in one step from B = 0."""
    A = np.random.default_rng(seed).uniform(-(d_in**-0.5), d_in**-0.5, (r, d_in))
    B = np.zeros((d_out, r))
    before, z = lora_forward(x, W, A, B, s)
    _, dA, dB = lora_backward(dout, x, z, W, A, B, s)
    optimizer.step({"A": A, "B": B}, {"A": dA, "B": dB})
    change = lora_forward(x, W, A, B, s)[0] - before
    return -np.sum(dout * change), np.sqrt(np.mean(change**2))


rows = []
for optimizer in (SGD, AdamW):
    for use_rslora in (False, True):
        for r in ranks:
            s = alpha / (r**0.5 if use_rslora else r)
            drop, move = np.mean([first_step(optimizer(lr), r, s, i) for i in range(20)], axis=0)
            about = {"optimizer": optimizer.__name__, "use_rslora": use_rslora, "r": r}
            rows.append(about | {"drop": drop, "move": move})

dW = dout.T @ x
for row in rows[: len(ranks)]:
    formula = lr * (alpha / row["r"]) ** 2 * row["r"] * np.sum(dW**2) / (3 * d_in)
    print(f"r = {row['r']:2}, SGD, alpha / r: drop {row['drop']:.5f}, formula {formula:.5f}")
    assert abs(row["drop"] / formula - 1) < 0.15

lora_layer.first_steps(rows)

# %% [markdown]
# Higher means that the first step learns more; a flat line means that one learning rate serves
# every rank. The loss drop adds up $r$ terms of one sign. The change of the outputs is a sum of $r$
# terms of both signs and grows like $\sqrt{r}$ instead, so its slope is lower by a half:

# %%
expected = {("SGD", False): (-1, -1.5), ("SGD", True): (0, -0.5)}
expected |= {("AdamW", False): (0, -0.5), ("AdamW", True): (0.5, 0)}
for (name, use_rslora), want in expected.items():
    own = [row for row in rows if (row["optimizer"], row["use_rslora"]) == (name, use_rslora)]
    lines = np.log([(row["drop"], row["move"]) for row in own])
    slopes = np.polyfit(np.log(ranks), lines, 1)[0]
    scaling = "alpha / sqrt(r)" if use_rslora else "alpha / r"
    print(f"{name:5}  {scaling:15}  loss drop ~ r^{slopes[0]:+.2f}   outputs ~ r^{slopes[1]:+.2f}")
    assert np.all(np.abs(np.subtract(slopes, want)) < (0.15, 0.2))

# %% [markdown]
# So the answer depends on the optimizer, and on what is to stay the same. Under AdamW, $\alpha / r$
# keeps the first *loss drop* the same at every rank, while $\alpha / \sqrt{r}$ keeps the change of
# the *outputs* the same. Both have a case, and a first step is not a training run: chapter 04
# measures whole runs.
#
# What is certain is the practical trap. Who changes $r$ alone changes $s$:

# %%
for r, lora_alpha, use_rslora in ((8, 16, False), (64, 16, False), (64, 8, True)):
    layer = LoRALinear(Linear.random(64, 64, rng), r, lora_alpha, use_rslora=use_rslora)
    given = f"r = {r:2}, lora_alpha = {lora_alpha:2}, use_rslora = {use_rslora!s:5}"
    print(f"{given}: scaling = {layer.scaling:.2f}")
assert layer.scaling == 1

# %% [markdown]
# ## Two orders of multiplication
#
# Forward has a choice of its own: where the brackets stand. The *factored* order goes through the
# thin factors, the *merged* order builds the sum of the matrices first:
#
# $$\underbrace{x W^\top + s\,(x A^\top) B^\top}_{\text{factored}}
# \;=\; \underbrace{x\,(W + s\,B A)^\top}_{\text{merged}}$$
#
# Beside the product with a full-size matrix, which both have, the first costs
# $2\,N\,r\,(d_\mathrm{in} + d_\mathrm{out})$, the second $2\,r\,d_\mathrm{in}\,d_\mathrm{out}$.
# Merging is cheaper when
#
# $$2\,N\,r\,(d_\mathrm{in} + d_\mathrm{out}) > 2\,r\,d_\mathrm{in}\,d_\mathrm{out}
# \quad\Longleftrightarrow\quad
# N > N^* = \frac{d_\mathrm{in}\, d_\mathrm{out}}{d_\mathrm{in} + d_\mathrm{out}}$$
#
# and the rank cancels. For 768 x 768 that is 384 rows, which a batch of a few texts has. Time is
# another thing than FLOPs: thin products use the processor badly, and building the sum moves a
# whole weight through memory. So here are both, for a `LoRALinear` of each order
# (`init_lora_weights=False` draws both factors at random, so that there is something to add):

# %%
d, r = 768, 64
base, rows = Linear.random(d, d, rng), []
orders = ("factored", "merged")
layers = [LoRALinear(base, r, 16, init_lora_weights=False, order=order) for order in orders]
for N in (32, 64, 128, 256, 384, 512, 1024, 2048):
    x = rng.standard_normal((N, d)).astype("f4")
    calls = [partial(layer, x) for layer in layers]
    times = [[timeit.timeit(call, number=1) for call in calls] for _ in range(40)]  # in turns
    factored, merged = np.min(times, axis=0)  # of each the time of the least disturbed turn
    flops = (N * d * d + N * r * 2 * d) / (N * d * d + r * d * d)
    rows.append({"N": N, "flops": flops, "time": factored / merged})
assert not merging_is_cheaper(384, d, d) and merging_is_cheaper(385, d, d)

title = f"Forward of a {d} x {d} layer, r = {r}: above 1, merging first is cheaper"
lora_layer.merging_first(rows, d * d / (d + d), title)

# %% [markdown]
# The merged order has a price in memory. It keeps the array $W + s\,B A$ until backward, where the
# factored order keeps the small $z$:


# %%
def arrays(cache):
    """{id: array} of every array in nested tuples, each once."""
    if isinstance(cache, tuple):
        return {key: array for part in cache for key, array in arrays(part).items()}
    return {} if cache is None else {id(cache): cache}


d, r, N = 1024, 8, 600
x = rng.standard_normal((N, d)).astype("f4")
for order, extra in (("factored", N * r), ("merged", d * d)):
    layer = LoRALinear(Linear.random(d, d, rng), r, 16, order=order)
    own = arrays(tuple(layer.named_params().values()))
    _, cache = layer(x)
    kept = sum(array.nbytes for key, array in arrays(cache).items() if key not in own)
    print(f"{order:8}: {kept / 1e6:.2f} MB kept for backward, {x.nbytes / 1e6:.2f} of them x")
    assert kept == x.nbytes + 4 * extra

# %% [markdown]
# ## The library's layer
#
# `LoRALinear` is the nine lines and five things more, which its code should now be readable by:
#
# * **The order.** `order="auto"` merges from $2 N^*$ on: nearer to $N^*$ there is little to gain,
#   and the matrix kept for backward has its price. `"factored"` and `"merged"` are for who knows
#   better, or is short of memory.
# * **Dropout.** In training the branch, and only the branch, sees
#   $\mathrm{xd} = x \odot M$: each entry of $M$ is 0 with the probability `lora_dropout`, and else
# `1 / (1 - lora_dropout)`, so that the mean is 1. $\mathrm{d}A$ gets $\mathrm{xd}$, and
# $\mathrm{d}z\,A$ goes back through the same mask. Then only the factored order is possible,
# because $W$ and the branch no longer multiply the same matrix.
# * **The pass.** `run` says what holds for it: `run.rng` draws the dropout mask and is `None` in
#   inference; `effective_weight` gives $W + s\,B A$ where the merged order is taken, else
#   `None`, and the two go apart.
# * **What trains.** A gradient is computed for what is in `trainable`, and for nothing else.
# * **`dA` as `(x^T dz)^T`**: the same numbers, and for a large $x$ the faster way round.

# %%
print(code(LoRALinear.forward, LoRALinear.forward_apart, LoRALinear.dropout_mask))

# %%
print(code(LoRALinear.backward))

# %% [markdown]
# It gets the check of the nine lines, in both orders and with dropout:

# %%
x, W, b = rng.standard_normal((11, 7)), rng.standard_normal((5, 7)), rng.standard_normal(5)
for order, drop in (("factored", 0), ("merged", 0), ("factored", 0.4)):
    options = {"init_lora_weights": False, "order": order, "lora_dropout": drop}
    layer = LoRALinear(Linear(W, b), r=2, lora_alpha=6, **options)
    errors = check_layer(layer, x, rng, dropout_seed=1 if drop else None)
    print(f"{order:8}, dropout {drop}:", {name: f"{error:.0e}" for name, error in errors.items()})
    assert errors.keys() == {"x", "lora_A", "lora_B"} and max(errors.values()) < 1e-13

# %% [markdown]
# ## What merging costs
#
# After training, `merge()` puts $W + s\,B A$ in the place of $W$, once. From then on the layer is
# an ordinary linear layer, neither slower nor faster than before it was adapted. It computes the
# same function up to rounding. And back?

# %%
d = 512
for dtype, allowed in (("float64", 1e-12), ("float32", 2e-6)):
    W = (rng.standard_normal((d, d)) / d**0.5).astype(dtype)
    x = rng.standard_normal((64, d)).astype(dtype)
    layer = LoRALinear(Linear(W.copy()), 8, 16, init_lora_weights=False, order="factored")
    before = layer(x)[0]
    layer.merge()
    merged, error = layer.weight, relative_error(layer(x)[0], before)
    print(f"{dtype}: merged against unmerged {error:.0e}")
    assert layer.merged and error < allowed

    layer.unmerge()
    kept = np.array_equal(layer.weight, W) and np.array_equal(layer(x)[0], before)
    lost = np.mean(merged - layer.delta_weight() != W)
    print(f"  unmerge restores all bits: {kept}; subtracting misses {lost:.0%} of entries")
    assert kept and lost > 0.1

half = merged.astype("f2").astype("f4")
print(f"float32 merge stored as float16: {relative_error(x @ half.T, x @ merged.T):.0e}")

# %% [markdown]
# In floating point, adding the update and subtracting it again does not give $W$ back: the sum was
# rounded, and the rounding stays. So `LoRALinear` keeps the array $W$ while it is merged, and puts
# it back. The last line is what users meet as "my merged model answers differently": half precision
# rounds far more coarsely than the merge itself.
#
# ## What is saved, what is not
#
# A $d \times d$ matrix gets $2\,d\,r$ trained numbers instead of $d^2$. What that saves in memory,
# by the library's arithmetic, for one query matrix of GPT-3 in float32 at $r = 4$:

# %%
query = LoRALinear(Linear(np.broadcast_to(np.float32(0), (12288, 12288))), r=4)
table = memory_table(query)
for row in table:
    names = ("weights", "gradients", "optimizer", "total")
    parts = (f"{name} {row[name] / 1e6:6.1f}" for name in names)
    print(f"{row['method']:4} trains {row['trained']:11,}; in MB:", "  ".join(parts))
full, lora = table
print(f"{full['trained'] / lora['trained']:,.0f} times fewer numbers train, ", end="")
print(f"{full['total'] / lora['total']:.1f} times less memory")
assert full["trained"] / lora["trained"] == 1536 and 3.9 < full["total"] / lora["total"] < 4

# %% [markdown]
# 1,536 times fewer trained numbers, but only four times less memory: gradients and the optimizer's
# two arrays go, the weight stays, and $\mathrm{d}x$ still goes through it. It is the same in the
# LoRA paper: training GPT-3 took 1.2 TB and then 350 GB, which is its frozen weights in float16.
# The file per task became 10,000 times smaller.
#
# <details><summary>If you recompute the paper's parameter counts</summary>
#
# They are $2\,d\,r$ for each adapted square matrix. GPT-3, query and value (192 of
# $d = 12{,}288$): 4.7 M at $r = 1$, 37.7 M at $r = 8$, as printed; RoBERTa-base (24 of $d = 768$):
# 0.3 M at $r = 8$, as printed. GPT-2 medium (48 of $d = 1{,}024$, $r = 4$) gives 393,216 where
# the paper prints 0.35 M, GPT-2 large (72 of $d = 1{,}280$) gives 737,280 where it prints 0.77
# M. It is not your mistake.
#
# </details>
#
# <details><summary>If you read other people's code</summary>
#
# The paper, PEFT and this book store `A (r, d_in)` and `B (d_out, r)`. Others store both the other
# way round and compute `x A B`. With a square weight a forgotten transpose has the right shape and
# raises no error. Some multiply by a plain `scale`, or by `alpha` without dividing by `r`: look at
# the line that multiplies before you compare a learning rate. And where a routine takes the
# *second* size for the number of inputs, an `A` that is stored as `(d_in, r)` starts
# $\sqrt{d_\mathrm{in} / r}$ times too large.
#
# </details>
#
# ---
#
# > **What to remember**
# >
# > * $\mathrm{d}B = s\,\mathrm{dout}^\top z$ and $\mathrm{d}A = (s\,\mathrm{dout}\,B)^\top x$, with
# >   $z = x A^\top$. They equal $s\,\mathrm{d}W A^\top$ and $s\,B^\top \mathrm{d}W$, but
# >   $\mathrm{d}W$ is never formed: that product is the third of the work that LoRA saves.
# > * One factor starts at zero, so that the model starts unchanged, to the bit. Not both: nothing
# >   would ever move.
# > * $s$ is only a multiplier. $\alpha / r$ keeps AdamW's first loss drop independent of $r$,
# >   $\alpha / \sqrt{r}$ that of gradient descent. Change $r$, and look at $s$.
# > * Merging first costs less when
# >   $N > d_\mathrm{in} d_\mathrm{out} / (d_\mathrm{in} + d_\mathrm{out})$, at any rank, but keeps
# >   an array of the size of $W$ until backward.
# > * LoRA shrinks gradients, optimizer state and files. It does not shrink the weights, and once
# >   merged it costs nothing.
#
# **Next.** Whether two thin windows are enough to learn something real is a question for an
# experiment. That is [chapter 04](04_mlp.ipynb).
#
# ## Exercises
#
# Replace `None`, run the cell, and a check says "right" or gives a hint. Solutions:
# [solutions/03_lora_layer.ipynb](solutions/03_lora_layer.ipynb).
#
# **1. A gate (a change of LoRA).** Put a trainable vector $\mathrm{gate}$ of $r$ numbers between
# the factors: $y = x W^\top + s\,(z \odot \mathrm{gate})\,B^\top$, where it multiplies every row of
# $z$. Give $\mathrm{dgate}$. (Where an entry of $\mathrm{gate}$ goes to zero a rank disappears:
# this is how SoRA and AdaLoRA choose ranks.)

# %%
answer = None  # your turn: lambda dout, z, B, s: ...
ch03.gate(answer)

# %% [markdown]
# **2. One A for two (a derivation).** Query and value read the same $x$. Let them share one $A$:
# $y_q = x W_q^\top + s\,z B_q^\top$ and $y_v = x W_v^\top + s\,z B_v^\top$ with one $z = x A^\top$.
# The two upstream gradients are $\mathrm{dout}_q$ and $\mathrm{dout}_v$. Give $\mathrm{d}A$.

# %%
answer = None  # your turn: lambda dout_q, dout_v, x, B_q, B_v, s: ...
ch03.shared_A(answer)

# %% [markdown]
# **3. Another start (a measurement).** `init_lora_weights="gaussian"` draws $A$ with standard
# deviation $1/r$. For a layer of 48 x 64 and $r = 4$: by what factor is $\lVert\mathrm{d}B\rVert^2$
# of the first step larger than with the usual start, on average? Predict it, then measure it with
# `LoRALinear` over some seeds (`rng=seed`). The measured factor is asked for, within 10 %.

# %%
answer = None  # your turn: a number
ch03.gaussian_start(answer)

# %% [markdown]
# **4. Double `lora_alpha`.** By what factor must you multiply the learning rate so that the update
# $s\,B A$ after the first step stays the same, with SGD and with AdamW?

# %%
answer = None  # your turn: (factor for SGD, factor for AdamW)
ch03.double_alpha(answer)

# %% [markdown]
# **5. Convert.** An adapter of mlx-lm holds `lora_a (d_in, r)`, `lora_b (r, d_out)` and a number
# `scale`; its branch is `scale * x @ lora_a @ lora_b`. What are `lora_A`, `lora_B` and `lora_alpha`
# of the same adapter here?

# %%
answer = None  # your turn: lambda lora_a, lora_b, scale: (..., ..., ...)
ch03.convert(answer)

# %% [markdown]
# **Sources.** E. J. Hu et al., *LoRA: Low-Rank Adaptation of Large Language Models*, 2021,
# arXiv:2106.09685.
# D. Kalajdzievski, *A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA*, 2023,
# arXiv:2312.03732. D. Cherniuk et al., *RunLoRA*, 2023, arXiv:2312.03415. Why `alpha / r`: E. J. Hu
# in github.com/microsoft/LoRA, issue 101. How others store the factors: the source code of loralib,
# PEFT, LLMs-from-scratch, unsloth, mlx-lm, minLoRA and RunLoRA, read in 2026.
