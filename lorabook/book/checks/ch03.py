"""Checks of the exercises of chapter 03."""

import numpy as np

from ...adapters import LoRALinear
from ...functional import complex_step, relative_error
from ...layers import Linear
from ...training import SGD, AdamW
from . import exercise, need


def _same(got, want, name):
    got = np.asarray(got)
    need(got.shape == want.shape, f"{name} has the shape of what it belongs to, {want.shape}; yours has {got.shape}")
    error = relative_error(got, want)
    need(error < 1e-11, f"this is not {name}: relative error {error:.0e} against the complex step")


def _drawn(*shapes):
    rng = np.random.default_rng(3)
    return [rng.standard_normal(shape) for shape in shapes]


@exercise
def gate(answer):
    """dgate of y = x W^T + s (z * gate) B^T, as a function of dout, z, B, s."""
    need(callable(answer), "expected a function of dout, z, B and s")
    z, B, scales, dout = _drawn((11, 2), (5, 2), (2,), (11, 5))
    want = complex_step(lambda gate: np.sum(dout * (3.0 * (z * gate) @ B.T)), scales)
    _same(answer(dout, z, B, 3.0), want, "dgate")


@exercise
def shared_A(answer):
    """dA of two layers with one A, as a function of dout_q, dout_v, x, B_q, B_v, s."""
    need(callable(answer), "expected a function of dout_q, dout_v, x, B_q, B_v and s")
    x, A, B_q, B_v, dout_q, dout_v = _drawn((11, 7), (2, 7), (5, 2), (4, 2), (11, 5), (11, 4))

    def loss(A):
        return np.sum(dout_q * (3.0 * x @ A.T @ B_q.T)) + np.sum(dout_v * (3.0 * x @ A.T @ B_v.T))

    _same(answer(dout_q, dout_v, x, B_q, B_v, 3.0), complex_step(loss, A), "dA")


@exercise
def gaussian_start(answer):
    """How much larger |dB|^2 is where A starts "gaussian", on a 48 x 64 layer at r = 4."""
    need(np.isscalar(answer), "expected a number")
    x, dout = _drawn((64, 64), (64, 48))
    sizes = {}
    for start in (True, "gaussian"):
        squares = []
        for seed in range(200):
            layer = LoRALinear(Linear(np.zeros((48, 64))), r=4, init_lora_weights=start, rng=seed)
            _, grads = layer.backward(dout, layer(x)[1])
            squares.append(np.sum(grads["lora_B"] ** 2))
        sizes[start] = np.mean(squares)
    ratio = answer / (sizes["gaussian"] / sizes[True])
    need(ratio > 0.9, "too small; what enters is the variance of A's entries, the square of the standard deviation")
    need(ratio < 1.1, "too large; the formula has the variance of the usual start, and the measurement both")


@exercise
def double_alpha(answer):
    """(factor for SGD, factor for AdamW) of the learning rate that undoes a doubled lora_alpha in the first step."""
    need(np.shape(answer) == (2,), "expected two numbers: (factor for SGD, factor for AdamW)")
    x, dout = _drawn((11, 7), (11, 5))
    for optimizer, factor in zip((SGD, AdamW), answer, strict=True):
        updates = []
        for lora_alpha, lr in ((4, 1e-3), (8, 1e-3 * factor)):
            layer = LoRALinear(Linear(np.zeros((5, 7))), r=2, lora_alpha=lora_alpha)
            _, grads = layer.backward(dout, layer(x)[1])
            optimizer(lr).step(layer.trainable_params(), grads)
            updates.append(np.linalg.norm(layer.delta_weight()))
        ratio = updates[1] / updates[0]
        need(abs(ratio - 1) < 1e-6, f"{optimizer.__name__}: with this factor the update is {ratio:.2f} times as large")


@exercise
def convert(answer):
    """(lora_A, lora_B, lora_alpha) here, as a function of lora_a, lora_b, scale of mlx-lm."""
    need(callable(answer), "expected a function of lora_a, lora_b and scale")
    lora_a, lora_b, x = _drawn((9, 3), (3, 5), (4, 9))
    lora_A, lora_B, lora_alpha = answer(lora_a, lora_b, 20.0)
    need(np.shape(lora_A) == (3, 9) and np.shape(lora_B) == (5, 3), "expected lora_A (r, d_in) and lora_B (d_out, r)")
    layer = LoRALinear(Linear(np.zeros((5, 9))), r=3, lora_alpha=lora_alpha)
    layer.params["lora_A"], layer.params["lora_B"] = lora_A, lora_B
    y, want = layer(x)[0], 20.0 * x @ lora_a @ lora_b
    ratio = np.linalg.norm(y) / np.linalg.norm(want)
    need(relative_error(y, want) < 1e-12, f"not the same outputs; ours are {ratio:.2f} times as long")
