"""What the self-test of a backend runs, continued: a pass through each block, a training step of each model."""

import functools

import numpy as np

from ..adapters import LoRAConfig, inject
from ..layers import INFERENCE, quantize
from ..models import (
    MLP,
    BertForSentenceEmbedding,
    BertForTokenClassification,
    KVCache,
    LlamaForCausalLM,
    PostNormBlock,
    PreNormBlock,
)
from ..models import MODELS as KINDS
from ..parallel import Workers
from ..training import AdamW

SIZES = {
    "vocab_size": 50,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 20,
    "type_vocab_size": 2,
}


def placed(model, a, adapted=None):
    """The model with random weights, all of which train; adapted: the layers with LoRA, all that trains then."""
    rng = np.random.default_rng(1)
    if adapted:
        inject(model, LoRAConfig(r=3, target_modules=adapted, lora_dropout=0.2, init_lora_weights=False), rng)
    for name, array in model.named_params().items():
        array[...] = 0.3 * rng.standard_normal(array.shape) + name.endswith(("orm.weight", "norm1.weight"))
    moved = {}  # an array of two names stays one

    def change(array, *dtype):
        if id(array) not in moved:
            moved[id(array)] = array, a.move(array) if dtype else a.put(array)  # of a buffer the dtype stays
        return moved[id(array)][1]

    for _, layer in model.named_layers():
        layer.change_arrays(change)
    return model


def passed(layer, x, dout):
    """(y, dx, gradients) of one pass through a layer, without dropout. The one place here that does so."""
    y, cache = layer(x)
    return y, *layer.backward(dout, cache)


def block(kind):
    """The case of a transformer block, with LoRA on its queries."""

    def case(a):
        layer = placed(kind.random(24, 4, 40, np.random.default_rng(0)), a, ["query"])
        return passed(layer, a(3, 6, 24), a(3, 6, 24))

    return case


def trained(make, batch, adapted=None):
    """The case of a model: loss, gradients, weights after a step of AdamW, and what it predicts then."""

    def case(a):
        model, own = placed(make(), a, adapted), batch(a)
        with Workers(1) as workers:
            loss, grads = workers.loss_and_grad(model, own, np.random.default_rng(2))
            # a large eps: a gradient that is 0 but for rounding is to make a step that is 0 but for rounding
            params = model.trainable_params()
            AdamW(0.01, eps=0.1).step(params, grads)
            return loss, grads, params, workers.answer(model, own)

    return case


def numbers(a):
    """A batch for an MLP."""
    return {"x": a(300, 8), "labels": a.integers(0, 5, 300)}


def texts(a, labels):
    """A batch of 20 texts of up to 16 tokens, padded."""
    ids, real = a.rng.integers(0, 50, (20, 16)), np.arange(16) < a.rng.integers(1, 17, (20, 1))
    return {"input_ids": a.move(ids), "attention_mask": a.move(1 * real), "labels": labels(a)}


def mlp(kind):
    """An MLP with this activation."""
    return lambda: MLP((8, 20, 16, 5), kind, rng=np.random.default_rng(0))


def encoder(kind, **options):
    """A small model of this kind."""
    own = kind.architecture
    config = {"model_type": own.model_type} | {own.field(name): size for name, size in SIZES.items() if own.field(name)}
    return kind(config, **options)


def embedded(a):
    """Embeddings of sentences."""
    return placed(encoder(BertForSentenceEmbedding), a).answer(texts(a, lambda a: a.integers(0, 3, 20)))


def decoder(format=None, **options):
    """A small Llama; format: its linear layers in so few bits."""
    config = {name: SIZES[name] for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")}
    config |= {"model_type": "llama", "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}
    model = LlamaForCausalLM(config, rng=0, **options)
    if format:
        quantize(model, format)
    return model


def next_tokens(a):
    """A batch of texts whose tokens are their labels, two of them packed into each row."""
    batch = texts(a, lambda a: a.integers(-1, 50, 20, 16))
    return batch | {"segment_ids": a.move(np.array([[1] * 7 + [2] * 9] * 20))}


def cached(a):
    """Logits of three texts in two passes, the second of which reads keys and values of the first."""
    model, ids = placed(decoder(), a), a.rng.integers(0, 50, (3, 9))
    run = INFERENCE.but(kv=KVCache(3, 9))
    return [model.predict({"input_ids": a.move(part)}, run) for part in (ids[:, :7], ids[:, 7:])]


one_a_text = functools.partial(texts, labels=lambda a: a.integers(0, 3, 20))
one_a_token = functools.partial(texts, labels=lambda a: a.integers(-1, 3, 20, 16))
classifiers = {name: functools.partial(encoder, kind, labels=3) for name, kind in KINDS.items()}
MODELS = {
    "PostNormBlock": block(PostNormBlock),
    "PreNormBlock": block(PreNormBlock),
    "MLP, gelu": trained(mlp("gelu"), numbers),
    "MLP, silu, LoRA": trained(mlp("silu"), numbers, ["fc1", "fc2"]),
    **{name: trained(make, one_a_text) for name, make in classifiers.items()},
    **{f"{name}, LoRA": trained(make, one_a_text, "all-linear") for name, make in classifiers.items()},
    "BertForTokenClassification": trained(lambda: encoder(BertForTokenClassification, labels=3), one_a_token),
    "BertForSentenceEmbedding": embedded,
    "LlamaForCausalLM": trained(decoder, next_tokens),
    "LlamaForCausalLM, LoRA": trained(functools.partial(decoder, recompute=True), next_tokens, "all-linear"),
    "LlamaForCausalLM, nf4": trained(functools.partial(decoder, "nf4"), next_tokens, "all-linear"),
    "LlamaForCausalLM, cache": cached,
}
