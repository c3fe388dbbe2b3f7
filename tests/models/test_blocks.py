"""Self-attention and the two blocks: who sees whom, and gradients by complex step inside stacks of two."""

import numpy as np
import pytest
from checks import MASK, TOLERANCES, assert_close, assert_lives_on, bias_of, linear, move, run, run_of, same_bits

from lorabook import InputError, LoRAConfig, inject
from lorabook.adapters import adapters
from lorabook.backend import to_numpy
from lorabook.functional import attend as A
from lorabook.layers import RUN, Embedding, Layer, LayerNorm, Run, Sequential, add_grads, check_layer, prefixed
from lorabook.models import BLOCK, PostNormBlock, PreNormBlock, SelfAttention
from lorabook.models.distilbert import DISTILBERT

B, T, D, HEADS, D_MLP, BELOW, ABOVE = 3, 5, 8, 2, 7, 6, 9  # all different: a wrong transpose is a shape error
BIASES = ("none", "causal", "padding", "causal and padding")
EVERY_BIAS = pytest.mark.parametrize("kind", BIASES)
SMOOTH = 1e-11


class Biased(Layer):
    """A layer that always hides the same from its tokens, whatever the run says of that."""

    def __init__(self, layer, kind, **options):
        super().__init__(children={"of": layer})
        self.kind, self.options = kind, options

    def forward(self, x, run=RUN):
        return self.children["of"](x, run_of(self.kind, x, run).but(**self.options))

    def backward(self, dout, cache, need_dx=True):
        dx, grads = self.children["of"].backward(dout, cache, need_dx)
        return dx, prefixed("of", grads)


def norm(rng):
    return LayerNorm(1 + 0.3 * rng.standard_normal(D), rng.standard_normal(D), eps=0.1)


def attention(rng):
    return SelfAttention(*(linear(rng, D, D) for _ in range(3)), HEADS)


def post_norm(rng, names=BLOCK):
    sizes = dict.fromkeys(("query", "key", "value", "output"), (D, D)) | {"up": (D, D_MLP), "down": (D_MLP, D)}
    layers = {part: linear(rng, *size) for part, size in sizes.items()}
    return PostNormBlock(layers | {"norm1": norm(rng), "norm2": norm(rng)}, HEADS, names=names)


def pre_norm(rng):
    layers = norm(rng), attention(rng), linear(rng, D, D), norm(rng), linear(rng, D, D_MLP), linear(rng, D_MLP, D)
    return PreNormBlock(*layers)


PARTS = {"attention": attention, "post_norm": post_norm, "pre_norm": pre_norm}
EVERY_PART = pytest.mark.parametrize("name", PARTS)
BLOCKS = {"post_norm": post_norm, "pre_norm": pre_norm}
LINEARS = {
    "attention": ("query", "key", "value"),
    "post_norm": (
        *(f"attention.self.{n}" for n in ("query", "key", "value")),
        *("attention.output.dense", "intermediate.dense", "output.dense"),
    ),
    "pre_norm": (*(f"attention.{n}" for n in ("query", "key", "value")), "output", "up", "down"),
}
EVERY_LINEAR = pytest.mark.parametrize(("name", "path"), [(n, p) for n, paths in LINEARS.items() for p in paths])


def adapted(layer, targets, rng, order="auto", **options):
    """The layer with LoRA, lora_B not zero, on these paths."""
    inject(layer, LoRAConfig(r=4, lora_alpha=3, target_modules=targets, init_lora_weights=False, **options), rng)
    for adapter in adapters(layer).values():
        adapter.order = order
    return layer


def tokens(rng, d=D, batch=B):
    return 0.7 * rng.standard_normal((batch, T, d))


def assert_right(layer, x, rng, **options):
    errors = check_layer(layer, x, rng, **options)
    assert errors.keys() == {"x"} | layer.trainable_params().keys()
    assert not {name: error for name, error in errors.items() if not error < SMOOTH}


# ---- permutations ----------------------------------------------------------------------------------------------------


def test_permuting_heads_permutes_the_output(rng):
    layer, x = attention(rng), tokens(rng)
    y, _ = layer(x)
    order = np.arange(D).reshape(HEADS, -1)[::-1].ravel()
    for child in layer.children.values():
        for name, array in child.params.items():
            child.params[name] = array[order]
    assert_close(layer(x)[0], y[..., order], 1e-14)


@EVERY_PART
def test_permuting_tokens_permutes_the_output(rng, name):
    layer, x = PARTS[name](rng), tokens(rng)
    order = rng.permutation(T)
    assert_close(layer(x[:, order])[0], layer(x)[0][:, order], 1e-13)


# ---- who sees whom ---------------------------------------------------------------------------------------------------


@EVERY_PART
def test_no_token_depends_on_padding(rng, name):
    layer, x = PARTS[name](rng), tokens(rng)
    padded = Run(bias=bias_of("padding", x))
    y, _ = layer(x, padded)
    other = np.where(MASK[:, :, None], x, 100 * rng.standard_normal(x.shape))
    assert same_bits(layer(other, padded)[0][MASK], y[MASK])
    short, _ = layer(x[1:2, :2])
    assert_close(y[1:2, :2], short, 1e-13)


@EVERY_PART
@pytest.mark.parametrize("causal", [lambda t, x: Run(causal=True), lambda t, x: Run(bias=A.causal_bias(t, x))])
def test_no_token_depends_on_later_ones_when_causal(rng, name, causal):
    layer, x = PARTS[name](rng), tokens(rng)
    y, _ = layer(x, causal(T, x))
    for t in range(1, T):
        other = x.copy()
        other[:, t:] = rng.standard_normal(other[:, t:].shape)
        y_, _ = layer(other, causal(T, x))
        assert same_bits(y_[:, :t], y[:, :t])
        assert not np.allclose(y_[:, t], y[:, t])
        assert_close(layer(x[:, :t], causal(t, x))[0], y[:, :t], 1e-13)


@EVERY_PART
def test_a_hidden_token_gets_no_gradient(rng, name):
    layer, x = Biased(PARTS[name](rng), "padding"), tokens(rng)
    dout = rng.standard_normal(x.shape) * MASK[:, :, None]
    _, dx, _ = run(layer, x, dout)
    assert np.all(dx[~MASK] == 0)
    assert np.all(np.abs(dx[MASK]).max(axis=-1) > 0)


# ---- without keep ----------------------------------------------------------------------------------------------------


@EVERY_PART
@EVERY_BIAS
def test_without_keep_the_same_bits_and_neither_scores_nor_slopes(rng, name, kind):
    layer, x = PARTS[name](rng), tokens(rng)
    y, caches = layer(x, run_of(kind, x))
    y_, caches_ = layer(x, run_of(kind, x).but(keep=False))
    assert same_bits(y_, y)
    attention_at, activation_at = {"attention": (None, None), "post_norm": (0, 4), "pre_norm": (1, 5)}[name]
    for kept, parts in ((True, caches), (False, caches_)):
        *_, (scores, *_) = parts if attention_at is None else parts[attention_at]
        assert bool(scores) == kept
        assert activation_at is None or (parts[activation_at] is not None) == kept


# ---- only what is needed ---------------------------------------------------------------------------------------------


@EVERY_PART
def test_without_dx_the_same_gradients(rng, name):
    layer, x, dout = Biased(PARTS[name](rng), "padding"), tokens(rng), tokens(rng)
    for targets in (None, "all-linear"):
        if targets:
            adapted(layer, targets, rng)
        _, dx, grads = run(layer, x, dout)
        _, none, grads_ = run(layer, x, dout, need_dx=False)
        assert none is None and dx.shape == x.shape
        assert grads_.keys() == grads.keys() == layer.trainable_params().keys()
        assert all(same_bits(grads_[path], grads[path]) for path in grads)


LEVELS = {  # bottom to top: every layer depends on all layers of the levels before it
    "attention": [("query", "key", "value")],
    "post_norm": [
        ("attention.self.query", "attention.self.key", "attention.self.value"),
        *[("attention.output.dense",), ("attention.output.LayerNorm",), ("intermediate.dense",)],
        *[("output.dense",), ("output.LayerNorm",)],
    ],
    "pre_norm": [
        *[("norm1",), ("attention.query", "attention.key", "attention.value"), ("output",)],
        *[("norm2",), ("up",), ("down",)],
    ],
}


def visits(layer, levels, x, dout, need_dx):
    """{path: need_dx} of the leaf layers whose backward was called, and what came back."""
    called, leaves = {}, {path: part for path, part in layer.named_layers() if any(path in level for level in levels)}

    def watch(path, backward):
        def watched(dout, cache, need_dx=True):
            called[path] = need_dx
            return backward(dout, cache, need_dx)

        return watched

    for path, leaf in leaves.items():
        leaf.backward = watch(path, leaf.backward)
    try:
        _, dx, grads = run(layer, x, dout, need_dx=need_dx)
    finally:
        for leaf in leaves.values():
            del leaf.backward
    return called, dx, grads


@EVERY_PART
def test_nothing_below_the_lowest_trainable_layer_is_computed(rng, name):
    layer, x, dout, levels = PARTS[name](rng), tokens(rng), tokens(rng), LEVELS[name]
    _, _, everything = run(layer, x, dout)
    assert {p.rpartition(".")[0] for p in everything} == {path for level in levels for path in level}
    for height, level in enumerate(levels):
        for path in level:
            layer.set_trainable([f"{path}.weight"])
            called, dx, grads = visits(layer, levels, x, dout, need_dx=False)
            above = {p for higher in levels[height + 1 :] for p in higher}
            assert called == {path: False} | dict.fromkeys(above, True)
            assert dx is None
            assert same_bits(grads.pop(f"{path}.weight"), everything[f"{path}.weight"])
            assert not grads


def test_an_output_inside_of_attention_is_above_it(rng):
    """In DistilBERT's names `attention` holds the output's layer too: what trains there asks for no attention below."""
    layer, x, dout = post_norm(rng, DISTILBERT.block), tokens(rng), tokens(rng)
    levels = [("attention.q_lin", "attention.k_lin", "attention.v_lin"), ("attention.out_lin",), ("sa_layer_norm",)]
    levels += [("ffn.lin1",), ("ffn.lin2",), ("output_layer_norm",)]
    for height, level in enumerate(levels):
        for path in level:
            layer.set_trainable([f"{path}.weight"])
            called, dx, grads = visits(layer, levels, x, dout, need_dx=False)
            above = {p for higher in levels[height + 1 :] for p in higher}
            assert called == {path: False} | dict.fromkeys(above, True)
            assert dx is None and grads.keys() == {f"{path}.weight"}


@EVERY_PART
def test_a_frozen_layer_still_hands_dx_down(rng, name):
    layer, x, dout, levels = PARTS[name](rng), tokens(rng), tokens(rng), LEVELS[name]
    _, dx, _ = run(layer, x, dout)
    layer.freeze()
    called, dx_, grads = visits(layer, levels, x, dout, need_dx=True)
    assert called == {path: True for level in levels for path in level}
    assert same_bits(dx_, dx) and not grads
    called, dx_, grads = visits(layer, levels, x, dout, need_dx=False)
    assert dx_ is None and not grads


@EVERY_LINEAR
def test_dropout_reaches_every_linear_layer(rng, name, path):
    layer, x = adapted(PARTS[name](rng), [path], rng, lora_dropout=0.5), tokens(rng)
    rest, _ = layer(x)
    first, second, other = (layer(x, Run(rng=np.random.default_rng(seed)))[0] for seed in (1, 1, 2))
    assert same_bits(first, second)
    assert not np.allclose(first, rest)
    assert not np.allclose(first, other)


# ---- only the first tokens -------------------------------------------------------------------------------------------

FIRST = pytest.mark.parametrize("first", [1, 2, 3, T])  # attention of 1 and 2 of 5 is cheaper absorbed
CAN_BE_FIRST = pytest.mark.parametrize("name", ["attention", "post_norm"])


@CAN_BE_FIRST
@FIRST
@EVERY_BIAS
def test_the_first_tokens_are_as_among_all(put, rng, name, first, kind):
    layer, x, dout = PARTS[name](rng), tokens(rng), rng.standard_normal((B, first, D))
    y, dx, grads = run(Biased(layer, kind), x, np.pad(dout, ((0, 0), (0, T - first), (0, 0))))
    y_, dx_, grads_ = run(Biased(move(layer, put), kind, first=first), put(x), put(dout))
    assert_close(y_, y[:, :first], 1e-13)
    assert_close(dx_, dx, 1e-13)
    largest = max(np.abs(grad).max() for grad in grads.values())  # a key's bias has gradient 0
    assert grads_.keys() == grads.keys()
    for path, grad in grads.items():
        np.testing.assert_allclose(to_numpy(grads_[path]), grad, rtol=0, atol=1e-13 * largest, err_msg=path)


@CAN_BE_FIRST
@pytest.mark.parametrize("first", [1, 2, 3, T, None])
@pytest.mark.parametrize("kind", ["causal", "causal and padding"])
def test_causal_has_the_bits_of_the_bias(put, rng, name, first, kind):
    """In both orders of attention; of f tokens the bias is the first f rows of that of all."""
    layer, x, dout = PARTS[name](rng), put(tokens(rng)), put(rng.standard_normal((B, first or T, D)))
    move(layer, put)
    added = Run(first=first, bias=bias_of(kind, x)[..., :first, :])
    results = []
    for given in (added, run_of(kind, x, Run(first=first))):
        y, cache = layer(x, given)
        dx, grads = layer.backward(dout, cache)
        assert_lives_on(x, y, dx, *grads.values())
        results.append([y, dx, *grads.values()])
    assert all(same_bits(a, b) for a, b in zip(*results, strict=True))
    seen, _ = layer(x, added.but(bias=None))
    assert np.allclose(to_numpy(seen)[:, -1], to_numpy(results[0][0])[:, -1]) == (
        kind == "causal" and first in (T, None)
    )


@FIRST
@EVERY_BIAS
def test_gradients_of_the_first_tokens_of_a_stack(rng, first, kind):
    stack = Sequential({"0": Biased(post_norm(rng), kind), "1": Biased(post_norm(rng), kind, first=first)})
    assert_right(stack, tokens(rng), rng)


@FIRST
@pytest.mark.parametrize("order", ["factored", "merged"])
def test_gradients_of_the_first_tokens_with_lora(rng, first, order):
    stack = Sequential({"0": Biased(post_norm(rng), "padding"), "1": Biased(post_norm(rng), "padding", first=first)})
    assert_right(adapted(stack, "all-linear", rng, order, bias="all"), tokens(rng), rng)


@FIRST
def test_gradients_of_the_first_tokens_with_dropout(rng, first):
    stack = Sequential({"0": Biased(post_norm(rng), "padding"), "1": Biased(post_norm(rng), "padding", first=first)})
    assert_right(adapted(stack, "all-linear", rng, lora_dropout=0.4), tokens(rng), rng, dropout_seed=5)


@FIRST
def test_gradients_of_the_first_tokens_below_and_above_linear_layers(rng, first):
    layers = {"below": linear(rng, BELOW, D), "layer": Biased(post_norm(rng), "causal", first=first)}
    assert_right(Sequential(layers | {"above": linear(rng, D, ABOVE)}), 0.4 * tokens(rng, BELOW), rng)


@CAN_BE_FIRST
@FIRST
def test_the_first_tokens_without_dx(rng, name, first):
    layer, x = Biased(PARTS[name](rng), "padding", first=first), tokens(rng)
    dout = rng.standard_normal((B, first, D))
    _, dx, grads = run(layer, x, dout)
    _, none, grads_ = run(layer, x, dout, need_dx=False)
    assert none is None and dx.shape == x.shape
    assert grads_.keys() == grads.keys() == layer.trainable_params().keys()
    assert all(same_bits(grads_[path], grads[path]) for path in grads)


@CAN_BE_FIRST
def test_the_first_token_writes_to_nothing(rng, name):
    layer, x, dout = Biased(PARTS[name](rng), "causal", first=1), tokens(rng), rng.standard_normal((B, 1, D))
    held = {"x": x, "dout": dout, **layer.named_params()}
    before = {n: a.copy() for n, a in held.items()}
    _, cache = layer(x)
    first, second = layer.backward(dout, cache), layer.backward(dout, cache)
    assert same_bits(first[0], second[0])
    assert all(same_bits(first[1][path], second[1][path]) for path in first[1])
    assert all(same_bits(array, before[n]) for n, array in held.items())


# ---- gradients -------------------------------------------------------------------------------------------------------


@EVERY_PART
def test_above_a_linear_layer(rng, name):
    stack = Sequential({"below": linear(rng, BELOW, D), "layer": Biased(PARTS[name](rng), BIASES[-1])})
    assert_right(stack, 0.4 * tokens(rng, BELOW), rng)


@EVERY_PART
def test_below_a_linear_layer(rng, name):
    stack = Sequential({"layer": Biased(PARTS[name](rng), BIASES[-1]), "above": linear(rng, D, ABOVE)})
    assert_right(stack, tokens(rng), rng)


@EVERY_PART
@EVERY_BIAS
def test_stack_of_two(rng, name, kind):
    stack = Sequential({str(i): Biased(PARTS[name](rng), kind) for i in range(2)})
    assert_right(stack, tokens(rng), rng)


@EVERY_BIAS
def test_on_top_of_an_embedding(rng, kind):
    stack = Sequential({"0": Embedding(rng.standard_normal((6, D))), "1": Biased(post_norm(rng), kind)})
    errors = check_layer(stack, rng.integers(0, 6, (B, T)), rng)
    assert errors.keys() == stack.trainable_params().keys()
    assert max(errors.values()) < SMOOTH


@EVERY_LINEAR
@pytest.mark.parametrize("order", ["factored", "merged"])
def test_lora_on_each_linear_layer(rng, name, path, order):
    stack = Sequential({str(i): Biased(PARTS[name](rng), BIASES[-1]) for i in range(2)})
    adapted(stack, [f"{i}.of.{path}" for i in range(2)], rng, order)
    assert len(stack.trainable_params()) == 4
    assert_right(stack, tokens(rng), rng)


@EVERY_PART
def test_gradients_of_shards_sum_to_those_of_the_batch(rng, name):
    layer, x, dout = PARTS[name](rng), tokens(rng), tokens(rng)
    _, dx, grads = run(layer, x, dout)
    total, dxs = {}, []
    for part in (slice(None, 1), slice(1, None)):
        _, dx_, grads_ = run(layer, x[part], dout[part])
        add_grads(total, grads_)
        dxs.append(dx_)
    assert_close(np.concatenate(dxs), dx)
    largest = max(np.abs(grad).max() for grad in grads.values())  # a key's bias has gradient 0
    for path, grad in grads.items():
        np.testing.assert_allclose(total[path], grad, rtol=0, atol=1e-13 * largest, err_msg=path)


@EVERY_PART
def test_the_bias_of_a_key_has_gradient_zero(rng, name):
    """It adds q b to every score of a row, which softmax does not see."""
    layer, x = PARTS[name](rng), tokens(rng)
    _, _, grads = run(layer, x, tokens(rng))
    (path,) = (n for n in grads if n.endswith("key.bias"))
    assert np.abs(grads[path]).max() < 1e-13 * np.abs(grads[path.replace("bias", "weight")]).max()


@pytest.mark.parametrize("name", BLOCKS)
def test_lora_everywhere_with_dropout(rng, name):
    stack = Sequential({str(i): Biased(BLOCKS[name](rng), "padding") for i in range(2)})
    adapted(stack, "all-linear", rng, lora_dropout=0.4, use_rslora=True, bias="all")
    assert_right(stack, tokens(rng), rng, dropout_seed=5)


# ---- every backend, both precisions ----------------------------------------------------------------------------------


@EVERY_PART
@pytest.mark.parametrize("kind", ["none", "causal and padding"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("targets", [None, "all-linear"], ids=["plain", "lora"])
def test_same_on_every_backend(put, rng, name, kind, dtype, targets):
    layer, x, dout = Biased(PARTS[name](rng), kind), tokens(rng), tokens(rng)
    if targets:
        adapted(layer, targets, rng)
    y, dx, grads = run(layer, x, dout)
    y_, dx_, grads_ = run(move(layer, put, dtype), put(x, dtype), put(dout, dtype))
    assert_lives_on(put(x, dtype), y_, dx_, *grads_.values())
    tolerance = 10 * TOLERANCES[dtype]  # six products one after another
    assert_close(y_, y, tolerance)
    assert_close(dx_, dx, tolerance)
    largest = max(np.abs(grad).max() for grad in grads.values())  # a key's bias has gradient 0
    assert grads_.keys() == grads.keys()
    for path, grad in grads.items():
        np.testing.assert_allclose(to_numpy(grads_[path]), grad, rtol=0, atol=tolerance * largest, err_msg=path)


@EVERY_PART
def test_nothing_is_written_to(rng, name):
    layer, x, dout = Biased(PARTS[name](rng), "causal"), tokens(rng), tokens(rng)
    held = {"x": x, "dout": dout, **layer.named_params()}
    before = {n: a.copy() for n, a in held.items()}
    _, cache = layer(x)
    first, second = layer.backward(dout, cache), layer.backward(dout, cache)
    assert same_bits(first[0], second[0])
    assert all(same_bits(first[1][path], second[1][path]) for path in first[1])
    assert all(same_bits(array, before[n]) for n, array in held.items())


@EVERY_PART
def test_merged_equals_unmerged(rng, name):
    layer, x = adapted(PARTS[name](rng), "all-linear", rng), tokens(rng)
    y, _ = layer(x)
    for adapter in adapters(layer).values():
        adapter.merge()
    assert_close(layer(x)[0], y, 1e-12)


# ---- blocks with random weights, and what is refused -----------------------------------------------------------------


@pytest.mark.parametrize("block", [PostNormBlock, PreNormBlock])
def test_random_block(rng, block):
    layer = block.random(D, HEADS, D_MLP, rng)
    y, _ = layer(tokens(rng).astype("f4"))
    assert y.shape == (B, T, D) and y.dtype == np.float32
    weights = [a for n, a in layer.named_params().items() if n.endswith("weight") and a.ndim == 2]
    assert [a.shape for a in weights] == [(D, D)] * 4 + [(D_MLP, D), (D, D_MLP)]
    assert len({a.tobytes() for a in weights}) == 6


def test_heads_must_divide_the_width(rng):
    with pytest.raises(InputError, match="multiple of its heads; got 8 and 3"):
        SelfAttention(*(linear(rng, D, D) for _ in range(3)), 3)
