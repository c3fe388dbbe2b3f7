"""Malformed GGUF files. They join the kinds of `fuzz`."""

import struct

import numpy as np
from fuzz import GENERATORS, Kind, damaged, pick
from gguf_files import header, tensor, text, value

from lorabook.data import gguf_tokenizer
from lorabook.files import read_gguf
from lorabook.models import llama_of_gguf

SIDES = (0, 1, 2, 31, 32, 64, 256, 1 << 20, 1 << 32, 1 << 40, (1 << 63) - 1, (1 << 64) - 1)
TOKENS = ["<s>", "</s>", "a", "b", "ab", "\u0120a", "1"]
HONEST = {
    "general.architecture": "llama",
    "general.alignment": 32,
    "llama.block_count": 1,
    "llama.context_length": 16,
    "llama.embedding_length": 32,
    "llama.feed_forward_length": 64,
    "llama.attention.head_count": 2,
    "llama.attention.head_count_kv": 1,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.freq_base": 1e4,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": [3, 3, 1, 1, 1, 1, 1],
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.bos_token_id": 0,
    "tokenizer.ggml.eos_token_id": 1,
}
SHAPES = {
    "token_embd.weight": (7, 32),
    "blk.0.attn_norm.weight": (32,),
    "blk.0.attn_q.weight": (32, 32),
    "blk.0.attn_k.weight": (16, 32),
    "blk.0.attn_v.weight": (16, 32),
    "blk.0.attn_output.weight": (32, 32),
    "blk.0.ffn_norm.weight": (32,),
    "blk.0.ffn_gate.weight": (64, 32),
    "blk.0.ffn_up.weight": (64, 32),
    "blk.0.ffn_down.weight": (32, 64),
    "output_norm.weight": (32,),
}
STRANGE = (0, 1, 3, 7, 2**31, 2**32 - 1, True, 0.5, float("nan"), float("inf"), "", "mamba", "a", [0], [9, -1], ["a"])
STRANGE += (["a", "a"], ["a b c"], ["", "\u0120"], ["x y"], "split\n", ["a"] * 7, [3] * 7)


def forged_gguf(rng):
    """A tiny Llama whose metadata, shapes, types, offsets, counts or bytes may be others than they should be."""
    metadata, entries, data = dict(HONEST), [], b""
    for _ in range(rng.integers(3)):
        metadata[pick(rng, [*metadata, "split.count", "llama.vocab_size", "llama.expert_count"])] = pick(rng, STRANGE)
    if rng.random() < 0.2:
        metadata.pop(pick(rng, [*metadata]))
    for name, shape in SHAPES.items():
        name, sides, type_id, offset = name, list(shape[::-1]), 0, len(data)
        data += np.ones(shape, "<f4").tobytes()
        what = rng.integers(40)
        if what == 0:
            sides[rng.integers(len(sides))] = pick(rng, SIDES)
        elif what == 1:
            sides = [int(side) for side in rng.integers(1, 9, rng.integers(7))]
        elif what == 2:
            type_id = int(rng.integers(40))
        elif what == 3:
            offset = pick(rng, (*SIDES, offset + 4))
        elif what == 4:
            name = pick(rng, (*SHAPES, "", "blk.1.x", "a\n", "rope_freqs.weight"))
        entries.append(tensor(name, sides, type_id, offset))
    counts = [len(entries), len(metadata)]
    if rng.random() < 0.1:
        counts[rng.integers(2)] = pick(rng, SIDES)
    keys = [(key, value(content)) for key, content in metadata.items()]
    if rng.random() < 0.2:
        key, _ = keys.pop(int(rng.integers(len(keys))))
        keys.append((key, struct.pack("<IIQ", 9, int(rng.integers(14)), pick(rng, SIDES))))
    start = header(keys, entries, pick(rng, (2, 3, 3, 3, 3, 3, 3, 1)), counts[1], counts[0])
    whole = start + bytes(-len(start) % 32) + data
    return damaged(rng, whole, (b"\0", b"\xff" * 8, text("a")), most=2) if rng.random() < 0.4 else whole


def read_all(path):
    """As a model is loaded from such a file."""
    metadata, tensors = read_gguf(path)
    config, named = llama_of_gguf(path, metadata, tensors)
    gguf_tokenizer(path, metadata).encode("a b12 ab")
    return config, {name: weight.read() for name, weight in named.items()}


GENERATORS["gguf"] = Kind(forged_gguf, read_all, ".gguf")
