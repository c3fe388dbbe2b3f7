"""Checks of the exercises of chapter 05."""

import copy

import numpy as np

from ...functional import (
    attention,
    attention_backward,
    complex_step,
    merge_heads,
    relative_error,
    softmax,
    softmax_backward,
    split_heads,
)
from ...layers import Sequential
from ...models import PostNormBlock
from ..probes import adapted, passes_through
from . import exercise, need


def _draws(seed=5):
    return np.random.default_rng(seed).standard_normal


@exercise
def value_bias(answer):
    """A function of W_o and b: the change of the bias of attention.output that equals b on the bias of value."""
    need(callable(answer), "expected a function of W_o and b")
    normal = _draws()
    block = PostNormBlock.random(8, 2, 32, np.random.default_rng(1)).to(np, "float64")
    other, x, b = copy.deepcopy(block), normal((2, 3, 8)), normal(8)
    block.named_params()["attention.self.value.bias"] += b
    W_o = other.named_params()["attention.output.dense.weight"]
    change = np.asarray(answer(W_o, b))
    need(change.shape == (8,), f"expected one number for each of the 8 outputs; got shape {change.shape}")
    other.named_params()["attention.output.dense.bias"] += change
    apart = relative_error(other(x)[0], block(x)[0])
    need(apart < 1e-12, f"the two blocks are {apart:.0e} apart")


@exercise
def scores_A(answer):
    """A function of dscores, x, B, c and s: the gradient of A where c s (x A^T)(x B^T)^T adds to the scores."""
    need(callable(answer), "expected a function of dscores, x, B, c and s")
    normal, c, s = _draws(), 0.4, 1.7
    (A, B), x, fixed = normal((2, 2, 6)), normal((5, 6)), normal((5, 5))
    do, v = normal((2, 5, 3))

    def scores(A):
        return fixed + c * s * (x @ A.T) @ (x @ B.T).T

    _, cache = softmax(scores(A))
    got = np.asarray(answer(softmax_backward(do @ v.T, cache), x, B, c, s))
    need(got.shape == A.shape, f"expected the shape of A, {A.shape}; got {got.shape}")
    apart = relative_error(got, complex_step(lambda A: np.sum(do * (softmax(scores(A))[0] @ v)), A))
    need(apart < 1e-11, f"the complex step says something else; you are {apart:.0e} away")


@exercise
def shared_keys(answer):
    """A function of dk (B_, heads, T, d_head) and group: the gradient of the shared keys."""
    need(callable(answer), "expected a function of dk and group")
    normal = _draws()
    for heads, group in ((4, 2), (6, 3)):
        q, v, dout = normal((3, 2, 4, 3 * heads))
        keys = normal((2, heads // group, 4, 3))

        def attend(keys, q=q, v=v, heads=heads, group=group):
            k = merge_heads(keys.repeat(group, axis=1))
            return attention(q.astype(k.dtype), k, v.astype(k.dtype), heads)

        dk = split_heads(attention_backward(dout, attend(keys)[1])[1], heads)
        got = np.asarray(answer(dk, group))
        need(got.shape == keys.shape, f"{heads} heads, group {group}: expected {keys.shape}, got {got.shape}")
        exact = complex_step(lambda keys, dout=dout, attend=attend: np.sum(dout * attend(keys)[0]), keys)
        apart = relative_error(got, exact)
        need(apart < 1e-11, f"{heads} heads, group {group}: the complex step is {apart:.0e} away")


@exercise
def unscaled(answer):
    """(with c, without c): means over queries of the largest p, for standard normal q and k, T = d_head = 64."""
    need(np.shape(answer) == (2,), "expected two numbers: (with c, without c)")
    normal = _draws()
    q, k = normal((2, 30, 64, 64))
    for name, got, c in (("with c", answer[0], 1 / 8), ("without c", answer[1], 1)):
        scores = c * q @ k.mT
        p = np.exp(scores - scores.max(axis=-1, keepdims=True))
        p /= p.sum(axis=-1, keepdims=True)
        away = float(got) - p.max(axis=-1).mean()
        need(abs(away) < 0.03, f"{name}: other draws have a {'smaller' if away > 0 else 'larger'} mean")


@exercise
def way_down(answer):
    """How many linear layers hand a gradient on: six blocks, LoRA on value in blocks 2 and 4."""
    need(float(answer) == int(answer), "expected an integer")
    blocks = {str(i): PostNormBlock.random(8, 2, 32, np.random.default_rng(i)) for i in range(6)}
    tower = adapted(Sequential(blocks), r"[24]\..*value")
    count = len(passes_through(tower, _draws()((2, 3, 8)).astype("f4")))
    need(answer == count, f"{answer} is too {'many' if answer > count else 'few'}")
