import numpy as np
import pytest
from checks import same_bits
from fuzz_gguf import HONEST, SHAPES
from gguf_files import write_gguf

from lorabook import FormatError
from lorabook.files import read_gguf
from lorabook.models import llama_of_gguf
from lorabook.quantization import quantize_blocks


def permuted(W, heads):
    """As llama.cpp's converter writes W_q and W_k: of each head, half against half becomes pair by pair."""
    return W.reshape(heads, 2, W.shape[0] // heads // 2, *W.shape[1:]).swapaxes(1, 2).reshape(W.shape)


def opened(path, metadata=None, arrays=None, without=(), kinds=None):
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal(shape).astype("f4") for name, shape in SHAPES.items()} | (arrays or {})
    metadata = {k: v for k, v in (HONEST | (metadata or {})).items() if k not in without}
    found = read_gguf(write_gguf(path, metadata, {n: a for n, a in arrays.items() if n not in without}, kinds))
    return arrays, *llama_of_gguf(path, *found)


def test_config_and_names(tmp_path):
    arrays, config, weights = opened(tmp_path / "a.gguf")
    assert config == {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 7,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "hidden_act": "silu",
        "max_position_embeddings": 16,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e4,
        "rope_scaling": None,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": None,
    }
    block = "model.layers.0."
    assert weights.keys() == {
        *("model.embed_tokens.weight", "model.norm.weight", f"{block}input_layernorm.weight"),
        *(f"{block}self_attn.{part}_proj.weight" for part in "qkvo"),
        *(f"{block}mlp.{part}_proj.weight" for part in ("gate", "up", "down")),
        f"{block}post_attention_layernorm.weight",
    }
    assert same_bits(weights[f"{block}mlp.down_proj.weight"].read(), arrays["blk.0.ffn_down.weight"])
    assert weights[f"{block}self_attn.k_proj.weight"].shape == (16, 32)


@pytest.mark.parametrize(("part", "heads"), [("q", 2), ("k", 1)])
def test_rows_of_q_and_k_come_back(tmp_path, rng, part, heads):
    W = rng.standard_normal((heads * 16, 32)).astype("f4")
    name = f"blk.0.attn_{part}.weight"
    weights = opened(tmp_path / "a.gguf", arrays={name: permuted(W, heads)})[2]
    assert same_bits(weights[f"model.layers.0.self_attn.{part}_proj.weight"].read(), W)
    assert weights[f"model.layers.0.self_attn.{part}_proj.weight"].read("f8").dtype == np.float64


def test_rows_move_in_four_bits_too(tmp_path, rng):
    W = permuted(rng.standard_normal((32, 32)).astype("f4"), 2)
    raw = quantize_blocks(W, "Q4_1")
    name = "blk.0.attn_q.weight"
    weights = opened(tmp_path / "a.gguf", arrays={name: raw}, kinds={name: ("Q4_1", (32, 32))})[2]
    weight = weights["model.layers.0.self_attn.q_proj.weight"]
    assert same_bits(weight.quantized().dequantize(), weight.read())
    assert np.abs(permuted(weight.read(), 2) - W).max() < 0.2


def test_an_output_of_its_own_and_biases(tmp_path):
    more = {"output.weight": np.ones((7, 32), "f4")}
    for part, n in (("q", 32), ("k", 16), ("v", 16), ("output", 32)):
        more[f"blk.0.attn_{part}.bias"] = np.arange(n, dtype="f4")
    _, config, weights = opened(tmp_path / "a.gguf", arrays=more)
    assert (config["tie_word_embeddings"], config["attention_bias"]) == (False, True)
    assert weights["lm_head.weight"].shape == (7, 32)
    bias = weights["model.layers.0.self_attn.k_proj.bias"].read()
    assert bias.tolist() == [*range(0, 16, 2), *range(1, 16, 2)]  # the rows of its weight moved, and so does it


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metadata": {"general.architecture": "gemma"}}, "general.architecture is 'gemma'; only 'llama' is read here"),
        ({"without": ["general.architecture"]}, "general.architecture is None"),
        ({"without": ["llama.block_count"]}, "llama.block_count must be an integer from 1 to 4096; got None"),
        ({"metadata": {"llama.expert_count": 8}}, "llama.expert_count must be an integer from 0 to 0, or null; got 8"),
        ({"metadata": {"llama.rope.scaling.type": "yarn"}}, "llama.rope.scaling.type must be 'none'; got 'yarn'"),
        ({"metadata": {"llama.rope.freq_base": float("nan")}}, "llama.rope.freq_base must be a number"),
        ({"metadata": {"llama.attention.head_count": 3}}, "these sizes do not fit together: d = 32, 3 heads"),
        ({"metadata": {"llama.rope.dimension_count": 8}}, "2 heads, 1 of keys, 8 and 16 a head"),
        ({"metadata": {"llama.vocab_size": 9}}, "token_embd.weight has the shape (7, 32); expected (9, 32)"),
        ({"without": ["tokenizer.ggml.tokens"]}, "has neither llama.vocab_size nor tokenizer.ggml.tokens"),
        ({"without": ["blk.0.ffn_up.weight"]}, "has no tensor blk.0.ffn_up.weight; expected a Llama of 1 blocks"),
        ({"metadata": {"llama.block_count": 2}}, "has no tensor blk.1.attn_norm.weight"),
        ({"arrays": {"rope_freqs.weight": np.ones(8, "f4")}}, "tensor 'rope_freqs.weight' has no place in a Llama"),
        ({"arrays": {"blk.0.ffn_norm.weight": np.ones(8, "f4")}}, "has the shape (8,); expected (32,)"),
    ],
)
def test_what_is_refused(tmp_path, options, message):
    with pytest.raises(FormatError) as caught:
        opened(tmp_path / "a.gguf", **options)
    assert message in str(caught.value) and "a.gguf" in str(caught.value)
