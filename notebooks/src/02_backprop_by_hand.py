# %% [markdown]
# # How do I derive a backward pass, and how do I know it is right?
#
# At the end of this chapter you can write down the gradient of a layer that you have just made up,
# in four steps, and know to thirteen digits whether it is right. LoRA changes what is trained
# inside a linear layer, and every variant of LoRA changes it again: this is the one skill that the
# rest of the book needs.
#
# The second half of the sentence is the harder one. Below, three wrong backward passes of layer
# norm, one of which returns nothing but zeros, pass a test that looks perfectly natural. We shall
# see why, and which test they do not pass.
#
# ![A linear layer, ReLU and a loss as boxes: values flow through them to the right, gradients of
# the loss to the left, and up into W and b](../figures/backprop.svg)
#
# This is all that backpropagation does. Values flow forward, until one number comes out, the loss
# $L$. Then each box is told how the loss depends on its *output*, and answers how it depends on
# its *inputs*: that is its backward pass. Where do the orange numbers come from?

# %%
import inspect
from unittest import mock

import matplotlib.pyplot as plt
import numpy as np

from lorabook import LoRALinear
from lorabook import functional as F
from lorabook.book.checks import ch02
from lorabook.book.listing import code
from lorabook.book.plots import chapter02
from lorabook.files import environment, format_table
from lorabook.functional import CENTRAL_STEP, complex_step, finite_difference, relative_error
from lorabook.layers import (
    Activation,
    LayerNorm,
    Linear,
    Sequential,
    Softmax,
    add_grads,
    check_layer,
)
from lorabook.models import MLP

plt.rcParams["figure.dpi"] = 110
print(environment.summary())
rng = np.random.default_rng(0)

# %% [markdown]
# ## The recipe
#
# A layer computes $y$ from $x$ and its parameters. We write $\mathrm{d}v$ for the gradient of the
# loss with respect to $v$, an array of the shape of $v$, as the code does: `dx`, `dW`. What arrives
# at a layer from downstream, the gradient of its output, is called $\mathrm{dout}$.
#
# A gradient is *defined* by what it says about small changes. Let $y$ change by a small $\delta y$;
# then the loss changes by
#
# $$ \delta L = \langle \mathrm{dout},\, \delta y \rangle
# \qquad\text{with}\qquad \langle P, Q \rangle = \sum_{ij} P_{ij}\, Q_{ij}. $$
#
# Everything follows from this one line, in four steps:
#
# 1. Write $\delta L = \langle \mathrm{dout}, \delta y \rangle$.
# 2. Express $\delta y$ by the changes of the inputs, with the product rule.
# 3. Move everything but the change itself to the other side of $\langle\ ,\ \rangle$.
# 4. Read off: what stands beside $\delta x$ is $\mathrm{d}x$, what stands beside $\delta W$ is
#    $\mathrm{d}W$.
#
# Step 3 needs only three rules. Factors of a product change sides transposed, a transpose may stand
# on either side, entrywise factors move freely:
#
# $$ \langle P,\, Q R \rangle = \langle P R^\top,\, Q \rangle = \langle Q^\top P,\, R \rangle, $$
#
# $$ \langle P,\, Q^\top \rangle = \langle P^\top,\, Q \rangle, \qquad
# \langle P,\, Q \odot R \rangle = \langle P \odot R,\, Q \rangle. $$
#
# The first one is a sum in another order, the other two are plain when written with indices:
#
# $$ \sum_{ij} P_{ij} \sum_k Q_{ik} R_{kj} = \sum_{ik} \Big( \sum_j P_{ij} R_{kj} \Big) Q_{ik}
# = \sum_{kj} \Big( \sum_i Q_{ik} P_{ij} \Big) R_{kj}. $$

# %%
P, Q, R = rng.standard_normal((4, 2)), rng.standard_normal((4, 3)), rng.standard_normal((3, 2))
sides = np.sum(P * (Q @ R)), np.sum((P @ R.T) * Q), np.sum((Q.T @ P) * R)
print("<P, Q R> = {:.12f}\n<P R^T, Q> = {:.12f}\n<Q^T P, R> = {:.12f}".format(*sides))
assert np.allclose(sides, sides[0], rtol=1e-12)

# %% [markdown]
# ## A linear layer, in full
#
# It comes first because LoRA is made of linear layers:
#
# $$ y = x W^\top + \mathbf{1}\, b, \qquad x\ (N, d_\mathrm{in}),\quad
# W\ (d_\mathrm{out}, d_\mathrm{in}),\quad b\ (d_\mathrm{out}), $$
#
# where $\mathbf{1}$ is a column of $N$ ones, which adds the row $b$ to each row. The product rule
# gives one term for each input:
#
# $$ \delta y = \delta x\, W^\top + x\, \delta W^\top + \mathbf{1}\, \delta b. $$
#
# Insert, and move:
#
# $$ \begin{aligned}
# \langle \mathrm{dout},\, \delta x\, W^\top \rangle
# &= \langle \mathrm{dout}\, W,\, \delta x \rangle \\
# \langle \mathrm{dout},\, x\, \delta W^\top \rangle
# &= \langle x^\top \mathrm{dout},\, \delta W^\top \rangle
# = \langle \mathrm{dout}^\top x,\, \delta W \rangle \\
# \langle \mathrm{dout},\, \mathbf{1}\, \delta b \rangle
# &= \langle \mathbf{1}^\top \mathrm{dout},\, \delta b \rangle
# \end{aligned} $$
#
# and read off:
#
# $$ \mathrm{d}x = \mathrm{dout}\, W, \qquad \mathrm{d}W = \mathrm{dout}^\top x, \qquad
# \mathrm{d}b = \sum_n \mathrm{dout}_n . $$
#
# The shapes confirm it: $\mathrm{dout}$ is $(N, d_\mathrm{out})$, and there is only one way to make
# $(d_\mathrm{out}, d_\mathrm{in})$ out of it and $x$. With this the orange numbers of the
# drawing are two lines of code, right to left. (ReLU passes on what arrives where $y > 0$, and
# the loss $\frac{1}{2} \lVert a - t \rVert^2$ hands back $a - t$.)

# %%
x, t = np.array([[1.0, 2.0]]), np.array([[2.0, 1.0]])
W, b = np.array([[1.0, 0.5], [-1.0, 0.5]]), np.array([0.5, -0.5])

y = x @ W.T + b
a = y * (y > 0)
L = 0.5 * np.sum((a - t) ** 2)

da = a - t
dy = np.where(y > 0, da, 0)
dx, dW, db = dy @ W, dy.T @ x, dy.sum(axis=0)
print(f"L {L}  da {da}  dy {dy}\ndx {dx}  db {db}  dW {dW.tolist()}")

# %% [markdown]
# The library's function says the same, with one addition: a gradient that nobody needs is not
# computed. A frozen $W$ costs no `dout.T @ x`; chapter 03 lives on that line.

# %%
print(code(F.linear_backward))

# %% [markdown]
# <details><summary>What are <code>xp</code> and <code>rows</code>?</summary>
#
# `xp` is NumPy or CuPy, by the arrays that came: chapter 16. `rows` turns an array $(\dots, d)$
# into $(N, d)$, so that a layer does not care how many axes the batch has. The docstring is left
# out in all code that is shown here: it holds the derivation above.
#
# </details>
#
# ## Check one: central differences
#
# Is it right? The derivation says so, but derivations slip. An independent answer needs only the
# *forward* pass: nudge one entry of $x$ up and down by a small $\mathrm{step}$, and watch the
# loss, here $f(x)$:
#
# $$ f'(x) \approx \frac{f(x + \mathrm{step}) - f(x - \mathrm{step})}{2\,\mathrm{step}}. $$
#
# For a single layer, which has no loss, take $L = \langle \mathrm{dout}, y \rangle$ with random
# numbers in $\mathrm{dout}$: its gradients are exactly what `backward` claims to return.
#
# This is how nearly everyone checks gradients, and it has a weakness: two errors that pull the step
# in opposite directions. The Taylor series says how coarse the formula is, and subtracting two
# nearly equal numbers loses digits, where $\epsilon$ is the rounding unit, 2.2e-16 in float64:
#
# $$ \frac{f(x + \mathrm{step}) - f(x - \mathrm{step})}{2\,\mathrm{step}}
# = f'(x) + \frac{\mathrm{step}^2}{6} f'''(x) + \dots \ \pm\
# \frac{\epsilon\, |f|}{\mathrm{step}}. $$
#
# A large step suffers from the first, a small step from the second. Their sum is least where the
# two are about equal:
#
# $$ \mathrm{step}^2 \approx \frac{\epsilon}{\mathrm{step}}, \qquad
# \mathrm{step} \approx \epsilon^{1/3} = 6 \cdot 10^{-6}, \qquad \text{error} \approx \epsilon^{2/3}
# = 4 \cdot 10^{-11}. $$
#
# ## Check two: the complex step
#
# There is a better way, if the function takes complex numbers. Nudge the entry *sideways*, by an
# imaginary amount:
#
# $$ \begin{aligned}
# f(x + i\,\mathrm{step}) &= f(x) + i\,\mathrm{step}\, f'(x)
# {} - \frac{\mathrm{step}^2}{2} f''(x) - \dots \\
# f'(x) &= \frac{\mathrm{Im}\, f(x + i\,\mathrm{step})}{\mathrm{step}} + O(\mathrm{step}^2)
# \end{aligned} $$
#
# Nothing is subtracted, so nothing is lost, and the step may be as small as we please: the library
# takes 1e-30. NumPy's `exp`, `tanh` and `@` take complex numbers as they are. The price: the
# function may use no `abs`, no `max` and no conjugate on the way.

# %%
print(code(finite_difference, complex_step))

# %% [markdown]
# The error of a gradient is, here and below, its largest difference from the measured one, relative
# to the largest entry. First the drawing's gradient of $W$. ReLU takes a `max`, but away from its
# kink it is a product with 0 or 1, which a complex number may pass:


# %%
def loss_of(W):
    y = x @ W.T + b
    return 0.5 * np.sum((y * (y.real > 0) - t) ** 2)


print("dW by hand, its relative error:", relative_error(dW, complex_step(loss_of, W)))
assert relative_error(dW, complex_step(loss_of, W)) < 1e-15

# %% [markdown]
# Then both checks against the gradient that a small stack (linear, GELU, layer norm) computes by
# hand, at 20 step sizes:

# %%
normal = rng.standard_normal
stack = Sequential(
    {
        "fc": Linear(normal((5, 7)), normal(5)),
        "act": Activation("gelu_tanh"),
        "norm": LayerNorm(normal(5), normal(5)),
    }
)
x, dout = normal((4, 7)), normal((4, 5))
y, cache = stack(x)
dx, grads = stack.backward(dout, cache)


def loss(x):
    return np.sum(dout * stack(x)[0])


steps = 10.0 ** -np.arange(1, 21)
central = np.array([relative_error(finite_difference(loss, x, step), dx) for step in steps])
sideways = np.array([relative_error(complex_step(loss, x, step), dx) for step in steps])
best = steps[central.argmin()]
print(f"central differences: best at step {best:.0e}, error {central.min():.1e}")
print(f"eps^(1/3) = {np.finfo(float).eps ** (1 / 3):.1e}, the library's default {CENTRAL_STEP:.0e}")
print(f"complex step at the library's 1e-30: error {relative_error(complex_step(loss, x), dx):.1e}")
chapter02.step_sizes(steps, central, sideways)

# %%
slope = np.polyfit(np.log(steps[:4]), np.log(central[:4]), 1)[0]
lost = np.polyfit(np.log(steps[6:14]), np.log(central[6:14]), 1)[0]
print(f"central differences: error ~ step^{slope:.2f} where large, step^{lost:.2f} where small")
assert abs(slope - 2) < 0.1 and abs(lost + 1) < 0.2
assert 1e-6 <= best <= 1e-4 and 1e-12 < central.min() < 1e-8
assert sideways[steps <= 1e-8].max() < 1e-13

# %% [markdown]
# With central differences a right gradient shows an error near 1e-10 at the very best, and a
# thousand times more if the step is badly chosen. A gradient that is only slightly wrong can hide
# in there.
#
# With the complex step a right gradient agrees to nearly all digits, so anything above 1e-11 is a
# mistake. And two things have agreed here that know nothing of each other: a derivation on paper,
# and the forward pass.
#
# ## An activation
#
# Now the other layers that this book is built from, each with one new idea. For an activation
# $y = f(x)$, entry by entry, it is the third rule:
#
# $$ \delta y = f'(x) \odot \delta x, \qquad
# \langle \mathrm{dout},\, f'(x) \odot \delta x \rangle
# = \langle \mathrm{dout} \odot f'(x),\, \delta x \rangle, \qquad
# \mathrm{d}x = \mathrm{dout} \odot f'(x). $$
#
# All activations of the library therefore share one backward. Each forward computes its slope $f'$
# on the way, while the pieces are at hand, and leaves it in the cache. GELU in its tanh form, for
# instance, is (the code calls $\tau$ `t`, and the constants `GELU_C` and `GELU_A`)
#
# $$ \begin{aligned}
# \tau &= \tanh\!\Big(\sqrt{2/\pi}\; (x + 0.044715\, x^3)\Big) \\
# y &= \tfrac{1}{2}\, x\, (1 + \tau) \\
# f' &= \tfrac{1}{2} (1 + \tau)
# {} + \tfrac{1}{2}\, x\, (1 - \tau^2)\, \sqrt{2/\pi}\; (1 + 3 \cdot 0.044715\, x^2)
# \end{aligned} $$

# %%
print(code(F.gelu_tanh, F.activation_backward))

# %% [markdown]
# <details><summary>What are <code>fuse</code> and <code>overwrite</code>?</summary>
#
# Matters of speed. `overwrite` says that `dout` is needed no more: then the result takes its
# memory. `fuse` makes one pass over memory of the chain on a GPU, which is chapter 16.
#
# </details>
#
# ## Softmax
#
# Here each output depends on a whole row of inputs, $d$ numbers:
#
# $$ p_i = \frac{e^{x_i}}{\sum_j e^{x_j}}. $$
#
# The new idea: take the logarithm first. It turns the quotient into a difference, whose change is
# short,
#
# $$ \log p_i = x_i - \log \sum_j e^{x_j}, \qquad
# \frac{\delta p_i}{p_i} = \delta x_i - \sum_j p_j\, \delta x_j. $$
#
# Insert into $\delta L$ and let the two sums change places:
#
# $$ \delta L = \sum_i \mathrm{dout}_i\, p_i \Big( \delta x_i - \sum_j p_j\, \delta x_j \Big)
# = \sum_j p_j \Big( \mathrm{dout}_j - \sum_i \mathrm{dout}_i\, p_i \Big)\, \delta x_j. $$
#
# Read off:
#
# $$ \mathrm{d}x = p \odot \Big( \mathrm{dout} - \sum_i \mathrm{dout}_i\, p_i \Big). $$
#
# The $d \times d$ matrix of derivatives never appears. A check by thought: adding a constant to a
# row of $x$ does not change $p$, so $\mathrm{d}x$ cannot have a component in that direction. Each
# of its rows must add up to 0.

# %%
p, cache = F.softmax(x)
dout_p = normal(p.shape)
dx_p = F.softmax_backward(dout_p, cache)
print("row sums of dx:", np.array2string(dx_p.sum(axis=-1), precision=1))
exact = complex_step(lambda v: np.sum(dout_p * F.softmax(v)[0]), x)
assert relative_error(dx_p, exact) < 1e-13 and np.abs(dx_p.sum(axis=-1)).max() < 1e-14

# %% [markdown]
# ## Layer norm, where people slip
#
# $y = \mathrm{weight} \odot \mathrm{xhat} + \mathrm{bias}$, where each row of $\mathrm{xhat}$ is
# that of $x$, shifted and scaled to mean 0 and variance 1. Write $m(v)$ for the mean of a
# row of any $v$ (`row_means` in the code):
#
# $$ \mathrm{xc} = x - m(x), \qquad
# \mathrm{rstd} = \big( m(\mathrm{xc} \odot \mathrm{xc}) + \mathrm{eps} \big)^{-1/2}, \qquad
# \mathrm{xhat} = \mathrm{rstd} \cdot \mathrm{xc}. $$
#
# The slip: the mean and the variance depend on $x$, too. So take one line at a time, and the change
# of each. The middle one is the power rule:
#
# $$ \begin{aligned}
# \delta\mathrm{xc} &= \delta x - m(\delta x) \\
# \delta\mathrm{rstd} &= -\mathrm{rstd}^3\, m(\mathrm{xc} \odot \delta\mathrm{xc}) \\
# \delta\mathrm{xhat} &= \mathrm{rstd} \cdot \delta\mathrm{xc}
# {} + \delta\mathrm{rstd} \cdot \mathrm{xc} = \mathrm{rstd} \cdot \big( \delta\mathrm{xc}
# {} - \mathrm{xhat} \cdot m(\mathrm{xhat} \odot \delta\mathrm{xc}) \big)
# \end{aligned} $$
#
# (The last step writes $\mathrm{rstd} \cdot \mathrm{xc}$ as $\mathrm{xhat}$, twice.) One more rule
# is needed, and is the new idea: a mean may change sides,
#
# $$ \langle P,\, m(Q) \rangle = \langle m(P),\, Q \rangle, $$
#
# because in each row both are the sum of $P$ times the sum of $Q$, over $d$. What arrives at
# $\mathrm{xhat}$ is $\mathrm{dxhat} = \mathrm{dout} \odot \mathrm{weight}$, so
#
# $$ \begin{aligned}
# \delta L &= \langle \mathrm{dxhat},\, \delta\mathrm{xhat} \rangle \\
# &= \langle \mathrm{rstd} \cdot
# (\mathrm{dxhat} - \mathrm{xhat} \cdot m(\mathrm{dxhat} \odot \mathrm{xhat})),\,
# \delta\mathrm{xc} \rangle \\
# &= \langle \mathrm{rstd} \cdot
# (\mathrm{dxhat} - \mathrm{xhat} \cdot m(\mathrm{dxhat} \odot \mathrm{xhat})
# {} - m(\mathrm{dxhat})),\,
# \delta x \rangle ,
# \end{aligned} $$
#
# where the last line moves the mean in $\delta\mathrm{xc}$, and uses that $\mathrm{xhat}$ itself
# has mean 0. Read off:
#
# $$ \mathrm{d}x = \mathrm{rstd} \cdot \big( \mathrm{dxhat} - m(\mathrm{dxhat})
# {} - \mathrm{xhat} \cdot m(\mathrm{dxhat} \odot \mathrm{xhat}) \big). $$
#
# In words: $\mathrm{d}x$ is $\mathrm{dxhat}$ with two directions taken out, the row of ones and
# $\mathrm{xhat}$. They are the changes of $x$ that layer norm does not see: adding a constant to
# the row, and (but for the small $\mathrm{eps}$) stretching it. Here is what the two usual
# shortcuts cost:

# %%
norm = LayerNorm(normal(7), normal(7))
y, cache = norm(x)
dout = normal(y.shape)
xhat, rstd, weight = cache
dxhat = dout * weight
claims = {
    "mean and variance held constant": rstd * dxhat,
    "variance held constant": rstd * (dxhat - F.row_means(dxhat)),
    "the formula": rstd * (dxhat - F.row_means(dxhat) - xhat * F.row_means(dxhat * xhat)),
    "the library": norm.backward(dout, cache)[0],
}
exact = complex_step(lambda u: np.sum(dout * norm(u)[0]), x)
errors = {name: relative_error(claim, exact) for name, claim in claims.items()}
for name, error in errors.items():
    print(f"{name:32} {error:.1e}")
assert errors["mean and variance held constant"] > 0.1 and errors["variance held constant"] > 0.1
assert errors["the formula"] < 1e-13 and errors["the library"] < 1e-13

# %% [markdown]
# ## Cross entropy
#
# The last box is the loss. For $N$ rows of logits, each with a label $k_n$,
#
# $$ L = \frac{1}{N} \sum_n \Big( \log \sum_j e^{\mathrm{logits}_{nj}}
# {} - \mathrm{logits}_{n,\,k_n} \Big). $$
#
# The change of $\log \sum e$ we know from softmax, the second term has the slope 1 at the label and
# 0 elsewhere:
#
# $$ \mathrm{dlogits} = \frac{1}{N} \big( p - \mathrm{onehot}(k) \big). $$
#
# The $1/N$ stands here and nowhere else: layers *sum* over the batch, only the loss divides. That
# is why gradients of two halves of a batch can simply be added, as we shall see in a moment.

# %%
logits, labels = normal((4, 3)), np.array([0, 2, 1, 2])
value, cache = F.softmax_cross_entropy(logits, labels)
dlogits = F.softmax_cross_entropy_backward(1.0, cache)
print(f"loss {value:.4f}, dlogits of the first row, label 0: {np.round(dlogits[0], 3)}")
exact = complex_step(lambda u: F.softmax_cross_entropy(u, labels)[0], logits)
assert relative_error(dlogits, exact) < 1e-13

# %% [markdown]
# ## Two layers and more: the cache and the dictionary
#
# All pieces are there; now they are put together. A chain of layers is the recipe used again and
# again: the `dx` of one layer is the `dout` of the layer below. What a layer needs to remember from
# its forward pass, it returns; what it found out in its backward pass, it returns as well:
#
#     y, cache = layer(x, run)                 # calling a layer is calling its forward
#     dx, grads = layer.backward(dout, cache)  # grads: {name: array}
#
# `run` is made once and handed down unchanged: what holds for this pass, for instance where dropout
# draws its numbers. Without one, nothing special holds.
#
# Nothing is stored on the layer. So one model can serve two forward passes at once, the caches
# cannot be mixed up, and gradients are dictionaries that add. The whole chain is two loops,
# the second one from the last layer to the first:


# %%
def chain(layers, x):
    caches = {}
    for name, layer in layers.items():
        x, caches[name] = layer(x)
    return x, caches


def chain_backward(layers, dout, caches):
    grads = {}
    for name, layer in reversed(layers.items()):
        dout, own = layer.backward(dout, caches[name])
        grads |= {f"{name}.{key}": grad for key, grad in own.items()}
    return dout, grads


dout = normal((4, 5))
dx, grads = chain_backward(stack.children, dout, chain(stack.children, x)[1])
dx_library, whole = stack.backward(dout, stack(x)[1])
print("gradients:", ", ".join(grads))
assert np.array_equal(dx, dx_library)
assert all(np.array_equal(grads[name], whole[name]) for name in whole)

# %% [markdown]
# The library's `Sequential` does the same, and leaves out what is frozen. Here are two forward
# passes in flight, each on half of the batch; their gradients add up to those of the whole batch.
# And with everything frozen but one bias, only that bias gets a gradient:

# %%
_, cache_1 = stack(x[:2])
_, cache_2 = stack(x[2:])
total = {}
for part, cache in ((dout[2:], cache_2), (dout[:2], cache_1)):  # in any order
    add_grads(total, stack.backward(part, cache)[1])
for name in whole:
    print(f"{name:12} halves against whole: {relative_error(total[name], whole[name]):.1e}")
    assert relative_error(total[name], whole[name]) < 1e-13

stack.set_trainable(["fc.bias"])
print("trainable fc.bias only:", list(stack.backward(dout, stack(x)[1])[1]))
stack.set_trainable(stack.named_params())

# %% [markdown]
# ## Every layer, one table
#
# `check_layer` does all of this for any layer: random `dout`, the gradient of `x` and of every
# trainable parameter, the largest error relative to the largest entry. ReLU has a kink, which the
# complex step cannot cross, so it goes through central differences. The last two rows are a preview
# of chapter 03.

# %%
random = {"r": 2, "lora_alpha": 16, "init_lora_weights": False}  # B random, not 0
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
    "LoRA, B random": LoRALinear(Linear(normal((5, 7))), **random, order="factored"),
    "LoRA, merged order": LoRALinear(Linear(normal((5, 7))), **random, order="merged"),
}
rows = []
for name, layer in layers.items():
    method = "central" if "central" in name else "complex"
    errors = check_layer(layer, x, rng, method)
    worst = max(errors.values())
    rows.append({"layer": name, "checked": len(errors), "x": errors["x"], "worst": worst})
    assert worst < (1e-8 if method == "central" else 1e-11)
columns = {
    "layer": lambda row: row["layer"],
    "gradients": lambda row: str(row["checked"]),
    "error of dx": lambda row: f"{row['x']:.0e}",
    "worst error": lambda row: f"{row['worst']:.0e}",
}
print(format_table(rows, columns))

# %% [markdown]
# And in float32? All that is in float64, and says nothing about code that only float32 goes
# through. There is such a place: erf is slow, so for float32 arrays of NumPy the distribution
# function in GELU comes from a polynomial inside a tanh. Compare the two:

# %%
z = np.linspace(-8, 8, 4001, dtype="f4")
pairs = zip(F.gelu_erf(z), F.gelu_erf(z.astype("f8")), strict=True)
for name, (fast, exact) in zip(("y", "slope"), pairs, strict=True):
    apart = np.abs(fast - exact).max() / np.abs(exact).max()
    print(f"GELU, float32 against float64, {name:5}: {apart:.0e} of the largest apart")
    assert apart < 1e-6

# %% [markdown]
# ## Two checks that check nothing
#
# Here are the wrong formulas that were promised at the beginning. A check can pass because the
# gradient is right, or because the check is empty. Two famous empty ones:
#
# **The sum of a layer norm.** The natural-looking test loss is $L = \sum y$, which means
# $\mathrm{dout} = 1$ everywhere. With $\mathrm{weight} = 1$, as a fresh layer norm has, each row of
# $\mathrm{xhat}$ adds up to 0 whatever $x$ is:
#
# $$ L = \sum_{ij} \mathrm{xhat}_{ij} + \sum_{ij} \mathrm{bias}_j = \text{constant}, \qquad
# \mathrm{d}x = 0. $$
#
# *Every* formula that takes out the mean of $\mathrm{dxhat}$ passes. So does a backward pass that
# returns nothing but zeros.

# %%
fresh = LayerNorm(np.ones(7), np.zeros(7))
dxhat = np.ones((4, 7))  # dout * weight
difference = finite_difference(lambda u: fresh(u)[0].sum(), x)
_, (xhat, rstd, _) = fresh(x)
wrong = {
    "variance held constant": rstd * (dxhat - F.row_means(dxhat)),
    "sign of the last term": rstd * (dxhat - F.row_means(dxhat) + xhat * F.row_means(dxhat * xhat)),
    "nothing but zeros": np.zeros_like(x),
}
for name, claimed in wrong.items():
    passes = np.allclose(claimed, difference, atol=1e-8)
    print(f"dout = ones, {name:23}: {'passes' if passes else 'caught'}")
    assert passes

# %% [markdown]
# **LoRA at its start.** There $B = 0$, and the gradient of $A$ (chapter 03) is
#
# $$ \mathrm{d}A = s\, B^\top \mathrm{dout}^\top x = 0. $$
#
# So is every formula with a factor $B$ in it: it passes, whatever its other factors. The next layer
# returns $\mathrm{d}A$ times $-7$. The check at the usual initialisation does not notice; with
# random $B$ it does.


# %%
class WrongLoRA(LoRALinear):
    def backward(self, dout, cache, need_dx=True):
        dx, grads = super().backward(dout, cache, need_dx)
        return dx, grads | {"lora_A": -7 * grads["lora_A"]}


at_start = check_layer(WrongLoRA(Linear(normal((5, 7))), r=2), x, rng)["lora_A"]
anywhere = check_layer(WrongLoRA(Linear(normal((5, 7))), **random), x, rng)["lora_A"]
print(f"error of dA found at B = 0: {at_start:.0e}; with random B: {anywhere:.0e}")
assert at_start == 0 and abs(anywhere - 8) < 1e-9  # -7 dA is off by 8 dA

# %% [markdown]
# ## Check the check: break it on purpose
#
# The surest way to know that a check can fail is to make it fail. Each line below changes one piece
# of the library's own source text (a *mutant*), puts it in place of the original, and runs the same
# `check_layer` as the table above. After the `with` block the original is back. The tests of this
# book do the same, with a longer list.


# %%
def mutant(function, old, new):
    source = inspect.getsource(function)
    assert source.count(old) == 1, f"{function.__name__} does not contain {old!r} once"
    namespace = dict(function.__globals__)
    exec(source.replace(old, new), namespace)
    return namespace[function.__name__]


slips = [
    ("linear", F.linear_backward, "dout @ weight", "-dout @ weight"),
    ("linear", F.linear_backward, "xp.sum(dout", "xp.mean(dout"),
    ("softmax", F.softmax_backward, "dout - xp.sum", "dout + xp.sum"),
    ("layer norm", F.layer_norm_backward, "dx = dout * weight", "dx = dout * 1"),
    ("layer norm", F.layer_norm_backward, "dx -= xhat * along", ""),
    ("layer norm", F.layer_norm_backward, "rows(dout * xhat)", "rows(dout)"),
]
for name, function, old, new in slips:
    with mock.patch.object(F, function.__name__, mutant(function, old, new)):
        errors = check_layer(layers[name], x, rng)
    caught = [f"{wrong} ({error:.0e})" for wrong, error in errors.items() if error > 1e-11]
    print(f"{name:11} {old:18} -> {new or 'left out':15} caught in {', '.join(caught)}")
    assert caught
for name in ("linear", "softmax", "layer norm"):
    assert max(check_layer(layers[name], x, rng).values()) < 1e-11

# %% [markdown]
# One thing no gradient check can see: a mistake that forward and backward share. A LoRA layer that
# scales by `lora_alpha` instead of `lora_alpha / r` has a perfectly right gradient of the wrong
# function. Such mistakes need a second opinion about the *forward* pass: a hand calculation, a
# published value, another implementation.
#
# ---
#
# > **What to remember**
# >
# > * Write $\delta L = \langle \mathrm{dout}, \delta y \rangle$, insert $\delta y$, move the rest
# >   to the other side, read off the gradient.
# > * For a linear layer: $\mathrm{d}x = \mathrm{dout}\, W$, $\mathrm{d}W = \mathrm{dout}^\top x$,
# >   $\mathrm{d}b$ is the sum of the rows of $\mathrm{dout}$.
# > * In layer norm the mean and the variance depend on $x$; forgetting it is an error of the size
# >   of the gradient itself.
# > * Central differences are good to about 10 digits at best, at a step near $\epsilon^{1/3}$. The
# >   complex step is good to all of them, at any tiny step, where no `abs`, `max` or conjugate is
# >   used.
# > * Check with a random $\mathrm{dout}$, non-zero parameters and sizes that all differ,
# >   $\mathrm{d}x$ included. Then break the code once, to see that the check can fail.
# > * Layers sum over the batch, only the loss divides; caches and gradients are returned, never
# >   stored.
#
# **Next.** [Chapter 03](03_lora_layer.ipynb) puts two small factors beside a frozen $W$, and
# applies the recipe to them.
#
# ## Exercises
#
# Replace `None`, run the cell, and a check says "right" or gives a hint. Solutions:
# [solutions/02_backprop_by_hand.ipynb](solutions/02_backprop_by_hand.ipynb).
#
# **1. An activation.** Softplus is $y = \log(1 + e^x)$. What is its slope $f'(x)$?

# %%
answer = None  # your turn: lambda x: ...
ch02.softplus_slope(answer)

# %% [markdown]
# **2. Derive: RMS norm** is layer norm without the mean, and Llama-like models use it:
#
# $$ y = \mathrm{weight} \odot \mathrm{xhat}, \qquad \mathrm{xhat} = \mathrm{rstd} \cdot x, \qquad
# \mathrm{rstd} = (m(x \odot x) + \mathrm{eps})^{-1/2}. $$
#
# Derive $\mathrm{d}x$ from $\mathrm{dxhat} = \mathrm{dout} \odot \mathrm{weight}$, $\mathrm{xhat}$
# and $\mathrm{rstd}$. (`F.row_means` is $m$.)

# %%
answer = None  # your turn: lambda dxhat, xhat, rstd: ...
ch02.rms_norm_dx(answer)

# %% [markdown]
# **3. Change LoRA: a norm in the gate.** Put an RMS norm (without a weight) between the two
# factors, so that the size of what $A$ reads no longer matters:
#
# $$ z = x A^\top, \qquad y = x W^\top + s\; \mathrm{rms}(z)\, B^\top . $$
#
# Derive $\mathrm{d}A$, for $\mathrm{eps} = 10^{-5}$. You may use your answer to exercise 2 as a
# function.

# %%
answer = None  # your turn: a function of dout, x, A, B, s
ch02.normed_gate_dA(answer)

# %% [markdown]
# **4. Derive: a weight used twice.** $z = x W^\top$ and $y = z W^\top$ with a square $W$. Derive
# $\mathrm{d}W$ from $\mathrm{dout}$, $x$, $z$ and $W$. (Then you know why the library has
# `add_grads`.)

# %%
answer = None  # your turn: lambda dout, x, z, W: ...
ch02.used_twice_dW(answer)

# %% [markdown]
# **5. Measure: single precision.** Somebody hands you a function that computes in float32 only. At
# which step are its central differences best? Write the loop for `loss32` (the library's converts
# to float64), compare with `slope32` at several steps, and give a good one. (Within a factor of
# four of the least error counts.)

# %%
x32, dout32 = np.random.default_rng(0).standard_normal((2, 4, 7)).astype("f4")
slope32 = dout32 * F.gelu_tanh(x32)[1]  # the gradient, by hand


def loss32(x):
    return np.sum(dout32 * F.gelu_tanh(x)[0])


answer = None  # your turn: a step size
ch02.single_precision(answer)

# %% [markdown]
# **Sources.** W. Squire and G. Trapp, *Using Complex Variables to Estimate Derivatives of Real
# Functions*, SIAM Review 40, 1998. J. L. Ba, J. R. Kiros and G. E. Hinton, *Layer Normalization*,
# 2016, arXiv:1607.06450. D. Hendrycks and K. Gimpel, *Gaussian Error Linear Units*, 2016,
# arXiv:1606.08415. B. Zhang and R. Sennrich, *Root Mean Square Layer Normalization*, 2019,
# arXiv:1910.07467. E. J. Hu et al., *LoRA*, 2021, arXiv:2106.09685.
