# %% [markdown]
# # Solutions: does training only A and B work?

# %%
import math

import numpy as np
from threadpoolctl import threadpool_limits

from lorabook import LoRAConfig, inject
from lorabook.book.checks import ch04
from lorabook.files import environment

threadpool_limits(1)
print(environment.summary())

# %% [markdown]
# **1. Half-life.** A gradient's weight in the average is multiplied by $\beta$ at each step, so
# after $n$ steps $\beta^n$ of it is left:
#
# $$\beta^n = \tfrac{1}{2} \quad\Longleftrightarrow\quad n = \frac{\ln 2}{-\ln \beta}$$
#
# For $\beta_1 = 0.9$ that is 6.6 steps, for $\beta_2 = 0.999$ it is 693. The direction follows the
# last few batches; the size is remembered for hundreds of them.

# %%
answer = lambda beta: math.log(2) / -math.log(beta)  # noqa: E731
print(f"{answer(0.9):.1f} and {answer(0.999):.0f} steps")
ch04.half_life(answer)

# %% [markdown]
# **2. A frozen A.** `inject` makes both factors train; then only those named `lora_B` are left. The
# window through which $\mathrm{d}B = s\,\mathrm{d}W A^\top$ looks stays where it was drawn. What is
# lost against LoRA shows that $A$ learns where to look; what is won is half of the numbers, the
# input $x$ that need not be kept ($\mathrm{d}B$ reads $z$ alone), and $\mathrm{d}A$. The variant is
# called LoRA-FA (L. Zhang et al., 2023, arXiv:2308.03303).


# %%
def answer(model, seed):
    inject(model, LoRAConfig(r=4, lora_alpha=16), seed)
    model.set_trainable([name for name in model.named_params() if name.endswith("lora_B")])


ch04.frozen_A(answer)

# %% [markdown]
# **3. One layer, one rank.** A turned image is a shuffled input: what is wrong is what `fc1` reads.
# Behind `fc1` the damage has already been mixed into all 128 features, and one direction can repair
# less of it; in front of the output there are only ten numbers left to work with. With a single
# rank nobody does well, but the first layer does best.

# %%
answer = "fc1"
ch04.one_layer(answer)

# %% [markdown]
# **4. The exact answer.** The new weight must do to a turned image what the old one does to the
# upright image: $W_\mathrm{new}\,\mathrm{turn}\,x = W x$ for every $x$, so
# $W_\mathrm{new} = W\,\mathrm{turn}^{-1}$. A matrix that moves pixels is undone by its transpose, so
# the update is
#
# $$W\,\mathrm{turn}^\top - W = W\,(\mathrm{turn}^\top - I).$$

# %%
answer = lambda W, turn: W @ turn.T - W  # noqa: E731
ch04.exact_update(answer)

# %% [markdown]
# **5. Its rank.** A turn by 90 degrees moves the 64 pixels in 16 cycles of 4. In each cycle only the
# sum of the four pixels stays as it is, so $\mathrm{turn}^\top - I$ has rank $64 - 16 = 48$, and so
# has the update, because $W$ has independent columns. This update does the task perfectly and is far
# from low rank. But a task does not ask for *that* update: any change of the weights that sorts the
# digits correctly will do, and among them there are some of rank 2 that come close. "The intrinsic
# rank of the task" is a property of the best low-rank answer, not of the first answer that comes to
# mind.

# %%
turn = np.rot90(np.eye(64).reshape(8, 8, 64)).reshape(64, 64)
print(f"rank of turn^T - I: {np.linalg.matrix_rank(turn.T - np.eye(64))}")
answer = 48
ch04.its_rank(answer)
