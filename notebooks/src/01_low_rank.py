# %% [markdown]
# # How good can a rank-r matrix be?
#
# LoRA leaves a weight `W` (d_out, d_in) alone and learns an update `B @ A`, with `B` (d_out, r) and `A` (r, d_in).
# Before we ask what training does with two such factors, we ask what *any* two such factors could do. One singular
# value decomposition answers that for every `r` at once, and the rest of the book measures against the answer.

# %%
import copy
import inspect
import operator
import statistics
import time

import matplotlib.pyplot as plt
import numpy as np
from sklearn.utils.extmath import randomized_svd as sklearn_randomized_svd
from threadpoolctl import threadpool_limits

from lorabook import environment, low_rank, plotting
from lorabook.data import digits
from lorabook.figures import setting_for
from lorabook.models import MLP
from lorabook.sweep import Recipe, shapes_of, trained, update_of
from lorabook.tables import format_table

plt.style.use(plotting.STYLE)
plt.rcParams["figure.dpi"] = 110
print(environment.summary())

# %% [markdown]
# ## Rank counts independent directions
#
# With `W = B @ A`, an input `x` passes through a gate of `r` numbers: `A` reads `r` numbers from `x`, `B` writes an
# output from them. However large `W` is, its outputs lie in a space of `r` directions. That count is the rank. The
# factors themselves are thin, not "low-rank": each has rank `r`, which is all the rank that its shape allows.

# %%
rng = np.random.default_rng(0)
B, A = rng.standard_normal((30, 3)), rng.standard_normal((3, 20))
print("rank of B, A and B @ A:", *(np.linalg.matrix_rank(M) for M in (B, A, B @ A)), "  shape of B @ A:", (B @ A).shape)
assert np.linalg.matrix_rank(B @ A) == 3

# %% [markdown]
# ## The SVD in one picture
#
# Picture the unit ball of inputs. A matrix turns it, stretches it along perpendicular axes, and turns it again: the
# result is an ellipsoid. The singular value decomposition names these three steps:
#
#     W = U @ diag(s) @ Vt          U (d_out, n), s (n,), Vt (n, d_in), n = min(d_out, d_in)
#
# Row `Vt[i]` is an input direction, `s[i]` says how far it is stretched, column `U[:, i]` is the output direction it
# becomes: the `i`-th axis of the ellipsoid, the longest first. So `W` is a sum of `n` pieces of rank 1,
# `s[i] * outer(U[:, i], Vt[i])`, sorted by size.

# %%
W = rng.standard_normal((30, 20))
U, s, Vt = low_rank.svd(W)
pieces = [s[i] * np.outer(U[:, i], Vt[i]) for i in range(len(s))]
print("s:", np.array2string(s, precision=2, max_line_width=110))
assert np.allclose(sum(pieces), W, rtol=0, atol=1e-12)
assert np.allclose(U.T @ U, np.eye(20), rtol=0, atol=1e-12) and np.allclose(Vt @ Vt.T, np.eye(20), rtol=0, atol=1e-12)

# %% [markdown]
# ## Keep the r largest pieces: nothing of rank r is closer
#
# Eckart and Young (1936) showed that the first `r` pieces are the closest rank-`r` matrix. What is lost are the other
# pieces, and since they are perpendicular, the error follows from `s` alone:
#
#     Frobenius norm   ||W - W_r||_F = sqrt(s[r]**2 + s[r + 1]**2 + ...)
#     spectral norm    ||W - W_r||_2 = s[r]                                  (counting from 0)
#
# Why can nothing beat it? Take any `M` of rank `r`. The `r + 1` directions `Vt[0] .. Vt[r]` span a space with one
# dimension more than `M` can tell apart, so some unit vector `v` in it has `M @ v = 0`. Then
# `||(W - M) @ v|| = ||W @ v|| >= s[r]`: the spectral error is at least `s[r]`. The Frobenius norm follows by the same
# argument, one singular value of `W - M` after another.
#
# This is the library's code. One SVD gives the factors and the errors of *every* rank; those of rank `r` are the first
# `r` columns of `B` and the first `r` rows of `A`. (The docstrings count from 1, as papers do; arrays from 0.)

# %%
print(inspect.getsource(low_rank.truncate))
print(inspect.getsource(low_rank.rank_errors))

# %%
best = low_rank.truncate(W)
ranks = range(len(s) + 1)
for norm, order in (("frobenius", "fro"), ("spectral", 2)):
    measured = [np.linalg.norm(W - best.weight(r), order) for r in ranks]
    largest = np.max(np.abs(measured - low_rank.rank_errors(s, norm)))
    print(f"{norm:9}: formula and measurement differ by at most {largest:.0e} over ranks 0 to {len(s)}")
    assert largest < 1e-12

# %% [markdown]
# Now try to beat it. The first rival draws `A` at random, 1000 times per rank, and takes the best `B` for each, by
# least squares. The second is alternating least squares: start at random, then fit `B` to `A` and `A` to `B` in turns.
# It is a small training run, without any SVD.

# %%
tried = (1, 2, 4, 6, 8, 12, 16)
random_pairs, alternating = {}, {}
for r in tried:
    Q = np.linalg.qr(rng.standard_normal((1000, 20, r)))[0]  # 1000 bases of the rows of A
    random_pairs[r] = np.sqrt(np.sum(W**2) - np.sum((W @ Q) ** 2, axis=(1, 2)))  # ||W - W Q Q^T||_F, by Pythagoras
    A = rng.standard_normal((r, 20))
    for _ in range(200):
        B = W @ np.linalg.pinv(A)  # (30, r)
        A = np.linalg.pinv(B) @ W  # (r, 20)
    alternating[r] = np.linalg.norm(W - B @ A)
    assert random_pairs[r].min() > best.errors[r] and alternating[r] >= best.errors[r] * (1 - 1e-12)

worst = max(alternating[r] / best.errors[r] - 1 for r in tried)
print(f"alternating least squares ends at most {worst:.0e} above the bound, never below it")
assert worst < 1e-4
closest = {r: random_pairs[r].min() / best.errors[r] for r in tried}
print("best of 1000 random A, times the bound:", *(f"r = {r}: {closest[r]:.2f}" for r in tried), sep="  ")
assert 1 < closest[1] < 1.05 and closest[16] > 2.5 and list(closest.values()) == sorted(closest.values())

figure, axes = plt.subplots(figsize=(6.4, 3.4))
axes.plot(ranks, best.errors, color=plotting.PALETTE["svd"])
low, high = ([pick(random_pairs[r]) for r in tried] for pick in (np.min, np.max))
axes.fill_between(tried, low, high, color="#999999", alpha=0.45, linewidth=0)
axes.plot(tried, list(alternating.values()), "o", color=plotting.PALETTE["lora"], markerfacecolor="none")
axes.text(7.6, 21.3, "1000 random A per rank, each with its best B", color="#555555")
axes.text(0.6, 8.5, "SVD: the bound", color=plotting.PALETTE["svd"])
axes.text(0.6, 5.8, "o  alternating least squares, 200 turns", color=plotting.PALETTE["lora"])
axes.set(xlabel="rank r", ylabel=r"$\Vert W - B A\Vert_F$", ylim=(0, None), xticks=[0, 4, 8, 12, 16, 20])
axes.set_title("Random 30 x 20 matrix: what rank-r factors reach")
plt.show()

# %% [markdown]
# At `r = 1` the best of 1000 random directions comes within about 3 % of the bound. The gap widens with the rank: at
# `r = 16` the best of them has more than 2.5 times the least error. Fitting both factors reaches the bound at every
# rank tried. There is no better rank-`r` matrix to be found, so from here on the error of the best one is a formula,
# not a search.
#
# ## A small example, checked
#
# Take the 4 x 4 matrix of 1 to 16, and a factorisation that is often printed for it as the outcome of an SVD: a
# selection of rows, times the first two rows.

# %%
M = np.arange(1.0, 17.0).reshape(4, 4)
B_printed = np.array([[1.0, 0], [0, 1], [1, 0], [0, 1]])
A_printed = M[:2]
print(M, "\n\nB A as printed:\n", B_printed @ A_printed, sep="")
lost, size = np.linalg.norm(M - B_printed @ A_printed), np.linalg.norm(M)
print(f"\nlost: {lost:.3f} of {size:.3f} (Frobenius), {100 * lost / size:.1f} %")
assert abs(lost - 22.627) < 1e-3 and abs(lost / size - 0.585) < 5e-4

# %% [markdown]
# The product loses 58.5 % of the matrix, though it too has rank 2. What could two directions achieve? Ask the singular
# values.

# %%
s = low_rank.svd(M)[1]
errors = low_rank.rank_errors(s)
print("singular values:", *(f"{value:.4f}" for value in s))
print("relative error of the best rank 0 .. 4:", *(f"{100 * e / size:.2f} %" for e in errors))
assert np.allclose(s, [38.6227, 2.0713, 0, 0], rtol=0, atol=1e-4)
assert abs(errors[1] / size - 0.0536) < 5e-5

B_exact = np.array([[1, 0], [1, 4], [1, 8], [1, 12]])
A_exact = np.array([[1, 2, 3, 4], [1, 1, 1, 1]])
assert np.array_equal(B_exact @ A_exact, M)
print("an exact rank-2 factorisation in integers, B and A:", B_exact.tolist(), A_exact.tolist(), sep="\n")

# %% [markdown]
# The matrix has rank exactly 2: every row is the first row plus a multiple of ones. Even the best rank 1 is off by only
# 5.36 %. The printed factors are no SVD and no good approximation.
#
# ## What does it save?
#
# Two factors store `r * (d_out + d_in)` numbers, the matrix `d_out * d_in`. They are equal at the break-even rank
# `d_out * d_in / (d_out + d_in)`, which is 2 for the 4 x 4 matrix: its rank-2 factors store 16 numbers, as many as it
# has entries. For a square matrix break-even is half of its side.

# %%
rows = [{"name": "the example", "shape": (4, 4), "r": 2}, {"name": "fc2 of our MLP", "shape": (128, 128), "r": 8}]
rows += [{"name": f"4096 x 4096, r = {r}", "shape": (4096, 4096), "r": r} for r in (8, 64)]
columns = {
    "matrix": lambda row: row["name"],
    "entries": lambda row: f"{np.prod(row['shape']):,}",
    "break-even r": lambda row: f"{low_rank.break_even_rank(*row['shape']):g}",
    "r": lambda row: str(row["r"]),
    "numbers in B and A": lambda row: f"{row['r'] * sum(row['shape']):,}",
    "share": lambda row: f"{100 * row['r'] * sum(row['shape']) / np.prod(row['shape']):.2f} %",
}
print(format_table(rows, columns))
assert low_rank.break_even_rank(4, 4) == 2 and 2 * (4 + 4) == M.size

# %% [markdown]
# ## Are trained weights low-rank?
#
# If they were, we could factor `W` itself. We look at `fc2` (128 x 128) of an MLP trained on handwritten digits. Four
# matrices belong to it: the random numbers it started from, the pretrained weight `W`, their difference (what
# pretraining has added), and `Delta W`, what full fine-tuning on digits turned by 90 degrees adds afterwards.
#
# Two measures put a number on "nearly low-rank". Neither needs a threshold on single values. Both count *energy*, the
# squared Frobenius norm, which is the sum of all `s[i]**2`. Keeping 90 % of the energy leaves an error of `sqrt(0.1)`,
# 32 % of the norm:

# %%
print(inspect.getsource(low_rank.stable_rank))
print(inspect.getsource(low_rank.energy_rank))

# %%
setting, _ = setting_for("digits-rotated")
problem = setting.problem(0)  # the base model, pretrained on upright digits, and the new task
base = problem.base
start = MLP((64, 128, 128, 10), rng=np.random.default_rng(0))  # the same seed: the weights before pretraining
tuned, faster = (
    trained(setting.using({None: Recipe(lr)}), problem, None, seed=0)[0] for lr in (0.003, 0.03)
)  # full fine-tuning

fc2 = {name: model.named_params()["fc2.weight"].astype("f8") for name, model in
       (("start", start), ("base", base), ("tuned", tuned))}  # fmt: skip
matrices = {
    "random start": fc2["start"],
    "pretrained W": fc2["base"],
    "added by pretraining": fc2["base"] - fc2["start"],
    "added by fine-tuning": fc2["tuned"] - fc2["base"],
}
spectra = {name: low_rank.svd(matrix)[1] for name, matrix in matrices.items()}
columns = {
    "fc2, 128 x 128": lambda name: name,
    "norm": lambda name: f"{np.linalg.norm(spectra[name]):.1f}",
    "stable rank": lambda name: f"{low_rank.stable_rank(spectra[name]):.1f}",
    "r for 90 % energy": lambda name: str(low_rank.energy_rank(spectra[name], 0.9)),
    "r for 99 %": lambda name: str(low_rank.energy_rank(spectra[name], 0.99)),
    "error at r = 8": lambda name: f"{100 * error_8[name]:.0f} %",
}
error_8 = {name: low_rank.rank_errors(s)[8] / np.linalg.norm(s) for name, s in spectra.items()}
print(format_table(list(spectra), columns))

energy = {name: low_rank.energy_rank(s, 0.9) for name, s in spectra.items()}
assert energy["random start"] > 60 and abs(energy["pretrained W"] - 36) <= 2
energy_faster = low_rank.energy_rank(low_rank.svd(update_of(faster, problem)["fc2"])[1], 0.9)
print(f"\nfine-tuning at 0.03, ten times the learning rate: r = {energy_faster} for 90 % of the energy")
assert abs(energy_faster - 17) <= 2
assert abs(energy["added by pretraining"] - 8) <= 1 and abs(energy["added by fine-tuning"] - 12) <= 2
assert abs(error_8["pretrained W"] - 0.53) < 0.02 and abs(error_8["added by fine-tuning"] - 0.42) < 0.03

# %%
figure, axes = plt.subplots(figsize=(6.4, 3.4))
places = {
    "random start": (42, 59),
    "pretrained W": (21, 43),
    "added by pretraining": (11, 3),
    "added by fine-tuning": (23, 20),
}
styles = {"random start": ":", "pretrained W": "-", "added by pretraining": "--", "added by fine-tuning": "-"}
colors = ("#666666", "#0072B2", "#009E73", "#D55E00")
for (name, s), color in zip(spectra.items(), colors, strict=True):
    axes.plot(100 * low_rank.rank_errors(s) / np.linalg.norm(s), color=color, linestyle=styles[name])
    axes.text(*places[name], name.replace("added by", "by"), color=color)
axes.axvline(64, color="#999999", linewidth=1)
axes.text(65, 92, "break-even rank", color="#666666")
axes.set(xlabel="rank r", ylabel="error of the best rank r, %", xlim=(0, 128), ylim=(0, 103))
axes.set_title("fc2: the weight is not low-rank, what training adds is nearer to it")
plt.show()

# %% [markdown]
# The pretrained weight is not low-rank: 90 % of its energy takes rank 36, and the error at rank 8 is 53 % of its norm
# (28 % of its energy). It still carries the random numbers it started from, and those have no preferred directions.
# What training *added* is far more concentrated: 8 directions hold 90 % of its energy in pretraining, 12 in
# fine-tuning. (The kink at rank 10 stands at the number of classes. How concentrated depends on how one trains: at 0.03
# instead of 0.003, the rate that chapter 04 finds best for the task, it takes 17.)
#
# That is why LoRA writes the **update** as `B @ A` and keeps `W` as it is. The error of a small `r` then falls on the
# update only. Compare with factoring `W`: here is what the base model loses, on the digits that it knows, when its
# three matrices are replaced by their best rank `r`.

# %%
upright, accuracy = digits(), {}
cut = copy.deepcopy(base)
for r in (2, 4, 8, 16, 128):
    for path in shapes_of(base):
        W = base.named_params()[f"{path}.weight"]
        cut.named_params()[f"{path}.weight"][...] = low_rank.truncate(W).weight(min(r, *W.shape))
    accuracy[r] = cut.evaluate(upright.x_test, upright.y_test)[1]
    print(f"W cut to rank {r:3}: {100 * accuracy[r]:5.1f} % of held-out digits right")
assert accuracy[4] < 0.55 and 0.9 < accuracy[8] < accuracy[16] and accuracy[128] > 0.965

# %% [markdown]
# Rank 4 ruins the model. Rank 16 does little harm to the *task*, though its error in `fc2` is 43.5 %: an error in the
# weights and an error on the task are two things, a point that chapter 06 will insist on.
#
# Nor is the update exactly low-rank: at `r = 8` its best approximation still has an error of 42 %. LoRA needs less than
# that. It needs *some* good update of low rank to exist, not that the one found by full fine-tuning has it. One small
# model proves nothing about large ones; `lorabook spectrum FOLDER` prints these measures for any checkpoint.
#
# ## PCA is an SVD, but of something else
#
# Principal component analysis centres the data first. It asks how the rows of `X` differ from each other; the SVD of
# `X` asks how they differ from zero. For grey values, which are never negative, that matters:

# %%
X = upright.x_train.astype("f8")  # (1198, 64)
_, s, Vt = low_rank.svd(X)
mean, components, variances = low_rank.pca(X, 2)
to_mean = abs(Vt[0] @ mean) / np.linalg.norm(mean)
print(f"|cosine| between Vt[0] and the mean image:           {to_mean:.4f}")
print(f"|cosine| between Vt[0] and the first component:      {abs(Vt[0] @ components[0]):.4f}")
print(f"|cosine| between Vt[1] and the first component:      {abs(Vt[1] @ components[0]):.4f}")
print(f"share of ||X||^2 in the first singular value:        {100 * s[0] ** 2 / np.sum(s**2):.1f} %")
print(f"share of the variance in the first component:        {100 * variances[0] / np.sum(X.var(0, ddof=1)):.1f} %")
assert to_mean > 0.999 and abs(Vt[0] @ components[0]) < 0.05

figure, panels = plt.subplots(1, 3, figsize=(6.6, 2.5))
images = {"mean image": mean, "Vt[0] of X": Vt[0] * np.sign(Vt[0] @ mean), "first component": components[0]}
for axes, (name, image) in zip(panels, images.items(), strict=True):
    limit = np.abs(image).max()
    axes.imshow(image.reshape(8, 8), cmap="RdBu_r", vmin=-limit, vmax=limit)
    axes.set(title=name, xticks=[], yticks=[])
    axes.grid(False)
figure.supxlabel("red: positive, blue: negative, white: zero", fontsize=9)
plt.show()

# %% [markdown]
# The first singular vector of the raw data is the mean image and says nothing about differences; the first component
# does. For a weight matrix there is nothing to centre: `W` acts on `x` as it stands, so in this book it is the SVD.
#
# ## When a full SVD is too slow: random projections
#
# An SVD of a large matrix costs of the order of `d_out * d_in * min(d_out, d_in)`. If only the first `r` pieces are
# wanted, a few matrix products do nearly as well (Halko, Martinsson and Tropp 2011): push `r + oversampling` random
# vectors through `W`, and keep an orthonormal basis `Q` of what comes out.

# %%
print(inspect.getsource(low_rank.range_finder))

# %% [markdown]
# The paper proves a bound on the mean error of `Q @ Q.T @ W`. `range_finder_bound` computes it from the singular
# values. Does it hold? We take a matrix whose singular values fall slowly, `s[i] = 1 / sqrt(i + 1)`, which is hard for
# the method, and average over 50 draws.

# %%
rng = np.random.default_rng(1)
s = 1 / np.sqrt(np.arange(1, 81))
W = np.linalg.qr(rng.standard_normal((120, 80)))[0] * s @ np.linalg.qr(rng.standard_normal((80, 80)))[0]
rows, r, oversampling = [], 10, 10
for norm, order, q in (("frobenius", "fro", 0), ("spectral", 2, 0), ("spectral", 2, 1), ("spectral", 2, 2)):
    errors = []
    for seed in range(50):
        Q = low_rank.range_finder(W, r + oversampling, q, np.random.default_rng(seed))
        errors.append(np.linalg.norm(W - Q @ (Q.T @ W), order))
    row = {"norm": norm, "q": str(q), "best rank 10": low_rank.rank_errors(s, norm)[r]}
    row |= {"best rank 20": low_rank.rank_errors(s, norm)[r + oversampling], "Q, mean of 50": np.mean(errors)}
    row |= {"proven bound": low_rank.range_finder_bound(s, r, oversampling, q, norm)}
    assert row["best rank 20"] < row["Q, mean of 50"] < row["proven bound"]
    rows.append({name: cell if isinstance(cell, str) else f"{cell:.3f}" for name, cell in row.items()})
print(format_table(rows, {name: operator.itemgetter(name) for name in rows[0]}))

# %% [markdown]
# The measured mean stays below the bound in both norms. `Q` has 20 columns, so no `Q` could do better than the best
# rank 20. Each power iteration, one more product with `W @ W.T`, closes part of the gap to it.
#
# Now against scikit-learn, which implements the same paper: same `r`, same oversampling, same number of power
# iterations, the two taking turns in one run on one thread. Errors are relative to the best rank 8.

# %%
s = 1 / np.sqrt(np.arange(1, 301))
W = np.linalg.qr(rng.standard_normal((500, 300)))[0] * s @ np.linalg.qr(rng.standard_normal((300, 300)))[0]
theirs = {"n_oversamples": 10, "n_iter": 2, "power_iteration_normalizer": "QR"}
calls = {
    "ours": lambda seed: low_rank.randomized_svd(W, 8, 10, power_iterations=2, rng=np.random.default_rng(seed)),
    "scikit-learn": lambda seed: sklearn_randomized_svd(W, 8, random_state=seed, **theirs),
}
seconds, errors = {name: [] for name in calls}, {name: [] for name in calls}
with threadpool_limits(1):
    for seed in range(15):
        for name, call in calls.items():
            begin = time.perf_counter()
            U, values, Vt = call(seed)
            seconds[name].append(time.perf_counter() - begin)
            errors[name].append(np.linalg.norm(W - U * values @ Vt) / low_rank.rank_errors(s)[8])

for name in calls:
    middle, worst = statistics.median(errors[name]), max(errors[name])
    print(f"{name:12}: {middle:.4f} times the best error, median of 15 draws; worst {worst:.4f}")
    assert worst < 1.01
print(
    f"time, ours / scikit-learn: {min(seconds['ours']) / min(seconds['scikit-learn']):.2f} (best of 15, this machine)"
)

# %% [markdown]
# ## Close where the inputs are
#
# `||W - W_r||_F` counts an error in every input direction alike. A layer does not see every direction alike. If its
# inputs are the rows of `X` (N, d_in), what counts is the error of its outputs, `||X @ (W - W_r).T||_F`. That too has a
# closed form, in four lines:
#
# 1. Let `R.T @ R = X.T @ X`, for instance `R` from a QR decomposition of `X`. For every error matrix `E`:
#    `||X @ E.T||_F = ||E @ R.T||_F`, since both squares are `trace(E @ X.T @ X @ E.T)`.
# 2. So `W_r @ R.T` should be the best rank-`r` approximation of `W @ R.T`, and we know that one: an SVD.
# 3. With `W @ R.T = U @ diag(s) @ Vt`, it is `U[:, :r] @ U[:, :r].T @ (W @ R.T)`: a projection of the outputs.
# 4. `W_r = U[:, :r] @ U[:, :r].T @ W` attains it. Again one SVD serves every rank: `B = U`, `A = U.T @ W`.

# %%
print(inspect.getsource(low_rank.truncate_for_inputs))

# %% [markdown]
# Step 4 is where implementations differ. The published formula takes the truncated `W @ R.T` and multiplies by the
# inverse of `R.T`. Real inputs do not always allow it: among our 64 pixels some are black on every training image, so
# `X.T @ X` is singular. (`fc1` sees the pixels themselves, `fc2` the first layer's activations.)

# %%
inputs = {path: x.astype("f8") for path, x in base.inputs_of(upright.x_train).items()}
X, W = inputs["fc1"], base.named_params()["fc1.weight"].astype("f8")
R = low_rank.activation_factor([X])
print(f"fc1: {X.shape[1]} inputs, rank of X {np.linalg.matrix_rank(X)}, pixels never set {np.sum(~X.any(axis=0))}")

failures = {}
for name, attempt in (
    ("np.linalg.cholesky(X.T @ X)", lambda: np.linalg.cholesky(X.T @ X)),
    ("np.linalg.inv(R)", lambda: np.linalg.inv(R)),
):
    try:
        attempt()
    except np.linalg.LinAlgError as error:
        failures[name] = str(error)
        print(f"{name:27} fails: {error}")
assert len(failures) == 2

aware = low_rank.truncate_for_inputs(W, R)
measured = [np.linalg.norm(X @ (W - aware.weight(r)).T) for r in range(65)]
difference = np.max(np.abs(measured - aware.errors)) / aware.errors[0]
print(f"projection: predicted and measured output error agree to {difference:.0e} at all 65 ranks")
assert difference < 1e-12

# %% [markdown]
# Where the inverse exists, both formulas give the same matrix. `fc2` is such a case:

# %%
X, W = inputs["fc2"], base.named_params()["fc2.weight"].astype("f8")
R = low_rank.activation_factor([X])
aware = low_rank.truncate_for_inputs(W, R)
U, s, Vt = low_rank.svd(W @ R.T)
with_inverse = (U[:, :8] * s[:8]) @ Vt[:8] @ np.linalg.inv(R.T)
print(f"largest difference at r = 8: {np.abs(with_inverse - aware.weight(8)).max():.0e}")
assert np.allclose(with_inverse, aware.weight(8), rtol=0, atol=1e-10)

# %% [markdown]
# How much does it help? This is the figure that `lorabook spectrum mlp-digits --layer fc2` draws: on the
# right, the error at every rank, in the weight and in the outputs.

# %%
plain = low_rank.output_errors(W, R)
s = low_rank.svd(W)[1]
curves = [
    {
        "r": r,
        "singular_value": s[r - 1] if r else None,
        "weight_error": low_rank.rank_errors(s)[r] / np.linalg.norm(W),
        "svd_output_error": plain[r] / plain[0],
        "activation_svd_output_error": aware.errors[r] / plain[0],
    }
    for r in range(len(s) + 1)
]
columns = {
    "r": lambda r: str(r),
    "weight, plain": lambda r: f"{100 * curves[r]['weight_error']:.1f} %",
    "weight, aware": lambda r: f"{100 * np.linalg.norm(W - aware.weight(r)) / np.linalg.norm(W):.1f} %",
    "outputs, plain": lambda r: f"{100 * curves[r]['svd_output_error']:.1f} %",
    "outputs, aware": lambda r: f"{100 * curves[r]['activation_svd_output_error']:.1f} %",
}
print(format_table([4, 8, 16, 32], columns))
assert np.all(aware.errors <= plain + 1e-9 * plain[0])
assert (
    abs(curves[8]["svd_output_error"] - 0.179) < 0.02 and abs(curves[8]["activation_svd_output_error"] - 0.073) < 0.01
)
assert abs(curves[16]["weight_error"] - 0.435) < 0.01
assert (
    abs(curves[16]["svd_output_error"] - 0.102) < 0.02
    and abs(curves[16]["activation_svd_output_error"] - 0.018) < 0.005
)
plotting.spectrum({"fc2": curves}, "fc2")

# %% [markdown]
# At `r = 16` the plain truncation is off by 10 % in the outputs, the activation-aware one by 2 %, at the same rank and
# the same storage. The price is a slightly larger error in the weight, 45.3 % instead of 43.5 %, in directions that the
# inputs hardly take.
#
# ## What to remember
#
# * Rank `r` means that everything passes through `r` numbers. `B` and `A` store `r * (d_out + d_in)` numbers, which is
#   fewer than the matrix has only below `d_out * d_in / (d_out + d_in)`.
# * The best rank-`r` matrix keeps the `r` largest singular values. Its error is `sqrt(sum(s[r:]**2))`, so one SVD gives
#   the error of every rank, and nothing beats it.
# * The 4 x 4 matrix of 1 to 16 has rank exactly 2. The factors often printed for it miss 58.5 % of it.
# * The pretrained weights here are not low-rank; what training adds to them is nearer to it. LoRA factors the update.
# * PCA centres, the SVD does not. A randomized SVD gets close from a few matrix products.
# * An error counts where the inputs are: `||X @ (W - W_r).T||_F` has a closed form too, and needs no inverse.
#
# **Sources.** Eckart and Young 1936, *Psychometrika* 1 (the best rank r, Frobenius). Mirsky 1960, *Quarterly Journal of
# Mathematics* 11 (all unitarily invariant norms). Halko, Martinsson and Tropp 2011, arXiv:0909.4061 (randomized SVD and
# its bounds). Chen et al. 2021, DRONE, NeurIPS, and Wang et al. 2024, SVD-LLM, arXiv:2403.07378 (activation-aware
# truncation). Hu et al. 2021, LoRA, arXiv:2106.09685 (low-rank updates).
#
# ## Exercises
#
# Replace `None`, run the cell, then run the check below it. Solutions: `solutions/01_low_rank.ipynb`.
#
# **1. Read it off the singular values.** A matrix has the singular values below. What is the smallest rank whose best
# approximation is within 5 % of it, in the Frobenius norm?

# %%
s = 0.8 ** np.arange(40)
answer = None  # your turn: an integer

# %%
if answer is None:
    print("not answered yet")
else:
    relative = low_rank.rank_errors(s) / np.linalg.norm(s)
    assert answer in range(1, 41), "expected an integer between 1 and 40"
    assert relative[answer] <= 0.05, "the best approximation of this rank is farther than 5 % from the matrix"
    assert relative[answer - 1] > 0.05, "a smaller rank is within 5 % already"
    print("right")

# %% [markdown]
# **2. A budget.** You may store 100,000 numbers for the update of a matrix with `d_out = 3072`, `d_in = 768`. What is
# the largest rank you can afford?

# %%
answer = None  # your turn: an integer

# %%
if answer is None:
    print("not answered yet")
else:
    assert answer == int(answer), "expected an integer"
    assert answer * (3072 + 768) <= 100_000, "factors of this rank are over the budget"
    assert (answer + 1) * (3072 + 768) > 100_000, "a larger rank is within the budget, too"
    print("right")

# %% [markdown]
# **3. Not the only one.** In the Frobenius norm the best rank 1 of `diag(3, 2, 1)` is `diag(3, 0, 0)` and no other. In
# the spectral norm its error is 2, and other rank-1 matrices are just as good. Give one.

# %%
answer = None  # your turn: a 3 x 3 array of rank 1

# %%
if answer is None:
    print("not answered yet")
else:
    D = np.diag([3.0, 2.0, 1.0])
    assert np.shape(answer) == (3, 3), "expected a 3 x 3 array"
    assert np.linalg.matrix_rank(answer) == 1, "not rank 1"
    assert not np.allclose(answer, np.diag([3.0, 0, 0])), "this is the best one in the Frobenius norm; give another"
    error = np.linalg.norm(D - answer, 2)
    assert abs(error - 2) < 1e-12, f"its spectral error is {error:.3f}, not 2"
    print("right")

# %% [markdown]
# **4. Inputs that change the order.** `W = diag(2, 1)`: the plain truncation to rank 1 keeps the first direction. Give
# inputs `X` (N, 2) for which the activation-aware truncation keeps the second one, `diag(0, 1)`.

# %%
answer = None  # your turn: an (N, 2) array of floats

# %%
if answer is None:
    print("not answered yet")
else:
    W = np.diag([2.0, 1.0])
    assert np.ndim(answer) == 2 and np.shape(answer)[1] == 2, "expected an array with two columns"
    aware = low_rank.truncate_for_inputs(W, low_rank.activation_factor([answer]))
    kept = np.round(aware.weight(1), 3).tolist()
    assert np.allclose(aware.weight(1), np.diag([0, 1.0])), f"with these inputs the truncation is {kept}"
    print("right")
