"""Attention of the first tokens without keys and values: against attention with them, and by complex step."""

import contextlib
import warnings

import numpy as np
import pytest
from checks import MASK, TOLERANCES, assert_close, assert_lives_on, bias_of, linear, lora, move, run, run_of, same_bits

from lorabook import InputError
from lorabook.adapters import LoRALinear, effective_weights, merging_is_cheaper, plain_name
from lorabook.adapters.additive import SAVED
from lorabook.backend import to_numpy
from lorabook.functional import (
    absorbed_attention,
    absorbed_attention_backward,
    absorbing_is_cheaper,
    attention,
    complex_step,
    padding_bias,
)
from lorabook.layers import MERGED, RUN, Layer, Linear, Run, Sequential, check_layer, prefixed
from lorabook.models import PostNormBlock, SelfAttention

B, T, D_IN, D, HEADS = 3, 5, 6, 8, 2  # f, the number of tokens that ask, is 1, 2 or 4
SMOOTH = 1e-11
NAMES = ("q", "x", "W_k", "W_v", "b_v")
EVERY_F = pytest.mark.parametrize("f", [1, 2, 4])
EVERY_BIAS = pytest.mark.parametrize("kind", ["none", "causal", "padding", "causal and padding"])


def drawn(rng, f):
    """{name: array} of what attention reads, and dout."""
    shapes = (B, f, D), (B, T, D_IN), (D, D_IN), (D, D_IN), (D,)
    return {n: 0.7 * rng.standard_normal(s) for n, s in zip(NAMES, shapes, strict=True)}, rng.standard_normal((B, f, D))


def rows_of_bias(kind, x, f):
    """The bias of the first f tokens of x."""
    bias = bias_of(kind, x)
    return bias if bias is None or bias.shape[-2] == 1 else bias[..., :f, :]


def absorbed(arrays, kind):
    q, x, *weights = arrays.values()
    return absorbed_attention(q, x, *weights, HEADS, rows_of_bias(kind, x, q.shape[1]))


# ---- the function ----------------------------------------------------------------------------------------------------


@EVERY_F
@EVERY_BIAS
@pytest.mark.parametrize("value_bias", [True, False], ids=["bias", "no_bias"])
def test_it_is_attention_with_keys_and_values(put, rng, f, kind, value_bias):
    arrays, _ = drawn(rng, f)
    if not value_bias:
        arrays["b_v"] = None
    q, x, W_k, W_v, b_v = arrays.values()
    k, v = x @ W_k.T + rng.standard_normal(D), x @ W_v.T + (b_v if value_bias else 0)
    want, _ = attention(q, k, v, HEADS, rows_of_bias(kind, x, f))
    got, _ = absorbed({n: a if a is None else put(a) for n, a in arrays.items()}, kind)
    assert_lives_on(put(q), got)
    assert_close(got, want, 1e-13)


@EVERY_F
@EVERY_BIAS
def test_every_gradient(rng, f, kind):
    arrays, dout = drawn(rng, f)
    _, cache = absorbed(arrays, kind)
    grads = dict(zip(NAMES, absorbed_attention_backward(dout, cache), strict=True))
    for name, array in arrays.items():

        def loss(value, name=name):
            return np.sum(dout * absorbed({n: a.astype(complex) for n, a in arrays.items()} | {name: value}, kind)[0])

        assert_close(grads[name], complex_step(loss, array), SMOOTH)


@pytest.mark.parametrize(("f", "kind"), [(1, "none"), (1, "padding"), (2, "causal"), (4, "causal and padding")])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_same_on_every_backend(put, rng, f, kind, dtype):
    arrays, dout = drawn(rng, f)
    o, cache = absorbed(arrays, kind)
    want = o, *absorbed_attention_backward(dout, cache)
    o, cache = absorbed({n: put(a, dtype) for n, a in arrays.items()}, kind)
    got = o, *absorbed_attention_backward(put(dout, dtype), cache)
    assert_lives_on(put(dout, dtype), *got)
    for a, b in zip(got, want, strict=True):
        assert_close(a, b, 4 * TOLERANCES[dtype])


def test_without_dx_the_same_gradients(rng):
    arrays, dout = drawn(rng, 1)
    _, cache = absorbed(arrays, "padding")
    dq, _, *rest = absorbed_attention_backward(dout, cache)
    dq_, none, *rest_ = absorbed_attention_backward(dout, cache, need_dx=False)
    assert none is None
    assert all(same_bits(a, b) for a, b in zip((dq_, *rest_), (dq, *rest), strict=True))


@EVERY_F
def test_nothing_is_written_to(rng, f):
    arrays, dout = drawn(rng, f)
    held = {**arrays, "dout": dout, "bias": rows_of_bias("causal and padding", arrays["x"], f)}
    before = {n: a.copy() for n, a in held.items()}
    o, cache = absorbed_attention(*arrays.values(), HEADS, held["bias"])
    kept = o.copy()
    first, second = absorbed_attention_backward(dout, cache), absorbed_attention_backward(dout, cache)
    assert all(same_bits(a, b) for a, b in zip(first, second, strict=True))
    assert same_bits(o, kept)
    assert all(same_bits(array, before[n]) for n, array in held.items())


def test_a_text_of_nothing_but_padding_gets_the_mean_of_all(rng):
    arrays, dout = drawn(rng, 1)
    mask = MASK.copy()
    mask[1] = False
    o, cache = absorbed_attention(*arrays.values(), HEADS, padding_bias(mask, arrays["x"]))
    assert_close(o[1, 0], arrays["W_v"] @ arrays["x"][1].mean(axis=0) + arrays["b_v"], 1e-13)
    assert all(np.isfinite(a).all() for a in absorbed_attention_backward(dout, cache))


def test_large_scores_do_not_overflow(rng):
    arrays, dout = drawn(rng, 1)
    arrays = {n: (1e3 * a).astype("f4") for n, a in arrays.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        o, cache = absorbed(arrays, "padding")
        grads = absorbed_attention_backward(dout.astype("f4"), cache)
    assert all(np.isfinite(a).all() for a in (o, *grads))


@pytest.mark.parametrize(
    ("f", "T", "heads", "d", "cheaper"),
    [
        (1, 128, 12, 768, True),  # BERT
        (1, 5, 2, 8, True),  # 18 < 40
        (2, 5, 2, 8, True),  # 36 < 40
        (3, 5, 2, 8, False),  # 54 > 40
        (5, 5, 2, 8, False),
        (2, 4, 2, 8, False),  # 32 = 32
        (1, 1, 2, 8, False),  # a single token needs one key and one value
        (1, 128, 8, 8, False),  # d_head = 1
        (1, 2, 4, 8, False),  # 16 = 16
        (1, 3, 4, 8, True),  # 20 < 24
    ],
)
def test_where_it_is_cheaper(f, T, heads, d, cheaper):
    assert absorbing_is_cheaper(f, T, heads, d) == cheaper


# ---- self-attention --------------------------------------------------------------------------------------------------


class Asking(Layer):
    """Self-attention, or a block, of the first tokens, with one kind of bias."""

    def __init__(self, layer, first=1, kind="padding"):
        super().__init__(children={"of": layer})
        self.first, self.kind = first, kind

    def forward(self, x, run=RUN):
        return self.children["of"](x, run_of(self.kind, x, run).but(first=self.first))

    def backward(self, dout, cache, need_dx=True):
        dx, grads = self.children["of"].backward(dout, cache, need_dx)
        return dx, prefixed("of", grads)


def plain(rng, bias=True):
    return linear(rng, D_IN, D, bias)


def with_lora(rng, order="merged", also=(), r=3, bias=True, **options):
    base = plain(rng, bias)
    layer = LoRALinear(base, r=r, lora_alpha=2, init_lora_weights=False, rng=rng, order=order, **options)
    base.set_trainable(also)
    return layer


def merged(rng, **options):
    layer = with_lora(rng, **options)
    layer.merge()
    return layer


def self_attention(rng, query=plain, key=plain, value=plain):
    return SelfAttention(query(rng), key(rng), value(rng), HEADS)


def tokens(rng, d=D_IN):
    return 0.7 * rng.standard_normal((B, T, d))


def absorbs(layer, x, rng=None, first=1, kind="padding"):
    _, caches = layer(x, run_of(kind, x, Run(rng=rng, first=first)))
    return len(caches) == 3


class Never:
    """absorbing_is_cheaper is never so, inside."""

    def __enter__(self):
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr("lorabook.models.attention.absorbing_is_cheaper", lambda *sizes: False)

    def __exit__(self, *error):
        self.patch.undo()


CHILDREN = {  # (query, key, value)
    "full": (plain, plain, plain),
    "no biases": (lambda rng: plain(rng, bias=False),) * 3,
    "lora": (with_lora,) * 3,
    "lora without biases": (lambda rng: with_lora(rng, bias=False),) * 3,
    "lora and weights": (lambda rng: with_lora(rng, also=["weight", "bias"]),) * 3,
    "rslora": (lambda rng: with_lora(rng, use_rslora=True),) * 3,
    "lora on query and value": (with_lora, plain, with_lora),
    "lora on the key": (plain, with_lora, plain),
    "factored query with dropout": (lambda rng: with_lora(rng, "factored", lora_dropout=0.4), with_lora, plain),
}
EVERY_CHILD = pytest.mark.parametrize("children", CHILDREN.values(), ids=CHILDREN)


@EVERY_CHILD
@pytest.mark.parametrize("first", [1, 2])
@EVERY_BIAS
def test_the_same_with_keys_and_values(rng, children, first, kind):
    layer, x, dout = (
        Asking(self_attention(rng, *children), first, kind),
        tokens(rng),
        rng.standard_normal((B, first, D)),
    )
    assert absorbs(layer.children["of"], x, first=first)
    got = run(layer, x, dout, seed=3)
    with Never():
        assert not absorbs(layer.children["of"], x, first=first)
        want = run(layer, x, dout, seed=3)
    assert_close(got[0], want[0], 1e-13)
    assert_close(got[1], want[1], 1e-13)
    assert got[2].keys() == want[2].keys() == layer.trainable_params().keys()
    largest = max(np.abs(grad).max() for grad in want[2].values())  # a key's bias has gradient 0
    for path, grad in want[2].items():
        np.testing.assert_allclose(got[2][path], grad, rtol=0, atol=1e-13 * largest, err_msg=path)


def test_causal_with_padding_on_the_left(put, rng):
    """The second token sees itself alone if the first is padding; the first then sees nothing, and is not asked."""
    layer, x, dout = self_attention(rng), tokens(rng), rng.standard_normal((B, 2, D)) * [[0], [1]]
    want = to_numpy(layer.children["value"](x)[0])[:, 1]
    move(layer, put)
    mask = put(np.broadcast_to(np.arange(T) > 0, (B, T)), bool)
    given, results = Run(causal=True, first=2, bias=padding_bias(mask, put(x))), []
    for way in (contextlib.nullcontext(), Never()):
        with way:
            y, caches = layer(put(x), given)
            results.append((y, *layer.backward(put(dout), caches), len(caches)))
    (y, dx, grads, absorbed), (y_, dx_, grads_, made) = results
    assert (absorbed, made) == (3, 4)
    for output in (y, y_):
        assert_close(to_numpy(output)[:, 1], want, 1e-14)
    assert_close(dx, dx_, 1e-13)
    assert np.all(to_numpy(dx)[:, 2:] == 0)
    assert_close(grads["value.weight"], grads_["value.weight"], 1e-13)


@EVERY_CHILD
@pytest.mark.parametrize("first", [1, 2])
def test_gradients_above_a_linear_layer(rng, children, first):
    layer = Sequential({"below": linear(rng, 4, D_IN), "layer": Asking(self_attention(rng, *children), first)})
    errors = check_layer(layer, 0.4 * tokens(rng, 4), rng, dropout_seed=3)
    assert errors.keys() == {"x"} | layer.trainable_params().keys()
    assert max(errors.values()) < SMOOTH


@pytest.mark.parametrize("also", [(), ("weight", "bias")], ids=["lora", "lora and weights"])
@pytest.mark.parametrize("kind", ["none", "causal and padding"])
def test_gradients_of_a_block_with_lora_on_key_and_value(rng, also, kind):
    block = PostNormBlock.random(D, HEADS, 7, rng, eps=0.1).to(np, "float64")
    attention = block.children["attention"].children["self"]
    block.freeze()
    for name in ("key", "value"):
        layer = LoRALinear(attention.children[name], r=3, init_lora_weights=False, rng=rng, order="merged")
        layer.params["lora_B"] *= 20
        layer.base_layer.set_trainable(also)
        attention.children[name] = layer
    assert absorbs(attention, tokens(rng, D))
    errors = check_layer(Asking(block, 1, kind), tokens(rng, D), rng)
    assert len(errors) == 1 + 2 * (2 + len(also))
    assert max(errors.values()) < SMOOTH


@pytest.mark.parametrize("children", [CHILDREN["full"], CHILDREN["lora and weights"]], ids=["full", "lora"])
def test_the_bias_of_a_key_has_gradient_zero(rng, children):
    layer = self_attention(rng, *children)
    _, _, grads = run(Asking(layer), tokens(rng), rng.standard_normal((B, 1, D)))
    (bias,) = (grad for name, grad in grads.items() if name.startswith("of.key") and name.endswith("bias"))
    assert same_bits(np.abs(bias), np.zeros(D))


@EVERY_CHILD
def test_self_attention_without_dx(rng, children):
    layer, x, dout = Asking(self_attention(rng, *children)), tokens(rng), rng.standard_normal((B, 1, D))
    _, _, grads = run(layer, x, dout)
    _, none, grads_ = run(layer, x, dout, need_dx=False)
    assert none is None
    assert grads.keys() == grads_.keys()
    assert all(same_bits(grads_[path], grads[path]) for path in grads)


def test_a_query_that_is_frozen_is_visited_for_dx_only(rng):
    layer, x, dout, called = self_attention(rng), tokens(rng), rng.standard_normal((B, 1, D)), []
    query = layer.children["query"]
    query.freeze()
    query.backward = lambda *args: called.append(args) or Linear.backward(query, *args)
    for need_dx in (False, True):
        _, _, grads = run(Asking(layer), x, dout, need_dx=need_dx)
        assert len(called) == need_dx
        assert grads.keys() == {f"of.{name}.{part}" for name in ("key", "value") for part in ("weight", "bias")}


def test_self_attention_writes_to_nothing(rng):
    layer, x, dout = Asking(self_attention(rng, *CHILDREN["lora"]), kind="causal"), tokens(rng), tokens(rng, D)[:, :1]
    held = {"x": x, "dout": dout, **layer.named_params()}
    before = {n: a.copy() for n, a in held.items()}
    _, cache = layer(x)
    first, second = layer.backward(dout, cache), layer.backward(dout, cache)
    assert same_bits(first[0], second[0])
    assert all(same_bits(first[1][path], second[1][path]) for path in first[1])
    assert all(same_bits(array, before[n]) for n, array in held.items())


@EVERY_CHILD
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_self_attention_on_every_backend(put, rng, children, dtype):
    layer, x, dout = Asking(self_attention(rng, *children), 2), tokens(rng), rng.standard_normal((B, 2, D))
    y, dx, grads = run(layer, x, dout)
    y_, dx_, grads_ = run(move(layer, put, dtype), put(x, dtype), put(dout, dtype))
    assert_lives_on(put(x, dtype), y_, dx_, *grads_.values())
    assert_close(y_, y, 4 * TOLERANCES[dtype])
    assert_close(dx_, dx, 4 * TOLERANCES[dtype])
    for path, grad in grads.items():
        assert_close(to_numpy(grads_[path]), grad, 4 * TOLERANCES[dtype])


# ---- which way it goes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("first", "so"), [(1, True), (2, True), (3, False), (T, False), (None, False)])
def test_few_tokens_that_ask(rng, first, so):
    assert absorbs(self_attention(rng), tokens(rng), first=first) == so


def factored(rng):
    return with_lora(rng, "factored")


def dropping(rng):
    return with_lora(rng, lora_dropout=0.4)


def merged_dropping(rng):
    return merged(rng, order="factored", lora_dropout=0.4)


@pytest.mark.parametrize(
    ("children", "evaluating", "training"),
    [
        ((factored, plain, plain), True, True),
        ((dropping, plain, with_lora), True, True),
        ((plain, factored, plain), False, False),
        ((plain, plain, factored), False, False),
        ((plain, dropping, plain), True, False),
        ((plain, plain, dropping), True, False),
        ((plain, merged_dropping, merged), True, True),
    ],
    ids=lambda case: ", ".join(f.__name__ for f in case) if isinstance(case, tuple) else str(case),
)
def test_key_and_value_must_each_be_one_matrix(rng, children, evaluating, training):
    layer, x = self_attention(rng, *children), tokens(rng)
    assert absorbs(layer, x) == evaluating
    assert absorbs(layer, x, np.random.default_rng(1)) == training


def test_the_automatic_order_counts_all_rows(rng):
    layer = self_attention(rng, key=lambda rng: with_lora(rng, "auto"), value=lambda rng: with_lora(rng, "auto"))
    assert merging_is_cheaper(2 * 3, D_IN, D) and not merging_is_cheaper(3, D_IN, D)
    for texts, so in ((1, False), (2, True)):
        x = np.concatenate(SAVED * [tokens(rng)[:texts, :3]], axis=1)
        assert absorbs(layer, x, kind="none") == so


def test_a_shared_weight_is_read_and_not_formed_again(rng):
    layer, x = self_attention(rng, key=lambda rng: with_lora(rng, "auto")), tokens(rng)[:, :3]
    want, _ = layer(x, Run(first=1))
    key = layer.children["key"]
    formed = Run(first=1, weights=effective_weights(layer, B * T))
    key.delta_weight = lambda: 1 / 0
    got, caches = layer(x[:1], formed)  # too few rows to merge by themselves
    assert len(caches) == 3
    assert_close(got, want[:1], 1e-14)


# ---- merged ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["key", "value"])
def test_backward_after_a_merged_forward_is_refused(rng, name):
    layer, x = self_attention(rng, **{name: merged}), tokens(rng)
    assert absorbs(layer, x)
    y, cache = layer(x, Run(first=1))
    for undo in (lambda: None, layer.children[name].unmerge):
        undo()
        with pytest.raises(InputError) as caught:
            layer.backward(np.ones(y.shape), cache)
        assert str(caught.value) == MERGED
    y, cache = layer(x, Run(first=1))
    assert len(layer.backward(np.ones(y.shape), cache)[1]) == 2 * 2 + 2


def test_merging_changes_nothing(rng):
    layer, x = self_attention(rng, *CHILDREN["lora"]), tokens(rng)
    y, _ = layer(x, Run(first=1))
    for child in layer.children.values():
        child.merge()
    assert absorbs(layer, x)
    assert_close(layer(x, Run(first=1))[0], y, 1e-13)


# ---- effective weights, and gradients by way of theirs ---------------------------------------------------------------


def test_the_effective_weight_of_a_linear_layer_is_its_weight(rng):
    layer = linear(rng)
    for found in (layer.effective_weight(1), layer.effective_weight(999, Run(rng=rng))):
        assert found[0] is layer.weight is layer.params["weight"] and found[1] is None


@pytest.mark.parametrize("order", ["merged", "auto"])
def test_forward_multiplies_by_the_effective_weight(rng, order):
    layer, x = lora(rng, order, use_rslora=True), rng.standard_normal((40, 5))
    W, A, B = layer.weight, layer.params["lora_A"], layer.params["lora_B"]
    effective, cache = layer.effective_weight(40)
    assert cache is None
    assert same_bits(layer(x)[0], x @ effective.T + layer.bias)
    assert_close(effective, W + layer.scaling * B @ A, 1e-15)
    assert not np.shares_memory(effective, W)


def test_where_there_is_no_effective_weight(rng):
    assert lora(rng, "factored").effective_weight(999) is None
    assert lora(rng, "auto").effective_weight(1) is None
    assert lora(rng, "merged", lora_dropout=0.1).effective_weight(999, Run(rng=rng)) is None
    assert lora(rng, "merged", lora_dropout=0.1).effective_weight(999) is not None
    assert lora(rng, "merged").effective_weight(1, Run(rng=rng)) is not None


@pytest.mark.parametrize("order", ["factored", "merged"])
def test_the_effective_weight_of_a_merged_layer_is_its_weight(rng, order):
    layer = lora(rng, order, lora_dropout=0.1)
    layer.merge()
    effective, cache = layer.effective_weight(1, Run(rng=rng))
    assert effective is layer.weight is layer.base_layer.params["weight"] and cache is None


@pytest.mark.parametrize("also", [(), ("bias",), ("weight", "bias")], ids=str)
@pytest.mark.parametrize("use_rslora", [False, True])
def test_gradients_of_lora_by_way_of_the_weight(put, rng, also, use_rslora):
    layer, x, dout = (
        lora(rng, also=also, use_rslora=use_rslora),
        rng.standard_normal((9, 5)),
        rng.standard_normal((9, 7)),
    )
    _, _, want = run(layer, x, dout)
    got = move(layer, put).grads_of_weight(put(dout.T @ x), put(dout.sum(axis=0)), None)
    assert got.keys() == want.keys() == {"lora_A", "lora_B", *(f"base_layer.{name}" for name in also)}
    for name, grad in want.items():
        assert_close(got[name], grad, 1e-14)


@pytest.mark.parametrize("names", [(), ("bias",), ("weight",), ("weight", "bias"), ("lora_A",), ("lora_B",)], ids=str)
def test_only_what_trains_gets_a_gradient(rng, names):
    dweight, dbias = rng.standard_normal((7, 5)), rng.standard_normal(7)
    tried = 0
    for layer in (linear(rng), lora(rng)):
        own = {plain_name(name): name for name in layer.named_params()}
        if set(names) <= own.keys():
            layer.set_trainable(own[name] for name in names)
            assert layer.grads_of_weight(dweight, dbias, None).keys() == {own[name] for name in names}
            tried += 1
    assert tried == (1 if names and names[0].startswith("lora_") else 2)
    layer = linear(rng, bias=False)
    assert list(layer.grads_of_weight(dweight, dbias, None)) == ["weight"]


def test_absorbed_attention_of_no_texts(put):
    W = put(np.zeros((8, 6)))
    assert absorbed_attention(put(np.zeros((0, 1, 8))), put(np.zeros((0, 5, 6))), W, W, None, 2)[0].shape == (0, 1, 8)
