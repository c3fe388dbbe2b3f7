# %% [markdown]
# # Why does LoRA make data parallelism nearly free?
#
# To share a training step among several workers, give each a part of the batch and add up the gradients. The workers
# may be threads of one machine or processes on many. This chapter asks what is shared, what it costs, and why the cost
# is small for LoRA. Timings here are of one run on one machine that may have had other work to do: read the ratios, and
# run the chapter again before you believe them. Nothing below depends on them.

# %%
import contextlib
import functools
import inspect
import math
import statistics
import time

import matplotlib.pyplot as plt
import numpy as np
from threadpoolctl import threadpool_limits

from lorabook import LoRAConfig, LoRALinear, environment, inject, plotting
from lorabook.adapters.lora import merging_is_cheaper, shared_weights
from lorabook.adapters.memory import count
from lorabook.bench.case import SIX, Case
from lorabook.bench.products import products
from lorabook.gradcheck import relative_error
from lorabook.layers import Linear, add_grads
from lorabook.models.bert import BertForSequenceClassification, BertModel
from lorabook.parallel import Workers, cores, cut, tokens
from lorabook.tables import format_table

plt.style.use(plotting.STYLE)
plt.rcParams["figure.dpi"] = 96
plt.ion()  # figures appear below their cell
threadpool_limits(1, "blas")  # one BLAS thread, unless a cell says otherwise
print(environment.summary())
print(f"cores that this process may use: {cores()}")
rng = np.random.default_rng(0)

# %% [markdown]
# ## A batch can be cut
#
# The loss of a batch is a mean over its `N` rows. Cut the rows into shards with `n_1 + n_2 + ... = N` of them, and let
# `L_k` be the mean over shard k. Then
#
# ```
# L = sum_k (n_k / N) L_k          grad L = sum_k (n_k / N) grad L_k
# ```
#
# Every shard can be computed on its own. That needs two things from the code. The model must be read-only meanwhile:
# here `forward` and `backward` store nothing on a layer, what backward needs is in the cache that forward returned, so
# several passes may be under way over one model. And `n_k / N`, the `share`, must go in at the top, as the gradient of
# the loss. (Where labels are missing, the mean is over the labels that count, and so are the `n_k`: exercise 1.)

# %%
print(inspect.getsource(Workers.shards))
print(inspect.getsource(Workers.loss_and_grad))

# %% [markdown]
# A small BERT with random weights, LoRA on all six matrices of a block, and 32 texts of 64 tokens. A shard has about
# 512 tokens, here 8 texts:

# %%
CONFIG = {
    "vocab_size": 500, "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 512,
    "max_position_embeddings": 128, "type_vocab_size": 2, "hidden_act": "gelu", "pad_token_id": 0,
}  # fmt: skip
SAVED = ("classifier",)


def random_bert(config):
    """BERT with weights from N(0, 0.02^2) and random adapters on SIX, r = 8."""
    model, draw = BertForSequenceClassification(config, labels=2), np.random.default_rng(0)
    for array in model.named_params().values():
        if array.ndim == 2:
            array[...] = 0.02 * draw.standard_normal(array.shape)
    inject(
        model, LoRAConfig(r=8, lora_alpha=16, target_modules=SIX, modules_to_save=SAVED, init_lora_weights=False), draw
    )
    return model


def batch(B, T):
    return rng.integers(1, CONFIG["vocab_size"], (B, T)), rng.integers(0, 2, B)


model = random_bert(CONFIG)
ids, labels = batch(32, 64)
print("shards:", [(shard.start, shard.stop) for shard in cut(ids)])

results = {}
for n in (1, 2, 3):
    with Workers(n) as workers:
        results[n] = workers.loss_and_grad(model, ids, labels)
whole = model.loss_and_grad(ids, labels)

for n, (loss, grads) in results.items():
    same = loss == results[1][0] and all(np.array_equal(grads[name], results[1][1][name]) for name in grads)
    error = max(relative_error(grads[name], whole[1][name]) for name in grads)
    print(f"workers: {n}, loss {loss:.7f}, bits of 1 worker: {same}; from the whole batch at once {error:.0e}")
    assert same and grads.keys() == whole[1].keys() and error < 1e-4

# %% [markdown]
# One, two or three threads give the same bits. The whole batch at once gives the same numbers up to float32 rounding.
#
# ## The order of addition
#
# The same bits are not a matter of course: in floating point `(a + b) + c` is not `a + (b + c)`. `Workers` takes care
# of it in two places. How a batch is cut depends on the batch, not on the number of workers. And the gradients are
# added in the order of the shards, whichever thread is ready first. (With dropout each shard also has a generator of
# its own, `rng.spawn`.) Here are the same four gradients in another order:

# %%
shards = cut(ids)
with shared_weights(model, tokens(ids)):
    parts = [model.loss_and_grad(ids[s], labels[s], None, (s.stop - s.start) / len(ids))[1] for s in shards]


def flat(grads):
    return np.concatenate([grads[name].ravel() for name in sorted(grads)])


rows = np.stack([flat(grads) for grads in parts])  # (shards, n): a row for each shard
in_order = flat(functools.reduce(add_grads, parts, {}))
backwards = flat(functools.reduce(add_grads, parts[::-1], {}))
differ = np.mean(in_order != backwards)
print(f"in order: the bits of Workers: {np.array_equal(in_order, flat(results[1][1]))}")
print(f"backwards: {differ:.0%} of {in_order.size:,} entries differ, by {relative_error(backwards, in_order):.0e}")
assert np.array_equal(in_order, flat(results[1][1])) and differ > 0.05

# %% [markdown]
# A difference of one rounding is harmless in one step. But it grows from step to step, and then no checkpoint, no
# second machine and no bug report can be compared with the first run. Fixing the order costs nothing here.
#
# ## Why shards, and not BLAS threads?
#
# BLAS brings threads of its own: let it share out every matrix product, and leave the batch alone. But a step is more
# than products. Softmax, GELU, layer norm and the residuals are NumPy functions, which use one thread. If the products
# are a share `f` of the time of a step, `p` BLAS threads make it faster by at most `1 / (1 - f + f / p)` (Amdahl).
# Shards share out everything, and a thread keeps what the backward pass needs of 512 tokens at a time, not of a batch.
#
# Each thread then computes with *one* BLAS thread; two levels of threads would fight over the cores. That Python
# threads work at all here is because NumPy lets go of the interpreter while it computes.

# %%
wide = CONFIG | {"hidden_size": 256, "num_hidden_layers": 3, "intermediate_size": 1024}
B, T, p = 16, 128, 2
model_wide, (ids_wide, labels_wide) = random_bert(wide), batch(B, T)


@contextlib.contextmanager
def whole_batch(threads):
    with threadpool_limits(threads, "blas"):
        yield lambda: model_wide.loss_and_grad(ids_wide, labels_wide)


@contextlib.contextmanager
def in_shards(threads):
    with Workers(threads) as workers:
        yield lambda: workers.loss_and_grad(model_wide, ids_wide, labels_wide)


@contextlib.contextmanager
def products_alone():
    def operands(product):
        N, d_in, d_out = product.N, product.d_in, product.d_out
        shapes = {"forward": ((N, d_in), (d_in, d_out)), "dx": ((N, d_out), (d_out, d_in))}
        shapes["dW"] = ((d_out, N), (N, d_in))
        return [rng.standard_normal(shape, dtype="f4") for shape in shapes[product.kind]]

    absorbed = ("2.attention.self.key", "2.attention.self.value")  # the last block makes no keys and values: chapter 05
    needed = [
        product for product in products(wide, Case(batch_size=B, seq_len=T)) if not product.layer.endswith(absorbed)
    ]
    pairs = [operands(product) for product in needed]
    yield lambda: [a @ b for a, b in pairs]


def seconds(way, *arguments):
    with way(*arguments) as function:
        function()
        time.sleep(0.05)  # until BLAS threads that wait for more work have gone to sleep
        start = time.perf_counter()
        function()
        return time.perf_counter() - start


WAYS = {
    "the products with W alone, 1 thread": (products_alone,),
    "whole batch, 1 BLAS thread": (whole_batch, 1),
    f"whole batch, {p} BLAS threads": (whole_batch, p),
    "shards, 1 worker": (in_shards, 1),
    f"shards, {p} workers": (in_shards, p),
}
times = {name: [] for name in WAYS}
for _ in range(5):  # in turn, so that a busy moment of the machine hits all of them
    for name, way in WAYS.items():
        times[name].append(seconds(*way))
median = {name: statistics.median(values) for name, values in times.items()}
base = median["whole batch, 1 BLAS thread"]
columns = {"one step, medians of 5": str, "of the time": lambda name: f"{median[name] / base:.2f}"}
print(format_table(list(WAYS), columns | {"faster by": lambda name: f"{base / median[name]:.2f}"}))
f = median["the products with W alone, 1 thread"] / base
limit = 1 / (1 - f + f / p)
print(f"\nf = {f:.2f} for the products with W: {p} BLAS threads for these make it at most {limit:.2f} times as fast")
print("Only ratios mean anything, and only if the cores had nothing else to do.")

# %% [markdown]
# Shards should be ahead, for they share out more. If they are not, the cores had other work, or there is only one.
# `lorabook bench step` measures a step in a process of its own, and `lorabook bench gemm` the products in both ways.
#
# ## Which contraction order?
#
# The forward pass of LoRA can be computed as `x W^T + s (x A^T) B^T` or as `x (W + s B A)^T`. Count the FLOPs of
# forward and backward for `N` rows; both need the two products with `W`, `4 N d_in d_out`. On top of these
#
# ```
# factored     6 N r (d_in + d_out)                       forward 2, backward 4
# merged       4 N r (d_in + d_out) + 2 r d_in d_out      backward 4; B A once, kept for the backward pass
#
# equal at     N* = d_in d_out / (d_in + d_out)           whatever the rank; d / 2 for a square matrix
# ```
#
# (The idea of choosing is RunLoRA's.) Is `N*` where the times cross? `order` fixes the one or the other:

# %%
r = 8


def flops(N, d_in, d_out, order):
    """FLOPs of forward and backward of LoRALinear for N rows; W is frozen."""
    both = 4 * N * d_in * d_out + 4 * N * r * (d_in + d_out)
    return both + (2 * r * d_in * d_out if order == "merged" else 2 * N * r * (d_in + d_out))


def crossing(N, ratio):
    """Where a curve that ends above 1 goes through 1 for the last time; None if it does not."""
    below = [i for i, value in enumerate(ratio) if value < 1]
    if not below or below[-1] == len(N) - 1:
        return None
    i = below[-1]
    t = (1 - ratio[i]) / (ratio[i + 1] - ratio[i])
    return N[i] * (N[i + 1] / N[i]) ** t


def measure(d_in, d_out, N):
    """Processor time of the factored order over that of the merged one: medians, the orders taking turns."""
    base = Linear.random(d_in, d_out, rng)
    layers = {order: LoRALinear(base, r, 16, init_lora_weights=False, order=order) for order in ("factored", "merged")}
    x, dout = rng.standard_normal((N, d_in), dtype="f4"), rng.standard_normal((N, d_out), dtype="f4")
    times = {order: [] for order in layers}
    for _ in range(21):
        for order, layer in layers.items():
            start = time.thread_time()
            layer.backward(dout, layer.forward(x)[1])
            times[order].append(time.thread_time() - start)
    return statistics.median(times["factored"]) / statistics.median(times["merged"])


ROWS = (32, 64, 128, 256, 512, 1024, 2048)
MATRICES = ((384, 384), (384, 1536))
measured, star = {}, {}
for shape in MATRICES:
    star[shape] = shape[0] * shape[1] / (shape[0] + shape[1])
    measured[shape] = [measure(*shape, N) for N in ROWS]
    assert math.isclose(flops(star[shape], *shape, "factored"), flops(star[shape], *shape, "merged"))
    assert not merging_is_cheaper(0.99 * star[shape], *shape) and merging_is_cheaper(1.01 * star[shape], *shape)
    crossed = crossing(ROWS, measured[shape])
    print(f"{shape[0]} x {shape[1]}: FLOPs equal at N* = {star[shape]:.0f},", end=" ")
    print("times do not cross in this range" if crossed is None else f"times at about N = {crossed:.0f}")

figure, panels = plt.subplots(1, 2, figsize=(9.6, 3.6), sharey=True)
for axes, shape in zip(panels, MATRICES, strict=True):
    N = np.geomspace(ROWS[0], ROWS[-1], 100)
    axes.plot(N, [flops(n, *shape, "factored") / flops(n, *shape, "merged") for n in N], color="#0072B2")
    axes.plot(ROWS, measured[shape], "o-", color="#D55E00")
    axes.axhline(1, color="black", linewidth=0.8)
    axes.axvline(star[shape], color="black", linewidth=0.8, linestyle=":")
    axes.set_xscale("log", base=2)
    axes.set_xticks(ROWS, [str(n) for n in ROWS])
    axes.set(xlabel="rows N", title=f"d_in = {shape[0]}, d_out = {shape[1]}, r = {r}")
    axes.annotate("N*", (star[shape], 0.03), (4, 0), xycoords=("data", "axes fraction"), textcoords="offset points")
    axes.text(0.97, 0.16, "measured", color="#D55E00", ha="right", transform=axes.transAxes)
    axes.text(0.97, 0.08, "by FLOPs", color="#0072B2", ha="right", transform=axes.transAxes)
panels[0].set_ylabel("cost of factored / merged")
panels[0].text(0.03, 0.93, "above 1 merged wins", transform=panels[0].transAxes, va="top")
plt.show()

# %% [markdown]
# The direction is right: few rows want the factors, many rows want `W + s B A`. The size is not, on either side, for
# FLOPs are not all equally fast:
#
# * A product with a side of `r = 8` runs far below the peak: it reads all of `x` or `dout` for few FLOPs. The factored
#   order has more of these. So at large `N` it loses by more than the blue line says.
# * Forming `W + s B A` goes twice over arrays of the size of `W` (`(s B) A`, then `+= W`). In FLOPs that is little, in
#   memory traffic it is not. So at small `N` the merged order loses by more than the blue line says.
#
# Where the two errors balance, the crossing may lie on either side of `N*`, and differs from machine to machine. The
# library decides by FLOPs (`order="auto"`): near `N*` a wrong choice costs little, far from it the choice is right.
#
# With shards there is one thing more. Each shard has fewer rows, but they share the weights. So `shared_weights`
# decides by the rows of all shards, and forms `W + s B A` once a step:

# %%
adapted = [layer for _, layer in model.named_layers() if isinstance(layer, LoRALinear)]
formed = []
for layer in adapted:

    def counted(layer=layer, form=layer.delta_weight):
        formed.append(layer)
        return form()

    layer.delta_weight = counted

with Workers(2) as workers:
    workers.loss_and_grad(model, ids, labels)
once = len(formed)
formed.clear()
for shard in shards:
    model.loss_and_grad(ids[shard], labels[shard])
print(f"{len(adapted)} adapters, {len(shards)} shards: W + s B A is formed {once} times with Workers, ", end="")
print(f"{len(formed)} times by shards on their own")
for layer in adapted:
    del layer.delta_weight
assert once == len(adapted) and len(formed) == len(shards) * (6 + 2)

# %% [markdown]
# (Not 4 times as often: the last block computes its query, attention output and MLP for the first token of each text
# only. Eight rows a shard are far below `N*`, so on their own they would take the factored order.)
#
# ## Several machines: what has to travel
#
# Threads share memory. Processes on several machines do not: each holds the whole model and computes its shards, and
# what has to travel is the gradient of what trains. Nothing else: parameters start equal, and equal gradients keep them
# equal.
#
# ```
# numbers       full: all parameters                 LoRA: sum over adapted matrices of r (d_in + d_out)
# all-reduce    each of p ranks sends, and receives, at least 2 (p - 1) / p times these numbers
# ```
#
# For one square matrix the ratio is `d^2 / (2 r d) = d / (2 r)`: the wider the model, the more LoRA saves. First the
# formula on a model, then three models from the shapes in their papers. The seconds are for a link of 1 Gbit/s, used
# fully in both directions; they are arithmetic, not measurements.

# %%
ITEMSIZE, LINK = 4, 1e9 / 8  # float32; bytes a second


def block(d, d_mlp, gated=False):
    """(d_in, d_out) of a block's matrices, query, key and value apart; gated: an MLP of three matrices."""
    return [(d, d)] * 4 + [(d, d_mlp)] * (1 + gated) + [(d_mlp, d)]


def lora_numbers(layers, matrices, r):
    return layers * sum(r * (d_in + d_out) for d_in, d_out in matrices)


def seconds_to_exchange(numbers, p):
    return 2 * (p - 1) / p * numbers * ITEMSIZE / LINK


d, V = 384, 30522
MODELS = {
    "MiniLM": (6, block(d, 4 * d), 6 * (12 * d**2 + 13 * d) + (V + 512 + 2) * d + 2 * d + d**2 + d),
    "GPT-2 small": (12, [(768, 2304), (768, 768), (768, 3072), (3072, 768)],
                    12 * (12 * 768**2 + 13 * 768) + (50257 + 1024) * 768 + 2 * 768),
    "Llama-7B": (32, block(4096, 11008, gated=True),
                 32 * (4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096) + 2 * 32000 * 4096 + 4096),
}  # fmt: skip
minilm = CONFIG | {"vocab_size": V, "hidden_size": d, "num_hidden_layers": 6, "intermediate_size": 4 * d}
encoder = BertModel(minilm | {"num_attention_heads": 12, "max_position_embeddings": 512})
assert count(encoder.named_params()) == MODELS["MiniLM"][2]
inject(encoder, LoRAConfig(r=8, lora_alpha=16, target_modules=SIX))
assert count(encoder.trainable_params()) == lora_numbers(*MODELS["MiniLM"][:2], 8)

table = []
for name, (layers, matrices, full) in MODELS.items():
    numbers = lora_numbers(layers, matrices, 8)
    table.append({"model": name, "full": full, "lora": numbers})
columns = {"r = 8, all matrices": lambda row: row["model"]}
for kind in ("lora", "full"):
    columns[f"{kind}, MB"] = lambda row, kind=kind: f"{row[kind] * ITEMSIZE / 1e6:,.1f}"
    columns[f"{kind}, 2 ranks"] = lambda row, kind=kind: f"{seconds_to_exchange(row[kind], 2):.3f} s"
    columns[f"{kind}, 8"] = lambda row, kind=kind: f"{seconds_to_exchange(row[kind], 8):.3f} s"
columns["ratio"] = lambda row: f"{row['full'] / row['lora']:.0f}"
print(format_table(table, columns))
ratios = {row["model"]: row["full"] / row["lora"] for row in table}
assert 60 < ratios["MiniLM"] < 75 and 100 < ratios["GPT-2 small"] < 110 and 330 < ratios["Llama-7B"] < 345

# %% [markdown]
# Full fine-tuning of GPT-2 small exchanges for seconds over such a link, LoRA for hundredths of a second. Whether that
# is much depends on the step: what remains for computing is `compute / (compute + exchange)`. For Llama-7B the exchange
# takes minutes a step, with LoRA about a second. Two remarks for honesty:
#
# * LoRA does not make the *computing* much cheaper (chapter 03: two of three products remain). It is the exchange that
#   nearly vanishes, and with it the need for a fast network.
# * A larger batch for each rank, or gradients accumulated over several batches, divides the exchange in either case.
#
# ## The same bits on any number of ranks
#
# An ordinary all-reduce adds in an order that depends on `p`. Below, a ring: each rank first adds up its own shards,
# then each chunk of the numbers goes round and collects the sums. The other way deals out the *columns*: each rank
# receives its columns of every shard's gradient, adds them in the order of the shards, and hands the sums to all.

# %%


def ring(rows, p):
    """Sum of the rows (s, n) as p ranks in a ring compute it: chunk j starts at rank j."""
    own = [np.array_split(functools.reduce(np.add, part), p) for part in np.array_split(rows, p)]
    chunks = [functools.reduce(np.add, [own[(j + i) % p][j] for i in range(p)]) for j in range(p)]
    return np.concatenate(chunks)


def dealt_out(rows, p):
    """The same sum, each rank adding its columns of all rows in order."""
    return np.concatenate([functools.reduce(np.add, columns) for columns in np.array_split(rows, p, axis=1)])


def least(n, p):
    """Numbers that all ranks together receive in the best all-reduce of n."""
    return 2 * (p - 1) * n


def gathered(n, s, p):
    """Numbers that all ranks together receive if s rows are dealt out by columns and the sums handed to all."""
    return (p - 1) * (s + p) * math.ceil(n / p)


n = rows.shape[1]
for p in (1, 2, 3, 4):
    changed = {way.__name__: np.mean(way(rows, p) != in_order) for way in (ring, dealt_out)}
    print(f"p = {p}: entries with other bits than in one process:", {k: f"{v:.0%}" for k, v in changed.items()})
    assert changed["dealt_out"] == 0 and (p == 1) == (changed["ring"] == 0)
for s, p in ((2, 2), (4, 2), (4, 4), (16, 4)):
    factor = gathered(n, s, p) / least(n, p)
    print(f"{s:2} shards on {p} ranks: {factor:.2f} times the numbers of the best all-reduce")
    assert math.isclose(factor, (s / p + 1) / 2, rel_tol=1e-4)

# %% [markdown]
# `lorabook.ranks` works like that: in a step with `s` shards of `n` numbers all ranks together receive
# `(p - 1) (s + p) ceil(n / p)` numbers. With one shard a rank that is the least there is; with `s / p` of them it is
# `(s / p + 1) / 2` times as much. For full fine-tuning that would be a high price for equal bits. For LoRA it is a few
# megabytes. It needs an MPI library (extra `mpi`), and then a run is
#
# ```bash
# pip install -e '.[mpi]'
# mpiexec -n 2 python -m mpi4py -m lorabook train minilm movie-reviews --r 8 --epochs 2 --out runs/two --distributed
# ```
#
# At its end it prints how many bytes a step cost, counted, beside the least and beside full fine-tuning. On one machine
# threads do the same with less: `--workers` says how many.
#
# ## Tried, and not worth it
#
# A step offers many places for a clever trick. Here are some that were tried for this library and left out. A trick
# costs readers of the code something, so it had to make a whole step 5 % faster to stay. First the parts of four of
# them that can be measured in a moment: medians of processor times, the candidates taking turns.


# %%
def compare(**works):
    """{name: processor time in microseconds}"""
    times = {name: [] for name in works}
    for work in works.values():
        work()
    for _ in range(101):
        for name, work in works.items():
            start = time.thread_time()
            work()
            times[name].append(1e6 * (time.thread_time() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def random(*shape):
    return rng.standard_normal(shape, dtype="f4")


x, W, A = random(512, 384), random(384, 384), random(8, 384)
QKV, bordered, A3 = random(3 * 384, 384), np.concatenate([W, A]), random(3 * 8, 384)

print("1. The weights of query, key and value stacked:")
t = compare(three=lambda: [x @ w.T for w in np.split(QKV, 3)], stacked=lambda: x @ QKV.T)
print(f"   stacked {t['stacked']:.0f} us, one after another {t['three']:.0f} us: {t['stacked'] / t['three']:.2f} of it")

print("2. Their factors A stacked:")
t = compare(three=lambda: [x @ a.T for a in np.split(A3, 3)], stacked=lambda: x @ A3.T, W=lambda: x @ W.T)
print(f"   stacked {t['stacked']:.0f} us, one after another {t['three']:.0f} us: {t['stacked'] / t['three']:.2f} of it")
print(f"   saved: {(t['three'] - t['stacked']) / t['W']:.0%} of one product x W^T")
assert t["stacked"] < t["three"]

print("3. W with the border A, so that one product gives x W^T and x A^T:")
t = compare(apart=lambda: (x @ W.T, x @ A.T), bordered=lambda: x @ bordered.T, W=lambda: x @ W.T)
print(
    f"   x A^T adds {t['apart'] / t['W'] - 1:.1%} to x W^T as a product of its own, {t['bordered'] / t['W'] - 1:.1%}",
    end=" ",
)
print(f"as a border, and has {8 / 384:.1%} of its FLOPs")

for N in (128, 512):
    dense = [random(N, 384) for _ in range(3)]
    cut_out = [random(N, 392)[:, :384] for _ in range(3)]
    t = compare(
        dense=lambda: np.multiply(*dense[:2], out=dense[2]),  # noqa: B023
        one=lambda: np.multiply(cut_out[0], dense[1], out=dense[2]),  # noqa: B023
        all=lambda: np.multiply(*cut_out[:2], out=cut_out[2]),  # noqa: B023
    )
    print(
        f"   a * b of ({N}, 384) takes {t['one'] / t['dense']:.1f} times as long if a is cut out of ({N}, 392),",
        end=" ",
    )
    print(f"{t['all'] / t['dense']:.1f} times if all three arrays are")
    assert N > 128 or t["all"] > 1.2 * t["dense"]  # the small arrays stay in the cache, whatever else is running


def starting_at(offset, *shape):
    """Ones whose memory starts `offset` bytes behind a multiple of 64."""
    memory = np.empty(4 * math.prod(shape) + 128, np.uint8)
    start = -memory.ctypes.data % 64 + offset
    array = memory[start : start + 4 * math.prod(shape)].view("f4").reshape(shape)
    array[...] = 1
    return array


print("4. Memory that starts at a multiple of 64 bytes:")
sets = {offset: [starting_at(offset, 128, 384) for _ in range(3)] for offset in (0, 16)}
t = compare(
    on=lambda: np.multiply(*sets[0][:2], out=sets[0][2]), off=lambda: np.multiply(*sets[16][:2], out=sets[16][2])
)
print(f"   a * b of (128, 384), 16 bytes behind it: {t['off'] / t['on']:.1f} times as long")

# %% [markdown]
# What is said of a whole step below was seen once, on one machine (two x86-64 cores with AVX-512), and is not measured
# here.
#
# **1. Stacked weights.** Query, key and value have the same input, so one product of width `3 d` could replace three of
# width `d`. But each of these is large enough already, and a block has 24 of them (counted in units of `d x d`, both
# directions). The price: adapters on query and value but not on key, `W + s B A` inside a slice, a checkpoint with
# other names.
#
# **2. Stacked factors.** The thin products do gain, for `x` is read once and not three times. But what is saved is a
# small part of one of those 24: reckoned from such figures, stacking all that can be would gain a step 1 to 2 %.
#
# **3. Bordered weights.** `[y, z] = x [W + s B A; A]^T`, and on the way back `[dx, dz] = dout [W + s B A, s B]`: the
# thin products ride along in the wide ones, and cost less there. But what comes out has rows of `d + r` numbers. `y` is
# then a view whose rows do not follow each other, every other of them starting inside a cache line. Every bias,
# residual, norm and activation after it takes longer. The whole step became 5 % *slower*.
#
# **4. Aligned arrays.** NumPy's arrays start wherever the system's allocator puts them, here at multiples of 16 bytes;
# a cache line has 64, as have the widest registers. With all arrays aligned, a step became 2 to 3 % faster.
#
# And from the same machine:
#
# * **Larger shards**, 1024 tokens instead of 512: 2 % faster, half as much memory again. (For inference, where nothing
#   is kept for a way back, `Workers.predict` does take them twice as large.)
# * **Huge pages** for large arrays: no difference.
# * **Another BLAS**: called through `ctypes`, MKL multiplied the shapes of a step 5 to 10 % faster than the OpenBLAS in
#   NumPy's wheels. A NumPy that is built on another BLAS needs no change here.
# * **Processes instead of threads.** NumPy lets go of the interpreter while it computes, but between two calls a thread
#   needs it, and may find it taken. A thread that waits sleeps, and to wake it takes tens of microseconds, more if it
#   wakes on the core of the one that woke it. Two threads took about 8 % longer for the work of a forward pass than two
#   processes. What helps, and was kept: fewer and larger calls, and a core of its own for each thread.
#
# ## What to remember
#
# * The gradient of a mean is the weighted sum of the shards' gradients. Layers that store nothing can be used by many
#   threads at once.
# * Floating-point sums depend on their order. Cut by the batch and add in the order of the shards: the same bits on any
#   number of threads or ranks.
# * Shards share out the elementwise work too; BLAS threads share out only the products.
# * Merge above `N* = d_in d_out / (d_in + d_out)` rows. The rank cancels. Skinny products and memory traffic shift the
#   crossing in time.
# * LoRA exchanges `sum r (d_in + d_out)` numbers a step instead of all parameters: 68 times fewer for MiniLM, 105 for
#   GPT-2 small, 337 for Llama-7B, at r = 8 on all matrices.
#
# ## Exercises
#
# Replace `None`, run the cell, then run the cell below it. Solutions are in `solutions/15_parallel.ipynb`.
#
# **1. Labels that do not count.** In tagging, labels below 0 do not count, and each shard's loss is the mean over its
# own labels that do. Given the shards' gradients (arrays, of these means) and their labels, what is the gradient of the
# batch?

# %%
answer = None  # your turn: lambda grads, labels: ...

# %%
if answer is None:
    print("not answered yet")
else:
    g = rng.standard_normal((6, 5))  # gradient of the loss of each of 6 rows
    y = np.array([1, -100, 0, 2, -100, 1])
    cuts = (slice(0, 2), slice(2, 6))
    grads = [g[s][y[s] >= 0].mean(axis=0) for s in cuts]
    assert relative_error(answer(grads, [y[s] for s in cuts]), g[y >= 0].mean(axis=0)) < 1e-12
    print("right")

# %% [markdown]
# **2. Forget and form again.** The merged order keeps `W + s B A` from forward to backward, an array of the size of `W`
# for each adapter. Suppose the backward pass forms it again instead. From which N on does merging then cost fewer
# FLOPs?

# %%
answer = None  # your turn: lambda d_in, d_out: ...

# %%
if answer is None:
    print("not answered yet")
else:
    for d_in, d_out in MATRICES:
        N = answer(d_in, d_out)
        assert math.isclose(flops(N, d_in, d_out, "factored"), flops(N, d_in, d_out, "merged") + 2 * r * d_in * d_out)
    print("right")

# %% [markdown]
# **3. A slow network.** How many seconds must a step compute, on each of `p` ranks, so that the exchange takes at most
# a tenth of the whole step? `numbers` trained numbers in float32, the link from above, the best all-reduce.

# %%
answer = None  # your turn: lambda numbers, p: ...

# %%
if answer is None:
    print("not answered yet")
else:
    for row in table:
        for kind in ("lora", "full"):
            compute, exchange = answer(row[kind], 8), seconds_to_exchange(row[kind], 8)
            assert math.isclose(exchange / (compute + exchange), 0.1)
            print(f"{row['model']}, {kind}: {compute:,.1f} s")
    print("right")

# %% [markdown]
# **4. More cores.** With `p` BLAS threads a step is at most `1 / (1 - f + f / p)` times as fast. For `f = 0.7`: what is
# the limit for ever more threads, and with how many threads is half of that limit reached?

# %%
answer = None  # your turn: (limit, threads)

# %%
if answer is None:
    print("not answered yet")
else:
    limit, threads = answer
    assert math.isclose(limit, 1 / (1 - 0.7 + 0.7 / 1e12), rel_tol=1e-9)
    assert math.isclose(1 / (1 - 0.7 + 0.7 / threads), limit / 2)
    print("right")

# %% [markdown]
# ## Sources
#
# G. M. Amdahl, *Validity of the single processor approach to achieving large scale computing capabilities*, AFIPS 1967.
# P. Patarasu and X. Yuan, *Bandwidth optimal all-reduce algorithms for clusters of workstations*, J. Parallel Distrib.
# Comput. 69, 117 (2009). D. Cherniuk et al., *RunLoRA*, 2023, arXiv:2312.03415 (contraction orders). E. J. Hu et al.,
# *LoRA*, 2021, arXiv:2106.09685. Shapes: A. Radford et al., *Language Models are Unsupervised Multitask Learners*, 2019
# (GPT-2); H. Touvron et al., *LLaMA*, 2023, arXiv:2302.13971; W. Wang et al., *MiniLM*, 2020, arXiv:2002.10957.
