# %% [markdown]
# # Solutions: what is the backward pass of a transformer block, with LoRA on any of its matrices?

# %%
import copy
import math

import numpy as np

from lorabook import LoRAConfig, environment, inject
from lorabook import attention as A
from lorabook.gradcheck import complex_step, relative_error
from lorabook.layers import Sequential
from lorabook.models.transformer import PostNormBlock

print(environment.summary())
rng = np.random.default_rng(0)
normal = rng.standard_normal

# %% [markdown]
# **1. The bias of a value.** Each row of `p` adds up to 1, so `p (v + b) = p v + b`: every output of attention moves by
# the same b, and `attention.output` turns that into `W_o b`.

# %%
answer = lambda W_o, b: W_o @ b  # noqa: E731

# %%
first, x, b = PostNormBlock.random(8, 2, 32, rng).to(np, "float64"), normal((2, 3, 8)), normal(8)
second = copy.deepcopy(first)
first.named_params()["attention.self.value.bias"] += b
W_o = second.named_params()["attention.output.dense.weight"]
second.named_params()["attention.output.dense.bias"] += answer(W_o, b)
assert relative_error(second.forward(x)[0], first.forward(x)[0]) < 1e-12
print("right")

# %% [markdown]
# **2. Shared keys.** A value used `group` times: its gradients add. Sum `dk` over the heads of each group.

# %%
answer = lambda dk, group: dk.reshape(len(dk), -1, group, *dk.shape[2:]).sum(axis=2)  # noqa: E731

# %%
q, v, dout, shared = normal((2, 4, 12)), normal((2, 4, 12)), normal((2, 4, 12)), normal((2, 2, 4, 3))


def attend(shared):  # 4 heads, 2 key heads
    k = A.merge_heads(shared.repeat(2, axis=1))
    return A.attention(q.astype(k.dtype), k, v.astype(k.dtype), 4)


dk = A.split_heads(A.attention_backward(dout, attend(shared)[1])[1], 4)
exact = complex_step(lambda shared: np.sum(dout * attend(shared)[0]), shared)
assert relative_error(answer(dk, 2), exact) < 1e-11
print("right")

# %% [markdown]
# **3. Another block.** Two FLOPs for each weight and token against `4 T d`: T = 2 * weights / (4 d).

# %%
numbers = 2 * 576 * 576 + 2 * 192 * 576 + 3 * 576 * 1536
answer = 2 * numbers / (4 * 576)
print(f"{numbers:,} weights, T = {answer:.0f}")

# %%
assert math.isclose(2 * answer * numbers, 4 * answer**2 * 576)
print("right")

# %% [markdown]
# **4. The way down.** All six layers of blocks 5, 4 and 3. In block 4 the adapter itself hands a gradient on, and so do
# `query` and `key`: block 2 is still to come. In block 2 only `output`, `intermediate` and `attention.output` do;
# nothing below `value` needs one. Blocks 0 and 1 are not visited.

# %%
answer = 3 * 6 + 3

# %%
tower = Sequential({str(i): PostNormBlock.random(8, 2, 32, rng) for i in range(6)})
inject(tower, LoRAConfig(r=2, lora_alpha=16, target_modules=r"[24]\..*value"))
found = []
for path, part in tower.named_layers():
    if getattr(part.params.get("weight"), "ndim", 0) == 2:

        def watched(dout, cache, need_dx=True, path=path, backward=part.backward):
            found.extend([path] * need_dx)
            return backward(dout, cache, need_dx)

        part.backward = watched
y, cache = tower.forward(normal((2, 3, 8)).astype("f4"))
tower.backward(np.ones_like(y), cache, need_dx=False)
print(f"{len(found)} layers, from {found[0]} to {found[-1]}")
assert answer == len(found)
print("right")
