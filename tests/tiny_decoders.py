"""Tiny language models in files, with a tokenizer of bytes: a GGUF file with 4-bit matrices, a Hugging Face folder."""

import json

import numpy as np
from gguf_files import write_gguf
from tiny_language import END, SHORT, START, byte_tokenizer

from lorabook.files import write_safetensors
from lorabook.layers import distinct
from lorabook.models import LlamaForCausalLM
from lorabook.quantization import quantize_blocks

TOKENIZER = byte_tokenizer()
WORDS = TOKENIZER.get_vocab_size()
SIZES = {"vocab_size": WORDS, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
         "initializer_range": 0.15}  # fmt: skip


def gguf_file(path, template=SHORT, matrices="Q4_1", **metadata):
    """A GGUF file. template: None leaves it out. matrices: the type of those of the blocks."""
    vocab = TOKENIZER.get_vocab()
    tokens = sorted(vocab, key=vocab.get)
    d, up, kv = SIZES["hidden_size"], SIZES["intermediate_size"], 32
    shapes = {"attn_q": (d, d), "attn_k": (kv, d), "attn_v": (kv, d), "attn_output": (d, d)}
    shapes |= {"ffn_gate": (up, d), "ffn_up": (up, d), "ffn_down": (d, up)}
    rng, arrays, kinds = np.random.default_rng(3), {}, {}
    arrays["token_embd.weight"] = rng.standard_normal((WORDS, d)).astype("f4") * 0.15
    for i in range(SIZES["num_hidden_layers"]):
        for norm in ("attn_norm", "ffn_norm"):
            arrays[f"blk.{i}.{norm}.weight"] = np.ones(d, "f4")
        for part, shape in shapes.items():
            name, W = f"blk.{i}.{part}.weight", rng.standard_normal(shape).astype("f4") * 0.15
            arrays[name] = W if matrices == "F32" else quantize_blocks(W.reshape(-1, 32), matrices)
            kinds[name] = matrices, shape
    arrays["output_norm.weight"] = np.ones(d, "f4")
    metadata = {
        "general.architecture": "llama",
        "llama.block_count": SIZES["num_hidden_layers"],
        "llama.context_length": SIZES["max_position_embeddings"],
        "llama.embedding_length": d,
        "llama.feed_forward_length": up,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 1e4,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in (START, END) else 1 for token in tokens],
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.eos_token_id": TOKENIZER.token_to_id(END),
        **({} if template is None else {"tokenizer.chat_template": template}),
    } | metadata
    metadata["tokenizer.ggml.tokens"] = [*tokens, "ab"]
    metadata["tokenizer.ggml.token_type"] = [*metadata["tokenizer.ggml.token_type"], 1]
    arrays["token_embd.weight"] = np.vstack([arrays["token_embd.weight"], np.zeros((1, d), "f4")])
    return write_gguf(path, metadata, arrays, kinds)


def decoder_folder(folder, template=SHORT, tied=True, **config):
    """A Hugging Face folder."""
    folder.mkdir(parents=True, exist_ok=True)
    end = TOKENIZER.token_to_id(END)
    config = SIZES | {"model_type": "llama", "tie_word_embeddings": tied, "eos_token_id": end} | config
    model = LlamaForCausalLM(config, rng=3)
    write_safetensors(folder / "model.safetensors", distinct(model.named_params()), {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    TOKENIZER.save(str(folder / "tokenizer.json"))
    told = {"eos_token": END} | ({} if template is None else {"chat_template": template})
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    return folder


def poems(path):
    """A file of completions that are quickly learned."""
    rows = [("Roses are", " red."), ("Violets are", " blue."), ("Snow is", " white."), ("Grass is", " green.")]
    path.write_text("prompt,completion\n" + "".join(f"{a},{b}\n" for a, b in rows))
    return path
