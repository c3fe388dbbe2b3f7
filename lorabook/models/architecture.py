"""What families of encoders call the same things in their files, and where they differ: data, no layer."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from .. import functional as F
from ..errors import FormatError
from ..files import check_values, integer, number, one_of, optional, short

ACTIVATION_NAMES = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}  # theirs: ours
SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
         "max_position_embeddings", "type_vocab_size")  # fmt: skip


@dataclass(frozen=True)
class Sizes:
    """The numbers of a config.json that a model is made of, whatever its family calls them."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int = 0  # 0: no token types
    pad_token_id: int | None = None
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    first_position: int = 0  # of a text's first token

    @property
    def longest(self):
        """Tokens of a sequence, at most."""
        return self.max_position_embeddings - self.first_position


RULES = {
    **{size: integer(1) for size in SIZES},
    "hidden_act": one_of("gelu", *sorted({*F.ACTIVATIONS, *ACTIVATION_NAMES} - {"gelu"})),
    "pad_token_id": optional(integer(0)),
    "layer_norm_eps": number(0, 1, default=1e-12),
    "initializer_range": number(0, 1, default=0.02),
}


@dataclass(frozen=True)
class Architecture:
    """One family of encoders with norms behind each half of a block, as its Hugging Face files have it.

    model_type: as config.json says it; what the encoder is called inside a model with a head, too. block, blocks: the
    names in a block, by the keys of `blocks.BLOCK`, and where the blocks are in the encoder. dense, activation,
    output: of the head that gives a text its label: logits = output(activation(dense(h of the first token))), paths in
    the whole model. fields: {name in `Sizes`: name in config.json} where they differ; None for what the family has not.
    rules: of more values in config.json, and of `Sizes` where they are stricter. after_padding: whether position 0 is
    that of the padding token's number plus one. other_heads: of other tasks, which are passed over with a note.
    """

    model_type: str
    block: Mapping
    blocks: str
    dense: str
    activation: str
    output: str
    fields: Mapping = field(default_factory=dict)
    rules: Mapping = field(default_factory=dict)
    after_padding: bool = False
    other_heads: tuple = ()

    @property
    def head_layers(self):
        """Paths of the linear layers over the encoder, in order: the last gives one output a class."""
        return self.dense, self.output

    @property
    def head_modules(self):
        """The modules that a checkpoint without a trained classifier does not hold: they start at random."""
        outside = (path for path in self.head_layers if not path.startswith(f"{self.model_type}."))
        return tuple(dict.fromkeys(path.partition(".")[0] for path in outside))

    def layer(self, i, part):
        """Path, in a model with a head, of a part (a key of `blocks.BLOCK`) of block i."""
        return f"{self.model_type}.{self.blocks}.{i}.{self.block[part]}"

    @property
    def targets(self):
        """The names that LoRA adapts unless told otherwise: of queries and values (Hu et al. 2021)."""
        return tuple(self.block[part].rpartition(".")[2] for part in ("query", "value"))

    def field(self, name):
        """What config.json calls one of the `Sizes`; None if this family has none."""
        return self.fields.get(name, name)

    @property
    def config_rules(self):
        """{key of config.json: Rule} of all that is read there."""
        return {self.field(name): rule for name, rule in RULES.items() if self.field(name)} | dict(self.rules)

    def sizes(self, config, where="config"):
        """The Sizes in a config.json. Raises FormatError, which begins with `where`, if a value breaks its rule."""
        rules = self.config_rules
        check_values(where, config, rules)
        keys = {name: key for name in RULES if (key := self.field(name))}
        found = Sizes(**{name: config.get(key, rules[key].default) for name, key in keys.items()})
        act, pad = ACTIVATION_NAMES.get(found.hidden_act, found.hidden_act), found.pad_token_id
        found = replace(found, hidden_act=act, first_position=pad + 1 if self.after_padding else 0)
        for name, holds, expected in (
            ("hidden_size", found.hidden_size % found.num_attention_heads == 0, "a multiple of {num_attention_heads}"),
            ("pad_token_id", (pad or 0) < found.vocab_size, "below {vocab_size}"),
            ("max_position_embeddings", found.longest > 0, "above {pad_token_id} + 1"),
        ):
            if not holds:
                key, others = self.field(name), {n: self.field(n) for n in keys}
                came = [short(getattr(found, n)) for n in (name, *re.findall(r"{(\w+)}", expected))]
                raise FormatError(f"{where}: {key} must be {expected.format(**others)}; got {' and '.join(came)}")
        return found
