import copy
import math
import traceback

import numpy as np
import pytest
from checks import assert_close, held, move, same_bits, tiny_bert

from lorabook import FormatError, InputError, LoRAConfig, NonFiniteError, backend, files, inject, merge
from lorabook.data import Batches
from lorabook.models import MLP, BertForTokenClassification
from lorabook.parallel import team
from lorabook.training import SGD, AdamW, Evaluation, Hooks, Loop, Optimizer, Steps, schedule, train

N, D, K = 40, 6, 3


@pytest.fixture
def batches(rng):
    x = rng.standard_normal((N, D)).astype("f4")
    return Batches({"x": x, "labels": np.arange(N) % K}, 8, seed=1)


def lora_model(r=2, seed=0, dropout=0.0):
    model = MLP((D, 8, K), rng=np.random.default_rng(seed))
    inject(model, LoRAConfig(r=r, lora_dropout=dropout), np.random.default_rng(1))
    return model


def state(model):
    return {name: array.tobytes() for name, array in model.named_params().items()}


def test_training_lowers_the_loss_and_leaves_frozen_weights_alone(batches):
    model = lora_model()
    before = state(model)
    history = train(model, batches, AdamW(3e-2), epochs=30)
    assert len(history) == 30 * 5
    assert [row["epoch"] for row in history[3:7]] == [0, 0, 1, 1]
    assert np.mean([row["loss"] for row in history[-5:]]) < 0.8 * np.mean([row["loss"] for row in history[:5]])
    after = state(model)
    assert {name for name in before if before[name] != after[name]} == set(model.trainable_params())


def test_the_schedule_reaches_the_optimizer(batches):
    history = train(lora_model(), batches, SGD(0.1), epochs=2, lr_schedule="linear", warmup=2)
    expected = [0.05, 0.1, *(0.1 * (1 - i / 8) for i in range(8))]
    np.testing.assert_allclose([row["lr"] for row in history], expected)


@pytest.mark.parametrize("optimizer", [AdamW, lambda lr: SGD(lr, momentum=0.9)])
@pytest.mark.parametrize("stop", [1, 5, 7, 19])
def test_resume_ends_bit_for_bit_where_the_uninterrupted_run_ends(tmp_path, batches, optimizer, stop):
    options = {"epochs": 4, "seed": 3, "checkpoint_every": 1, "max_grad_norm": 1.0}
    whole = lora_model(dropout=0.3)
    expected = train(whole, batches, optimizer(1e-2), checkpoint=tmp_path / "whole", **options)

    class KilledError(Exception):
        pass

    class Dying(Batches):
        def at(self, step):
            if step == stop:
                raise KilledError
            return super().at(step)

    first = lora_model(dropout=0.3)
    with pytest.raises(KilledError):
        dying = Dying(batches.examples, 8, seed=1)
        train(first, dying, optimizer(1e-2), checkpoint=tmp_path / "part", **options)
    second = lora_model(dropout=0.3)
    history = train(second, batches, optimizer(1e-2), checkpoint=tmp_path / "part", resume=True, **options)
    assert state(second) == state(whole) != state(lora_model(dropout=0.3))
    assert history == expected
    assert (tmp_path / "part").read_bytes() == (tmp_path / "whole").read_bytes()


def test_resume_of_a_finished_run_changes_nothing(tmp_path, batches):
    path = tmp_path / "checkpoint"
    model = lora_model()
    expected = train(model, batches, AdamW(1e-2), epochs=2, checkpoint=path)
    again, data = lora_model(), path.read_bytes()
    assert train(again, batches, AdamW(1e-2), epochs=2, checkpoint=path, resume=True) == expected
    assert state(again) == state(model)
    assert path.read_bytes() == data


def test_resume_without_a_checkpoint_starts_from_the_beginning(tmp_path, batches):
    one, two = lora_model(), lora_model()
    train(one, batches, AdamW(1e-2), epochs=1)
    train(two, batches, AdamW(1e-2), epochs=1, checkpoint=tmp_path / "none", resume=True)
    assert state(one) == state(two)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": lora_model(r=1)}, r"fc\d\.lora_[AB].*has shape \(2, .*expected \(1, "),
        ({"model": lora_model(seed=9)}, r"the base weights changed \(sha256 \w{8}\.\.\., \w{8}\.\.\.\)\. Resume with"),
        ({"optimizer": SGD(1e-2)}, "optimizer is 'AdamW', here it is 'SGD'"),
        ({"optimizer": AdamW(1e-3)}, r"its optimizer\.lr is 0\.01, here it is 0\.001"),
        ({"optimizer": AdamW(1e-2, betas=(0.9, 0.99))}, r"betas is \[0\.9, 0\.999\], here it is \[0\.9, 0\.99\]"),
        ({"optimizer": AdamW(1e-2, eps=1e-6)}, r"its optimizer\.eps is 1e-08, here it is 1e-06"),
        ({"optimizer": AdamW(1e-2, weight_decay=0.1)}, r"its optimizer\.weight_decay is 0\.0, here it is 0\.1"),
        ({"seed": 4}, "seed is 3, here it is 4"),
        ({"epochs": 3}, "steps is 10, here it is 15"),
        ({"description": {"task": "other"}}, "task is None, here it is 'other'"),
        ({"rows": 40}, r"the training rows changed: 40 then, 40 now, but others \(sha256 \w{8}\.\.\., "),
        ({"rows": 41}, r"the training rows changed: 40 then, 41 now \(sha256"),
        ({"hooks": [Evaluation(None, every=2)]}, "its eval_every is None, here it is 2"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_and_nothing_is_touched(tmp_path, batches, change, message):
    path, change = tmp_path / "checkpoint", dict(change)
    options = {"epochs": 2, "seed": 3, "checkpoint": path}
    train(lora_model(), batches, AdamW(1e-2), **options)
    data = path.read_bytes()
    if rows := change.pop("rows", 0):
        x, labels = batches.examples.arrays.values()
        batches = Batches({"x": np.resize(x + 1, (rows, D)), "labels": np.resize(labels, rows)}, 8, seed=1)
    model, optimizer = change.pop("model", None) or lora_model(), change.pop("optimizer", None) or AdamW(1e-2)
    before = state(model)
    with pytest.raises(FormatError, match=message):
        train(model, batches, optimizer, resume=True, **options | change)
    assert state(model) == before
    assert optimizer.step_count == 0
    assert path.read_bytes() == data


def test_an_existing_checkpoint_is_not_overwritten(tmp_path, batches):
    path = tmp_path / "checkpoint"
    path.write_text("mine")
    with pytest.raises(InputError, match=r"exists already; pass --resume"):
        train(lora_model(), batches, AdamW(1e-2), epochs=1, checkpoint=path)
    assert path.read_text() == "mine"


def test_a_checkpoint_with_a_consistent_but_wrong_shape_is_refused(tmp_path, batches):
    path = tmp_path / "checkpoint"
    train(lora_model(), batches, AdamW(1e-2), epochs=1, checkpoint=path)
    arrays, meta = files.read_checkpoint(path)
    files.write_checkpoint(path, arrays | {"param:fc1.lora_A": np.zeros((2, 7), "f4")}, meta)
    with pytest.raises(FormatError, match=r"param:fc1\.lora_A has shape \(2, 7\), expected \(2, 6\)"):
        train(lora_model(), batches, AdamW(1e-2), epochs=1, checkpoint=path, resume=True)


# ---- accumulated steps, rates of parameters --------------------------------------------------------------------------


def text_rows(n=48):
    """Words in random order, padded to random lengths; most tokens, and all of one text in three, do not count."""
    rng = np.random.default_rng(3)
    ids, mask = rng.integers(4, 12, (n, 6)), np.arange(6) < rng.integers(1, 7, (n, 1))
    counts = mask & (rng.random((n, 6)) < 0.4) & (np.arange(n) % 3 > 0)[:, None]
    return {"input_ids": ids * mask, "attention_mask": mask.astype(int), "labels": np.where(counts, ids % 3, -100)}


def bert(dropout=0.0):
    model = tiny_bert(np.random.default_rng(0), BertForTokenClassification)
    inject(model, LoRAConfig(r=2, lora_dropout=dropout, modules_to_save=["classifier"]), np.random.default_rng(1))
    return model


def mlp64(dropout=0.0):
    return lora_model(dropout=dropout).to(np, "float64")


EVERY_KIND = pytest.mark.parametrize("make", [mlp64, bert], ids=["mlp", "texts"])


def twelve_rows(make, batches):
    """Batches of 12 rows for a model of this kind."""
    return Batches(text_rows() if make is bert else batches.examples.arrays, 12, seed=1)


@EVERY_KIND
@pytest.mark.parametrize("parts", [2, 3, 5, 12])
@pytest.mark.parametrize("max_grad_norm", [None, 0.1])
def test_accumulated_steps_are_those_of_the_whole_batch(make, batches, parts, max_grad_norm):
    """To rounding; labels that do not count do not in any part, and a part may have none that do."""
    batches = twelve_rows(make, batches)
    options = {"epochs": 3, "max_grad_norm": max_grad_norm}
    whole, other = make(), make()
    expected = train(whole, batches, SGD(0.5), **options)
    got = train(other, batches, SGD(0.5), accumulate=parts, **options)
    for a, b in zip(got, expected, strict=True):
        assert a.keys() == b.keys()
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-12) and a["grad_norm"] == pytest.approx(b["grad_norm"])
    for name, array in whole.trainable_params().items():
        assert_close(other.trainable_params()[name], array, 1e-10)
    assert not np.allclose(whole.trainable_params()["classifier.bias" if make is bert else "fc2.lora_B"], 0)


def test_a_part_without_labels_that_count_is_passed_over(monkeypatch):
    rows, seen = text_rows(), []
    order = np.argsort((rows["labels"] >= 0).any(axis=1), kind="stable")  # a third of them have none
    batches = Batches({name: array[order] for name, array in rows.items()}, 48)
    monkeypatch.setattr(batches, "_shuffled", lambda rng: np.arange(48)[None])
    real = BertForTokenClassification.loss_and_grad
    monkeypatch.setattr(BertForTokenClassification, "loss_and_grad", lambda *a: seen.append(a[1]) or real(*a))
    model, whole = bert(), bert()
    history = train(model, batches, SGD(0.5), epochs=1, accumulate=12)
    assert 0 < len(seen) <= 8 and all((batch["labels"] >= 0).any() for batch in seen)
    loss, _ = real(whole, batches.at(0))
    assert history[0]["loss"] == pytest.approx(loss, rel=1e-12)


@pytest.mark.parametrize(
    ("parts", "message"),
    [(1, "one at least must count; the largest of 72 is -1"), (3, "no label of the batch counts: all are below 0")],
)
def test_a_batch_in_which_no_label_counts_is_refused(parts, message):
    rows = text_rows() | {"labels": np.full((48, 6), -100)}
    with pytest.raises(InputError, match=message):
        train(bert(), Batches(rows, 12), SGD(0.5), epochs=1, accumulate=parts)


@EVERY_KIND
def test_an_accumulated_step_sees_a_part_of_the_rows_at_a_time(make, batches, monkeypatch):
    batches, seen = twelve_rows(make, batches), []
    model = make()
    real = type(model).loss_and_grad
    monkeypatch.setattr(type(model), "loss_and_grad", lambda *a: seen.append(a[1]) or real(*a))
    train(model, batches, SGD(0.5), epochs=1, accumulate=5)
    rows = [len(batch["labels"]) for batch in seen]
    assert set(rows) <= {2, 3} and (make is bert or rows == [2, 2, 3, 2, 3] * len(batches))
    if make is mlp64:
        first = {name: np.concatenate([batch[name] for batch in seen[:5]]) for name in seen[0]}
        assert all(np.array_equal(first[name], array) for name, array in batches.at(0).items())


@EVERY_KIND
def test_every_part_draws_a_dropout_of_its_own(make, batches):
    batches = twelve_rows(make, batches)
    losses = [
        train(make(dropout=0.4), batches, SGD(0.5), epochs=1, seed=seed, accumulate=parts)[-1]["loss"]
        for seed, parts in ((0, 1), (0, 3), (0, 3), (1, 3))
    ]
    assert losses[1] == losses[2] and len(set(losses)) == 3


@EVERY_KIND
def test_accumulated_runs_resume_bit_for_bit_and_not_with_another_number(tmp_path, make, batches):
    batches = twelve_rows(make, batches)
    options = {"epochs": 2, "seed": 3, "checkpoint_every": 2, "read_every": 2}

    class Dying(Batches):
        def at(self, step):
            if step == 3:
                raise KeyboardInterrupt
            return super().at(step)

    whole, second = make(dropout=0.3), make(dropout=0.3)
    expected = train(whole, batches, AdamW(1e-2), accumulate=3, checkpoint=tmp_path / "whole", **options)
    options["checkpoint"] = tmp_path / "part"
    with pytest.raises(KeyboardInterrupt):
        train(make(dropout=0.3), Dying(batches.examples, 12, 1), AdamW(1e-2), accumulate=3, **options)
    for other, here in (({"accumulate": 2}, "2"), ({}, "None")):
        with pytest.raises(FormatError, match=f"its accumulate is 3, here it is {here}"):
            train(make(dropout=0.3), batches, AdamW(1e-2), resume=True, **options, **other)
    assert train(second, batches, AdamW(1e-2), accumulate=3, resume=True, **options) == expected
    assert state(second) == state(whole)
    assert (tmp_path / "part").read_bytes() == (tmp_path / "whole").read_bytes()


@pytest.mark.parametrize("parts", [0, -1, 9, 2.0, True, "2", None])
def test_parts_are_a_number_of_rows(batches, parts):
    with pytest.raises(InputError, match="accumulate must be an integer from 1 to the rows of a batch"):
        train(lora_model(), batches, AdamW(1e-2), epochs=1, accumulate=parts)


def test_rates_are_two_optimizers_by_hand(batches):
    """LoRA+: with another rate for all lora_B, a run is that of two optimizers that share the schedule."""
    model, other = lora_model(), lora_model()
    history = train(model, batches, AdamW(1e-2, weight_decay=0.1, rates={"lora_B": 16}), epochs=2)
    params, optimizers = other.trainable_params(), (AdamW(1e-2, weight_decay=0.1), AdamW(0.16, weight_decay=0.1))
    with team(1) as workers:
        for step, row in enumerate(history):
            loss, grads = workers.loss_and_grad(other, batches.at(step))
            assert float(loss) == row["loss"]
            for optimizer, end in zip(optimizers, ("lora_A", "lora_B"), strict=True):
                own = {name: params[name] for name in params if name.endswith(end)}
                optimizer.step(own, {name: grads[name] for name in own}, schedule("cosine", 10)(step))
    assert state(model) == state(other) != state(lora_model())


def test_rates_resume_bit_for_bit_and_not_with_others(tmp_path, batches):
    options = {"epochs": 2, "checkpoint": tmp_path / "checkpoint"}
    model, again = lora_model(), lora_model()
    expected = train(model, batches, AdamW(1e-2, rates={"lora_B": 16}), **options)
    assert train(again, batches, AdamW(1e-2, rates={"lora_B": 16.0}), resume=True, **options) == expected
    assert state(again) == state(model)
    for rates, message in (
        ({"lora_B": 8}, r"its optimizer\.rates\.lora_B is 16\.0, here it is 8\.0"),
        ({"lora_A": 16}, r"its optimizer\.rates\.lora_A is None, here it is 16\.0"),
        (None, r"its optimizer\.rates\.lora_B is 16\.0, here it is None"),
    ):
        with pytest.raises(FormatError, match=message):
            train(lora_model(), batches, AdamW(1e-2, rates=rates), resume=True, **options)


def test_a_rate_that_fits_nothing_is_refused_before_the_first_step(tmp_path, batches, monkeypatch):
    monkeypatch.setattr(Steps, "take", lambda *_: pytest.fail("the training has begun"))
    path = tmp_path / "new" / "checkpoint"
    with pytest.raises(InputError, match="rates: no parameter that trains ends in lora_C; they are fc1.lora_A, fc1.lo"):
        train(lora_model(), batches, AdamW(1e-2, rates={"lora_C": 16}), epochs=1, checkpoint=path)
    assert not path.parent.exists()


# ---- what is not finite ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fc1.base_layer.weight", "fc2.base_layer.bias", "fc1.lora_A", "fc2.lora_B"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_not_finite_stops_the_step_and_names_the_layer(batches, name, value):
    model, optimizer = lora_model(), AdamW(1e-2)
    train(model, batches, optimizer, epochs=1)
    model.named_params()[name][...] = value
    before, moments = state(model), copy.deepcopy(optimizer.state)
    with pytest.raises(NonFiniteError, match=rf"step 0: .*layer {name.partition('.')[0]}\b.*as before"):
        train(model, batches, optimizer, epochs=1)
    assert state(model) == before
    assert optimizer.step_count == 5
    for slot, arrays in moments.items():
        for key, array in arrays.items():
            np.testing.assert_array_equal(optimizer.state[slot][key], array)


def test_a_gradient_that_overflows_is_named(batches, monkeypatch):
    model, real = lora_model(), MLP.loss_and_grad

    def exploding(self, *batch):
        loss, grads = real(self, *batch)
        grads["fc2.lora_B"] = grads["fc2.lora_B"] + np.float32(1e30)
        return loss, grads

    monkeypatch.setattr(MLP, "loss_and_grad", exploding)
    before = state(model)
    with pytest.raises(NonFiniteError, match=r"gradient of fc2\.lora_B is not finite.*as before"):
        train(model, batches, AdamW(1e-2), epochs=1)
    assert state(model) == before


def test_a_rate_far_too_large_ends_in_a_clear_error(batches):
    with np.errstate(all="ignore"), pytest.raises(NonFiniteError, match="A lower learning rate"):
        train(lora_model(), batches, SGD(1e30), epochs=3, lr_schedule="constant")


def test_layers_are_as_before_after_the_diagnosis(batches):
    model = lora_model()
    before = held(model)
    model.named_params()["fc1.base_layer.weight"][...] = np.nan
    with pytest.raises(NonFiniteError):
        train(model, batches, AdamW(1e-2), epochs=1)
    assert held(model) == before


def test_resume_with_another_momentum_is_refused(tmp_path, batches):
    options = {"epochs": 1, "checkpoint": tmp_path / "checkpoint"}
    train(lora_model(), batches, SGD(1e-2, momentum=0.9), **options)
    with pytest.raises(FormatError, match=r"its optimizer\.momentum is 0\.9, here it is 0\.8"):
        train(lora_model(), batches, SGD(1e-2, momentum=0.8), resume=True, **options)


class Plain(Optimizer):
    """Of a reader: as plain as it can be, with an option of its own."""

    def __init__(self, lr, stretch=1.0):
        super().__init__(lr)
        self.stretch = stretch

    def update(self, lr, p, g):
        p -= lr * self.stretch * g


def test_an_optimizer_of_the_reader_trains_and_resumes(tmp_path, batches):
    options = {"epochs": 2, "lr_schedule": "constant"}
    own, library, path = lora_model(), lora_model(), tmp_path / "checkpoint"
    train(own, batches, Plain(0.1), checkpoint=path, **options)
    train(library, batches, SGD(0.1), **options)
    assert state(own) == state(library) != state(lora_model())
    again = lora_model()
    train(again, batches, Plain(0.1), checkpoint=path, resume=True, **options)
    assert state(again) == state(own)
    with pytest.raises(FormatError, match=r"its optimizer\.stretch is 1\.0, here it is 2\.0"):
        train(lora_model(), batches, Plain(0.1, stretch=2.0), checkpoint=path, resume=True, **options)


def test_what_a_checkpoint_cannot_describe_is_refused(tmp_path, batches):
    for odd in (Plain(0.1, np.ones(2)), Plain(0.1, math.nan)):
        with pytest.raises(InputError, match="expected numbers, texts, and lists of them"):
            train(lora_model(), batches, odd, epochs=1, checkpoint=tmp_path / "checkpoint")
    assert not (tmp_path / "checkpoint").exists()


@pytest.mark.parametrize("kind", [np.int64, np.int8, np.array])
def test_integers_of_numpy_are_integers(tmp_path, batches, kind):
    one, two = lora_model(dropout=0.3), lora_model(dropout=0.3)
    integers = {"epochs": 2, "warmup": 3, "seed": 5, "checkpoint_every": 4, "read_every": 2}
    expected = train(one, batches, AdamW(1e-2), checkpoint=tmp_path / "one", **integers)
    integers = {name: kind(value) for name, value in integers.items()}
    batches, integers["workers"] = Batches(batches.examples, kind(8), seed=1), kind(1)
    assert train(two, batches, AdamW(np.float64(1e-2)), checkpoint=tmp_path / "two", **integers) == expected
    assert state(one) == state(two)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_checkpoint_in_a_folder_that_does_not_exist(tmp_path, batches, monkeypatch):
    path = tmp_path / "new" / "folder" / "checkpoint"
    train(lora_model(), batches, AdamW(1e-2), epochs=1, checkpoint=path)
    assert path.exists()
    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr(Steps, "take", lambda *_: pytest.fail("the training has begun"))
    with pytest.raises(InputError, match="cannot write to the output folder"):
        train(lora_model(), batches, AdamW(1e-2), epochs=1, checkpoint=tmp_path / "file" / "checkpoint")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs must be an integer of at least 1; got 0"),
        ({"epochs": 1.5}, r"epochs must be an integer of at least 1; got 1\.5"),
        ({"epochs": 2.0}, r"epochs must be an integer of at least 1; got 2\.0"),
        ({"epochs": True}, "epochs must be an integer of at least 1; got True"),
        ({"epochs": "2"}, "epochs must be an integer of at least 1; got '2'"),
        ({"epochs": 1, "checkpoint_every": 0}, "checkpoint_every must be an integer of at least 1; got 0"),
        ({"epochs": 1, "checkpoint_every": 2.5}, r"checkpoint_every must be an integer of at least 1; got 2\.5"),
        ({"epochs": 1, "seed": -1}, "seed must be an integer of at least 0; got -1"),
        ({"epochs": 1, "seed": 0.5}, r"seed must be an integer of at least 0; got 0\.5"),
        ({"epochs": 1, "max_grad_norm": math.inf}, "max_grad_norm must be a finite number > 0; got inf"),
        ({"epochs": 1, "max_grad_norm": "1"}, "max_grad_norm must be a finite number > 0; got '1'"),
        ({"epochs": 1, "warmup": True}, "warmup must be an integer from 0 to the 5 steps"),
        ({"epochs": 1, "warmup": 6}, "5 steps"),
        ({"epochs": 1, "lr_schedule": "step"}, "unknown schedule"),
    ],
)
def test_options_are_checked_before_work(batches, options, message):
    with pytest.raises(InputError, match=message):
        train(lora_model(), batches, AdamW(1e-2), **options)


@pytest.mark.parametrize("optimizer", [None, "adamw", AdamW])
def test_what_is_no_optimizer(batches, optimizer):
    with pytest.raises(InputError, match="optimizer must be a lorabook.training.optim.Optimizer"):
        train(lora_model(), batches, optimizer, epochs=1)


def test_nothing_to_train_is_an_error(batches):
    model = lora_model()
    model.freeze()
    with pytest.raises(InputError, match="nothing to train"):
        train(model, batches, AdamW(1e-2), epochs=1)


def test_a_merged_model_is_refused_before_the_first_step(tmp_path, batches, monkeypatch):
    model, optimizer, steps = lora_model(), AdamW(1e-2), []
    merge(model)
    monkeypatch.setattr(model, "loss_and_grad", lambda *batch: steps.append(batch))
    with pytest.raises(InputError, match=r"fc1 is merged; call unmerge\(\) before training, or unload\(\)"):
        train(model, batches, optimizer, epochs=1, checkpoint=tmp_path / "checkpoint")
    assert not steps
    assert not (tmp_path / "checkpoint").exists()
    assert optimizer.step_count == 0


def test_every_backend_trains_to_the_same_weights(xp, batches):
    host, other = lora_model(), lora_model().to(xp)
    expected = train(host, batches, AdamW(1e-2), epochs=2)
    got = train(other, batches, AdamW(1e-2), epochs=2)
    for a, b in zip(got, expected, strict=True):
        assert math.isclose(a["loss"], b["loss"], rel_tol=1e-5)


# ---- reading every few steps -----------------------------------------------------------------------------------------


@pytest.fixture
def placed(xp, put):
    """The model with its parameters on the second device, where the library has one."""
    return lambda **options: move(lora_model(**options), put)


@pytest.mark.parametrize("optimizer", [AdamW, lambda lr: SGD(lr, momentum=0.9, weight_decay=0.1)])
@pytest.mark.parametrize("max_grad_norm", [None, 0.3, 1e3])
@pytest.mark.parametrize("read_every", [3, 10, 100])
def test_reading_seldom_changes_no_bit(placed, batches, optimizer, max_grad_norm, read_every):
    options = {"epochs": 2, "max_grad_norm": max_grad_norm}
    one, other, optimizers = placed(dropout=0.3), placed(dropout=0.3), (optimizer(1e-2), optimizer(1e-2))
    expected = train(one, batches, optimizers[0], read_every=1, **options)
    got = train(other, batches, optimizers[1], read_every=read_every, **options)
    assert got == expected
    assert all(type(value) is float for row in got for value in (row["loss"], row["lr"], row["grad_norm"]))
    assert_same(other.named_params(), one.named_params())
    assert_same_state(optimizers[1], optimizers[0])
    if max_grad_norm == 0.3:
        assert min(row["grad_norm"] for row in got) > 0.3, "nothing was clipped"


def steps_of(model, batches, optimizer, workers, max_grad_norm=None, **options):
    """The steps of a run without hooks, one by one."""
    loop = Loop(model, optimizer, workers, model.trainable_params(), 20, len(batches))
    return Steps(loop, Hooks([], 20), batches, 0, max_grad_norm, **options)


def assert_same(got, want):
    assert [name for name in want if not same_bits(got[name], want[name])] == []


def assert_same_state(got, want):
    assert got.step_count == want.step_count
    for slot in want.slots:
        assert_same(got.state[slot], want.state[slot])


BAD = 7  # the step that gives NaN, in the middle of a window of three


@pytest.mark.parametrize("where", ["input", "gradient", "large gradient"])
@pytest.mark.parametrize("read_every", [1, 3, 5, 10])
def test_what_is_not_finite_is_found_in_its_step(placed, batches, monkeypatch, where, read_every):
    class Bad(Batches):
        def at(self, step):
            batch = super().at(step)
            bad.append(step >= BAD)  # and in all steps after it
            return batch | {"x": batch["x"] + np.float32(np.nan if bad[-1] and where == "input" else 0)}

    def exploding(self, *batch):
        loss, grads = real(self, *batch)
        if bad[-1] and where != "input":
            grads["fc2.lora_B"] = grads["fc2.lora_B"] + (math.nan if where == "gradient" else 1e30)
        return loss, grads

    bad, real = [], MLP.loss_and_grad
    monkeypatch.setattr(MLP, "loss_and_grad", exploding)
    message = "loss is nan, .*layer fc1" if where == "input" else r"gradient of fc2\.lora_B is not finite"
    model, optimizer = placed(dropout=0.3), AdamW(1e-2)
    spoilt = Bad(batches.examples, 8, seed=1)
    with pytest.raises(NonFiniteError, match=rf"^step {BAD}: the {message}.*as before this step"):
        train(model, spoilt, optimizer, epochs=4, lr_schedule="constant", read_every=read_every)
    monkeypatch.undo()
    whole, expected = placed(dropout=0.3), AdamW(1e-2)
    with team() as workers:
        steps = steps_of(whole, batches, expected, workers, read_every=1)
        for step in range(BAD):
            steps.take(step, 1.0)
    assert_same(model.named_params(), whole.named_params())
    assert_same_state(optimizer, expected)


def test_a_number_that_a_second_look_does_not_find_is_reported_too(batches, monkeypatch):
    calls, real = [], MLP.loss_and_grad

    def once(self, *batch):
        loss, grads = real(self, *batch)
        calls.append(None)
        return (loss * math.nan if len(calls) == 5 else loss), grads

    monkeypatch.setattr(MLP, "loss_and_grad", once)
    model, optimizer = lora_model(), AdamW(1e-2)
    with pytest.raises(NonFiniteError, match=r"^step 4: the loss is nan, .*as before"):
        train(model, batches, optimizer, epochs=4, read_every=3)
    assert optimizer.step_count == 4


@pytest.mark.parametrize("read_every", [2, 3, 100])
def test_a_checkpoint_reads_first_and_resumes_bit_for_bit(tmp_path, batches, read_every):
    options = {"epochs": 4, "checkpoint_every": 4, "max_grad_norm": 1.0, "read_every": read_every}
    whole = lora_model()
    expected = train(whole, batches, AdamW(1e-2), checkpoint=tmp_path / "whole", **options | {"read_every": 1})

    class Dying(Batches):
        def at(self, step):
            if step == 14:
                raise KeyboardInterrupt
            return super().at(step)

    with pytest.raises(KeyboardInterrupt):
        train(lora_model(), Dying(batches.examples, 8, seed=1), AdamW(1e-2), checkpoint=tmp_path / "part", **options)
    arrays, _ = files.read_checkpoint(tmp_path / "part")
    assert arrays["history"].tolist() == [[row["loss"], row["lr"], row["grad_norm"]] for row in expected[:12]]
    second = lora_model()
    assert train(second, batches, AdamW(1e-2), checkpoint=tmp_path / "part", resume=True, **options) == expected
    assert state(second) == state(whole)
    assert (tmp_path / "part").read_bytes() == (tmp_path / "whole").read_bytes()


def test_numpy_reads_every_step_and_a_device_seldom(batches):
    def steps(xp, **options):
        return steps_of(lora_model().to(xp), batches, AdamW(1e-2), None, **options)

    assert steps(np).read_every == 1
    assert steps(backend.get_xp("array_api_strict")).read_every == 10
    assert steps(np, read_every=4).read_every == 4
    for wrong in (0, -1, 2.0, True):
        with pytest.raises(InputError, match=rf"read_every must be an integer of at least 1; got {wrong}"):
            steps(np, read_every=wrong)


def test_no_value_is_asked_for_between_two_readings(batches, monkeypatch):
    """On the device of array-api-strict: whoever asks for a number, asks by one of these."""
    xp, asked = backend.get_xp("array_api_strict"), []
    Array = type(xp.ones(1))
    for name in ("__bool__", "__float__", "__int__", "__index__", "__array__"):
        if real := getattr(Array, name, None):
            monkeypatch.setattr(
                Array, name, lambda self, *a, real=real, **k: asked.append(place()) or real(self, *a, **k)
            )

    model, log, optimizer = lora_model().to(xp), [], AdamW(1e-2, weight_decay=0.1)
    with team(1) as workers:
        steps = steps_of(model, batches, optimizer, workers, max_grad_norm=0.3, read_every=4)
        for step in range(8):
            asked.clear()
            steps.take(step, 1.0)
            log.append(len(asked))
            if steps.unread == 4:
                asked.clear()
                assert len(steps.read()) == 4
                log.append(("read", len(asked)))
    assert log == [0, 0, 0, 0, ("read", 1), 0, 0, 0, 0, ("read", 1)]


def place():
    return "".join(traceback.format_stack(limit=8)[:-1])
