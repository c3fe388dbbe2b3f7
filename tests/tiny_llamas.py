"""Tiny decoders with sizes that are all different, by the name of what is special about them."""

import numpy as np

from lorabook.models import LlamaForCausalLM

SIZES = dict(
    vocab_size=37, hidden_size=12, intermediate_size=17, num_hidden_layers=2, num_attention_heads=6,
    num_key_value_heads=2, head_dim=4, max_position_embeddings=64, rms_norm_eps=1e-5,
)  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16}  # fmt: skip
CONFIGS = {
    "llama": {"model_type": "llama", "tie_word_embeddings": False},
    "tied": {"model_type": "llama", "tie_word_embeddings": True, "head_dim": None, "hidden_size": 24},
    "biases": {"model_type": "llama", "attention_bias": True, "mlp_bias": True, "num_key_value_heads": 6},
    "llama3": {"model_type": "llama", "rope_theta": 50.0, "rope_scaling": LLAMA3},
    "linear": {"model_type": "llama", "rope_scaling": {"type": "linear", "factor": 2.5}, "num_key_value_heads": 1},
    "mistral": {"model_type": "mistral", "sliding_window": None, "head_dim": 6, "num_attention_heads": 4},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True, "rope_theta": 100.0, "head_dim": None,
              "hidden_size": 24},
}  # fmt: skip


def config_of(kind):
    return {k: v for k, v in (SIZES | CONFIGS[kind]).items() if v is not None or k == "sliding_window"}


def made(kind, rng, dtype="float64", **options):
    """A model of this kind in which nothing is at rest."""
    model = LlamaForCausalLM(config_of(kind), **options)
    for array in model.trainable_params().values():
        array[...] = rng.standard_normal(array.shape) * (0.5 if array.ndim == 2 else 1) + (array.ndim == 1)
    return model.to(np, dtype)


def batch_of(rng, lengths=(9, 5, 7), side="right"):
    """Ids, mask and labels of texts of these lengths; some tokens have no label."""
    B, T = len(lengths), max(lengths)
    real = np.arange(T) < np.array(lengths)[:, None]
    real = real if side == "right" else real[:, ::-1]
    ids = rng.integers(0, SIZES["vocab_size"], (B, T))
    labels = np.where(real & (rng.random((B, T)) < 0.8), ids, -100)
    return {"input_ids": np.where(real, ids, 0), "attention_mask": real.astype(int), "labels": labels}
