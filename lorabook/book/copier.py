"""Chapter 05's last experiment: a model that repeats symbols, and adapters that have to change its mind."""

import copy

import numpy as np

from ..adapters import LoRAConfig, inject
from ..data import Batches
from ..files import format_table
from ..layers import RUN, Layer, LayerNorm, Linear, Sequential, prefixed
from ..models import Classifier, PreNormBlock
from ..training import AdamW, train

SYMBOLS, LENGTH, FIRST, WIDTH = 8, 10, 3, 32  # FIRST: the first position that has a symbol three places back
TASKS = ("where to look", "what to say")
PLACES = {  # which layers of each block, with which rank: 3,072 numbers each
    "query and key": {"query": 12, "key": 12},
    "value and output": {"value": 12, "output": 12},
    "up and down": {"up": 8, "down": 8},
    "all six": {"query": 3, "key": 3, "value": 3, "output": 3, "up": 4, "down": 4},
    "up and down, 4 times the steps": {"up": 8, "down": 8},
    "the same, upper block alone": {"1.up": 16, "1.down": 16},
}
LONGER = tuple(PLACES)[4:]  # with four times the steps, on the first task alone
CASES = [(place, task) for place in PLACES for task in TASKS if place not in LONGER or task == TASKS[0]]


class Copier(Classifier, Layer):
    """Two causal pre-norm blocks on frozen random embeddings.

    ids (B, LENGTH) -> logits (B, LENGTH - FIRST, SYMBOLS), a row for each position from FIRST on.
    """

    def __init__(self, seed):
        draw = np.random.default_rng(seed)
        self.symbols, self.positions = (draw.standard_normal((n, WIDTH)).astype("f4") for n in (SYMBOLS, LENGTH))
        blocks = {str(i): PreNormBlock.random(WIDTH, 4, 2 * WIDTH, draw) for i in range(2)}
        head = {"norm": LayerNorm.unit(WIDTH), "linear": Linear.random(WIDTH, SYMBOLS, draw)}
        super().__init__(children={"blocks": Sequential(blocks), "head": Sequential(head)})

    def forward(self, ids, run=RUN):
        x = self.symbols[ids] + self.positions
        h, blocks = self.children["blocks"](x, run.but(causal=True))
        logits, head = self.children["head"](h[:, FIRST:], run)
        return logits, (blocks, head)

    def backward(self, dout, cache, need_dx=False):
        blocks, head = cache
        dh, head_grads = self.children["head"].backward(dout, head)
        dh = np.pad(dh, ((0, 0), (FIRST, 0), (0, 0)))  # nothing from before FIRST
        _, grads = self.children["blocks"].backward(dh, blocks, need_dx=False)
        return None, prefixed("blocks", grads) | prefixed("head", head_grads)


def sequences(task, n, seed):
    """A batch of n random sequences and what to say at each position from FIRST on."""
    ids = np.random.default_rng(seed).integers(SYMBOLS, size=(n, LENGTH))
    back = 3 if task == "where to look" else 1
    labels = ids[:, FIRST - back : LENGTH - back]
    return {"x": ids, "labels": (labels + 3) % SYMBOLS if task == "what to say" else labels}


def fit(model, task, lr, seed, epochs=1):
    """(loss at each step, share of fresh symbols said right), after 150 steps an epoch."""
    history = train(model, Batches(sequences(task, 2400, seed), 16, seed), AdamW(lr), epochs=epochs, seed=seed)
    return [row["loss"] for row in history], model.evaluate(sequences(task, 300, seed + 1000))[1]


def taught(seed):
    """(a Copier that says the symbol one place back, all of it trained; the share that it says right)"""
    model = Copier(seed)
    return model, fit(model, "one back", 3e-3, seed)[1]


def changed(base, place, task, seed):
    """{place, task, seed, losses, right, numbers}: adapters at the `place`, trained on the `task`; the rest frozen."""
    ranks, model = PLACES[place], copy.deepcopy(base)
    alpha = {name: 2 * r for name, r in ranks.items()}  # scaling 2 everywhere
    inject(model, LoRAConfig(target_modules=list(ranks), rank_pattern=ranks, alpha_pattern=alpha), seed)
    numbers = sum(array.size for array in model.trainable_params().values())
    epochs = 4 if place in LONGER else 1
    losses, right = fit(model, task, 1e-2, seed + 10, epochs)
    return {"place": place, "task": task, "seed": seed, "losses": losses, "right": right, "numbers": numbers}


def shares(rows):
    """{(place, task): shares that were said right, one a seed}"""
    found = {}
    for row in rows:
        found.setdefault((row["place"], row["task"]), []).append(row["right"])
    return found


def table(rows):
    """`shares` as text."""
    right = shares(rows)

    def column(task):
        return lambda place: " ".join(f"{value:6.1%}" for value in right.get((place, task), [])) or "not tried"

    columns = {"right on fresh symbols, a seed each": str} | {task: column(task) for task in TASKS}
    return format_table(list(PLACES), columns)
