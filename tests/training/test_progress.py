"""How far a run is, into a file: a few plain lines; on a terminal: the bar."""

import io
import math
import sys

import numpy as np
import pytest

from lorabook.data import Batches
from lorabook.models import MLP, right_of
from lorabook.parallel import Workers
from lorabook.training import AdamW, Progress, Right, duration, progress, train
from lorabook.training.hooks import Hooks, Loop
from lorabook.training.steps import Steps


@pytest.fixture
def seconds(monkeypatch):
    """A clock that is told the time: a list of one number."""
    now = [0.0]
    monkeypatch.setattr(progress, "clock", lambda: now[0])
    return now


def lines(capsys, seconds, total, each, start=0, **row):
    """What a run says whose steps take `each` seconds."""
    bar = Progress(start, total, shown=True)
    for step in bar:
        seconds[0] += each
        bar.show(step, {"loss": 0.5} | row)
    return capsys.readouterr().err.splitlines()


def test_the_time_is_told_after_the_first_steps(capsys, seconds):
    said = lines(capsys, seconds, 240, 1.0)
    assert said[0] == "step 3 of 240: loss 0.500; about 4 min left"  # 237 s
    assert said[1] == "step 15 of 240: loss 0.500; about 4 min left"
    assert said[-1] == "step 231 of 240: loss 0.500; about 9 s left"
    assert len(said) == 20


@pytest.mark.parametrize(("total", "each"), [(7, 60.0), (21, 5.0), (399, 0.7), (100_000, 0.01)])
def test_there_are_at_most_twenty_lines(capsys, seconds, total, each):
    said = lines(capsys, seconds, total, each)
    assert 1 <= len(said) <= 20
    assert not [line for line in said if f"step {total} " in line]


def test_a_run_of_seconds_says_nothing(capsys, seconds):
    assert lines(capsys, seconds, 100, 0.019) == []
    assert lines(capsys, seconds, 100, 0.07) == []  # when two have gone by, five are left no more


def test_lines_do_not_follow_each_other_closely(capsys, seconds):
    said = lines(capsys, seconds, 100, 0.25)
    assert [line.split()[1] for line in said] == ["8", "28", "48", "68"]


def test_a_run_that_goes_on_counts_its_own_steps(capsys, seconds):
    assert lines(capsys, seconds, 240, 2.0, start=200)[0] == "step 203 of 240: loss 0.500; about 74 s left"


def test_the_loss_of_many_steps_and_the_latest_evaluation(capsys, seconds):
    bar = Progress(0, 100, shown=True)
    for step in bar:
        seconds[0] += 1
        evaluated = {"eval_loss": 0.25, "eval_accuracy": 0.875} if step in (1, 50) else {"eval_loss": math.nan}
        bar.show(step, {"loss": 1.0 if step % 2 else 0.0} | evaluated)
    first, *others = capsys.readouterr().err.splitlines()
    assert first == "step 3 of 100: loss 0.090; held out: loss 0.250, 87.5 % right; about 97 s left".replace(
        "97 s", "2 min"
    )
    assert all("; held out: loss 0.250, 87.5 % right; about" in line for line in others)
    assert 0.4 < float(others[-1].split("loss ")[1].split(";")[0]) < 0.6


def test_what_was_right_in_training_is_shown_until_something_was_evaluated(capsys, seconds):
    bar, right = Progress(0, 100, shown=True), Right()
    for step in bar:
        seconds[0] += 1
        if step:
            right(np.array([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [3.0, 9.0]]), np.array([1, 1, 1, -100]))
        bar.show(step, {"loss": 0.5, "eval_loss": 0.25 if step > 50 else math.nan, "eval_accuracy": 0.875}, right)
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "step 3 of 100: loss 0.500, 67% right; about 2 min left"
    assert [", 67% right" in line for line in said] == ["held out" not in line for line in said]
    assert Right().share() is None


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("loss", ["cross_entropy", "mean_squared_error"])
def test_all_that_is_trained_on_is_told(rng, accumulate, loss):
    """Once, whichever thread has it; of values nothing is right or wrong."""
    model, x = MLP((7, 9, 3), rng=rng), rng.standard_normal((3000, 7)).astype("f4")
    model.loss = loss
    labels = np.arange(3000) % 3 if loss == "cross_entropy" else rng.standard_normal((3000, 3)).astype("f4")
    batches, told = Batches({"x": x, "labels": labels}, 3000), []
    with Workers(2) as workers:
        loop = Loop(model, AdamW(0.0), workers, model.trainable_params(), 1, 1)
        Steps(loop, Hooks((), 1), batches, 0, None, accumulate, tell=lambda *pair: told.append(pair)).take(0, 1.0)
    if loss == "mean_squared_error":
        assert not told
        return
    assert len(told) >= max(2, accumulate) and sum(len(labels) for _, labels in told) == 3000
    right = sum(int(right_of(*pair)) for pair in told)
    assert right == round(3000 * model.evaluate(batches.at(0))[1])


def test_nothing_is_said_unasked(capsys, seconds):
    bar = Progress(0, 100, shown=False)
    for step in bar:
        seconds[0] += 10
        bar.show(step, {"loss": 0.5})
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_the_bar_with_loss_and_accuracy(monkeypatch, seconds):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", screen := Terminal())
    monkeypatch.setattr(progress, "PATIENCE", 0)
    bar = Progress(0, 50, shown=True)
    for step in bar:
        seconds[0] += 1
        bar.show(step, {"loss": 0.5, "eval_loss": 0.25, "eval_accuracy": 0.875})
    assert "50/50" in screen.getvalue()
    assert "loss 0.500; held out: loss 0.250, 87.5 % right" in screen.getvalue()
    assert "left\n" not in screen.getvalue()


def test_train_tells_the_steps_and_the_time(capsys, seconds, monkeypatch):
    class Slow(Batches):
        def at(self, step):
            seconds[0] += 3
            return super().at(step)

    rng = np.random.default_rng(0)
    batches = Slow({"x": rng.standard_normal((41, 6)).astype("f4"), "labels": np.arange(41) % 3}, 8)
    train(MLP((6, 8, 3), rng=rng), batches, AdamW(1e-2), epochs=20, progress=True)
    first, second, *others = capsys.readouterr().err.splitlines()
    assert first == "100 steps: 41 training rows in batches of 8, 20 epochs of 5 steps"
    assert second.startswith("step 3 of 100: loss ") and second.endswith("; about 5 min left")
    assert len(others) == 19


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "1 s"),
        (0.4, "1 s"),
        (89.4, "89 s"),
        (90, "2 min"),
        (3569, "59 min"),
        (3571, "1 h 0 min"),
        (7800, "2 h 10 min"),
    ],
)
def test_durations_are_guesses(number, words):
    assert duration(number) == words
