"""What is measured: a model, a batch, an adapter, a machine's part; and the models that need no download."""

from dataclasses import dataclass

import numpy as np

from ..errors import InputError
from ..files import ENCODERS
from ..hub import locate
from ..models import DECODERS, classifier_of, read_config
from .decoder import SEVEN, SMOLLM2, decodes

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
RANDOM = {"block-1024": BLOCK_1024, "smollm2": SMOLLM2}


@dataclass(frozen=True)
class Case:
    """One setting of `bench step`, `bench forward` or `bench generate`, the same for every side.

    what: "step", i.e. forward, backward and AdamW, "forward", with the adapters merged, or "generate", of `new_tokens`
    more. model: a name in RANDOM, or what `hub.locate` takes. backend: "numpy" or "cupy". tf32: let a GPU round the
    factors of products to 10 bits. base_dtype, recompute: of our side of a decoder; the other has float32, and keeps
    what its blocks computed.
    """

    what: str = "step"
    model: str = ENCODERS[0]
    batch_size: int = 16
    seq_len: int = 128
    r: int = 8
    target_modules: tuple = SIX
    threads: int = 2
    backend: str = "numpy"
    tf32: bool = False
    seed: int = 0
    base_dtype: str = "float32"
    recompute: bool = False
    new_tokens: int = 64

    def __post_init__(self):
        """Check the numbers; names and ranks are checked against the model by those who open it."""
        object.__setattr__(self, "target_modules", tuple(self.target_modules))
        for name in ("batch_size", "seq_len", "r", "threads", "new_tokens"):
            if (value := getattr(self, name)) < 1:
                raise InputError(f"--{name.replace('_', '-')} must be at least 1; got {value}")

    @property
    def targets(self):
        """The adapted matrices in words."""
        return "all-linear" if self.target_modules in (SIX, SEVEN) else " ".join(self.target_modules)

    def config(self):
        """The model's config.json as a dict. Raises InputError if the sequences are too long for it."""
        config = RANDOM.get(self.model) or read_config(locate(self.model))
        if not decodes(config) and (self.what == "generate" or self.base_dtype != "float32" or self.recompute):
            raise InputError(f"bench generate, --base-dtype and --recompute are for --model smollm2; got {self.model}")
        if decodes(config) and self.what == "forward":
            raise InputError("bench forward is for encoders; of a decoder, measure bench generate")
        own = DECODERS[config["model_type"]] if decodes(config) else classifier_of(config).architecture
        tokens, longest = self.seq_len + (self.what == "generate") * self.new_tokens, own.sizes(config).longest
        if tokens > longest:
            raise InputError(f"--seq-len must be at most {longest}, the positions of {self.model}; got {self.seq_len}")
        return config

    def batch(self, vocabulary):
        """{input_ids (B, T), labels (B,)}: random ids without padding; of a decoder, the ids are the labels, too."""
        rng = np.random.default_rng(self.seed)
        ids = rng.integers(min(1000, vocabulary // 2), vocabulary, (self.batch_size, self.seq_len))
        labels = ids.copy() if decodes(self.config()) else rng.integers(0, LABELS, self.batch_size)
        return {"input_ids": ids, "labels": labels}

    def prompts(self, config):
        """Lists of tokens to be continued."""
        return self.batch(config["vocab_size"])["input_ids"].tolist()
