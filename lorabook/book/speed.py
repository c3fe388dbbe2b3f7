"""Chapter 15's models and measurements: ways to share out a step, contraction orders, kernels of attention."""

import contextlib
import time
from unittest import mock

import numpy as np
from threadpoolctl import threadpool_limits

from ..adapters import LoRAConfig, LoRALinear, inject
from ..bench import SIX, Case, products
from ..functional import (
    absorbed_attention,
    absorbed_attention_backward,
    attend,
    attention,
    attention_backward,
)
from ..layers import Linear
from ..models import BertForSequenceClassification
from ..parallel import Workers
from . import plain
from .parts import MINILM
from .stopwatch import medians

SMALL = MINILM | {"vocab_size": 500, "hidden_size": 128, "num_hidden_layers": 2, "intermediate_size": 512}
SMALL |= {"num_attention_heads": 4, "max_position_embeddings": 128}
WIDER = SMALL | {"hidden_size": 256, "num_hidden_layers": 3, "intermediate_size": 1024}


def random_bert(config):
    """BERT with weights from N(0, 0.02^2), and random adapters with r = 8 on all six matrices of a block."""
    model, draw = BertForSequenceClassification(config, labels=2), np.random.default_rng(0)
    for array in model.named_params().values():
        if array.ndim == 2:
            array[...] = 0.02 * draw.standard_normal(array.shape)
    saved = {"modules_to_save": ("classifier",), "init_lora_weights": False}
    inject(model, LoRAConfig(r=8, lora_alpha=16, target_modules=SIX, **saved), draw)
    return model


def random_batch(texts, tokens, seed=0):
    """A batch of random ids and labels for `random_bert`."""
    draw = np.random.default_rng(seed)
    ids = draw.integers(1, SMALL["vocab_size"], (texts, tokens))
    return {"input_ids": ids, "labels": draw.integers(0, 2, texts)}


# ---- ways to share out a step ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def _whole(model, batch, threads):
    with threadpool_limits(threads, "blas"):
        yield lambda: model.loss_and_grad(batch)


@contextlib.contextmanager
def _in_shards(model, batch, threads):
    with Workers(threads) as workers:
        yield lambda: workers.loss_and_grad(model, batch)


@contextlib.contextmanager
def _products_alone(config, case):
    draw = np.random.default_rng(0)

    def operands(product):
        N, d_in, d_out = product.N, product.d_in, product.d_out
        shapes = {"forward": ((N, d_in), (d_in, d_out)), "dx": ((N, d_out), (d_out, d_in))}
        shapes["dW"] = ((d_out, N), (N, d_in))
        return [draw.standard_normal(shape, dtype="f4") for shape in shapes[product.kind]]

    last = config["num_hidden_layers"] - 1  # it makes no keys and values
    absorbed = tuple(f"{last}.attention.self.{name}" for name in ("key", "value"))
    needed = [product for product in products(config, case) if not product.layer.endswith(absorbed)]
    pairs = [operands(product) for product in needed]
    with threadpool_limits(1, "blas"):
        yield lambda: [a @ b for a, b in pairs]


def product_share(texts=8, tokens=128):
    """Share of the processor time of a step on one thread that its products with W would take alone."""
    model, batch = random_bert(WIDER), random_batch(texts, tokens)
    case = Case(batch_size=texts, seq_len=tokens)
    with _products_alone(WIDER, case) as alone, _whole(model, batch, 1) as step:
        times = medians(7, alone=alone, step=step)
    return times["alone"] / times["step"]


def ways(threads=2, texts=8, tokens=128, turns=5):
    """{name: least seconds of a step}: the whole batch and shards, with one thread and with more."""
    model, batch = random_bert(WIDER), random_batch(texts, tokens)
    found = {
        "whole batch, 1 BLAS thread": (_whole, 1),
        f"whole batch, {threads} BLAS threads": (_whole, threads),
        "shards, 1 worker": (_in_shards, 1),
        f"shards, {threads} workers": (_in_shards, threads),
    }
    times = {name: [] for name in found}
    for turn in range(turns):
        for name, (way, n) in found.items():
            with way(model, batch, n) as work:
                if turn == 0:
                    work()
                time.sleep(0.05)  # until BLAS threads that wait for more work have gone to sleep
                start = time.perf_counter()
                work()
                times[name].append(time.perf_counter() - start)
    return {name: min(values) for name, values in times.items()}


# ---- attention -------------------------------------------------------------------------------------------------------


def attention_times(texts, tokens, d=384, heads=12, turns=11):
    """{"plain", "transposed", "transposed, in blocks": milliseconds} of attention forward and backward, float32."""
    draw = np.random.default_rng(0)
    q, k, v, dout = draw.standard_normal((4, texts, tokens, d), dtype="f4")

    def by_library():
        attention_backward(dout, attention(q, k, v, heads)[1])

    def in_one_block():
        with mock.patch.object(attend, "SCORES", 1 << 40):
            by_library()

    def by_formula():
        plain.attention_backward(dout, plain.attention(q, k, v, heads)[1])

    return medians(turns, **{"plain": by_formula, "transposed": in_one_block, "transposed, in blocks": by_library})


def first_token_times(texts, tokens, d=384, heads=12, turns=11):
    """{"keys and values", "absorbed": milliseconds} of one question a text, forward and backward to x, float32."""
    draw = np.random.default_rng(0)
    x, q = (draw.standard_normal((texts, n, d), dtype="f4") for n in (tokens, 1))
    W_k, W_v = 0.05 * draw.standard_normal((2, d, d), dtype="f4")
    b_k, b_v = draw.standard_normal((2, d), dtype="f4")

    def with_keys():
        o, cache = attention(q, x @ W_k.T + b_k, x @ W_v.T + b_v, heads)
        _, dk, dv = attention_backward(o, cache)
        return dk @ W_k + dv @ W_v

    def absorbed():
        o, cache = absorbed_attention(q, x, W_k, W_v, b_v, heads)
        return absorbed_attention_backward(o, cache)[1]

    return medians(turns, **{"keys and values": with_keys, "absorbed": absorbed})


# ---- contraction orders ----------------------------------------------------------------------------------------------


def order_ratio(d_in, d_out, N, r=8, turns=21):
    """Processor time of the factored order over that of the merged one, forward and backward of a LoRALinear."""
    draw = np.random.default_rng(0)
    base = Linear.random(d_in, d_out, draw)
    x, dout = draw.standard_normal((N, d_in), dtype="f4"), draw.standard_normal((N, d_out), dtype="f4")
    layers = {order: LoRALinear(base, r, 16, init_lora_weights=False, order=order) for order in ("factored", "merged")}
    works = {order: lambda layer=layer: layer.backward(dout, layer(x)[1]) for order, layer in layers.items()}
    times = medians(turns, **works)
    return times["factored"] / times["merged"]


def crossing(N, ratio):
    """Where a curve that ends above 1 goes through 1 for the last time; None if it does not."""
    below = [i for i, value in enumerate(ratio) if value < 1]
    if not below or below[-1] == len(N) - 1:
        return None
    i = below[-1]
    t = (1 - ratio[i]) / (ratio[i + 1] - ratio[i])
    return N[i] * (N[i + 1] / N[i]) ** t


@contextlib.contextmanager
def counting_formed(model):
    """A list that grows by one whenever an adapter of the model forms W + s B A."""
    formed, layers = [], [layer for _, layer in model.named_layers() if isinstance(layer, LoRALinear)]
    for layer in layers:

        def counted(layer=layer, form=layer.delta_weight):
            formed.append(layer)
            return form()

        layer.delta_weight = counted
    try:
        yield formed
    finally:
        for layer in layers:
            del layer.delta_weight
