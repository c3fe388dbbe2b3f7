import copy
import math

import numpy as np
import pytest
import scipy.stats
from checks import TOLERANCES, assert_close, assert_lives_on, held, linear, lora, move, run, same_bits

from lorabook import LoRAConfig, LoRALinear, inject, memory_table, merge, unmerge
from lorabook.adapters import adapters, base_params, effective_weights, merging_is_cheaper, unload
from lorabook.backend import to_numpy
from lorabook.errors import InputError
from lorabook.layers import RUN, Embedding, Layer, LayerNorm, Linear, Run, Sequential, check_layer
from lorabook.models import MLP

ORDERS = pytest.mark.parametrize("order", ["factored", "merged", "auto"])
SIZES = pytest.mark.parametrize(
    ("d_in", "d_out", "r", "N", "seed"),
    [(5, 7, 2, 3, 0), (64, 48, 8, 17, 1), (96, 160, 16, 200, 2), (33, 3, 3, 1, 3), (1, 9, 1, 4, 4)],
)


def of_size(d_in, d_out, r, seed, dtype="float64", **options):
    rng = np.random.default_rng(seed)
    base = Linear.random(d_in, d_out, rng).to(np, dtype)
    return LoRALinear(base, r=r, init_lora_weights=False, rng=rng, **options), rng


# ---- scaling ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("r", "lora_alpha"), [(1, 16), (4, 16), (4, 3), (3, 0.5), (5, -2.0), (2, 0)])
def test_scaling(rng, r, lora_alpha):
    assert LoRALinear(linear(rng), r, lora_alpha).scaling == lora_alpha / r
    assert LoRALinear(linear(rng), r, lora_alpha, use_rslora=True).scaling == lora_alpha / math.sqrt(r)


def test_defaults_are_pefts(rng):
    assert LoRALinear(linear(rng, 9, 8)).scaling == 1.0
    config = LoRAConfig()
    assert (config.r, config.lora_alpha, config.lora_dropout, config.use_rslora, config.bias) == (
        8,
        8,
        0,
        False,
        "none",
    )


def test_delta_weight(put, rng):
    layer = move(lora(rng), put)
    delta = layer.delta_weight()
    A, B = to_numpy(layer.params["lora_A"]), to_numpy(layer.params["lora_B"])
    assert_lives_on(put([0.0]), delta)
    assert_close(delta, 3 / 4 * np.einsum("or,ri->oi", B, A))


def test_numpy_scalar_as_lora_alpha_does_not_upcast():
    layer, rng = of_size(5, 7, 2, 0, "float32", lora_alpha=np.float64(3), order="factored")
    x, dout = rng.standard_normal((4, 5)).astype("float32"), rng.standard_normal((4, 7)).astype("float32")
    y, dx, grads = run(layer, x, dout)
    assert_lives_on(x, y, dx, layer.delta_weight(), *grads.values())


# ---- initialisation --------------------------------------------------------------------------------------------------


def factors(init_lora_weights, seed=0):
    rng = np.random.default_rng(seed)
    layer = LoRALinear(Linear.random(300, 200, rng), r=50, init_lora_weights=init_lora_weights, rng=rng)
    return layer.params["lora_A"], layer.params["lora_B"]


def test_default_init_is_uniform_A_and_zero_B():
    A, B = factors(True)
    bound = 1 / math.sqrt(300)
    assert np.max(np.abs(A)) <= bound
    assert scipy.stats.kstest(A.ravel(), scipy.stats.uniform(-bound, 2 * bound).cdf).pvalue > 0.01
    assert not np.any(B)


def test_gaussian_init_has_std_one_over_r():
    A, B = factors("gaussian")
    assert scipy.stats.kstest(A.ravel(), scipy.stats.norm(0, 1 / 50).cdf).pvalue > 0.01
    assert not np.any(B)


def test_init_false_moves_both_factors():
    A, B = factors(False)
    for factor, bound in ((A, 1 / math.sqrt(300)), (B, 1 / math.sqrt(50))):
        assert np.max(np.abs(factor)) <= bound
        assert scipy.stats.kstest(factor.ravel(), scipy.stats.uniform(-bound, 2 * bound).cdf).pvalue > 0.01


@pytest.mark.parametrize("init", [True, "gaussian", False])
def test_same_seed_same_factors(init):
    assert all(map(same_bits, factors(init, 1), factors(init, 1)))
    assert not same_bits(factors(init, 1)[0], factors(init, 2)[0])


@ORDERS
@pytest.mark.parametrize("init", [True, "gaussian"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_output_at_init_is_that_of_the_base(rng, order, init, dtype):
    base = linear(rng).to(np, dtype)
    layer = LoRALinear(base, 4, order=order, init_lora_weights=init)
    x = rng.standard_normal((6, 5)).astype(dtype)
    assert same_bits(layer(x)[0], base(x)[0])


def test_factors_take_the_dtype_and_backend_of_the_base(put, rng):
    base = move(linear(rng), put, "float32")
    layer = LoRALinear(base, 4)
    assert_lives_on(put([0], "float32"), *layer.params.values())
    assert layer.base_layer is base and layer.weight is base.params["weight"] and layer.bias is base.params["bias"]
    assert layer.trainable == layer.trainable_params().keys() == {"lora_A", "lora_B"}


# ---- forward and backward --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["factored", "merged"])
def test_by_hand(put, order):
    base = Linear(put([[1.0, 2.0], [3.0, 4.0]]))
    layer = LoRALinear(base, r=1, lora_alpha=3, order=order)
    layer.load(
        {
            "base_layer.weight": base.params["weight"],
            "lora_A": np.array([[1.0, -1.0]]),
            "lora_B": np.array([[2.0], [1.0]]),
        }
    )
    y, dx, grads = run(layer, put([[1.0, 2.0]]), put([[1.0, 10.0]]))
    assert to_numpy(y).tolist() == [[5 - 3 * 2, 11 - 3 * 1]]  # W x = (5, 11); A x = -1
    assert to_numpy(grads["lora_B"]).tolist() == [[3 * 1 * -1], [3 * 10 * -1]]
    assert to_numpy(grads["lora_A"]).tolist() == [[36 * 1, 36 * 2]]  # dz = 3 (1 * 2 + 10 * 1) = 36
    assert to_numpy(dx).tolist() == [[31 + 36, 42 - 36]]  # dout W = (31, 42)
    assert grads.keys() == {"lora_A", "lora_B"}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("order", ["factored", "merged"])
def test_forward_and_backward(put, rng, dtype, order):
    layer = lora(rng, order, also=["weight", "bias"])
    W, b, A, B = layer.weight, layer.bias, layer.params["lora_A"], layer.params["lora_B"]
    x, dout = rng.standard_normal((6, 5)), rng.standard_normal((6, 7))
    y, dx, grads = run(move(layer, put, dtype), put(x, dtype), put(dout, dtype))
    merged, full, tolerance = W + 0.75 * B @ A, dout.T @ x, 4 * TOLERANCES[dtype]
    assert_lives_on(put(x, dtype), y, dx, *grads.values())
    assert_close(y, x @ merged.T + b, tolerance)
    assert_close(dx, dout @ merged, tolerance)
    assert_close(grads["lora_A"], 0.75 * B.T @ full, tolerance)
    assert_close(grads["lora_B"], 0.75 * full @ A.T, tolerance)
    assert_close(grads["base_layer.weight"], full, tolerance)
    assert_close(grads["base_layer.bias"], dout.sum(axis=0), tolerance)


@SIZES
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_both_orders_and_merging_give_the_same(d_in, d_out, r, N, seed, dtype):
    factored, rng = of_size(d_in, d_out, r, seed, dtype, order="factored")
    merged, _ = of_size(d_in, d_out, r, seed, dtype, order="merged")
    x, dout = rng.standard_normal((N, d_in)).astype(dtype), rng.standard_normal((N, d_out)).astype(dtype)
    y, dx, grads = run(factored, x, dout)
    y_, dx_, grads_ = run(merged, x, dout)
    assert_close(y_, y, TOLERANCES[dtype])
    assert_close(dx_, dx, TOLERANCES[dtype])
    assert_close(grads_["lora_A"], grads["lora_A"], TOLERANCES[dtype])
    assert_close(grads_["lora_B"], grads["lora_B"], TOLERANCES[dtype])
    factored.merge()
    assert_close(factored(x)[0], y, TOLERANCES[dtype])


@ORDERS
def test_rank_indices_can_be_permuted(rng, order):
    layer, x, dout = lora(rng, order), rng.standard_normal((6, 5)), rng.standard_normal((6, 7))
    y, dx, grads = run(layer, x, dout)
    order_of_ranks = [2, 0, 3, 1]
    layer.params["lora_A"] = layer.params["lora_A"][order_of_ranks]
    layer.params["lora_B"] = layer.params["lora_B"][:, order_of_ranks]
    y_, dx_, grads_ = run(layer, x, dout)
    assert_close(y_, y)
    assert_close(dx_, dx)
    assert_close(grads_["lora_A"], grads["lora_A"][order_of_ranks])
    assert_close(grads_["lora_B"], grads["lora_B"][:, order_of_ranks])


@ORDERS
def test_gradients_are_projections_of_the_full_one(rng, order):
    layer, x, dout = lora(rng, order, also=["weight"]), rng.standard_normal((6, 5)), rng.standard_normal((6, 7))
    _, _, grads = run(layer, x, dout)
    dW, A, B, s = grads["base_layer.weight"], layer.params["lora_A"], layer.params["lora_B"], layer.scaling
    assert_close(dW, dout.T @ x)
    assert_close(grads["lora_B"], s * dW @ A.T)
    assert_close(grads["lora_A"], s * B.T @ dW)


@ORDERS
def test_at_init_only_lora_B_has_a_gradient(rng, order):
    layer = LoRALinear(linear(rng), 4, order=order)
    _, _, grads = run(layer, rng.standard_normal((6, 5)), rng.standard_normal((6, 7)))
    assert not np.any(grads["lora_A"])
    assert np.all(grads["lora_B"] != 0)


# ---- which order -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("N", "d_in", "d_out", "cheaper"),
    [(2, 4, 4, False), (3, 4, 4, True), (192, 384, 384, False), (193, 384, 384, True), (1, 1, 1, True)],
)
def test_when_merging_is_cheaper(N, d_in, d_out, cheaper):
    assert merging_is_cheaper(N, d_in, d_out) is cheaper


def test_merging_is_cheaper_counts_flops(rng):
    for N, d_in, d_out, r in rng.integers(1, 200, (50, 4)):
        assert merging_is_cheaper(N, d_in, d_out) == (2 * r * d_in * d_out < 2 * N * r * (d_in + d_out))


@pytest.mark.parametrize(("shape", "merges"), [((5, 5), False), ((6, 5), True), ((2, 2, 5), False), ((2, 3, 5), True)])
def test_auto_takes_the_cheaper_order(rng, shape, merges):
    x = rng.standard_normal(shape)
    auto = run_bits(lora(np.random.default_rng(1), "auto"), x)
    assert auto == run_bits(lora(np.random.default_rng(1), "merged" if merges else "factored"), x)
    assert auto != run_bits(lora(np.random.default_rng(1), "factored" if merges else "merged"), x)


def run_bits(layer, x):
    return layer(x)[0].tobytes()


# ---- dropout ---------------------------------------------------------------------------------------------------------


def masks(p, seed=0):
    """The mask itself: with W = 0, A = B = 1 and s = 1 the output for x = 1 is M."""
    layer = LoRALinear(Linear(np.zeros((50, 50))), r=50, lora_alpha=50, lora_dropout=p)
    layer.load({"base_layer.weight": np.zeros((50, 50)), "lora_A": np.eye(50), "lora_B": np.eye(50)})
    return layer(np.ones((200, 50)), Run(rng=np.random.default_rng(seed)))[0]


@pytest.mark.parametrize("p", [0.1, 0.4, 0.75])
def test_mask_keeps_the_mean(p):
    M = masks(p)
    assert set(np.unique(M)) == {0.0, 1 / (1 - p)}
    assert abs(np.mean(M == 0) - p) < 0.02
    assert abs(np.mean(M) - 1) < 0.05
    assert not same_bits(M, masks(p, seed=1))


def test_no_dropout_in_evaluation_or_at_zero(rng):
    layer, plain = (lora(np.random.default_rng(1), lora_dropout=p) for p in (0.5, 0.0))
    x = rng.standard_normal((6, 5))
    assert same_bits(layer(x)[0], plain(x)[0])
    assert same_bits(plain(x, Run(rng=np.random.default_rng(0)))[0], plain(x)[0])


@ORDERS
def test_dropout_masks_the_update_alone(put, rng, order):
    layer = lora(rng, order, lora_dropout=0.4)
    W, b, A, B = layer.weight, layer.bias, layer.params["lora_A"], layer.params["lora_B"]
    x, dout = rng.standard_normal((2, 3, 5)), rng.standard_normal((2, 3, 7))
    M = (np.random.default_rng(3).random((2, 3, 5), dtype="f4") >= 0.4) / 0.6
    y, dx, grads = run(move(layer, put), put(x), put(dout), seed=3)
    assert_close(y, x @ W.T + b + 0.75 * (x * M) @ A.T @ B.T)
    assert_close(dx, dout @ W + 0.75 * (dout @ B @ A) * M)
    assert_close(grads["lora_A"], 0.75 * np.einsum("bto,or,bti->ri", dout, B, x * M))
    assert_close(grads["lora_B"], 0.75 * np.einsum("bto,bti,ri->or", dout, x * M, A))


# ---- merge and unmerge -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_unmerge_puts_the_same_array_back(put, rng, dtype):
    layer = move(lora(rng), put, dtype)
    weight, before = layer.weight, to_numpy(layer.weight).copy()
    for _ in range(3):
        layer.merge()
        assert layer.merged
        assert_lives_on(weight, layer.weight)
        assert not same_bits(layer.weight, before)
        layer.unmerge()
        assert not layer.merged
        assert layer.weight is weight
        assert same_bits(weight, before)


def test_merged_weight(rng):
    layer = lora(rng)
    want = layer.weight + 0.75 * layer.params["lora_B"] @ layer.params["lora_A"]
    layer.merge()
    assert_close(layer.weight, want, 1e-15)


def test_merging_or_unmerging_twice_changes_nothing(rng):
    layer = lora(rng)
    weight = layer.weight
    layer.unmerge()
    assert layer.weight is weight
    layer.merge()
    merged = layer.weight
    layer.merge()
    assert layer.weight is merged
    layer.unmerge()
    layer.unmerge()
    assert layer.weight is weight


def test_merged_forward_ignores_dropout(rng):
    layer, x = lora(rng, lora_dropout=0.5), rng.standard_normal((6, 5))
    y, _ = layer(x)
    layer.merge()
    assert_close(layer(x, Run(rng=rng))[0], y)


def test_backward_after_a_merged_forward_is_refused(rng):
    layer, x = lora(rng), rng.standard_normal((6, 5))
    layer.merge()
    _, cache = layer(x)
    for state in (layer.merge, layer.unmerge):
        state()
        with pytest.raises(InputError, match=r"merged in the forward pass; call unmerge\(\) before training"):
            layer.backward(rng.standard_normal((6, 7)), cache)


@ORDERS
def test_merging_between_forward_and_backward_does_no_harm(rng, order):
    layer, x, dout = lora(rng, order), rng.standard_normal((6, 5)), rng.standard_normal((6, 7))
    _, cache = layer(x)
    dx, grads = layer.backward(dout, cache)
    layer.merge()
    dx_, grads_ = layer.backward(dout, cache)
    assert same_bits(dx_, dx)
    assert all(same_bits(grads_[n], grads[n]) for n in grads)


def test_load_into_a_merged_layer_is_refused(put, rng):
    """Or the new weight would go into W + s B A, and unmerge would bring back the old one."""
    layer, other = move(lora(rng), put), lora(rng)
    arrays = other.named_params()
    before = {n: to_numpy(a).copy() for n, a in layer.named_params().items()}
    layer.merge()
    merged = to_numpy(layer.weight).copy()
    with pytest.raises(InputError, match=r"this layer is merged; call unmerge\(\) before loading parameters"):
        layer.load(arrays)
    assert same_bits(layer.weight, merged)
    layer.unmerge()
    assert all(same_bits(a, before[n]) for n, a in layer.named_params().items())
    layer.load(arrays)
    assert all(same_bits(a, arrays[n]) for n, a in layer.named_params().items())


def test_load_into_a_merged_model_is_refused():
    model = mlp()
    inject(model, LoRAConfig(r=2, target_modules=["fc2", "fc3"]))
    arrays = {n: a + 1 for n, a in base_params(model).items()}
    merge(model)
    with pytest.raises(InputError, match=r"fc2 is merged; .*before loading"):
        model.load(arrays)
    unload(model)
    model.load({n: arrays[n] for n in model.named_params()})


# ---- one update for several forwards ---------------------------------------------------------------------------------


def shares(layer, N, run=RUN):
    """Whether a forward of N rows together finds the update formed already."""
    return layer in effective_weights(layer, N, run)


def test_shared_where_merging_is_cheaper(rng):
    assert [shares(lora(rng, "auto"), N) for N in (1, 5, 6, 999)] == [False, False, True, True]  # 5 x 7: see above
    assert [shares(lora(rng, "factored"), N) for N in (1, 999)] == [False, False]
    assert [shares(lora(rng, "merged"), N) for N in (1, 999)] == [True, True]


def test_not_shared_with_dropout_or_when_merged(rng):
    assert not shares(lora(rng, "merged", lora_dropout=0.1), 999, Run(rng=rng))
    assert shares(lora(rng, "merged", lora_dropout=0.1), 999)  # a pass of inference
    assert shares(lora(rng, "merged"), 999, Run(rng=rng))
    layer = lora(rng, "merged")
    layer.merge()
    assert not shares(layer, 999)
    layer.unmerge()
    assert shares(layer, 999)


def stack_of_two(dtype="float64"):
    """Two adapters on matrices of one size, so that no shape tells them apart; order auto."""
    rng = np.random.default_rng(4)
    stack = Sequential({"a": linear(rng, 6, 6), "b": linear(rng, 6, 6)})
    inject(stack, LoRAConfig(r=2, lora_alpha=3, init_lora_weights=False), rng)
    return stack.to(np, dtype)


def test_every_layer_gets_its_own_update(put):
    stack = move(stack_of_two(), put)
    weights = effective_weights(stack, 99)
    assert list(weights) == list(stack.children.values())
    for layer, (weight, cache) in weights.items():
        assert cache is None
        assert_lives_on(put([0.0]), weight)
        assert_close(weight, to_numpy(layer.weight) + to_numpy(layer.delta_weight()), 1e-15)
    assert not same_bits(*(weight for weight, _ in weights.values()))


def counted(stack):
    """The list that the name of each layer goes into whenever it forms its update."""
    formed = []
    for name, layer in stack.children.items():
        layer.delta_weight = lambda name=name, layer=layer: formed.append(name) or LoRALinear.delta_weight(layer)
    return formed


def test_formed_once_and_used_by_every_forward(rng):
    stack = stack_of_two()
    formed, shared = counted(stack), Run(weights=effective_weights(stack, 99))
    for rows in (1, 2, 99, 98):  # alone, one or two rows would take the other order
        _, cache = stack(rng.standard_normal((rows, 6)), shared)
        stack.backward(rng.standard_normal((rows, 6)), cache)
    assert formed == ["a", "b"]
    stack(rng.standard_normal((1, 6)))
    assert formed == ["a", "b"]
    stack(rng.standard_normal((99, 6)))
    assert formed == ["a", "b", "a", "b"]


@pytest.mark.parametrize("rows", [1, 99])
def test_a_shared_update_is_used_by_any_number_of_rows(rng, rows):
    stack, x = stack_of_two(), rng.standard_normal((rows, 6))
    layer, weights = stack.children["a"], effective_weights(stack, 99)
    y, _ = layer(x, Run(weights=weights))
    assert same_bits(y, x @ weights[layer][0].T + layer.bias)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rows", [1, 2, 3, 40])
def test_sharing_changes_no_gradient(rng, dtype, rows):
    stack, x, dout = stack_of_two(dtype), rng.standard_normal((rows, 6)), rng.standard_normal((rows, 6))
    x, dout = x.astype(dtype), dout.astype(dtype)
    y, dx, grads = run(stack, x, dout)
    y_, cache = stack(x, Run(weights=effective_weights(stack, 99)))
    dx_, grads_ = stack.backward(dout, cache)
    assert_close(y_, y, TOLERANCES[dtype])
    assert_close(dx_, dx, TOLERANCES[dtype])
    assert grads_.keys() == grads.keys()
    for name, grad in grads.items():
        assert_close(grads_[name], grad, TOLERANCES[dtype])


def test_nothing_is_stored_on_the_model(rng):
    """Neither by forming the updates nor by a pass with them: another pass takes the factors as they are then."""
    stack, x = stack_of_two(), np.ones((9, 6))
    before, y = held(stack), stack(x)[0]
    formed = Run(weights=effective_weights(stack, 99))
    _, cache = stack(x, formed)
    stack.backward(x, cache)
    with pytest.raises(ZeroDivisionError):
        stack(x, formed.but(watch=lambda *_: 1 / 0))
    assert held(stack) == before
    for layer in stack.children.values():
        layer.params["lora_B"] *= 2
    assert not np.allclose(stack(x)[0], y)


def test_nothing_is_stored_where_an_update_cannot_be_formed():
    stack = stack_of_two()
    stack.children["b"].delta_weight = lambda: 1 / 0
    before = held(stack)
    with pytest.raises(ZeroDivisionError):
        effective_weights(stack, 99)
    assert held(stack) == before


def test_formed_by_the_map_that_is_given():
    stack, seen = stack_of_two(), []
    weights = effective_weights(
        stack, 99, map=lambda function, layers: [seen.append(layer) or function(layer) for layer in layers]
    )
    assert seen == list(weights) == list(stack.children.values())


def test_an_update_that_another_run_drops_does_no_harm(rng):
    """After an error in one shard, the others run on: each has its run, whatever becomes of the one that is over."""
    stack, x = stack_of_two(), rng.standard_normal((2, 6))
    kept, over = (Run(weights=effective_weights(stack, 99)) for _ in range(2))
    want, _ = stack(x, kept)
    over.weights.clear()
    assert same_bits(stack(x, kept)[0], want)


def test_nested_uses_have_each_their_own(rng):
    """What one form inside of another is gone afterwards, and the outer one is as before."""
    stack, x = stack_of_two(), rng.standard_normal((2, 6))
    layer, outer = stack.children["a"], Run(weights=effective_weights(stack, 99))
    first, _ = stack(x, outer)
    layer.params["lora_B"] *= 2
    inner = Run(weights=effective_weights(stack, 99))
    second, _ = stack(x, inner)
    assert not np.allclose(first, second)
    assert_close(second, stack(x)[0], 1e-14)
    assert same_bits(stack(x, outer)[0], first) and same_bits(stack(x, inner)[0], second)
    assert same_bits(stack(x, outer.but(weights=inner.weights))[0], second)


def test_a_deep_copy_taken_during_a_pass_has_no_stale_weights(rng):
    stack, x, copies = stack_of_two(), rng.standard_normal((9, 6)), []
    formed = Run(weights=effective_weights(stack, 99), watch=lambda *_: copies.append(copy.deepcopy(stack)))
    want, _ = stack(x, formed)
    assert len(copies) == 3
    for other in copies:
        assert same_bits(other(x)[0], want)
        other.children["a"].params["lora_B"] *= 2
        assert not np.allclose(other(x)[0], want)
        assert same_bits(other(x, formed.but(watch=None))[0], other(x)[0])  # its layers are others
    assert same_bits(stack(x, formed.but(watch=None))[0], want)


def test_a_copy_of_model_and_run_together_goes_together(rng):
    stack, x = stack_of_two(), rng.standard_normal((2, 6))
    formed = Run(weights=effective_weights(stack, 99))
    other, its = copy.deepcopy((stack, formed))
    counts = counted(other)
    assert same_bits(other(x, its)[0], stack(x, formed)[0]) and not counts
    assert set(its.weights) == set(other.children.values())


# ---- inject ----------------------------------------------------------------------------------------------------------


def mlp(seed=0):
    return MLP((6, 8, 9, 7), rng=np.random.default_rng(seed))


def nested(seed=0):
    rng = np.random.default_rng(seed)
    return Sequential({"a": MLP((6, 8, 9), rng=rng), "b": MLP((9, 8, 6), rng=rng), "xfc1": linear(rng, 6, 6)})


ALL = ["a.fc1", "a.fc2", "b.fc1", "b.fc2", "xfc1"]


@pytest.mark.parametrize(
    ("targets", "paths"),
    [
        ("all-linear", ALL),
        (["fc1"], ["a.fc1", "b.fc1"]),
        (["fc2", "fc1"], ALL[:4]),
        (["a.fc1", "xfc1"], ["a.fc1", "xfc1"]),
        (("fc2",), ["a.fc2", "b.fc2"]),
        (r".*fc1", ["a.fc1", "b.fc1", "xfc1"]),
        (r"[ab]\.fc[13]", ["a.fc1", "b.fc1"]),
        ("xfc1", ["xfc1"]),
    ],
    ids=str,
)
def test_targets(targets, paths):
    model = nested()
    assert inject(model, LoRAConfig(r=2, target_modules=targets)) == paths
    assert list(adapters(model)) == paths
    assert set(model.trainable_params()) == {f"{p}.{n}" for p in paths for n in ("lora_A", "lora_B")}


def test_first_matching_pattern_counts():
    ranks = {r"b\.fc1": 5, "fc1": 3, ".*": 2}
    alphas = {"fc2": 7, r"a\.fc2": 9}
    model = nested()
    inject(model, LoRAConfig(r=4, lora_alpha=12, rank_pattern=ranks, alpha_pattern=alphas))
    assert {p: (a.r, a.lora_alpha, a.scaling) for p, a in adapters(model).items()} == {
        "a.fc1": (3, 12, 4),
        "a.fc2": (2, 7, 3.5),
        "b.fc1": (5, 12, 2.4),
        "b.fc2": (2, 7, 3.5),
        "xfc1": (2, 12, 6),
    }
    reverse = nested()
    inject(reverse, LoRAConfig(r=4, rank_pattern=dict(reversed(ranks.items()))))
    assert {a.r for a in adapters(reverse).values()} == {2}


def test_pattern_matches_the_end_of_a_path_at_a_dot():
    config = LoRAConfig(r=4, rank_pattern={"fc1": 3})
    assert [config.for_layer(p)[0] for p in ("fc1", "a.fc1", "xfc1", "fc1.x")] == [3, 3, 4, 4]


def test_options_reach_the_layers():
    config = LoRAConfig(r=4, lora_alpha=3, use_rslora=True, lora_dropout=0.25, init_lora_weights=False)
    model = mlp()
    inject(model, config)
    for layer in adapters(model).values():
        assert (layer.r, layer.scaling, layer.lora_dropout, layer.use_rslora) == (4, 1.5, 0.25, True)
        assert np.any(layer.params["lora_B"])


def test_names_and_arrays_stay():
    model = mlp()
    before = model.named_params()
    inject(model, LoRAConfig(r=4, target_modules=["fc1", "fc3"]))
    after, base = model.named_params(), base_params(model)
    assert list(before) == list(base)
    assert all(base[n] is before[n] for n in before)
    assert [n for n in after if ".base_layer." in n] == [
        f"{p}.base_layer.{kind}" for p in ("fc1", "fc3") for kind in ("weight", "bias")
    ]
    assert [n for n in after if "lora_" in n] == ["fc1.lora_A", "fc1.lora_B", "fc3.lora_A", "fc3.lora_B"]
    assert list(model.children) == ["fc1", "act1", "fc2", "act2", "fc3"]


def test_output_stays_until_the_first_step(put, rng):
    model, x = move(mlp(), put, "float64"), put(rng.standard_normal((4, 6)))
    y = to_numpy(model(x)[0])
    inject(model, LoRAConfig(r=4))
    assert same_bits(model(x)[0], y)
    assert_lives_on(x, *model.named_params().values())


def test_same_seed_same_adapters():
    models = [mlp() for _ in range(4)]
    for model, seed in zip(models, (None, 0, 0, 1), strict=True):
        rng = None if seed is None else np.random.default_rng(seed)
        inject(model, LoRAConfig(r=4, init_lora_weights=False), rng)
    default, first, second, other = (m.trainable_params() for m in models)
    assert all(same_bits(first[n], second[n]) and same_bits(first[n], default[n]) for n in first)
    assert not any(same_bits(first[n], other[n]) for n in first)


def test_layers_get_different_factors():
    model = MLP((8, 8, 8), rng=np.random.default_rng(0))
    inject(model, LoRAConfig(r=4, init_lora_weights=False))
    first, second = (layer.params for layer in adapters(model).values())
    assert not same_bits(first["lora_A"], second["lora_A"])
    assert not same_bits(first["lora_B"], second["lora_B"])


REFUSED = {
    "rank above the number of weights": LoRAConfig(r=49),
    "rank_pattern above the number of weights": LoRAConfig(r=2, rank_pattern={"fc3": 64}),
    "no such target": LoRAConfig(r=2, target_modules=["fc1", "fc9"]),
    "regex without match": LoRAConfig(r=2, target_modules="fc"),
    "no target": LoRAConfig(r=2, target_modules=[]),
    "activation": LoRAConfig(r=2, target_modules=["act1"]),
    "everything excluded": LoRAConfig(r=2, exclude_modules=".*"),
    "everything saved": LoRAConfig(r=2, target_modules=["fc1"], modules_to_save=["fc1"]),
    "saved by the end of a name": LoRAConfig(r=2, modules_to_save=["c1"]),
}


@pytest.mark.parametrize("config", REFUSED.values(), ids=REFUSED)
def test_refused_inject_changes_nothing(config):
    model = mlp()
    children, params, trainable = dict(model.children), model.named_params(), list(model.trainable_params())
    with pytest.raises(InputError):
        inject(model, config)
    assert model.children == children
    assert list(model.trainable_params()) == trainable == list(params)
    assert all(array is params[n] for n, array in model.named_params().items())


# ---- which layers: the rest is in tests/oracle/test_selection.py, against PEFT --------------------------------------


def tower():
    """Two blocks of two layers, an embedding and a norm beside them, and a head."""
    rng = np.random.default_rng(0)
    blocks = {str(i): Layer(children={n: linear(rng, 6, 6) for n in ("query", "dense")}) for i in range(2)}
    children = {"embeddings": Embedding(np.ones((4, 6))), "norm": LayerNorm.unit(6), "head": linear(rng, 6, 3)}
    model = Layer(children={"tower": Layer(children={"layer": Layer(children=blocks)}), **children})
    model.head_modules = ("head",)
    return model


BLOCKS = [f"tower.layer.{i}.{name}" for i in range(2) for name in ("query", "dense")]


@pytest.mark.parametrize(
    ("options", "paths"),
    [
        ({}, BLOCKS),
        ({"target_modules": "ALL-Linear"}, BLOCKS),
        ({"target_modules": ["query", "head"]}, [BLOCKS[0], BLOCKS[2], "head"]),
        ({"target_modules": {"query"}}, BLOCKS[::2]),
        ({"target_modules": ["query"], "layers_to_transform": 0}, BLOCKS[:1]),
        ({"target_modules": ["query"], "layers_to_transform": np.int64(1)}, BLOCKS[2:3]),
        ({"target_modules": ["query", "dense"], "layers_to_transform": [0]}, BLOCKS[:2]),
        ({"target_modules": ["query", BLOCKS[3]], "layers_to_transform": [0]}, [BLOCKS[0], BLOCKS[3]]),
        ({"target_modules": ["query"], "layers_to_transform": []}, BLOCKS[::2]),
        ({"target_modules": ["query"], "layers_to_transform": (1,), "layers_pattern": "layer"}, BLOCKS[2:3]),
        ({"target_modules": ["query"], "layers_to_transform": 1, "layers_pattern": ["h", "lay.*"]}, BLOCKS[2:3]),
        ({"exclude_modules": ["query"]}, BLOCKS[1::2]),
        ({"exclude_modules": r".*\.0\..*"}, BLOCKS[2:]),
        ({"exclude_modules": ""}, BLOCKS),
        ({"exclude_modules": None}, BLOCKS),
        ({"modules_to_save": ["layer.1"]}, BLOCKS[:2]),
        ({"modules_to_save": ["ead"], "target_modules": ["query"]}, BLOCKS[::2]),
        ({"target_modules": ".*", "exclude_modules": ["embeddings", "norm", "head"]}, BLOCKS),
    ],
    ids=str,
)
def test_selection(options, paths):
    assert inject(tower(), LoRAConfig(r=2, **options)) == paths


def test_what_is_saved_trains_in_full():
    model = tower()
    inject(model, LoRAConfig(r=2, target_modules=["query"], modules_to_save=["ead", "layer.1"]))
    saved = {name for name in model.trainable_params() if "lora" not in name}
    assert saved == {f"{path}.{kind}" for path in (*BLOCKS[2:], "head") for kind in ("weight", "bias")}


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"rank_pattern": {"keys": 1}}, "rank_pattern key 'keys' matches no layer with an adapter"),
        (
            {"alpha_pattern": {"keys": 1, "query": 2, "head": 1, "k": 1}},
            "alpha_pattern key 'keys' (and 2 more) matches no layer with an adapter",
        ),
        ({"alpha_pattern": {"head": 1}}, "alpha_pattern key 'head' matches no layer with an adapter"),
        (
            {"target_modules": ["query", "head"], "modules_to_save": ["head"]},
            "target module 'head' is in modules_to_save too: it trains in full, without an adapter",
        ),
        ({"exclude_modules": ["decoder"]}, "exclude_modules=('decoder',) matches no linear layer"),
        ({"exclude_modules": "decoder.*"}, "exclude_modules='decoder.*' matches no linear layer"),
        (
            {"r": 7, "target_modules": ["0.dense", "head"]},
            "r = 7 is above the largest rank of tower.layer.0.dense, 6x6 (and 1 more): what is above 6 adds nothing",
        ),
        (
            {"target_modules": ["query", "head"], "rank_pattern": {"head": 4}},
            "r = 4 is above the largest rank of head, 3x6: what is above 3 adds nothing",
        ),
    ],
    ids=str,
)
def test_what_does_nothing_is_a_note(capsys, options, line):
    """PEFT accepts it too."""
    assert inject(tower(), LoRAConfig(**{"r": 2} | options))
    assert capsys.readouterr() == ("", f"note: {line}\n")


def test_nothing_to_note(capsys):
    inject(
        tower(), LoRAConfig(r=3, target_modules=["query", "head"], rank_pattern={"query": 6}, exclude_modules=["dense"])
    )
    assert capsys.readouterr() == ("", "")


def test_a_rank_above_the_smaller_side_trains(rng):
    """Five rank-one matrices for a layer of rank three: more than it needs, and nothing wrong."""
    layer = LoRALinear(linear(rng, 4, 3), r=5, init_lora_weights=False, rng=rng)
    assert layer.params["lora_A"].shape == (5, 4)
    assert max(check_layer(layer, rng.standard_normal((6, 4)), rng).values()) < 1e-11


@pytest.mark.parametrize("kind", [np.int8, np.int64, np.uint16])
def test_numpy_scalars_are_numbers(kind):
    config = LoRAConfig(
        r=kind(2),
        lora_alpha=np.float32(3),
        lora_dropout=np.float16(0.25),
        rank_pattern={"fc1": kind(1)},
        alpha_pattern={"fc2": np.float64(1.5), "fc1": kind(4)},
    )
    plain = LoRAConfig(
        r=2, lora_alpha=3.0, lora_dropout=0.25, rank_pattern={"fc1": 1}, alpha_pattern={"fc2": 1.5, "fc1": 4}
    )
    assert config == plain
    assert config.as_dict() == plain.as_dict()
    assert LoRALinear(linear(np.random.default_rng(0)), kind(1), kind(3)).scaling == 3.0


def test_second_inject_is_refused():
    model = mlp()
    inject(model, LoRAConfig(r=2, target_modules=["fc1"]))
    before = model.named_params()
    with pytest.raises(InputError, match=r"has adapters already.*unload"):
        inject(model, LoRAConfig(r=2, target_modules=["fc2"]))
    assert model.named_params().keys() == before.keys()
    assert list(adapters(model)) == ["fc1"]


def test_merge_and_unmerge_a_model(rng):
    model, x = mlp().to(np, "float64"), rng.standard_normal((4, 6))
    weights = model.named_params()
    inject(model, LoRAConfig(r=4, init_lora_weights=False))
    y, _ = model(x)
    merge(model)
    assert all(layer.merged for layer in adapters(model).values())
    assert_close(model(x)[0], y)
    unmerge(model)
    assert base_params(model).keys() == weights.keys()
    assert all(array is weights[n] for n, array in base_params(model).items())
    assert same_bits(model(x)[0], y)


@pytest.mark.parametrize("merged", [True, False])
def test_unload_leaves_a_plain_frozen_model(rng, merged):
    model, x = mlp().to(np, "float64"), rng.standard_normal((4, 6))
    names, base = list(model.named_params()), model(x)[0]
    inject(model, LoRAConfig(r=4, init_lora_weights=False, target_modules=["fc1", "fc3"], bias="all"))
    adapted, _ = model(x)
    if merged:
        merge(model)
    unload(model)
    assert adapters(model) == {}
    assert list(model.named_params()) == names
    assert model.trainable_params() == {}
    assert {type(model.children[n]) for n in ("fc1", "fc2", "fc3")} == {Linear}
    assert_close(model(x)[0], adapted if merged else base)
    assert inject(model, LoRAConfig(r=2)) == ["fc1", "fc2", "fc3"]


def test_targets_become_a_tuple():
    config = LoRAConfig(target_modules=["fc1", "fc2"])
    assert config.target_modules == ("fc1", "fc2")
    assert LoRAConfig(target_modules="fc1").target_modules == "fc1"


# ---- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("float64", 8)])
def test_memory_table_by_hand(put, dtype, size):
    model = move(MLP((4, 3, 2), rng=np.random.default_rng(0)), put, dtype)
    inject(model, LoRAConfig(r=1))
    base, factors = (12 + 3) + (6 + 2), (4 + 3) + (3 + 2)
    full, trained = memory_table(model)
    assert (full["method"], full["trained"]) == ("full", base)
    assert [full[n] for n in ("weights", "gradients", "optimizer")] == [size * base, size * base, 2 * size * base]
    assert full["total"] == 4 * size * base
    assert (trained["method"], trained["trained"]) == ("lora", factors)
    assert (full["share"], trained["share"]) == (1.0, factors / base)
    assert trained["weights"] == size * (base + factors)
    assert [trained[n] for n in ("gradients", "optimizer")] == [size * factors, 2 * size * factors]
    assert trained["total"] == size * (base + 4 * factors)


@pytest.mark.parametrize("slots", [0, 1])
def test_memory_of_other_optimizers(slots):
    model = mlp()
    inject(model, LoRAConfig(r=1))
    for row in memory_table(model, slots):
        assert row["optimizer"] == slots * row["gradients"]
        assert row["total"] == row["weights"] + row["gradients"] + row["optimizer"]


# ---- what names and numbers mean -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("paths", "block", "chosen"),
    [
        (["a.b.0", "a.b.0.q"], 0, ["a.b.0.q"]),  # a number that is a layer's own name is no block
        (["x.0.q", "x.y.0.q"], 0, ["x.y.0.q"]),  # nor one with a single name before it
        (["x.y.1.z.0.q", "x.y.0.z.1.q"], 0, ["x.y.0.z.1.q"]),  # the first one counts
    ],
)
def test_the_number_of_a_block(paths, block, chosen):
    config = LoRAConfig(target_modules=sorted({path.rpartition(".")[2] for path in paths}), layers_to_transform=block)
    assert config.select(paths) == chosen


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"target_modules": ["q"], "exclude_modules": ["q"]},
            "exclude_modules or modules_to_save leaves none of 2 layers",
        ),
        ({"target_modules": ["q"], "layers_to_transform": 9}, r"within layers_to_transform=9 matches no linear layer"),
        ({"target_modules": r".*\.z"}, r"target_modules='\.\*\\\\\.z' matches no linear layer"),
        ({"target_modules": r".*norm"}, "takes in a.b.norm, which is no linear layer; exclude or omit it"),
        ({"target_modules": ["norm"]}, "takes in a.b.norm, which is no linear layer; exclude or omit it"),
        ({"target_modules": ["qq"]}, "target module 'qq' matches no linear layer; closest: q"),
        ({"target_modules": ["q"], "modules_to_save": ["zzz"]}, "modules_to_save 'zzz' matches no linear layer"),
        (
            {"target_modules": ["a.b.0.q"], "modules_to_save": ["0.q", ".q"]},
            "leaves none of 1 layers|ends in the middle",
        ),
    ],
    ids=str,
)
def test_a_selection_of_nothing_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        LoRAConfig(**options).select(["a.b.0.q", "a.b.1.q"], ["a.b.norm"])


def test_the_head_is_spared_by_its_whole_name():
    paths = ["x.q", "score", "underscore", "x.score.out"]
    assert LoRAConfig().select(paths, head_modules=("score",)) == ["x.q", "underscore"]


def test_a_key_that_is_a_whole_path_needs_be_no_expression_for_it():
    """Where a name has a character that means something in an expression."""
    config = LoRAConfig(r=2, target_modules=["a.x+y", "b"], rank_pattern={"a.x+y": 5})
    assert config.for_layers(["a.x+y", "b"]) == {"a.x+y": (5, 8), "b": (2, 8)}
    assert not [
        line for line in config.doubts({"a.x+y": (9, 9), "b": (9, 9)}, ["a.x+y", "b"]) if "rank_pattern" in line
    ]
