"""What is measured: a model, a batch, an adapter, a machine's part; and the models that need no download."""

from dataclasses import dataclass

import numpy as np

from ..errors import InputError
from ..hub import locate
from ..models.pretrained import read_config

SIX = ("query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense")
LABELS = 2

# A few blocks of BERT large (Devlin et al. 2018, arXiv:1810.04805) under a small vocabulary, with random weights.
BLOCK_1024 = {
    "model_type": "bert",
    "vocab_size": 2048,
    "hidden_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
}
RANDOM = {"block-1024": BLOCK_1024}


@dataclass(frozen=True)
class Case:
    """One setting of `bench step` or `bench forward`, the same for every side.

    what: "step", i.e. forward, backward and AdamW, or "forward", with the adapters merged. model: a name in RANDOM, or
    what `hub.locate` takes. backend: "numpy" or "cupy". tf32: let a GPU round the factors of products to 10 bits.
    """

    what: str = "step"
    model: str = "minilm"
    batch_size: int = 16
    seq_len: int = 128
    r: int = 8
    target_modules: tuple = SIX
    threads: int = 2
    backend: str = "numpy"
    tf32: bool = False
    seed: int = 0

    def __post_init__(self):
        """Check the numbers; names and ranks are checked against the model by those who open it."""
        object.__setattr__(self, "target_modules", tuple(self.target_modules))
        for name in ("batch_size", "seq_len", "r", "threads"):
            if (value := getattr(self, name)) < 1:
                raise InputError(f"--{name.replace('_', '-')} must be at least 1; got {value}")

    @property
    def targets(self):
        """The adapted matrices in words."""
        return "all-linear" if self.target_modules == SIX else " ".join(self.target_modules)

    def config(self):
        """The model's config.json as a dict. Raises InputError if the sequences are too long for it."""
        config = RANDOM.get(self.model) or read_config(locate(self.model))
        if self.seq_len > (longest := config["max_position_embeddings"]):
            raise InputError(f"--seq-len must be at most {longest}, the positions of {self.model}; got {self.seq_len}")
        return config

    def batch(self, vocabulary):
        """(ids (B, T), labels (B,)): random ids without padding."""
        rng = np.random.default_rng(self.seed)
        ids = rng.integers(min(1000, vocabulary // 2), vocabulary, (self.batch_size, self.seq_len))
        return ids, rng.integers(0, LABELS, self.batch_size)
