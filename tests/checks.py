import importlib.util
import json
import shutil
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from lorabook import LoRAConfig, LoRALinear, inject
from lorabook.backend import array_namespace, asarray_like, to_numpy
from lorabook.data import NumberTask
from lorabook.files import write_safetensors
from lorabook.functional import causal_bias, padding_bias
from lorabook.layers import (
    RUN,
    Activation,
    LayerNorm,
    Linear,
    QuantizedLinear,
    Recompute,
    RMSNorm,
    Run,
    Sequential,
    Softmax,
)
from lorabook.models import MLP, BertForSequenceClassification
from lorabook.studies import Setting
from lorabook.tasks import Problem

MPIEXEC = shutil.which("mpiexec", path=Path(sys.executable).parent)
TOLERANCES = {"float32": 2e-6, "float64": 1e-12}


def assert_close(got, want, tolerance=1e-12):
    """Largest deviation relative to the largest wanted entry; shapes equal; NaN never passes."""
    got, want = np.asarray(to_numpy(got)), np.asarray(to_numpy(want))
    assert got.shape == want.shape, f"shape {got.shape}, expected {want.shape}"
    error = np.max(np.abs(got - want), initial=0.0)
    scale = np.max(np.abs(want), initial=0.0) or 1.0
    assert error <= tolerance * scale, f"relative error {error / scale:.3g}, expected at most {tolerance:.3g}"


def assert_lives_on(like, *arrays):
    """Every array has the namespace, device and dtype of `like`."""
    for array in arrays:
        assert array_namespace(array) is array_namespace(like)
        assert array.device == like.device
        assert array.dtype == like.dtype


def move(layer, put, dtype=None):
    """The layer with its parameters put on another backend, and its buffers as they are, in place."""
    for _, part in layer.named_layers():
        for name, array in part.buffers.items():
            part.buffers[name] = put(array)
        for name, array in part.params.items():
            part.params[name] = put(array, dtype)
    return layer


def same_bits(got, want):
    got, want = to_numpy(got), to_numpy(want)
    return got.dtype == want.dtype and got.shape == want.shape and got.tobytes() == want.tobytes()


def on_ranks(test):
    """Mark a test that starts several processes with mpiexec."""
    missing = MPIEXEC is None or importlib.util.find_spec("mpi4py") is None
    reason = "ranks need mpi4py, and mpiexec beside python: pip install -e '.[mpi]'"
    return pytest.mark.mpi(pytest.mark.skipif(missing, reason=reason)(test))


# ---- one of each layer, 5 features in, float64, nothing at rest ------------------------------------------------------


def linear(rng, d_in=5, d_out=7, bias=True):
    return Linear(rng.standard_normal((d_out, d_in)), rng.standard_normal(d_out) if bias else None)


def quantized(rng, format="nf4", bias=True):
    return QuantizedLinear.of(linear(rng, bias=bias), format)


def lora(rng, order="factored", also=(), bias=True, base=None, **options):
    base = linear(rng, bias=bias) if base is None else base
    layer = LoRALinear(base, r=4, lora_alpha=3, init_lora_weights=False, rng=rng, order=order, **options)
    base.set_trainable(also)
    return layer


def lora_mlp(rng):
    model = MLP((5, 8, 7), "gelu", rng=rng).to(np, "float64")
    inject(model, LoRAConfig(r=3, lora_alpha=2, init_lora_weights=False, rank_pattern={"fc2": 4}), rng)
    return model


def stack(rng, **options):
    """LoRA below and above an RMS norm."""
    above = lora(rng, base=linear(rng, 7, 8), **options)
    return Sequential({"below": lora(rng, **options), "norm": RMSNorm(rng.standard_normal(7), eps=0.1), "above": above})


LAYERS = {
    "linear": linear,
    "linear_no_bias": lambda rng: linear(rng, bias=False),
    "layer_norm": lambda rng: LayerNorm(rng.standard_normal(5), rng.standard_normal(5), eps=0.1),
    "rms_norm": lambda rng: RMSNorm(rng.standard_normal(5), eps=0.1),
    "gelu": lambda rng: Activation("gelu"),
    "gelu_tanh": lambda rng: Activation("gelu_tanh"),
    "silu": lambda rng: Activation("silu"),
    "tanh": lambda rng: Activation("tanh"),
    "softmax": lambda rng: Softmax(),
    "mlp": lambda rng: MLP((5, 8, 7), "silu", rng=rng).to(np, "float64"),
    "lora_factored": lora,
    "lora_merged": lambda rng: lora(rng, "merged"),
    "lora_auto": lambda rng: lora(rng, "auto"),
    "lora_no_bias": lambda rng: lora(rng, bias=False),
    "lora_bias": lambda rng: lora(rng, also=["bias"]),
    "lora_weight_factored": lambda rng: lora(rng, also=["weight"]),
    "lora_weight_merged": lambda rng: lora(rng, "merged", also=["weight", "bias"]),
    "lora_rslora": lambda rng: lora(rng, use_rslora=True),
    "lora_dropout": lambda rng: lora(rng, "auto", lora_dropout=0.4),
    "lora_dropout_weight": lambda rng: lora(rng, lora_dropout=0.4, also=["weight", "bias"]),
    "lora_mlp": lora_mlp,
    "lora_nf4": lambda rng: lora(rng, also=["bias"], base=quantized(rng)),
    "lora_nf4_merged": lambda rng: lora(rng, "merged", also=["bias"], base=quantized(rng)),
    "lora_nf4_dropout": lambda rng: lora(rng, lora_dropout=0.4, base=quantized(rng)),
    "nf4": quantized,
    "q8_0_no_bias": lambda rng: quantized(rng, "q8_0", bias=False),
    "recompute": lambda rng: Recompute(stack(rng)),
    "recompute_dropout": lambda rng: Recompute(stack(rng, lora_dropout=0.4)),
    "recompute_twice": lambda rng: Recompute(
        Sequential({"a": Recompute(linear(rng, 5, 5)), "b": Recompute(lora(rng))})
    ),
    "lora_stack": lambda rng: Sequential({"first": lora(rng, "merged"), "second": linear(rng, 7, 9)}),
}


def dropout_seed(name):
    """The seed of the training pass for layers with dropout, None for the others."""
    return 7 if "dropout" in name else None


def run(layer, x, dout, seed=None, **options):
    """Output, dx and gradients of one pass."""
    y, cache = layer(x, Run(rng=None if seed is None else np.random.default_rng(seed)))
    return y, *layer.backward(dout, cache, **options)


def held(model):
    """All that the layers of the model hold, {path: attributes}: equal to what it was if nothing was stored on one."""
    return {
        path: vars(layer)
        | {"params": dict(layer.params), "children": dict(layer.children), "trainable": set(layer.trainable)}
        for path, layer in model.named_layers()
    }


# ---- what attention does not see -------------------------------------------------------------------------------------

MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0]], bool)


def bias_of(kind, like):
    """The bias of this kind for an input like (B, T, d); None for "none"."""
    biases = [causal_bias(like.shape[1], like)] if "causal" in kind else []
    if "padding" in kind:
        mask = asarray_like(MASK[: like.shape[0]], like, dtype=array_namespace(like).bool)
        biases.append(padding_bias(mask, like))
    return sum(biases[1:], start=biases[0]) if biases else None


def run_of(kind, like, run=RUN):
    """The run in which attention over an input like (B, T, d) does not see what this kind hides."""
    return run.but(causal="causal" in kind, bias=bias_of("padding" if "padding" in kind else "none", like))


# ---- a tiny BERT, in memory and as a Hugging Face folder -------------------------------------------------------------

WORDS = "[PAD] [UNK] [CLS] [SEP] good bad fine poor film plot a the".split()


def tiny_config(**changes):
    """config.json of a BERT whose sizes are all different: 12 words, d = 6, two blocks of two heads."""
    return {
        "model_type": "bert",
        "vocab_size": len(WORDS),
        "hidden_size": 6,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 7,
        "max_position_embeddings": 9,
        "type_vocab_size": 2,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
    } | changes


def tiny_bert(rng, cls=BertForSequenceClassification, dtype="float64", config=None, **options):
    """A model with random weights, no two of which are equal."""
    model = cls(config or tiny_config(), **{"labels": 3} | options).to(np, dtype)
    for name, array in model.named_params().items():
        array[...] = 0.4 * rng.standard_normal(array.shape) + name.endswith("LayerNorm.weight")
    return model


def tiny_ids():
    """A batch of (4, 5) ids, padded to different lengths; a word occurs twice, some words never."""
    ids = np.array([[2, 5, 4, 5, 3], [2, 6, 3, 0, 0], [2, 9, 8, 3, 0], [2, 3, 0, 0, 0]])
    return {"input_ids": ids, "attention_mask": (ids > 0).astype(int)}


def put_all(put, batch):
    """The batch on another backend."""
    return {name: put(array) for name, array in batch.items()}


def write_bert(folder, model, config=None, tensors=None, tokenizer=True):
    """The model as a Hugging Face folder; `tensors` of None are left out, others replaced or added."""
    folder = Path(folder)
    folder.mkdir(exist_ok=True)
    arrays = model.named_params() | (tensors or {})
    write_safetensors(folder / "model.safetensors", {n: a for n, a in arrays.items() if a is not None})
    (folder / "config.json").write_text(json.dumps(model.config | (config or {})))
    if tokenizer:
        write_tokenizer(folder / "tokenizer.json")
    return folder


def write_tokenizer(path, words=WORDS):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(path))


def encoder_folder(folder):
    """A folder with a bare encoder: no classifier, no names of labels."""
    network = tiny_bert(np.random.default_rng(0), dtype="float32")
    return write_bert(folder, network, tensors={"classifier.weight": None, "classifier.bias": None})


def reviews_file(path, n=64):
    """A CSV file of n texts of one to five words, by turns `pos` (good, fine) and `neg` (bad, poor)."""
    rng, lines = np.random.default_rng(1), ["text,label"]
    for i in range(n):
        words = rng.choice((("good", "fine"), ("bad", "poor"))[i % 2], rng.integers(1, 6))
        lines.append(f"{' '.join(words)},{('pos', 'neg')[i % 2]}")
    path.write_text("\n".join(lines))
    return path


# ---- a sweep of a second ---------------------------------------------------------------------------------------------


def sweep_setting(model=MLP):
    """A network with one hidden layer too many learns three clusters of points."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((3, 7)) * 2
    y = np.arange(90) % 3
    x = (centres[y] + rng.standard_normal((90, 7))).astype("f4")
    task = NumberTask("clusters", x[:60], y[:60], x[60:], y[60:])
    return Setting(partial(one_problem, Problem(model((7, 9, 8, 3), rng=rng), task)), epochs=5, batch_size=10)


def one_problem(problem, seed, validation=False):
    """The same base and split for every seed."""
    return Problem(problem.base, problem.task.validation()) if validation else problem


def without_seconds(rows):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]
