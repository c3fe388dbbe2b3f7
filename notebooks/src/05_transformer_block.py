# %% [markdown]
# # What is the backward pass of a transformer block, with LoRA on any of its matrices?
#
# A transformer is one block, repeated: six linear layers, two layer norms, one activation, and attention between them.
# Chapters 02 and 03 derived all of it but attention. This chapter adds that, puts the block together, and then hangs
# LoRA on each of the six matrices in turn: what does each place need, what does it cost, and what can it learn?

# %%
import copy
import inspect
import math
import re
import timeit
from unittest import mock

import matplotlib.pyplot as plt
import numpy as np
from threadpoolctl import threadpool_limits

from lorabook import LoRAConfig, environment, inject, plotting
from lorabook import attention as A
from lorabook import functional as F
from lorabook.absorbed import absorbed_attention, absorbed_attention_backward, absorbing_is_cheaper
from lorabook.data import Batches
from lorabook.gradcheck import check_layer, complex_step, relative_error
from lorabook.layers import Layer, LayerNorm, Linear, Sequential, prefixed
from lorabook.models.classifier import Classifier
from lorabook.models.transformer import PostNormBlock, PreNormBlock, SelfAttention
from lorabook.optim import AdamW
from lorabook.tables import format_table
from lorabook.train import train

plt.style.use(plotting.STYLE)
plt.rcParams["figure.dpi"] = 75
plt.ion()  # figures appear below their cell
threadpool_limits(1)  # steadier times: such small products do not profit from more threads
print(environment.summary())
rng = np.random.default_rng(0)
normal = rng.standard_normal

# %% [markdown]
# ## The block
#
# `x` is `(B, T, d)`: B sequences of T tokens, d numbers each. Layer norm stands after each half in BERT (post-norm),
# before each half in GPT-2 and most models since (pre-norm). The six linear layers are in capitals:
#
# ```
# post-norm     x ─┬─ QUERY, KEY, VALUE ─ attention ─ ATTENTION.OUTPUT ─ (+) ─ norm ─ u
#                  └──────────────────── residual ──────────────────────┘
#               u ─┬─ INTERMEDIATE ─ gelu ─ OUTPUT ─ (+) ─ norm ─ y
#                  └─────────── residual ─────────────┘
#
# pre-norm      x ─┬─ norm ─ QUERY, KEY, VALUE ─ attention ─ OUTPUT ─ (+) ─ u
#                  └──────────────────── residual ─────────────────────┘
#               u ─┬─ norm ─ UP ─ gelu ─ DOWN ─ (+) ─ y
#                  └─────────── residual ────────┘
# ```
#
# Everything but attention treats each token by itself. Only in attention does a token see other tokens.
#
# ## Attention, forward
#
# Each token asks a question, `q_i`, and offers a key, `k_j`, and a value, `v_j`. All this happens in `heads` separate
# groups of `d_head = d / heads` features. In each head, with `c = 1 / sqrt(d_head)`:
#
# ```
# scores = c q k^T + bias      (T, T)        how well does the key of token j answer the question of token i?
# p      = softmax(scores)     (T, T)        each row adds up to 1
# o      = p v                 (T, d_head)   row i: an average of the values, with weights p_i
# ```
#
# The heads are a view of the same memory. The bias hides tokens: `-huge` where token i must not look, which softmax
# turns into an exact 0. A causal model hides every j > i; a batch of texts of different lengths hides the padding.

# %%
B, T, d, heads = 2, 4, 6, 2
d_head = d // heads
q, k, v = normal((3, B, T, d))
q_, k_, v_ = (A.split_heads(array, heads) for array in (q, k, v))  # (B, heads, T, d_head)
mask = np.array([[True, True, True, True], [True, True, True, False]])  # the second text has 3 tokens
bias = A.causal_bias(T, q) + A.padding_bias(mask, q)  # (B, 1, T, T)

scores = q_ @ k_.mT / math.sqrt(d_head) + bias  # (B, heads, T, T)
p, _ = F.softmax(scores)
o = p @ v_  # (B, heads, T, d_head)
print("p of the second text, first head; no token looks ahead, none looks at token 3, which is padding:")
print(np.round(p[1, 0], 2))
assert np.all(p[..., *np.triu_indices(T, 1)] == 0) and np.all(p[1, :, :, 3] == 0)

y, cache = A.attention(q, k, v, heads, bias)
print("A.attention does the same:", np.allclose(y, A.merge_heads(o), rtol=1e-13, atol=0))
print("q and its heads share memory:", np.shares_memory(q, q_))
assert np.allclose(y, A.merge_heads(o), rtol=1e-13, atol=0) and np.shares_memory(q, q_)

# %% [markdown]
# That is the formula. The library computes the same in another order, and never forms `p`:
#
# ```
# s = c k q^T + bias^T         (T, T)        the scores transposed: keys in rows, a column for each question
# e = exp(s - max s)           (T, T)        max s: the largest of each column
# r = 1 / l, l = sums of e     (1, T)        one number for each column; p^T = e * r
# o = (e^T v) * r^T            (T, d_head)   divided last: d_head numbers for each question, not T
# ```
#
# Why transposed? Maxima and sums then run down the columns, and NumPy takes those of all columns at once, row by row;
# along a row it must bring many numbers down to one. Why in blocks, a few heads at a time? There are `T / d_head` times
# as many scores as numbers in q, and several passes go over them. A block of about `SCORES` of them (1 MB in float32)
# stays in the cache from the first pass to the last.

# %%
print(inspect.getsource(A._attend))

# %%
blocks, *_ = cache
_, (*_, e, r) = blocks[0]  # the only one: so few scores fit into one block
print("e * r is p, transposed:", np.allclose(e * r, p.mT, rtol=1e-13, atol=0))
assert np.allclose(e * r, p.mT, rtol=1e-13, atol=0)


def milliseconds(**works):
    """{name: time of a work}: each the least of 15, in turn, so that a busy moment of the machine hits all of them."""
    best = dict.fromkeys(works, math.inf)
    for _ in range(15):
        for name, work in works.items():
            best[name] = min(best[name], 1e3 * timeit.timeit(work, number=1))
    return best


large = normal((8, 128, 128)).astype("f4")  # the scores of 8 heads, T = 128
many = normal((3, 16, 128, 384)).astype("f4")  # q, k, v of 16 texts; 12 heads


def in_one_block():
    with mock.patch.object(A, "SCORES", 1 << 40):
        A.attention(*many, 12)


times = milliseconds(row=lambda: large.max(axis=-1), column=lambda: large.max(axis=-2))
times |= milliseconds(blocks=lambda: A.attention(*many, 12), one=in_one_block)
print(f"largest of each row {times['row']:.2f} ms, of each column {times['column']:.2f} ms")
print(f"attention, 16 texts: in blocks {times['blocks']:.0f} ms, all scores in one {times['one']:.0f} ms")

# %% [markdown]
# (Times are those of one run on one machine.)
#
# ## Attention, backward
#
# The recipe of chapter 02, in one head. `do` is what arrives, `ds` is the gradient of the scores:
#
# ```
# <do, p dv>   = <p^T do, dv>                                  dv = p^T do
# <do, dp v>   = <do v^T, dp>                                  dp = do v^T
# softmax, chapter 02                                          ds_ij = p_ij (dp_ij - sum_j dp_ij p_ij)
# <ds, c dq k^T> = <c ds k, dq>                                dq = c ds k
# <ds, c q dk^T> = <c ds^T q, dk>                              dk = c ds^T q
# ```
#
# One step saves work. The row sum runs over two T x T arrays. But `dp_ij = <do_i, v_j>`, so
#
# ```
# sum_j dp_ij p_ij = sum_j <do_i, v_j> p_ij = <do_i, sum_j p_ij v_j> = <do_i, o_i>
# ```
#
# which runs over two T x d_head arrays, both at hand. (FlashAttention, which never holds a whole row of `p`, relies on
# it.) It also says what `ds` means: `ds_ij = p_ij <do_i, v_j - o_i>`. Looking more at token j moves the output from
# `o_i` towards `v_j`; if the two are equal, the score does not matter. We shall meet that case.
#
# Now in the library's order. With `D_i = <do_i, o_i>`, one number for each column, and `p^T = e * r`:
#
# ```
# dv   = p^T do                = e (r do)                       r do: each row of do times its r
# ds^T = p^T * (v do^T - D)    = e * (v (r do)^T - r D)
# ```
#
# So `r` goes into `do` and `D`, which are small, and `e` is used as it is. In the code `ds` stands transposed, too, and
# the cached `q` has the factor c in it already.

# %%
print(inspect.getsource(A.attention_backward))
print(inspect.getsource(A._attend_backward))

# %%
do_ = normal(o.shape)
dout = A.merge_heads(do_)
dp = do_ @ v_.mT
ds = p * (dp - (dp * p).sum(axis=-1, keepdims=True))
print(f"row sums, over j and over features: {relative_error((do_ * o).sum(-1), (dp * p).sum(-1)):.0e} apart")
meaning = p * np.einsum("bhid,bhijd->bhij", do_, v_[:, :, None] - o[:, :, :, None])
print(f"ds against p_ij <do_i, v_j - o_i>:  {relative_error(meaning, ds):.0e} apart")
assert relative_error((do_ * o).sum(-1), (dp * p).sum(-1)) < 1e-13 and relative_error(meaning, ds) < 1e-13
for size, width in ((128, 32), (2048, 64)):
    print(f"numbers read for one row sum at T = {size}, d_head = {width}: {2 * size} or {2 * width}")

for name, array, grad in zip("qkv", (q, k, v), A.attention_backward(dout, cache), strict=True):

    def loss(value, name=name):
        inputs = {"q": q, "k": k, "v": v} | {name: value}
        inputs = {name: array.astype(value.dtype) for name, array in inputs.items()}  # all complex
        return np.sum(dout * A.attention(**inputs, heads=heads, bias=bias)[0])

    error = relative_error(grad, complex_step(loss, array))
    print(f"d{name} against the complex step: {error:.0e}")
    assert error < 1e-12

# %% [markdown]
# ## A parameter that cannot learn
#
# Add the same vector b to every key, which is what the bias of the key layer does. Row i of the scores changes by
# `c <q_i, b>` for every j: a constant, which softmax does not see. So the bias of a key never changes the output, and
# its gradient, `sum_j dk_j = c sum_i q_i sum_j ds_ij`, is zero because each row of `ds` adds up to 0. BERT has such a
# bias in every block, and `bias="all"` would train it for nothing. (Rotary positions turn keys after the bias was
# added, by an angle that depends on j; then it does matter.)

# %%
block = PostNormBlock.random(d, heads, 4 * d, rng).to(np, "float64")
x = normal((B, T, d))
y, cache = block.forward(x)
_, grads = block.backward(normal(y.shape), cache)
size = {name: np.abs(grads[f"attention.self.{name}.bias"]).max() for name in ("query", "key", "value")}
print("largest gradient of the bias:", {name: f"{value:.0e}" for name, value in size.items()})
block.named_params()["attention.self.key.bias"] += 10
moved = relative_error(block.forward(x)[0], y)
print(f"bias of the key + 10: the output moves by {moved:.0e}")
assert size["key"] < 1e-14 < 1e-4 < size["query"] and moved < 1e-13

# %% [markdown]
# ## The first token alone
#
# A classifier on top reads one token of a text, the first. So in the last block one token asks, and T keys and T values
# are made for a single question. They need not be made at all. Let `q` be that question, in one head, and `W_k`, `W_v`
# the rows of this head; `1` is a column of ones:
#
# ```
# scores = c q k^T = c q (x W_k^T + 1 b_k^T)^T = c (q W_k) x^T + c <q, b_k> 1^T
# o      = p v     = p (x W_v^T + 1 b_v^T)     = (p x) W_v^T + b_v^T                 since p adds up to 1
# ```
#
# The question is carried through `W_k` to the inputs, asks them, and their average is carried through `W_v`: the
# weights are *absorbed* into question and output. The last term of the scores is the same for every token; softmax does
# not see it. So `b_k` does not occur, and that is one more way to see that its gradient is zero. Count the FLOPs, for
# `f` questions a text:
#
# ```
# keys and values                    x W_k^T, x W_v^T            4 B d   T d
# absorbed      q W_k, (p x) W_v^T   with B f rows               4 B d   f d
#               (q W_k) x^T, p x     with heads f rows a text    4 B d   f heads T
#
# absorbed is cheaper if             f (d + heads T) < T d
# ```
#
# (Beside keys and values, `q k^T` and `p v` would come on top.) For f = 1 that is nearly always so; for f = T, all
# tokens asking, never.

# %%
print(inspect.getsource(absorbed_attention))

# %%
x, q = normal((B, T, d)), normal((B, 1, d))
W_k, W_v, b_k, b_v = normal((d, d)), normal((d, d)), normal(d), normal(d)
hide = A.padding_bias(mask, q)  # (B, 1, 1, T)
o, cache = A.attention(q, x @ W_k.T + b_k, x @ W_v.T + b_v, heads, hide)
absorbed, absorbed_cache = absorbed_attention(q, x, W_k, W_v, b_v, heads, hide)
print(f"o:    {relative_error(absorbed, o):.0e} apart")

do = normal(o.shape)
dq, dk, dv = A.attention_backward(do, cache)
dx = dk @ W_k + dv @ W_v
dW_k, dW_v = (F.rows(array).T @ F.rows(x) for array in (dk, dv))
expected = {"dq": dq, "dx": dx, "dW_k": dW_k, "dW_v": dW_v, "db_v": dv.sum(axis=(0, 1))}
for (name, grad), other in zip(expected.items(), absorbed_attention_backward(do, absorbed_cache), strict=True):
    print(f"{name:4}: {relative_error(other, grad):.0e} apart")
    assert relative_error(other, grad) < 1e-12
print(f"db_k: {np.abs(dk.sum(axis=(0, 1))).max():.0e}, from the keys")
assert relative_error(absorbed, o) < 1e-12 and np.abs(dk.sum(axis=(0, 1))).max() < 1e-13

for size, width, n in ((128, 384, 12), (512, 1024, 16)):
    both = {f: f * (width + n * size) for f in (1, 8, size)}
    print(f"T = {size}, d = {width}, {n} heads: T d = {size * width:,};", end=" ")
    print("f (d + heads T) =", ", ".join(f"{value:,} for f = {f}" for f, value in both.items()))
    assert all(absorbing_is_cheaper(f, size, n, width) == (value < size * width) for f, value in both.items())
    assert absorbing_is_cheaper(1, size, n, width) and not absorbing_is_cheaper(size, size, n, width)

attend = PostNormBlock.random(384, 12, 1536, rng).children["attention"].children["self"]
texts = normal((4, 128, 384)).astype("f4")


def first_token(cheaper):
    with mock.patch.object(inspect.getmodule(SelfAttention), "absorbing_is_cheaper", lambda *sizes: cheaper):
        y, cache = attend.forward(texts, first=1)
        attend.backward(y, cache)


attend.freeze()
times = milliseconds(absorbed=lambda: first_token(True), made=lambda: first_token(False))
print(f"forward and backward, T = 128, d = 384: {times['absorbed']:.1f} ms absorbed, {times['made']:.1f} ms with keys")

# %% [markdown]
# One thing changes on the way back. The gradient of `W_k` comes out whole, `q^T dt` with `dt` the gradient of `q W_k`;
# with one row a text it costs little. An adapter in this place takes its `dA = s B^T dW` and `dB = s dW A^T` from it,
# the "two windows" of chapter 03, where with T rows a text it would be the product to avoid.
#
# ## The block, backward
#
# Two rules put it together. **A sum hands its gradient to both terms**: the residual adds, so `dout` of the sum goes
# into the layers *and* past them. **A value used twice adds its gradients**: `x` feeds query, key, value and the
# residual. The rest is bookkeeping: which layers still have something trainable below them?

# %%
print(inspect.getsource(PostNormBlock.backward))

# %% [markdown]
# The check is that of chapter 02, harder: a stack of two blocks, all parameters random (also those of the norms),
# everything trainable, every entry by complex step. And the same stack, frozen, with LoRA on all six matrices.

# %%
rows = []
for Block in (PostNormBlock, PreNormBlock):
    for kind in ("everything", "LoRA on all six"):
        stack = Sequential({str(i): Block.random(4, 2, 6, rng) for i in range(2)}).to(np, "float64")
        for array in stack.named_params().values():
            array[...] = 0.7 * normal(array.shape)
        if kind != "everything":
            inject(stack, LoRAConfig(r=2, lora_alpha=16, init_lora_weights=False), rng)
        errors = check_layer(stack, normal((2, 3, 4)), rng)
        entries = sum(array.size for array in stack.trainable_params().values())
        row = {"block": Block.__name__, "trains": kind, "tensors": len(errors) - 1, "entries": entries}
        rows.append(row | {"x": errors["x"], "worst": max(errors.values())})
        assert rows[-1]["worst"] < 1e-11
columns = {name: lambda row, name=name: str(row[name]) for name in ("block", "trains", "tensors", "entries")}
columns |= {"error of dx": lambda row: f"{row['x']:.0e}", "worst error": lambda row: f"{row['worst']:.0e}"}
print(format_table(rows, columns))

# %% [markdown]
# ## LoRA on one matrix at a time
#
# An adapter needs two things: its own input `x`, and the gradient that arrives at its output. How much that takes
# depends on where it sits. Two experiments find out. *Through which frozen layers does the gradient pass?* We note
# every linear layer that is asked for the gradient of its input (the product `dout @ W`). *Which cached arrays are
# needed?* We overwrite one at a time with NaN and see whether a gradient of the adapter turns into NaN.

# %%
PATHS = {  # from the top down
    "output": "output.dense",
    "intermediate": "intermediate.dense",
    "attention.output": "attention.output.dense",
    "value": "attention.self.value",
    "key": "attention.self.key",
    "query": "attention.self.query",
}
CACHED = {  # where in the block's cache each array is
    "x": (0, range(3), 0), **{name: (0, 3, 0, 0, 1, i) for i, name in enumerate("qkver")}, "o": (0, 3, 1),
    "a": (1, 0, 0), "norm1": (1, 1, 0), "u": (2, 0), "slope": (3,), "h": (4, 0, 0), "norm2": (4, 1, 0),
}  # fmt: skip


def adapted(layer, targets):
    layer = copy.deepcopy(layer)
    inject(layer, LoRAConfig(r=2, lora_alpha=16, target_modules=targets, init_lora_weights=False))
    return layer


def passes_through(layer, x):
    """Paths of the linear layers that hand a gradient to their input, when x itself needs none."""
    found = []
    for path, part in layer.named_layers():
        if getattr(part.params.get("weight"), "ndim", 0) == 2:

            def watched(dout, cache, need_dx=True, path=path, backward=part.backward):
                found.extend([path] * need_dx)
                return backward(dout, cache, need_dx)

            part.backward = watched
    y, cache = layer.forward(x)
    layer.backward(np.ones_like(y), cache, need_dx=False)
    return found


def spoiled(cache, where):
    """The cache with NaN in one place."""
    if not where:
        return np.full_like(cache, np.nan)
    chosen = [where[0]] if isinstance(where[0], int) else where[0]
    return tuple(spoiled(part, where[1:]) if i in chosen else part for i, part in enumerate(cache))


def needed(layer, x):
    """Names of the cached arrays that some gradient depends on."""
    _, cache = layer.forward(x)
    spoil = {name: layer.backward(dout, spoiled(cache, where), need_dx=False)[1] for name, where in CACHED.items()}
    return [name for name, grads in spoil.items() if any(np.isnan(grad).any() for grad in grads.values())]


block = PostNormBlock.random(d, heads, 4 * d, rng).to(np, "float64")
short = {path: name for name, path in PATHS.items()}
weights = {name: block.named_params()[f"{path}.weight"].size for name, path in PATHS.items()}
rows = []
for name, path in PATHS.items():
    layer = adapted(block, re.escape(path))  # a list of names would match ends: output.dense is the end of another
    through = [short[p] for p in passes_through(copy.deepcopy(layer), x)]
    share = sum(weights[n] for n in through) / sum(weights.values())
    row = {"LoRA on": name, "gradient passes through": ", ".join(through) or "-", "of the weights": f"{share:.0%}"}
    rows.append(row | {"cached arrays needed": " ".join(needed(layer, x))})
print(format_table(rows, {name: lambda row, name=name: row[name] for name in rows[0]}))
needs = {row["LoRA on"]: set(row["cached arrays needed"].split()) for row in rows}
assert needs["output"] == {"h", "norm2"} and needs["value"] == {"x", "e", "r", "norm1", "slope", "norm2"}
assert needs["query"] - needs["key"] == {"k"} and needs["key"] - needs["query"] == {"q"}
assert [row["of the weights"] for row in rows] == ["0%", "33%", "67%", "75%", "75%", "75%"]

# %% [markdown]
# (`a` is what goes into `attention.output`, `u` and `h` what goes into `intermediate` and `output`; `slope` is the
# derivative of the activation, `norm1` and `norm2` the normalised rows of the two layer norms.) Read it from the top:
#
# * `output` sits at the top: no gradient through any frozen weight, two cached arrays.
# * `value` needs `e` and `r`, which make up `p`, but neither `q`, `k`, `v` nor `o`: `dv = p^T do`.
# * `query` needs `k` and not `q`, `key` needs `q` and not `k`. Both need the gradient through three frozen matrices,
#   75 % of the block's weights, and then through softmax.
# * Arrays like `a`, `u` and `h` serve only `dW` or `dA` of the layer that they enter. Freeze it, and they could go.
#
# Adapters on query and value are few numbers, but they lie at the *bottom* of the block: a gradient must come all the
# way down to them. What LoRA saves for certain is `dW` everywhere, and everything below the lowest adapter:

# %%
tower = Sequential({str(i): PostNormBlock.random(96, 4, 384, rng) for i in range(6)})
x_tower = normal((4, 32, 96)).astype("f4")
layers = {f"{i}.attention.self.query": adapted(tower, [f"{i}.attention.self.query"]) for i in (5, 3, 0)}
layers["query"] = adapted(tower, ["query"])
passes = {name: (layer, *layer.forward(x_tower)) for name, layer in layers.items()}
times = milliseconds(**{name: lambda own=own: own[0].backward(*own[1:], need_dx=False) for name, own in passes.items()})
for name, layer in layers.items():
    count = len(passes_through(layer, x_tower))
    print(f"LoRA on {name:22} gradient through {count:2} of 36 layers, backward {times[name]:5.1f} ms")
    lowest = int(name[0]) if name[0].isdigit() else 0
    assert count == 6 * (5 - lowest) + 3

# %% [markdown]
# (Times are those of one run on one machine.) One adapter at the very bottom sends the gradient through as many frozen
# matrices as one in every block does. The way down is the expensive part.
#
# ## Where the FLOPs are
#
# A linear layer costs 2 FLOPs for each weight and token; with `d_mlp = 4 d` a block has `12 d^2` weights. The two
# products of attention, `q k^T` and `p v`, cost `2 T d` FLOPs each for a token, all heads together:
#
# ```
#                                linear layers             attention products     equal at
# forward                         24 T d^2                   4 T^2 d               T = 6 d
# full fine-tuning, a step        72 T d^2 (y, dx, dW)      12 T^2 d (2 + 4)       T = 6 d
# LoRA, a step, in a block        48 T d^2 (y, dx)          12 T^2 d               T = 4 d
# above the lowest adapter
# ```
#
# Attention has no weights to freeze, so LoRA saves nothing there: its share of a training step grows, and it overtakes
# the linear layers earlier. For each of their numbers the factors add 2 T FLOPs forward and 4 T backward (chapter 03):
# `108 T r d` a step on all six matrices, `24 T r d` on query and value. In MiniLM's sizes:

# %%
T, d, heads, r = 128, 384, 12, 8
block = PostNormBlock.random(d, heads, 4 * d, rng)
products = {name: 2 * T * block.named_params()[f"{path}.weight"].size for name, path in PATHS.items()}
products["attention products"] = 4 * T * T * d
total = sum(products.values())
for name, flops in reversed(products.items()):
    print(f"{name:18} {flops / 1e6:6.1f} MFLOP {flops / total:6.1%}")
linear, attention = total - products["attention products"], products["attention products"]
equal = {"forward": T * linear / attention, "LoRA step": T * 2 * linear / (3 * attention)}
print("attention costs as much as the linear layers at T =", {name: round(value) for name, value in equal.items()})
assert linear == 24 * T * d**2 and equal == {"forward": 6 * d, "LoRA step": 4 * d}

x = normal((1, T, d)).astype("f4")
rows = []
for name, targets in (("LoRA, query and value", ["query", "value"]), ("LoRA, all six", "all-linear"), ("full", None)):
    layer = copy.deepcopy(block)
    if targets:
        inject(layer, LoRAConfig(r=r, lora_alpha=16, target_modules=targets))
    trained = sum(array.size for array in layer.trainable_params().values())
    flops = (2 * linear + 6 * T * trained if targets else 3 * linear) + 3 * attention
    rows.append({"what trains": name, "layer": layer, "numbers": trained, "flops": flops, "seconds": math.inf})
for row in 25 * rows:  # in turn, so that a busy moment of the machine hits all three
    seconds = timeit.timeit(lambda: row["layer"].backward(x, row["layer"].forward(x)[1]), number=1)  # noqa: B023
    row["seconds"] = min(row["seconds"], seconds)
columns = {"what trains": lambda row: row["what trains"], "numbers": lambda row: f"{row['numbers']:,}"}
columns["GFLOP a step"] = lambda row: f"{row['flops'] / 1e9:.3f}"
columns["FLOPs"] = lambda row: f"{row['flops'] / rows[0]['flops']:.2f}"
columns["time, measured"] = lambda row: f"{row['seconds'] / rows[0]['seconds']:.2f}"
print(format_table(rows, columns))
assert [row["numbers"] for row in rows[:2]] == [4 * r * d, 18 * r * d]
assert rows[1]["flops"] - 2 * linear - 3 * attention == 108 * T * r * d
assert 1.02 < rows[1]["flops"] / rows[0]["flops"] < 1.05 and 1.4 < rows[2]["flops"] / rows[0]["flops"] < 1.5

# %% [markdown]
# At T = 128 attention is 5 % of the forward FLOPs. Adapters on all six matrices train 4.5 times as many numbers as
# those on query and value, for 3 % more FLOPs. (The last column is one run on one machine; a few per cent are noise.
# Norms, softmax and GELU are in the times and not in the FLOPs: nothing of theirs is saved by freezing.)
#
# ## Do gradients reach the lower blocks?
#
# Six random blocks, an adapter with `B = 0` on every matrix, random `dout` at the end: how large is `dB` in each block?
# Weights have variance `1 / d_in` here; five seeds, line: median, band: lowest to highest.

# %%
NAMES = {
    PostNormBlock: ("attention.self.query", "attention.self.value", "intermediate.dense"),
    PreNormBlock: ("attention.query", "attention.value", "up"),
}


def at_the_start(Block, gain, seed):
    """(6 blocks, 4): norms of three dB, and the share of v that differs between the tokens of a sequence."""
    draw = np.random.default_rng(seed)
    tower = Sequential({str(i): Block.random(64, 4, 256, draw) for i in range(6)})
    for array in tower.named_params().values():
        array *= gain if array.ndim == 2 else 1
    inject(tower, LoRAConfig(r=8, lora_alpha=16), draw)
    y, caches = tower.forward(draw.standard_normal((4, 16, 64)).astype("f4"))
    _, grads = tower.backward(draw.standard_normal(y.shape).astype("f4"), caches, need_dx=False)
    rows = []
    for i, cache in enumerate(caches):
        v = cache[0 if Block is PostNormBlock else 1][3][0][0][1][2]  # (B, heads, T, d_head)
        spread = np.linalg.norm(v - v.mean(axis=2, keepdims=True)) / np.linalg.norm(v)
        rows.append([*(np.linalg.norm(grads[f"{i}.{name}.lora_B"]) for name in NAMES[Block]), spread])
    return rows


measured = {
    (Block, gain): np.array([at_the_start(Block, gain, seed) for seed in range(5)])  # (5, 6, 4)
    for Block in (PostNormBlock, PreNormBlock)
    for gain in (1, math.sqrt(3))  # the weights of Block.random have variance 1 / (3 d_in)
}
figure, panels = plt.subplots(1, 2, figsize=(9.6, 3.6), sharey=True)
panels[0].set_ylabel("norm of the gradient of lora_B")
for axes, Block, above in zip(panels, NAMES, ((-3, 4, -10), (-3, -10, 4)), strict=True):
    for n, color in enumerate(("#0072B2", "#D55E00", "#009E73")):
        table = measured[Block, math.sqrt(3)][:, :, n]  # (5 seeds, 6 blocks)
        axes.plot(np.median(table, axis=0), "o-", color=color)
        axes.fill_between(range(6), table.min(axis=0), table.max(axis=0), color=color, alpha=0.2, linewidth=0)
        name = NAMES[Block][n].removeprefix("attention.").removeprefix("self.").removesuffix(".dense")
        axes.annotate(name, (5, np.median(table[:, 5])), (8, above[n]), textcoords="offset points", color=color)
    axes.set(yscale="log", xlabel="block (0 is the lowest)", xlim=(-0.2, 6.6), xticks=range(6), title=Block.__name__)

# %%
ratios = {key: np.median(table[:, 0] / table[:, 5], axis=0) for key, table in measured.items()}
columns = {
    "median of block 0 / block 5": lambda key: (
        f"{key[0].__name__}, weights of variance {'1 / d_in' if key[1] > 1 else '1 / (3 d_in)'}"
    )
}
for n, name in enumerate(("query", "value", "intermediate or up")):
    columns[name] = lambda key, n=n: f"{ratios[key][n]:.2f}"
for i in (0, 5):
    columns[f"v differs, block {i}"] = lambda key, i=i: f"{np.median(measured[key][:, i, 3]):.2f}"
print(format_table(list(measured), columns))
post, pre = ratios[PostNormBlock, math.sqrt(3)], ratios[PreNormBlock, math.sqrt(3)]
print(f"post-norm, variance 1 / d_in: what differs in v, lowest against highest, squared: {post[3] ** 2:.1f}")
assert all(0.75 < ratio < 1.3 for Block in NAMES for ratio in ratios[Block, 1][:3])
assert 3 < post[0] < 5 and 3 < pre[0] < 5 and min(pre[:3]) > 1.5 and min(post[:3]) > 0.5
assert all(ratio[3] > 1.04 for ratio in ratios.values()) and 3 < post[3] ** 2 < 5

# %% [markdown]
# In these six blocks no gradient vanishes on its way down. With the library's initialisation, a third of the variance,
# the lowest block gets 0.8 to 1.2 times what the highest gets. With the larger weights, the pre-norm gradients *grow*
# on the way down, where each half adds its own to the one that passes by.
#
# What is small is the gradient of the query in the *upper* blocks, in both. There the tokens have become more alike
# (last two columns). And we know what that does: `ds_ij = p_ij <do_i, v_j - o_i>`. Where all values are the same, it
# does not matter where a token looks. The keys enter as well: the rows of `ds` add up to 0, so `dq = c ds k` sees only
# what differs between keys. Two factors, and indeed the square of what differs is close to the ratio of the gradients
# (post-norm). A trained model is another matter, and so are more blocks.
#
# ## Where to look, and what to say
#
# Does it matter which matrices get the adapters? Here is a model of two causal pre-norm blocks on frozen random
# embeddings. It is trained to repeat: at every position, say the symbol that stood *one* place back (8 symbols, so
# guessing is right in 1 of 8 cases). Then it is frozen, and LoRA has to change its mind in one of two ways:
#
# * **where to look**: say the symbol that stood *three* places back;
# * **what to say**: look one place back as before, but say each symbol by a new name.
#
# Four places for the adapters, each with exactly 3,072 numbers, the same scaling, the same 150 steps of AdamW.

# %%
SYMBOLS, LENGTH, FIRST, WIDTH = 8, 10, 3, 32  # FIRST: the first position that has a symbol three places back


class Copier(Classifier, Layer):
    """ids (B, LENGTH) -> logits (B (LENGTH - FIRST), SYMBOLS), one row for each position from FIRST on."""

    def __init__(self, seed):
        draw = np.random.default_rng(seed)
        self.tokens, self.positions = (draw.standard_normal((n, WIDTH)).astype("f4") for n in (SYMBOLS, LENGTH))
        blocks = {str(i): PreNormBlock.random(WIDTH, 4, 2 * WIDTH, draw) for i in range(2)}
        head = {"norm": LayerNorm.unit(WIDTH), "linear": Linear.random(WIDTH, SYMBOLS, draw)}
        super().__init__(children={"blocks": Sequential(blocks), "head": Sequential(head)})

    def forward(self, ids, rng=None):
        x = self.tokens[ids] + self.positions
        h, blocks = self.children["blocks"].forward(x, rng, bias=A.causal_bias(LENGTH, x))
        logits, head = self.children["head"].forward(F.rows(h[:, FIRST:]))
        return logits, (blocks, head)

    def backward(self, dout, cache, need_dx=False):
        blocks, head = cache
        dh, head_grads = self.children["head"].backward(dout, head)
        dh = np.pad(dh.reshape(-1, LENGTH - FIRST, WIDTH), ((0, 0), (FIRST, 0), (0, 0)))  # nothing from before FIRST
        _, grads = self.children["blocks"].backward(dh, blocks, need_dx=False)
        return None, prefixed("blocks", grads) | prefixed("head", head_grads)

    def loss_and_grad(self, ids, labels, *options):
        return super().loss_and_grad(ids, labels.ravel(), *options)


def sequences(task, n, seed):
    ids = np.random.default_rng(seed).integers(SYMBOLS, size=(n, LENGTH))
    back = 3 if task == "where to look" else 1
    labels = ids[:, FIRST - back : LENGTH - back]
    return ids, (labels + 3) % SYMBOLS if task == "what to say" else labels


def fit(model, task, lr, seed, epochs=1):
    """(loss at each step, share of fresh symbols said right)"""
    history = train(model, Batches(*sequences(task, 2400, seed), 16, seed), AdamW(lr), epochs=epochs, seed=seed)
    ids, labels = sequences(task, 300, seed + 1000)
    return [row["loss"] for row in history], model.evaluate(ids, labels.ravel())[1]


PLACES = {  # which layers of each block, with which rank
    "query and key": {"query": 12, "key": 12},
    "value and output": {"value": 12, "output": 12},
    "MLP": {"up": 8, "down": 8},
    "all six": {"query": 3, "key": 3, "value": 3, "output": 3, "up": 4, "down": 4},
    "MLP, 4 times the steps": {"up": 8, "down": 8},
    "MLP of the upper block, 4 times": {"1.up": 16, "1.down": 16},
}
TASKS = ("where to look", "what to say")
curves, right = {}, {}
for seed in range(3):
    base = Copier(seed)
    print(f"seed {seed}: one place back, all weights trained: {fit(base, 'one back', 3e-3, seed)[1]:.1%} right")
    for place, ranks in PLACES.items():
        epochs, alpha = 4 if "4 times" in place else 1, {name: 2 * r for name, r in ranks.items()}
        for task in TASKS[: 1 if epochs > 1 else 2]:
            model = copy.deepcopy(base)
            inject(model, LoRAConfig(target_modules=list(ranks), rank_pattern=ranks, alpha_pattern=alpha), seed)
            assert sum(array.size for array in model.trainable_params().values()) == 3072
            curves[place, task, seed], right[place, task, seed] = fit(model, task, 1e-2, seed + 10, epochs)

columns = {"right on fresh symbols, seeds 0 to 2": str}
for task in TASKS:
    columns[task] = lambda place, task=task: " ".join(
        f"{right[place, task, seed]:6.1%}" if (place, task, seed) in right else "-".rjust(6) for seed in range(3)
    )
print(format_table(list(PLACES), columns))

# %%
colors = dict(zip(PLACES, ("#0072B2", "#D55E00", "#009E73", "#000000"), strict=False))
stands = (((20, -0.4), (62, 2.3), (62, 2.7), (80, -0.4)), ((90, 3.4), (50, 0.55), (50, 0.9), (50, 0.2)))  # the names
figure, panels = plt.subplots(1, 2, figsize=(9.6, 3.6), sharey=True)
panels[0].set_ylabel("training loss (nats, mean of 10 steps)")
panels[0].text(112, 2.2, "guessing, ln 8", color="#666666", fontsize=9)
for axes, task, where in zip(panels, TASKS, stands, strict=True):
    axes.axhline(math.log(SYMBOLS), color="#666666", linewidth=1, linestyle="--")
    axes.set(xlabel="step", title=f"New: {task}", ylim=(-0.6, 5.5))
    for (place, color), at in zip(colors.items(), where, strict=True):
        axes.text(*at, place, color=color, fontsize=9)
        for seed in range(3):
            axes.plot(np.convolve(curves[place, task, seed], np.ones(10) / 10, "valid"), color=color, linewidth=1.2)

# %%
share = {key: sorted(right[(*key, seed)] for seed in range(3)) for key in dict.fromkeys(key[:2] for key in right)}
assert share["query and key", "where to look"][0] > 0.9 and share["query and key", "what to say"][2] < 0.6
for place in ("value and output", "MLP"):
    assert share[place, "where to look"][1] < 0.3 and share[place, "what to say"][0] > 0.98
assert all(share["all six", task][0] > 0.97 for task in TASKS)
assert share["MLP, 4 times the steps", "where to look"][0] > 0.85
assert share["MLP of the upper block, 4 times", "where to look"][2] < 0.4

# %% [markdown]
# Query and key learn where to look, on all three seeds, and fail to rename. Value and output, or the MLP, learn to
# rename, and in two of three seeds stay below 30 % at looking elsewhere. Adapters on all six do both, with the same
# 3,072 numbers spread thinner. What a matrix does in the block decides what its adapter learns easily.
#
# Easily: with four times the steps the MLP adapters learn to look elsewhere, too. How, if an MLP treats each token by
# itself? The MLP of the *lower* block stands below the attention of the upper one, and can change what its frozen query
# and key read. The control agrees: on the upper MLP alone, it fails. (Two blocks of width 32, one learning rate and
# three seeds: a demonstration, not a rule for real models. Chapter 08 asks one.)
#
# ## What to remember
#
# * Attention backward is four products: `dv = p^T do`, `dp = do v^T`, `dq = c ds k`, `dk = c ds^T q`, and between them
#   `ds = p * (dp - <do, o>)`: the row sum over T numbers is one over `d_head` numbers.
# * `p` is never formed: `e = exp(s - max s)` serves, and what is small is divided by the sums of e. Scores stand
#   transposed and come in blocks, for speed. Where one token asks, keys and values need not be formed either.
# * A sum hands its gradient to both terms, a value used twice adds its gradients. The key's bias has gradient zero.
# * An adapter needs its own input and the gradient at its output. One on `query` pulls the gradient through three
#   quarters of its block's weights and all blocks above. Nothing below the lowest adapter is computed.
# * The forward pass of a block is `24 T d^2 + 4 T^2 d` FLOPs: attention overtakes at T = 6 d, in a LoRA step at 4 d.
# * LoRA on all six matrices costs 3 % more FLOPs than on query and value, in MiniLM's sizes at r = 8.
# * Query and key decide where to look; value, output and the MLP what to say. With all six you need not know which.
#
# ## Exercises
#
# Replace `None`, run the cell, then run the cell below it. Solutions are in `solutions/05_transformer_block.ipynb`.
#
# **1. The bias of a value.** Add the vector b to the bias of `value`. Which change of the bias of `attention.output`,
# whose weight is `W_o`, has the same effect on the block? (So two of the four biases of attention are superfluous.)

# %%
answer = None  # your turn: lambda W_o, b: ...

# %%
if answer is None:
    print("not answered yet")
else:
    first, x, b = PostNormBlock.random(8, 2, 32, rng).to(np, "float64"), normal((2, 3, 8)), normal(8)
    second = copy.deepcopy(first)
    first.named_params()["attention.self.value.bias"] += b
    W_o = second.named_params()["attention.output.dense.weight"]
    second.named_params()["attention.output.dense.bias"] += answer(W_o, b)
    assert relative_error(second.forward(x)[0], first.forward(x)[0]) < 1e-12
    print("right")

# %% [markdown]
# **2. Shared keys.** In many newer models, SmolLM2 among them, `group` neighbouring heads share one key head: head h
# uses key head `h // group`. `attention_backward` gives `dk (B, heads, T, d_head)` as if each head had its own key.
# What is the gradient of the shared keys, `(B, heads // group, T, d_head)`?

# %%
answer = None  # your turn: lambda dk, group: ...

# %%
if answer is None:
    print("not answered yet")
else:
    q, v, dout, shared = normal((2, 4, 12)), normal((2, 4, 12)), normal((2, 4, 12)), normal((2, 2, 4, 3))

    def attend(shared):  # 4 heads, 2 key heads
        k = A.merge_heads(shared.repeat(2, axis=1))
        return A.attention(q.astype(k.dtype), k, v.astype(k.dtype), 4)

    dk = A.split_heads(A.attention_backward(dout, attend(shared)[1])[1], 4)
    exact = complex_step(lambda shared: np.sum(dout * attend(shared)[0]), shared)
    assert relative_error(answer(dk, 2), exact) < 1e-11
    print("right")

# %% [markdown]
# **3. Another block.** SmolLM2-135M has d = 576 and 9 heads. Its key and value matrices are 192 x 576 (three shared
# heads), and its MLP has three matrices, 576 by 1536. At which T do the attention products cost as much as the linear
# layers in the forward pass? (Shared heads save weights; every query head still computes its own scores.)

# %%
answer = None  # your turn: a number

# %%
if answer is None:
    print("not answered yet")
else:
    numbers = 2 * 576 * 576 + 2 * 192 * 576 + 3 * 576 * 1536
    assert math.isclose(2 * answer * numbers, 4 * answer**2 * 576)
    print("right")

# %% [markdown]
# **4. The way down.** In a stack of six blocks, LoRA sits on `value` in blocks 2 and 4 (0 is the lowest). How many
# linear layers hand a gradient to their input? Count before you run.

# %%
answer = None  # your turn: an integer

# %%
if answer is None:
    print("not answered yet")
else:
    tower = Sequential({str(i): PostNormBlock.random(8, 2, 32, rng) for i in range(6)})
    assert answer == len(passes_through(adapted(tower, r"[24]\..*value"), normal((2, 3, 8)).astype("f4")))
    print("right")

# %% [markdown]
# ## Sources
#
# A. Vaswani et al., *Attention Is All You Need*, 2017, arXiv:1706.03762. J. Devlin et al., *BERT*, 2018,
# arXiv:1810.04805. R. Xiong et al., *On Layer Normalization in the Transformer Architecture*, 2020, arXiv:2002.04745
# (post-norm and pre-norm gradients at initialisation). T. Dao et al., *FlashAttention*, 2022, arXiv:2205.14135 (the row
# sum as `<do, o>`, its appendix B). A. Liu et al., *DeepSeek-V2*, 2024, arXiv:2405.04434, section 2.1.2 (absorbed
# weights). E. J. Hu et al., *LoRA*, 2021, arXiv:2106.09685 (query and value only). J. He et al., *Towards a Unified
# View of Parameter-Efficient Transfer Learning*, 2021, arXiv:2110.04366, and T. Dettmers et al., *QLoRA*, 2023,
# arXiv:2305.14314 (adapters on the MLP, and on all linear layers).
