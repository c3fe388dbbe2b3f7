"""The smallest code of chapter 05 gives what the library gives, and its gradients are those of its own forward pass."""

import numpy as np
import pytest

from lorabook import functional as F
from lorabook.book import plain
from lorabook.book.listing import code
from lorabook.layers import Activation
from lorabook.models import BLOCK, PostNormBlock


@pytest.mark.parametrize("causal", [False, True])
def test_plain_attention(rng, causal):
    q, k, v, dout = rng.standard_normal((4, 2, 5, 6))
    bias = F.causal_bias(5, q) if causal else 0
    o, cache = plain.attention(q, k, v, 2, bias)
    want, library = F.attention(q, k, v, 2, causal=causal)
    assert F.relative_error(o, want) < 1e-13
    grads = plain.attention_backward(dout, cache)
    for name, grad, other in zip("qkv", grads, F.attention_backward(dout, library), strict=True):

        def loss(value, name=name):
            inputs = {n: a.astype(complex) for n, a in ({"q": q, "k": k, "v": v} | {name: value}).items()}
            return np.sum(dout * plain.attention(**inputs, heads=2, bias=bias)[0])

        assert F.relative_error(grad, F.complex_step(loss, {"q": q, "k": k, "v": v}[name])) < 1e-12
        assert F.relative_error(grad, other) < 1e-12


def test_plain_block(rng):
    block = PostNormBlock.random(6, 2, 10, rng).to(np, "float64")
    for array in block.named_params().values():
        array[...] = rng.standard_normal(array.shape)
    found, x, dy = dict(block.named_layers()), *rng.standard_normal((2, 2, 4, 6))
    layers = {part: found[path] for part, path in BLOCK.items()} | {"gelu": Activation("gelu")}
    y, caches = plain.block(x, layers, 2)
    want, cache = block(x)
    assert F.relative_error(y, want) < 1e-13
    dx, grads = plain.block_backward(dy, layers, caches)
    want, expected = block.backward(dy, cache)
    assert F.relative_error(dx, want) < 1e-11
    got = {f"{BLOCK[part]}.{name}": grad for part, own in grads.items() for name, grad in own.items()}
    assert got.keys() == expected.keys()
    largest = max(np.abs(grad).max() for grad in expected.values())
    assert all(F.relative_error(got[name], expected[name], largest) < 1e-11 for name in got)


def test_code_is_the_source_without_its_docstring():
    text = code(plain.attention_backward)
    assert text.startswith("def attention_backward(dout, cache):\n    q, k, v, p, o, c = cache") and '"""' not in text
    assert code(PostNormBlock.forward).startswith("def forward(self")  # a method, with no docstring
