# %% [markdown]
# # What does a weight in four bits cost, and can LoRA train on top of it?
#
# A frozen weight is only read. So it need not be stored as exactly as one that trains: four bits
# instead of 32 make the base eight times smaller, almost. That is QLoRA.
#
# ![Left: 192 weights of MiniLM in three blocks of 64. Over each block lie the same 16 levels, times
# the block's largest absolute value: 0.177, 0.186 and 0.204. Right: the levels are quantiles of
# the normal density, 7 below zero and 8 above.](../figures/four_bits.svg)
#
# Each blue weight moves to the nearest orange line, and what is stored is the number of the line,
# 0 to 15. (`lorabook figures four_bits` draws this.)
#
# At the end of this chapter you can
#
# * derive the levels of NF4, pack them, and count the bits of a weight, scales included;
# * say what rounding costs on real weights, and which claims about NF4 hold there;
# * derive QLoRA's backward pass, and say what it saves and what it does not;
# * say how much of the error LoftQ takes back, and what that is worth after training.

# %%
import copy
import math
import timeit
from statistics import NormalDist

import matplotlib.pyplot as plt
import numpy as np
from threadpoolctl import threadpool_limits

from lorabook import LoRAConfig, LoRALinear, files, inject, load_model, memory_table
from lorabook.adapters import adapters
from lorabook.book import figures, four_bits, four_bits_tables
from lorabook.book.checks import ch14
from lorabook.functional import complex_step, relative_error
from lorabook.layers import Linear, QuantizedLinear, check_layer, quantize
from lorabook.quantization import loftq, nf4_levels, pack, quantize_weight, unpack
from lorabook.tasks import digits_problem
from lorabook.training import AdamW, train

threadpool_limits(1)
plt.rcParams["figure.dpi"] = 110
rng = np.random.default_rng(0)
print(files.environment.summary())

# %% [markdown]
# ## Sixteen levels
#
# Four bits name 16 numbers. Which 16? Trained weights look normal. If every level is to be used
# equally often, the levels belong at evenly spaced **quantiles**: with $\Phi$ the distribution
# function of $\mathcal{N}(0, 1)$,
#
# $$\ell_i = \Phi^{-1}(p_i), \qquad p_i \text{ evenly spaced}$$
#
# Two things get in the way. First, $\Phi^{-1}(1)$ is infinite. With $n$ levels the outermost
# quantile is taken half a step inside, at $1 - 1/(2n)$. Second, zero must be among the levels, so
# that a weight of zero stays zero. Then 15 levels are left for two sides. NF4 gives 8 to the
# positive one and 7 to the negative one, and its authors take the mean of the two outermost
# quantiles for both:
#
# $$p_\mathrm{max} = \tfrac12 \Big( 1 - \tfrac{1}{32} + 1 - \tfrac{1}{30} \Big)$$
#
# $$\text{above zero: } \Phi^{-1}\big(\text{8 steps from } p_\mathrm{max} \text{ towards }
# \tfrac12\big)
# \qquad \text{below: } -\Phi^{-1}\big(\text{7 steps}\big)$$
#
# At last all are divided by the largest, so that they lie in $[-1, 1]$.


# %%
def levels_by_hand():
    quantile = NormalDist().inv_cdf
    p_max = ((1 - 1 / 32) + (1 - 1 / 30)) / 2
    above = [quantile(p) for p in np.linspace(p_max, 0.5, 9)[:-1]]  # the ninth is zero
    below = [-quantile(p) for p in np.linspace(p_max, 0.5, 8)[:-1]]
    levels = np.sort([*below, 0, *above])
    return levels / levels[-1]


levels = levels_by_hand()
print(levels.round(3))
assert np.abs(levels - nf4_levels()).max() < 1e-7
assert (np.sum(levels < 0), np.sum(levels > 0)) == (7, 8) and levels[7] == 0

# %% [markdown]
# The paper's table of 16 numbers (its appendix E) is these, up to the rounding of float32; a test
# of the library compares them.
#
# ## Blocks
#
# Levels in $[-1, 1]$ need a **scale**. The largest absolute value of the weights, absmax, maps
# the largest one to a level exactly. One scale for a whole matrix would let one large weight
# coarsen all the others. So the matrix is cut, in the order of its memory, into blocks of 64, each
# with a scale of its own. For block $k$ with scale $c_k$:
#
# $$c_k = \max_{i \in k} \lvert W_i \rvert \qquad
# \mathrm{code}_i = \arg\min_j \Big\lvert \frac{W_i}{c_k} - \ell_j \Big\rvert \qquad
# \mathrm{dq}(W)_i = c_k\, \ell_{\mathrm{code}_i}$$
#
# $\mathrm{dq}(W)$, the dequantised weight, is what the codes stand for. In code:


# %%
def quantise_by_hand(W, levels, block=64):
    blocks = W.reshape(-1, block)
    scale = np.abs(blocks).max(axis=1, keepdims=True)  # (blocks, 1)
    distance = np.abs((blocks / scale)[..., None] - levels)  # (blocks, block, 16)
    codes = distance.argmin(axis=-1)  # (blocks, block)
    return codes, scale, (levels[codes] * scale).reshape(W.shape)


matrices = four_bits.minilm_matrices()
W = matrices[four_bits.MATRIX]
codes, scale, dq = quantise_by_hand(W, levels)
library = quantize_weight(W, "nf4")
print(f"{W.shape[0]} x {W.shape[1]}; the first weights, and what their codes stand for:")
print(W[0, :6].round(4))
print(dq[0, :6].round(4))
assert relative_error(library.dequantize(), dq) < 1e-6

# %% [markdown]
# `matrices` are the 36 of the blocks of MiniLM (chapter 08; `lorabook fetch minilm`). What do
# blocks buy? The same levels with one scale for longer and longer blocks, on this matrix and on
# one that has a few very large weights:

# %%
outlier = matrices["encoder.layer.0.output.dense.weight"]
for M in (W, outlier):
    print(f"largest weight over root mean square: {np.abs(M).max() / np.sqrt(np.mean(M**2)):.1f}")
cost = {}
for block in (16, 64, 1024, None):  # None: one scale for the whole matrix
    errors = [four_bits.block_error(M, nf4_levels(), block or M.size) for M in (W, outlier)]
    cost[block] = errors
    print(f"a scale for {block or 'all':>5} weights: relative error", np.round(errors, 3))
assert max(cost[64]) < 0.1 and cost[None][0] < 0.2 and cost[None][1] > 0.9

# %% [markdown]
# With one scale for all, the second matrix is lost; with blocks of 64, one large weight spoils 63
# others and no more.
#
# ## How many bits is that?
#
# Two codes make a byte: the even one in the low half, the odd one in the high half.

# %%
four = np.array([7, 15, 0, 3], "u1")
packed = pack(four)
print([f"{byte:08b}" for byte in packed], "->", unpack(packed).tolist())
assert np.array_equal(packed, four[0::2] | four[1::2] << 4)
assert np.array_equal(unpack(library.arrays["codes"]), codes.ravel())

# %% [markdown]
# The scales count, too. A float32 for 64 weights is half a bit for each:
#
# $$4 + \frac{32}{64} = 4.5$$
#
# **Double quantisation** rounds the scales as well. They are all positive and alike, so their mean
# is taken off, and what is left goes to 8 bits in groups of 256 scales with one float32 each:
#
# $$4 + \frac{8}{64} + \frac{32}{64 \cdot 256} = 4.127$$
#
# Count the bytes that the library holds:

# %%
held = {name: 8 * quantize_weight(W, name).nbytes / W.size for name in ("nf4", "nf4_double")}
for name, bits in held.items():
    print(f"{name:10}: {bits:.4f} bits a weight")
assert held["nf4"] == 4.5 and abs(held["nf4_double"] - (4 + 8 / 64 + 32 / (64 * 256))) < 1e-3
print(f"a model of 65 billion weights: {65e9 * held['nf4_double'] / 8e9:.1f} GB, ", end="")
print(f"in 16 bits {65e9 * 2 / 1e9:.0f} GB")
assert 33 < 65e9 * held["nf4_double"] / 8e9 < 34

# %% [markdown]
# ## What it costs on real weights
#
# `error_table` gives $\lVert W - \mathrm{dq}(W) \rVert_F / \lVert W \rVert_F$ for each format and
# matrix. The competitors: `int4` is the same with even levels $-7 \dots 7$. `q4_0` and `q4_1` are
# the blocks of GGUF files: even levels, a float16 scale for 32 weights; `q4_0` lets the largest
# weight be $-8$, so that all 16 codes are used, `q4_1` starts at the block's minimum. SmolLM2's
# embedding is the only matrix that its file has in 8 bits; the others are in 4 already.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
rows = files.read_csv("../figures/data/format_errors.csv")
figures.FIGURES["format_errors"].plot(rows)

# %%
error, table = four_bits_tables.formats(rows)
print(table)
ratio = four_bits_tables.ratios(rows, "nf4", "int4")
print(f"\nnf4 / int4 on MiniLM: {min(ratio):.2f} to {max(ratio):.2f}, all {len(ratio)} matrices")
lost = {what: error["minilm", what][0] for what in four_bits.SIDES}
against = four_bits_tables.ratios(rows, "nf4", "q4_0")
print(f"nf4 / q4_0: {min(against):.2f} to {max(against):.2f}")

# %% [markdown]
# * **NF4 beats plain int4 with the same blocks** on every one of the 36 matrices, by 15 to 24 %.
#   That claim holds.
# * **It does not beat every four bits.** `q4_0` costs the same 4.5 bits and loses 4 % less on
#   MiniLM: it spends its half bit on scales that are half as long and twice as many. On SmolLM2's
#   embedding the two are within 1 %.
# * **Levels and blocks are two choices.** At the same block length and scale, the orange line is
#   below the blue one everywhere. A block of 32 with a float16 scale would serve NF4, too.
# * **Double quantisation is nearly free**: a third of a bit less, and an error that grows by less
#   than a thousandth.
# * **NF4's largest errors are larger**: its outer levels are far apart. The largest error is half
#   as large again as int4's.

# %%
assert len(ratio) == 36 and 0.75 < min(ratio) and max(ratio) < 0.86
assert all(1.0 < r < 1.09 for r in against) and abs(lost["nf4"] / lost["q4_0"] - 1.046) < 0.01
assert abs(error["smollm2", "nf4"][0] / error["smollm2", "q4_0"][0] - 1) < 0.01
assert lost["nf4_double"] / lost["nf4"] < 1.001
assert error["minilm", "nf4"][1] > 1.4 * error["minilm", "int4"][1]
lines = four_bits_tables.lines(rows)
for source in ("minilm", "smollm2"):
    for block in four_bits.BLOCKS:
        assert lines[source, "NF4's levels", block] < lines[source, "even levels", block]

# %% [markdown]
# And the idea behind NF4, that each level is used equally often, so that every code carries its
# full four bits? Count the codes of all 36 matrices. The information that they carry is the
# entropy $-\sum_j f_j \log_2 f_j$ of the shares $f_j$.

# %%
counts = {}
for name, width in (("nf4", 16), ("int4", 16)):
    found = [unpack(quantize_weight(M, name).arrays["codes"]) for M in matrices.values()]
    shares = np.bincount(np.concatenate(found), minlength=width) / sum(map(len, found))
    used = shares[shares > 0]
    counts[name] = shares, -np.sum(used * np.log2(used))
    print(f"{name}: {counts[name][1]:.2f} bits of 4; %:", (100 * shares).round().astype(int))
assert abs(counts["nf4"][1] - 3.84) < 0.01 and abs(counts["int4"][1] - 3.43) < 0.01
assert counts["nf4"][0][7] > 5 * counts["nf4"][0][0]

# %% [markdown]
# Better than int4, but not equal: the outermost code is used a sixth as often as the middle one.
# The quantiles belong to weights divided by their standard deviation; here they are divided by
# the largest of 64, which is another number in each block. And equal use is not what makes the
# error small, anyway. Exercise 3 finds levels that lose less.
#
# ## QLoRA: the gradient through dq(W)
#
# Now put LoRA over it. The rounded weight is in the place of $W$, and the factors stay in full
# precision:
#
# $$y = x\,\mathrm{dq}(W)^\top + s\, x A^\top B^\top$$
#
# The codes never change, so $\mathrm{dq}(W)$ is a constant and $\delta\,\mathrm{dq}(W) = 0$:
#
# $$\delta y = \delta x\,\mathrm{dq}(W)^\top + s\,\delta z\,B^\top + s\,z\,\delta B^\top$$
#
# From here chapter 03 goes through word for word. $\mathrm{d}A$ and $\mathrm{d}B$ do not see the
# weight at all, and in the gradient of the input $\mathrm{dq}(W)$ stands where $W$ stood:
#
# $$\boxed{\;\mathrm{d}x = \mathrm{dout}\,\mathrm{dq}(W) + \mathrm{d}z\,A\;}
# \qquad \mathrm{d}z = s\,\mathrm{dout}\,B$$
#
# So backward needs $\mathrm{dq}(W)$ again. Keeping it from forward to backward would hold the
# whole model in full precision, which is what we wanted to avoid. It is dequantised twice.


# %%
def qlora(x, codes, scale, A, B, s):
    W = (nf4_levels()[codes] * scale).reshape(B.shape[0], A.shape[1])  # dq(W), forgotten at the end
    return x @ W.T + s * x @ A.T @ B.T


def qlora_dx(dout, codes, scale, A, B, s):
    W = (nf4_levels()[codes] * scale).reshape(B.shape[0], A.shape[1])  # once more
    return dout @ W + s * dout @ B @ A


small = rng.standard_normal((8, 16))
codes, scale, _ = quantise_by_hand(small, levels)
A, B = rng.standard_normal((3, 16)), rng.standard_normal((8, 3))
x, dout = rng.standard_normal((5, 16)), rng.standard_normal((5, 8))
want = complex_step(lambda x: np.sum(dout * qlora(x, codes, scale, A, B, 2.0)), x)
print(f"dx: relative error {relative_error(qlora_dx(dout, codes, scale, A, B, 2.0), want):.0e}")
assert relative_error(qlora_dx(dout, codes, scale, A, B, 2.0), want) < 1e-13

layer = LoRALinear(QuantizedLinear.of(Linear(small), "nf4"), r=3, rng=rng)
layer.params["lora_B"] = B
layer.params["lora_A"] = A
errors = check_layer(layer, x, rng)
print("the library's layer:", {name: f"{error:.0e}" for name, error in errors.items()})
assert max(errors.values()) < 1e-11

# %% [markdown]
# Why not train $W$ itself in four bits? Because rounding is flat: a change smaller than half the
# gap between two levels changes nothing. The same happens to whoever merges an adapter back into
# four bits. Take an update of rank 4 that is 2 % of $W$, add it to $\mathrm{dq}(W)$, and round:

# %%
update = rng.standard_normal((384, 4)) @ rng.standard_normal((4, 384))
update = (update * 0.02 * np.linalg.norm(W) / np.linalg.norm(update)).astype("f4")
merged = quantize_weight(dq.astype("f4") + update, "nf4")
moved = np.mean(unpack(merged.arrays["codes"]) != unpack(library.arrays["codes"]))
left = relative_error(merged.dequantize() - dq, update)
print(f"{moved:.2%} of the codes change; the update comes out with a relative error of {left:.2f}")
assert moved < 0.001 and left > 0.99

# %% [markdown]
# Nothing of it arrives: hardly a weight moved as far as half way to the next level. So an adapter
# over four bits stays beside them, or the base is dequantised before merging.
#
# ## What it saves, and what not
#
# `quantize(model)` replaces the linear layers of a model, `inject` puts LoRA over them, in this
# order or the other:

# %%
models = {}
for name in ("float32", "nf4", "nf4_double"):
    models[name] = load_model("minilm", labels=["negative", "positive"])
    if name != "float32":
        rounded = quantize(models[name], name)
    targets = {"target_modules": ["query", "value"], "modules_to_save": ["classifier"]}
    inject(models[name], LoRAConfig(r=8, **targets), rng=0)
print(f"{len(rounded)} layers rounded\n")
tables = {name: memory_table(model) for name, model in models.items()}
print(four_bits_tables.memory(tables))

# %%
total = {name: rows[1]["total"] / 1e6 for name, rows in tables.items()}
embedding = sum(4 * a.size for n, a in models["nf4"].named_params().items() if "embeddings" in n)
print(f"of the {total['nf4']:.0f} MB over nf4, {embedding / 1e6:.0f} MB are embeddings in float32")
blocks = sum(M.size for M in matrices.values())
print(f"36 matrices: {4 * blocks / 1e6:.1f} MB in float32, {4.5 / 8e6 * blocks:.1f} MB in nf4")
assert 0.5 < total["nf4"] / total["float32"] < 0.65 and embedding > 0.8e6 * total["nf4"]

# %% [markdown]
# The matrices shrink by seven. The model does not even by two: half of MiniLM is its table of
# embeddings, which stays as it is. In a model of billions of parameters the table is a small part.
#
# Nor does QLoRA save time: to the product comes the dequantisation, twice a step. It weighs most
# where few rows share it.

# %%
dense = Linear(matrices["encoder.layer.0.intermediate.dense.weight"])
coded, slower = QuantizedLinear.of(dense, "nf4"), {}
for N in (16, 2048):
    x = rng.standard_normal((N, 384)).astype("f4")
    both = [min(timeit.repeat(lambda f=f, x=x: f(x), number=1, repeat=9)) for f in (dense, coded)]
    slower[N] = both[1] / both[0]
    print(f"N = {N:4}: {1e3 * both[0]:.2f} ms dense, {1e3 * both[1]:.2f} ms from four bits")
assert slower[16] > 1.2

# %% [markdown]
# ## Does it train?
#
# The MLP of chapter 04 is pretrained on upright digits; LoRA at $r = 4$ shall learn turned ones.
# First a short training over NF4 codes, and the same over a dense base that holds the rounded
# numbers. Both see the same weights, so the trainings are the same, up to rounding in float32:

# %%
problem = digits_problem("digits-rotated", 0)
over_codes, over_floats = copy.deepcopy(problem.base), copy.deepcopy(problem.base)
quantize(over_codes, "nf4", ["fc1", "fc2", "fc3"])
for array in over_floats.named_params().values():
    if array.ndim == 2:
        array[...] = quantize_weight(array, "nf4").dequantize()
for model in (over_codes, over_floats):
    inject(model, LoRAConfig(r=4, lora_alpha=16, use_rslora=True), rng=0)
    train(model, problem.batches(64, 0), AdamW(0.01), epochs=5, seed=0, workers=1)
    print(f"{problem.evaluate(model)[1]:.1%} of the turned digits right")
pairs = zip(adapters(over_codes).values(), adapters(over_floats).values(), strict=True)
apart = [relative_error(one.delta_weight(), other.delta_weight()) for one, other in pairs]
print("the updates are apart by", ", ".join(f"{error:.0e}" for error in apart))
assert max(apart) < 0.01

# %% [markdown]
# So what fewer bits do to a *training* can be studied without packing them: round, then train.
# `lorabook figures few_bits` does that for five seeds, each with a split and a base of its own, 60
# epochs, and bases down to 2 bits (4 levels for `nf2`, 3 for `int2`). The first column of the table
# is the relative error of the weights, the second how many *upright* digits are still right
# before the training. Both starts are explained below; QLoRA's is `B = 0`.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
rows = files.read_csv("../figures/data/few_bits.csv")
figures.FIGURES["few_bits"].plot(rows)

# %%
found, table = four_bits_tables.trainings(rows)
print(table)
print("\nagainst float32, points, mean of five seeds and its standard error:")
for name in ("nf4", "int4", "nf3", "nf2", "int2"):
    mean, error = four_bits_tables.gap(rows, (name, "B = 0"), ("float32", "B = 0"))
    print(f"  {name:5}{mean:+.1f} +- {error:.1f}")
    assert mean > -0.5

# %% [markdown]
# * **Four bits cost nothing that could be measured here.** The rounded network itself is hardly
#   worse on upright digits, and LoRA over it ends where LoRA over float32 ends.
# * **Not even two bits do**, though at an error of a half and more the base has lost up to 8 of 100
#   upright digits. All five differences are positive, those of `nf3` and `nf2` by about three
#   standard errors. On one small task we do not build on that: nothing was lost.
#
# This says something about this task, too. Turned digits are new to the network (10 % right before
# training), so it is used as features to build on, not for what it knew. Where the base must keep
# what it knows, two bits are another matter; the table's second column shows the beginning of it.
# And NF4's smaller error over `int4` is worth nothing after training here.

# %%
for name in ("nf4", "int4", "nf3"):
    assert abs(found[name, "B = 0"][1] - found["float32", "B = 0"][1]) < 0.006
assert 0.04 < found["float32", "B = 0"][1] - found["nf2", "B = 0"][1] < 0.07
assert 0.07 < found["float32", "B = 0"][1] - found["int2", "B = 0"][1] < 0.1
assert four_bits_tables.gap(rows, ("nf2", "B = 0"), ("float32", "B = 0"))[0] < 0.95
nf4_over_int4 = four_bits_tables.gap(rows, ("nf4", "B = 0"), ("int4", "B = 0"))
assert nf4_over_int4[0] < 0

# %% [markdown]
# ## LoftQ: let the factors take up the error
#
# QLoRA starts at $B = 0$, so at $\mathrm{dq}(W)$ and not at $W$. But there are factors, and they
# could begin with a part of what rounding lost. LoftQ looks for
#
# $$\min_{Q, A, B} \lVert W - Q - s\,B A \rVert_F, \qquad Q \text{ in four bits}$$
#
# and alternates. For given factors, round what they leave. For a given $Q$, the best update of rank
# $r$ is the truncated SVD of what is missing (chapter 01):
#
# $$Q = \mathrm{dq}\big(W - s\,B A\big) \qquad\qquad
# s\,B A = U_r\, \mathrm{diag}(\sigma_1, \dots, \sigma_r)\, V_r^\top
# \quad\text{of}\quad W - Q$$


# %%
def loftq_by_hand(W, r, rounds=5):
    update, errors = np.zeros_like(W), []
    for _ in range(rounds):
        Q = quantize_weight(W - update).dequantize()
        U, sigma, Vt = np.linalg.svd(W - Q, full_matrices=False)
        update = U[:, :r] * sigma[:r] @ Vt[:r]
        errors.append(np.linalg.norm(W - Q - update) / np.linalg.norm(W))
    return errors


by_hand = loftq_by_hand(W, 8)
*_, errors = loftq(W, 8)
assert np.allclose(by_hand, errors[1:], rtol=1e-3)
print("error of Q alone:", round(errors[0], 4), " by rounds:", np.round(errors[1:], 4))

# %% [markdown]
# How much is that? Below, the error with factors as a share of that without, for two real matrices
# and for one of random normal numbers:

# %%
kinds = {
    "query, layer 3": W,
    "output, layer 5": matrices["encoder.layer.5.output.dense.weight"],
    "random normal": rng.standard_normal((384, 384)).astype("f4"),
}
share = {}
for name, M in kinds.items():
    for r in (8, 64):
        *_, errors = loftq(M, r)
        share[name, r] = np.array(errors[1:]) / errors[0]
        print(f"{name:16} r = {r:2}:", ", ".join(f"{part:.3f}" for part in share[name, r]))
d = 384
print(f"noise at r = 8, from its largest singular value: {math.sqrt(1 - 8 * 4 * d / d**2):.3f}")

# %% [markdown]
# * **At $r = 8$ one round takes back 4 % of the error of the query matrix**, five rounds 11 %. At
#   $r = 64$ five rounds take back 38 %.
# * **That is what noise gives.** Rounding errors are nearly independent, so their matrix has no
#   low-rank structure (exercise 2): the query matrix does no better than a random one, round by
#   round. Where large weights stand out, as in the output matrix, the first directions hold more.
# * **Factors cost bits.** At $r = 8$ a 384 x 384 matrix has 6,144 numbers beside its 147,456. In
#   float32 that is 1.33 bits a weight. `q4_1` spends half a bit to take back 14 %.

# %%
first, last = share["query, layer 3", 8][[0, -1]]
assert abs(first - share["random normal", 8][0]) < 0.01 and 0.02 < 1 - first < 0.06
assert 0.08 < 1 - last < 0.13 and 0.35 < 1 - share["query, layer 3", 64][-1] < 0.42
assert share["output, layer 5", 8][0] < first - 0.03
factors = 32 * 8 * (384 + 384) / 384**2
saved = 1 - lost["q4_1"] / lost["nf4"]
print(f"factors of r = 8: {factors:.2f} bits a weight; q4_1 takes back {saved:.0%} with 0.5")
assert abs(factors - 1.33) < 0.01 and abs(saved - 0.14) < 0.01

# %% [markdown]
# ## Does the better start end better?
#
# The table above has both starts. LoftQ's paper reports large gains after fine-tuning, the largest
# at two bits. There is a catch in such a comparison: LoftQ also starts with both factors away from
# zero, and that alone changes a training (chapter 03). So the figure has a control: LoftQ's factors
# for NF4 over $W - s\,B A$ *unrounded*, which is $W$ exactly. What LoftQ gains there is no repair.

# %%
for name in ("float32", "nf4", "nf3", "nf2", "int2"):
    mean, error = four_bits_tables.gap(rows, (name, "LoftQ"), (name, "B = 0"))
    before = [f"{100 * found[name, start][1]:.1f} %" for start in ("B = 0", "LoftQ")]
    print(f"{name:8} upright before: {before[0]} -> {before[1]};", end=" ")
    print(f"turned after: LoftQ minus B = 0: {mean:+.1f} +- {error:.1f}")
    assert abs(mean) < 2 * error  # no difference that five seeds could show
assert 0.03 < found["nf2", "LoftQ"][1] - found["nf2", "B = 0"][1] < 0.06
assert 0.85 < found["nf2", "LoftQ"][0] / found["nf2", "B = 0"][0] < 0.9

# %% [markdown]
# * **Before training LoftQ is worth having where the error is large**: at two bits four more upright
#   digits of a hundred are right, though only an eighth of the error is gone.
# * **After training nothing of it is left to see.** No base ends better from LoftQ's start by as
#   much as two standard errors, nor does the control. The paper's gain at two bits does not
#   reproduce here, on a small network and a task whose new part outweighs what rounding spoiled.
#
# > **What to remember**
# >
# > * NF4's levels are quantiles of the normal distribution, 7 below zero and 8 above; a block of 64
# >   shares a scale. With its scale a weight has 4.5 bits, with double quantisation 4.127.
# > * On real weights NF4 loses 15 to 24 % less than even levels with the same blocks. Even levels in
# >   blocks of 32 (`q4_0`) lose less than NF4 at the same 4.5 bits on MiniLM: **levels and blocks
# >   are two choices**, and NF4 is not optimal in either.
# > * QLoRA is LoRA with $\mathrm{dq}(W)$ in the place of $W$, a constant. Backward dequantises
# >   again: memory is saved, time is not. What is not rounded (embeddings) stays as large as it was.
# > * An update cannot be merged into four bits: it is smaller than the gaps.
# > * LoftQ starts nearer to $W$, as much as an SVD finds in noise: 11 % of the error at $r = 8$.
# > * On the digits a base in four bits, or in two, trained as well as one in float32, from either
# >   start. That need not carry over to a task that lives on what the base knows.
#
# **Next.** [Chapter 15](15_parallel.ipynb) shares a training step among threads and machines.
#
# ## Exercises
#
# Replace `None` and run the cell; it says whether you are right. Solutions are in
# [solutions/14_quantization.ipynb](solutions/14_quantization.ipynb).
#
# **1. Derive: bits a weight.** Codes of `code` bits, a scale of `scale` bits for each `block` of
# weights, and one number of `second` bits for each `group` of scales. How many bits is a weight?

# %%
answer = None  # your turn: lambda code, block, scale, group, second: ...
ch14.bits(answer)

# %% [markdown]
# **2. Derive: what an SVD finds in noise.** The largest singular value of an $m \times n$ matrix of
# independent numbers with variance 1 is about $\sqrt{m} + \sqrt{n}$. Which share of its energy,
# the sum of all squares, do the first $r$ directions hold at most?

# %%
answer = None  # your turn: lambda r, m, n: ...
ch14.noise(answer)

# %% [markdown]
# **3. Change the quantisation: better levels.** Write a function that takes many values in
# $[-1, 1]$, weights divided by the absmax of their block, and returns 16 levels with a smaller
# squared error than NF4's. Keep $-1$, 0 and 1. (For given borders, which number is best between
# two of them? For given levels, where is the border?)

# %%
answer = None  # your turn: a function of values (n,) that returns 16 ascending levels
ch14.better_levels(answer)

# %% [markdown]
# **4. Measure: what shorter blocks are worth.** With normal weights, what is the longest block, a
# power of two, at which *even* levels lose no more than NF4's do with blocks of 64? Guess from the
# picture of errors, then measure with `four_bits.block_error`.

# %%
answer = None  # your turn: an integer
ch14.equal_block(answer)

# %% [markdown]
# <details><summary>Sources</summary>
#
# Dettmers et al. 2023, QLoRA, arXiv:2305.14314 (NF4, double quantisation). Li et al. 2023, LoftQ,
# arXiv:2310.08659. Yoshida 2023, NF4 Isn't Information Theoretically Optimal (and that's Good),
# arXiv:2306.06965 (how often its codes are used, and levels for a given block length).
#
# </details>
