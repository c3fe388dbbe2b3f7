# %% [markdown]
# # Solutions: does training only A and B work?

# %%
import copy

import numpy as np
from threadpoolctl import threadpool_limits

from lorabook import LoRAConfig, environment, inject
from lorabook.adapters.memory import count
from lorabook.data import Batches, digits
from lorabook.optim import AdamW
from lorabook.pretrain import digits_problem
from lorabook.train import train

threadpool_limits(1)
print(environment.summary())
problem = digits_problem("digits-rotated", seed=0)
upright, base, task = digits(seed=0), problem.base, problem.task

# %% [markdown]
# **1. Count.** Each matrix gets `r (d_in + d_out)`; three matrices, r = 2:

# %%
answer = 2 * ((64 + 128) + (128 + 128) + (128 + 10))
print(f"{answer:,}")

# %%
model = copy.deepcopy(base)
inject(model, LoRAConfig(r=2, lora_alpha=16))
assert answer == count(model.trainable_params()), "not the size of all factors"
print("right")

# %% [markdown]
# **2. One layer, one rank.** A turned image is a shuffled input: what is wrong is what `fc1` reads. Behind `fc1` the
# damage has already been mixed into all 128 features, and one direction can repair less of it; in front of the output
# there are only ten numbers left to work with. With a single rank nobody does well, but the first layer does best.

# %%
answer = "fc1"

# %%
accuracy = {}
for name in ("fc1", "fc2", "fc3"):
    models = [copy.deepcopy(base) for _ in range(3)]
    for seed, model in enumerate(models):
        inject(model, LoRAConfig(r=1, lora_alpha=16, target_modules=[name]), seed)
        train(model, Batches(task.x_train, task.y_train, 64, seed), AdamW(0.01), epochs=60, seed=seed)
    accuracy[name] = np.median([model.evaluate(task.x_test, task.y_test)[1] for model in models])
print({name: f"{share:.1%}" for name, share in accuracy.items()})
assert answer == max(accuracy, key=accuracy.get), "another layer reads them better"
print("right")

# %% [markdown]
# **3. The exact answer.** The new weight must do to a turned image what the old one does to the upright image:
# `W_new turn x = W x` for every `x`, so `W_new = W turn^-1`. A matrix that moves pixels is undone by its transpose, so
# the update is `W turn^T - W`.

# %%
turn = np.rot90(np.eye(64).reshape(8, 8, 64)).reshape(64, 64)
assert np.array_equal(upright.x_test @ turn.T, task.x_test)
answer = lambda W, turn: W @ turn.T - W  # noqa: E731

# %%
model = copy.deepcopy(base)
W = model.named_params()["fc1.weight"]
update = answer(W, turn)
W += update
print(f"accuracy on turned digits: {model.evaluate(task.x_test, task.y_test)[1]:.1%}, without training")
same = np.allclose(model.forward(task.x_test)[0], base.forward(upright.x_test)[0], atol=1e-4)
assert same, "the outputs are not those of the base model on upright digits"
print("right")

# %% [markdown]
# **4. Its rank.** A turn by 90 degrees moves the 64 pixels in 16 cycles of 4. In each cycle only the sum of the four
# pixels stays as it is, so `turn^T - I` has rank `64 - 16 = 48`, and so has the update, because `W` has independent
# columns. This update does the task perfectly and is far from low rank. But a task does not ask for *that* update: any
# change of the weights that sorts the digits correctly will do, and among them there are some of rank 2 that come
# close. "The intrinsic rank of the task" is a property of the best low-rank answer, not of the first answer that comes
# to mind.

# %%
answer = 48

# %%
W = base.named_params()["fc1.weight"].astype(float)
assert answer == np.linalg.matrix_rank(W @ turn.T - W), "not its rank; np.linalg.matrix_rank counts it"
print("right")
