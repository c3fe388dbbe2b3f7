"""Hooks: evaluation, which changes no bit of the training, and what a variant does to gradients, factors and epochs."""

import math

import numpy as np
import pytest
from checks import assert_close, move, same_bits

from lorabook import FormatError, InputError, LoRAConfig, NonFiniteError, files, inject
from lorabook.adapters import adapters
from lorabook.backend import data_like
from lorabook.data import Batches
from lorabook.models import MLP
from lorabook.parallel import team
from lorabook.training import SGD, AdamW, Evaluation, Hook, clip_grad_norm, train
from lorabook.training.hooks import Hooks

N, D, K = 40, 6, 3
OPTIONS = {"epochs": 4, "seed": 3, "max_grad_norm": 1.0}  # 20 steps
LOSSES = [0.9, 0.4, 0.7, 0.4, 0.5, 0.8, 0.6]  # of the evaluations after 3, 6, ..., 18 and 20 steps


@pytest.fixture
def batches(rng):
    return Batches({"x": rng.standard_normal((N, D)).astype("f4"), "labels": np.arange(N) % K}, 8, seed=1)


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
        return model.evaluate(data_like(rows.examples.arrays, like))

    return measure


def planned(losses=LOSSES):
    """An evaluation that gives these losses one after another."""
    losses = iter(losses)
    return lambda model, workers: (next(losses), 0.5)


def assert_same(got, want):
    assert [n for n, a in want.named_params().items() if not same_bits(got.named_params()[n], a)] == []


def without(history, names=("eval_loss", "eval_accuracy")):
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
        train(stopped, Stopping(batches.examples, 8, seed=1), AdamW(1e-2), **OPTIONS)
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
    options["checkpoint"], dying = tmp_path / "part", Dying(batches.examples, 8, seed=1)
    with pytest.raises(KeyboardInterrupt):
        train(placed(), dying, AdamW(1e-2), hooks=[Evaluation(planned(), 3, keep="best")], **options)
    taken = files.read_checkpoint(tmp_path / "part")[1]["step"] if (tmp_path / "part").exists() else 0
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
    assert files.read_checkpoint(path)[1]["step"] == 3


class Counting(Hook):
    """Of a reader: no columns; sees the model before the first step, and every second."""

    def __init__(self):
        self.options, self.seen = {"counting": True}, []

    def start(self, loop, past):
        self.seen.append((len(past), bool(np.any(loop.model.named_params()["fc2.lora_B"]))))

    def due(self, step, total):
        return step % 2 == 1

    def after_step(self, step, loop):
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


# ---- what a variant does ---------------------------------------------------------------------------------------------


def adapted(dropout=0.0):
    network = MLP((D, 8, K), rng=np.random.default_rng(0))
    inject(network, LoRAConfig(r=2, lora_dropout=dropout), np.random.default_rng(1))
    return network


def bits(model):
    return {name: array.tobytes() for name, array in model.named_params().items()}


class Calls(Hook):
    """Notes what is called, in order, and what it sees of the run."""

    columns = ("half",)

    def __init__(self):
        self.seen = []

    def start(self, loop, past):
        self.loop, self.before = loop, {}
        self.seen.append(("start", len(past)))

    def after_backward(self, step, loop, grads):
        assert loop is self.loop and grads.keys() == loop.params.keys()
        self.before = {name: array.copy() for name, array in loop.params.items()}
        self.seen.append(("backward", step))

    def after_update(self, step, loop):
        assert any(not np.array_equal(array, self.before[name]) for name, array in loop.params.items())
        self.seen.append(("update", step))

    def due(self, step, total):
        return step == 3

    def after_step(self, step, loop):
        self.seen.append(("step", step))
        return (0.5,)

    def after_epoch(self, epoch, loop):
        self.seen.append(("epoch", epoch))

    def finish(self, loop):
        self.seen.append(("finish", None))


@pytest.mark.parametrize("read_every", [1, 4])
def test_hooks_are_called_in_the_order_of_the_run(batches, read_every):
    """Two epochs of five steps. Of two hooks the first is first."""
    hook, second, model = Calls(), Hook(), adapted()
    second.after_backward = lambda step, loop, grads: hook.seen.append(("second", step))
    train(model, batches, AdamW(1e-2), epochs=2, hooks=[hook, second], read_every=read_every)
    want = [("start", 0)]
    for step in range(10):
        want += [("backward", step), ("second", step), ("update", step)]
        want += [("epoch", step // 5)] * (step % 5 == 4) + [("step", step)] * (step == 3)
    assert hook.seen == [*want, ("finish", None)]
    loop = hook.loop
    assert loop.model is model and isinstance(loop.optimizer, AdamW) and loop.workers.size == 1
    assert (loop.total, loop.steps_an_epoch, loop.params.keys()) == (10, 5, model.trainable_params().keys())


class Projecting(Hook):
    """Takes out of each gradient of lora_B what lies along a direction (2,)."""

    direction = np.array([0.6, 0.8], "f4")

    def after_backward(self, step, loop, grads):
        for name in grads:
            if name.endswith("lora_B"):
                grads[name] -= np.outer(grads[name] @ self.direction, self.direction)


def test_a_hook_projects_gradients(batches):
    """What it was to keep, it keeps; the rest is what a loop by hand gives, and the norm is that of what is left."""
    model, other = adapted(), adapted()
    history = train(model, batches, SGD(0.5), epochs=2, hooks=[Projecting()], lr_schedule="constant")
    params, optimizer, hook = other.trainable_params(), SGD(0.5), Projecting()
    with team(1) as workers:
        for step, row in enumerate(history):
            _, grads = workers.loss_and_grad(other, batches.at(step))
            hook.after_backward(step, None, grads)
            assert row["grad_norm"] == clip_grad_norm(grads, None)
            optimizer.step(params, grads)
    assert bits(model) == bits(other)
    for name, array in model.trainable_params().items():
        if name.endswith("lora_B"):
            assert np.abs(array).max() > 1e-2
            assert np.abs(array @ hook.direction).max() < 1e-6


class Masking(Hook):
    """Only the first row of each lora_A trains, and whatever the optimizer does to the others is taken back."""

    def start(self, loop, past):
        self.kept = {n: a[1:].copy() for n, a in loop.params.items() if n.endswith("lora_A")}

    def after_update(self, step, loop):
        for name, rows in self.kept.items():
            loop.params[name][1:] = rows


@pytest.mark.parametrize("read_every", [1, 4])
def test_a_hook_masks_what_the_optimizer_changes(batches, read_every):
    model = adapted()
    before = {name: array.copy() for name, array in model.trainable_params().items()}
    optimizer = AdamW(1e-2, weight_decay=0.1)
    train(model, batches, optimizer, epochs=2, hooks=[Masking()], read_every=read_every)
    for name, array in model.trainable_params().items():
        if name.endswith("lora_A"):
            assert same_bits(array[1:], before[name][1:]) and not np.allclose(array[0], before[name][0])


class Switching(Hook):
    """From step 4 on fc1.lora_A trains no more, and the bias of fc2 does."""

    def after_update(self, step, loop):
        if step == 3:
            names = loop.model.trainable_params().keys() - {"fc1.lora_A"} | {"fc2.base_layer.bias"}
            loop.model.set_trainable(names)
            loop.refresh()
            self.now = loop.params["fc2.base_layer.bias"]


@pytest.mark.parametrize("read_every", [1, 3, 100])
@pytest.mark.parametrize("make", [lambda: AdamW(1e-2), lambda: SGD(0.1, momentum=0.9)], ids=["adamw", "sgd"])
def test_a_hook_changes_what_trains(batches, make, read_every):
    """Two runs by hand, the second with the state of the first; what is new begins with zeros."""
    model, other, optimizer, second = adapted(), adapted(), make(), make()
    hook = Switching()
    train(model, batches, optimizer, epochs=2, hooks=[hook], lr_schedule="constant", read_every=read_every)
    assert hook.now is model.named_params()["fc2.base_layer.bias"]
    with team(1) as workers:
        for step in range(10):
            if step == 4:
                other.set_trainable(other.trainable_params().keys() - {"fc1.lora_A"} | {"fc2.base_layer.bias"})
            _, grads = workers.loss_and_grad(other, batches.at(step))
            second.step(other.trainable_params(), grads)
            assert ("fc1.lora_A" in grads, "fc2.base_layer.bias" in grads) == (step < 4, step >= 4)
    assert bits(model) == bits(other)
    assert model.trainable_params().keys() == {"fc1.lora_B", "fc2.lora_A", "fc2.lora_B", "fc2.base_layer.bias"}
    for slot in optimizer.slots:
        assert optimizer.state[slot].keys() == second.state[slot].keys() >= {"fc2.base_layer.bias", "fc1.lora_A"}
        for name, array in second.state[slot].items():
            assert same_bits(optimizer.state[slot][name], array)


class Restarting(Hook):
    """ReLoRA (Lialin et al. 2023, arXiv:2307.05695): at the end of an epoch the update moves into the base weights."""

    def __init__(self):
        self.answers = []

    def after_epoch(self, epoch, loop):
        x = np.random.default_rng(epoch).standard_normal((9, D)).astype("f4")
        before = loop.model.predict(x)
        for path, layer in adapters(loop.model).items():
            layer.weight[...] += layer.delta_weight()
            for factor, start in zip(("lora_A", "lora_B"), (0.1, 0.0), strict=True):
                layer.params[factor][...] = start
                for arrays in loop.optimizer.state.values():
                    arrays[f"{path}.{factor}"][...] = 0
        self.answers.append((before, loop.model.predict(x)))


def test_a_hook_restarts_the_factors_at_epoch_ends(batches):
    model, hook = adapted(), Restarting()
    base = {path: layer.weight.copy() for path, layer in adapters(model).items()}
    train(model, batches, AdamW(3e-2), epochs=3, hooks=[hook], lr_schedule="constant")
    assert len(hook.answers) == 3
    for before, after in hook.answers:
        assert_close(after, before, 1e-5)
    assert not any(layer.delta_weight().any() for layer in adapters(model).values())
    moved = {path: layer.weight.astype("f8") - base[path] for path, layer in adapters(model).items()}
    assert np.linalg.matrix_rank(moved["fc1"], tol=1e-4) > 2  # more than the rank of one adapter


class Private(Hook):
    """After DP-SGD (Abadi et al. 2016, arXiv:1607.00133), by the step's whole gradient: clipped, and noise added."""

    def __init__(self, clip, noise, seed=0):
        self.clip, self.noise, self.seed = clip, noise, seed
        self.options = {"private.clip": clip, "private.noise": noise, "private.seed": seed}

    def after_backward(self, step, loop, grads):
        clip_grad_norm(grads, self.clip)
        rng = np.random.default_rng([self.seed, step])
        for name in sorted(grads):
            grads[name] += (self.noise * self.clip * rng.standard_normal(grads[name].shape)).astype("f4")


def test_clipped_and_noised_gradients_need_no_branch_in_the_loop(tmp_path, batches):
    model, other = adapted(0.3), adapted(0.3)
    options = {"epochs": 2, "seed": 3, "checkpoint_every": 2}
    path, hook = tmp_path / "checkpoint", Private(0.1, 0.5)
    history = train(model, batches, SGD(0.5), hooks=[hook], checkpoint=path, **options)
    with team(1) as workers:
        params, optimizer = other.trainable_params(), SGD(0.5)
        for step, row in enumerate(history):
            _, grads = workers.loss_and_grad(other, batches.at(step), np.random.default_rng([3, step]))
            hook.after_backward(step, None, grads)
            assert row["grad_norm"] == clip_grad_norm(grads, None)
            optimizer.step(params, grads, row["lr"] / 0.5)
    assert bits(model) == bits(other)

    class Dying(Batches):
        def at(self, step):
            if step == 7:
                raise KeyboardInterrupt
            return super().at(step)

    seldom, options["checkpoint"] = adapted(0.3), tmp_path / "part"
    with pytest.raises(KeyboardInterrupt):
        train(adapted(0.3), Dying(batches.examples, 8, 1), SGD(0.5), hooks=[hook], **options)
    for others in ([Private(0.1, 0.6)], [Private(0.1, 0.5, seed=1)], []):
        with pytest.raises(FormatError, match=r"its private\.(noise|seed|clip) is"):
            train(adapted(0.3), batches, SGD(0.5), hooks=others, resume=True, **options)
    again = [Private(0.1, 0.5)]
    assert train(seldom, batches, SGD(0.5), hooks=again, resume=True, read_every=2, **options) == history
    assert bits(seldom) == bits(model)
    assert (tmp_path / "part").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("read_every", [1, 3])
def test_a_gradient_that_a_hook_makes_infinite_changes_nothing(batches, read_every):
    hook, model, other = Hook(), adapted(), adapted()
    hook.after_backward = lambda step, loop, grads: grads["fc2.lora_B"].fill(np.inf if step == 4 else 0.1)
    with pytest.raises(NonFiniteError, match=r"step 4: the gradient of fc2\.lora_B is not finite"):
        train(model, batches, AdamW(1e-2), epochs=2, lr_schedule="constant", hooks=[hook], read_every=read_every)
    with team(1) as workers:
        params, optimizer = other.trainable_params(), AdamW(1e-2)
        for step in range(4):
            _, grads = workers.loss_and_grad(other, batches.at(step))
            hook.after_backward(step, None, grads)
            optimizer.step(params, grads)
    assert bits(model) == bits(other)


def test_a_hook_sees_the_gradients_of_a_whole_accumulated_step(batches):
    calls = []
    hook = Hook()
    hook.after_backward = lambda step, loop, grads: calls.append({name: g.copy() for name, g in grads.items()})
    train(adapted(), batches, SGD(0.0), epochs=1, hooks=[hook], accumulate=4)
    train(adapted(), batches, SGD(0.0), epochs=1, hooks=[hook])
    assert len(calls) == 10
    for parts, whole in zip(calls[:5], calls[5:], strict=True):
        assert parts.keys() == whole.keys()
        for name, grad in whole.items():
            np.testing.assert_allclose(parts[name], grad, atol=1e-6)


class Phases(Hook):
    """From step 4 on fc1.lora_A trains no more, and the bias of fc2 does; a run that goes on knows."""

    def switch(self, loop):
        loop.model.set_trainable(loop.model.trainable_params().keys() - {"fc1.lora_A"} | {"fc2.base_layer.bias"})
        loop.refresh()

    def resume(self, loop, step):
        if step > 3:
            self.switch(loop)

    def after_update(self, step, loop):
        if step == 3:
            self.switch(loop)


class Dying(Batches):
    """A machine that stops at a step."""

    def __init__(self, batches, stop):
        super().__init__(batches.examples, 8, seed=1)
        self.stop = stop

    def at(self, step):
        if step == self.stop:
            raise KeyboardInterrupt
        return super().at(step)


@pytest.mark.parametrize("keep", ["last", "best"])
@pytest.mark.parametrize("stop", [3, 4, 5, 7, 13])
def test_resume_of_a_run_whose_hook_changes_what_trains(tmp_path, batches, keep, stop):
    """Before the change, right after it, with no evaluation since, and later: to the last bit."""
    losses = {2: 0.1, 5: 0.9, 8: 0.4, 11: 0.7, 14: 0.4, 17: 0.5, 19: 0.6}

    def run(model, batches, folder, **options):
        hook = Evaluation(None, 3, keep)
        hook.measure = lambda model, workers: (losses[seen[-1]], 0.5)
        seen, watch = [], Hook()
        watch.after_update = lambda step, loop: seen.append(step)
        options |= {"epochs": 4, "checkpoint": tmp_path / folder, "checkpoint_every": 1}
        return train(model, batches, AdamW(1e-2), hooks=[watch, Phases(), hook], **options), hook.best

    model, again = adapted(), adapted()
    history, best = run(model, batches, "whole")
    with pytest.raises(KeyboardInterrupt):
        run(adapted(), Dying(batches, stop), "part")
    assert run(again, batches, "part", resume=True) == (history, best)
    assert bits(again) == bits(model)
    assert (tmp_path / "part").read_bytes() == (tmp_path / "whole").read_bytes()
    assert best == ((2, 0.1, 0.5) if keep == "last" else (8, 0.4, 0.5)), "of the weights that train at the end"


def test_a_hook_that_does_not_say_what_trained_is_told(tmp_path, batches):
    options = {"epochs": 2, "checkpoint": tmp_path / "checkpoint", "checkpoint_every": 1}
    with pytest.raises(KeyboardInterrupt):
        train(adapted(), Dying(batches, 6), AdamW(1e-2), hooks=[Switching()], **options)
    with pytest.raises(FormatError, match=r"'m:fc2\.base_layer\.bias' is no tensor of it"):
        train(adapted(), batches, AdamW(1e-2), hooks=[Switching()], resume=True, **options)


@pytest.mark.parametrize("change", ["what trains", "a shape", "at the end"])
def test_the_best_weights_are_of_what_trains_at_the_end(batches, change):
    """With the lowest loss before the change: those weights are of others. The best since is kept, bit for bit."""

    class Growing(Hook):
        def after_update(self, step, loop):
            if step != (19 if change == "at the end" else 7):
                return
            if change == "a shape":
                layer = adapters(loop.model)["fc1"]
                for name, axis in (("lora_A", 0), ("lora_B", 1)):
                    layer.params[name] = np.concatenate([layer.params[name]] * 2, axis)
                    for arrays in loop.optimizer.state.values():
                        arrays[f"fc1.{name}"] = np.zeros_like(layer.params[name])
            else:
                Phases.switch(self, loop)
            loop.refresh()

    def run(losses, keep, epochs=4):
        model, hook = adapted(), Evaluation(planned(losses), 3, keep)
        train(model, batches, AdamW(1e-2), epochs=epochs, hooks=[Growing(), hook], lr_schedule="constant")
        return model, hook

    losses = [0.1, 0.05, 0.7, 0.4, 0.3, 0.3, 0.6]
    model, hook = run(losses, "best")
    assert hook.best == ((19, 0.6, 0.5) if change == "at the end" else (14, 0.3, 0.5))
    assert bits(model) == bits(run(losses, "last", 4 if change == "at the end" else 3)[0])


@pytest.mark.parametrize("read_every", [1, 3, 100])
def test_no_hook_sees_an_update_that_failed(batches, read_every):
    """The gradient of step 4 is infinite: step 3 is the last that was taken, and the last that hooks see."""
    seen, breaking, watching_ = [], Hook(), Calls()
    breaking.after_backward = lambda step, loop, grads: grads["fc2.lora_B"].fill(np.inf if step == 4 else 0.1)
    watching_.after_backward = lambda step, loop, grads: seen.append(("backward", step))
    watching_.after_update = lambda step, loop: seen.append(("update", step))
    with pytest.raises(NonFiniteError, match="step 4"):
        train(adapted(), batches, AdamW(1e-2), epochs=1, hooks=[breaking, watching_], read_every=read_every)
    assert seen == [(what, step) for step in range(5) for what in ("backward", "update")][:-1]
    assert ("epoch", 0) not in watching_.seen


def test_a_hook_that_only_looks_leaves_the_device_its_queue(batches):
    """Of one that acts in steps, each step is read: before that it does not know whether the step is sound."""
    acting = {name: Hook() for name in ("after_backward", "after_update", "after_epoch")}
    for name, hook in acting.items():
        setattr(hook, name, lambda *_: None)
    for hook in (*acting.values(), Switching(), Private(1.0, 0.0)):
        assert Hooks([Hook(), hook], 20).act
    assert not Hooks([Hook(), Counting(), Evaluation(planned(), 5)], 20).act
