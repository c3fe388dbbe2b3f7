# %% [markdown]
# # When does the same code pay on a GPU, and where does the time go?
#
# Every function of this book computes with the library that its arrays belong to: NumPy, or CuPy on a GPU. So moving to
# a GPU is one call. Whether it is faster is another question, and much of the answer can be counted without a GPU: how
# many operations a step has, how many FLOPs and bytes each moves, and when the host must wait.
#
# **No GPU was available when this chapter was written. Nothing in it was measured on one.** Peaks are from a data
# sheet, the time of a launch is an assumption, the predicted times follow from these. The commands that measure stand
# at the end.

# %%
import inspect
import math
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from threadpoolctl import threadpool_limits

import lorabook
from lorabook import (
    InputError,
    LoRAConfig,
    LoRALinear,
    backend,
    cublas,
    environment,
    inject,
    optim,
    parallel,
    plotting,
    steps,
)
from lorabook import absorbed as first_token
from lorabook import attention as A
from lorabook import functional as F
from lorabook.backend import array_namespace, data_like, scatter_add, to_numpy
from lorabook.bench.case import BLOCK_1024, SIX, Case
from lorabook.bench.products import products
from lorabook.cublas import View
from lorabook.data import Batches
from lorabook.gradcheck import relative_error
from lorabook.models.bert import BertForSequenceClassification
from lorabook.optim import AdamW, squared_norm
from lorabook.parallel import Workers
from lorabook.tables import format_table

plt.style.use(plotting.STYLE)
plt.rcParams["figure.dpi"] = 96
plt.ion()  # figures appear below their cell
threadpool_limits(1, "blas")
xp = lorabook.get_xp("auto")  # CuPy where a GPU answers, else NumPy
print(environment.summary())
print("device:", "none found, NumPy computes" if xp is np else xp.cuda.runtime.getDeviceProperties(0)["name"])
rng = np.random.default_rng(0)

# %% [markdown]
# ## The library comes from the data
#
# There is no switch. `array_namespace(x)` says which module the arrays of a call belong to, and a function uses that:

# %%
print(inspect.getsource(F.softmax_backward))
print(inspect.getsource(backend.get_xp))

# %% [markdown]
# A model is moved by `model.to(xp)`, a batch by `data_like(batch, parameter)`. Here the same model computes with three
# libraries: NumPy, `array-api-strict` (the tests' stand-in for "not NumPy": it allows nothing beyond the array API
# standard), and whichever `xp` was found above. Random numbers are drawn on the host, so all start from the same
# weights.

# %%
TINY = {
    "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "max_position_embeddings": 512, "type_vocab_size": 2, "hidden_act": "gelu", "pad_token_id": 0,
}  # fmt: skip


def random_bert(config, r=8):
    """BERT with weights from N(0, 0.02^2), random adapters on SIX, and a classifier that trains."""
    model, draw = BertForSequenceClassification(config, labels=2), np.random.default_rng(0)
    for array in model.named_params().values():
        if array.ndim == 2:
            array[...] = 0.02 * draw.standard_normal(array.shape)
    adapters = LoRAConfig(
        r=r, lora_alpha=16, target_modules=SIX, modules_to_save=("classifier",), init_lora_weights=False
    )
    inject(model, adapters, draw)
    return model


def batch(B, T, vocabulary=50):
    return rng.integers(1, vocabulary, (B, T)), rng.integers(0, 2, B)


ids, labels = batch(3, 7)
results = {}
strict = lorabook.get_xp("array_api_strict")
for library in dict.fromkeys([np, strict, xp]):
    model = random_bert(TINY).to(library, "float64")
    like = next(iter(model.named_params().values()))
    loss, grads = model.loss_and_grad(data_like(ids, like), data_like(labels, like))
    results[library.__name__] = float(loss), {name: to_numpy(grad) for name, grad in grads.items()}
for name, (loss, grads) in results.items():
    error = max(relative_error(grads[key], grad) for key, grad in results["numpy"][1].items())
    print(f"{name:17} loss {loss:.12f}, gradients differ from NumPy's by {error:.0e}")
    assert error < 1e-11

try:
    array_namespace(np.ones(3), strict.ones(3))
except TypeError as error:
    print("mixed:", error)
else:
    raise AssertionError

# %% [markdown]
# ## What crosses between host and device
#
# A GPU works through a queue. The host puts an operation into it (a *launch*) and goes on; it waits only when it asks
# for a value. So a training loop should ask rarely. What crosses in `train`:
#
# ```
# host -> device     ids and labels; addresses of arrays that are to be laid end to end (see AdamW below)
#                    dropout masks, where there is dropout: random numbers are drawn on the host
# device -> host     every ten steps: the losses and the norms of the gradients since the last time, in one copy
# ```
#
# Yet a NaN must not reach the weights, and gradients are to be clipped in the step to which they belong. So the device
# decides both. The factor that clips is computed there, and so is a flag, `alive`: once a loss or a norm is not finite
# it is False, and from then on no update changes anything. When the host reads, it finds the step, and computes its
# gradients once more to name the layer.

# %%
print(inspect.getsource(steps.Steps.take))

# %% [markdown]
# To count what a step takes, we let NumPy take notes. `Recorded` is a NumPy array that writes down every
# operation on it: where in the library, how many FLOPs, how many bytes read and written. CuPy would launch one kernel
# for each (a reduction may take two; copies before a stacked product are noted). Views cost nothing and are not noted.

# %%
LIBRARY = str(Path(lorabook.__file__).parent)


class Recorded(np.ndarray):
    """A NumPy array that notes the operations on it, and when the host asks for its value."""

    __module__ = "numpy"  # `array_namespace` goes by it
    log, waits, phase = [], [], "the loss"

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        out = kwargs.get("out", (None,))[0]
        arrays = plain(inputs)
        result = getattr(ufunc, method)(*arrays, **plain(kwargs))
        note(ufunc.__name__, arrays, result)
        return recorded(result) if out is None else out

    def __array_function__(self, function, types, args, kwargs):
        args = plain(args)
        result = function(*args, **plain(kwargs))
        sources = [a for arg in args for a in (arg if isinstance(arg, list) else [arg]) if isinstance(a, np.ndarray)]
        view = any(np.may_share_memory(result, a) for a in sources)
        if not view and function is not np.empty_like:
            note(function.__name__, sources, result)
        return recorded(result)

    def __setitem__(self, key, value):
        target, value = self.view(np.ndarray), plain(value)
        if not np.may_share_memory(target, np.asarray(value)):  # else: the end of `a[key] += b`, nothing to copy
            note("copy", [np.asarray(value)], target[key])
        target[key] = value

    def __float__(self):
        self.waits.append(place())
        return float(self.view(np.ndarray))


def plain(value):
    if isinstance(value, Recorded):
        return value.view(np.ndarray)
    if isinstance(value, dict):
        return {name: plain(v) for name, v in value.items()}
    return type(value)(plain(v) for v in value) if isinstance(value, tuple | list) else value


def recorded(value):
    return np.asarray(value).view(Recorded) if isinstance(value, np.ndarray | np.generic) else value


HELPERS = ("row_sums", "row_means", "shift")


def place():
    """module.function of the library that is at work; of a helper, the function that called it."""
    frame = sys._getframe(1)
    while frame:
        path, function = frame.f_code.co_filename, frame.f_code.co_name
        if path.startswith(LIBRARY) and not path.endswith("backend.py") and function not in HELPERS:
            return f"{Path(path).stem}.{function}"
        frame = frame.f_back
    return "chapter"


COPIES = ("copy", "contiguous", "stack", "reshape", "concatenate")


def in_memory(a):
    """Bytes of an array; what is only broadcast along an axis is there once."""
    return a.itemsize * math.prod(n for n, stride in zip(a.shape, a.strides, strict=True) if stride or not n)


def note(name, arrays, result):
    arrays = [a for a in arrays if isinstance(a, np.ndarray)]
    read, flops = sum(map(in_memory, arrays)), max(a.size for a in (*arrays, np.asarray(result)))
    if name in COPIES:
        flops = 0
    if name == "take":  # reads the rows that it takes, not the table
        read, flops = result.nbytes, 0
    if name == "ones":  # only writes
        read, flops = 0, 0
    if name == "matmul":
        flops = 2 * result.size * arrays[0].shape[-1]
        if arrays[1].ndim == 1:  # sums along rows, as products with ones
            name = "sum"
        if arrays[0].ndim > 2:
            for a, copied in zip(arrays, ours(*arrays), strict=True):
                if copied:
                    note("stack", [a], a)
    shapes = {n for a in arrays for n in a.shape}
    entry = {"name": name, "place": place(), "flops": flops, "bytes": read + np.asarray(result).nbytes}
    entry |= {"batched": arrays[0].ndim > 2 if arrays else False, "dtype": np.asarray(result).dtype.name}
    entry |= {"phase": Recorded.phase, "size": np.asarray(result).size}
    Recorded.log.append(entry | {"r": 8 in shapes})  # r = 8 is a side of a product with A or B, and no other size here


def naive(a, b):
    """Which operands CuPy's own stacked product, `a @ b`, copies: [bool, bool]."""
    return [not x.flags.c_contiguous for x in (a, b)]


def ours(a, b):
    """Which of them `backend.bmm` copies."""
    return cublas.copies(View.of(a), View.of(b))


def bmm(a, b, out=None):
    """`backend.bmm` as it is on CuPy: the product, and then a copy to where it is to be."""
    y = a @ b
    if out is None:
        return y
    out[...] = y
    return out


def contiguous(x):
    """`backend.contiguous`, with a note where it copies."""
    if x.flags.c_contiguous:
        return x
    note("contiguous", [x], x)
    return recorded(np.ascontiguousarray(plain(x)))


def empty(shape, like):
    return recorded(np.empty(shape, like.dtype))


def ones(shape, like):
    """`backend.ones`, which a device has to write."""
    result = np.ones(shape, like.dtype)
    note("ones", [], result)
    return recorded(result)


def one_kernel(x, keep=True):
    """GELU and its derivative as `fuse` makes them on CuPy: one pass over memory."""
    y, slope = F.gelu_erf(plain(x))
    flops = FUSED * x.size
    entry = {"name": "fused", "place": "functional.gelu_erf", "flops": flops, "bytes": 3 * x.nbytes}
    Recorded.log.append(entry | {"phase": Recorded.phase})
    return recorded(y), recorded(slope)


def prepare(config):
    """A model whose parameters are recorded, with every adapter in the merged order, and GELU as one kernel."""
    model = random_bert(config)
    for _, layer in model.named_layers():
        layer.params = {name: recorded(array) for name, array in layer.params.items()}
        if isinstance(layer, LoRALinear):
            layer.order = "merged"
        if hasattr(layer, "activation"):
            layer.activation.forward = one_kernel
    model.forward, model.backward = during("forward", model.forward), during("backward", model.backward)
    return model


unfused = recorded(np.ones(4))  # float64, and so by erf, as on a GPU; float32 would go by NumPy's faster way
F.gelu_erf.__wrapped__(unfused)
FUSED = len(Recorded.log)
print(f"GELU and its derivative: {FUSED} operations, {sum(e['bytes'] for e in Recorded.log) / 4 / 8:.0f} numbers moved")
print("for each entry; fused into one kernel: 3 (read x, write y and the slope)")

# %% [markdown]
# `fuse` is `cupy.fuse` on CuPy arrays: the chain is compiled into one kernel. On NumPy it cuts the arrays into blocks
# that stay in the cache, with the same purpose.
#
# ## One step, counted
#
# A step as `train` does it, in MiniLM's sizes (6 blocks, d = 384) with LoRA on all six matrices of a block.

# %%
MINILM = TINY | {"vocab_size": 1000, "hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536}
MINILM |= {"num_attention_heads": 12}


def during(phase, function):
    """The function; what it does is noted under the name of the phase."""

    def call(*args, **kwargs):
        before, Recorded.phase = Recorded.phase, phase
        try:
            return function(*args, **kwargs)
        finally:
            Recorded.phase = before

    return call


def record(model, B, T):
    """(the log of one step as a device takes it, {phase: launches}, where the host waited)."""
    params, optimizer = model.trainable_params(), AdamW(1e-3)
    optimizer.prepare(params)
    optimizer._packs(params)  # as after the first step
    ids, labels = batch(B, T)
    ids[0, -1] = A.PADDING  # padding: where there is none NumPy adds no bias; a device does not look
    with Workers(1) as workers:
        run = steps.Steps(workers, model, Batches(ids, labels, B), optimizer, params, 0, None, read_every=10)
        run.optimizer.step = during("AdamW", optimizer.step)
        Recorded.log, Recorded.waits = log, waits = [], []
        run.take(0, 1.0)
        Recorded.log = []  # what follows belongs to no step
    launches = dict.fromkeys(("W + s B A", "forward", "the loss", "backward", "norm of the gradient", "AdamW"), 0)
    for entry in log:
        shared = entry["place"].startswith("lora") and entry["phase"] == "the loss"
        launches["W + s B A" if shared else entry["phase"]] += 1
    return log, launches, waits


# What the library does in another way on a device:
optim.BLOCK = optim.MOST  # NumPy lays as many numbers end to end as stay in its cache, a device more
parallel.cut = lambda x, *size: [slice(0, x.shape[0])]  # NumPy cuts a batch for its threads, a device takes it whole
A.SCORES = 1 << 60  # NumPy takes a few heads at a time, a device all
A.bmm, first_token.bmm, A.contiguous, A.empty, F.ones = bmm, bmm, contiguous, empty, ones
steps.squared_norm = during("norm of the gradient", squared_norm)
model = prepare(MINILM)
tensors = len(model.trainable_params())
log, launches, waits = record(model, 6, 128)
total = sum(launches.values())
for name, n in launches.items():
    print(f"{name:22} {n:5} launches {n / total:5.0%}")
print(f"{'together':22} {total:5}        for {tensors} trained arrays")
print(f"\nwithout fuse: {total + 6 * (FUSED - 1)}; the host waits {len(waits)} times")
ones_made = sum(entry["name"] == "ones" for entry in log)
print(f"to make ones for sums along rows: {ones_made} launches")
assert ones_made > 50 and not waits and tensors == 6 * 6 * 2 + 2
assert launches["AdamW"] == 2 + 13 + 3 * 3 + tensors

# %% [markdown]
# (Not noted: a handful of operations on ids, labels, padding and the loss.) Four things to see:
#
# * A step is about a thousand launches, whatever the size of the batch.
# * AdamW is two lines of formulas for 74 small arrays. Array by array it would be 13 launches for each, nearly as many
#   as all the rest. `optim` lays the arrays end to end and computes once: two launches lay parameters and gradients so,
#   13 compute, 9 heed `alive`. What is left are 74 copies, one back into each parameter (exercise 3).
# * What is good on a CPU need not be on a GPU: sums along rows are products with ones here, several times faster than
#   NumPy's own sum. On a GPU the ones are one launch more each time.
# * The host does not wait at all. A `print(loss)` or an `if x.max() > 0` inside a layer would stop it every time.
#
# One more way to save launches is not open to us. A *CUDA graph* records the whole step once and launches it as one.
# CuPy 14 refuses to record calls of cuBLAS, and a step is full of those (its issue 6290).
#
# ## FLOPs and bytes
#
# The log holds both for each operation. Divide: FLOPs per byte, the *arithmetic intensity*. A GPU that computes `peak`
# FLOP/s and moves `bandwidth` bytes/s takes at least `max(flops / peak, bytes / bandwidth)`; the two are equal at the
# intensity `peak / bandwidth`, the ridge of the roofline. Below it an operation is bound by memory.

# %%
DATA_SHEET = {"float32": 67e12, "TF32": 495e12, "bandwidth": 3.35e12}  # H100 SXM: data sheet, not measured; TF32 dense


def part(entry):
    """What an entry of the log belongs to."""
    if entry["name"] == "matmul":
        if entry["batched"]:
            return "products of attention"
        return "products with A or B" if entry["r"] else "products with W"
    module, function = entry["place"].split(".")
    if module in ("attention", "absorbed") or function == "softmax_":
        return "attention: copies" if entry["name"] in COPIES else "attention: softmax, scaling"
    if function.startswith("layer_norm"):
        return "layer norm"
    if function in ("gelu_erf", "activation_backward"):
        return "GELU"
    if module in ("optim", "steps"):
        return "norm of the gradient, AdamW"
    return "W + s B A, scaling" if module == "lora" else "the rest: bias, residual"


def device_time(flops, moved, product, tf32=False):
    """Least seconds for operations of so many FLOPs and bytes, at the peaks of the data sheet."""
    peak = np.where(product & tf32, DATA_SHEET["TF32"], DATA_SHEET["float32"])
    return np.maximum(flops / peak, moved / DATA_SHEET["bandwidth"])


class Step:
    """The operations of a step for any batch size B: FLOPs and bytes are affine in B, so two steps give all."""

    def __init__(self, config, T):
        model = prepare(config)
        first, second = (record(model, B, T)[0] for B in (6, 10))
        assert [part(e) for e in first] == [part(e) for e in second]
        self.model, self.parts = model, np.array([part(e) for e in first])
        self.product = np.char.startswith(self.parts, "products")
        self.at6, self.at10 = (np.array([[e["flops"], e["bytes"]] for e in log], float) for log in (first, second))

    def work(self, B):
        """(FLOPs, bytes) of each operation."""
        return (self.at6 + (B - 6) / 4 * (self.at10 - self.at6)).T

    def seconds(self, B, tf32=False):
        """Least time of each operation on the device."""
        return device_time(*self.work(B), self.product, tf32)


minilm = Step(MINILM, 128)
checked = np.array([[e["flops"], e["bytes"]] for e in record(minilm.model, 5, 128)[0]], float).T
assert np.array_equal(minilm.work(5), checked)

B = 16
flops, moved = minilm.work(B)
time = minilm.seconds(B)
rows = []
for name in dict.fromkeys(minilm.parts):
    own = minilm.parts == name
    rows.append({"part": name, "launches": own.sum(), "flops": flops[own].sum(), "bytes": moved[own].sum()})
    rows[-1]["time"] = time[own].sum()
rows.sort(key=lambda row: -row["time"])
columns = {f"MiniLM's sizes, {B} x 128 tokens": lambda row: row["part"], "launches": lambda row: str(row["launches"])}
columns |= {"GFLOP": lambda row: f"{row['flops'] / 1e9:.2f}", "MB": lambda row: f"{row['bytes'] / 1e6:.0f}"}
columns["FLOP/byte"] = lambda row: f"{row['flops'] / row['bytes']:.1f}"
columns["least us"] = lambda row: f"{1e6 * row['time']:.0f}"
print(format_table(rows, columns))
print(f"\nleast time on the device: {1e3 * time.sum():.1f} ms", end="; ")
linear = minilm.product & (minilm.parts != "products of attention")
print(f"products with W, A or B: {flops[linear].sum() / flops.sum():.0%} of the FLOPs,", end=" ")
print(f"{time[linear].sum() / time.sum():.0%} of the time")

needed = products(MINILM, Case(batch_size=B, seq_len=128))  # as `lorabook bench` counts them
absorbed = ("5.attention.self.key", "5.attention.self.value")  # in the last block no key and no value is made
by_shapes = sum(product.flops for product in needed if not product.layer.endswith(absorbed))
assert math.isclose(flops[minilm.parts == "products with W"].sum(), by_shapes)
assert 0.85 < flops[linear].sum() / flops.sum() < 0.95
assert 0.4 < time[linear].sum() / time.sum() < 0.6

# %% [markdown]
# ("Least" is at the data sheet's peaks, with memory read and written by every operation. No GPU gets there.) The
# products with W, A and B have nine tenths of the FLOPs and half of the least time; the rest moves memory. Now the
# sizes from which on a product is compute-bound. In float32 an `x W^T` with `N` rows has
#
# ```
# FLOPs  2 N d_in d_out          bytes  4 (N d_in + d_in d_out + N d_out)
#
# all three sizes n              n / 6 FLOP/byte       compute-bound from n = 6 peak / bandwidth on
# x A^T, N and d large           r / 2 FLOP/byte       from r = 2 peak / bandwidth on
# ```

# %%
BANDWIDTH = DATA_SHEET["bandwidth"]
for name in ("float32", "TF32"):
    ridge = DATA_SHEET[name] / BANDWIDTH
    print(f"{name:8} ridge at {ridge:3.0f} FLOP/byte: square products from n = {6 * ridge:.0f},", end=" ")
    print(f"products with A from r = {2 * ridge:.0f}")

figure, axes = plt.subplots(figsize=(7.6, 4.2))
intensity = np.geomspace(0.05, 2000, 200)
for name, color in (("TF32", "#56B4E9"), ("float32", "#0072B2")):
    axes.plot(intensity, np.minimum(DATA_SHEET[name], intensity * BANDWIDTH) / 1e12, color=color)
    axes.annotate(name, (1900, DATA_SHEET[name] / 1e12), (0, 4), textcoords="offset points", color=color, ha="right")
ELEMENTWISE = (
    "attention: softmax, scaling",
    "layer norm",
    "W + s B A, scaling",
    "the rest: bias, residual",
    "norm of the gradient, AdamW",
)
groups = {
    "products with W": ("products with W",), "products with A or B, r = 8": ("products with A or B",),
    "products of attention": ("products of attention",), "GELU, fused": ("GELU",), "other elementwise": ELEMENTWISE,
}  # fmt: skip
for name, parts in groups.items():
    own = np.isin(minilm.parts, parts)
    x = flops[own].sum() / moved[own].sum()
    y = min(DATA_SHEET["float32"], x * BANDWIDTH) / 1e12
    axes.plot(x, y, "o", color="#D55E00")
    axes.annotate(name, (x, y), (7, -9), textcoords="offset points", color="#D55E00", fontsize=9)
axes.set(xscale="log", yscale="log", xlabel="FLOP / byte", ylabel="TFLOP/s, at most", ylim=(0.1, 2000))
axes.set_title("Roofline of an H100 (data sheet, not measured); a LoRA step, MiniLM's sizes, 16 x 128")
plt.show()

# %% [markdown]
# A product with an adapter's factor cannot reach the peak at any usual rank, however large the model. This is the
# reason why the merged order is the right one on a GPU too: it trades two of these products for one pass over `W`.
#
# ## Launch-bound or compute-bound
#
# The host launches one operation after another, the device works through them. Whichever is slower sets the pace:
#
# ```
# step  =  max(launches * launch time,  sum over operations of max(flops / peak, bytes / bandwidth))
# ```
#
# This is a model, not a measurement. The time of a launch from Python is an assumption: 10 microseconds, band 5 to 15.
# The two models have the same T = 128; `block-1024` is four blocks of BERT large.

# %%
LAUNCH = 10e-6
steps = {"MiniLM's sizes": minilm, "block-1024": Step(BLOCK_1024, 128)}
sizes = 2 ** np.arange(0, 11)
figure, panels = plt.subplots(1, 2, figsize=(9.6, 3.8), sharey=True)
for axes, (name, step) in zip(panels, steps.items(), strict=True):
    host = len(step.parts) * LAUNCH
    axes.axhline(1e3 * host, color="black")
    axes.axhspan(500 * host, 1500 * host, color="black", alpha=0.1, linewidth=0)
    axes.annotate(f"{len(step.parts):,} launches", (1, 1e3 * host), (2, 4), textcoords="offset points")
    for tf32, color, label in ((False, "#0072B2", "device, float32"), (True, "#56B4E9", "device, TF32")):
        device = np.array([step.seconds(B, tf32).sum() for B in sizes])
        axes.plot(sizes, 1e3 * device, color=color)
        at, where, ha = (sizes[8], (8, -12), "left") if tf32 else (sizes[9], (-8, 2), "right")  # clear of the lines
        y = 1e3 * step.seconds(at, tf32).sum()
        axes.annotate(label, (at, y), where, textcoords="offset points", color=color, ha=ha)
        bound = next((B for B in range(1, 4096) if step.seconds(B, tf32).sum() > host), None)
        print(f"{name:15} {label:16} launch-bound below B = {bound} texts of 128 tokens")
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes[::2], [str(B) for B in sizes[::2]])
    axes.set(yscale="log", xlabel="texts in a batch, T = 128", title=f"{name}: predicted, not measured")
panels[0].set_ylabel("milliseconds a step")
assert all(step.seconds(1).sum() < len(step.parts) * LAUNCH < step.seconds(1024).sum() for step in steps.values())

# %% [markdown]
# Read it so: left of where a blue line crosses the black one, a larger batch costs nothing, and neither TF32 nor a
# faster GPU helps; only fewer launches do. Right of it the device is busy, and the number of launches does not matter.
# The wider model gets there with fewer texts. A small model on a small batch may well be faster on the CPU.
#
# ## Pitfalls
#
# **Ids out of range.** NumPy raises an error, CuPy wraps around without one. A check on the device would have to wait
# for it, so it is made on the host, before the batch moves: `check_input`.

# %%
table = rng.standard_normal((5, 2))
wrapped = np.take(table, [7], axis=0, mode="wrap")
print("row 7 of 5, wrapped as CuPy does it: row", int(np.argmax(np.all(wrapped == table, axis=1))))
try:
    random_bert(TINY).check_input(np.array([[1, 50]]))
except InputError as error:
    print("check_input:", error)
else:
    raise AssertionError

# %% [markdown]
# **float64 by accident.** A NumPy scalar is as strong as an array: one `np.sqrt` instead of `math.sqrt`, and everything
# after it is float64, at half the bandwidth and, on most GPUs, a small fraction of the speed. The log knows every
# dtype. (Single numbers may be float64: the norm of the gradient is, on purpose.)

# %%
x = np.ones(3, "f4")
print("x / math.sqrt(64):", (x / math.sqrt(64)).dtype, "   x / np.sqrt(64):", (x / np.sqrt(64)).dtype)
dtypes = {entry["dtype"] for entry in log if entry.get("size", 1) > 1}
print("dtypes of the step's arrays:", dtypes)
assert dtypes == {"float32"}

# %% [markdown]
# **Sums in no order.** The gradient of an embedding adds rows that share an id. On a GPU that is done with atomic
# additions, in the order in which threads happen to arrive: other bits in each run (chapter 15). With frozen embeddings
# there is no such sum.

# %%
print(inspect.getsource(scatter_add))
assert not any(entry["place"] == "layers.backward" or entry["name"] == "add.at" for entry in log)

# %% [markdown]
# **Stacked products copy views.** Heads are views, and `k.mT` is another. CuPy's own stacked product copies every
# operand that is not contiguous, and computes in float32 even where TF32 is asked for. cuBLAS can read most views: it
# takes a flag, transposed or not, and a distance from one matrix of the stack to the next. `backend.bmm` passes them
# on.

# %%
print(inspect.getsource(cublas.layout))

# %% [markdown]
# One distance is not enough for the heads of several texts, which lie inside a text side by side. So attention first
# copies q, k, v and `do` once each, head by head (`contiguous`). That is good on a CPU too, where BLAS is fastest with
# rows that follow each other. From then on each product is one call, and the scores, `e` and `ds` (T x T in every
# head), are never copied to be transposed:

# %%
texts, h, T, d_head = 16, 12, 128, 32
q, k, v, do = np.empty((4, texts, h, T, d_head), "f4")  # as `contiguous` leaves them
e = ds = np.empty((texts, h, T, T), "f4")
STACKED = {
    "k q^T": (k, q.mT), "e^T v": (e.mT, v),
    "e do": (e, do), "v do^T": (v, do.mT), "ds^T k": (ds.mT, k), "ds q": (ds, q),
}  # fmt: skip
print("16 texts, 12 heads   MB copied by cupy.matmul   by bmm   calls of cuBLAS")
for name, operands in STACKED.items():
    ways = (naive, ours)
    copied = [sum(x.nbytes for x, copy in zip(operands, way(*operands), strict=True) if copy) for way in ways]
    n = cublas.calls(*map(View.of, operands))
    print(f"{name:16} {copied[0] / 1e6:28.1f} {copied[1] / 1e6:8.1f} {n:17}")
    assert copied[1] == 0 and n == 1
print(f"q, k, v and do, copied before: {4 * q.nbytes / 1e6:.1f} MB")

attention, copies = minilm.parts == "products of attention", minilm.parts == "attention: copies"
print(f"\nin the step: {attention.sum()} stacked products, which move {moved[attention].sum() / 1e6:.0f} MB;", end=" ")
print(f"{copies.sum()} copies for them and of what comes out, {moved[copies].sum() / 1e6:.0f} MB")
assert moved[copies].sum() < 0.6 * moved[attention].sum()

# %% [markdown]
# **TF32.** It keeps 10 of the 23 bits of each factor's mantissa and adds in float32. CuPy uses it only if asked to
# (`CUPY_TF32=1`, or `--tf32` in `lorabook bench`), and `bmm` with it. What it does to a product can be tried here:

# %%


def tf32(x):
    """Rounded to 10 bits of mantissa."""
    return ((x.view(np.uint32) + 0x1000) & np.uint32(0xFFFFE000)).view(np.float32)


a, b = rng.standard_normal((2, 256, 256), dtype="f4")
exact = a.astype("f8") @ b.astype("f8")
error = {name: np.linalg.norm(product - exact) / np.linalg.norm(exact)
         for name, product in (("float32", a @ b), ("TF32", tf32(a) @ tf32(b)))}  # fmt: skip
print({name: f"{value:.0e}" for name, value in error.items()}, "relative error of a product")
assert error["float32"] < 1e-6 and 1e-4 < error["TF32"] < 1e-3

# %% [markdown]
# A gradient check means nothing in TF32, and a comparison with a float32 run of another library is not a fair one:
# PyTorch also leaves it off for products unless told otherwise. Give it to both sides or to none.
#
# ## Measure
#
# With a GPU and CuPy (`lorabook doctor` names the wheel):
#
# ```bash
# pytest -m gpu                                                       # is it right?
# lorabook bench gemm --backend cupy                                  # the products alone: the ceiling
# lorabook bench step --backend cupy --vs peft                        # MiniLM, beside PEFT
# lorabook bench step --backend cupy --vs peft --model block-1024
# lorabook bench step --backend cupy --vs peft --model block-1024 --tf32
# ```
#
# and here, beside the prediction:

# %%
case = Case(model="block-1024", batch_size=16, seq_len=128, backend="numpy" if xp is np else "cupy")
step = steps["block-1024"]
predicted = max(len(step.parts) * LAUNCH, step.seconds(16).sum())
if xp is np:
    print("no GPU: this cell would time a LoRA step of block-1024, 16 x 128 tokens, on it")
else:
    import timeit

    from lorabook.bench.ours import lora

    once, device = lora(case)
    seconds = []
    for _ in range(13):
        device.synchronize()
        seconds.append(timeit.timeit(lambda: (once(), device.synchronize()), number=1))
    print(f"measured {1e3 * np.median(seconds[3:]):.1f} ms")
print(f"predicted by the model above: {1e3 * predicted:.1f} ms, at the least")

# %% [markdown]
# ## What to remember
#
# * The arrays say which library computes. One `model.to(xp)` moves the work; mixed arrays are an error, not a copy.
# * The host should ask for values rarely: here for losses and norms, every ten steps. What has to be decided in each
#   step, the device decides.
# * A step is about a thousand launches; with them it takes a fixed time, whatever the batch. Below some size nothing
#   else counts. Many small arrays are best treated as one.
# * Products are compute-bound from a size on (`n = 6 peak / bandwidth` for square ones in float32); all else, products
#   with an adapter's factors included, is bound by memory.
# * Count first, predict, then measure. This chapter has done the first two.
#
# ## Exercises
#
# Replace `None`, run the cell, then run the cell below it. Solutions are in `solutions/16_gpu.ipynb`.
#
# **1. The ridge.** From which `n` on is a product of two `n x n` matrices compute-bound, for numbers of `itemsize`
# bytes?

# %%
answer = None  # your turn: lambda peak, bandwidth, itemsize: ...

# %%
if answer is None:
    print("not answered yet")
else:
    for peak, itemsize in ((67e12, 4), (990e12, 2)):
        n = answer(peak, BANDWIDTH, itemsize)
        assert math.isclose(2 * n**3 / peak, 3 * itemsize * n**2 / BANDWIDTH)
        print(f"{itemsize} bytes, {peak / 1e12:.0f} TFLOP/s: n = {n:.0f}")
    print("right")

# %% [markdown]
# **2. Few tokens.** Generation computes `x W^T` for one new token of each of `B` texts: `N = B` rows. For large `d_in`
# and `d_out`, how many FLOPs per byte is that in float32, and from which `B` on is it compute-bound?

# %%
answer = None  # your turn: (lambda B: ..., lambda peak, bandwidth: ...)

# %%
if answer is None:
    print("not answered yet")
else:
    per_byte, least = answer
    d = 1e9
    assert math.isclose(per_byte(4), 2 * 4 * d * d / (4 * (4 * d + d * d + 4 * d)), rel_tol=1e-6)
    assert math.isclose(per_byte(least(67e12, BANDWIDTH)), 67e12 / BANDWIDTH)
    print(f"right: from {least(67e12, BANDWIDTH):.0f} texts on")

# %% [markdown]
# **3. The last copies.** Suppose that the parameters themselves were views of one vector, as the moments are already.
# Nothing would have to be laid end to end for them, and nothing copied back. How many launches would AdamW take? Use
# `launches["AdamW"]` and `tensors`.

# %%
answer = None  # your turn: an integer

# %%
if answer is None:
    print("not answered yet")
else:
    flat = {"all": recorded(rng.standard_normal(1000).astype("f4"))}
    optimizer, alive = AdamW(1e-3), np.isfinite(recorded(np.ones(())))
    optimizer.step(flat, flat)
    Recorded.log = []
    optimizer.step(
        flat, flat, alive=alive
    )  # a single array is where it should be: nothing is laid, nothing copied back
    assert answer == len(Recorded.log) + 1  # and the gradients laid end to end
    print(f"right: {answer} instead of {launches['AdamW']}, and {total - launches['AdamW'] + answer:,} a step")

# %% [markdown]
# **4. Which are float64?** `x` is a float32 array. Name the expressions whose result is not.

# %%
EXPRESSIONS = {
    "a": "x * 0.5",
    "b": "x * np.float64(0.5)",
    "c": "x / np.sqrt(64)",
    "d": "x * float(np.sqrt(64))",
    "e": "x - x.mean()",
    "f": "x + np.arange(3)",
    "g": "x + np.arange(3).sum() / 3",
}
answer = None  # your turn: a string of letters

# %%
if answer is None:
    print("not answered yet")
else:
    x = np.ones(3, "f4")
    assert set(answer) == {name for name, text in EXPRESSIONS.items() if eval(text).dtype != np.float32}
    print("right")

# %% [markdown]
# ## Sources
#
# S. Williams, A. Waterman and D. Patterson, *Roofline: an insightful visual performance model for multicore
# architectures*, Commun. ACM 52(4), 2009. R. Okuta et al., *CuPy: a NumPy-compatible library for NVIDIA GPU
# calculations*, LearningSys at NIPS 2017; batched products: `cupy.matmul` of version 14. NVIDIA, *H100 Tensor Core GPU*
# data sheet, SXM (67 TFLOP/s float32, 495 TFLOP/s TF32 without sparsity, 3.35 TB/s). D. Cherniuk et al., *RunLoRA*,
# 2023, arXiv:2312.03415 (contraction orders).
