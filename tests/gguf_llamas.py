"""Whole GGUF files of tiny Llamas, that llama.cpp opens too: a tokenizer of bytes, float32 and quantised matrices."""

import json

import numpy as np
from tiny_llamas import made
from tokenizers import Tokenizer, models

from lorabook import LoRAConfig, inject, load_model, save_adapter
from lorabook.files import GGUFArray, write_gguf, write_weights
from lorabook.layers import distinct

SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
D, HEADS, KV, UP, LAYERS = 64, 4, 2, 96, 2
TOKENS = [chr(c) for c in (*range(33, 127), *range(161, 173), *range(174, 256))]
TOKENS += [chr(256 + i) for i in range(68)]
TOKENS += ["ab", "<|im_start|>", "<|im_end|>"]
N = len(TOKENS)
METADATA = {
    "general.architecture": "llama",
    "general.name": "tiny",
    "llama.block_count": np.uint32(LAYERS),
    "llama.context_length": np.uint32(64),
    "llama.embedding_length": np.uint32(D),
    "llama.feed_forward_length": np.uint32(UP),
    "llama.attention.head_count": np.uint32(HEADS),
    "llama.attention.head_count_kv": np.uint32(KV),
    "llama.attention.layer_norm_rms_epsilon": np.float32(1e-5),
    "llama.rope.freq_base": np.float32(100.0),
    "llama.rope.dimension_count": np.uint32(D // HEADS),
    "llama.vocab_size": np.uint32(N),
    "general.file_type": np.uint32(0),
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": np.array([1] * (N - 2) + [3, 3], "i4"),
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.bos_token_id": np.uint32(N - 2),
    "tokenizer.ggml.eos_token_id": np.uint32(N - 1),
    "tokenizer.ggml.padding_token_id": np.uint32(N - 1),
    "tokenizer.ggml.unknown_token_id": np.uint32(0),
    "tokenizer.ggml.add_bos_token": False,
    "tokenizer.chat_template": "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}",
}
SIDES = {"attn_norm": (D,), "attn_q": (D, D), "attn_k": (D // 2, D), "attn_v": (D // 2, D), "attn_output": (D, D)}
SIDES |= {"ffn_norm": (D,), "ffn_gate": (UP, D), "ffn_up": (UP, D), "ffn_down": (D, UP)}


def tensors_of(rng, kind="F32", tied=True, scale=1.0):
    """{name: GGUFArray} of random weights; matrices in `kind`."""
    shapes = {"token_embd.weight": (N, D)}
    for i in range(LAYERS):
        shapes |= {f"blk.{i}.{part}.weight": shape for part, shape in SIDES.items()}
    shapes |= {"output_norm.weight": (D,)} | ({} if tied else {"output.weight": (N, D)})
    tensors = {}
    for name, shape in shapes.items():
        array = rng.standard_normal(shape).astype("f4")
        array = 2 * scale * array / np.sqrt(D) if array.ndim == 2 else 1 + array / 10
        tensors[name] = GGUFArray(array, "F32" if array.ndim == 1 else kind)
    return tensors


def tiny_gguf(path, rng, kind="F32", metadata=METADATA, **options):
    """The path of a written file."""
    write_gguf(path, metadata, tensors_of(rng, kind, **options))
    return path


def decoder_folder(folder, kind, rng):
    """The folder of a tiny decoder of `tiny_llamas`, with a tokenizer of bytes that fits."""
    model = made(kind, rng, "float32")
    for array in model.named_params().values():
        array *= 0.3 if array.ndim == 2 else 1
    folder.mkdir()
    tokenizer = Tokenizer(models.BPE(vocab={chr(97 + i): i for i in range(20)}, merges=[]))
    tokenizer.save(str(folder / "tokenizer.json"))
    write_weights(folder.joinpath, distinct(model.named_params()))
    (folder / "config.json").write_text(json.dumps(model.config))
    return folder


def adapter_folder(folder, base, scale=0.3, **options):
    """The folder of an adapter with random factors over a base, by its path."""
    options = {"r": 4, "lora_alpha": 6, "target_modules": SEVEN} | options
    model, rng = load_model(base), np.random.default_rng(1)
    inject(model, LoRAConfig(**options))
    for name, array in model.trainable_params().items():
        new = scale * rng.standard_normal(array.shape)
        array[...] = array + new if "lora" not in name else new
    save_adapter(folder, model)
    return folder
