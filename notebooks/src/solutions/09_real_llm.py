# %% [markdown]
# # Solutions: what does it take to fine-tune a language model by hand?
#
# The exercises of [chapter 09](../09_real_llm.ipynb). They need neither the model nor any training.

# %%
from lorabook.adapters import merging_is_cheaper
from lorabook.book.checks import ch09
from lorabook.book.parts import decoder
from lorabook.files import environment

print(environment.summary())

# %% [markdown]
# **1. Capped logits.** The slope of $\tanh$ is $1 - \tanh^2$, and the two factors
# $\mathrm{cap}$ and $1 / \mathrm{cap}$ cancel:
#
# $$
# \delta\mathrm{capped}
# = \big( 1 - \tanh^2(\mathrm{logits} / \mathrm{cap}) \big)\, \delta\mathrm{logits}
# = \Big( 1 - \frac{\mathrm{capped}^2}{\mathrm{cap}^2} \Big)\, \delta\mathrm{logits}
# $$
#
# The last form needs the output alone. A logit near the cap hardly learns any more.

# %%
answer = lambda dcapped, capped, cap: dcapped * (1 - (capped / cap) ** 2)  # noqa: E731
ch09.capped(answer)

# %% [markdown]
# **2. The matrix that is used twice.** Its two uses add their gradients. Let $\mathrm{onehot}$ be
# the `(N, words)` array with a 1 at each token's word; then
# $x = \mathrm{onehot}\,(W + s\,B A)$, and a change of $A$ alone gives
#
# $$
# \delta x = s\,\mathrm{onehot}\,B\,\delta A \qquad\qquad
# \delta\mathrm{logits} = s\,y\,\delta A^\top B^\top
# $$
#
# Move everything to the other side of the comma, as in chapter 03:
#
# $$
# \langle \mathrm{d}x,\, \delta x \rangle
# = \langle s\,(\mathrm{onehot}\,B)^\top \mathrm{d}x,\, \delta A \rangle \qquad
# \langle \mathrm{dlogits},\, \delta\mathrm{logits} \rangle
# = \langle s\,(\mathrm{dlogits}\,B)^\top y,\, \delta A \rangle
# $$
#
# The product $\mathrm{onehot}\,B$ picks rows: it is `B[ids]`. Both terms have shrunk to $r$ columns
# before they meet anything of width $d$, so nothing of size `words` times `d` is formed.

# %%
answer = lambda dx, ids, dlogits, y, B, s: s * (B[ids].T @ dx + (dlogits @ B).T @ y)  # noqa: E731
ch09.tied_A(answer)

# %% [markdown]
# **3. What the cache holds.** Keys and values, in every block, each of $\mathrm{kv\_heads}$ heads
# of $d_{\mathrm{head}}$ numbers, four bytes each:
#
# $$ 2 \cdot \mathrm{layers} \cdot \mathrm{kv\_heads} \cdot d_{\mathrm{head}} \cdot 4 $$

# %%
answer = lambda layers, kv_heads, d_head: 8 * layers * kv_heads * d_head  # noqa: E731
ch09.cache_bytes(answer)
for name, own in (("three heads of keys", 3), ("nine, without groups", 9)):
    held = answer(30, own, 64)
    print(f"SmolLM2, {name}: {held / 1e3:.0f} kB a token,", end=" ")
    print(f"{8192 * held / 1e6:.0f} MB for 8,192 of them")

# %% [markdown]
# **4. When merging is cheaper.** Forming $s\,B A$ costs $2\,r\,d_\mathrm{in}\,d_\mathrm{out}$
# FLOPs, going through the factors $2\,N r\,(d_\mathrm{in} + d_\mathrm{out})$. So merging is
# cheaper if
#
# $$ N\,(d_\mathrm{in} + d_\mathrm{out}) > d_\mathrm{in}\, d_\mathrm{out} , $$
#
# and $r$ has cancelled. The largest matrices decide:

# %%
shapes = {row["part"]: (row["columns"], row["rows"]) for row in decoder()}
for part, shape in shapes.items():
    first = next(N for N in range(1, 2000) if merging_is_cheaper(N, *shape))
    print(f"{part:9} {shape[1]:4} x {shape[0]:4}: from {first} tokens on")
answer = 419
ch09.all_merged(answer)

# %% [markdown]
# A long batch of texts merges everywhere, a few short sentences nowhere: those of the chapter went
# through the factors.
