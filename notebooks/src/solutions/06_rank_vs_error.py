# %% [markdown]
# # Solutions: how close does trained LoRA come to the best rank-r update?
#
# The exercises of [chapter 06](../06_rank_vs_error.ipynb), each with the same check. First what the checks need from
# the chapter: the medians of the file, and one full and one LoRA update.

# %%
import math
from dataclasses import replace
from pathlib import Path

import numpy as np

import lorabook
from lorabook import bounds, environment
from lorabook.data import planted
from lorabook.figures import setting_for
from lorabook.sweep import rank_sweep, trained, update_of
from lorabook.tables import median_by, read_csv

print(environment.summary())
rows = read_csv(Path(lorabook.__file__).parents[1] / "figures" / "data" / "rank_vs_error.csv")
accuracy, params = (
    {key: middle for key, (middle, _, _) in median_by(rows, ("method", "r"), column).items()}
    for column in ("test_accuracy", "params")
)

setting, _ = setting_for("digits-rotated")
problem, updates = setting.problem(0), {}
for name, r in (("full", None), ("LoRA, r = 4", 4)):
    model, _ = trained(setting, problem, r, seed=0)
    updates[name] = np.concatenate([update.ravel() for update in update_of(model, problem).values()])
delta = updates["full"]
c = {name: update @ delta / np.linalg.norm(update) / np.linalg.norm(delta) for name, update in updates.items()}

# %% [markdown]
# **1. A storage budget.** The fewest stored numbers for at least 94 % right.
#
# LoRA reaches it at `r = 2` already. The activation-aware truncation needs `r = 8`, four times as many numbers, the
# plain one `r = 16`; full fine-tuning stores 25,856.

# %%
for method in ("svd", "activation_svd", "lora"):
    smallest = min(r for m, r in accuracy if m == method and accuracy[m, r] >= 0.94)
    print(
        f"{method:14}: r = {smallest}, {params[method, smallest]:,} numbers, {100 * accuracy[method, smallest]:.1f} %"
    )
answer = ("lora", 1172)

# %%
if answer is None:
    print("not answered yet")
else:
    good = [key for key, share in accuracy.items() if share >= 0.94]
    method, r = min(good, key=lambda key: params[key])
    assert answer[0] == method, "another method needs fewer numbers"
    assert answer[1] == params[method, r], "the right method, but not the fewest numbers it needs"
    print("right")

# %% [markdown]
# **2. Is it only the length?** The smallest distance of `t * update` to `Delta W`.
#
# `distance**2 = 1 + rho**2 - 2 * rho * c` is least at `rho = c`, where it is `1 - c**2`. With a cosine of 0.19 the best
# multiple of LoRA's update is still at distance 0.98: the direction, not only the length, is another one.

# %%
answer = lambda c: math.sqrt(1 - c**2)  # noqa: E731

# %%
if answer is None:
    print("not answered yet")
else:
    update, cosine = updates["LoRA, r = 4"], c["LoRA, r = 4"]
    t = np.linalg.lstsq(update[:, None], delta, rcond=None)[0]
    found = np.linalg.norm(t * update - delta) / np.linalg.norm(delta)
    assert abs(answer(cosine) - found) < 1e-6, f"{answer(cosine):.3f} is not the distance of the best multiple"
    print(f"right: {answer(cosine):.3f}")

# %% [markdown]
# **3. Only impatience?** Four times as many epochs for both.
#
# No. LoRA had every training digit right after 60 epochs; more of the same adds little on held-out ones.

# %%
answer = False

# %%
if answer is None:
    print("not answered yet")
else:
    assert answer in (True, False), "expected True or False"
    longer = rank_sweep(replace(setting, epochs=4 * setting.epochs), ranks=(4,), seeds=range(2))
    reached = {key: middle for (key,), (middle, _, _) in median_by(longer, ("method",), "test_accuracy").items()}
    print({method: f"{100 * share:.1f} %" for method, share in reached.items()})
    assert answer == (reached["lora"] >= reached["full"]), "the runs say otherwise"
    print("right")

# %% [markdown]
# **4. Below the noise.** The best root mean squared error at full rank.
#
# At full rank the best update is the least-squares one. It has `d_in = 32` free numbers for each output, and fits that
# share of the noise as well: of its variance over `n = 512` rows, `1 - 32 / 512` is left.

# %%
answer = 0.02 * math.sqrt(1 - 32 / 512)
print(f"{answer:.5f}")

# %%
if answer is None:
    print("not answered yet")
else:
    found = [math.sqrt(bounds.best_losses(planted(condition=3, noise=0.02, seed=seed))[-1]) for seed in range(20)]
    assert 0 < answer < 0.02, "expected a positive number below the noise, 0.02"
    assert abs(np.mean(found) / answer - 1) < 0.005, "more than 0.5 % off the average over 20 problems"
    print(f"right: {np.mean(found):.5f} on average over 20 problems")
