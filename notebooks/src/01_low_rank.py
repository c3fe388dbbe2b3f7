# %% [markdown]
# # How good can a rank-r matrix be?
#
# At the end of this chapter you can say, for any matrix and from a single decomposition, how close
# a product of two thin factors can come to it: at every rank, in a formula, with a proof that
# nothing comes closer. And you will have seen why LoRA puts such factors where it does.
#
# ![LoRA: the input x goes through the frozen weight W, and beside it through A and B; the two
# results are added](../figures/lora.svg)
#
# That is LoRA. A layer multiplies $N$ inputs, the rows of $x$, by its weight $W$. It is to learn
# something new, but $W$ stays as it is: what is learned goes into two factors beside it.
#
# $$ y = x\,W^\top + s\,(x A^\top)\,B^\top $$
#
# $A$ has the shape $(r, d_\mathrm{in})$ and $B$ the shape $(d_\mathrm{out}, r)$, so whatever they
# learn goes through a gate of $r$ numbers per row. ($s$ is a fixed number; chapter 03 is about it.)
#
# How much fits through such a gate? Here is a first answer. A small network reads 97.5 % of its
# handwritten digits right. We shall replace each of its *weights* by the best matrix of rank 4:
# 43.9 % are left. Yet of what *training* has added to its largest weight, a matrix of 128 x 128,
# rank 8 holds 90 % of the energy, the sum of the squares of all entries.
#
# Before we ask what training does with two such factors, we ask what any two such factors could
# do. The rest of the book measures against the answer.

# %%
import copy
import time

import matplotlib.pyplot as plt
import numpy as np
from sklearn.utils.extmath import randomized_svd as sklearn_randomized_svd
from threadpoolctl import threadpool_limits

from lorabook.adapters import inputs_of
from lorabook.book import plots
from lorabook.book.checks import ch01
from lorabook.book.listing import code
from lorabook.book.plots import chapter01, drawing_svd
from lorabook.data import digits
from lorabook.files import environment, format_table
from lorabook.linalg import low_rank
from lorabook.models import MLP
from lorabook.studies import Recipe, setting_for, trained, update_of
from lorabook.tasks import shapes_of

plt.rcParams["figure.dpi"] = 110
print(environment.summary())

# %% [markdown]
# ## Rank counts independent directions
#
# We begin with what a product of two factors is. Let $W = BA$. An input $x$, a row, passes
# through it in two steps:
#
# $$ z = x A^\top \ \ (r \text{ numbers}), \qquad y = z B^\top \ \ (d_\mathrm{out}
# \text{ numbers}). $$
#
# $A$ reads $r$ numbers from $x$, and $B$ writes an output from them. However large $W$ is, its
# outputs lie in a space of at most $r$ directions. That count is the **rank**.
#
# The factors themselves are thin, not "low-rank": each has rank $r$, which is all the rank that
# its shape allows.

# %%
rng = np.random.default_rng(0)
B, A = rng.standard_normal((30, 3)), rng.standard_normal((3, 20))
for name, matrix in (("B", B), ("A", A), ("B @ A", B @ A)):
    print(f"{name:6} {matrix.shape!s:9} rank {np.linalg.matrix_rank(matrix)}")
assert np.linalg.matrix_rank(B @ A) == 3

# %% [markdown]
# ## The singular value decomposition, in one picture
#
# Which $r$ directions should one keep? For that we need to see a matrix as a sum of directions,
# sorted by size. Take all inputs of length 1, a circle, and look at what a matrix makes of them,
# with $x$ drawn as a column:
#
# $$ y = W x, \qquad W = \begin{pmatrix} 2 & 1 \\ 0 & 1 \end{pmatrix} $$

# %%
drawing_svd.svd(drawing_svd.rows())

# %% [markdown]
# In the middle: the circle has become an ellipse. Its longest half-axis has the length $\sigma_1$
# and the direction $u_1$, the other one $\sigma_2$ and $u_2$; they are perpendicular. And the two
# inputs that become these half-axes, $v_1$ and $v_2$ on the left, are perpendicular too.
#
# That is so for every matrix, in any number of dimensions, and is called its **singular value
# decomposition**:
#
# $$ W = \sum_{i=1}^{n} \sigma_i\, u_i v_i^\top = U\, \mathrm{diag}(\sigma)\, V^\top, \qquad
# \sigma_1 \ge \sigma_2 \ge \dots \ge 0, \qquad n = \min(d_\mathrm{out}, d_\mathrm{in}). $$
#
# The columns $u_i$ of $U\ (d_\mathrm{out}, n)$ are orthonormal, and so are the rows $v_i^\top$ of
# $V^\top\ (n, d_\mathrm{in})$. Each term is a matrix of rank 1: it takes the component of the input
# along $v_i$, stretches it by $\sigma_i$, and writes it along $u_i$.
#
# On the right: only the first term is kept. The ellipse collapses to a line, and no
# point moves farther than $\sigma_2$. Two lines of code do the same at any rank:


# %%
def best_factors(W, r):
    U, sigma, Vt = np.linalg.svd(W, full_matrices=False)
    return U[:, :r] * sigma[:r], Vt[:r]  # B (d_out, r), A (r, d_in)


W = np.array([[2.0, 1.0], [0.0, 1.0]])
B, A = best_factors(W, 1)
print("sigma:", np.linalg.svd(W)[1].round(4))
print("W_1 = B A =", (B @ A).round(4).tolist())
print(f"||W - W_1||_2 = {np.linalg.norm(W - B @ A, 2):.4f}")
assert abs(np.linalg.norm(W - B @ A, 2) - np.linalg.svd(W)[1][1]) < 1e-12

# %% [markdown]
# (Formulas count from 1, as papers do, arrays from 0: $\sigma_1$ is `sigma[0]`, and
# $\sigma_{r+1}$, the first one that a truncation to rank $r$ drops, is `sigma[r]`.)
#
# ## What is lost
#
# Write $W_r$ for the sum of the first $r$ terms. What is missing are the others, and two norms say
# how much that is.
#
# The **spectral norm** is the largest stretch, the longest half-axis. The **Frobenius norm** is the
# root of the sum of all squared entries; $U$ and $V$ only turn, so it is also that of all
# $\sigma_i^2$:
#
# $$ \lVert W \rVert_2 = \sigma_1, \qquad
# \lVert W \rVert_F = \Big(\sum_{ij} W_{ij}^2\Big)^{1/2} = \Big(\sum_i \sigma_i^2\Big)^{1/2}. $$
#
# Hence the error of $W_r$ follows from the singular values alone:
#
# $$ \lVert W - W_r \rVert_2 = \sigma_{r+1}, \qquad
# \lVert W - W_r \rVert_F = \Big(\sum_{i > r} \sigma_i^2\Big)^{1/2}. $$
#
# ## Nothing of rank r is closer
#
# Eckart and Young showed in 1936 that these errors are the smallest possible: for **every** matrix
# $C$ $(d_\mathrm{out}, d_\mathrm{in})$ of rank at most $r$,
#
# $$ \lVert W - C \rVert_2 \ge \sigma_{r+1}, \qquad
# \lVert W - C \rVert_F \ge \Big(\sum_{i > r} \sigma_i^2\Big)^{1/2}. $$
#
# The proof is short, and worth it: the book leans on this bound in every plot of rank against
# error.
#
# **The spectral norm.** We look for one input on which $C$ must fail. The vectors
# $v_1, \dots, v_{r+1}$ span a space of $r + 1$ dimensions, and $C$ has rank at most $r$: it cannot
# tell all of them apart. So some combination of length 1 goes to zero,
#
# $$ v = \sum_{i=1}^{r+1} c_i v_i, \qquad \sum_{i=1}^{r+1} c_i^2 = 1, \qquad C v = 0. $$
#
# On this $v$ the error is all of $W v$. $W$ sends each $v_i$ to $\sigma_i u_i$; the $u_i$ are
# perpendicular, so squares add up, and each $\sigma_i$ here is at least $\sigma_{r+1}$:
#
# $$ \lVert W - C \rVert_2^2 \ \ge\ \lVert (W - C)\, v \rVert^2 = \lVert W v \rVert^2
# = \sum_{i=1}^{r+1} \sigma_i^2 c_i^2 \ \ge\ \sigma_{r+1}^2. $$
#
# **The Frobenius norm.** It counts all singular values of the error $E = W - C$, so we need a bound
# for each, not only for the largest. Write $\sigma_i(E)$ for them. The trick: give $C$ the first
# $i - 1$ terms of its own error's decomposition, $E_{i-1}$, as a present. The sum has
#
# $$ \mathrm{rank}(C + E_{i-1}) \ \le\ r + (i - 1), $$
#
# so it is a rival like any other, and what we have just proved applies to it:
#
# $$ \lVert W - (C + E_{i-1}) \rVert_2 \ \ge\ \sigma_{r+i}(W). $$
#
# But $W - (C + E_{i-1})$ is $E - E_{i-1}$, a truncation's remainder, and we know its spectral norm:
#
# $$ \lVert E - E_{i-1} \rVert_2 = \sigma_i(E), \qquad\text{hence}\qquad
# \sigma_i(E) \ \ge\ \sigma_{r+i}(W) \quad \text{for } i = 1, \dots, n - r. $$
#
# Square, and add up:
#
# $$ \lVert W - C \rVert_F^2 = \sum_i \sigma_i(E)^2 \ \ge\ \sum_{i=1}^{n-r} \sigma_{r+i}(W)^2
# = \sum_{i>r} \sigma_i(W)^2. \qquad \blacksquare $$
#
# The inequality in the middle is stronger than what we wanted, and can be watched: every singular
# value of the error of *any* rival of rank $r$ is at least the one of $W$ that stands $r$ places
# later.

# %%
W, r = rng.standard_normal((30, 20)), 6
sigma = np.linalg.svd(W)[1]
B, A = best_factors(W, r)
for noise in (0, 0.1, 1):
    C = B @ (A + noise * rng.standard_normal((r, 20)))
    above = np.linalg.svd(W - C)[1][:-r] - sigma[r:]
    print(f"W_6, its A changed by {noise:3}: sigma_i(W - C) exceeds sigma_(6+i) by", end="")
    print(f" {above.min().round(9) + 0:.3f} to {above.max():.3f}")
    assert np.all(above > -1e-12)

# %% [markdown]
# The library's function keeps the whole decomposition: the factors of rank $r$ are the first $r$
# columns of `B` and the first $r$ rows of `A`, and `errors[r]` is the error of each rank.

# %%
print(code(low_rank.truncate))
best = low_rank.truncate(W)
for norm, order in (("frobenius", "fro"), ("spectral", 2)):
    measured = [np.linalg.norm(W - best.weight(r), order) for r in range(21)]
    apart = np.abs(measured - low_rank.rank_errors(sigma, norm)).max()
    print(f"{norm:9}: formula and measurement, ranks 0 to 20, differ by at most {apart:.0e}")
    assert apart < 1e-12

# %% [markdown]
# ## Try to beat it
#
# A proof convinces better if one has tried. The first rival draws $A$ at random, 1000 times a
# rank, and takes the best $B$ for each.
#
# The second is alternating least squares: start at random, then fit $B$ to $A$ and $A$ to $B$ in
# turns. It is a small training run, without any SVD.

# %%
random_pairs, alternating = {}, {}
for r in (1, 2, 4, 6, 8, 12, 16):
    Q = np.linalg.qr(rng.standard_normal((1000, 20, r)))[0]  # 1000 bases of the rows of A
    kept = np.sum((W @ Q) ** 2, axis=(1, 2))
    random_pairs[r] = np.sqrt(np.sum(W**2) - kept)  # ||W - W Q Q^T||_F, by Pythagoras
    A = rng.standard_normal((r, 20))
    for _ in range(200):
        B = W @ np.linalg.pinv(A)  # (30, r)
        A = np.linalg.pinv(B) @ W  # (r, 20)
    alternating[r] = np.linalg.norm(W - B @ A)
chapter01.rivals(best.errors, random_pairs, alternating)

# %%
above = {r: alternating[r] / best.errors[r] - 1 for r in alternating}
closest = {r: random_pairs[r].min() / best.errors[r] for r in random_pairs}
least, most = min(above.values()), max(above.values())
print(f"alternating least squares, above the bound by: {least:.0e} to {most:.0e} of it")
print("best of 1000 random A, in units of the bound:")
print(*(f"  r = {r}: {value:.2f}" for r, value in closest.items()), sep="")
assert all(-1e-12 < value < 1e-4 for value in above.values())
assert 1 < closest[1] < 1.05 and closest[16] > 2.5
assert list(closest.values()) == sorted(closest.values())

# %% [markdown]
# At $r = 1$ the best of 1000 random directions comes within about 3 % of the bound. The gap widens
# with the rank: at $r = 16$ even the best of them has more than 2.5 times the least error.
#
# Fitting both factors reaches the bound at every rank tried, and never goes below. From
# here on the error of the best rank-$r$ matrix is a formula, not a search.
#
# ## A small example, checked
#
# You may meet the 4 x 4 matrix of 1 to 16 with two factors that are called the outcome of an SVD:
# $A$ is the first two rows of the matrix, and each row of $B$ picks one of them. Now we can judge.

# %%
W = np.arange(1.0, 17.0).reshape(4, 4)
B_printed, A_printed = np.array([[1.0, 0], [0, 1], [1, 0], [0, 1]]), W[:2]
print(W, "\n\nB A as printed:\n", B_printed @ A_printed, sep="")
lost, size = np.linalg.norm(W - B_printed @ A_printed), np.linalg.norm(W)
print(f"\nlost: {lost:.3f} of {size:.3f} (Frobenius), {100 * lost / size:.1f} %")
assert abs(lost - 22.627) < 1e-3 and abs(lost / size - 0.585) < 5e-4

# %% [markdown]
# The product loses 58.5 % of the matrix, though it has rank 2. What could two directions achieve?
# Ask the singular values.

# %%
sigma = low_rank.svd(W)[1]
errors = low_rank.rank_errors(sigma) / size
print("singular values:", *(f"{value:.4f}" for value in sigma))
print("error of the best rank 0 .. 4:", *(f"{100 * error:.2f} %" for error in errors))
assert np.allclose(sigma, [38.6227, 2.0713, 0, 0], rtol=0, atol=1e-4)
assert abs(errors[1] - 0.0536) < 5e-5

B_exact = np.array([[1, 0], [1, 4], [1, 8], [1, 12]])
A_exact = np.array([[1, 2, 3, 4], [1, 1, 1, 1]])
assert np.array_equal(B_exact @ A_exact, W)
print("exact, in integers: B =", B_exact.tolist(), " A =", A_exact.tolist())

# %% [markdown]
# The matrix has rank exactly 2: every row is the first row plus a multiple of ones. Even the best
# rank 1 is off by 5.36 % only. The printed factors are no SVD, and no good approximation.
#
# ## What does it save?
#
# The other half of the question is the price. Two factors store
# $r\,(d_\mathrm{out} + d_\mathrm{in})$ numbers, the matrix $d_\mathrm{out}\, d_\mathrm{in}$. The
# two counts are equal at the **break-even rank**
#
# $$ r = \frac{d_\mathrm{out}\, d_\mathrm{in}}{d_\mathrm{out} + d_\mathrm{in}}, $$
#
# half of the side for a square matrix. The 4 x 4 example breaks even at 2: its exact factors store
# 16 numbers, as many as it has entries.

# %%
cases = [("the example", 4, 2), ("fc2, below", 128, 8), ("large", 4096, 8), ("large", 4096, 64)]
columns = {
    "matrix": lambda case: f"{case[0]}, {case[1]} x {case[1]}",
    "entries": lambda case: f"{case[1] ** 2:,}",
    "break-even r": lambda case: f"{low_rank.break_even_rank(case[1], case[1]):g}",
    "r": lambda case: str(case[2]),
    "in B and A": lambda case: f"{case[2] * 2 * case[1]:,}",
    "share": lambda case: f"{200 * case[2] / case[1]:.2f} %",
}
print(format_table(cases, columns))
assert low_rank.break_even_rank(4, 4) == 2 and 2 * (4 + 4) == W.size

# %% [markdown]
# ## Are trained weights low-rank?
#
# Now we can ask the question that LoRA stands on. If weights were nearly low-rank, we could factor
# $W$ itself. We look at a network of three layers, `fc1`, `fc2` and `fc3` (64 pixels in, 128 and
# 128 between, 10 classes out), trained on handwritten digits. Its largest weight is that of `fc2`,
# 128 x 128, and four matrices belong to it:
#
# * the random numbers that it started from,
# * the pretrained weight $W$,
# * what pretraining has added, the difference of the two,
# * $\Delta W$, what full fine-tuning (all weights train on) on digits turned by 90 degrees adds.
#
# "Nearly" needs a number. We count **energy**, the squared Frobenius norm. The *energy rank* is the
# smallest rank that keeps, say, 90 % of it. The *stable rank* needs no threshold at all:
#
# $$ \frac{\lVert W \rVert_F^2}{\lVert W \rVert_2^2} = \frac{\sum_i \sigma_i^2}{\sigma_1^2}. $$
#
# It counts directions as long as they are about as strong as the first. Mind the root: to keep 90 %
# of the energy leaves an error of $\sqrt{0.1}$, 32 % of the norm.

# %%
setting, _ = setting_for("digits-rotated")
problem = setting.problem(0)  # the model, pretrained on upright digits, and the new task
base = problem.base
start = MLP((64, 128, 128, 10), rng=np.random.default_rng(0))  # the same seed: before pretraining
tuned, faster = (
    trained(setting.using({None: Recipe(lr)}), problem, None, seed=0)[0] for lr in (0.003, 0.03)
)  # full fine-tuning, at two learning rates

fc2 = [model.named_params()["fc2.weight"].astype("f8") for model in (start, base, tuned)]
spectra = {
    "random start": low_rank.svd(fc2[0])[1],
    "pretrained W": low_rank.svd(fc2[1])[1],
    "added by pretraining": low_rank.svd(fc2[1] - fc2[0])[1],
    "added by fine-tuning": low_rank.svd(fc2[2] - fc2[1])[1],
}

# %%
curves = {name: low_rank.rank_errors(sigma) for name, sigma in spectra.items()}
error_8 = {name: errors[8] / errors[0] for name, errors in curves.items()}
energy = {name: low_rank.energy_rank(sigma, 0.9) for name, sigma in spectra.items()}
columns = {
    "fc2, 128 x 128": str,
    "norm": lambda name: f"{np.linalg.norm(spectra[name]):.1f}",
    "stable rank": lambda name: f"{low_rank.stable_rank(spectra[name]):.1f}",
    "r for 90 % energy": lambda name: str(energy[name]),
    "for 99 %": lambda name: str(low_rank.energy_rank(spectra[name], 0.99)),
    "error at r = 8": lambda name: f"{100 * error_8[name]:.0f} %",
}
print(format_table(list(spectra), columns))
assert energy["random start"] > 60 and abs(energy["pretrained W"] - 36) <= 2
assert abs(energy["added by pretraining"] - 8) <= 1
assert abs(energy["added by fine-tuning"] - 12) <= 2
assert abs(error_8["pretrained W"] - 0.53) < 0.02
assert abs(error_8["added by fine-tuning"] - 0.42) < 0.03

# %%
chapter01.errors_at_every_rank(spectra, low_rank.break_even_rank(128, 128))

# %% [markdown]
# The pretrained weight is not low-rank: 90 % of its energy takes rank 36, and the error at rank 8
# is 53 % of its norm. It still carries the random numbers that it started from, and those have no
# preferred directions.
#
# What training *added* is far more concentrated: 8 directions hold 90 % of its energy in
# pretraining, 12 in fine-tuning. (The kink stands at rank 10: there are 10 classes, and whatever
# `fc2` is told of the loss comes through the 10 rows of `fc3`.)
#
# Does that depend on how one trains? Yes. Here is the learning rate that chapter 04 finds best for
# this task, ten times as large. And one small model proves nothing about large ones;
# `lorabook spectrum FOLDER` prints these measures for any checkpoint.

# %%
energy_faster = low_rank.energy_rank(low_rank.svd(update_of(faster, problem)["fc2"])[1], 0.9)
print(f"full fine-tuning at 0.03, not 0.003: r = {energy_faster} for 90 % of the update's energy")
assert abs(energy_faster - 17) <= 2

# %% [markdown]
# So factoring $W$ should hurt. Here is what the base model loses, on the digits that it knows, when
# its three matrices are replaced by their best rank $r$.

# %%
upright, accuracy = digits(), {}
cut = copy.deepcopy(base)
for r in (2, 4, 8, 16, 128):
    for path in shapes_of(base):
        W = base.named_params()[f"{path}.weight"]
        cut.named_params()[f"{path}.weight"][...] = low_rank.truncate(W).weight(min(r, *W.shape))
    accuracy[r] = cut.evaluate(upright.part("test"))[1]
    print(f"W cut to rank {r:3}: {100 * accuracy[r]:5.1f} % of held-out digits right")
assert abs(accuracy[4] - 0.439) < 0.05 and abs(accuracy[128] - 0.975) < 0.01
assert 0.9 < accuracy[8] < accuracy[16]

# %% [markdown]
# Rank 4 ruins the model. That is why LoRA writes the **update** as $BA$ and keeps $W$ as it is:
# what the model knows stays whole, however small $r$ is.
#
# Two cautions. Rank 16 does little harm to the *task*, though its error in `fc2` is 43.5 %: an
# error in the weights and an error on the task are two things, and chapter 06 will insist on it.
#
# And the update of full fine-tuning is not low-rank enough to be cut afterwards: at $r = 8$ its
# best approximation is off by 42 %, and chapter 06 shows how poor the model is with it. LoRA does
# not cut. It trains at rank $r$ from the start, and needs no more than that *some* good update of
# low rank exists.
#
# ## Close where the inputs are
#
# One more step, because an error of 43.5 % that does little harm asks for an explanation.
# $\lVert W - W_r \rVert_F$ counts an error in every input direction alike. A layer does not see
# every direction alike. If its inputs are the rows of $X$ $(N, d_\mathrm{in})$, what counts is the
# error of its outputs,
#
# $$ \lVert X\,(W - C)^\top \rVert_F. $$
#
# Which $C$ of rank $r$ makes it least? Take any $R$ with $R^\top R = X^\top X$, for instance from a
# QR decomposition of $X$. For every error matrix $E = W - C$,
#
# $$ \lVert X E^\top \rVert_F^2 = \mathrm{tr}(E\, X^\top X\, E^\top)
# = \mathrm{tr}(E\, R^\top R\, E^\top) = \lVert E R^\top \rVert_F^2
# = \lVert W R^\top - C R^\top \rVert_F^2. $$
#
# So $C R^\top$ should be close to $W R^\top$, and has rank at most $r$. That problem is solved.
# With the SVD of $W R^\top$, and $U_r$ for the first $r$ columns of its $U$, nothing beats its
# first $r$ terms,
#
# $$ (W R^\top)_r = U_r U_r^\top\, W R^\top, $$
#
# which are a projection of the outputs. And there is a $C$ with $C R^\top$ equal to that, which
# one reads off:
#
# $$ C = \underbrace{U_r}_{B}\ \underbrace{U_r^\top W}_{A} $$
#
# Again one SVD serves every rank, and again the errors are those of its singular values.


# %%
def aware_factors(W, X, r):
    R = np.linalg.qr(X, mode="r")
    U = np.linalg.svd(W @ R.T, full_matrices=False)[0]
    return U[:, :r], U[:, :r].T @ W  # B, A


inputs = {path: x.astype("f8") for path, x in inputs_of(base, upright.x_train).items()}
X, W = inputs["fc1"], base.named_params()["fc1.weight"].astype("f8")
aware = low_rank.truncate_for_inputs(W, low_rank.activation_factor([X]))
B, A = aware_factors(W, X, 8)
print(f"these lines and the library's at r = 8: {np.abs(B @ A - aware.weight(8)).max():.0e} apart")
measured = [np.linalg.norm(X @ (W - aware.weight(r)).T) for r in range(65)]
apart = np.abs(measured - aware.errors).max() / aware.errors[0]
print(f"error of the outputs, predicted and measured at 65 ranks: {apart:.0e} apart")
assert np.allclose(B @ A, aware.weight(8), rtol=0, atol=1e-10) and apart < 1e-12

# %% [markdown]
# No inverse was needed. The published formula takes the truncated $W R^\top$ and multiplies it by
# the inverse of $R^\top$: the same matrix where the inverse exists. But among our 64 pixels some
# are black on every training image, so $X^\top X$ is singular:

# %%
R = low_rank.activation_factor([X])
print(f"pixels never set: {np.sum(~X.any(axis=0))}, rank of X: {np.linalg.matrix_rank(X)} of 64")
refused = []
for attempt in (lambda: np.linalg.cholesky(X.T @ X), lambda: np.linalg.inv(R)):
    try:
        attempt()
    except np.linalg.LinAlgError as error:
        refused.append(str(error))
print("Cholesky of X^T X, inverse of R:", *refused, sep="\n  ")
assert len(refused) == 2

# %% [markdown]
# How much does it help? `fc2` sees the first layer's activations. The table has the error in the
# weight and in the outputs, relative to their norms, of the plain truncation and of the
# activation-aware one. The figure is the one that `lorabook spectrum mlp-digits --layer fc2` draws;
# it calls the first `svd` and the second `activation_svd`.

# %%
X, W = inputs["fc2"], base.named_params()["fc2.weight"].astype("f8")
R = low_rank.activation_factor([X])
aware, plain = low_rank.truncate_for_inputs(W, R), low_rank.output_errors(W, R)
curves = chapter01.spectrum_rows(W, plain, aware)
error_aware = {r: np.linalg.norm(W - aware.weight(r)) / np.linalg.norm(W) for r in (4, 8, 16, 32)}
columns = {
    "r": str,
    "weight, plain": lambda r: f"{100 * curves[r]['weight_error']:.1f} %",
    "weight, aware": lambda r: f"{100 * error_aware[r]:.1f} %",
    "outputs, plain": lambda r: f"{100 * curves[r]['svd_output_error']:.1f} %",
    "outputs, aware": lambda r: f"{100 * curves[r]['activation_svd_output_error']:.1f} %",
}
print(format_table(list(error_aware), columns))
plots.spectrum({"fc2": curves}, "fc2")

# %%
assert np.all(aware.errors <= plain + 1e-9 * plain[0])
assert abs(curves[16]["weight_error"] - 0.435) < 0.01
assert abs(curves[16]["svd_output_error"] - 0.102) < 0.02
assert abs(curves[16]["activation_svd_output_error"] - 0.018) < 0.005

# %% [markdown]
# At $r = 16$ the weight is off by 43.5 %, its outputs by 10 %: much of the error lies in directions
# that the inputs hardly take. The activation-aware truncation brings the outputs to 2 %, at the
# same rank and storage. The price is a slightly larger error in the weight, 45.3 %.
#
# ## Two relatives
#
# You will meet the SVD under two other names. Neither is needed for LoRA; skip to the box if you
# are in a hurry.
#
# **PCA** takes the mean off the rows of $X$ before it decomposes them, and calls the
# singular vectors principal components. It asks how the rows of $X$ differ from each other; the SVD
# of $X$ asks how they differ from zero. For grey values, which are never negative, that matters:

# %%
X = upright.x_train.astype("f8")  # (1198, 64)
Vt = low_rank.svd(X)[2]
mean, components, _ = low_rank.pca(X, 2)
to_mean = abs(Vt[0] @ mean) / np.linalg.norm(mean)
print("|cosine| of the first singular vector")
print(f"  and the mean image:                {to_mean:.4f}")
print(f"  and the first principal component: {abs(Vt[0] @ components[0]):.4f}")
assert to_mean > 0.999 and abs(Vt[0] @ components[0]) < 0.05
first = Vt[0] * np.sign(Vt[0] @ mean)
chapter01.images({"mean image": mean, "SVD, first": first, "PCA, first": components[0]})

# %% [markdown]
# The first singular vector is the mean image, and says nothing about differences; the first
# principal component does. For a weight there is nothing to centre: $W$ acts on $x$ as it stands,
# so in this book it is the SVD.
#
# **Randomized SVD.** A full SVD takes about $d_\mathrm{out}\, d_\mathrm{in}\, n$ operations, too
# many for a large matrix of which only the first $r$ terms are wanted. Halko, Martinsson and Tropp
# (2011) push $r + \mathrm{extra}$ random vectors through $W$ and keep an orthonormal basis $Q$ of
# what comes out. They prove for the mean error
#
# $$ \mathrm{mean}\ \lVert W - Q Q^\top W \rVert_F \ \le\
# \Big(1 + \frac{r}{\mathrm{extra} - 1}\Big)^{1/2} \Big(\sum_{i > r} \sigma_i^2\Big)^{1/2}, $$
#
# and each further pass through $W W^\top$ brings it closer to the best.


# %%
def randomized(W, r, passes, rng, extra=10):
    Q = np.linalg.qr(W @ rng.standard_normal((W.shape[1], r + extra)))[0]
    for _ in range(passes):
        Q = np.linalg.qr(W @ np.linalg.qr(W.T @ Q)[0])[0]  # a QR each time: nothing drowns
    U, sigma, Vt = np.linalg.svd(Q.T @ W, full_matrices=False)  # (r + extra, d_in): small
    return Q, (Q @ U)[:, :r] * sigma[:r] @ Vt[:r]


def slow(d_out, d_in):
    """A matrix whose singular values fall slowly, 1 / sqrt(i): hard for the method."""
    sigma = 1 / np.sqrt(np.arange(1, d_in + 1))
    left, right = rng.standard_normal((d_out, d_in)), rng.standard_normal((d_in, d_in))
    return np.linalg.qr(left)[0] * sigma @ np.linalg.qr(right)[0], low_rank.rank_errors(sigma)


rng = np.random.default_rng(1)
W, least = slow(120, 80)
for passes in (0, 1, 2):
    bases = [randomized(W, 10, passes, np.random.default_rng(seed))[0] for seed in range(50)]
    mean = np.mean([np.linalg.norm(W - Q @ (Q.T @ W)) for Q in bases])
    print(f"{passes} passes: mean of 50 draws {mean:.3f}, best rank 20 {least[20]:.3f}", end="")
    print(f", proven {(1 + 10 / 9) ** 0.5 * least[10]:.3f}" if not passes else "")
    assert least[20] < mean < (1 + 10 / 9) ** 0.5 * least[10]

# %% [markdown]
# The mean stays below the bound. ($Q$ has 20 columns, so no $Q$ could do better than the best rank
# 20.) scikit-learn implements the same paper; with the same $r$, extra and passes, taking turns on
# one thread:

# %%
W, least = slow(500, 300)
settings = {"n_oversamples": 10, "n_iter": 2, "power_iteration_normalizer": "QR"}


def theirs(seed):
    U, sigma, Vt = sklearn_randomized_svd(W, 8, random_state=seed, **settings)
    return U * sigma @ Vt


calls = {
    "these lines": lambda seed: randomized(W, 8, 2, np.random.default_rng(seed))[1],
    "scikit-learn": theirs,
}
seconds, errors = {name: [] for name in calls}, {name: [] for name in calls}
with threadpool_limits(1):
    for seed in range(15):
        for name, call in calls.items():
            begin = time.perf_counter()
            W_8 = call(seed)
            seconds[name].append(time.perf_counter() - begin)
            errors[name].append(np.linalg.norm(W - W_8) / least[8])
for name in calls:
    worst, share = max(errors[name]), min(seconds[name]) / min(seconds["scikit-learn"])
    print(f"{name:12}: worst of 15 {worst:.4f} times the least error of rank 8", end="")
    print(f", {share:.2f} times scikit-learn's time")
    assert 1 <= max(errors[name]) < 1.01

# %% [markdown]
# ---
#
# > **What to remember**
# >
# > * Rank $r$ means that everything passes through $r$ numbers. $B$ and $A$ store
# >   $r\,(d_\mathrm{out} + d_\mathrm{in})$ numbers, fewer than the matrix only below the break-even
# >   rank.
# > * The best rank-$r$ matrix keeps the $r$ largest singular values. Its error is
# >   $(\sum_{i>r} \sigma_i^2)^{1/2}$; one SVD gives the error of every rank, and nothing beats it.
# > * Pretrained weights are not low-rank; what training adds to them is nearer to it. LoRA factors
# >   the update.
# > * An error counts where the inputs are: $\lVert X (W - C)^\top \rVert_F$ has a closed form too,
# >   and needs no inverse.
# > * Factors that are printed somewhere can be checked: those of the 4 x 4 matrix miss 58.5 % of
# >   it.
#
# **Next.** We know what two factors can do. To train them we need their gradients: [chapter
# 02](02_backprop_by_hand.ipynb) derives gradients by hand, and says how to be sure of them.
#
# ## Exercises
#
# Replace `None`, run the cell, and a check says "right" or gives a hint. Solutions:
# [solutions/01_low_rank.ipynb](solutions/01_low_rank.ipynb).
#
# **1. Derive.** The singular values of a large matrix fall like
# $1, \rho, \rho^2, \dots$ with $0 < \rho < 1$, without end. What is the relative error
# $\lVert W - W_r \rVert_F / \lVert W \rVert_F$ of the best rank $r$? (It is short, if you look for
# it on paper.)

# %%
answer = None  # your turn: lambda rho, r: ...
ch01.geometric(answer)

# %% [markdown]
# **2. Change LoRA: a shared A.** Query and value of an attention layer read the same $x$. Let them
# share one $A$ $(r, d_\mathrm{in})$ and have a $B$ each. For two updates, `dW_1` and `dW_2`, how
# small can
# $\big(\lVert \Delta W_1 - B_1 A \rVert_F^2 + \lVert \Delta W_2 - B_2 A \rVert_F^2\big)^{1/2}$
# become? Write a function that computes it. (The two may differ in $d_\mathrm{out}$. No search is
# needed.)

# %%
answer = None  # your turn: lambda dW_1, dW_2, r: ...
ch01.shared(answer)

# %% [markdown]
# **3. What does it save?** You may store 100,000 numbers for the updates of query and value, both
# 768 x 768. Up to which rank with two separate pairs of factors, up to which with a shared $A$?

# %%
answer = None  # your turn: (separate, shared)
ch01.budget(answer)

# %% [markdown]
# **4. Not the only one.** In the Frobenius norm the best rank 1 of `diag(3, 2, 1)` is
# `diag(3, 0, 0)` and no other. In the spectral norm its error is 2, and other rank-1 matrices are
# just as good. Give one.

# %%
answer = None  # your turn: a 3 x 3 array of rank 1
ch01.not_the_only_one(answer)

# %% [markdown]
# **5. Inputs that change the order.** $W$ is `diag(2, 1)`: the plain truncation to rank 1 keeps the
# first direction. Give inputs $X$ $(N, 2)$ for which the activation-aware truncation keeps the
# second, `diag(0, 1)`.

# %%
answer = None  # your turn: an (N, 2) array of floats
ch01.other_order(answer)

# %% [markdown]
# **6. Measure: how concentrated is nothing?** To call 12 directions of 128 few, one must know what
# numbers without any structure take. Fill square matrices of growing side with independent Gaussian
# numbers. The rank for 90 % of the energy becomes a fixed share of the side: which? (To within
# 0.02.)

# %%
answer = None  # your turn: a number between 0 and 1
ch01.random_share(answer)

# %% [markdown]
# **Sources.** Eckart and Young 1936, *Psychometrika* 1 (the best rank $r$, Frobenius). Mirsky 1960,
# *Quarterly Journal of Mathematics* 11 (all norms that turning leaves alone). Halko, Martinsson and
# Tropp 2011, arXiv:0909.4061. Chen et al. 2021, DRONE, NeurIPS, and Wang et al. 2024, SVD-LLM,
# arXiv:2403.07378 (activation-aware truncation). Hu et al. 2021, LoRA, arXiv:2106.09685.
