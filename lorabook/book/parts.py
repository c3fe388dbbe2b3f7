"""The numbers in the drawings of the blocks and of the shards, counted by the library on the shapes of real models."""

import numpy as np

from ..adapters import LoRAConfig, adapters, inject
from ..bench import SIX
from ..models import BLOCK, BertForSequenceClassification, LlamaForCausalLM, PostNormBlock
from ..parallel import cut

MINILM = {  # the sizes of all-MiniLM-L6-v2 (Wang et al. 2020, arXiv:2002.10957)
    "vocab_size": 30522,
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
    "pad_token_id": 0,
}
SMOLLM2 = {  # those of SmolLM2-135M (Allal et al. 2025, arXiv:2502.02737), but for its 30 blocks and 49,152 words
    "model_type": "llama",
    "vocab_size": 8,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 1,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
}
TEXTS, TOKENS = 16, 128


def block(jobs=1, progress=False, runs=None):
    """Rows {part, rows, columns, numbers, adapter}: the six matrices of a block, and what LoRA with r = 8 adds."""
    d, heads, d_mlp = (MINILM[size] for size in ("hidden_size", "num_attention_heads", "intermediate_size"))
    layer = PostNormBlock.random(d, heads, d_mlp, np.random.default_rng(0))
    inject(layer, LoRAConfig(r=8, lora_alpha=16, target_modules="all-linear"))
    parts = {path: part for part, path in BLOCK.items()}
    return [
        {
            "part": parts[path],
            "rows": adapter.weight.shape[0],
            "columns": adapter.weight.shape[1],
            "numbers": adapter.weight.size,
            "adapter": sum(array.size for array in adapter.params.values()),
        }
        for path, adapter in adapters(layer).items()
    ]


def decoder(jobs=1, progress=False, runs=None):
    """The same of the seven matrices of SmolLM2's block, and d_head, the numbers of a head."""
    model = LlamaForCausalLM(SMOLLM2)
    inject(model, LoRAConfig(r=8, lora_alpha=16, target_modules="all-linear"))
    return [
        {
            "part": path.rpartition(".")[2],
            "rows": adapter.weight.shape[0],
            "columns": adapter.weight.shape[1],
            "numbers": adapter.weight.size,
            "adapter": sum(array.size for array in adapter.params.values()),
            "d_head": model.sizes.head_dim,
        }
        for path, adapter in adapters(model).items()
    ]


def shards(jobs=1, progress=False, runs=None):
    """Rows {shard, start, stop, texts, full, lora}: a batch of 16 x 128 tokens, and how long each gradient is."""
    model = BertForSequenceClassification(MINILM, labels=2)
    full = sum(array.size for array in model.named_params().values())
    inject(model, LoRAConfig(r=8, lora_alpha=16, target_modules=SIX, modules_to_save=()))
    lora = sum(array.size for layer in adapters(model).values() for array in layer.params.values())
    pieces = cut(model, {"input_ids": np.ones((TEXTS, TOKENS), int)})
    return [
        {"shard": i, "start": p.start, "stop": p.stop, "texts": TEXTS, "full": full, "lora": lora}
        for i, p in enumerate(pieces)
    ]
