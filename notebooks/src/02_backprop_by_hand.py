# %% [markdown]
# # How do I derive a backward pass, and how do I know it is right?
#
# LoRA changes what is trained inside a linear layer, and every variant of LoRA changes it again. So the one skill this
# book needs is to write down the gradient of something new, and to be sure of it. Here is the recipe (three rules), the
# four layers that everything later is built from, and the two checks that tell a right gradient from a wrong one.

# %%
import inspect
from unittest import mock

import matplotlib.pyplot as plt
import numpy as np

from lorabook import LoRALinear, environment, plotting
from lorabook import functional as F
from lorabook.gradcheck import CENTRAL_H, COMPLEX_H, check_layer, complex_step, finite_difference, relative_error
from lorabook.layers import Activation, LayerNorm, Linear, Sequential, Softmax, add_grads
from lorabook.models import MLP
from lorabook.tables import format_table

plt.rcParams["figure.dpi"] = 110
print(environment.summary())
rng = np.random.default_rng(0)

# %% [markdown]
# ## The recipe
#
# A layer computes `y` from `x` and its parameters. Far downstream stands the loss L, one number. What arrives from
# there is `dout = dL/dy`, an array of the shape of `y`; what has to be handed on is `dx = dL/dx`, and one gradient for
# each parameter, again in the shape of the thing itself.
#
# Write `<P, Q>` for the sum of all entries of `P * Q`. A gradient is *defined* by what it says about small changes:
# if `y` changes by `dy`, the loss changes by `dL = <dout, dy>`. Hence four steps:
#
# 1. Write `dL = <dout, dy>`.
# 2. Insert `dy`, by the product rule, in terms of the changes of the inputs.
# 3. Move everything except the change itself to the other side of `< , >`.
# 4. Read off: what stands beside `dx` is the gradient of `x`, what stands beside `dW` is the gradient of `W`.
#
# (In steps 1 to 3 `dx` is a small change; in step 4, and in the code, `dx` is the gradient that stands beside it. The
# field uses one name for both.) Step 3 needs only three rules:
#
# ```
# <P, Q R^T> = <P R, Q>         R leaves on the right
# <P, Q R^T> = <P^T Q, R>       Q leaves on the left
# <P, Q * R> = <P * Q, R>       entrywise factors move freely
# ```

# %%
P, Q, R = rng.standard_normal((4, 3)), rng.standard_normal((4, 2)), rng.standard_normal((3, 2))
sides = np.sum(P * (Q @ R.T)), np.sum((P @ R) * Q), np.sum((P.T @ Q) * R)
print("<P, Q R^T> = {:.12f}\n<P R, Q>   = {:.12f}\n<P^T Q, R> = {:.12f}".format(*sides))
assert np.allclose(sides, sides[0], rtol=1e-12)

# %% [markdown]
# ## A linear layer, in full
#
# `y = x W^T + b` with `x (N, d_in)`, `W (d_out, d_in)`, `b (d_out,)`. The product rule, then the rules above:
#
# ```
# dy = dx W^T + x dW^T + 1 db^T                                (1 is a column of N ones)
#
# dL = <dout, dx W^T>  +  <dout, x dW^T>  +  <dout, 1 db^T>
#    = <dout W, dx>    +  <dout^T x, dW>  +  <dout^T 1, db>
# ```
#
# and so `dx = dout W`, `dW = dout^T x`, `db = sum of the rows of dout`. The shapes confirm it: `dout` is `(N, d_out)`,
# and there is only one way to make `(d_out, d_in)` out of it and `x`. The library's function says the same thing, with
# one addition: a gradient that nobody needs is not computed. A frozen `W` costs no `dout.T @ x`; chapter 03 lives on
# that line.

# %%
print(inspect.getsource(F.linear_backward))

# %% [markdown]
# ## Check one: central differences
#
# Nudge one entry of `x` up and down by `h`, and watch the loss: `(f(x + h) - f(x - h)) / 2h`. The loss of the test is
# `L = <dout, y>` with random numbers in `dout`; its gradient is exactly what `backward` claims to return. This is how
# nearly everyone checks gradients, and it has a weakness: two errors that pull `h` in opposite directions. The formula
# itself is off by something proportional to `h^2`, and the subtraction of two nearly equal numbers loses digits, an
# error of about `eps / h`, where `eps` is the rounding unit, 2.2e-16 in float64. The sum is smallest near
# `h = eps^(1/3)`.
#
# ## Check two: the complex step
#
# Nudge the entry *sideways*, by an imaginary amount: `f(x + ih) = f(x) + ih f'(x) - h^2 f''(x) / 2 - ...`, so
# `f'(x) = Im f(x + ih) / h` up to an error proportional to `h^2`. Nothing is subtracted, so nothing is lost, and `h`
# may be as small as we please: the library takes 1e-30. NumPy's `exp`, `tanh` and `@` take complex numbers as they are;
# the price is that the function may use no `abs`, no `max` and no conjugate on the way.

# %%
print(inspect.getsource(finite_difference))
print(inspect.getsource(complex_step))

# %% [markdown]
# Both against the gradient that a small stack (linear, GELU, layer norm) computes by hand, for 20 step sizes:

# %%
stack = Sequential(
    {
        "fc": Linear(rng.standard_normal((5, 7)), rng.standard_normal(5)),
        "act": Activation("gelu_tanh"),
        "norm": LayerNorm(rng.standard_normal(5), rng.standard_normal(5)),
    }
)
x, dout = rng.standard_normal((4, 7)), rng.standard_normal((4, 5))
y, cache = stack.forward(x)
dx, grads = stack.backward(dout, cache)


def loss(x):
    return np.sum(dout * stack.forward(x)[0])


h = 10.0 ** -np.arange(1, 21)
central = np.array([relative_error(finite_difference(loss, x, step), dx) for step in h])
sideways = np.array([relative_error(complex_step(loss, x, step), dx) for step in h])
best = h[central.argmin()]
print(f"central differences: best at h = {best:.0e} with error {central.min():.1e}")
print(f"eps^(1/3) = {np.finfo(float).eps ** (1 / 3):.1e}, the library's default {CENTRAL_H:.0e}")
print(f"complex step: error {relative_error(complex_step(loss, x), dx):.1e} at the library's default {COMPLEX_H:.0e}")

# %%
with plt.style.context(plotting.STYLE):
    figure, axes = plt.subplots(figsize=(7.2, 4))
    axes.loglog(h, central, "o-", color="#D55E00")
    axes.loglog(h, sideways, "s-", color="#0072B2")
    axes.axvline(np.finfo(float).eps ** (1 / 3), color="#666666", linewidth=1, linestyle="--")
    axes.text(7e-6, 3e2, r"$\epsilon^{1/3}$", color="#666666", ha="left")
    axes.text(2e-14, 3, "central differences", color="#D55E00")
    axes.text(4e-9, 3e-13, "complex step", color="#0072B2", ha="right")
    axes.text(2e-4, 1e-4, "formula too coarse:\n" r"error $\propto h^2$", ha="right", va="center", fontsize=9)
    axes.text(3e-9, 3e-10, "digits lost by subtracting:\n" r"error $\propto \epsilon\,/\,h$", ha="right", fontsize=9)
    axes.set_xlabel("step size h")
    axes.set_ylabel("relative error of the derivative")
    axes.set_ylim(1e-17, 1e4)
    axes.set_title("A difference has a sweet spot; the complex step does not need one")
    plt.show()

# %%
slope = np.polyfit(np.log(h[:4]), np.log(central[:4]), 1)[0]
lost = np.polyfit(np.log(h[6:14]), np.log(central[6:14]), 1)[0]
print(f"slopes of the central difference: {slope:.2f} for large h, {lost:.2f} for small h")
assert abs(slope - 2) < 0.1 and abs(lost + 1) < 0.2
assert 1e-6 <= best <= 1e-4 and 1e-12 < central.min() < 1e-8
assert sideways[h <= 1e-8].max() < 1e-13

# %% [markdown]
# With central differences a right gradient shows an error near 1e-10 at the very best, and a thousand times more if `h`
# is badly chosen; a gradient that is only slightly wrong can hide in there. With the complex step a right gradient
# agrees to nearly all digits, so anything above 1e-11 is a mistake. And two things have agreed here that know nothing
# of each other: a derivation on paper, and the forward pass.
#
# ## An activation
#
# `y = g(x)`, entry by entry: `dy = g'(x) * dx`, so `dL = <dout, g' * dx> = <dout * g', dx>` and `dx = dout * g'(x)`.
# All activations of the library therefore share one backward; each forward computes its slope `g'` on the way, while
# the pieces are at hand, and leaves it in the cache.

# %%
print(inspect.getsource(F.gelu_tanh))
print(inspect.getsource(F.activation_backward))

# %% [markdown]
# (`overwrite` says that `dout` is needed no more: then the result takes its memory. `fuse`, above, makes one pass over
# memory of the chain: chapter 16.)
#
# ## Softmax
#
# `p_i = e^(x_i) / sum_j e^(x_j)` along each row. Taking the logarithm first saves all the work:
#
# ```
# log p_i = x_i - log sum_j e^(x_j)
# dp_i / p_i = dx_i - sum_j p_j dx_j
#
# dL = sum_i dout_i p_i (dx_i - sum_j p_j dx_j)
#    = sum_j p_j (dout_j - sum_i dout_i p_i) dx_j                (the sums change places)
#
# dx = p * (dout - sum_i dout_i p_i)
# ```
#
# The `d x d` matrix of derivatives never appears. A check by thought: adding a constant to a row of `x` does not change
# `p`, so `dx` cannot have a component in that direction; each of its rows must add up to 0.

# %%
p, cache = F.softmax(x)
dout_p = rng.standard_normal(p.shape)
dx_p = F.softmax_backward(dout_p, cache)
print("row sums of dx:", np.array2string(dx_p.sum(axis=-1), precision=1))
assert relative_error(dx_p, complex_step(lambda v: np.sum(dout_p * F.softmax(v)[0]), x)) < 1e-13
assert np.abs(dx_p.sum(axis=-1)).max() < 1e-14

# %% [markdown]
# ## Layer norm, where people slip
#
# `y = weight * xhat + bias`, where each row of `xhat` is `x` shifted and scaled to mean 0, variance 1. The slip: the
# mean and the variance depend on `x` too. Write `m(v)` for the mean of a row, and take one step at a time:
#
# ```
# xc    = x - m(x)                          dxc   = dx - m(dx)
# rstd  = (m(xc * xc) + eps)^(-1/2)         drstd = -rstd^3 m(xc * dxc)
# xhat  = xc * rstd                         dxhat = rstd * dxc + xc * drstd = rstd * (dxc - xhat * m(xhat * dxc))
# ```
#
# One more rule is needed: a mean may change sides, `<u, m(w)> = <m(u), w>`, because both are the sum of `u` times the
# sum of `w`, over `d`. With `v = dout * weight`, which is what arrives at `xhat`:
#
# ```
# dL = <v, dxhat> = rstd <v - xhat * m(v * xhat), dxc>
#                 = rstd <v - xhat * m(v * xhat) - m(v), dx>    (the mean of xhat is 0)
#
# dx = rstd * (v - m(v) - xhat * m(v * xhat))
# ```
#
# In words: `dx` is `v` with two directions taken out, the row of ones and `xhat`. They are the changes of `x` that
# layer norm does not see: adding a constant to the row, and (but for the small `eps`) stretching it. Here is what the
# two usual shortcuts cost:

# %%
norm = LayerNorm(rng.standard_normal(7), rng.standard_normal(7))
y, cache = norm.forward(x)
dout = rng.standard_normal(y.shape)
xhat, rstd, weight = cache
v = dout * weight
mean_v, mean_vx = v.mean(axis=-1, keepdims=True), (v * xhat).mean(axis=-1, keepdims=True)
exact = complex_step(lambda u: np.sum(dout * norm.forward(u)[0]), x)

print(f"mean and variance held constant  {relative_error(rstd * v, exact):.1e}")
print(f"variance held constant           {relative_error(rstd * (v - mean_v), exact):.1e}")
print(f"layer_norm_backward              {relative_error(norm.backward(dout, cache)[0], exact):.1e}")
assert relative_error(rstd * v, exact) > 0.1 and relative_error(rstd * (v - mean_v), exact) > 0.1
assert relative_error(norm.backward(dout, cache)[0], exact) < 1e-13

# %% [markdown]
# ## Cross entropy
#
# `L = mean over n of (log sum_j e^(logits_nj) - logits_n,label)`. The derivative of `log sum exp` is softmax, that of
# the second term is 1 at the label and 0 elsewhere:
#
# ```
# dlogits = (p - onehot(labels)) / N
# ```
#
# The `1 / N` stands here and nowhere else: layers *sum* over the batch, only the loss divides. That is why gradients of
# two halves of a batch can simply be added, as we shall see in a moment.

# %%
logits, labels = rng.standard_normal((4, 3)), np.array([0, 2, 1, 2])
value, cache = F.softmax_cross_entropy(logits, labels)
dlogits = F.softmax_cross_entropy_backward(1.0, cache)
print(f"loss {value:.4f} nats; dlogits of the first row, label 0: {np.round(dlogits[0], 3)}")
assert relative_error(dlogits, complex_step(lambda u: F.softmax_cross_entropy(u, labels)[0], logits)) < 1e-13

# %% [markdown]
# ## Two layers and more: the cache and the dictionary
#
# A chain of layers is the recipe used again and again: the `dx` of one layer is the `dout` of the layer below. What a
# layer needs to remember from its forward pass, it returns; what it found out in its backward pass, it returns as well:
#
# ```
# y, cache = layer.forward(x)
# dx, grads = layer.backward(dout, cache)          grads: {name: array}
# ```
#
# Nothing is stored on the layer. So one model can serve two forward passes at once, the caches cannot be mixed up, and
# gradients are dictionaries that add. The whole chain:

# %%
print(inspect.getsource(Sequential.forward))
print(inspect.getsource(Sequential.backward))

# %% [markdown]
# Two forward passes in flight, each on half of the batch; their gradients add up to those of the whole batch. And with
# everything frozen but one bias, only that bias gets a gradient:

# %%
dout = rng.standard_normal((4, 5))
_, whole = stack.backward(dout, stack.forward(x)[1])
_, cache_1 = stack.forward(x[:2])
_, cache_2 = stack.forward(x[2:])
total = {}
for part, cache in ((dout[2:], cache_2), (dout[:2], cache_1)):  # in any order
    add_grads(total, stack.backward(part, cache)[1])
for name in whole:
    print(f"{name:12} halves against whole: {relative_error(total[name], whole[name]):.1e}")
    assert relative_error(total[name], whole[name]) < 1e-13

stack.set_trainable(["fc.bias"])
print("trainable fc.bias only:", list(stack.backward(dout, stack.forward(x)[1])[1]))
stack.set_trainable(stack.named_params())

# %% [markdown]
# ## Every layer, one table
#
# `check_layer` does all of this for any layer: random `dout`, the gradient of `x` and of every trainable parameter, the
# largest error relative to the largest entry. ReLU has a kink, which the complex step cannot cross, so it goes through
# central differences. The last two rows are a preview of chapter 03.

# %%
x = rng.standard_normal((4, 7))
normal = rng.standard_normal
layers = {
    "linear": Linear(normal((5, 7)), normal(5)),
    "relu (central differences)": Activation("relu"),
    "gelu, tanh form": Activation("gelu_tanh"),
    "gelu, erf form": Activation("gelu"),
    "silu": Activation("silu"),
    "softmax": Softmax(),
    "layer norm": LayerNorm(normal(7), normal(7)),
    "linear, gelu, layer norm": stack,
    "MLP 7-6-5-3": MLP((7, 6, 5, 3), rng=rng),
    "LoRA, B random": LoRALinear(Linear(normal((5, 7))), r=2, lora_alpha=16, init_lora_weights=False, order="factored"),
    "LoRA, merged order": LoRALinear(
        Linear(normal((5, 7))), r=2, lora_alpha=16, init_lora_weights=False, order="merged"
    ),
}
rows = []
for name, layer in layers.items():
    method = "central" if "central" in name else "complex"
    errors = check_layer(layer, x, rng, method)
    rows.append({"layer": name, "checked": len(errors), "x": errors["x"], "worst": max(errors.values())})
    assert rows[-1]["worst"] < (1e-8 if method == "central" else 1e-11)
columns = {
    "layer": lambda row: row["layer"],
    "gradients": lambda row: str(row["checked"]),
    "error of dx": lambda row: f"{row['x']:.0e}",
    "worst error": lambda row: f"{row['worst']:.0e}",
}
print(format_table(rows, columns))

# %% [markdown]
# All that is in float64, and says nothing about code that only float32 goes through. There is such a place: erf is
# slow, so for float32 arrays of NumPy GELU's `Phi` comes from a polynomial inside a tanh (`backend.normal_cdf`).
# Compare the two:

# %%
z = np.linspace(-8, 8, 4001, dtype="f4")
for name, fast, exact in zip(("y", "slope"), F.gelu_erf(z), F.gelu_erf(z.astype("f8")), strict=True):
    apart = np.abs(fast - exact).max() / np.abs(exact).max()
    print(f"GELU, float32 against float64, {name:5}: {apart:.0e} of the largest apart")
    assert apart < 1e-6

# %% [markdown]
# ## Two checks that check nothing
#
# A check can pass because the gradient is right, or because the check is empty. Two famous empty ones:
#
# **The sum of a layer norm.** The natural-looking test loss is `L = y.sum()`, which means `dout = 1` everywhere. With
# `weight = 1`, as a fresh layer norm has, each row of `xhat` adds up to 0 whatever `x` is: the loss is constant, the
# true gradient is 0, and *every* formula that takes out the mean of `v` passes. So does a backward that returns
# nothing but zeros.

# %%
fresh = LayerNorm(np.ones(7), np.zeros(7))
ones = np.ones((4, 7))
difference = finite_difference(lambda u: fresh.forward(u)[0].sum(), x)
_, (xhat, rstd, _) = fresh.forward(x)
wrong = {
    "variance held constant": rstd * (ones - ones.mean(axis=-1, keepdims=True)),
    "sign of the last term flipped": rstd * (ones - 1 + xhat * (ones * xhat).mean(axis=-1, keepdims=True)),
    "nothing but zeros": np.zeros_like(x),
}
for name, claimed in wrong.items():
    passes = np.allclose(claimed, difference, atol=1e-8)
    print(f"dout = ones, {name:30}: {'passes' if passes else 'caught'}")
    assert passes

# %% [markdown]
# **LoRA at its start.** `B = 0` there, so `dA = s B^T dout^T x` is 0 (chapter 03), and so is every formula with a
# factor `B` in it: it passes, whatever its other factors. This layer returns `dA` times -7. The check at the usual
# initialisation does not notice; with random `B` it does.


# %%
class WrongLoRA(LoRALinear):
    def backward(self, dout, cache, need_dx=True):
        dx, grads = super().backward(dout, cache, need_dx)
        return dx, grads | {"lora_A": -7 * grads["lora_A"]}


at_start = check_layer(WrongLoRA(Linear(normal((5, 7))), r=2), x, rng)["lora_A"]
anywhere = check_layer(WrongLoRA(Linear(normal((5, 7))), r=2, lora_alpha=16, init_lora_weights=False), x, rng)["lora_A"]
print(f"error of dA found at B = 0: {at_start:.0e}; with random B: {anywhere:.0e}")
assert at_start == 0 and abs(anywhere - 8) < 1e-9  # -7 dA is off by 8 dA

# %% [markdown]
# ## Check the check: break it on purpose
#
# The surest way to know that a check can fail is to make it fail. Each line below changes one piece of the library's
# own source text (a *mutant*), puts it in place of the original, and runs the same `check_layer` as the table above.
# After the `with` block the original is back. The tests of this book do the same, with a longer list.


# %%
def mutant(function, old, new):
    source = inspect.getsource(function)
    assert source.count(old) == 1, f"{function.__name__} does not contain {old!r} once"
    namespace = dict(vars(F))
    exec(source.replace(old, new), namespace)
    return namespace[function.__name__]


slips = [
    ("linear", F.linear_backward, "dout @ weight", "-dout @ weight"),
    ("linear", F.linear_backward, "xp.sum(dout, axis=0)", "xp.mean(dout, axis=0)"),
    ("softmax", F.softmax_backward, "dout - xp.sum", "dout + xp.sum"),
    ("layer norm", F.layer_norm_backward, "dx = dout * weight", "dx = dout * 1"),
    ("layer norm", F.layer_norm_backward, "dx -= xhat * along", ""),
    ("layer norm", F.layer_norm_backward, "xp.sum(rows(dout * xhat), axis=0)", "xp.sum(rows(dout), axis=0)"),
]
for name, function, old, new in slips:
    with mock.patch.object(F, function.__name__, mutant(function, old, new)):
        errors = check_layer(layers[name], x, rng)
    caught = [f"{wrong} ({error:.0e})" for wrong, error in errors.items() if error > 1e-11]
    print(f"{name:11} {old.strip()[:32]:32} -> {new.strip()[:22] or 'left out':22}  caught in {', '.join(caught)}")
    assert caught
assert all(max(check_layer(layers[name], x, rng).values()) < 1e-11 for name in ("linear", "softmax", "layer norm"))

# %% [markdown]
# One thing no gradient check can see: a mistake that forward and backward share. A LoRA layer that scales by
# `lora_alpha` instead of `lora_alpha / r` has a perfectly right gradient of the wrong function. Such mistakes need a
# second opinion about the *forward* pass: a hand calculation, a published value, another implementation.
#
# ## What to remember
#
# * Write `dL = <dout, dy>`, insert `dy`, move the rest to the other side, read off the gradient. Three rules suffice.
# * For a linear layer: `dx = dout W`, `dW = dout^T x`, `db` = sum of the rows of `dout`.
# * In layer norm the mean and the variance depend on `x`; forgetting it is an error of the size of the gradient itself.
# * Central differences are good to about 10 digits at best, at `h` near `eps^(1/3)`. The complex step is good to all of
#   them, at any tiny `h`, as long as the function is smooth and uses no `abs`, `max` or conjugate.
# * Check with a random `dout`, non-zero parameters and sizes that all differ, `dx` included. At `dout = 1` and at
#   `B = 0` wrong formulas pass. Then break the code once, to see that the check can fail.
# * Layers sum over the batch, only the loss divides; caches and gradients are returned, never stored.
#
# ## Exercises
#
# Replace `None`, run the cell, then run the cell below it. Solutions are in `solutions/02_backprop_by_hand.ipynb`.
#
# **1. An activation.** Softplus is `y = log(1 + e^x)`. What is its slope `g'(x)`?

# %%
answer = None  # your turn: lambda x: ...

# %%
if answer is None:
    print("not answered yet")
else:
    points = np.linspace(-3, 3, 7)
    error = relative_error(answer(points), complex_step(lambda u: np.log(1 + np.exp(u)).sum(), points))
    assert error < 1e-11, f"not the slope of softplus: relative error {error:.0e}"
    print("right")

# %% [markdown]
# **2. RMS norm** is layer norm without the mean: `y = weight * xhat`, `xhat = x * rstd`,
# `rstd = (m(x * x) + eps)^(-1/2)`. Llama-like models use it. Derive `dx` from `v = dout * weight`, `xhat` and `rstd`;
# `m` is given.


# %%
def m(v):
    return v.mean(axis=-1, keepdims=True)


answer = None  # your turn: lambda v, xhat, rstd: ...

# %%
if answer is None:
    print("not answered yet")
else:
    x, v = rng.standard_normal((2, 4, 7))
    rstd = (m(x * x) + 1e-5) ** -0.5
    exact = complex_step(lambda u: np.sum(v * u * (m(u * u) + 1e-5) ** -0.5), x)
    error = relative_error(answer(v, x * rstd, rstd), exact)
    assert error < 1e-11, f"not dx: relative error {error:.0e}"
    print("right")

# %% [markdown]
# **3. Single precision.** You must check a gradient by central differences in float32, where `eps` is 1.2e-7. Which `h`
# do you start with? (A factor of 3 either way counts as right.)

# %%
answer = None  # your turn: a number

# %%
if answer is None:
    print("not answered yet")
else:
    assert 1 / 3 < answer / np.finfo(np.float32).eps ** (1 / 3) < 3, "not within a factor of 3 of a good step"
    print("right")

# %% [markdown]
# **4. A weight used twice.** `z = x W^T` and `y = z W^T` with a square `W`. Derive `dW` from `dout`, `x`, `z` and `W`.
# (Gradients of repeated uses add: this is why the library has `add_grads`, and not `update`.)

# %%
answer = None  # your turn: lambda dout, x, z, W: ...

# %%
if answer is None:
    print("not answered yet")
else:
    x, dout, W = rng.standard_normal((4, 7)), rng.standard_normal((4, 7)), rng.standard_normal((7, 7))
    exact = complex_step(lambda u: np.sum(dout * (x @ u.T @ u.T)), W)
    error = relative_error(answer(dout, x, x @ W.T, W), exact)
    assert error < 1e-11, f"not dW: relative error {error:.0e}"
    print("right")

# %% [markdown]
# ## Sources
#
# W. Squire and G. Trapp, *Using Complex Variables to Estimate Derivatives of Real Functions*, SIAM Review 40, 1998.
# J. L. Ba, J. R. Kiros and G. E. Hinton, *Layer Normalization*, 2016, arXiv:1607.06450. D. Hendrycks and K. Gimpel,
# *Gaussian Error Linear Units*, 2016, arXiv:1606.08415. E. J. Hu et al., *LoRA*, 2021, arXiv:2106.09685.
