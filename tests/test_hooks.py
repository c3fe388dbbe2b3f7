"""Evaluation beside the steps: it changes no bit of the training, and what it keeps survives kill and resume."""

import math

import numpy as np
import pytest
from checks import move, same_bits

from lorabook import InputError, LoRAConfig, NonFiniteError, inject, io
from lorabook.backend import data_like
from lorabook.data import Batches
from lorabook.hooks import Evaluation, Hook
from lorabook.models import MLP
from lorabook.optim import AdamW
from lorabook.train import train

N, D, K = 40, 6, 3
OPTIONS = {"epochs": 4, "seed": 3, "max_grad_norm": 1.0}  # 20 steps
LOSSES = [0.9, 0.4, 0.7, 0.4, 0.5, 0.8, 0.6]  # of the evaluations after 3, 6, ..., 18 and 20 steps


@pytest.fixture
def batches(rng):
    return Batches(rng.standard_normal((N, D)).astype("f4"), np.arange(N) % K, 8, seed=1)


@pytest.fixture
def placed(put):
    """A model with its parameters on the second device, where the library has one."""

    def model(r=2):
        network = MLP((D, 8, K), rng=np.random.default_rng(0))
        inject(network, LoRAConfig(r=r, lora_dropout=0.3), np.random.default_rng(1))
        return move(network, put)

    return model


def measured(rows):
    """On these rows."""

    def measure(model, workers):
        like = next(iter(model.named_params().values()))
        return model.evaluate(data_like(rows.x, like), data_like(rows.y, like))

    return measure


def planned(losses=LOSSES):
    """An evaluation that gives these losses one after another."""
    losses = iter(losses)
    return lambda model, workers: (next(losses), 0.5)


def assert_same(got, want):
    assert [n for n, a in want.named_params().items() if not same_bits(got.named_params()[n], a)] == []


def without(history, names=Evaluation.columns):
    return [{k: v for k, v in row.items() if k not in names} for row in history]


@pytest.mark.parametrize("read_every", [1, 4, 100])
@pytest.mark.parametrize("every", [1, 3, 50])
def test_evaluation_changes_no_bit(placed, batches, every, read_every):
    one, other = placed(), placed()
    expected = train(one, batches, AdamW(1e-2), **OPTIONS)
    hook = Evaluation(measured(batches), every)
    got = train(other, batches, AdamW(1e-2), hooks=[hook], read_every=read_every, **OPTIONS)
    assert without(got) == expected
    assert_same(other, one)
    assert [row["eval_loss"] is not None for row in got] == [(i + 1) % every == 0 or i == 19 for i in range(20)]
    assert (got[-1]["eval_loss"], got[-1]["eval_accuracy"]) == measured(batches)(one, None)


def test_the_best_weights_are_those_of_the_first_lowest_loss(placed, batches):
    """After 6 steps and after 12 the loss is the same."""
    model, hook = placed(), Evaluation(planned(), 3, keep="best")
    history = train(model, batches, AdamW(1e-2), hooks=[hook], **OPTIONS)
    assert [row["eval_loss"] for row in history if row["eval_loss"] is not None] == LOSSES
    assert hook.best == (5, 0.4, 0.5)
    stopped = placed()

    class Stopping(Batches):
        def at(self, step):
            if step == 6:
                raise KeyboardInterrupt
            return super().at(step)

    with pytest.raises(KeyboardInterrupt):
        train(stopped, Stopping(batches.x, batches.y, 8, seed=1), AdamW(1e-2), **OPTIONS)
    assert_same(model, stopped)


def test_the_last_weights_are_kept_unless_told_otherwise(placed, batches):
    model, plain = placed(), placed()
    train(model, batches, AdamW(1e-2), hooks=[Evaluation(planned(), 3)], **OPTIONS)
    train(plain, batches, AdamW(1e-2), **OPTIONS)
    assert_same(model, plain)


@pytest.mark.parametrize("stop", [2, 4, 7, 13, 19])
@pytest.mark.parametrize("checkpoint_every", [1, 4])
def test_resume_keeps_the_best_bit_for_bit(tmp_path, placed, batches, stop, checkpoint_every):
    """The best weights are those of step 6: seen, not yet seen, or seen again by the run that goes on."""

    class Dying(Batches):
        def at(self, step):
            if step == stop:
                raise KeyboardInterrupt
            return super().at(step)

    options = OPTIONS | {"checkpoint_every": checkpoint_every, "checkpoint": tmp_path / "whole"}
    whole, hook = placed(), Evaluation(planned(), 3, keep="best")
    expected = train(whole, batches, AdamW(1e-2), hooks=[hook], **options)
    options["checkpoint"], dying = tmp_path / "part", Dying(batches.x, batches.y, 8, seed=1)
    with pytest.raises(KeyboardInterrupt):
        train(placed(), dying, AdamW(1e-2), hooks=[Evaluation(planned(), 3, keep="best")], **options)
    taken = io.read_checkpoint(tmp_path / "part")[1]["step"] if (tmp_path / "part").exists() else 0
    assert taken == stop - stop % checkpoint_every
    again, second = placed(), Evaluation(planned(LOSSES[taken // 3 :]), 3, keep="best")
    assert train(again, batches, AdamW(1e-2), hooks=[second], resume=True, **options) == expected
    assert second.best == hook.best
    assert_same(again, whole)
    assert (tmp_path / "part").read_bytes() == (tmp_path / "whole").read_bytes()


def test_resume_of_a_finished_run_gives_the_best_again(tmp_path, placed, batches):
    options = OPTIONS | {"checkpoint": tmp_path / "checkpoint"}
    whole, again, second = placed(), placed(), Evaluation(planned([]), 3, keep="best")
    expected = train(whole, batches, AdamW(1e-2), hooks=[Evaluation(planned(), 3, keep="best")], **options)
    assert train(again, batches, AdamW(1e-2), hooks=[second], resume=True, **options) == expected
    assert_same(again, whole)
    assert second.best == (5, 0.4, 0.5)


def test_one_evaluation_serves_two_runs(placed, batches):
    hook = Evaluation(planned([0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, *LOSSES]), 3, keep="best")
    first, second, apart = placed(r=3), placed(), placed()
    train(first, batches, AdamW(1e-1), hooks=[hook], **OPTIONS)
    train(second, batches, AdamW(1e-2), hooks=[hook], **OPTIONS)
    train(apart, batches, AdamW(1e-2), hooks=[Evaluation(planned(), 3, keep="best")], **OPTIONS)
    assert hook.best == (5, 0.4, 0.5)
    assert_same(second, apart)


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_no_result(tmp_path, placed, batches, loss):
    hook, path = Evaluation(planned([0.5, loss]), 3, keep="best"), tmp_path / "checkpoint"
    with pytest.raises(NonFiniteError, match=f"step 5: the loss on the rows of the evaluation is {loss}"):
        train(placed(), batches, AdamW(1e-2), hooks=[hook], checkpoint=path, checkpoint_every=3, **OPTIONS)
    assert io.read_checkpoint(path)[1]["step"] == 3


class Counting(Hook):
    """Of a reader: no columns; sees the model before the first step, and every second."""

    def __init__(self):
        self.options, self.seen = {"counting": True}, []

    def start(self, model, workers, past):
        self.seen.append((len(past), bool(np.any(model.named_params()["fc2.lora_B"]))))

    def due(self, step, total):
        return step % 2 == 1

    def after_step(self, step, model, workers):
        self.seen.append(step)
        return ()


def test_a_hook_of_the_reader(tmp_path, batches):
    def model():
        network = MLP((D, 8, K), rng=np.random.default_rng(0))
        inject(network, LoRAConfig(r=2), np.random.default_rng(1))
        return network

    one, again, options = Counting(), Counting(), {"epochs": 1, "checkpoint": tmp_path / "checkpoint"}
    both = [one, Evaluation(measured(batches), 2)]
    history = train(model(), batches, AdamW(1e-2), hooks=both, **options)
    assert one.seen == [(0, False), 1, 3]
    assert [row["eval_loss"] is None for row in history] == [True, False, True, False, False]
    both[0] = again
    assert train(model(), batches, AdamW(1e-2), hooks=both, resume=True, **options) == history
    assert again.seen == [(2, False)], "start sees the weights of step 0"
    with pytest.raises(InputError, match="its counting is True, here it is None"):
        train(model(), batches, AdamW(1e-2), hooks=both[1:], resume=True, **options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Evaluation(planned(), 0), "eval_every must be an integer of at least 1; got 0"),
        (lambda: Evaluation(planned(), 1.5), r"eval_every must be an integer of at least 1; got 1\.5"),
        (lambda: Evaluation(planned(), 1, keep="first"), "keep must be last or best; got 'first'"),
    ],
)
def test_options_are_checked(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_two_evaluations_need_two_names(placed, batches):
    hooks = [Evaluation(planned(), 1), Evaluation(planned(), 2)]
    with pytest.raises(
        InputError, match="two hooks write the same column of the history: eval_accuracy, eval_accuracy"
    ):
        train(placed(), batches, AdamW(1e-2), hooks=hooks, **OPTIONS)
