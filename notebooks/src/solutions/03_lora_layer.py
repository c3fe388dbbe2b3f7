# %% [markdown]
# # Solutions: what are dA and dB, and why is dW never formed?

# %%
import numpy as np

from lorabook import LoRALinear, environment
from lorabook.gradcheck import complex_step, relative_error
from lorabook.layers import Linear
from lorabook.optim import SGD, AdamW

print(environment.summary())
rng = np.random.default_rng(0)

# %% [markdown]
# **1. A gate.** `dy = s (z * dg) B^T` for every row, so
#
# ```
# dL = <dout, s (z * dg) B^T> = <s dout B, z * dg> = <z * (s dout B), dg in every row>
# ```
#
# and since the same `dg` stands in every row, the rows add up: `dg = s * sum over n of z * (dout B)`.

# %%
answer = lambda dout, z, B, s: s * (z * (dout @ B)).sum(axis=0)  # noqa: E731

# %%
z, B, g, dout = (rng.standard_normal(shape) for shape in ((11, 2), (5, 2), (2,), (11, 5)))
exact = complex_step(lambda g: np.sum(dout * (3.0 * (z * g) @ B.T)), g)
error = relative_error(answer(dout, z, B, 3.0), exact)
assert error < 1e-11, f"not dg: relative error {error:.0e}"
print("right")

# %% [markdown]
# **2. Count.** A matrix `(d_out, d_in)` gets `r (d_in + d_out)`; only for a square one is that `2 d r`.

# %%
answer = 30 * 8 * ((576 + 576) + (576 + 192))
print(f"{answer:,}")

# %%
shapes = 30 * [(576, 576), (192, 576)]
factors = [LoRALinear(Linear(np.broadcast_to(0.0, shape)), r=8).trainable_params() for shape in shapes]
assert answer == sum(array.size for pair in factors for array in pair.values()), "not the size of all factors"
print("right")

# %% [markdown]
# **3. Convert.** `x a b = x A^T B^T` gives `A = a^T` and `B = b^T`. The multiplier here is `lora_alpha / r`, so
# `lora_alpha = scale * r`, with `r` the number of columns of `lora_a`.

# %%
answer = lambda lora_a, lora_b, scale: (lora_a.T, lora_b.T, scale * lora_a.shape[1])  # noqa: E731

# %%
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
# **4. Double `lora_alpha`.** After the first step the update is `s B A`, where `B` has moved by `lr` times something.
# With SGD that something is `dB = s dout^T z`, which contains another `s`: the update is proportional to `lr s^2`, and
# `lr` has to become a quarter. AdamW divides the size of the gradient out, so its update is proportional to `lr s`, and
# half of `lr` will do. This is what the LoRA paper means when it says that, with Adam, tuning `alpha` is roughly the
# same as tuning the learning rate.

# %%
answer = (1 / 4, 1 / 2)

# %%
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
