# %% [markdown]
# # Solutions: when does the same code pay on a GPU, and where does the time go?
#
# The exercises of [chapter 16](../16_gpu.ipynb).

# %%
from lorabook.book import counted
from lorabook.book.checks import ch16
from lorabook.files import environment

print(environment.summary())

# %% [markdown]
# **1. The ridge.** Two matrices are read and one is written, $3 d^2$ numbers. On the ridge
# computing takes as long as moving:
#
# $$\frac{2 d^3}{\mathrm{peak}} = \frac{3\, d^2\, \mathrm{itemsize}}{\mathrm{bandwidth}}
# \quad\Longrightarrow\quad
# d = \frac{3}{2}\, \mathrm{itemsize}\, \frac{\mathrm{peak}}{\mathrm{bandwidth}}$$

# %%
answer = lambda peak, bandwidth, itemsize: 1.5 * itemsize * peak / bandwidth  # noqa: E731
ch16.ridge(answer)

# %% [markdown]
# Half as many bytes a number would halve $d$, if the peak stayed; with half precision the peak
# grows by far more.
#
# **2. Few tokens.** Nearly all bytes are those of $W$, read once for all rows:
#
# $$\frac{2\, N d_\mathrm{in} d_\mathrm{out}}{4\, d_\mathrm{in} d_\mathrm{out}} = \frac{N}{2}
# \qquad\text{compute-bound from}\quad N = 2\, \frac{\mathrm{peak}}{\mathrm{bandwidth}}$$

# %%
answer = (lambda N: N / 2, lambda peak, bandwidth: 2 * peak / bandwidth)
ch16.few_tokens(answer)

# %% [markdown]
# One text at a time uses a fortieth of the float32 peak. It is the mirror image of the factor
# $A$: there $r$ was small, here $N$ is.
#
# **3. The last copies.** One launch less for laying the parameters end to end, and `tensors`
# copies less. What remains: one for the gradients, 13 for the two lines, and 9 for `alive`: p, m
# and v are kept, chosen from, and written.

# %%
model = counted.prepare(counted.MINILM)
tensors = len(model.trainable_params())
log, launches, _ = counted.record(model, 6, 128)
answer = launches["AdamW"] - 1 - tensors
print(f"{answer} instead of {launches['AdamW']}")
ch16.last_copies(answer)

# %% [markdown]
# **4. The other order.** Ask the recorder:

# %%
model = counted.prepare(counted.MINILM, order="factored")
log, factored, _ = counted.record(model, 6, 128)
answer = len(log)
for phase in counted.PHASES:
    print(f"{phase:22} merged {launches[phase]:4}   factored {factored[phase]:4}")
print(f"{answer:,} launches")
ch16.other_order(answer)

# %% [markdown]
# More. Forming $W + s\,B A$ takes three launches a matrix, and they are gone. But forward then
# has two thin products, a multiplication by $s$ and a sum where it had one product, and backward
# has to add a branch to $\mathrm{d}x$ as well. A launch-bound step is slower in this order, and a
# busy device has two products more that are bound by memory.
#
# **5. Which are float64?** A Python float is weak, a NumPy scalar is not. `np.arange(3)` is
# int64, and float32 with int64 gives float64. The mean of a float32 array is float32.

# %%
answer = "bcfg"
ch16.float64(answer)
