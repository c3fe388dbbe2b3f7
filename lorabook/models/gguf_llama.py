"""A Llama in a GGUF file, as Hugging Face names it: config.json's keys, and the tensors of its state dict.

llama.cpp turns neighbouring entries of q and k by the same angle; Hugging Face's code turns entry i with i + d_head / 2
(half against half). So the rows of W_q and W_k were put in another order when the file was made: within each head,
row j of the first half to place 2 j, of the second half to 2 j + 1. Here they are put back.
"""

import re
from dataclasses import dataclass

import numpy as np

from ..errors import FormatError, InputError
from ..files import GGUFTensor, check_values, checked_quantized, integer, number, one_of, optional, short
from ..quantization import FORMATS, from_ggml

NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
HUGE = 1 << 24
RULES = {
    "llama.block_count": integer(1, 1 << 12),
    "llama.context_length": integer(1, 1 << 30),
    "llama.embedding_length": integer(1, HUGE),
    "llama.feed_forward_length": integer(1, HUGE),
    "llama.attention.head_count": integer(1, HUGE),
    "llama.attention.head_count_kv": optional(integer(1, HUGE)),
    "llama.attention.key_length": optional(integer(1, HUGE)),
    "llama.attention.value_length": optional(integer(1, HUGE)),
    "llama.rope.dimension_count": optional(integer(1, HUGE)),
    "llama.attention.layer_norm_rms_epsilon": number(0, 1),
    "llama.rope.freq_base": number(1, 1e12, 1e4),
    "llama.vocab_size": optional(integer(1, HUGE)),
    "llama.expert_count": optional(integer(0, 0)),
    "llama.rope.scaling.type": one_of("none"),
    "llama.rope.scaling.factor": optional(number(1, 1)),
    "tokenizer.ggml.bos_token_id": optional(integer(0, HUGE)),
    "tokenizer.ggml.eos_token_id": optional(integer(0, HUGE)),
    "tokenizer.ggml.padding_token_id": optional(integer(0, HUGE)),
}


@dataclass(frozen=True)
class GGUFWeight:
    """A parameter whose numbers are still in the file. heads: of W_q and W_k, whose rows come back in their order."""

    tensor: GGUFTensor
    heads: int | None = None

    floating = True  # dequantised

    @property
    def shape(self):
        """Of the parameter."""
        return self.tensor.shape

    @property
    def dtype(self):
        """The file's word."""
        return self.tensor.kind

    @property
    def in_blocks(self):
        """Whether `quantized` takes it: codes of 4 or 8 bits, in blocks that are kept as they are."""
        return len(self.shape) == 2 and self.tensor.kind.lower() in FORMATS

    def __array__(self, dtype=None, copy=None):
        """What NumPy calls where it needs the numbers: it can stand in the place of its array."""
        return self.read("float32" if dtype is None else dtype)

    def read(self, dtype="float32"):
        """The numbers, dequantised."""
        return unpermuted(self.tensor.read(dtype), self.heads)

    def quantized(self):
        """The codes and scales of the file (Q4_0, Q4_1, Q8_0) as a `Quantized`. Rows are whole blocks, so they move."""
        raw = unpermuted(self.tensor.raw(), self.heads)
        return checked_quantized(
            from_ggml(raw, self.tensor.kind, self.shape), f"{self.tensor.path}: tensor {self.tensor.name}"
        )


def unpermuted(W, heads):
    """The rows of W (d_out, ...) in Hugging Face's order: the even ones of each head, then the odd. None: as it is."""
    if heads is None:
        return W
    half = W.shape[0] // heads // 2
    return np.ascontiguousarray(np.swapaxes(W.reshape(heads, half, 2, -1), 1, 2)).reshape(W.shape)


def permuted(W, heads):
    """The other way: rows of W (d_out, ...) in llama.cpp's order. None: as it is."""
    if heads is None:
        return W
    half = W.shape[0] // heads // 2
    return np.ascontiguousarray(np.swapaxes(W.reshape(heads, 2, half, -1), 1, 2)).reshape(W.shape)


def llama_of_gguf(path, metadata, tensors):
    """(config {key: value}, {name: GGUFWeight}), as in Hugging Face's folders, of what `read_gguf` found at `path`.

    Raises FormatError for another architecture, for what a plain Llama does not have (experts, scaled rotary angles),
    and unless names and shapes of the tensors are those that the metadata promise.
    """
    kind = metadata.get("general.architecture")
    if not isinstance(kind, str) or kind != "llama":
        raise FormatError(f"{path}: general.architecture is {short(kind)}; only 'llama' is read here")
    check_values(path, metadata, RULES)

    def get(key, default=None):
        return metadata.get(f"llama.{key}", default)

    d, heads, tokens = get("embedding_length"), get("attention.head_count"), metadata.get("tokenizer.ggml.tokens")
    kv_heads, d_head = get("attention.head_count_kv", heads), get("attention.key_length", d // heads)
    n = get("vocab_size", len(tokens) if isinstance(tokens, list) else None)
    if n is None:
        raise FormatError(f"{path} has neither llama.vocab_size nor tokenizer.ggml.tokens; expected a vocabulary")
    turned = {d_head, get("attention.value_length", d_head), get("rope.dimension_count", d_head)}
    if (
        heads % kv_heads
        or len(turned) > 1
        or d_head % 2
        or ("llama.attention.key_length" not in metadata and d % heads)
    ):
        sizes = f"d = {d}, {heads} heads, {kv_heads} of keys, {' and '.join(map(str, sorted(turned)))} a head"
        raise FormatError(f"{path}: these sizes do not fit together: {sizes}; expected an even width, the same for all")
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": n,
        "hidden_size": d,
        "intermediate_size": get("feed_forward_length"),
        "num_hidden_layers": get("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": d_head,
        "hidden_act": "silu",
        "max_position_embeddings": get("context_length"),
        "rms_norm_eps": _shortest(get("attention.layer_norm_rms_epsilon")),
        "rope_theta": _shortest(get("rope.freq_base", 1e4)),
        "rope_scaling": None,
        "attention_bias": "blk.0.attn_q.bias" in tensors,
        "mlp_bias": False,
        "tie_word_embeddings": "output.weight" not in tensors,
    }
    for key, ours in (("bos", "bos"), ("eos", "eos"), ("padding", "pad")):
        config[f"{ours}_token_id"] = metadata.get(f"tokenizer.ggml.{key}_token_id")
    expected = expected_shapes(config)
    for name, tensor in tensors.items():
        if name not in expected:
            raise FormatError(
                f"{path}: tensor {short(name)} has no place in a Llama of {config['num_hidden_layers']} blocks"
            )
        if tensor.shape != expected[name]:
            raise FormatError(f"{path}: tensor {name} has the shape {tensor.shape}; expected {expected[name]}")
    if missing := [name for name in expected if name not in tensors]:
        raise FormatError(
            f"{path} has no tensor {missing[0]}; expected a Llama of {config['num_hidden_layers']} blocks"
        )
    return config, {hf_name(name): GGUFWeight(t, turned_heads(name, config)) for name, t in tensors.items()}


def turned_heads(name, config):
    """How many heads the rows of a GGUF tensor belong to that are in llama.cpp's order; None for all but q and k."""
    part = name.split(".")[2] if name.startswith("blk.") else None
    return {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}.get(part)


def expected_shapes(config):
    """{GGUF's name: shape} of all tensors of a Llama with this config."""
    d, d_head, up = config["hidden_size"], config["head_dim"], config["intermediate_size"]
    q, kv, n = config["num_attention_heads"] * d_head, config["num_key_value_heads"] * d_head, config["vocab_size"]
    shapes = {"token_embd.weight": (n, d), "output_norm.weight": (d,)}
    if not config["tie_word_embeddings"]:
        shapes["output.weight"] = (n, d)
    sides = {"attn_norm": (d,), "attn_q": (q, d), "attn_k": (kv, d), "attn_v": (kv, d), "attn_output": (d, q)}
    sides |= {"ffn_norm": (d,), "ffn_gate": (up, d), "ffn_up": (up, d), "ffn_down": (d, up)}
    for i in range(config["num_hidden_layers"]):
        shapes |= {f"blk.{i}.{part}.weight": shape for part, shape in sides.items()}
        if config["attention_bias"]:
            shapes |= {
                f"blk.{i}.{part}.bias": sides[part][:1] for part in ("attn_q", "attn_k", "attn_v", "attn_output")
            }
    return shapes


def hf_name(name):
    """Hugging Face's name of a GGUF tensor: blk.3.attn_q.weight -> model.layers.3.self_attn.q_proj.weight."""
    first, *rest = name.split(".")
    if first != "blk":
        return ".".join([NAMES[first], *rest])
    i, part, kind = rest
    return f"model.layers.{i}.{BLOCK[part]}.{kind}"


def gguf_name(name):
    """GGUF's name of a Hugging Face parameter of a Llama, the other way. Raises InputError for any other name."""
    path, _, kind = name.rpartition(".")
    inner = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", path)
    names, theirs, block = (BLOCK, inner[2], f"blk.{inner[1]}.") if inner else (NAMES, path, "")
    if theirs not in names.values() or kind not in ("weight", "bias"):
        raise InputError(f"{name} has no place in a GGUF file of a Llama")
    return f"{block}{next(ours for ours, own in names.items() if own == theirs)}.{kind}"


def _shortest(x):
    """The shortest decimal that rounds to this float32: 1e-05 instead of 9.999999747378752e-06."""
    return float(str(np.float32(x)))
