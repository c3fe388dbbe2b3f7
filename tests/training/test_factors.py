"""Optimizers made for LoRA's factors: Riemannian preconditioning, LoRA-FA, LoRA-Pro, LoRA+."""

import copy

import numpy as np
import pytest
import scipy.linalg
from checks import assert_close, assert_lives_on, same_bits
from tiny_factors import SHAPES, copied, drawn, fit, products, refactored, regression

from lorabook import FormatError, InputError, LoRAConfig, inject
from lorabook.backend import to_numpy
from lorabook.data import Batches
from lorabook.models import MLP
from lorabook.training import (
    OPTIMIZERS,
    SGD,
    AdamW,
    LoRAFAAdamW,
    LoRAFASGD,
    LoRAPlus,
    LoRAProAdamW,
    LoRAProSGD,
    RiemannianAdamW,
    RiemannianSGD,
    gram,
    pairs,
    spectra,
    sylvester,
    train,
)

S = 1.5  # of the gradients that are drawn
RULES = {"sgd": lambda lr: SGD(lr, momentum=0.5), "adamw": lambda lr: AdamW(lr, weight_decay=0.3)}
KINDS = {
    "riemannian-sgd": lambda lr: RiemannianSGD(lr, momentum=0.5, reg=0.1),
    "riemannian": lambda lr: RiemannianAdamW(lr, weight_decay=0.3, reg=0.1),
    "lora-fa-sgd": lambda lr: LoRAFASGD(lr, momentum=0.5, scaling=S, reg=0.1),
    "lora-fa": lambda lr: LoRAFAAdamW(lr, weight_decay=0.3, scaling=S, reg=0.1),
    "lora-pro-sgd": lambda lr: LoRAProSGD(lr, momentum=0.5, scaling=S, reg=0.1),
    "lora-pro": lambda lr: LoRAProAdamW(lr, weight_decay=0.3, scaling=S, reg=0.1),
}


def plain(kind, A, B, g_A, g_B, reg=0.1):
    """(a, b) by the formulas, one after another, with SciPy's Sylvester solver."""
    P, Q = B.T @ B + reg * np.eye(len(A)), A @ A.T + reg * np.eye(len(A))
    if kind.startswith("riemannian"):
        return np.linalg.solve(P, g_A), np.linalg.solve(Q, g_B.T).T
    b = np.linalg.solve(Q, g_B.T).T / S**2
    if kind.startswith("lora-fa"):
        return None, b
    a = np.linalg.solve(P, g_A) / S**2
    b = b - B @ np.linalg.solve(P, B.T @ b)
    X = scipy.linalg.solve_sylvester(P, Q, B.T @ (b - g_B) - (a - g_A) @ A.T)
    return a + X @ A, b - B @ X


def host(arrays):
    return {name: to_numpy(array).astype("f8") for name, array in arrays.items()}


# ---- what all of them do ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-5), ("float64", 1e-11)])
@pytest.mark.parametrize("kind", KINDS)
def test_three_steps(put, rng, kind, dtype, tolerance):
    params, grads = drawn(put, rng, dtype)
    held, optimizer = dict(params), KINDS[kind](0.01)
    slow, rule = host(params), RULES["sgd" if kind.endswith("sgd") else "adamw"](0.01)
    for factor, scale in ((1.0, None), (0.5, 0.25), (1.0, None)):
        given = copied(put, grads)
        optimizer.step(params, given, factor, scale if scale is None else put(scale, dtype))
        assert all(same_bits(given[name], grads[name]) for name in grads)
        new = host(grads)
        for path in SHAPES:
            a, b = f"{path}.lora_A", f"{path}.lora_B"
            new[a], new[b] = plain(kind, slow[a], slow[b], new[a], new[b])
            if new[a] is None:
                new[a] = 0 * slow[a]
        before = copy.deepcopy(slow)
        rule.step(slow, {name: grad * (scale or 1) for name, grad in new.items()}, factor)
        if kind.startswith("lora-fa"):
            slow |= {name: array for name, array in before.items() if name.endswith("lora_A")}
    for name, param in params.items():
        assert param is held[name]
        assert_lives_on(put([0], dtype), param)
        assert_close(param, slow[name], tolerance)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_dead_step_changes_no_bit(put, rng, kind, bad):
    params, grads = drawn(put, rng)
    optimizer = KINDS[kind](0.1)
    optimizer.step(params, grads)
    kept, state = copied(put, params), {slot: copied(put, a) for slot, a in optimizer.state.items()}
    grads["fc1.lora_B"][0, 0] = bad
    with np.errstate(all="ignore"):  # as in the loop
        optimizer.step(params, grads, 1.0, put(1.0), put(False))
    assert all(same_bits(params[name], kept[name]) for name in params)
    assert all(same_bits(optimizer.state[slot][name], a) for slot in state for name, a in state[slot].items())


@pytest.mark.parametrize("kind", KINDS)
def test_together_as_each_pair_alone(rng, kind):
    params, grads = drawn(np.array, rng)
    apart = copied(np.array, params)
    optimizer, alone = KINDS[kind](0.1), {path: KINDS[kind](0.1) for path in SHAPES}
    for _ in range(3):
        optimizer.step(params, grads)
        for path in SHAPES:
            names = [f"{path}.lora_A", f"{path}.lora_B"]
            alone[path].step({n: apart[n] for n in names}, {n: grads[n] for n in names})
    for name in params.keys() - {"head.bias"}:
        assert_close(params[name], apart[name], 1e-12)


BATCHES = Batches(
    {"x": np.random.default_rng(3).standard_normal((40, 6)).astype("f4"), "labels": np.arange(40) % 3}, 8, seed=1
)


def network():
    model = MLP((6, 8, 3), rng=np.random.default_rng(0))
    inject(model, LoRAConfig(r=2), np.random.default_rng(1))
    return model


def stopping(after):
    """Batches that end a run at a step."""
    dying = copy.copy(BATCHES)

    def at(step):
        if step == after:
            raise KeyboardInterrupt
        return BATCHES.at(step)

    dying.at = at
    return dying


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_resume_ends_where_the_whole_run_ends(tmp_path, name):
    options = {"epochs": 2, "checkpoint_every": 3, "workers": 1}
    whole, part, again = network(), network(), network()
    want = train(whole, BATCHES, OPTIMIZERS[name](1e-2), **options)
    with pytest.raises(KeyboardInterrupt):
        train(part, stopping(8), OPTIMIZERS[name](1e-2), checkpoint=tmp_path / "c", **options)
    got = train(again, BATCHES, OPTIMIZERS[name](1e-2), checkpoint=tmp_path / "c", resume=True, **options)
    assert got == want
    ends = whole.trainable_params()
    assert all(same_bits(again.trainable_params()[n], ends[n]) for n in ends)
    other = AdamW(1e-2) if name != "adamw" else RiemannianAdamW(1e-2)
    with pytest.raises(FormatError, match=f"its optimizer is '{OPTIMIZERS[name].__name__}', here it is "):
        train(network(), BATCHES, other, checkpoint=tmp_path / "c", resume=True, **options)


def test_what_was_set_is_part_of_a_run(tmp_path):
    options = {"epochs": 1, "checkpoint": tmp_path / "c", "workers": 1}
    train(network(), BATCHES, LoRAProAdamW(1e-2, scaling=2), **options)
    for other, message in ((LoRAProAdamW(1e-2), r"scaling is 2\.0, here it is 1\.0"), (
        LoRAProAdamW(1e-2, scaling=2, reg=1e-3), r"reg is 1e-06, here it is 0\.001")):  # fmt: skip
        with pytest.raises(FormatError, match=message):
            train(network(), BATCHES, other, resume=True, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_rates_are_those_of_the_rule(rng, kind):
    params, grads = drawn(np.array, rng)
    other, optimizer, faster = copied(np.array, params), KINDS[kind](0.01), KINDS[kind](0.03)
    optimizer.rates = {"lora_B": 3.0}
    optimizer.step(params, grads)
    faster.step(other, grads)
    assert_close(params["fc1.lora_B"], other["fc1.lora_B"], 1e-13)
    assert not np.allclose(params["head.bias"], other["head.bias"], rtol=1e-6)


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_it_needs_factors(kind):
    model = MLP((6, 8, 3))
    with pytest.raises(InputError, match=r"made for LoRA's factors lora_A and lora_B, of which none trains; there are"):
        train(model, BATCHES, KINDS[kind](0.1), epochs=1)
    assert KINDS[kind](0.1).step_count == 0


A, B = np.ones((2, 5)), np.ones((4, 2))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"fc.lora_A": A}, r"fc\.lora_A trains without fc\.lora_B; make both trainable"),
        ({"fc.lora_B": B, "bias": np.ones(3)}, r"fc\.lora_B trains without fc\.lora_A"),
        ({"fc.lora_A": A, "fc.lora_B": np.ones((4, 3))}, r"got fc\.lora_A \(2, 5\) float64 and fc\.lora_B \(4, 3\)"),
        ({"fc.lora_A": A, "fc.lora_B": np.ones((4, 2), "f4")}, "of one dtype; got"),
        ({"fc.lora_A": np.ones((1, 2, 5)), "fc.lora_B": B}, r"expected A \(r, d_in\) and B \(d_out, r\)"),
        ({"fc.my_lora_A": A, "fc.lora_C": B}, r"none trains; there are fc\.lora_C, fc\.my_lora_A"),
    ],
)
def test_pairs_that_are_none(params, message):
    optimizer = RiemannianAdamW(0.1)
    with pytest.raises(InputError, match=f"RiemannianAdamW: .*{message}"):
        optimizer.step(params, {name: np.ones_like(param) for name, param in params.items()})
    assert optimizer.step_count == 0


def test_pairs_are_found_by_their_names():
    assert pairs({"lora_B": B, "x.lora_A": A, "lora_A": A, "x.lora_B": B, "x.bias": A}) == {
        "": ("lora_A", "lora_B"),
        "x": ("x.lora_A", "x.lora_B"),
    }


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RiemannianAdamW(0.1, reg=0), "reg must be a finite number > 0; got 0"),
        (lambda: LoRAFASGD(0.1, scaling=0), "scaling must be a finite number > 0; got 0"),
        (lambda: LoRAFASGD(0.1, reg=-1), "reg must be"),
        (lambda: LoRAProSGD(0.1, scaling="2"), "scaling must be a finite number > 0; got '2'"),
        (lambda: LoRAProSGD(0.1, reg=0), "reg must be"),
        (lambda: LoRAPlus(0.1, ratio=0), "ratio must be a finite number > 0; got 0"),
    ],
)
def test_options_are_checked(make, message):
    with pytest.raises(InputError, match=message):
        make()


# ---- spectra ---------------------------------------------------------------------------------------------------------


def test_inverses_of_several_sizes(put, rng):
    rows = {name: put(rng.standard_normal((r, 6))) for name, r in (("a", 3), ("b", 2), ("c", 3))}
    found = spectra({name: gram(M) for name, M in rows.items()})
    for name, M in rows.items():
        M = to_numpy(M)
        want = np.linalg.inv(M @ M.T + 0.1 * np.eye(len(M)))
        assert_close(found[name].inverse(0.1, rows[name]), want, 1e-12)


def test_no_square_is_below_0(rng):
    """Of two equal rows in float32 the smallest eigenvalue is 0 but for rounding, on either side."""
    row = rng.standard_normal((1, 300)).astype("f4")
    found = spectra({"a": gram(np.concat([row, row, row])), "b": -1e-17 * np.eye(2)})
    assert all((spectrum.values >= 0).all() for spectrum in found.values())
    assert gram(row).dtype == np.float64


# ---- Riemannian preconditioning --------------------------------------------------------------------------------------


def moved(optimizer, params, G):
    """{path: by how much a step changes B A, to first order in the rate}; G: {path: gradient of the weight}."""
    before, grads = {name: array.copy() for name, array in params.items()}, {}
    for path, g in G.items():
        grads |= {f"{path}.lora_A": params[f"{path}.lora_B"].T @ g, f"{path}.lora_B": g @ params[f"{path}.lora_A"].T}
    optimizer.step(params, grads)
    changes = {}
    for path in G:
        a, b = f"{path}.lora_A", f"{path}.lora_B"
        changes[path] = before[b] @ (params[a] - before[a]) + (params[b] - before[b]) @ before[a]
    return changes


def test_the_change_does_not_depend_on_the_factorisation(rng):
    params = {name: array for name, array in drawn(np.array, rng)[0].items() if "lora" in name}
    G = {path: rng.standard_normal((d_out, d_in)) for path, (_, d_out, d_in) in SHAPES.items()}
    other, _ = refactored(params, rng)
    assert not np.allclose(other["fc1.lora_A"], params["fc1.lora_A"])
    optimizers = RiemannianSGD(0.01, momentum=0.9, reg=1e-12), RiemannianSGD(0.01, momentum=0.9, reg=1e-12)
    for path, change in moved(optimizers[0], params, G).items():
        A, B = (to_numpy(other[f"{path}.{name}"]) for name in ("lora_A", "lora_B"))
        P_A, P_B = np.linalg.pinv(A) @ A, B @ np.linalg.pinv(B)
        assert_close(change, -0.01 * (P_B @ G[path] + G[path] @ P_A), 1e-8)
    moved(optimizers[1], other, G)
    for got, want in zip(products(other).values(), products(params).values(), strict=True):
        assert_close(got, want, 1e-8)
    moved(optimizers[0], params, G)  # and with momentum, which turns as the factors do
    moved(optimizers[1], other, G)
    for got, want in zip(products(other).values(), products(params).values(), strict=True):
        assert_close(got, want, 1e-8)


def test_plain_descent_depends_on_it(rng):
    params, grads = drawn(np.array, rng)
    other, maps = refactored(params, rng)
    turned = dict(grads)
    for path, M in maps.items():
        turned[f"{path}.lora_A"] = M.T @ grads[f"{path}.lora_A"]
        turned[f"{path}.lora_B"] = grads[f"{path}.lora_B"] @ np.linalg.inv(M).T
    SGD(0.01).step(params, grads)
    SGD(0.01).step(other, turned)
    assert not np.allclose(products(other)["fc1"], products(params)["fc1"], rtol=1e-3)


# ---- LoRA-FA ---------------------------------------------------------------------------------------------------------


def test_b_solves_the_least_squares(rng):
    for d_out, d_in, r in ((7, 6, 3), (4, 9, 2)):
        A, G = rng.standard_normal((r, d_in)), rng.standard_normal((d_out, d_in))
        params = {"fc.lora_A": A, "fc.lora_B": np.zeros((d_out, r))}
        LoRAFASGD(1.0, scaling=S, reg=1e-13).step(params, {"fc.lora_A": np.zeros_like(A), "fc.lora_B": S * G @ A.T})
        assert_close(-params["fc.lora_B"], np.linalg.lstsq(S * A.T, G.T, rcond=None)[0].T, 1e-11)


@pytest.mark.parametrize("make", [LoRAFASGD, LoRAFAAdamW])
def test_a_is_frozen_and_keeps_no_state(put, rng, make):
    params, grads = drawn(put, rng)
    frozen = {name: to_numpy(param) for name, param in params.items() if name.endswith("lora_A")}
    optimizer = make(0.1, weight_decay=0.5)
    optimizer.prepare(params)
    for _ in range(2):
        optimizer.step(params, grads)
    assert all(same_bits(params[name], array) for name, array in frozen.items())
    assert all(arrays.keys() == params.keys() - frozen.keys() for arrays in optimizer.state.values())


# ---- LoRA-Pro --------------------------------------------------------------------------------------------------------


def test_the_step_is_the_nearest_to_the_full_one(rng):
    A, B, G = (rng.standard_normal(shape) for shape in ((3, 9), (7, 3), (7, 9)))
    known = spectra({"A": gram(A), "B": gram(B.T)})
    optimizer = LoRAProSGD(1.0, scaling=S, reg=1e-14)
    a, b = optimizer.directions(A, B, S * B.T @ G, S * G @ A.T, known["A"], known["B"])
    nearest = S * (B @ a + b @ A)
    outside = (np.eye(7) - B @ np.linalg.pinv(B)) @ G @ (np.eye(9) - np.linalg.pinv(A) @ A)
    assert_close(nearest, G - outside, 1e-11)
    columns = np.hstack([np.kron(S * B, np.eye(9)), np.kron(np.eye(7), S * A.T)])  # of (a, b), row by row
    least = columns @ np.linalg.lstsq(columns, G.ravel(), rcond=None)[0]
    assert_close(nearest.ravel(), least, 1e-11)


def test_x_is_free_and_keeps_the_step_nearest_to_that_of_lora(rng):
    A, B, G = (rng.standard_normal(shape) for shape in ((3, 9), (7, 3), (7, 9)))
    g_A, g_B, known = S * B.T @ G, S * G @ A.T, spectra({"A": gram(A), "B": gram(B.T)})
    a, b = LoRAProSGD(1.0, scaling=S, reg=1e-14).directions(A, B, g_A, g_B, known["A"], known["B"])

    def distance(X):
        return np.sum((a + X @ A - g_A) ** 2) + np.sum((b - B @ X - g_B) ** 2)

    for _ in range(9):
        X = 1e-3 * rng.standard_normal((3, 3))
        assert_close(B @ (a + X @ A) + (b - B @ X) @ A, B @ a + b @ A, 1e-12)
        assert distance(X) > distance(0 * X)
        assert abs(distance(X) - distance(-X)) < 1e-9 * distance(X), "not the bottom"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sylvester(put, rng, dtype):
    A, B, C = (rng.standard_normal(shape).astype(dtype) for shape in ((3, 9), (7, 3), (3, 3)))
    known = spectra({"A": gram(put(A)), "B": gram(put(B.T))})
    X = sylvester(known["B"], known["A"], put(C), 0.1)
    assert X.dtype == put(C).dtype
    X = to_numpy(X).astype("f8")
    P, Q = (M.astype("f8") @ M.astype("f8").T + 0.1 * np.eye(3) for M in (B.T, A))
    assert_close(P @ X + X @ Q, C, 1e-12 if dtype == "float64" else 1e-5)


def test_without_b_only_b_learns(rng):
    """LoRA's start: B = 0. The first step of B is LoRA-FA's, that of A as small as LoRA's gradient is far."""
    A, G = rng.standard_normal((3, 9)), rng.standard_normal((7, 9))
    params = {"fc.lora_A": A.copy(), "fc.lora_B": np.zeros((7, 3))}
    LoRAProSGD(1.0, scaling=S, reg=1e-12).step(params, {"fc.lora_A": 0 * A, "fc.lora_B": S * G @ A.T})
    assert_close(params["fc.lora_B"], -G @ np.linalg.pinv(A) / S, 1e-9)
    assert_close(params["fc.lora_A"], A, 1e-9)


# ---- LoRA+, and whether they train -----------------------------------------------------------------------------------


def test_lora_plus_is_adamw_with_a_rate(rng):
    params, grads = drawn(np.array, rng)
    other, plus = copied(np.array, params), LoRAPlus(0.01, 4, weight_decay=0.1)
    same = AdamW(0.01, weight_decay=0.1, rates={"lora_B": 4})
    for _ in range(3):
        plus.step(params, grads)
        same.step(other, grads)
    assert all(same_bits(params[name], other[name]) for name in params)
    assert plus.options == same.options and LoRAPlus(0.01).options["rates"] == {"lora_B": 16.0}


@pytest.mark.parametrize(
    ("make", "steps", "error"),
    [
        (lambda: RiemannianSGD(0.2, reg=1e-2), 200, 1e-12),
        (lambda: RiemannianAdamW(0.1), 400, 1e-6),
        (lambda: LoRAProSGD(0.5, scaling=2, reg=1e-2), 200, 1e-12),
        (lambda: LoRAProAdamW(0.1, scaling=2), 400, 1e-6),
        (lambda: LoRAPlus(0.05), 400, 1e-6),
    ],
)
def test_fits_a_target_of_its_rank(rng, make, steps, error):
    target, params = regression(rng)
    assert fit(make(), target, params, steps, s=2.0) < error


@pytest.mark.parametrize("make", [lambda: LoRAFASGD(0.9, scaling=2), lambda: LoRAFAAdamW(0.1, scaling=2)])
def test_lora_fa_fits_what_its_rows_can(rng, make):
    target, params = regression(rng)
    A = params["fc.lora_A"].copy()
    best = np.linalg.norm(target - target @ np.linalg.pinv(A) @ A) / np.linalg.norm(target)
    assert best < fit(make(), target, params, 400, s=2.0) * (1 + 1e-12) < best * (1 + 1e-4)
