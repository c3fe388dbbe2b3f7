# %% [markdown]
# # What are dA and dB, and why is dW never formed?
#
# A LoRA layer adds `scaling * B A` to a frozen weight and trains only `A` and `B`. Everything people say about it, that
# it is cheap, that `B` must start at zero, that `lora_alpha / r` keeps things stable, that merging is free, is a
# statement about one forward line and three gradients. This chapter derives them and measures each statement.

# %%
import inspect
import timeit
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
from threadpoolctl import threadpool_limits

from lorabook import LoRALinear, environment, memory_table, plotting
from lorabook.adapters.lora import merging_is_cheaper
from lorabook.data import planted
from lorabook.gradcheck import check_layer, complex_step, relative_error
from lorabook.layers import Linear
from lorabook.optim import SGD, AdamW
from lorabook.tables import format_table

threadpool_limits(1)  # steadier times: small products do not profit from more threads
plt.rcParams["figure.dpi"] = 110
print(environment.summary())
rng = np.random.default_rng(0)

# %% [markdown]
# ## One forward line, three gradients
#
# `x` is `(N, d_in)`, `W` is `(d_out, d_in)` and frozen, `lora_A` is `(r, d_in)`, `lora_B` is `(d_out, r)`, and
# `scaling` is `lora_alpha / r`. In formulas these three are `A`, `B` and `s`:
#
# ```
# z = x A^T                                                    (N, r)
# y = x W^T + b + s z B^T                                      (N, d_out)
# ```
#
# The recipe of chapter 02, `dL = <dout, dy>`, with `W` and `b` held fixed:
#
# ```
# dy = dx W^T + s dz B^T + s z dB^T,      dz = dx A^T + x dA^T
#
# <dout, s z dB^T>        = <s dout^T z, dB>                   dB = s dout^T z          (d_out, r)
# <dout, s x dA^T B^T>    = <(s dout B)^T x, dA>               dA = (s dout B)^T x      (r, d_in)
# <dout, dx W^T + s dx A^T B^T>                                dx = dout W + s dout B A (N, d_in)
# ```
#
# The piece `s dout B` occurs twice; it is `dz`, the gradient of `z`. That is the whole backward pass:

# %%
print(inspect.getsource(LoRALinear.backward))

# %% [markdown]
# Most of it is bookkeeping: the frozen parameters, the dropout mask `M`, and the two orders of multiplication that we
# come to below. (`dA` is computed as `(x^T dz)^T`: the same numbers, and for large `x` the faster way round.) The check
# is that of chapter 02, with a random `B`: at `B = 0` every `dA` with a factor `B` in it is zero and passes, whatever
# its other factors.

# %%
x, W, b = rng.standard_normal((11, 7)), rng.standard_normal((5, 7)), rng.standard_normal(5)
for order in ("factored", "merged"):
    layer = LoRALinear(Linear(W, b), r=2, lora_alpha=6, init_lora_weights=False, order=order)
    errors = check_layer(layer, x, rng)
    print(order, {name: f"{error:.0e}" for name, error in errors.items()})
    assert errors.keys() == {"x", "lora_A", "lora_B"} and max(errors.values()) < 1e-13

# %% [markdown]
# ## Two windows on the full gradient
#
# Full fine-tuning would use `dW = dout^T x`. Put `z = x A^T` into `dB`, and compare:
#
# ```
# dB = s dW A^T            dA = s B^T dW
# ```
#
# LoRA sees the full gradient through two thin windows: `dB` is what `A` lets through from the right, `dA` is what `B`
# lets through from the left. What lies outside both is invisible to this step, however large it is.

# %%
y, cache = layer.forward(x)
dout = rng.standard_normal(y.shape)
_, grads = layer.backward(dout, cache)
A, B, s = layer.params["lora_A"], layer.params["lora_B"], layer.scaling
dW = dout.T @ x
print(f"dB against s dW A^T: {relative_error(grads['lora_B'], s * dW @ A.T):.0e}")
print(f"dA against s B^T dW: {relative_error(grads['lora_A'], s * B.T @ dW):.0e}")
assert relative_error(grads["lora_B"], s * dW @ A.T) < 1e-13
assert relative_error(grads["lora_A"], s * B.T @ dW) < 1e-13

# %% [markdown]
# ## Why `dW` is never formed
#
# Both ways give the same two gradients. But `dout^T x` is a full-size product, `2 N d_in d_out` multiplications and
# additions (FLOPs), only to be shrunk to `r` columns and rows at once. Shrinking *first*, `dout^T (x A^T)` and
# `(dout B)^T x`, never leaves width `r`. Counting a whole training step, with F = `2 N d_in d_out` for one full-size
# product and P = `2 N r (d_in + d_out)` for one pass through the thin factors:
#
# | | forward | backward | together |
# |---|---|---|---|
# | full fine-tuning | F | 2 F (`dx` and `dW`) | 3 F |
# | LoRA, `dW` formed | F + P | 2 F + P + `4 r d_in d_out` | 3 F + 2 P + `4 r d_in d_out` |
# | LoRA as it is coded | F + P | F + 2 P | 2 F + 3 P |
#
# So for small `r` LoRA saves one of three large products, a third of the work, and no more: `dx` still has to pass
# through `W`. At `3 P = F`, which is `r = d / 6` for a square matrix, the saving is gone. And whoever forms `dW` on the
# way pays more than full fine-tuning does.

# %%
N, d_in, d_out = 1024, 768, 768
full = 6 * N * d_in * d_out
print(f"FLOPs of one step against full fine-tuning, {d_out} x {d_in}, N = {N}:")
for r in (1, 8, 64, 128, 256):
    thin = 2 * N * r * (d_in + d_out)
    formed = (full + 2 * thin + 4 * r * d_in * d_out) / full
    print(f"  r = {r:3}: as coded {(2 * full / 3 + 3 * thin) / full:.3f}   with dW formed {formed:.3f}")
    assert formed > 1
    if r == d_in // 6:
        assert 2 * full / 3 + 3 * thin == full

x32, dout32 = rng.standard_normal((2, N, d_in)).astype("f4")
big = LoRALinear(Linear.random(d_in, d_out, rng), r=8, lora_alpha=16, init_lora_weights=False, order="factored")
A32, B32, z32 = big.params["lora_A"], big.params["lora_B"], x32 @ big.params["lora_A"].T


def milliseconds(work):
    return 1e3 * min(timeit.repeat(work, number=1, repeat=15))


thin_first = milliseconds(lambda: (dout32.T @ z32, (dout32 @ B32).T @ x32))
through_dW = milliseconds(lambda: ((dW := dout32.T @ x32) @ A32.T, B32.T @ dW))
print(f"measured, dA and dB at r = 8: {thin_first:.2f} ms thin first, {through_dW:.2f} ms through dW")

# %% [markdown]
# (The times are those of one run on one machine.) It saves memory, too: `dW` would be an array of the size of `W`, and
# its two Adam moments two more. What the forward pass keeps is another matter, and depends on the order of
# multiplication.
#
# ## Two orders of multiplication
#
# In the forward pass, too, the brackets are ours to place: `x W^T + s (x A^T) B^T` costs P on top of the full-size
# product, `x (W + s B A)^T` costs `2 r d_in d_out` to build the sum first. The second is cheaper when
#
# ```
# 2 N r (d_in + d_out) > 2 r d_in d_out        that is        N > d_in d_out / (d_in + d_out)
# ```
#
# and the rank cancels. `LoRALinear(order="auto")` picks by this rule; with dropout only the first order is possible,
# because the branch then sees another `x` than `W` does. FLOPs are one thing, time is another: thin products use the
# processor badly, and building the sum moves a whole weight through memory. So here are both; the times are those of
# the machine that built this page, run the cell for yours.

# %%
d, r = 768, 64
base = Linear.random(d, d, rng)
orders = [
    LoRALinear(base, r=r, lora_alpha=16, init_lora_weights=False, order=order) for order in ("factored", "merged")
]
sizes = [32, 64, 128, 256, 384, 512, 1024, 2048]
flops, times = [], []
for N in sizes:
    batch = rng.standard_normal((N, d)).astype("f4")
    calls = [partial(layer.forward, batch) for layer in orders]
    rounds = [[timeit.timeit(call, number=1) for call in calls] for _ in range(30)]
    flops.append((N * d * d + r * d * d) / (N * d * d + N * r * 2 * d))
    times.append(np.median([merged / factored for factored, merged in rounds]))  # in turns: a disturbance meets both
threshold = d * d / (d + d)
print(f"threshold N* = {threshold:.0f} for {d} x {d}")
print("N:          ", *(f"{N:6}" for N in sizes))
print("FLOPs ratio:", *(f"{ratio:6.2f}" for ratio in flops))
print("time ratio: ", *(f"{ratio:6.2f}" for ratio in times))
assert not merging_is_cheaper(384, d, d) and merging_is_cheaper(385, d, d)

with plt.style.context(plotting.STYLE):
    figure, axes = plt.subplots(figsize=(7.2, 3.6))
    axes.plot(sizes, flops, "o--", color="#0072B2")
    axes.plot(sizes, times, "s-", color="#D55E00")
    axes.axhline(1, color="#666666", linewidth=1)
    axes.axvline(threshold, color="#666666", linewidth=1, linestyle="--")
    axes.text(threshold * 1.05, max(flops + times), "N* = 384", color="#666666", va="top")
    axes.annotate("FLOPs", (sizes[1], flops[1]), (6, 6), textcoords="offset points", color="#0072B2")
    axes.annotate("time, measured", (sizes[2], times[2]), (6, 6), textcoords="offset points", color="#D55E00")
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, sizes)
    axes.set_xlabel("rows in the batch, N (sequences times tokens)")
    axes.set_ylabel("merged order / factored order")
    axes.set_title(f"Forward pass of a {d} x {d} layer, r = {r}: below 1 the merged order wins")
    plt.show()

# %% [markdown]
# The merged order has a price in memory: `W + s B A` is kept from the forward pass until backward, one array of the
# size of `W` per layer. The factored order keeps `z = x A^T` instead, which is small. Here is what eight layers keep,
# apart from their parameters:

# %%
d, r, N = 1024, 8, 600
kept = {}
for order in ("factored", "merged", "auto"):
    layers = [LoRALinear(Linear.random(d, d, rng), r=r, lora_alpha=16, order=order) for _ in range(8)]
    own = {id(array) for layer in layers for array in layer.params.values()}
    y, arrays = rng.standard_normal((N, d)).astype("f4"), {}
    for layer in layers:
        y, cache = layer.forward(y)
        arrays |= {id(array): array for array in cache if array is not None and id(array) not in own}
    kept[order] = sum(array.nbytes for array in arrays.values())
    print(f"order = {order:8}: {kept[order] / 1e6:.1f} MB kept for backward")
assert kept["factored"] == 4 * 8 * N * (d + r)  # x and z of each layer
assert kept["merged"] == kept["auto"] == 4 * 8 * (N * d + d * d)  # x and W + s B A: here N > N* = 512

# %% [markdown]
# So `order="auto"` looks at the FLOPs only. Where memory is short, ask for `order="factored"`.
#
# ## Why `B = 0`
#
# At the start the model should be the pretrained model: `s B A = 0`. And it should be able to learn. The two windows
# say what each choice does:
#
# * `A` random, `B = 0`: `dA = s B^T dW = 0`, but `dB = s dW A^T` is not. `B` moves first, then `A` can.
# * `A = 0`, `B` random: the mirror image. It learns too, below more slowly; loralib and PEFT start their *embedding*
#   adapters this way.
# * both zero: both gradients are zero, now and for ever.
# * both random: it learns, but the model was changed before the first example.
#
# One regression problem with a planted update, 200 steps of plain gradient descent:

# %%
problem = planted(d_out=24, d_in=32, rank=4, n=512, condition=3)
x, N = problem.x, len(problem.x)
plain = x @ problem.weight.T
rows = []
for name, zero in (("A random, B = 0", ["lora_B"]), ("A = 0, B random", ["lora_A"]),
                   ("both zero", ["lora_A", "lora_B"]), ("both random", [])):  # fmt: skip
    layer = LoRALinear(Linear(problem.weight), r=4, lora_alpha=4, init_lora_weights=False, order="factored")
    for factor in zero:
        layer.params[factor][...] = 0
    row, optimizer = {"start": name}, SGD(lr=0.1)
    for step in range(201):
        y, cache = layer.forward(x)
        _, grads = layer.backward((y - problem.y) / N, cache)
        if step == 0:
            row |= {"same bits": np.array_equal(y, plain), "first": np.sum((y - problem.y) ** 2)}
            row |= {name: np.linalg.norm(grad) for name, grad in grads.items()}
        row["last"] = np.sum((y - problem.y) ** 2)
        optimizer.step(layer.trainable_params(), grads)
    rows.append(row)
columns = {
    "start": lambda row: row["start"],
    "output same bits": lambda row: "yes" if row["same bits"] else "no",
    "|dA|": lambda row: f"{row['lora_A']:.3f}",
    "|dB|": lambda row: f"{row['lora_B']:.3f}",
    "loss, start": lambda row: f"{row['first']:.1f}",
    "loss, 200 steps": lambda row: f"{row['last']:.1f}",
}
print(format_table(rows, columns))
assert [row["same bits"] for row in rows] == [True, True, True, False]
assert rows[0]["lora_A"] == 0 < rows[0]["lora_B"] and rows[1]["lora_B"] == 0 < rows[1]["lora_A"]
assert rows[2]["lora_A"] == rows[2]["lora_B"] == 0 and rows[2]["first"] == rows[2]["last"]
assert rows[3]["first"] > 1.1 * rows[0]["first"]
assert all(row["last"] < 0.5 * row["first"] for row in rows if row["start"] != "both zero")

# %% [markdown]
# "Same bits" is meant literally: adding an exact zero changes nothing, so a fresh adapter reproduces the base model to
# the last bit, not merely closely. How much two random factors would disturb a model grows with the rank: an entry of
# `B A` is a sum of `r` products, so its standard deviation is `sqrt(r)` if all entries of `A` and `B` have standard
# deviation 1, as in write-ups that fill both with `randn`.

# %%
for r in (1, 8, 64):
    entries = rng.standard_normal((400, r)) @ rng.standard_normal((r, 400))
    print(f"r = {r:2}: standard deviation of B A = {entries.std():5.2f}, sqrt(r) = {r**0.5:5.2f}")
    assert abs(entries.std() / r**0.5 - 1) < 0.1

# %% [markdown]
# ## What `lora_alpha / r` does
#
# `scaling` multiplies the update, nothing else. `lora_alpha` is a knob for its size; dividing by `r` is meant to make
# one `lora_alpha` (and one learning rate) serve every rank. Does it? Take the very first step, where everything can be
# worked out. Plain gradient descent moves `B` by `-lr * dB`, which lowers the loss by `lr * |dB|^2` (the loss is linear
# in the step here), and with the usual start, where entries of `A` have variance `1 / (3 d_in)`,
#
# ```
# average of |dB|^2 = s^2 r |dW|^2 / (3 d_in)
# ```
#
# With `s = lora_alpha / r` that falls like `1 / r`: a larger rank learns *more slowly*. With
# `s = lora_alpha / sqrt(r)`, rank-stabilised LoRA (`use_rslora=True`), it does not depend on `r`. AdamW, which nearly
# everyone uses, is another matter: its first step moves every entry of `B` by the same `lr`, however small its
# gradient. Measured, 20 draws of `A` for each point:

# %%
d_in, d_out, N, lr = 64, 48, 64, 1e-3
base = Linear.random(d_in, d_out, rng).to(np, "float64")
x, dout = rng.standard_normal((N, d_in)), rng.standard_normal((N, d_out)) / N
ranks, draws = [1, 2, 4, 8, 16, 32], 20
drop, move = {}, {}  # of the loss; of the outputs, root mean square
for optimizer in (SGD, AdamW):
    for use_rslora in (False, True):
        for r in ranks:
            drops, moves = [], []
            for seed in range(draws):
                layer = LoRALinear(base, r=r, lora_alpha=16, use_rslora=use_rslora, rng=seed, order="factored")
                before, cache = layer.forward(x)
                _, grads = layer.backward(dout, cache)
                optimizer(lr).step(layer.trainable_params(), grads)
                change = layer.forward(x)[0] - before
                drops.append(-np.sum(dout * change))
                moves.append(np.sqrt(np.mean(change**2)))
            drop[optimizer, use_rslora, r] = np.mean(drops)
            move[optimizer, use_rslora, r] = np.mean(moves)

names = {False: "lora_alpha / r", True: "lora_alpha / sqrt(r)"}
dW = dout.T @ x
formula = [lr * (16 / r) ** 2 * r * np.sum(dW**2) / (3 * d_in) for r in ranks]
for r, predicted in zip(ranks, formula, strict=True):
    print(f"r = {r:2}, SGD, alpha / r: loss drop {drop[SGD, False, r]:.5f}, formula {predicted:.5f}")
    assert abs(drop[SGD, False, r] / predicted - 1) < 0.15

with plt.style.context(plotting.STYLE):
    figure, panels = plt.subplots(1, 2, figsize=(9.6, 3.8), sharey=True)
    for axes, optimizer in zip(panels, (SGD, AdamW), strict=True):
        for use_rslora, color, marker in ((False, "#D55E00", "o"), (True, "#0072B2", "s")):
            values = [drop[optimizer, use_rslora, r] / drop[optimizer, use_rslora, 1] for r in ranks]
            axes.plot(ranks, values, marker + "-", color=color)
            grows = optimizer is AdamW and use_rslora
            place = {"xytext": (-8, 4), "ha": "right"} if grows else {"xytext": (2, 8), "ha": "left"}
            axes.annotate(names[use_rslora], (8, values[3]), textcoords="offset points", color=color, **place)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        axes.set_xticks(ranks, ranks)
        axes.set_yticks([1 / 32, 1 / 8, 1 / 2, 2, 8], ["1/32", "1/8", "1/2", "2", "8"])
        axes.set_xlabel("rank r")
        axes.set_title(f"First step of {optimizer.__name__}")
    panels[0].set_ylabel("loss drop, relative to r = 1")
    plt.show()

# %%
rows = []
for optimizer, use_rslora in dict.fromkeys(key[:2] for key in drop):
    slopes = [
        np.polyfit(np.log(ranks), np.log([table[optimizer, use_rslora, r] for r in ranks]), 1)[0]
        for table in (drop, move)
    ]
    rows.append({"optimizer": optimizer.__name__, "scaling": names[use_rslora], "drop": slopes[0], "move": slopes[1]})
columns = {
    "first step of": lambda row: row["optimizer"],
    "scaling": lambda row: row["scaling"],
    "loss drop ~ r^": lambda row: f"{row['drop']:+.2f}",
    "output change ~ r^": lambda row: f"{row['move']:+.2f}",
}
print(format_table(rows, columns))
for row, expected in zip(rows, ((-1, -1.5), (0, -0.5), (0, -0.5), (0.5, 0)), strict=True):
    assert abs(row["drop"] - expected[0]) < 0.15 and abs(row["move"] - expected[1]) < 0.2

# %% [markdown]
# So the answer depends on the optimizer. Under SGD it is `lora_alpha / sqrt(r)` that makes the loss drop independent of
# the rank. Under AdamW each of the `r` columns of `B` gives a push of the same size that lowers the loss, `r` pushes in
# all, and it is `lora_alpha / r` that makes their sum independent of `r` (the reason the first author of LoRA gives).
# But the outputs as a whole, where the pushes add up like random numbers, change about equally at all ranks with
# `lora_alpha / sqrt(r)`. Both conventions have a case, and a first step is not a training run.
#
# What is certain is the practical trap. The default `lora_alpha` of a library was chosen with some rank in mind, and
# who changes `r` alone changes the multiplier:

# %%
for r, lora_alpha, use_rslora in ((8, 16, False), (64, 16, False), (64, 8, False), (64, 8, True)):
    layer = LoRALinear(Linear.random(64, 64, rng), r=r, lora_alpha=lora_alpha, use_rslora=use_rslora)
    print(f"r = {r:2}, lora_alpha = {lora_alpha:2}, use_rslora = {use_rslora!s:5}: scaling = {layer.scaling:.3f}")
assert layer.scaling == 1

# %% [markdown]
# ## Which way round is A?
#
# Every library stores the same two factors, but not the same way round:
#
# | source | A | B | branch | multiplier |
# |---|---|---|---|---|
# | the paper, loralib, PEFT, this book | `(r, d_in)` | `(d_out, r)` | `x A^T B^T` | `alpha / r` |
# | LLMs-from-scratch (Raschka) | `(d_in, r)` | `(r, d_out)` | `x A B` | `alpha / r` |
# | unsloth, in its derivation | `(d_in, r)` | `(r, d_out)` | `x A B` | `alpha / r` |
# | mlx-lm | `(d_in, r)` | `(r, d_out)` | `x a b` | `scale`, 20 by default |
# | minLoRA | `(r, d_in)` | `(d_out, r)` | `x (W + s B A)^T` | `alpha / r`, alpha 1 by default |
# | RunLoRA | `(d_in, r)` | `(r, d_out)` | `x A B` | none in the formulas |
#
# A sentence on each trap:
#
# * **`A B` or `B A`**: with a square weight both products have the right shape; a forgotten transpose raises no error.
# * **loralib**: `eval()` merges and `train()` subtracts the update again, silently; its default `lora_alpha` is 1.
# * **LLMs-from-scratch**: older copies multiply by `alpha`, not `alpha / r`. And `A` is filled by a routine that takes
#   the *second* size as the number of inputs; for `(d_in, r)` that is `r`, so `A` starts much larger (next cell).
# * **unsloth**: the comment with the derivation leaves the scaling out and the code transposes PEFT's factors on entry;
#   copy the comment, and both are missing.
# * **mlx-lm**: `scale` multiplies the update as it is. The same adapter in PEFT has `lora_alpha = scale * r`.
# * **minLoRA**: with its defaults, rank 4 and alpha 1, the update is multiplied by 0.25. For embeddings it swaps the
#   sizes of both factors, and then the start of `A` has the same problem as above.
# * **RunLoRA**: it keeps `W` itself the other way round, `(d_in, d_out)`.

# %%
d_in, r = 768, 16
print(f"bound of A with d_in = {d_in} inputs: {d_in**-0.5:.3f}; with r = {r} taken for the inputs: {r**-0.5:.3f}")
print(
    f"that is {(d_in / r) ** 0.5:.1f} times larger, and {d_in / r:.0f} times in A^T A, which the first update contains"
)
assert abs((d_in / r) ** 0.5 - 6.93) < 0.01 and d_in / r == 48

a, b, x = rng.standard_normal((64, 4)), rng.standard_normal((4, 64)), rng.standard_normal((5, 64))  # the other way
layer = LoRALinear(Linear(np.zeros((64, 64))), r=4, lora_alpha=4)
layer.params["lora_A"], layer.params["lora_B"] = a.T, b.T
print("transposed on entry, same output:", np.allclose(layer.forward(x)[0], x @ a @ b))
print("a @ b added to W without a transpose, no error, same output:", np.allclose(x @ (a @ b).T, x @ a @ b))
assert np.allclose(layer.forward(x)[0], x @ a @ b) and not np.allclose(x @ (a @ b).T, x @ a @ b)

# %% [markdown]
# ## What merging costs
#
# `merge()` puts `W + s B A` in the place of `W`: `2 r d_in d_out` FLOPs, once, as many as the branch costs on N* rows.
# From then on the layer is an ordinary linear layer, neither slower nor faster than before it was adapted. The result
# is the same function up to rounding, not the same bits:

# %%
d = 512
for dtype, allowed in (("float64", 1e-12), ("float32", 2e-6)):
    W = (rng.standard_normal((d, d)) / d**0.5).astype(dtype)
    x = rng.standard_normal((64, d)).astype(dtype)
    layer = LoRALinear(Linear(W.copy()), r=8, lora_alpha=16, init_lora_weights=False, order="factored")
    before = layer.forward(x)[0]
    layer.merge()
    merged, error = layer.params["weight"], relative_error(layer.forward(x)[0], before)
    print(f"{dtype}: merged against unmerged {error:.0e}", end="")
    assert layer.merged and error < allowed

    layer.unmerge()
    kept = np.array_equal(layer.params["weight"], W) and np.array_equal(layer.forward(x)[0], before)
    lost = np.mean(merged - layer.delta_weight() != W)
    print(f";  unmerge restores every bit: {kept};  subtracting the update misses {lost:.0%} of the entries")
    assert kept and lost > 0.1

half = merged.astype("f2").astype("f4")
print(f"float32 merge stored as float16: {relative_error(x @ half.T, x @ merged.T):.0e}")

# %% [markdown]
# `W + D - D` is not `W` in floating point: the sum was rounded, and the rounding stays. So a base model that has once
# been merged and unmerged that way is no longer the base model. `LoRALinear` keeps the array `W` while it is merged and
# puts it back; the price is memory for a second weight as long as the layer is merged. The last line is what users meet
# as "my merged model answers differently": a weight stored in half precision is rounded far more coarsely than the
# merge itself.
#
# ## What is saved, what is not
#
# A `d x d` matrix gets `2 d r` parameters instead of `d^2`. Over a whole model, with `L` adapted square matrices,
# `2 L d r`. Against the counts that the LoRA paper prints:

# %%
models = [
    {"model": "GPT-3, q and v", "L": 192, "d": 12288, "r": 1, "paper": "4.7M"},
    {"model": "GPT-3, q and v", "L": 192, "d": 12288, "r": 8, "paper": "37.7M"},
    {"model": "RoBERTa-base, q and v", "L": 24, "d": 768, "r": 8, "paper": "0.3M"},
    {"model": "GPT-2 medium, q and v", "L": 48, "d": 1024, "r": 4, "paper": "0.35M"},
    {"model": "GPT-2 large, q and v", "L": 72, "d": 1280, "r": 4, "paper": "0.77M"},
]
for row in models:
    row["count"] = 2 * row["L"] * row["d"] * row["r"]
columns = {name: lambda row, name=name: str(row[name]) for name in ("model", "L", "d", "r")}
columns |= {"2 L d r": lambda row: f"{row['count']:,}", "the paper prints": lambda row: row["paper"]}
print(format_table(models, columns))
assert [row["count"] for row in models] == [4_718_592, 37_748_736, 294_912, 393_216, 737_280]

# %% [markdown]
# The first three agree. The two GPT-2 numbers do not follow from the formula (393,216 is not 0.35M, and 737,280 is not
# 0.77M); if you recompute the paper's table, it is not your mistake.
#
# "10,000 times fewer parameters" is about what is *trained and stored per task*. The frozen weight still has to be in
# memory, and `dx` still goes through it. Here is one query matrix of GPT-3 in float32, by the library's arithmetic (the
# weight is a stand-in that takes no memory):

# %%
query = LoRALinear(Linear(np.broadcast_to(np.float32(0), (12288, 12288))), r=4)
table = memory_table(query)
for row in table:
    row |= {name: f"{row[name] / 1e6:,.1f} MB" for name in ("weights", "gradients", "optimizer", "total")}
columns = {name: lambda row, name=name: row[name] for name in ("method", "weights", "gradients", "optimizer", "total")}
columns["trained"] = lambda row: f"{row['trained']:,} ({row['share']:.2%})"
print(format_table(table, columns))
trained, everything = 2 * 192 * 12288 * 4, 175e9
print(f"whole model: weights in float16 {everything * 2 / 1e9:.0f} GB, r = 4 adapter {trained * 2 / 2**20:.0f} MiB")
assert table[0]["trained"] / table[1]["trained"] == 1536
assert everything * 2 == 350e9 and round(trained * 2 / 2**20) == 36

# %% [markdown]
# 1,536 times fewer trained parameters, but only 4 times less memory: weights stay, gradients and the optimizer's two
# arrays go. It is the same in the paper: 1.2 TB of training memory for GPT-3 became 350 GB, which is the size of its
# frozen weights in float16, while the file per task became 10,000 times smaller, 35 MB. (What the forward
# pass keeps comes on top: the inputs of each layer, as before, and in the merged order its `W + s B A`.)
#
# ## What to remember
#
# * `dB = s dout^T (x A^T)`, `dA = (s dout B)^T x`, `dx = dout W + (s dout B) A`. The first two are `s dW A^T` and
#   `s B^T dW`, but `dW` is never formed: that product is the third of the work that LoRA saves.
# * At any rank, `x (W + s B A)^T` costs less than `x W^T + s (x A^T) B^T` when N > `d_in d_out / (d_in + d_out)`,
#   but keeps one array of the size of `W` per layer until backward.
# * One factor must be zero (the model starts unchanged, to the bit), and not both (nothing would ever move).
# * `lora_alpha` is only a multiplier. `lora_alpha / r` keeps AdamW's first loss drop independent of `r`,
#   `lora_alpha / sqrt(r)` that of SGD. Change `r`, and look at `scaling`.
# * Merging is exact up to rounding and costs nothing at inference; undo it by keeping `W`, never by subtracting.
# * LoRA shrinks gradients, optimizer state and files. It does not shrink the weights or make the model faster.
#
# ## Exercises
#
# Replace `None`, run the cell, then run the cell below it. Solutions are in `solutions/03_lora_layer.ipynb`.
#
# **1. A gate.** Some variants put a trainable vector `g` of `r` numbers between the factors:
# `y = x W^T + s ((x A^T) * g) B^T`. Derive `dg` from `dout`, `z = x A^T`, `B` and `s`. (If an entry of `g` goes to
# zero, a rank disappears: this is how SoRA and AdaLoRA choose ranks.)

# %%
answer = None  # your turn: lambda dout, z, B, s: ...

# %%
if answer is None:
    print("not answered yet")
else:
    z, B, g, dout = (rng.standard_normal(shape) for shape in ((11, 2), (5, 2), (2,), (11, 5)))
    exact = complex_step(lambda g: np.sum(dout * (3.0 * (z * g) @ B.T)), g)
    error = relative_error(answer(dout, z, B, 3.0), exact)
    assert error < 1e-11, f"not dg: relative error {error:.0e}"
    print("right")

# %% [markdown]
# **2. Count.** SmolLM2-135M has 30 layers. Its query matrix is 576 x 576, its value matrix 192 x 576 (d_out x d_in).
# How many parameters does LoRA with r = 8 on query and value train?

# %%
answer = None  # your turn: an integer

# %%
if answer is None:
    print("not answered yet")
else:
    shapes = 30 * [(576, 576), (192, 576)]
    factors = [LoRALinear(Linear(np.broadcast_to(0.0, shape)), r=8).trainable_params() for shape in shapes]
    assert answer == sum(array.size for pair in factors for array in pair.values()), "not the size of all factors"
    print("right")

# %% [markdown]
# **3. Convert.** An mlx-lm adapter holds `lora_a (d_in, r)`, `lora_b (r, d_out)` and `scale = 20`. What are `lora_A`,
# `lora_B` and `lora_alpha` of the same adapter here? Answer with a function that returns the three.

# %%
answer = None  # your turn: lambda lora_a, lora_b, scale: (..., ..., ...)

# %%
if answer is None:
    print("not answered yet")
else:
    lora_a, lora_b, x = rng.standard_normal((9, 3)), rng.standard_normal((3, 5)), rng.standard_normal((4, 9))
    lora_A, lora_B, lora_alpha = answer(lora_a, lora_b, 20.0)
    assert lora_A.shape == (3, 9) and lora_B.shape == (5, 3), "expected lora_A (r, d_in) and lora_B (d_out, r)"
    layer = LoRALinear(Linear(np.zeros((5, 9))), r=3, lora_alpha=lora_alpha)
    layer.params["lora_A"], layer.params["lora_B"] = lora_A, lora_B
    ratio = np.linalg.norm(layer.forward(x)[0]) / np.linalg.norm(20 * x @ lora_a @ lora_b)
    same = relative_error(layer.forward(x)[0], 20 * x @ lora_a @ lora_b) < 1e-13
    assert same, f"not the same outputs; ours are {ratio:.2f} times as long"
    print("right")

# %% [markdown]
# **4. Double `lora_alpha`.** By what factor must you multiply the learning rate so that the update `s B A` after
# the first step stays the same, with SGD and with AdamW?

# %%
answer = None  # your turn: (factor for SGD, factor for AdamW)

# %%
if answer is None:
    print("not answered yet")
else:
    x, dout = rng.standard_normal((11, 7)), rng.standard_normal((11, 5))
    for optimizer, factor in zip((SGD, AdamW), answer, strict=True):
        updates = []
        for lora_alpha, lr in ((4, 1e-3), (8, 1e-3 * factor)):
            layer = LoRALinear(Linear(np.zeros((5, 7))), r=2, lora_alpha=lora_alpha)
            _, grads = layer.backward(dout, layer.forward(x)[1])
            optimizer(lr).step(layer.trainable_params(), grads)
            updates.append(layer.delta_weight())
        assert relative_error(*updates) < 1e-6, f"{optimizer.__name__}: with this factor the update is another one"
    print("right")

# %% [markdown]
# ## Sources
#
# E. J. Hu et al., *LoRA: Low-Rank Adaptation of Large Language Models*, 2021, arXiv:2106.09685. D. Kalajdzievski,
# *A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA*, 2023, arXiv:2312.03732. D. Cherniuk et al.,
# *RunLoRA*, 2023, arXiv:2312.03415. Why `alpha / r`: E. J. Hu in github.com/microsoft/LoRA, issue 101. The table of
# libraries: the source code of loralib, PEFT, LLMs-from-scratch, unsloth, mlx-lm, minLoRA and RunLoRA, read in 2026.
