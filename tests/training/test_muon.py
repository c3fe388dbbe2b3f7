"""Muon on LoRA's factors."""

import numpy as np
import pytest
from checks import assert_close, assert_lives_on, same_bits
from tiny_factors import copied, drawn, fit, regression

from lorabook import InputError
from lorabook.backend import to_numpy
from lorabook.training import AdamW, Muon, orthogonalized


def polynomial(s):
    """Where five rounds of Newton-Schulz send a singular value."""
    for _ in range(5):
        s = 3.4445 * s - 4.775 * s**3 + 2.0315 * s**5
    return s


def by_svd(m):
    """U diag(t) V^T by an SVD."""
    U, s, Vt = np.linalg.svd(m, full_matrices=False)
    return (U * polynomial(s / (np.linalg.norm(m) or 1))) @ Vt


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-4), ("float64", 1e-10)])
@pytest.mark.parametrize("shape", [(3, 9), (9, 3), (4, 4), (1, 6)])
def test_only_singular_values_change(put, rng, shape, dtype, tolerance):
    m = rng.standard_normal(shape).astype(dtype)
    for size in (1, 1e-20, 1e15):
        given = put(size * m, dtype)
        got = orthogonalized(given)
        assert_lives_on(given, got)
        assert same_bits(given, (size * m).astype(dtype))
        assert_close(got, by_svd(m.astype("f8")), tolerance)


@pytest.mark.parametrize("size", [1e-12, 1.0, 1e12])
def test_every_singular_value_is_about_1(put, rng, size):
    for _ in range(20):
        m = rng.standard_normal((4, 30))
        s = np.linalg.svd(m, compute_uv=False)
        assert s[-1] > np.linalg.norm(m) / 100
        t = np.linalg.svd(to_numpy(orthogonalized(put(size * m))), compute_uv=False)
        assert 0.68 < t.min() <= t.max() < 1.14


def test_nothing_of_nothing(put):
    """B = 0 at LoRA's start: the gradient of A is 0, and so is its step."""
    assert_close(orthogonalized(put(np.zeros((3, 5)))), np.zeros((3, 5)))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("float64", 1e-10)])
def test_three_steps(put, rng, dtype, tolerance):
    params = drawn(put, rng, dtype)[0]
    held, optimizer = dict(params), Muon(0.1, momentum=0.8, weight_decay=0.3, rates={"lora_B": 2})
    slow = {name: to_numpy(param).astype("f8") for name, param in params.items()}
    m = {name: 0 * param for name, param in slow.items()}
    bias, adamw = {"head.bias": slow.pop("head.bias")}, AdamW(0.1, weight_decay=0.3)
    for factor, scale in ((1.0, None), (0.5, 0.25), (1.0, None)):
        grads = drawn(put, rng, dtype)[1]
        given = copied(put, grads)
        optimizer.step(params, given, factor, scale if scale is None else put(scale, dtype))
        assert all(same_bits(given[name], grads[name]) for name in grads)
        new = {name: (scale or 1) * to_numpy(grad).astype("f8") for name, grad in grads.items()}
        adamw.step(bias, {"head.bias": new["head.bias"]}, factor)
        for name, p in slow.items():
            lr = 0.1 * factor * (2 if name.endswith("lora_B") else 1)
            m[name] = 0.8 * m[name] + 0.2 * new[name]
            slow[name] = p - lr * 0.3 * p - lr * 0.2 * np.sqrt(max(p.shape)) * by_svd(m[name])
    for name, param in params.items():
        assert param is held[name]
        assert_lives_on(put([0], dtype), param)
        assert_close(param, (slow | bias)[name], tolerance)
    assert optimizer.state["v"].keys() == {"head.bias"} and optimizer.state["m"].keys() == params.keys()


def test_a_step_is_about_as_large_as_that_of_adamw(rng):
    params, grads = drawn(np.array, rng)
    before = copied(np.array, params)
    Muon(0.01).step(params, grads)
    for name in params.keys() - {"head.bias"}:
        size = np.linalg.norm(params[name] - before[name]) / np.sqrt(min(params[name].shape))
        assert 0.6 < size / (0.01 * 0.2 * np.sqrt(max(params[name].shape))) < 1.2


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_dead_step_changes_no_bit(put, rng, bad):
    params, grads = drawn(put, rng)
    optimizer = Muon(0.1, weight_decay=0.1)
    optimizer.step(params, grads, alive=put(True))
    kept, state = copied(put, params), {slot: copied(put, a) for slot, a in optimizer.state.items()}
    grads["fc1.lora_B"][0, 0] = bad
    with np.errstate(all="ignore"):  # as in the loop
        optimizer.step(params, grads, 1.0, put(1.0), put(False))
    assert all(same_bits(params[name], kept[name]) for name in params)
    assert all(same_bits(optimizer.state[slot][name], a) for slot in state for name, a in state[slot].items())


def test_fits_a_target_of_its_rank(rng):
    target, params = regression(rng)
    assert fit(Muon(0.03), target, params, 400, s=2.0) < 0.02


def test_bad_input():
    with pytest.raises(InputError, match=r"momentum must be a number in \[0, 1\); got 1"):
        Muon(0.1, momentum=1)
    optimizer = Muon(0.1)
    with pytest.raises(InputError, match=r"Muon: it is made for LoRA's factors .* none trains; there are bias"):
        optimizer.step({"bias": np.ones(3)}, {"bias": np.ones(3)})
    assert optimizer.step_count == 0 and Muon(1).options["momentum"] == 0.95
