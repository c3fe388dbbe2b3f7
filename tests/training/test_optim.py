import copy
import math
import pickle

import numpy as np
import pytest
from checks import assert_close, assert_lives_on, same_bits

from lorabook import InputError
from lorabook.backend import to_numpy
from lorabook.training import OPTIMIZERS, SGD, AdamW, Optimizer, clip_grad_norm, grad_norm, schedule, squared_norm

DTYPES = pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float64", 1e-14)])
STEPS = 10


def drawn(rng, dtype):
    """Parameters, and for each step gradients, rounded to `dtype` and held in float64."""
    shapes = {"a": (2, 3), "b": (4,)}

    def draw():
        return {n: rng.standard_normal(shape).astype(dtype).astype(float) for n, shape in shapes.items()}

    return draw(), [draw() for _ in range(STEPS)]


def sgd(p, grads, lr, momentum=0.0, weight_decay=0.0):
    """One entry: p after all steps, and its velocity."""
    v = 0.0
    for g, factor in grads:
        v = momentum * v + g + weight_decay * p
        p = p - lr * factor * v
    return p, v


def adamw(p, grads, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
    """One entry: p after all steps, and its two moments."""
    m = v = 0.0
    for t, (g, factor) in enumerate(grads, start=1):
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        m_hat, v_hat = m / (1 - betas[0] ** t), v / (1 - betas[1] ** t)
        p = p - lr * factor * weight_decay * p - lr * factor * m_hat / (math.sqrt(v_hat) + eps)
    return p, m, v


@DTYPES
@pytest.mark.parametrize(
    ("optimizer", "recurrence", "options"),
    [
        (SGD, sgd, {"lr": 0.1}),
        (SGD, sgd, {"lr": 0.1, "momentum": 0.8}),
        (SGD, sgd, {"lr": 0.1, "momentum": 0.8, "weight_decay": 0.3}),
        (AdamW, adamw, {"lr": 0.1}),
        (AdamW, adamw, {"lr": 0.1, "weight_decay": 0.3}),
        (AdamW, adamw, {"lr": 0.1, "betas": (0.5, 0.7), "eps": 0.2, "weight_decay": 0.3}),
        (AdamW, adamw, {"lr": 0.1, "betas": (0.0, 0.0)}),
    ],
    ids=["sgd", "momentum", "sgd decay", "adamw", "adamw decay", "adamw other betas and eps", "adamw no memory"],
)
def test_ten_steps(put, rng, dtype, tolerance, optimizer, recurrence, options):
    start, grads = drawn(rng, dtype)
    factors = [1.0, 0.5, 0.25, 2.0, 1.0, 1.0, 0.0, 1.0, 0.1, 1.0]
    params = {n: put(a, dtype) for n, a in start.items()}
    held, taking = dict(params), optimizer(**options)
    for step, factor in zip(grads, factors, strict=True):
        given = {n: put(g, dtype) for n, g in step.items()}
        assert taking.step(params, given, factor) is None
        assert all(same_bits(given[n], step[n].astype(dtype)) for n in step)
    assert taking.step_count == STEPS
    for name, param in params.items():
        assert param is held[name]
        assert_lives_on(put([0], dtype), param, *(taking.state[slot][name] for slot in taking.slots))
        results = [param, *(taking.state[slot][name] for slot in taking.slots)]
        wanted = np.empty((len(results), *start[name].shape))
        for i in np.ndindex(*start[name].shape):
            history = [(g[name][i], factor) for g, factor in zip(grads, factors, strict=True)]
            wanted[(slice(None), *i)] = recurrence(start[name][i], history, **options)
        for result, want in zip(results, wanted, strict=True):
            assert_close(result, want, tolerance)


def test_first_step_of_adamw_is_lr_whatever_the_gradient(put):
    params = {"p": put([0.0, 0.0, 0.0])}
    AdamW(lr=0.01).step(params, {"p": put([1e-3, -5.0, 200.0])})
    assert_close(params["p"], np.array([-0.01, 0.01, -0.01]), 2e-5)


def test_decay_without_gradient(put):
    for optimizer, kept in ((AdamW(lr=0.1, weight_decay=0.2), 0.98), (SGD(lr=0.1, weight_decay=0.2), 0.98)):
        params = {"p": put([1.0, -2.0])}
        optimizer.step(params, {"p": put([0.0, 0.0])})
        assert_close(params["p"], [kept, -2 * kept], 1e-15)


def test_zero_rate_changes_no_bit(put, rng):
    for optimizer in (SGD(lr=0.0, momentum=0.9), AdamW(lr=0.0, weight_decay=0.1), AdamW(lr=0.1)):
        host = rng.standard_normal(5)
        params = {"p": put(host)}
        optimizer.step(params, {"p": put(np.ones(5))}, 0.0 if optimizer.lr else 1.0)
        assert same_bits(params["p"], host)


def test_optimizers_by_name():
    assert {name: OPTIMIZERS[name] for name in ("sgd", "adamw")} == {"sgd": SGD, "adamw": AdamW}
    kinds = {name: optimizer(0.1).slots for name, optimizer in OPTIMIZERS.items()}
    assert {name: slots for name, slots in kinds.items() if name.endswith("sgd")} == {
        name: ("velocity",) for name in ("sgd", "lora-fa-sgd", "riemannian-sgd", "lora-pro-sgd")
    }
    assert {kinds[name] for name in ("adamw", "lora-plus", "lora-fa", "riemannian", "lora-pro")} == {("m", "v")}


@pytest.mark.parametrize(("optimizer", "options"), [(SGD, {"momentum": 0.5}), (AdamW, {})])
def test_finds_the_minimum(put, optimizer, options):
    target, optimizer = np.array([3.0, -1.0]), optimizer(lr=0.3, **options)
    params = {"p": put([0.0, 0.0])}
    for step in range(200):
        grad = params["p"] - put(target)
        optimizer.step(params, {"p": grad}, 1 - step / 200)
    assert_close(params["p"], target, 1e-3)


# ---- all parameters end to end ---------------------------------------------------------------------------------------

SHAPES = {"c": (2, 3), "a": (4,), "b": (1, 5), "scalar": (), "d": (7, 2)}
KINDS = {"sgd": lambda: SGD(0.1, momentum=0.8, weight_decay=0.3), "adamw": lambda: AdamW(0.1, weight_decay=0.3)}


def draw(put, rng, names=SHAPES, dtype="float32"):
    return {name: put(rng.standard_normal(SHAPES[name]), dtype) for name in names}


def run_together(optimizer, params, grads):
    for step in grads:
        optimizer.step(params, {name: step[name] for name in params})


def run_apart(make, params, grads):
    """Each parameter by an optimizer of its own; {slot: {name: array}}."""
    state = {}
    for name, param in params.items():
        optimizer = make()
        run_together(optimizer, {name: param}, grads)
        for slot, arrays in optimizer.state.items():
            state.setdefault(slot, {}).update(arrays)
    return state


def copied(put, arrays):
    return {name: put(to_numpy(array)) for name, array in arrays.items()}


def assert_same(got, want):
    assert got.keys() == want.keys()
    assert [name for name in want if not same_bits(got[name], want[name])] == []


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("most", [1, 7, 12, 10**6])
def test_together_they_have_the_bits_of_each_alone(put, rng, monkeypatch, make, most):
    monkeypatch.setattr("lorabook.training.optim.BLOCK", most)
    monkeypatch.setattr("lorabook.training.optim.MOST", most)
    together, grads = draw(put, rng), [draw(put, rng) for _ in range(4)]
    apart, optimizer = copied(put, together), make()
    run_together(optimizer, together, grads)
    state = run_apart(make, apart, grads)
    assert_same(together, apart)
    for slot in optimizer.slots:
        assert_same(optimizer.state[slot], state[slot])


def test_two_dtypes(rng):
    params = {"a": rng.standard_normal(3).astype("f4"), "b": rng.standard_normal(3), "c": np.ones(2, "f4")}
    grads, apart, optimizer = copy.deepcopy(params), copy.deepcopy(params), AdamW(0.1)
    run_together(optimizer, params, [grads] * 3)
    run_apart(lambda: AdamW(0.1), apart, [grads] * 3)
    assert_same(params, apart)


def test_arrays_in_any_layout(rng):
    params = {"F": np.asfortranarray(rng.standard_normal((3, 4))), "strided": rng.standard_normal((3, 8))[:, ::2]}
    plain = {name: np.ascontiguousarray(param) for name, param in params.items()}
    grads = {"F": rng.standard_normal((4, 3)).T, "strided": rng.standard_normal((4, 3)).T}
    run_together(AdamW(0.1), params, [grads] * 3)
    run_apart(lambda: AdamW(0.1), plain, [grads] * 3)
    assert_same(params, plain)


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_what_is_written_into_the_state_counts(put, rng, make):
    params, grads = draw(put, rng), [draw(put, rng) for _ in range(4)]
    optimizer = make()
    run_together(optimizer, params, grads[:2])
    for how in ("in place", "replaced"):
        second, restored = copied(put, params), make()
        restored.prepare(second)
        run_together(restored, copied(put, params), grads)  # its vectors exist already, and hold something else
        restored.step_count = optimizer.step_count
        for slot, arrays in optimizer.state.items():
            for name, array in arrays.items():
                if how == "in place":
                    restored.state[slot][name][...] = put(to_numpy(array))
                else:
                    restored.state[slot][name] = put(to_numpy(array))
        first = copied(put, params)
        whole = make()
        whole.step_count, whole.state = optimizer.step_count, {s: copied(put, a) for s, a in optimizer.state.items()}
        run_together(restored, second, grads[2:])
        run_together(whole, first, grads[2:])
        assert_same(second, first)
        for slot in whole.slots:
            assert_same(restored.state[slot], whole.state[slot])


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_parameters_come_and_go(put, rng, make):
    params, grads = draw(put, rng), [draw(put, rng) for _ in range(6)]
    apart, optimizer, alone = copied(put, params), make(), {name: make() for name in params}
    for i, names in enumerate(["ab", "abc", "abcd", "bd", "cab", "a"]):
        optimizer.step({n: params[n] for n in names}, {n: grads[i][n] for n in names})
        for n in names:
            alone[n].step_count = i  # bias corrections count the steps of the optimizer
            alone[n].step({n: apart[n]}, {n: grads[i][n]})
    assert_same(params, apart)
    for slot in optimizer.slots:
        assert_same(optimizer.state[slot], {n: alone[n].state[slot][n] for n in "abcd"})


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_a_copy_goes_its_own_way(rng, duplicate):
    params, grads = draw(np.array, rng), [draw(np.array, rng) for _ in range(4)]
    optimizer = AdamW(0.1)
    run_together(optimizer, params, grads[:2])
    again, second = duplicate(optimizer), copied(np.array, params)
    again.state = {slot: copied(np.array, arrays) for slot, arrays in again.state.items()}
    run_together(optimizer, params, grads[2:])
    run_together(again, second, grads[2:])
    assert_same(second, params)
    for slot in again.slots:
        assert_same(again.state[slot], optimizer.state[slot])


def test_a_deep_copy_keeps_its_state_in_step(rng):
    params, grads = draw(np.array, rng), draw(np.array, rng)
    optimizer = AdamW(0.1)
    optimizer.step(params, grads)
    again = copy.deepcopy(optimizer)
    optimizer.step(params, grads)
    again.step(copied(np.array, params), grads)
    assert_same(again.state["m"], optimizer.state["m"])


def test_state_of_another_shape_or_dtype_is_refused():
    optimizer = AdamW(0.1)
    optimizer.step({"a": np.ones(6)}, {"a": np.ones(6)})
    with pytest.raises(InputError, match=r"m of a has shape \(6,\), the parameter \(2, 3\)"):
        optimizer.step({"a": np.ones((2, 3))}, {"a": np.ones((2, 3))})
    with pytest.raises(InputError, match="gradient of a has dtype float64, expected float32"):
        optimizer.step({"a": np.ones(6, "f4")}, {"a": np.ones(6)})
    assert optimizer.step_count == 1


# ---- an optimizer of the reader --------------------------------------------------------------------------------------


class Plain(Optimizer):
    """No slots, no options."""

    def update(self, lr, p, g):
        p -= lr * g


class Averaging(Optimizer):
    """Moves in every second step, by the mean of two gradients; counts its calls in a list."""

    slots = ("sum",)

    def __init__(self, lr):
        super().__init__(lr)
        self.calls = []

    def update(self, lr, p, g, total):
        self.calls.append(len(p))
        total += g
        if self.step_count % 2 == 0:
            p -= lr * total / 2
            total[...] = 0


def test_an_optimizer_without_slots_moves_what_it_is_given(put, rng):
    params, grads = draw(put, rng), [draw(put, rng) for _ in range(4)]
    apart = copied(put, params)
    run_together(Plain(0.1), params, grads)
    run_apart(lambda: SGD(0.1), apart, grads)
    assert_same(params, apart)


def test_without_slots_parameters_come_and_go(put, rng):
    params, grads = draw(put, rng), [draw(put, rng) for _ in range(6)]
    apart, optimizer = copied(put, params), Plain(0.1)
    for i, names in enumerate(["ab", "abc", "abcd", "bd", "cab", "a"]):
        optimizer.step({n: params[n] for n in names}, {n: grads[i][n] for n in names})
        for n in names:
            SGD(0.1).step({n: apart[n]}, {n: grads[i][n]})
    assert_same(params, apart)


def test_an_optimizer_may_wait(rng):
    params, grads = {"a": np.ones(3)}, [{"a": rng.standard_normal(3)} for _ in range(4)]
    optimizer = Averaging(0.1)
    optimizer.step(params, grads[0])
    assert params["a"].tolist() == [1, 1, 1]
    run_together(optimizer, params, grads[1:])
    assert optimizer.calls == [3, 3, 3, 3], "the trial has left something behind"
    assert_close(params["a"], 1 - 0.05 * sum(step["a"] for step in grads))


def test_an_update_that_changes_nothing_is_refused():
    class Renaming(Optimizer):
        def update(self, lr, p, g):
            p = p - lr * g

    class Returning(SGD):
        def update(self, lr, p, g, v):
            return p - lr * g

    for wrong in (Renaming(0.1), Returning(0.1)):
        params = {"a": np.ones(3)}
        with pytest.raises(
            InputError, match=rf"{type(wrong).__name__}\.update changes no number; write into p in place"
        ):
            wrong.step(params, {"a": np.ones(3)})
        assert wrong.step_count == 0


def test_options_are_all_that_was_set():
    assert SGD(0.1, momentum=0.5).options == {"lr": 0.1, "weight_decay": 0.0, "momentum": 0.5}
    adamw = AdamW(1, betas=[0.5, np.float32(0.25)], eps=0)
    adamw.step({"a": np.ones(2)}, {"a": np.ones(2)})
    assert adamw.options == {"lr": 1.0, "weight_decay": 0.0, "betas": (0.5, 0.25), "eps": 0.0}
    assert {type(beta) for beta in adamw.options["betas"]} == {float}
    assert Averaging(0.1).options == {"lr": 0.1, "weight_decay": 0.0, "calls": []}


@pytest.mark.parametrize("number", [np.float64(0.1), np.float32(0.1), np.array(0.1)], ids=repr)
def test_rates_of_numpy_do_not_change_the_dtype_of_the_arithmetic(rng, number):
    start, grad = rng.standard_normal(50).astype("f4"), rng.standard_normal(50).astype("f4")
    got, want = {"a": start.copy()}, {"a": start.copy()}
    SGD(number, momentum=number, weight_decay=number).step(got, {"a": grad})
    SGD(float(number), momentum=float(number), weight_decay=float(number)).step(want, {"a": grad})
    assert_same(got, want)
    one, other = {"a": grad.copy()}, {"a": grad.copy()}
    assert clip_grad_norm(one, number) == clip_grad_norm(other, float(number))
    assert_same(one, other)


# ---- rates of parameters ---------------------------------------------------------------------------------------------

NAMES = ("fc1.lora_A", "fc1.lora_B", "fc2.lora_A", "fc2.lora_B", "fc2.my_lora_B", "lora_B")
WITH_RATES = {
    "sgd": lambda **more: SGD(0.1, momentum=0.8, weight_decay=0.3, **more),
    "adamw": lambda **more: AdamW(0.1, weight_decay=0.3, **more),
}


def named(put, rng, dtype="float32"):
    return {name: put(rng.standard_normal((2, 3)), dtype) for name in NAMES}


@pytest.mark.parametrize("make", WITH_RATES.values(), ids=WITH_RATES)
def test_a_rate_is_an_optimizer_of_its_own(put, rng, make):
    """LoRA+ (Hayou, Ghosh and Yu 2024, arXiv:2402.12354): lora_B learns 16 times as fast. Decay is by that rate too."""
    params, grads = named(put, rng), [named(put, rng) for _ in range(4)]
    apart, optimizer, parts = copied(put, params), make(rates={"lora_B": 16}), (make(), make())
    parts[1].lr *= 16
    for i, step in enumerate(grads):
        optimizer.step(params, step, 1 - i / 4)
        for own, other in ((False, parts[0]), (True, parts[1])):
            names = [name for name in NAMES if (name.split(".")[-1] == "lora_B") is own]
            other.step({n: apart[n] for n in names}, {n: step[n] for n in names}, 1 - i / 4)
    assert_same(params, apart)
    for slot in optimizer.slots:
        assert_same(optimizer.state[slot], parts[0].state[slot] | parts[1].state[slot])
    assert optimizer.step_count == 4


def test_which_rate_is_whose():
    optimizer = SGD(0.1, rates={"fc2.lora_B": 3, "lora_B": 16, "fc1": 5, "A": 7})
    assert {name: optimizer.rate_of(name) for name in NAMES} == {
        "fc1.lora_A": 1.0,
        "fc1.lora_B": 16.0,
        "fc2.lora_A": 1.0,
        "fc2.lora_B": 3.0,  # the first that fits
        "fc2.my_lora_B": 1.0,  # the end of a dotted name, not of a word
        "lora_B": 16.0,
    }
    assert SGD(0.1).rate_of("lora_B") == 1.0


def test_a_rate_of_zero_keeps_what_it_is_for(rng):
    params, grads = named(np.array, rng), named(np.array, rng)
    before = copied(np.array, params)
    AdamW(0.1, weight_decay=0.3, rates={"lora_A": 0}).step(params, grads)
    assert [name for name in NAMES if same_bits(params[name], before[name])] == ["fc1.lora_A", "fc2.lora_A"]


def test_with_rates_parameters_come_and_go(put, rng):
    params, grads = named(put, rng), [named(put, rng) for _ in range(3)]
    apart, optimizer, alone = copied(put, params), AdamW(0.1, rates={"lora_B": 16}), {}
    for i, names in enumerate((NAMES[1:3], NAMES, NAMES[1:5])):
        optimizer.step({n: params[n] for n in names}, {n: grads[i][n] for n in names})
        for n in names:
            own = alone.setdefault(n, AdamW(0.1 * optimizer.rate_of(n)))
            own.step_count = i
            own.step({n: apart[n]}, {n: grads[i][n]})
    for name in NAMES:
        assert_close(params[name], to_numpy(apart[name]), 1e-6)


def test_a_rate_that_fits_nothing_is_refused(rng):
    params, grads = named(np.array, rng), named(np.array, rng)
    before = copied(np.array, params)
    for end in ("lora_b", "ora_B", "fc1", "fc3.lora_B", ""):
        optimizer = AdamW(0.1, rates={"lora_A": 2, end: 16})
        with pytest.raises(InputError, match=rf"rates: no parameter that trains ends in {end}; they are fc1\.lora_A, "):
            optimizer.step(params, grads)
        assert optimizer.step_count == 0
    assert_same(params, before)


@pytest.mark.parametrize("factor", [-1, np.nan, np.inf, "16", None, True])
def test_a_rate_is_a_number_from_0_on(factor):
    for make in (SGD, AdamW):
        with pytest.raises(InputError, match="the rate of lora_B must be a finite number >= 0"):
            make(0.1, rates={"lora_B": factor})


def test_rates_are_options_if_there_are_any():
    assert AdamW(0.1, rates={"lora_B": np.float32(16)}).options["rates"] == {"lora_B": 16.0}
    assert "rates" not in AdamW(0.1, rates={}).options | SGD(0.1).options
    again = copy.deepcopy(AdamW(0.1, rates={"lora_B": 16}))
    assert again.rates == {"lora_B": 16.0}


# ---- schedules -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["constant", "linear", "cosine"])
def test_warm_up(name):
    factor = schedule(name, total=20, warmup=4)
    assert [factor(step) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]


@pytest.mark.parametrize("warmup", [0, 4])
def test_endpoints_and_middle(warmup):
    middle = warmup + (20 - warmup) // 2
    wanted = {"constant": (1, 1, 1), "linear": (1, 0.5, 0), "cosine": (1, 0.5, 0)}
    for name, values in wanted.items():
        factor = schedule(name, 20, warmup)
        got = [factor(warmup), factor(middle), factor(20)]
        assert got == pytest.approx(values, abs=1e-15)


def test_cosine_at_a_third():
    assert schedule("cosine", 9)(3) == pytest.approx(0.75, rel=1e-15)
    assert schedule("cosine", 9)(6) == pytest.approx(0.25, rel=1e-15)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_falls_after_warm_up_and_never_below_zero(name):
    factor = schedule(name, 50, 10)
    values = [factor(step) for step in range(51)]
    assert values[:11] == sorted(values[:11])
    assert values[10:] == sorted(values[10:], reverse=True)
    assert len(set(values[10:])) == 41
    assert min(values) >= 0
    assert max(values) == 1


@pytest.mark.parametrize("name", ["constant", "linear", "cosine"])
def test_all_steps_can_be_warm_up(name):
    factor = schedule(name, 4, 4)
    assert [factor(step) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]


# ---- the norm of the gradients ---------------------------------------------------------------------------------------


def test_grad_norm_is_over_all_gradients(put):
    norm = grad_norm({"a": put([[3.0, 0.0]]), "b": put([4.0]), "c": put([12.0])})
    assert norm == 13.0
    assert type(norm) is float


def test_grad_norm_is_the_same_in_every_order(put):
    grads = {name: put([value]) for name, value in (("a", 2.0**27), ("b", 1.2), ("c", 1.2))}  # 2^54 + 1.44 is 2^54
    other = dict(reversed(grads.items()))
    assert float(squared_norm(grads)) == float(squared_norm(other)) == 2.0**54
    assert grad_norm(grads) == grad_norm(other)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_clipping_scales_all_gradients_together(put, dtype):
    grads = {"a": put([[3.0, 0.0]], dtype), "b": put([-4.0], dtype)}
    held = dict(grads)
    assert clip_grad_norm(grads, 0.5) == 5.0
    assert all(grads[n] is held[n] for n in grads)
    assert_lives_on(put([0], dtype), *grads.values())
    tolerance = 2 * float(np.finfo(dtype).eps)
    assert_close(grads["a"], [[0.3, 0.0]], tolerance)
    assert_close(grads["b"], [-0.4], tolerance)
    assert grad_norm(grads) == pytest.approx(0.5, rel=tolerance)


@pytest.mark.parametrize("max_norm", [None, 5.0, 6.0])
def test_small_gradients_are_left(put, max_norm):
    grads = {"a": put([[3.0, 0.0]]), "b": put([-4.0])}
    assert clip_grad_norm(grads, max_norm) == 5.0
    assert to_numpy(grads["a"]).tolist() == [[3.0, 0.0]]
    assert to_numpy(grads["b"]).tolist() == [-4.0]


def test_no_gradients_have_norm_zero():
    assert clip_grad_norm({}, 1.0) == grad_norm({}) == 0.0


def test_norm_of_gradients_whose_sum_of_squares_is_too_large_for_their_dtype():
    grads = {name: np.full(1, 1.5e19, "f4") for name in "ab"}  # each square is 2.25e38; float32 ends at 3.4e38
    assert grad_norm(grads) == pytest.approx(1.5e19 * 2**0.5, rel=1e-6)
