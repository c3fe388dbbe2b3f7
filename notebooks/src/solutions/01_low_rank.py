# %% [markdown]
# # Solutions: how good can a rank-r matrix be?
#
# The exercises of [chapter 01](../01_low_rank.ipynb), each with the same check.

# %%
import numpy as np

from lorabook import environment, low_rank

print(environment.summary())

# %% [markdown]
# **1. Read it off the singular values.** The smallest rank whose best approximation is within 5 % of the matrix.
#
# `rank_errors(s)` is the error of every rank; divided by its first entry, the norm, it is the relative error. The
# squared tail of a geometric series is geometric too: the relative error at rank `r` is nearly `0.8**r`, and
# `0.8**14 = 0.044` is the first power below 0.05. No matrix is needed.

# %%
s = 0.8 ** np.arange(40)
answer = int(np.argmax(low_rank.rank_errors(s) <= 0.05 * np.linalg.norm(s)))
print(answer)

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
# **2. A budget.** 100,000 numbers for the update of a 3072 x 768 matrix.
#
# Each rank costs one column of `B` and one row of `A`: `d_out + d_in = 3840` numbers. Break-even would be rank 614.4,
# far away.

# %%
answer = 100_000 // (3072 + 768)
print(answer)

# %%
if answer is None:
    print("not answered yet")
else:
    assert answer == int(answer), "expected an integer"
    assert answer * (3072 + 768) <= 100_000, "factors of this rank are over the budget"
    assert (answer + 1) * (3072 + 768) > 100_000, "a larger rank is within the budget, too"
    print("right")

# %% [markdown]
# **3. Not the only one.** Another rank-1 matrix within 2 of `diag(3, 2, 1)` in the spectral norm.
#
# The spectral error is the largest singular value of what is left. The entry 2 is lost in any case, so the first entry
# may be wrong by up to 2 as well: any `diag(t, 0, 0)` with `1 <= t <= 5` does. The Frobenius norm counts every error,
# so it has one minimiser only (where no two singular values tie at the cut).

# %%
answer = np.diag([2.0, 0.0, 0.0])

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
# **4. Inputs that change the order.** Inputs `X` for which the second direction of `diag(2, 1)` is kept.
#
# The outputs are `x[0] * 2` and `x[1] * 1`. The second matters more as soon as the second input varies more than twice
# as much as the first. Here `R = diag(1, 3)` up to signs and `W @ R.T = diag(2, 3)`: the order has changed.

# %%
answer = np.array([[1.0, 0.0], [0.0, 3.0]])

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
