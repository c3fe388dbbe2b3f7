"""Decoders: their definition, every gradient, packed texts, recomputing with dropout, what runs backward."""

import sys

import numpy as np
import pytest
from checks import assert_close, put_all, same_bits
from tiny_llamas import CONFIGS, batch_of, made

from lorabook import InputError, LoRAConfig, inject, load_adapter, merge, save_adapter, unload, unmerge
from lorabook.backend import to_numpy
from lorabook.functional import SIDEWAYS_STEP
from lorabook.layers import INFERENCE, Run, quantize
from lorabook.models import last_tokens

LENGTHS = (9, 5, 7)
SMOOTH = 1e-11
EVERY_KIND = pytest.mark.parametrize("kind", CONFIGS)


# ---- the definition --------------------------------------------------------------------------------------------------


def reference(model, ids, positions):
    """logits (T, V) of one text: one head and one query after another."""
    params, sizes = model.named_params(), model.sizes

    def linear(x, name):
        return x @ params[f"{name}.weight"].T + params.get(f"{name}.bias", 0)

    def norm(x, name):
        return params[f"{name}.weight"] * x / np.sqrt((x * x).mean(-1, keepdims=True) + sizes.rms_norm_eps)

    def turned(x):
        one, two = np.split(x, 2, axis=-1)
        z = (one + 1j * two) * np.exp(1j * positions[:, None] * model.model_frequencies)
        return np.concatenate([z.real, z.imag], axis=-1)

    x, d = params["model.embed_tokens.weight"][ids], sizes.head_dim
    for i in range(sizes.num_hidden_layers):
        at = f"model.layers.{i}"
        n = norm(x, f"{at}.input_layernorm")
        q, k, v = (linear(n, f"{at}.self_attn.{part}_proj") for part in "qkv")
        o = np.zeros_like(q)
        for h in range(sizes.num_attention_heads):
            own, group = slice(h * d, h * d + d), h * sizes.num_key_value_heads // sizes.num_attention_heads
            shared = slice(group * d, group * d + d)
            scores = turned(q[:, own]) @ turned(k[:, shared]).T / d**0.5
            p = np.tril(np.exp(scores))
            o[:, own] = p / p.sum(-1, keepdims=True) @ v[:, shared]
        x = x + linear(o, f"{at}.self_attn.o_proj")
        n = norm(x, f"{at}.post_attention_layernorm")
        gate, up = linear(n, f"{at}.mlp.gate_proj"), linear(n, f"{at}.mlp.up_proj")
        x = x + linear(gate / (1 + np.exp(-gate)) * up, f"{at}.mlp.down_proj")
    head = params.get("lm_head.weight", params["model.embed_tokens.weight"])
    return norm(x, "model.norm") @ head.T


def whole(kind, rng, **options):
    model = made(kind, rng, **options)
    model.model_frequencies = model.children["model"].frequencies
    return model


@EVERY_KIND
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("placed", [False, True])
def test_it_is_its_definition(rng, kind, side, placed):
    """Each text alone, whatever stands beside it, where the batch says that it stands."""
    model, batch = whole(kind, rng), batch_of(rng, LENGTHS, side)
    positions = np.broadcast_to(np.arange(9), (3, 9))
    if placed:
        batch["position_ids"] = positions = rng.integers(0, 50, (3, 9))
    logits = model.predict(batch)
    for row, real in enumerate(batch["attention_mask"] > 0):
        assert_close(logits[row, real], reference(model, batch["input_ids"][row, real], positions[row, real]), 1e-12)


def test_logits_of_the_tokens_that_are_asked_for(rng):
    model, batch = made("llama", rng), batch_of(rng, LENGTHS)
    logits = model.predict(batch)
    assert last_tokens(batch)[:, 0].tolist() == [8, 4, 6]
    assert last_tokens({"input_ids": batch["input_ids"]})[:, 0].tolist() == [8, 8, 8]
    got = model.predict(batch, INFERENCE.but(asked=np.array([[1, 0], [4, 4], [6, 2]])))
    assert_close(got, np.stack([logits[0, [1, 0]], logits[1, [4, 4]], logits[2, [6, 2]]]), 1e-12)
    _, cache = model(batch, Run(asked=last_tokens(batch)))
    with pytest.raises(InputError, match="have no backward pass; leave `asked` out"):
        model.backward(np.ones((3, 1, 37)), cache)


def test_packed_texts_are_the_texts_alone(rng):
    model, batch = made("llama3", rng), batch_of(rng, LENGTHS)
    real = batch["attention_mask"] > 0
    packed = {name: batch[name][real][None, :] for name in ("input_ids", "labels")}
    packed["segment_ids"] = np.repeat([0, 1, 2], LENGTHS)[None, :]
    (loss, grads), (want, wanted) = model.loss_and_grad(packed), model.loss_and_grad(batch)
    assert model.count(packed) == model.count(batch)
    assert abs(loss - want) < 1e-12
    for name, grad in wanted.items():
        assert_close(grads[name], grad, 1e-11)


def test_labels_are_those_of_the_next_token(rng):
    model = made("llama", rng)
    labels = np.array([[5, 0, -100, 3], [0, -1, 0, 7]])
    batch = {"input_ids": np.array([[5, 0, 2, 3], [0, 4, 0, 7]]), "labels": labels}
    assert model.targets(batch).tolist() == [[0, -100, 3, -100], [-1, 0, 7, -100]]
    assert model.count(batch) == 4
    packed = batch | {"segment_ids": np.array([[1, 2, 2, 2], [1, 1, 1, 2]])}
    assert model.targets(packed).tolist() == [[-100, -100, 3, -100], [-1, 0, -100, -100]]
    logits = model.predict(batch)
    want = [
        np.log(np.exp(logits[b, t]).sum()) - logits[b, t, n] for b, t, n in [(0, 0, 0), (0, 2, 3), (1, 1, 0), (1, 2, 7)]
    ]
    loss, perplexity = model.evaluate(batch)
    assert (loss, perplexity) == (
        pytest.approx(np.mean(want), rel=1e-12),
        pytest.approx(np.exp(np.mean(want)), rel=1e-12),
    )
    for wrong in (None, labels[:, :3]):
        with pytest.raises(InputError, match=r"expected labels of the shape of input_ids, \(2, 4\)"):
            model.loss_and_grad(batch | {"labels": wrong})
    with pytest.raises(InputError, match="no token of the batch has a label that counts"):
        model.loss_and_grad(batch | {"labels": np.full((2, 4), -100)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_ids": np.array([1, 2])}, r"expected a batch \{'input_ids': \(B, T\), ...\}"),
        (
            {"attention_mask": np.ones((2, 3))},
            r"attention_mask must have the shape of input_ids, \(2, 4\); got \(2, 3\)",
        ),
        ({"segment_ids": np.ones((1, 4), int)}, r"segment_ids must have the shape of input_ids"),
        ({"position_ids": np.ones(4, int)}, r"position_ids must have the shape of input_ids"),
        ({"input_ids": np.zeros((1, 65), int)}, "at most 64 tokens; got 65. Truncate them"),
        ({"input_ids": np.array([[0, 37]])}, "ids must be from 0 to 36; got 0 to 37"),
    ],
    ids=str,
)
def test_batches_that_are_refused(rng, change, message):
    with pytest.raises(InputError, match=message):
        made("llama", rng).predict({"input_ids": np.zeros((2, 4), int)} | change)


# ---- gradients -------------------------------------------------------------------------------------------------------


def assert_gradients(model, batch, run=Run):
    """loss_and_grad against the complex step, each parameter along one random direction."""
    rng, probe = np.random.default_rng(1), model.to(np, "float64")
    loss, grads = probe.loss_and_grad(batch, run(), 0.7)
    assert grads.keys() == probe.trainable_params().keys()
    largest = max(np.abs(grad).max() for grad in grads.values())
    probe = probe.to(np, "complex128")
    for name, array in probe.trainable_params().items():
        direction, before = rng.standard_normal(array.shape), array.copy()
        array[...] += 1j * SIDEWAYS_STEP * direction
        moved, _ = probe.loss_and_grad(batch, run())
        array[...] = before
        want = 0.7 * moved.imag / SIDEWAYS_STEP
        got = np.sum(direction * grads[name])
        assert moved.real == pytest.approx(loss, rel=1e-12)
        assert abs(got - want) <= SMOOTH * max(abs(want), largest), name


def adapted(model, targets="all-linear", **options):
    config = LoRAConfig(r=3, lora_alpha=5, target_modules=targets, init_lora_weights=False, **options)
    inject(model, config, 2)
    return model


@EVERY_KIND
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("lora", [False, True])
def test_every_gradient(rng, kind, recompute, lora):
    model = made(kind, rng, recompute=recompute)
    assert_gradients(adapted(model) if lora else model, batch_of(rng, LENGTHS))


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(
    "targets", [["q_proj", "v_proj"], ["down_proj"], ["k_proj"], ["1.mlp.up_proj"], ["o_proj", "gate_proj"]]
)
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_every_gradient_of_some_adapters(rng, recompute, targets, dropout):
    model = adapted(made("qwen2", rng, recompute=recompute), targets, lora_dropout=dropout)
    assert_gradients(model, batch_of(rng, LENGTHS), lambda: Run(rng=np.random.default_rng(3)))


@pytest.mark.parametrize("trained", ["norm", "input_layernorm", "post_attention_layernorm", "embed_tokens", "lm_head"])
@pytest.mark.parametrize("recompute", [False, True])
def test_every_gradient_of_what_trains_alone(rng, trained, recompute):
    model = made("llama", rng, recompute=recompute)
    model.set_trainable([name for name in model.named_params() if name.split(".")[-2] == trained])
    assert_gradients(model, batch_of(rng, LENGTHS))


@pytest.mark.parametrize("recompute", [False, True])
def test_every_gradient_over_nf4(rng, recompute):
    model = made("biases", rng, recompute=recompute)
    assert len(quantize(model, "nf4")) == 14
    assert_gradients(adapted(model, bias="all"), batch_of(rng, LENGTHS))


@pytest.mark.parametrize("kind", ["llama", "tied"])
@pytest.mark.parametrize("lora", [False, True])
def test_gradients_of_logits(rng, kind, lora):
    """`forward` and `backward`, by which others put a loss of their own on the logits."""
    model, batch = made(kind, rng), batch_of(rng, LENGTHS)
    model = adapted(model) if lora else model
    _, grads = model.loss_and_grad(batch)
    logits, cache = model(batch)
    targets = model.targets(batch)
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    dlogits = (p - np.eye(37)[np.maximum(targets, 0)]) * (targets >= 0)[..., None] / model.count(batch)
    dx, own = model.backward(dlogits, cache)
    own = model.add_tied(own)
    assert dx is None and own.keys() == grads.keys()
    for name, grad in grads.items():
        assert_close(own[name], grad, 1e-11)


# ---- the head --------------------------------------------------------------------------------------------------------


@EVERY_KIND
def test_all_linear_layers_are_those_of_the_blocks(rng, kind):
    """The output layer is left out, by adapters as in PEFT, and in 4 bits, where it stays as it is."""
    paths = [path for path in made(kind, rng).named_params() if path.startswith("model.layers.") and "norm" not in path]
    paths = [path.removesuffix(".weight") for path in paths if path.endswith(".weight")]
    assert len(paths) == 14
    assert inject(made(kind, rng), LoRAConfig(r=2)) == paths == quantize(made(kind, rng))
    assert quantize(made("llama", rng), target="lm_head") == ["lm_head"]


# ---- LoRA on the head ------------------------------------------------------------------------------------------------

ON_HEAD = pytest.mark.parametrize(
    ("kind", "options"),
    [(kind, options) for kind in ("llama", "tied") for options in ({}, {"lora_dropout": 0.4})],
    ids=str,
)


@pytest.fixture
def few_logits(monkeypatch):
    """Chunks of 32 rows."""
    monkeypatch.setattr(sys.modules["lorabook.functional.language_loss"], "LOGITS", 1)


@ON_HEAD
@pytest.mark.parametrize("watched", [False, True])
def test_gradients_of_lora_on_the_head(rng, few_logits, kind, options, watched):
    """By one effective weight, and in chunks through the layer, where there is none or somebody looks."""
    model = adapted(made(kind, rng), ["lm_head", "q_proj"], **options)
    batch = batch_of(rng, (20, 31, 27))
    assert model.count(batch) > 33
    if not options:
        loss, _ = model.loss_and_grad(batch, Run(watch=lambda *seen: None))
        assert loss == pytest.approx(model_loss(model.predict(batch), batch, model), rel=1e-12)
    watch = (lambda *seen: None) if watched else None
    assert_gradients(model, batch, lambda: Run(rng=np.random.default_rng(3), watch=watch))


@pytest.mark.parametrize("kind", ["llama", "tied"])
def test_lora_on_the_head_merged_saved_and_loaded(rng, tmp_path, kind):
    model, batch = made(kind, rng, "float32"), batch_of(rng, LENGTHS)
    embedding = model.named_params()["model.embed_tokens.weight"].copy()
    assert inject(model, LoRAConfig(r=2, target_modules=["lm_head"], init_lora_weights=False), 4) == ["lm_head"]
    assert model.trainable_params().keys() == {"lm_head.lora_A", "lm_head.lora_B"}
    want = model.predict(batch)
    save_adapter(tmp_path, model, task_type="CAUSAL_LM")
    other = made(kind, np.random.default_rng(0), "float32")
    other.load(
        {
            name: array
            for name, array in model.named_params().items()
            if ".lora_" not in name and ".base_layer." not in name
        }
        | ({} if kind == "tied" else {"lm_head.weight": model.named_params()["lm_head.base_layer.weight"]})
    )
    load_adapter(tmp_path, other)
    assert same_bits(other.predict(batch), want)
    merge(model)
    assert_close(model.predict(batch), want, 2e-6)
    assert same_bits(model.named_params()["model.embed_tokens.weight"], embedding)
    unmerge(model)
    assert same_bits(model.predict(batch), want)
    merge(model)
    unload(model)
    assert_close(model.predict(batch), want, 2e-6)
    assert model.children["lm_head"].weight is not model.named_params()["model.embed_tokens.weight"]


# ---- recomputing -----------------------------------------------------------------------------------------------------


def test_recomputing_draws_the_same_dropout(rng):
    config = LoRAConfig(r=3, lora_dropout=0.4, target_modules="all-linear", init_lora_weights=False)
    models = [made("llama", np.random.default_rng(1), recompute=recompute) for recompute in (False, True)]
    batch, found = batch_of(rng, LENGTHS), []
    for model in models:
        inject(model, config, 2)
        found.append(model.loss_and_grad(batch, Run(rng=np.random.default_rng(3))))
    (loss, grads), (again, others) = found
    assert loss == again != models[0].loss_and_grad(batch)[0]
    assert grads.keys() == others.keys()
    assert all(same_bits(grads[name], others[name]) for name in grads)


def test_recomputing_keeps_the_names(rng):
    plain, again = made("llama", np.random.default_rng(1)), made("llama", np.random.default_rng(1), recompute=True)
    assert [*plain.named_params()] == [*again.named_params()]
    assert [path for path, _ in plain.named_layers()] == [path for path, _ in again.named_layers()]


# ---- what runs backward ----------------------------------------------------------------------------------------------


@pytest.fixture
def ran(monkeypatch):
    """[(layer, need_dx)] of every backward pass of a linear layer, a norm or an embedding, in order."""
    calls = []
    model = adapted(made("llama", np.random.default_rng(0)))
    for cls in {type(layer) for _, layer in model.named_layers()}:
        if "backward" in vars(cls):

            def backward(self, dout, cache, need_dx=True, original=cls.backward):
                calls.append((self, need_dx))
                return original(self, dout, cache, need_dx)

            monkeypatch.setattr(cls, "backward", backward)
    return calls


def paths_of(model, calls):
    names = {layer: path.removeprefix("model.") for path, layer in model.named_layers()}
    return [(names[layer], need_dx) for layer, need_dx in calls]


def test_nothing_below_the_lowest_adapter_runs_backward(rng, ran):
    """LoRA on the last block's v_proj: no other block, no embedding, no norm below it, no query and no key."""
    model = adapted(made("llama", rng), ["1.self_attn.v_proj"])
    model.loss_and_grad(batch_of(rng, LENGTHS))
    paths = [path for path, _ in paths_of(model, ran)]
    assert not [path for path in paths if "embed" in path or path.startswith("layers.0")]
    block = [(path.removeprefix("layers.1."), need_dx) for path, need_dx in paths_of(model, ran) if "layers.1." in path]
    inside = [one for one in block if one[0] not in ("", "layers.1")]
    assert [path for path, _ in inside if "base_layer" not in path] == [
        "mlp", "mlp.down_proj", "mlp.up_proj", "mlp.gate_proj", "post_attention_layernorm",
        "self_attn", "self_attn.o_proj", "self_attn.v_proj",
    ]  # fmt: skip
    assert dict(inside)["self_attn.v_proj"] is False and dict(inside)["self_attn"] is False


@pytest.mark.parametrize(
    ("target", "lowest"),
    [
        ("1.mlp.down_proj", ["mlp", "mlp.down_proj"]),
        ("1.mlp.gate_proj", ["mlp", "mlp.down_proj", "mlp.gate_proj"]),
        ("1.mlp.up_proj", ["mlp", "mlp.down_proj", "mlp.up_proj"]),
    ],
)
def test_an_adapter_in_the_last_mlp_runs_no_attention_backward(rng, ran, target, lowest):
    model = adapted(made("llama", rng), [target])
    model.loss_and_grad(batch_of(rng, LENGTHS))
    paths = [path for path, _ in paths_of(model, ran) if "base_layer" not in path]
    assert [path.removeprefix("layers.1.") for path in paths if path.startswith("layers.1.")] == lowest
    assert not [path for path in paths if "embed" in path or path.startswith("layers.0")]
    assert paths_of(model, ran)[-1] in [(f"layers.1.{target[2:]}", False), (f"layers.1.{target[2:]}.base_layer", False)]


def test_an_adapter_on_the_head_runs_nothing_else(rng, ran):
    model = adapted(made("llama", rng), ["lm_head"], lora_dropout=0.4)
    model.loss_and_grad(batch_of(rng, LENGTHS), Run(rng=rng))
    assert {path for path, _ in paths_of(model, ran)} == {"lm_head", "lm_head.base_layer"}


def test_recomputing_runs_no_block_again_that_is_below(rng):
    model = adapted(made("llama", rng, recompute=True), ["1.self_attn.v_proj"])
    blocks, seen = model.children["model"].children["layers"].children, []
    for name, wrapped in blocks.items():
        original = wrapped.block.forward
        wrapped.block.forward = lambda x, run, name=name, original=original: seen.append(name) or original(x, run)
    model.loss_and_grad(batch_of(rng, LENGTHS))
    assert seen == ["0", "1", "1"]


# ---- other backends --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "tied", "llama3", "biases"])
@pytest.mark.parametrize("how", ["plain", "lora", "recompute", "nf4", "packed"])
def test_a_step_on_every_backend(xp, put, rng, kind, how):
    """Loss, gradients and logits of the model are NumPy's, and live where the model does."""
    model = made(kind, rng, recompute=how == "recompute")
    batch = batch_of(rng, LENGTHS)
    if how == "packed":
        batch |= {"segment_ids": np.minimum(np.arange(9), 4)[None, :] // 2 + np.zeros((3, 1), int)}
    if how == "nf4":
        quantize(model)
    if how != "plain":
        adapted(model, lora_dropout=0.3)
    loss, grads = model.loss_and_grad(batch, Run(rng=np.random.default_rng(5)))
    logits = model.predict(batch)
    moved = {}
    for _, layer in model.named_layers():
        layer.change_arrays(lambda array, *_: moved.setdefault(id(array), put(array, array.dtype)))
    other, more = model.loss_and_grad(put_all(put, batch), Run(rng=np.random.default_rng(5)))
    assert abs(float(other) - loss) < 1e-12 and grads.keys() == more.keys()
    for name, grad in grads.items():
        assert more[name].device == put(grad).device
        assert_close(more[name], grad, 1e-11)
    assert_close(model.predict(put_all(put, batch)), logits, 1e-12)
    assert model.evaluate(put_all(put, batch))[0] == pytest.approx(model_loss(logits, batch, model), rel=1e-12)


def model_loss(logits, batch, model):
    targets = to_numpy(model.targets(batch))
    rows = logits[targets >= 0]
    return np.mean(np.log(np.exp(rows).sum(-1)) - rows[np.arange(len(rows)), targets[targets >= 0]])
