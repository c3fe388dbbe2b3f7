"""Checks of the exercises of chapter 04."""

import copy

import numpy as np
from threadpoolctl import threadpool_limits

from ...adapters import LoRAConfig, count, inject
from ...data import Batches, digits
from ...tasks import digits_problem
from ...training import AdamW, train
from . import exercise, need

LR, EPOCHS = 0.01, 60


def _problem():
    problem = digits_problem("digits-rotated", seed=0)
    return problem.base, problem.task, digits(seed=0)


def _accuracy(model, seed):
    _, task, _ = _problem()
    with threadpool_limits(1):
        train(model, Batches(task.part("train"), 64, seed), AdamW(LR), epochs=EPOCHS, seed=seed, workers=1)
        return model.evaluate(task.part("test"))[1]


@exercise
def half_life(answer):
    """How many steps it takes until a gradient counts half, as a function of beta."""
    need(callable(answer), "expected a function of beta")
    for beta in (0.5, 0.9, 0.999):
        left = beta ** float(answer(beta))
        need(abs(left - 0.5) < 1e-9, f"at beta = {beta} the weight is {left:.3f} of what it was, after so many steps")


@exercise
def frozen_A(prepare):
    """A function of the model that injects LoRA of rank 4, lora_alpha 16, whose A stays as it was drawn."""
    need(callable(prepare), "expected a function of the model and a seed")
    base, _, _ = _problem()
    model = copy.deepcopy(base)
    prepare(model, 0)
    names = set(model.trainable_params())
    want = {f"{layer}.lora_B" for layer in ("fc1", "fc2", "fc3")}
    need(
        names == want, f"what trains should be {', '.join(sorted(want))}; it is {', '.join(sorted(names)) or 'nothing'}"
    )
    need(all(model.children[layer].r == 4 for layer in ("fc1", "fc2", "fc3")), "expected rank 4")
    need(
        all(np.any(model.children[layer].params["lora_A"]) for layer in ("fc1", "fc2", "fc3")), "an A of zeros is shut"
    )
    whole = copy.deepcopy(base)
    inject(whole, LoRAConfig(r=4, lora_alpha=16), 0)
    print(f"{count(model.trainable_params()):,} numbers train: {_accuracy(model, 0):.1%} right; ", end="")
    print(f"with A and B, {count(whole.trainable_params()):,}: {_accuracy(whole, 0):.1%}")


@exercise
def one_layer(answer):
    """Which of fc1, fc2, fc3 reads turned digits best, adapted alone with r = 1."""
    need(answer in ("fc1", "fc2", "fc3"), "expected 'fc1', 'fc2' or 'fc3'")
    base, _, _ = _problem()
    right = {}
    for name in ("fc1", "fc2", "fc3"):
        models = [copy.deepcopy(base) for _ in range(3)]
        for seed, model in enumerate(models):
            inject(model, LoRAConfig(r=1, lora_alpha=16, target_modules=[name]), seed)
        right[name] = float(np.median([_accuracy(model, seed) for seed, model in enumerate(models)]))
    need(answer == max(right, key=right.get), "another layer reads them better; adapt each in turn, and see")
    print({name: f"{share:.1%}" for name, share in right.items()})


@exercise
def exact_update(answer):
    """The update of fc1.weight that undoes the turn, as a function of W and turn."""
    need(callable(answer), "expected a function of W and turn")
    base, task, upright = _problem()
    turn = np.rot90(np.eye(64).reshape(8, 8, 64)).reshape(64, 64)
    model = copy.deepcopy(base)
    W = model.named_params()["fc1.weight"]
    update = np.asarray(answer(W.copy(), turn))
    need(update.shape == W.shape, f"expected an update of the shape of W, {W.shape}; got {update.shape}")
    W += update
    print(f"{model.evaluate(task.part('test'))[1]:.1%} right on turned digits, without training")
    same = np.allclose(model(task.x_test)[0], base(upright.x_test)[0], atol=1e-4)
    need(same, "the outputs are not those of the base model on upright digits")


@exercise
def its_rank(answer):
    """The rank of that update."""
    base, _, _ = _problem()
    turn = np.rot90(np.eye(64).reshape(8, 8, 64)).reshape(64, 64)
    W = base.named_params()["fc1.weight"].astype(float)
    need(
        answer == np.linalg.matrix_rank(W @ turn.T - W), "not its rank; how many of the 64 directions does a turn keep?"
    )
