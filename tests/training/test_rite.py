"""An Adam for LoRA's factors that does not depend on the factorisation."""

import numpy as np
import pytest
from checks import assert_close, assert_lives_on, same_bits
from tiny_factors import SHAPES, copied, drawn, fit, products, refactored, regression

from lorabook import InputError
from lorabook.backend import to_numpy
from lorabook.training import RITE, AdamW


def power(S, exponent):
    values, U = np.linalg.eigh(S)
    return U @ np.diag(values**exponent) @ U.T


class Slow:
    """One factor A (r, n), told the other one's columns; written out in float64."""

    def __init__(self, A, B, reg, betas, eps, decay):
        r = len(A)
        self.V, self.e, self.m, self.Q = np.zeros((r, r)), 0.0, np.zeros_like(A), np.zeros_like(B)
        self.reg, self.betas, self.eps, self.decay, self.t = reg, betas, eps, decay, 0

    def step(self, A, B, g, lr):
        self.t += 1
        (b1, b2), eye = self.betas, np.eye(len(A))
        shrink = power(B.T @ B + self.reg * eye, -0.5)
        Q, h = B @ shrink, shrink @ g
        P = Q.T @ self.Q
        turned = P @ self.V @ P.T
        lost = np.abs(np.linalg.eigvalsh(self.V) - np.linalg.eigvalsh(turned)).max()
        self.e = b2 * self.e + b2 * lost
        self.V = b2 * turned + (1 - b2) * h @ h.T / A.shape[1]
        root = power((self.V + self.e * eye) / (1 - b2**self.t) + self.eps**2 * eye, -0.5)
        self.m = b1 * P @ self.m + (1 - b1) * root @ h
        self.Q = Q
        return A - lr * self.decay * A - lr * shrink @ self.m / (1 - b1**self.t)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-3), ("float64", 1e-9)])
def test_four_steps(put, rng, dtype, tolerance):
    options = {"betas": (0.8, 0.9), "eps": 1e-2, "weight_decay": 0.3}
    params = drawn(put, rng, dtype)[0]
    held, optimizer = dict(params), RITE(0.05, reg=0.1, rates={"lora_B": 2}, **options)
    slow = {name: to_numpy(param).astype("f8") for name, param in params.items()}
    bias, adamw = {"head.bias": slow.pop("head.bias")}, AdamW(0.05, **options)
    sides = {}
    for path in SHAPES:
        A, B = slow[f"{path}.lora_A"], slow[f"{path}.lora_B"]
        sides[path] = [Slow(*pair, 0.1, (0.8, 0.9), 1e-2, 0.3) for pair in ((A, B), (B.T, A.T))]
    for factor, scale in ((1.0, None), (0.5, 0.25), (1.0, 3.0), (1.0, None)):
        grads = drawn(put, rng, dtype)[1]
        given = copied(put, grads)
        optimizer.step(params, given, factor, scale if scale is None else put(scale, dtype))
        assert all(same_bits(given[name], grads[name]) for name in grads)
        new = {name: (scale or 1) * to_numpy(grad).astype("f8") for name, grad in grads.items()}
        adamw.step(bias, {"head.bias": new["head.bias"]}, factor)
        for path, (of_A, of_B) in sides.items():
            a, b = f"{path}.lora_A", f"{path}.lora_B"
            A, B = slow[a], slow[b]
            slow[a] = of_A.step(A, B, new[a], 0.05 * factor)
            slow[b] = of_B.step(B.T, A.T, new[b].T, 0.1 * factor).T
    for name, param in params.items():
        assert param is held[name]
        assert_lives_on(put([0], dtype), param)
        assert_close(param, (slow | bias)[name], tolerance)
    assert optimizer.state["v"].keys() == {"head.bias"} and optimizer.state["m"].keys() == params.keys()


def descend(optimizer, params, G):
    grads = {}
    for path, g in G.items():
        grads[f"{path}.lora_A"] = params[f"{path}.lora_B"].T @ g
        grads[f"{path}.lora_B"] = g @ params[f"{path}.lora_A"].T
    optimizer.step(params, grads)


def test_the_product_does_not_depend_on_the_factorisation(rng):
    params = {name: array for name, array in drawn(np.array, rng)[0].items() if "lora" in name}
    other, _ = refactored(params, rng)
    optimizers = [RITE(0.05, reg=1e-12, weight_decay=0.1) for _ in range(2)]
    for _ in range(5):
        G = {path: rng.standard_normal((d_out, d_in)) for path, (_, d_out, d_in) in SHAPES.items()}
        descend(optimizers[0], params, G)
        descend(optimizers[1], other, G)
        for path, product in products(params).items():
            assert_close(products(other)[path], product, 1e-8)
    assert not np.allclose(other["fc1.lora_A"], params["fc1.lora_A"], rtol=1e-2)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_dead_step_changes_no_bit(put, rng, bad):
    params, grads = drawn(put, rng)
    optimizer = RITE(0.1, weight_decay=0.1)
    optimizer.step(params, grads, alive=put(True))
    kept, state = copied(put, params), {slot: copied(put, a) for slot, a in optimizer.state.items()}
    grads["fc1.lora_B"][0, 0] = bad
    with np.errstate(all="ignore"):  # as in the loop
        optimizer.step(params, grads, 1.0, put(1.0), put(False))
    assert all(same_bits(params[name], kept[name]) for name in params)
    assert all(same_bits(optimizer.state[slot][name], a) for slot in state for name, a in state[slot].items())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_fits_a_target_of_its_rank(rng, dtype):
    target, params = regression(rng)
    params = {name: param.astype(dtype) for name, param in params.items()}
    assert fit(RITE(0.05), target.astype(dtype), params, 400, s=np.dtype(dtype).type(2)) < 1e-4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reg": 0}, "reg must be a finite number > 0; got 0"),
        ({"eps": 0}, "eps must be a finite number > 0; got 0"),
        ({"betas": 3}, "betas must be two numbers"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(InputError, match=message):
        RITE(0.1, **options)


def test_it_needs_factors():
    optimizer = RITE(0.1)
    with pytest.raises(InputError, match=r"RITE: it is made for LoRA's factors .* none trains; there are bias"):
        optimizer.step({"bias": np.ones(3)}, {"bias": np.ones(3)})
    assert optimizer.step_count == 0
