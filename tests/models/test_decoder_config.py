"""What a decoder's config.json may hold: every value that would be another model is refused, in one line."""

import json

import numpy as np
import pytest
from tiny_llamas import config_of, made

from lorabook import FormatError
from lorabook.files import write_safetensors
from lorabook.models import LlamaForCausalLM

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16}  # fmt: skip
REFUSED = [
    ("mistral", {"sliding_window": 4096}, "sliding_window must be None; got 4096"),
    ("qwen2", {"use_sliding_window": True}, "use_sliding_window must be False; got True"),
    (
        "llama",
        {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
        "rope_scaling: rope_type must be one of default, linear, llama3; got 'yarn'",
    ),
    (
        "llama",
        {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
        "rope_type must be one of default, linear, llama3; got 'dynamic'",
    ),
    (
        "llama",
        {"rope_scaling": {"rope_type": ["linear"]}},
        "rope_type must be one of default, linear, llama3; got ['linear']",
    ),
    ("llama", {"rope_scaling": "linear"}, "rope_scaling must be an object, or null; got 'linear'"),
    (
        "llama",
        {"rope_scaling": {"rope_type": "linear"}},
        "rope_scaling: factor must be a number from 1 to 1e+06; got None",
    ),
    (
        "llama",
        {"rope_scaling": {"rope_type": "linear", "factor": True}},
        "factor must be a number from 1 to 1e+06; got True",
    ),
    (
        "llama",
        {"rope_scaling": LLAMA3 | {"high_freq_factor": 1.0}},
        "low_freq_factor must be below high_freq_factor; got 1.0 and 1.0",
    ),
    ("llama", {"rope_scaling": LLAMA3 | {"low_freq_factor": None}}, "low_freq_factor must be a number"),
    (
        "llama",
        {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
        "rope_parameters: partial_rotary_factor must be 1; got 0.5",
    ),
    ("llama", {"rope_theta": 0}, "rope_theta must be a number from 1 to 1e+12; got 0"),
    ("llama", {"hidden_act": "gelu"}, "hidden_act must be 'silu'; got 'gelu'"),
    ("llama", {"hidden_act": None}, "hidden_act must be 'silu'; got None"),
    ("llama", {"num_attention_heads": 5}, "num_attention_heads must be a multiple of num_key_value_heads; got 5 and 2"),
    (
        "llama",
        {"num_attention_heads": 10, "head_dim": None},
        "hidden_size must be a multiple of num_attention_heads; got 12 and 10",
    ),
    ("llama", {"head_dim": 3}, "head_dim must be even, as positions turn pairs of numbers; got 3"),
    (
        "llama",
        {"num_attention_heads": 4, "head_dim": None},
        "head_dim must be even, as positions turn pairs of numbers; got 3",
    ),
    ("llama", {"head_dim": 1}, "head_dim must be an integer from 2 on, or null; got 1"),
    ("llama", {"num_key_value_heads": 0}, "num_key_value_heads must be an integer from 1 on, or null; got 0"),
    ("llama", {"hidden_size": 12.0}, "hidden_size must be an integer from 1 on; got 12.0"),
    ("llama", {"vocab_size": None}, "vocab_size must be an integer from 1 on; got None"),
    ("llama", {"pretraining_tp": 2}, "pretraining_tp must be 1; got 2"),
    ("llama", {"attention_dropout": 0.1}, "attention_dropout must be 0; got 0.1"),
    ("llama", {"attention_bias": 1}, "attention_bias must be one of False, True; got 1"),
    ("llama", {"tie_word_embeddings": "false"}, "tie_word_embeddings must be one of False, True; got 'false'"),
    ("llama", {"rms_norm_eps": "1e-5"}, "rms_norm_eps must be a number from 0 to 1; got '1e-5'"),
    ("llama", {"model_type": "gemma"}, "model_type must be one of 'llama', 'mistral', 'qwen2'; got 'gemma'"),
    ("llama", {"model_type": ["llama"]}, "model_type must be one of 'llama', 'mistral', 'qwen2'; got ['llama']"),
    ("llama", {"quantization_config": {"bits": 4}}, "quantization_config must be None; got {'bits': 4}"),
]


def folder(path, kind, **changes):
    model = made(kind, np.random.default_rng(0), "float32")
    names = {id(array): name for name, array in reversed(model.named_params().items())}
    write_safetensors(path / "model.safetensors", {name: model.named_params()[name] for name in names.values()})
    (path / "config.json").write_text(json.dumps(config_of(kind) | changes))
    return path


@pytest.mark.parametrize(("kind", "changes", "message"), REFUSED, ids=lambda value: str(value)[:60])
def test_a_value_that_would_be_another_model_is_refused(tmp_path, kind, changes, message):
    """One line, which names the file, the key, what came and what was expected."""
    folder(tmp_path, kind, **changes)
    with pytest.raises(FormatError) as caught:
        LlamaForCausalLM.from_pretrained(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'config.json'}: ") and "\n" not in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"vocab_size": 38},
            "promises model.embed_tokens.weight of shape (38, 12) (vocab_size, hidden_size); found (37, 12)",
        ),
        (
            {"intermediate_size": 18},
            "promises model.layers.1.mlp.up_proj.weight of shape (18, 12) (intermediate_size, hidden_size); found (17",
        ),
        (
            {"num_hidden_layers": 3},
            "promises model.layers.2.mlp.up_proj.weight of shape (17, 12) (intermediate_size, hidden_size); found none",
        ),
        ({"num_hidden_layers": 1}, "unexpected model.layers.1."),
        ({"num_key_value_heads": 1}, "model.layers.0.self_attn.k_proj.weight has shape (8, 12), expected (4, 12)"),
        ({"attention_bias": True}, "missing model.layers.0.self_attn.k_proj.bias"),
    ],
    ids=str,
)
def test_sizes_that_the_weights_do_not_have(tmp_path, changes, message):
    with pytest.raises(FormatError) as caught:
        LlamaForCausalLM.from_pretrained(folder(tmp_path, "llama", **changes))
    assert message in str(caught.value) and str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
