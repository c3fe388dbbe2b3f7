# %% [markdown]
# # When does the same code pay on a GPU, and where does the time go?
#
# Every function of this book computes with the library that its arrays belong to: NumPy, or CuPy
# on a GPU. So moving to a GPU is one call. Whether it is faster is another question, and much of
# the answer can be counted without a GPU. (The *host* is the CPU with Python, the *device* the
# GPU.)
#
# ![Two boxes, the host above and the device below. The host launches 1,113 operations a step: 108
# for W + s B A, 369 forward, 516 backward, 98 for AdamW. Ids and labels go down once a batch;
# losses and norms come up once in ten steps. Weights, factors, moments and activations stay on the
# device.](../figures/host_device.svg)
#
# A LoRA step of a small encoder is a thousand operations, whatever the batch. If the host needs
# 10 microseconds to launch each, the step takes 11 milliseconds, and the fastest GPU of the world
# cannot change that. (`lorabook figures host_device` counts them.)
#
# At the end of this chapter you can
#
# * move a model to a GPU, and say what crosses between host and device, and when the host waits;
# * count the launches, FLOPs and bytes of a step, with a NumPy array that takes notes;
# * predict from them whether a step is bound by launches, by memory or by arithmetic.
#
# **No GPU was available when this chapter was written. Nothing in it was measured on one.** Peaks
# are from a data sheet, the time of a launch is an assumption, the predicted times follow from
# these. The commands that measure stand at the end.

# %%
import math

import matplotlib.pyplot as plt
import numpy as np
from threadpoolctl import threadpool_limits

import lorabook
from lorabook import InputError, backend, files
from lorabook import functional as F
from lorabook.backend import View, array_namespace, cublas, data_like, to_numpy
from lorabook.bench import BLOCK_1024, Case, products
from lorabook.book import counted, recorder
from lorabook.book.checks import ch16
from lorabook.book.listing import code
from lorabook.book.plots import device
from lorabook.functional import relative_error
from lorabook.training import steps

plt.rcParams["figure.dpi"] = 110
threadpool_limits(1, "blas")
xp = lorabook.get_xp("auto")  # CuPy where a GPU answers, else NumPy
print(files.environment.summary())
on = "none found, NumPy computes" if xp is np else xp.cuda.runtime.getDeviceProperties(0)["name"]
print("device:", on)
rng = np.random.default_rng(0)

# %% [markdown]
# ## The library comes from the data
#
# First the one call. There is no switch: `array_namespace(x)` says which module the arrays of a
# call belong to, and a function uses that:

# %%
print(code(F.softmax_backward, backend.get_xp))

# %% [markdown]
# A model is moved by `model.to(xp)`, a batch by `data_like(batch, parameter)`. Here the same
# model computes with three libraries: NumPy, `array-api-strict` (the tests' stand-in for "not
# NumPy": it allows nothing beyond the array API standard), and whichever `xp` was found above.
# Random numbers are drawn on the host, so all start from the same weights.

# %%
batch = counted.random_batch(3, 7)
results = {}
strict = lorabook.get_xp("array_api_strict")
for library in dict.fromkeys([np, strict, xp]):
    model = counted.random_bert(counted.TINY).to(library, "float64")
    like = next(iter(model.named_params().values()))
    loss, grads = model.loss_and_grad(data_like(batch, like))
    grads = {name: to_numpy(grad) for name, grad in grads.items()}
    results[library.__name__] = float(loss), grads
for name, (loss, grads) in results.items():
    known = results["numpy"][1]
    error = max(relative_error(grads[key], grad) for key, grad in known.items())
    print(f"{name:17} loss {loss:.12f}, gradients differ from NumPy's by {error:.0e}")
    assert error < 1e-11

try:
    array_namespace(np.ones(3), strict.ones(3))
except TypeError as error:
    print("mixed:", str(error).replace("; ", ";\n  "))
else:
    raise AssertionError

# %% [markdown]
# ## What crosses between host and device
#
# Now the drawing. A GPU works through a queue. The host puts an operation into it (a *launch*)
# and goes on; it waits only when it asks for a value. So a training loop should ask rarely. In
# `train` this crosses:
#
# | | what | when |
# |---|---|---|
# | down | ids and labels; addresses of arrays to be laid end to end (AdamW, below) | each step |
# | down | dropout masks, where there is dropout: drawn on the host | each step |
# | up | losses and norms of the gradients since the last time, in one copy | every ten steps |
#
# Yet a NaN must not reach the weights, and gradients are to be clipped in the step to which they
# belong. So the device decides both. The factor that clips is computed there, and so is a flag,
# `alive`: once a loss or a norm is not finite it is False, and from then on no update changes
# anything. When the host reads, it finds the step, and computes its gradients once more to name
# the layer. (On NumPy looking costs nothing: `read_every` is 1, and the short branch is taken.)

# %%
print(code(steps.Steps.take))

# %% [markdown]
# ## An array that takes notes
#
# To count what a step takes we need no GPU, only a list of its operations. NumPy has a door for
# that: an array may say what happens when a function is called on it. This one writes the name
# down and goes on:


# %%
class Noted(np.ndarray):
    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        inputs = [np.asarray(a) if isinstance(a, Noted) else a for a in inputs]
        noted.append(ufunc.__name__)
        return np.asarray(getattr(ufunc, method)(*inputs, **kwargs)).view(Noted)


def softmax(x):
    e = np.exp(x - np.max(x, axis=-1, keepdims=True))
    return e / np.sum(e, axis=-1, keepdims=True)


noted = []
x = rng.standard_normal((4, 8)).view(Noted)
p = softmax(x)
print(noted)
assert noted == ["maximum", "subtract", "exp", "add", "divide"]

# %% [markdown]
# Five operations: five launches on a GPU, five times through memory, for a function that one
# formula defines.
#
# `recorder.Recorded` in `lorabook/book` is the same idea, grown up: it also knows where in the
# library it was called, how many FLOPs an operation takes, and how many bytes it reads and
# writes. CuPy would launch one *kernel*, a program that runs on the GPU, for each entry (a
# reduction may take two; copies before a stacked product are noted). Views cost nothing and are
# not noted. GELU and its derivative, for example:

# %%
log = recorder.unfused_gelu()  # for four numbers, in float64
moved = sum(entry["bytes"] for entry in log) / 4 / 8
print(f"GELU and its slope: {len(log)} operations, which move {moved:.0f} numbers for each entry")
print("fused into one kernel: 3 (read x, write y and the slope)")
assert len(log) == recorder.FUSED == 11

# %% [markdown]
# `fuse` is `cupy.fuse` on CuPy arrays: the chain is compiled into one kernel. On NumPy it cuts
# the arrays into blocks that stay in the processor's cache, with the same purpose.
#
# ## One step, counted
#
# Now a whole step as `train` does it, in MiniLM's sizes (6 blocks, $d = 384$), with LoRA on all
# six matrices of a block, and everything done as a device does it: `counted.record`.

# %%
model = counted.prepare(counted.MINILM)
tensors = len(model.trainable_params())
log, launches, waits = counted.record(model, 6, 128)
total = sum(launches.values())
for name, n in launches.items():
    print(f"{name:22} {n:5} launches {n / total:5.0%}")
print(f"{'together':22} {total:5}        for {tensors} trained arrays")
print(f"\nwithout fuse: {total + 6 * (recorder.FUSED - 1)}; the host waits {len(waits)} times")
ones_made = sum(entry["name"] == "ones" for entry in log)
print(f"to make ones for sums along rows: {ones_made} launches")
assert ones_made > 50 and not waits and tensors == 6 * 6 * 2 + 2
assert launches["AdamW"] == 2 + 13 + 3 * 3 + tensors and 1000 < total < 1300

# %% [markdown]
# (Not noted: a handful of operations on ids, labels, padding and the loss.) Four things to see:
#
# * A step is about a thousand launches, whatever the size of the batch.
# * AdamW is two lines of formulas for 74 small arrays. Array by array it would be 13 launches for
#   each, nearly as many as all the rest. `optim` lays the arrays end to end and computes once:
#   two launches lay parameters and gradients so, 13 compute, 9 heed `alive`. What is left are 74
#   copies, one back into each parameter (exercise 3).
# * What is good on a CPU need not be on a GPU: sums along rows are products with ones here,
#   several times faster than NumPy's own sum. On a GPU the ones are one launch more each time.
# * The host does not wait at all. A `print(loss)` or an `if x.max() > 0` inside a layer would
#   stop it every time.
#
# <details><summary>Why not record the step once, and launch it as one?</summary>
#
# A *CUDA graph* does that. CuPy 14 refuses to record calls of cuBLAS, and a step is full of those
# (its issue 6290).
#
# </details>
#
# ## FLOPs and bytes
#
# Launches are one limit. The other two are in the log as well: what an operation computes, and
# what it moves. A GPU that computes `peak` FLOP/s and moves `bandwidth` bytes/s takes at least
#
# $$\mathrm{seconds} \ge \max\left( \frac{\mathrm{flops}}{\mathrm{peak}},\;
# \frac{\mathrm{bytes}}{\mathrm{bandwidth}} \right)$$
#
# Which of the two counts depends on the FLOPs per byte, the *arithmetic intensity*. The two are
# equal at the *ridge*, and below it an operation is bound by memory:
#
# $$\frac{\mathrm{flops}}{\mathrm{bytes}} = \frac{\mathrm{peak}}{\mathrm{bandwidth}}$$
#
# FLOPs and bytes are affine in the number of texts (a part for the weights, a part for each text),
# so two recorded steps give those of all batches. A third one checks it.
#
# The last column is the formula with the data sheet of an H100: 67 TFLOP/s in float32, and 3.35
# TB/s. No GPU gets there, and here memory is read and written by every operation.

# %%
minilm = counted.Step(counted.MINILM, 128)
checked = counted.record(minilm.model, 5, 128)[0]
checked = np.array([[entry["flops"], entry["bytes"]] for entry in checked], float).T
assert np.array_equal(minilm.work(5), checked)

by_part = minilm.by_part(16)
columns = {"MiniLM's sizes, 16 x 128 tokens": lambda row: row["part"]}
columns |= {"launches": lambda row: str(row["launches"])}
columns |= {"GFLOP": lambda row: f"{row['flops'] / 1e9:.2f}"}
columns |= {"MB": lambda row: f"{row['bytes'] / 1e6:.0f}"}
columns |= {"FLOP/byte": lambda row: f"{row['flops'] / row['bytes']:.1f}"}
columns |= {"least µs": lambda row: f"{1e6 * row['time']:.0f}"}
print(files.format_table(by_part, columns))
assert (counted.DATA_SHEET["float32"], counted.DATA_SHEET["bandwidth"]) == (67e12, 3.35e12)

# %% [markdown]
# Do the FLOPs agree with those that `lorabook bench` counts from the shapes?

# %%
flops, moved = minilm.work(16)
time = minilm.seconds(16)
linear = minilm.product & (minilm.parts != "products of attention")
print(f"least time on the device: {1e3 * time.sum():.1f} ms; products with W, A or B have")
print(f"{flops[linear].sum() / flops.sum():.0%} of the FLOPs", end=" and ")
print(f"{time[linear].sum() / time.sum():.0%} of that time")
needed = products(counted.MINILM, Case(batch_size=16, seq_len=128))
absorbed = ("5.attention.self.key", "5.attention.self.value")  # the last block makes neither
by_shapes = sum(product.flops for product in needed if not product.layer.endswith(absorbed))
assert math.isclose(flops[minilm.parts == "products with W"].sum(), by_shapes)
assert 0.85 < flops[linear].sum() / flops.sum() < 0.95
assert 0.4 < time[linear].sum() / time.sum() < 0.6

# %% [markdown]
# The products with $W$, $A$ and $B$ have nine tenths of the FLOPs and half of the least time; the
# rest moves memory.
#
# From which size on is a product compute-bound? For $x W^\top$ with $N$ rows in float32, each of
# the $N d_\mathrm{out}$ results takes $d_\mathrm{in}$ products and sums, and three matrices cross
# the memory, four bytes a number:
#
# $$\mathrm{flops} = 2\, N d_\mathrm{in} d_\mathrm{out} \qquad
# \mathrm{bytes} = 4\, (N d_\mathrm{in} + d_\mathrm{in} d_\mathrm{out} + N d_\mathrm{out})$$
#
# With all three sizes equal to $d$, the quotient grows with $d$:
#
# $$\frac{2 d^3}{12\, d^2} = \frac{d}{6} \qquad\text{compute-bound from}\quad
# d = 6\, \frac{\mathrm{peak}}{\mathrm{bandwidth}} \quad\text{on}$$
#
# For $x A^\top$ put $r$ in the place of $d_\mathrm{out}$, and let $N$ and $d_\mathrm{in}$ be
# large. Only the bytes of $x$ count, and the quotient stops at
#
# $$\frac{2\, N d_\mathrm{in}\, r}{4\, N d_\mathrm{in}} = \frac{r}{2}
# \qquad\text{compute-bound from}\quad r = 2\, \frac{\mathrm{peak}}{\mathrm{bandwidth}}
# \quad\text{on}$$
#
# An H100 has two peaks for float32 arrays: TF32 is a second, coarser way to multiply them (more
# of it under the pitfalls).

# %%
sheet = counted.DATA_SHEET
for name in ("float32", "TF32"):
    ridge = sheet[name] / sheet["bandwidth"]
    print(f"{name:8} ridge at {ridge:3.0f} FLOP/byte: compute-bound from", end=" ")
    print(f"d = {6 * ridge:.0f} for square products, from r = {2 * ridge:.0f} with A")
title = "Roofline of an H100 (data sheet, not measured); a LoRA step, MiniLM's sizes, 16 x 128"
device.roofline(by_part, sheet, title)

# %% [markdown]
# A product with an adapter's factor cannot reach the peak at any usual rank, however large the
# model. This is the reason why the merged order is the right one on a GPU too: it trades two of
# these products for one pass over $W$.
#
# ## Launch-bound or compute-bound
#
# Put the limits together. The host launches one operation after another, the device works through
# them. Whichever is slower sets the pace:
#
# $$\mathrm{step} = \max\Big( \mathrm{launches} \cdot \mathrm{launch\ time},\;
# \sum_{\mathrm{operations}} \max\big( \tfrac{\mathrm{flops}}{\mathrm{peak}},
# \tfrac{\mathrm{bytes}}{\mathrm{bandwidth}} \big) \Big)$$
#
# This is a model, not a measurement. The time of a launch from Python is an assumption: 10
# microseconds; the grey band is 5 to 15. The two models have the same $T = 128$; `block-1024` is
# four blocks of BERT large.

# %%
LAUNCH = 10e-6
models = {"MiniLM's sizes": minilm, "block-1024": counted.Step(BLOCK_1024, 128)}
for name, step in models.items():
    host = len(step.parts) * LAUNCH
    for tf32 in (False, True):
        bound = next(n for n in range(1, 4096) if step.seconds(n, tf32).sum() > host)
        peak = "TF32" if tf32 else "float32"
        print(f"{name:15} {peak:8} launch-bound below {bound} texts of 128 tokens")
    assert step.seconds(1).sum() < host < step.seconds(1024).sum()
device.launches_or_work(models, LAUNCH, 2 ** np.arange(0, 11))

# %% [markdown]
# Read it so: left of where a blue line crosses the black one, a larger batch costs nothing, and
# neither TF32 nor a faster GPU helps; only fewer launches do. Right of it the device is busy, and
# the number of launches does not matter. The wider model gets there with fewer texts. A small
# model on a small batch may well be faster on the CPU.
#
# ## Pitfalls
#
# **Ids out of range.** NumPy raises an error, CuPy wraps around without one. A check on the
# device would have to wait for it, so it is made on the host, before the batch moves:
# `check_input`.

# %%
table = rng.standard_normal((5, 2))
wrapped = np.take(table, [7], axis=0, mode="wrap")
row = int(np.argmax(np.all(wrapped == table, axis=1)))
print("row 7 of 5, wrapped as CuPy does it: row", row)
try:
    counted.random_bert(counted.TINY).check_input({"input_ids": np.array([[1, 50]])})
except InputError as error:
    print("check_input:", error)
else:
    raise AssertionError

# %% [markdown]
# **float64 by accident.** A NumPy scalar is as strong as an array: one `np.sqrt` instead of
# `math.sqrt`, and everything after it is float64: twice the bytes and, on most GPUs, a small
# fraction of the speed. The log knows every dtype. (Single numbers may be float64: the norm
# of the gradient is, on purpose.)

# %%
x = np.ones(3, "f4")
print("x / math.sqrt(64):", (x / math.sqrt(64)).dtype)
print("x / np.sqrt(64):  ", (x / np.sqrt(64)).dtype)
dtypes = {entry["dtype"] for entry in log if entry.get("size", 1) > 1}
print("dtypes of the step's arrays:", dtypes)
assert dtypes == {"float32"}

# %% [markdown]
# **Sums in no order.** The gradient of an embedding adds rows that share an id. On a GPU that is
# done with atomic additions, in the order in which threads happen to arrive: other bits in each
# run (chapter 15). With frozen embeddings there is no such sum.

# %%
print(code(backend.scatter_add))
assert not any(e["place"] == "basic.backward" or e["name"] == "add.at" for e in log)

# %% [markdown]
# **Stacked products copy views.** Heads are views, and `k.mT` is another. CuPy's own product of
# two stacks of matrices copies every operand that is not contiguous, and computes in float32 even
# where TF32 is asked for. cuBLAS can read most views: it takes a flag, transposed or not, the
# distance from one row to the next, and the distance from one matrix of the stack to the next.
# `layout` finds the first two, or gives None where a copy is needed, and `backend.bmm` passes them
# on:

# %%
print(code(cublas.layout))

# %% [markdown]
# One distance is not enough for the heads of several texts, which lie inside a text side by side.
# So attention first copies q, k, v and `do` once each, head by head (`contiguous`). That is good
# on a CPU too, where BLAS is fastest with rows that follow each other. From then on each product
# is one call. The largest arrays, `e` and `dscores` ($T \times T$ in every head; chapter 15 has
# the formulas), are never copied to be transposed:

# %%
texts, h, T, d_head = 16, 12, 128, 32
q, k, v, do = np.empty((4, texts, h, T, d_head), "f4")  # as `contiguous` leaves them
e = dscores = np.empty((texts, h, T, T), "f4")
STACKED = {
    "k q^T": (k, q.mT), "e^T v": (e.mT, v),
    "e do": (e, do), "v do^T": (v, do.mT),
    "dscores^T k": (dscores.mT, k), "dscores q": (dscores, q),
}  # fmt: skip
print("16 texts, 12 heads   MB copied by cupy.matmul   by bmm   calls of cuBLAS")
for name, operands in STACKED.items():
    copied = []
    for way in (recorder.naive, recorder.ours):
        pairs = zip(operands, way(*operands), strict=True)
        copied.append(sum(x.nbytes for x, copy in pairs if copy))
    calls = cublas.calls(*map(View.of, operands))
    print(f"{name:16} {copied[0] / 1e6:28.1f} {copied[1] / 1e6:8.1f} {calls:17}")
    assert copied[1] == 0 and calls == 1
print(f"q, k, v and do, copied before: {4 * q.nbytes / 1e6:.1f} MB")

# %%
attention = minilm.parts == "products of attention"
copies = minilm.parts == "attention: copies"
print(f"{attention.sum()} stacked products, which move {moved[attention].sum() / 1e6:.0f} MB;")
print(f"{copies.sum()} copies for them and of their results: {moved[copies].sum() / 1e6:.0f} MB")
assert moved[copies].sum() < 0.6 * moved[attention].sum()

# %% [markdown]
# **TF32.** It keeps 10 of the 23 bits of each factor's mantissa and adds in float32. CuPy uses it
# only if asked to (`CUPY_TF32=1`, or `--tf32` in `lorabook bench`), and `bmm` with it. What it
# does to a product can be tried here:


# %%
def tf32(x):
    """Rounded to 10 bits of mantissa."""
    return ((x.view(np.uint32) + 0x1000) & np.uint32(0xFFFFE000)).view(np.float32)


left, right = rng.standard_normal((2, 256, 256), dtype="f4")
exact = left.astype("f8") @ right.astype("f8")
error = {}
for name, product in (("float32", left @ right), ("TF32", tf32(left) @ tf32(right))):
    error[name] = np.linalg.norm(product - exact) / np.linalg.norm(exact)
    print(f"{name:8} relative error of a product: {error[name]:.0e}")
assert error["float32"] < 1e-6 and 1e-4 < error["TF32"] < 1e-3

# %% [markdown]
# A gradient check means nothing in TF32, and a comparison with a float32 run of another library
# is not a fair one: PyTorch also leaves it off for products unless told otherwise. Give it to
# both sides or to none.
#
# ## Measure
#
# With a GPU and CuPy (`lorabook doctor` names the wheel):
#
# * is it right? `pytest -m gpu`
# * the products alone, which are the ceiling: `lorabook bench gemm --backend cupy`
# * MiniLM, beside PEFT: `lorabook bench step --backend cupy --vs peft`
# * the wider model: the same with `--model block-1024`, and then with `--tf32` as well
#
# and here, beside the prediction:

# %%
step = models["block-1024"]
predicted = max(len(step.parts) * LAUNCH, step.seconds(16).sum())
if xp is np:
    print("no GPU: this cell would time a LoRA step of block-1024, 16 x 128 tokens, on it")
else:
    import timeit

    from lorabook.bench import lora

    once, gpu = lora(Case(model="block-1024", batch_size=16, seq_len=128, backend="cupy"))
    seconds = []
    for _ in range(13):
        gpu.synchronize()
        seconds.append(timeit.timeit(lambda: (once(), gpu.synchronize()), number=1))
    print(f"measured {1e3 * np.median(seconds[3:]):.1f} ms")
print(f"predicted by the model above: {1e3 * predicted:.1f} ms, at the least")

# %% [markdown]
# > **What to remember**
# >
# > * The arrays say which library computes. One `model.to(xp)` moves the work; mixed arrays are
# >   an error, not a copy.
# > * The host should ask for values rarely: here for losses and norms, every ten steps. What has
# >   to be decided in each step, the device decides.
# > * A step is about a thousand launches; with them it takes a fixed time, whatever the batch.
# >   Below some size nothing else counts. Many small arrays are best treated as one.
# > * Products are compute-bound from a size on; all else, products with an adapter's factors
# >   included, is bound by memory.
# > * Count first, predict, then measure. This chapter has done the first two.
#
# **Next.** The chapters on variants and on inference are on their way. If you came here first:
# what is being launched is derived in [chapter 03](03_lora_layer.ipynb) and
# [chapter 05](05_transformer_block.ipynb).
#
# <details><summary>Sources</summary>
#
# S. Williams, A. Waterman and D. Patterson, *Roofline: an insightful visual performance model for
# multicore architectures*, Commun. ACM 52(4), 2009. R. Okuta et al., *CuPy: a NumPy-compatible
# library for NVIDIA GPU calculations*, LearningSys at NIPS 2017; batched products: `cupy.matmul`
# of version 14. NVIDIA, *H100 Tensor Core GPU* data sheet, SXM (67 TFLOP/s float32, 495 TFLOP/s
# TF32 without sparsity, 3.35 TB/s). D. Cherniuk et al., *RunLoRA*, 2023, arXiv:2312.03415
# (contraction orders).
#
# </details>
#
# ## Exercises
#
# Replace `None` and run the cell; it says whether you are right. Solutions:
# [solutions/16_gpu.ipynb](solutions/16_gpu.ipynb).
#
# **1. Derive: the ridge.** From which $d$ on is a product of two $d \times d$ matrices
# compute-bound, for numbers of `itemsize` bytes?

# %%
answer = None  # your turn: lambda peak, bandwidth, itemsize: ...
ch16.ridge(answer)

# %% [markdown]
# **2. Derive: few tokens.** Generation computes $x W^\top$ for one new token of each text, so $N$
# is the number of texts. For large $d_\mathrm{in}$ and $d_\mathrm{out}$, how many FLOPs per byte
# is that in float32, and from which $N$ on is it compute-bound?

# %%
answer = None  # your turn: (lambda N: ..., lambda peak, bandwidth: ...)
ch16.few_tokens(answer)

# %% [markdown]
# **3. The last copies.** Suppose that the parameters themselves were views of one vector, as the
# moments are already. Nothing would have to be laid end to end for them, and nothing copied back.
# How many launches would AdamW take? Use `launches["AdamW"]` and `tensors`.

# %%
answer = None  # your turn: an integer
ch16.last_copies(answer)

# %% [markdown]
# **4. Change LoRA: the other order.** Here every adapter forms $W + s\,B A$ first. Let them all
# compute $x W^\top + s\,(x A^\top) B^\top$ instead, which
# `counted.prepare(counted.MINILM, order="factored")` does. Guess whether a step takes more or
# fewer launches, then measure: how many?

# %%
answer = None  # your turn: an integer
ch16.other_order(answer)

# %% [markdown]
# **5. Which are float64?** `x` is a float32 array. Name the expressions whose result is not.
#
# | | | | |
# |---|---|---|---|
# | a | `x * 0.5` | e | `x - x.mean()` |
# | b | `x * np.float64(0.5)` | f | `x + np.arange(3)` |
# | c | `x / np.sqrt(64)` | g | `x + np.arange(3).sum() / 3` |
# | d | `x * float(np.sqrt(64))` | | |

# %%
answer = None  # your turn: a string of letters
ch16.float64(answer)
