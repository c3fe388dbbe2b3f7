# %% [markdown]
# # Does training only A and B work?
#
# Chapter 03 says that LoRA sees the gradient only through two thin windows. Whether that is enough
# is a question for an experiment. Here is the smallest one that is real: a network that reads
# handwritten digits has to learn to read them lying on their side, with all of its weights frozen.
# Only the thin orange strips train:
#
# ![The network: a digit of 8 x 8 pixels goes through three layers, fc1, fc2 and fc3, to ten logits.
# The weight of each is frozen; under it lies its factor A of rank 4, beside it its factor
# B.](../figures/mlp_adapters.svg)
#
# They hold 9 % as many numbers as the weights. The network guesses at first, with 10 % right. The
# strips take it to 96 %.
#
# At the end of this chapter you can
#
# * put LoRA on a model and train it, and say what each line of AdamW is for;
# * compare it fairly with other ways to adapt the model;
# * choose rank, scaling and learning rate together, and say what each choice is worth.

# %%
import copy
import tempfile
from dataclasses import replace
from pathlib import Path

import joblib
import matplotlib.pyplot as plt
import numpy as np
from threadpoolctl import threadpool_limits

from lorabook import LoRAConfig, files, inject, memory_table, studies
from lorabook.adapters import count, load_adapter, save_adapter
from lorabook.book.checks import ch04
from lorabook.book.plots import choices
from lorabook.book.plots import digits as drawn
from lorabook.data import Batches, digits
from lorabook.functional import relative_error
from lorabook.tasks import digits_problem
from lorabook.training import AdamW, train

threadpool_limits(1)  # products this small do not profit from more threads
plt.rcParams["figure.dpi"] = 110
print(files.environment.summary())

# %% [markdown]
# ## The task
#
# There are 1,797 digits of 8 x 8 pixels, two thirds to train on and one third to test on. The base
# model is a multi-layer perceptron, trained on upright digits. Then every image is turned by 90
# degrees. No digit of the test set, upright or turned, is seen in either training. (`evaluate`
# gives the loss and the share that is right.)

# %%
problem = digits_problem("digits-rotated", seed=0)
upright, base, task = digits(seed=0), problem.base, problem.task
before, after = (base.evaluate(data.part("test"))[1] for data in (upright, task))
print(f"{len(task.x_train)} training rows, {len(task.x_test)} test rows")
print(f"base model: {before:.1%} right on upright digits, {after:.1%} on turned ones")
assert before > 0.95 and after < 0.15

drawn.before_and_now(upright.x_test[:8], task.x_test[:8], task.y_test[:8])

# %% [markdown]
# On turned digits the model is at 10 %: it guesses.
#
# ## The model, with LoRA
#
# The base model is three linear layers with gelu between them. `inject` puts the two factors of
# chapter 03 beside each weight, as in the drawing at the top: the linear layer becomes the
# `base_layer` of a `LoRALinear`, and everything but the factors is frozen, the biases too.

# %%
model = copy.deepcopy(base)
inject(model, LoRAConfig(r=4, lora_alpha=16), 0)
for name, array in model.trainable_params().items():
    print(f"{name:12} {array.shape!s:10}", "zero" if not array.any() else "random")
trains, weights = (count(params) for params in (model.trainable_params(), base.named_params()))
weights -= count({name: bias for name, bias in base.named_params().items() if "bias" in name})
print(f"{trains:,} numbers beside {weights:,} weights: {trains / weights:.1%}")
assert (trains, weights) == (2_344, 25_856)

# %% [markdown]
# ## The optimizer: what AdamW does, and why
#
# Plain gradient descent moves a parameter $\theta$ with the gradient $g$ by
#
# $$\theta \leftarrow \theta - \mathrm{lr}\,g$$
#
# so a step is as long as the learning rate $\mathrm{lr}$ times the gradient. For LoRA that is
# awkward: chapter 03 found that $\mathrm{d}B$ depends on $r$ and $s$, and that $\mathrm{d}A$ is zero
# at first. We want steps whose length is set by $\mathrm{lr}$ and not by the size of the gradient.
# Everything below is done to each number of $\theta$ by itself.
#
# **Divide by the usual size.** The size of $g$ is known from its past: the root of an average of
# $g^2$. And since a batch's gradient is noisy, the direction is better taken from an average too. A
# *running average* needs no memory of the past but itself. Start both at zero, and at step $t$ set
#
# $$\bar g_t = \beta_1\, \bar g_{t-1} + (1 - \beta_1)\, g_t \qquad\qquad
# \overline{g^2}_t = \beta_2\, \overline{g^2}_{t-1} + (1 - \beta_2)\, g_t^2$$
#
# (The paper calls the two $m$ and $v$.) Put the first line into itself, again and again, and the
# average comes out, in which a gradient counts less the older it is:
#
# $$\bar g_t = (1 - \beta_1) \sum_{i=1}^{t} \beta_1^{\,t-i}\, g_i$$
#
# It is an average over about $1 / (1 - \beta)$ steps: with the usual $\beta_1 = 0.9$ the direction
# over the last 10, with $\beta_2 = 0.999$ the size over the last 1,000.
#
# **Correct the start.** The weights of an average should add up to one. Those here are a geometric
# series, and do not:
#
# $$(1 - \beta_1) \sum_{i=1}^{t} \beta_1^{\,t-i} = 1 - \beta_1^{\,t}$$
#
# What is missing is the weight of the zero it started from. Dividing by the sum mends it:
#
# $$\hat g_t = \frac{\bar g_t}{1 - \beta_1^{\,t}} \qquad\qquad
# \widehat{g^2}_t = \frac{\overline{g^2}_t}{1 - \beta_2^{\,t}}$$
#
# **Step.** Direction over usual size:
#
# $$\theta \leftarrow \theta - \mathrm{lr}\, \frac{\hat g_t}{\sqrt{\widehat{g^2}_t} + \epsilon}$$
#
# Two things follow at once. In the first step $\hat g_1 = g_1$ and $\widehat{g^2}_1 = g_1^2$, so
# every number moves by $\mathrm{lr}$, against the sign of its gradient: chapter 03 used that. And if
# all gradients are multiplied by one number, so are numerator and root, and nothing changes.
#
# The small $\epsilon$ is for gradients that are tiny: it stands in for the usual size where that is
# smaller than $\epsilon$. At $10^{-8}$ it does nothing to an ordinary gradient, and it makes the
# first step of $A$ a zero instead of $0/0$.
#
# **Decoupled decay.** The W in AdamW is weight decay, a pull of every number towards zero. If the
# pull $\lambda \theta$ were added to $g$, it would be divided by the usual size as well, and numbers
# with large gradients would decay less. So it is taken out of the quotient, and every number shrinks
# by the same factor:
#
# $$\theta \leftarrow (1 - \mathrm{lr}\,\lambda)\, \theta -
# \mathrm{lr}\, \frac{\hat g_t}{\sqrt{\widehat{g^2}_t} + \epsilon}$$
#
# On LoRA's factors it pulls $s\,B A$ to zero, that is, the model back to the pretrained one.
#
# That is all of AdamW, in five lines. (The averages are updated in place, so what is added is the
# difference, $(1 - \beta)(g - \bar g)$.)


# %%
def adamw(theta, g, g_mean, g2_mean, t, lr, betas=(0.9, 0.999), eps=1e-8, decay=0.0):
    g_mean += (1 - betas[0]) * (g - g_mean)
    g2_mean += (1 - betas[1]) * (g**2 - g2_mean)
    g_hat, g2_hat = g_mean / (1 - betas[0] ** t), g2_mean / (1 - betas[1] ** t)
    theta *= 1 - lr * decay
    theta -= lr * g_hat / (np.sqrt(g2_hat) + eps)


# %% [markdown]
# It is the library's optimizer, which does the same to many arrays laid end to end:

# %%
rng = np.random.default_rng(0)
theta, g_mean, g2_mean = np.ones(5), np.zeros(5), np.zeros(5)
theirs, optimizer = {"theta": np.ones(5)}, AdamW(0.01, weight_decay=0.1)
for t in range(1, 101):
    g = rng.standard_normal(5)
    adamw(theta, g, g_mean, g2_mean, t, lr=0.01, decay=0.1)
    optimizer.step(theirs, {"theta": g})
print(f"after 100 steps: relative difference {relative_error(theta, theirs['theta']):.0e}")
assert relative_error(theta, theirs["theta"]) < 1e-12

# %% [markdown]
# And the two things that followed: a first step of $\mathrm{lr}$ against the sign, and no change
# when all gradients are a thousand times larger.

# %%
gradients, ends = rng.standard_normal((100, 5)), []
for times in (1, 1000):
    theta, g_mean, g2_mean = np.zeros(5), np.zeros(5), np.zeros(5)
    for t, g in enumerate(times * gradients, start=1):
        adamw(theta, g, g_mean, g2_mean, t, lr=0.01)
        if t == 1:
            assert np.allclose(theta, -0.01 * np.sign(g), rtol=1e-6)
    ends.append(theta)
print("after 100 steps:         ", ends[0].round(4))
print("gradients 1,000 x larger:", ends[1].round(4))
assert relative_error(ends[1], ends[0]) < 1e-6

# %% [markdown]
# What would happen without the correction? Let the gradient be 1 at every step, so that each step
# should have the length $\mathrm{lr}$. Uncorrected, its length is
# $(1 - \beta_1^{\,t}) / \sqrt{1 - \beta_2^{\,t}}$ times that:


# %%
def plain(t):
    return (1 - 0.9**t) / np.sqrt(1 - 0.999**t)


g_mean, g2_mean = 0.0, 0.0
for t in range(1, 1001):
    g_mean += (1 - 0.9) * (1 - g_mean)
    g2_mean += (1 - 0.999) * (1 - g2_mean)
    assert np.isclose(g_mean / g2_mean**0.5, plain(t))

steps = np.arange(1, 10_001)
print(f"step 1: {plain(1):.2f}, longest: {plain(steps).max():.2f}, step 1,000: {plain(1000):.2f}")
assert 3.1 < plain(1) < 3.2 and 6 < plain(steps).max() < 7 and plain(1000) > 1.2
drawn.first_steps_of_adam([{"t": t, "corrected": 1.0, "plain": plain(t)} for t in steps])

# %% [markdown]
# Without it the first steps would be three to seven times too long, because the average of $g^2$
# starts more slowly than that of $g$. And at step 1,000 they would still be a quarter too long; a
# whole training is about as long in this chapter (60 epochs of 18 batches).
#
# ## The loop
#
# Now everything is there to train. One step takes a batch, its loss and gradients, and calls the
# optimizer for every factor:

# %%
batches = Batches(task.part("train"), batch_size=64, seed=0)
params = model.trainable_params()
g_mean, g2_mean = ({name: np.zeros_like(p) for name, p in params.items()} for _ in range(2))
assert len(batches) == 18
for t in range(1, 20 * len(batches) + 1):
    loss, grads = model.loss_and_grad(batches.at(t - 1))
    for name, theta in params.items():
        adamw(theta, grads[name], g_mean[name], g2_mean[name], t, lr=0.01)
    if t % (5 * len(batches)) == 0:
        right = model.evaluate(task.part("test"))[1]
        print(f"epoch {t // len(batches):2}: training loss {float(loss):.3f}, {right:.1%} right")
assert right > 0.9

# %% [markdown]
# From guessing to over 90 % in 20 epochs, and no weight has moved. From here on `train` does the
# same, with a learning rate that falls along a cosine; what else it has is in a note.
#
# <details><summary>What else the library's loop does</summary>
#
# It shares a step among threads or processes (chapter 15), writes checkpoints from which a killed
# run goes on bit for bit, and stops at a loss or gradient that is not finite before it touches a
# weight, naming the layer. `lorabook train --help` has the options; `tests/training` shows each.
#
# </details>
#
# ## Four ways to adapt
#
# LoRA is worth something only if it does better than training as many numbers in a simpler way. So
# it gets three rivals. What trains is a matter of names (`set_trainable`); the loop is the same for
# all four. What it needs in memory follows from what trains:


# %%
def factors(model, seed):
    inject(model, LoRAConfig(r=4, lora_alpha=16), seed)


def everything(model, seed):
    model.set_trainable(model.named_params())


def last_layer(model, seed):
    model.set_trainable(["fc3.weight", "fc3.bias"])


def biases(model, seed):
    model.set_trainable([name for name in model.named_params() if name.endswith("bias")])


METHODS = {
    "full fine-tuning": everything,
    "LoRA, r = 4": factors,
    "last layer only": last_layer,
    "biases only": biases,
}

counts = {}
for method, prepare in METHODS.items():
    model = copy.deepcopy(base)
    prepare(model, 0)
    row = memory_table(model)[1]
    counts[method] = row["trained"]
    kilobytes = {part: row[part] / 1e3 for part in ("weights", "gradients", "optimizer")}
    sizes = ", ".join(f"{part} {size:.1f} kB" for part, size in kilobytes.items())
    print(f"{method:16} {row['trained']:6,} numbers train;  {sizes}")
assert list(counts.values()) == [26_122, 2_344, 1_290, 266]

# %% [markdown]
# The weights are there in any case, with LoRA's factors on top. Gradients are as large as what
# trains, and the optimizer's two averages twice that.
#
# ## Each at its own learning rate
#
# A method compared at another method's learning rate is not compared at all. So a quarter of the
# training rows is set aside, each method tries three rates with three seeds, and the lowest median
# loss on the rows set aside wins. The test rows stay out of it.


# %%
def fit(method, lr, seed, problem):
    model = copy.deepcopy(problem.base)
    METHODS[method](model, seed)
    batches = Batches(problem.task.part("train"), 64, seed)
    return model, train(model, batches, AdamW(lr), epochs=60, seed=seed)


def fit_all(settings):
    return joblib.Parallel(n_jobs=2)(joblib.delayed(fit)(*setting) for setting in settings)


RATES = {method: (0.001, 0.01, 0.1) for method in ("full fine-tuning", "LoRA, r = 4")}
RATES |= {method: (0.01, 0.1, 1.0) for method in ("last layer only", "biases only")}
validation, chosen = digits_problem("digits-rotated", seed=0, validation=True), {}
held_out = validation.task.part("test")
for method, rates in RATES.items():
    losses = {}
    for lr in rates:
        results = fit_all((method, lr, seed, validation) for seed in range(3))
        losses[lr] = np.median([model.evaluate(held_out)[0] for model, _ in results])
    chosen[method] = min(losses, key=losses.get)
    shown = "   ".join(f"{lr:g}: {loss:.3f}" for lr, loss in losses.items())
    print(f"{method:16} {shown}   -> {chosen[method]:g}")
    assert chosen[method] == rates[1]  # neither the lowest nor the highest tried

# %% [markdown]
# No single rate is best for all four.
#
# ## The answer
#
# All training rows now, and five seeds, which shuffle the batches and draw $A$; the base model and
# the split stay the same.

# %%
runs = {}
for method in METHODS:
    runs[method] = fit_all((method, chosen[method], seed, problem) for seed in range(5))

right = {}
for method, results in runs.items():
    test = [model.evaluate(task.part("test"))[1] for model, _ in results]
    known = np.median([model.evaluate(task.part("train"))[1] for model, _ in results])
    right[method] = middle, low, high = np.median(test), min(test), max(test)
    print(f"{method:16} {counts[method]:6,} numbers: {middle:.1%} right ({low:.1%} to {high:.1%});")
    print(f"{'':16} {known:.1%} right on the training rows")
    assert known > 0.999 or method not in ("full fine-tuning", "LoRA, r = 4")

full, lora, last, bias = right.values()
assert full[1] > lora[2] - 0.005 and lora[1] > last[2] > bias[2]
assert full[0] > 0.97 and 0.94 < lora[0] < 0.975 and 0.01 < full[0] - lora[0] < 0.035
assert 0.91 < last[0] < 0.95 and 0.45 < bias[0] < 0.6

# %% jupyter={"source_hidden": true} tags=["hide-input"]
losses = {}
for method, results in runs.items():
    steps = np.array([[step["loss"] for step in history] for _, history in results])
    losses[method] = steps.reshape(5, 60, -1).mean(axis=2)  # of the steps of an epoch
drawn.training_curves(losses)

# %% [markdown]
# Yes, it works: with 9 % of the numbers trained, the model goes from guessing to about 96 % right.
# It works better than training a part of the network as it is: the last layer alone, with half as
# many numbers, stops at 93 %, the biases at 53 %.
#
# At this rank it does not reach full fine-tuning, which gets 98 %. That is not for lack of fitting:
# LoRA, too, gets every training digit right. What it has learnt carries over to new digits a little
# less well.
#
# ## Which rank?
#
# Is it the rank that is missing? `lorabook figures rank_vs_error` runs this experiment for seven
# ranks. Its five seeds stand for five *splits*, each with a base model of its own, and every rank
# has the rate and the scaling that suit it, which is what the next section is about. (Full
# fine-tuning leaves the biases frozen there.)

# %%
sweep = files.read_csv("../figures/data/rank_vs_error.csv")
drawn.accuracy_by_rank(sweep, (counts["last layer only"], *right["last layer only"]))

# %% [markdown]
# In numbers: the median, the lowest and the highest of the five splits; at the end of a line the
# mean difference to full fine-tuning on the same split, in points, and its standard error:

# %%
by_rank = files.median_by(sweep, ("method", "r"), "test_accuracy")
numbers = files.median_by(sweep, ("method", "r"), "params")
seconds = files.median_by(sweep, ("method", "r"), "seconds")
gaps = studies.against_full(sweep)
for method, r in by_rank:
    if method in ("lora", "full"):
        name = f"r = {r:2}" if r else "full  "
        middle, low, high = (f"{share:.1%}" for share in by_rank[method, r])
        gap = "{:+.1f} +- {:.1f}".format(*(100 * gap for gap in gaps[method, r])) if r else ""
        print(f"{name} {numbers[method, r][0]:6,} numbers, {seconds[method, r][0]:.2f} s, ", end="")
        print(f"{middle} ({low} to {high})  {gap}")

ranks, full = {r: by_rank["lora", r] for r in (1, 2, 4, 8)}, by_rank["full", None]
assert ranks[1][0] < 0.9 < 0.94 < ranks[2][0] < ranks[4][0] < ranks[8][0]
assert ranks[2][0] > last[2] and numbers["lora", 2][0] < counts["last layer only"]
assert all(abs(gaps["lora", r][0]) < 0.006 for r in (16, 32, 64)) and full[2] - full[1] > 0.012
assert -0.025 < gaps["lora", 4][0] < -0.01
ratios = [seconds["lora", r][0] / seconds["full", None][0] for r in (1, 2, 4, 8, 16, 32, 64)]
assert min(ratios) > 0.9 and max(ratios) < 1.7

# %% [markdown]
# Rank 1 is too little. Rank 2 does better than the last layer with fewer numbers. Rank 4 is two
# points behind full fine-tuning. From rank 16 on the two are level: they differ by half a point at
# most, and the splits among themselves by more than a point.
#
# What LoRA does *not* save here is time: it takes as many seconds as full fine-tuning, or up to half
# as many again. The matrices are so small that the extra calls cost as much as the product saved.
#
# A stored file is only as good as the command that wrote it. A part of it, computed again here:

# %%
setting, _ = studies.setting_for("digits-rotated")
again = studies.rank_sweep(setting, (1, 16), range(3), jobs=2)
stored = {(row["method"], row["r"], row["seed"]): row["test_accuracy"] for row in sweep}
apart = [
    abs(row["test_accuracy"] - stored[row["method"], row["r"], row["seed"]])
    for row in again
    if row["method"] in ("full", "lora")
]
print(f"{len(apart)} trainings repeated; largest difference in accuracy: {max(apart):.4f}")
assert len(apart) == 9 and max(apart) < 0.03

# %% [markdown]
# ## Which scaling, which learning rate?
#
# Does $s$ matter, when the optimizer can make $B$ as large as it likes? Look at the first step once
# more. AdamW moves each number of $B$ by $\mathrm{lr}$, against the sign of its gradient, so the
# first update of a weight is $-s\,\mathrm{lr}\,\mathrm{sign}(\mathrm{d}B)\,A$. Each of its rows is a
# sum of $r$ rows of $A$ with signs. A row of $A$ has $d_\mathrm{in}$ entries of variance
# $1/(3\,d_\mathrm{in})$ (chapter 03), so its squared length is 1/3 on average, and cross terms
# average out. There are $d_\mathrm{out}$ rows:
#
# $$\lVert s\,\mathrm{lr}\,\mathrm{sign}(\mathrm{d}B)\,A \rVert
# \approx s\,\mathrm{lr}\,\sqrt{\tfrac{1}{3}\, d_\mathrm{out}\, r}$$
#
# It grows like $s \sqrt{r}$. Measured on `fc2`, where $d_\mathrm{out} = 128$:

# %%
one_step = replace(setting, epochs=1, batch_size=len(task.x_train))  # one batch, so one step


def first_step(r, recipe):
    model, _ = studies.trained(one_step.using({r: recipe}), problem, r, seed=0)
    return np.linalg.norm(studies.update_of(model, problem)["fc2"])


SCALINGS = {"16 / r": (16, False), "16 / sqrt(r)": (16, True), "64 / sqrt(r)": (64, True)}
steps = {}
for name, (alpha, use_rslora) in SCALINGS.items():
    for r in (1, 4, 16, 64):
        steps[name, r] = first_step(r, studies.Recipe(0.01, alpha, use_rslora))
        formula = 0.01 * alpha / (1 if use_rslora else r**0.5) * (128 / 3) ** 0.5
        assert abs(steps[name, r] / formula - 1) < 0.25, (name, r, steps[name, r], formula)
    print(f"s = {name:12}", "   ".join(f"r = {r:2}: {steps[name, r]:.2f}" for r in (1, 4, 16, 64)))
print(f"full fine-tuning at its rate: {first_step(None, setting.recipe(None)):.2f}")
assert steps["16 / r", 1] / steps["16 / r", 64] > 6

# %% [markdown]
# With $16 / r$ a step of rank 64 moves the weight seven times less than one of rank 1. With
# $16 / \sqrt{r}$ it does not depend on the rank, and with $64 / \sqrt{r}$ it is about as long as one
# of full fine-tuning.
#
# Does that contradict chapter 03, where $\alpha / r$ kept AdamW's first *loss drop* the same at every
# rank? No: the drop grows like $s\,r$ and the length like $s \sqrt{r}$, and no $s$ keeps both. Which
# of the two a whole training asks for cannot be read off its first step.
#
# So rate and scaling have to be searched together, for every rank. `lorabook figures learning_rates`
# does it as above, on rows held out of the training rows, over ten splits. Lower is better:

# %%
tried = files.read_csv("../figures/data/learning_rates.csv")
choices.learning_rates(tried)

# %% jupyter={"source_hidden": true} tags=["hide-input"]
wrong = {}
for row in tried:
    key = row["r"], row["lora_alpha"], row["use_rslora"], row["lr"]
    wrong.setdefault(key, []).append(100 * (1 - row["validation_accuracy"]))
wrong = {key: np.mean(found) for key, found in wrong.items()}
rates = (0.001, 0.002, 0.005, 0.01, 0.02)
for r in (8, 16, 32, 64):
    best = min((key for key in wrong if key[0] == r), key=wrong.get)
    assert best == (r, 64, 1, 0.005)
    assert min(wrong[r, 16, 0, lr] for lr in rates) > wrong[best] + 0.6
assert wrong[64, 16, 0, 0.001] > 4 * wrong[64, 64, 1, 0.001] and wrong[64, 64, 1, 0.02] > 85
assert min((lr for *_, lr in wrong), key=lambda lr: wrong.get((None, None, None, lr), 100)) == 0.03
assert 1 < wrong[None, None, None, 0.003] - wrong[None, None, None, 0.03] < 1.6
print(f"r = 64 at rate 0.001: {wrong[64, 16, 0, 0.001]:.1f} % wrong with s = 16 / r, ", end="")
print(f"{wrong[64, 64, 1, 0.001]:.1f} % with 64 / sqrt(r)")

# %% [markdown]
# With $16 / r$ a high rank learns too slowly. From rank 8 on one recipe is best for all ranks: rate
# 0.005 with $64 / \sqrt{r}$. At small rank the choice matters less. Full fine-tuning is not at its
# best where one would first try it either: at 0.003 it makes a point more mistakes than at 0.03.
#
# ## What is each choice worth?
#
# `lorabook figures headline_choices` runs both sides with the settings that one would first think of
# (0.003 for full fine-tuning; 0.01 with $16 / r$ for LoRA) and with the better ones, on the *test*
# rows of ten splits, three seeds each. Higher is better for LoRA. (At the right each split has a
# column, the worst for LoRA first.)

# %%
rows = files.read_csv("../figures/data/headline_choices.csv")
choices.headline_choices(rows)


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def against_tuned(choice, r):
    return studies.mean_and_error(list(studies.split_gaps(rows, choice, r).values()))


gaps, names = {}, {"first": "16 / r, 0.01", "rslora": "16 / sqrt(r), 0.01", "tuned": "its own"}
print("LoRA minus tuned full fine-tuning, in points, and the standard error of the mean")
print(f"{'':18}", "   ".join(f"r = {r:<9}" for r in (4, 16, 32, 64)))
for choice, name in names.items():
    for r in (4, 16, 32, 64):
        gaps[choice, r] = against_tuned(choice, r)
    cells = ("{:+.2f} +- {:.2f}".format(*gaps[choice, r]) for r in (4, 16, 32, 64))
    print(f"{name:18}", "   ".join(cells))
untuned = against_tuned("first", None)
print("full fine-tuning at 0.003: {:+.2f} +- {:.2f}".format(*untuned))
print("\ndirections that hold 90 % of the update at r = 64, medians for fc1, fc2, fc3")
directions = {}
for choice in ("first", "tuned"):
    own = [row for row in rows if (row["choice"], row["r"]) == (choice, 64)]
    found = [[row[f"directions_{path}"] for row in own] for path in ("fc1", "fc2", "fc3")]
    directions[choice] = np.median(found, axis=1)
    print(f"{names[choice]:18}", "  ".join(f"{n:4.1f}" for n in directions[choice]))
assert all(-1.5 < gaps["first", r][0] < -0.8 for r in (16, 32, 64)) and gaps["rslora", 64][0] > -0.3
assert all(abs(gaps["tuned", r][0]) < 0.25 for r in (16, 32, 64))
assert -2.2 < gaps["tuned", 4][0] < -1.3
assert -0.6 < untuned[0] < -0.2 and max(directions["first"]) <= 3 < directions["tuned"][0]
alone = studies.split_gaps(rows, "tuned", 32)
assert alone[0] < -0.8 and alone[2] > 0.7

# %% [markdown]
# * **One rate and $16 / r$ for every rank**: LoRA ends a point below full fine-tuning from rank 16
#   on, which looks like a property of LoRA. It is one of the scaling: at rank 64 $s$ is 0.25, and
#   the update that training finds collapses to two or three singular directions, which hold 90 % of
#   its squared norm. With $16 / \sqrt{r}$ and nothing else changed, most of the gap is gone.
# * **Own rate and scaling**: at ranks 16, 32 and 64 the two are level, as far as ten splits and
#   three seeds can tell. At rank 4 LoRA stays 1.8 points behind: there, rank is what it lacks.
# * **Full fine-tuning at an untuned rate** is 0.4 points worse. Tune one side only, and that side
#   wins.
# * **The split.** On split 0, that of the beginning of this chapter, LoRA of rank 32 is a point
#   behind; on split 2 it is nearly a point ahead. More seeds on one split would not have told.
#
# ## What is saved
#
# Only the factors need to be kept for the task. `save_adapter` writes a folder as PEFT does: a small
# JSON file with the configuration, and a safetensors file. That file is 8 bytes for the length of
# its header, the header, and 4 bytes a number:

# %%
model, _ = runs["LoRA, r = 4"][0]
with tempfile.TemporaryDirectory() as folder:
    save_adapter(folder, model)
    data = (Path(folder) / "adapter_model.safetensors").read_bytes()
    fresh = copy.deepcopy(base)
    load_adapter(folder, fresh)
header = int.from_bytes(data[:8], "little")
print(f"8 + header {header} + 4 x 2,344 numbers = {8 + header + 4 * 2344} bytes")
same = np.array_equal(fresh(task.x_test)[0], model(task.x_test)[0])
print("loaded into a fresh copy of the base model, the same bits out:", same)
assert same and len(data) == 8 + header + 4 * 2344

# %% [markdown]
# > **What to remember**
# >
# > * Training only $A$ and $B$ works: here 9 % of the numbers take the model from 10 % to 96 %. It
# >   beats training the last layer or the biases, each at its own learning rate.
# > * AdamW: a running average of gradients over the root of one of their squares, both corrected for
# >   starting at zero. The length of a step is set by $\mathrm{lr}$, not by the gradient.
# > * From rank 16 on LoRA is level with full fine-tuning here, if each side has its own rate and
# >   LoRA a scaling that suits the rank. At rank 4 it is almost two points behind.
# > * With $\alpha / r$ at a fixed $\alpha$ a high rank learns too slowly; with $\alpha / \sqrt{r}$
# >   one rate serves many ranks.
# > * One split is one opinion. Compare on the same splits, over many, with the standard error.
#
# Next: the same on the layers of a transformer, which first need a backward pass
# ([chapter 05](05_transformer_block.ipynb)). Who wants to know what these updates look like beside
# the best that a rank allows goes on with [chapter 06](06_rank_vs_error.ipynb).
#
# ## Exercises
#
# Replace `None` and run the cell. Solutions are in [solutions/04_mlp.ipynb](solutions/04_mlp.ipynb).
#
# **1. Half-life (a derivation).** After how many steps does a gradient count half as much in a
# running average with $\beta$ as when it came in? (Not a whole number, in general.)

# %%
answer = None  # your turn: lambda beta: ...
ch04.half_life(answer)

# %% [markdown]
# **2. A frozen A (a change of LoRA).** Some variants leave $A$ as it was drawn and train $B$ alone.
# Write a function as `factors` above that prepares the model so, with $r = 4$ and `lora_alpha=16`.
# How much do you expect to lose? The check trains it and LoRA.

# %%
answer = None  # your turn: a function of (model, seed)
ch04.frozen_A(answer)

# %% [markdown]
# **3. One layer, one rank (a measurement).** If you may adapt only one of `fc1`, `fc2`, `fc3`, with
# $r = 1$, `lora_alpha=16` and rate 0.01: which one reads the turned digits best? Think of what a
# turned image is, then measure, over three seeds.

# %%
answer = None  # your turn: "fc1", "fc2" or "fc3"
ch04.one_layer(answer)

# %% [markdown]
# **4. The exact answer.** Turning is linear: a turned image is `turn @ x`, with a 64 x 64 matrix
# `turn` that moves pixels. Which update of `fc1.weight`, called `W`, makes the base model read
# turned digits exactly as well as upright ones, without any training?

# %%
turn = np.rot90(np.eye(64).reshape(8, 8, 64)).reshape(64, 64)
assert np.array_equal(upright.x_test @ turn.T, task.x_test)

answer = None  # your turn: lambda W, turn: ...
ch04.exact_update(answer)

# %% [markdown]
# **5. Its rank.** What is the rank of that update? LoRA needs only 2 to do well: what does that say
# about "the" update of a task?

# %%
answer = None  # your turn: an integer
ch04.its_rank(answer)

# %% [markdown]
# <details><summary>Sources</summary>
#
# E. J. Hu et al., *LoRA*, 2021, arXiv:2106.09685. D. P. Kingma and J. Ba, *Adam*, 2015,
# arXiv:1412.6980. I. Loshchilov and F. Hutter, *Decoupled Weight Decay Regularization*, 2019,
# arXiv:1711.05101. E. Ben Zaken et al., *BitFit* (training the biases only), 2021, arXiv:2106.10199.
# The digits: E. Alpaydin and C. Kaynak, *Optical Recognition of Handwritten Digits*, UCI Machine
# Learning Repository, 1998, as shipped with scikit-learn.
#
# </details>
