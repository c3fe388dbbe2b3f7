"""Checks of the exercises of chapter 09."""

import numpy as np

from ...adapters import merging_is_cheaper
from ...functional import complex_step, relative_error
from ...layers import INFERENCE
from ...models import KVCache, LlamaForCausalLM
from ..parts import SMOLLM2, decoder
from . import exercise, need


@exercise
def capped(answer):
    """dlogits of cap * tanh(logits / cap), from the output alone."""
    need(callable(answer), "expected a function of dcapped, capped and cap")
    logits, dcapped = np.random.default_rng(9).standard_normal((2, 5, 4)) * 3
    for cap in (1.5, 4.0):
        got = np.asarray(answer(dcapped, cap * np.tanh(logits / cap), cap))
        need(got.shape == logits.shape, f"expected the shape of the logits, {logits.shape}; got {got.shape}")
        exact = complex_step(lambda v, cap=cap: np.sum(dcapped * cap * np.tanh(v / cap)), logits)
        apart = relative_error(got, exact)
        need(apart < 1e-11, f"cap = {cap}: the complex step is {apart:.0e} away")


@exercise
def tied_A(answer):
    """dA of an adapter on the matrix of words, which is used twice."""
    need(callable(answer), "expected a function of dx, ids, dlogits, y, B and s")
    rng = np.random.default_rng(9)
    N, words, d, r, s = 6, 11, 5, 2, 0.7
    A, B, W, dx, y = (rng.standard_normal(shape) for shape in ((r, d), (words, r), (words, d), (N, d), (N, d)))
    dlogits, ids = rng.standard_normal((N, words)), rng.integers(0, words, N)

    def loss(A):
        both = W + s * B @ A
        return np.sum(dx * both[ids]) + np.sum(dlogits * (y @ both.T))

    got = np.asarray(answer(dx, ids, dlogits, y, B, s))
    need(got.shape == A.shape, f"expected the shape of A, {A.shape}; got {got.shape}")
    apart = relative_error(got, complex_step(loss, A))
    need(apart < 1e-11, f"the complex step is {apart:.0e} away")


@exercise
def cache_bytes(answer):
    """Bytes of keys and values for one token, counted in a cache that was used."""
    need(callable(answer), "expected a function of layers, kv_heads and d_head")
    for layers, heads, kv_heads, d_head in ((2, 4, 2, 6), (3, 6, 6, 2), (1, 6, 2, 4)):
        own = {"hidden_size": heads * d_head, "intermediate_size": 8, "num_hidden_layers": layers}
        own |= {"num_attention_heads": heads, "num_key_value_heads": kv_heads}
        cache = KVCache(1, 1)
        LlamaForCausalLM(SMOLLM2 | own)({"input_ids": np.zeros((1, 1), int)}, INFERENCE.but(kv=cache))
        held = sum(array.nbytes for pair in cache._held.values() for array in pair)
        got = answer(layers, kv_heads, d_head)
        side = "fewer" if got > held else "more"
        where = f"{layers} blocks, {kv_heads} heads of keys, {d_head} numbers each"
        need(got == held, f"{where}: the cache holds {side} bytes than {got}")


@exercise
def all_merged(answer):
    """The smallest N from which merging is cheaper for all seven matrices."""
    need(float(answer) == int(answer), "expected an integer")
    shapes = {row["part"]: (row["columns"], row["rows"]) for row in decoder()}
    above = [part for part, shape in shapes.items() if not merging_is_cheaper(int(answer), *shape)]
    need(not above, f"with {answer} tokens it is not for {', '.join(above)}")
    below = all(merging_is_cheaper(int(answer) - 1, *shape) for shape in shapes.values())
    need(not below, f"{int(answer) - 1} tokens are enough")
