# %% [markdown]
# # Solutions: which matrices, which rank, which directions?
#
# The exercises of [chapter 08](../08_real_encoder.ipynb), each with the same check. They need the model and the files
# that the chapter reads, and no training.

# %%
from pathlib import Path

import numpy as np

import lorabook
from lorabook import environment, hub, subspace
from lorabook.models.bert import BertForSequenceClassification
from lorabook.tables import read_csv

DATA = Path(lorabook.__file__).parents[1] / "figures" / "data"
folder = hub.locate("minilm")
print(environment.summary())

# %% [markdown]
# **1. Count.** The numbers that LoRA trains at rank `r` on `n` attention matrices of each layer, classifier included.
#
# Every matrix is 384 x 384: `lora_A` and `lora_B` hold `384 r` numbers each. The classifier has two rows of 384 and two
# biases.

# %%
answer = lambda r, n: 6 * n * 2 * 384 * r + 2 * 384 + 2  # noqa: E731

# %%
if answer is None:
    print("not answered yet")
else:
    for row in read_csv(DATA / "reviews_rank.csv"):
        r, n = row["r"], len(row["targets"].split())
        assert answer(r, n) == row["params"], f"r = {r} on {n} matrices trains {row['params']:,}"
    print("right")

# %% [markdown]
# **2. Two random subspaces.** The mean of `phi(i, j)` in a space with `d` dimensions.
#
# A random unit vector has the squared length `j / d` in `j` given dimensions: its `d` squared coordinates add up to 1,
# and none is preferred. `phi` averages that over the `min(i, j)` vectors of the smaller subspace. So it is
# `max(i, j) / d`: with 64 of 384 dimensions a sixth of everything lies in the other subspace by chance.

# %%
answer = lambda i, j, d: max(i, j) / d  # noqa: E731

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
# **3. Amplify by hand.** `||U.T @ W @ V||_F` for the first `r` singular vectors of `delta`.


# %%
def answer(W, delta, r):
    U, _, Vt = np.linalg.svd(delta)
    return np.linalg.norm(U[:, :r].T @ W @ Vt[:r].T)


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
# **4. Louder.** How many intruders has `W + t * update`, for large `t` and an update of rank 8?
#
# The first eight singular vectors become those of the update, all new. The ninth and tenth cannot come from it: it has
# rank 8. They are what is left of `W`, nearly unchanged. An intruder is a matter of size, not only of direction: the
# same update with a small `t` has none.

# %%
answer = 8

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
