"""The config.json of Llama-shaped decoders: which values are read, and what a model is made of by them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..errors import FormatError
from ..files import Rule, check_values, integer, number, one_of, optional, short
from ..functional import SCALINGS


@dataclass(frozen=True)
class DecoderSizes:
    """The numbers of a config.json that a decoder is made of. rope: what `functional.rotary_frequencies` takes."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    initializer_range: float
    tie_word_embeddings: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    rope: Mapping

    @property
    def longest(self):
        """Tokens of a sequence, at most."""
        return self.max_position_embeddings


TRUTH = one_of(False, True)
RULES = {
    **{size: integer(1) for size in ("vocab_size", "hidden_size", "intermediate_size")},
    **{size: integer(1) for size in ("num_hidden_layers", "num_attention_heads")},
    "num_key_value_heads": optional(integer(1)),
    "head_dim": optional(integer(2)),
    "max_position_embeddings": integer(1, default=2048),
    "hidden_act": one_of("silu"),
    "rms_norm_eps": number(0, 1, default=1e-6),
    "initializer_range": number(0, 1, default=0.02),
    "tie_word_embeddings": TRUTH,
    "pretraining_tp": one_of(1),
    "attention_dropout": Rule("0", lambda v: type(v) in (int, float) and v == 0, 0.0),
    "rope_theta": number(1, 1e12, default=10000.0),
    "rope_scaling": optional(Rule("an object", lambda v: isinstance(v, dict))),
    "rope_parameters": optional(Rule("an object", lambda v: isinstance(v, dict))),
}
ROPE = {
    "rope_theta": number(1, 1e12, default=10000.0),
    "partial_rotary_factor": Rule("1", lambda v: type(v) in (int, float) and v == 1, 1.0),
    "factor": number(1, 1e6),
    "low_freq_factor": number(1e-6, 1e6),
    "high_freq_factor": number(1e-6, 1e6),
    "original_max_position_embeddings": integer(1),
}


@dataclass(frozen=True)
class Decoder:
    """One family of Llama-shaped decoders. qkv_bias, output_bias, mlp_bias: the key of config.json that says whether
    these linear layers have a bias, or the answer itself. rules: of more values in config.json.
    """

    model_type: str
    qkv_bias: str | bool = False
    output_bias: str | bool = False
    mlp_bias: str | bool = False
    rules: Mapping = field(default_factory=dict)

    targets = ("q_proj", "v_proj")  # what LoRA adapts unless told otherwise (Hu et al. 2021)

    @property
    def config_rules(self):
        """{key of config.json: Rule} of all that is read there."""
        keys = {key for key in (self.qkv_bias, self.output_bias, self.mlp_bias) if isinstance(key, str)}
        return RULES | dict.fromkeys(keys, TRUTH) | dict(self.rules)

    def sizes(self, config, where="config"):
        """The DecoderSizes in a config.json. Raises FormatError, beginning with `where`, for a broken rule."""
        rules = self.config_rules
        check_values(where, config, rules)

        def value(key):
            return key if isinstance(key, bool) else config.get(key, rules[key].default)

        heads, d = value("num_attention_heads"), value("hidden_size")
        kv_heads, d_head = value("num_key_value_heads") or heads, value("head_dim")
        if heads % kv_heads:
            came = f"{heads} and {kv_heads}"
            raise FormatError(f"{where}: num_attention_heads must be a multiple of num_key_value_heads; got {came}")
        if d_head is None and d % heads:
            raise FormatError(f"{where}: hidden_size must be a multiple of num_attention_heads; got {d} and {heads}")
        d_head = d_head or d // heads
        if d_head % 2:
            raise FormatError(f"{where}: head_dim must be even, as positions turn pairs of numbers; got {d_head}")
        names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "max_position_embeddings")
        names = (*names, "rms_norm_eps", "initializer_range", "tie_word_embeddings")
        return DecoderSizes(
            **{name: value(name) for name in names},
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=d_head,
            qkv_bias=value(self.qkv_bias),
            output_bias=value(self.output_bias),
            mlp_bias=value(self.mlp_bias),
            rope=_rope(config, value("rope_theta"), where),
        )


def _rope(config, theta, where):
    """{theta, rope_type, ...} from `rope_parameters`; older files have it in `rope_theta` and `rope_scaling`."""
    key = "rope_parameters" if config.get("rope_parameters") else "rope_scaling"
    found = config.get(key) or {}
    kind, where = found.get("rope_type", found.get("type", "default")), f"{where}: {key}"
    if not isinstance(kind, str) or kind not in SCALINGS:
        raise FormatError(f"{where}: rope_type must be one of {', '.join(SCALINGS)}; got {short(kind)}")
    options = {"rope_theta": theta, "original_max_position_embeddings": config.get("max_position_embeddings")} | found
    check_values(
        where, options, {name: ROPE[name] for name in ("rope_theta", "partial_rotary_factor", *SCALINGS[kind])}
    )
    rope = {"theta": options["rope_theta"], "rope_type": kind} | {name: options[name] for name in SCALINGS[kind]}
    if kind == "llama3" and not rope["low_freq_factor"] < rope["high_freq_factor"]:
        came = f"{rope['low_freq_factor']} and {rope['high_freq_factor']}"
        raise FormatError(f"{where}: low_freq_factor must be below high_freq_factor; got {came}")
    return rope
