"""Llama (Touvron et al. 2023, arXiv:2302.13971) and its kin, in their Hugging Face names: the decoder, and its head.

Mistral without a sliding window (Jiang et al. 2023, arXiv:2310.06825) and Qwen2 with its biases (arXiv:2407.10671) are
the same wiring. Wiring only: the block is in `decoder_block`, the mathematics in `functional`.
"""

import numpy as np

from .. import functional as F
from ..backend import arange_like, array_namespace, asarray_like
from ..errors import InputError
from ..files import one_of, short
from ..layers import RUN, Embedding, Layer, Linear, Recompute, RMSNorm, Sequential, prefixed
from .causal_lm import CausalLM
from .decoder_block import DecoderBlock, GatedMLP, GroupedAttention
from .decoder_config import Decoder
from .decoder_folder import load_weights, open_decoder

LLAMA = Decoder("llama", "attention_bias", "attention_bias", "mlp_bias")
MISTRAL = Decoder("mistral", rules={"sliding_window": one_of(None)})
QWEN2 = Decoder("qwen2", qkv_bias=True, rules={"use_sliding_window": one_of(False)})
DECODERS = {own.model_type: own for own in (LLAMA, MISTRAL, QWEN2)}


def _linear(d_out, d_in, bias):
    return Linear(np.zeros((d_out, d_in), "f4"), np.zeros(d_out, "f4") if bias else None)


def _block(sizes):
    d, d_mlp = sizes.hidden_size, sizes.intermediate_size
    d_q, d_kv = (heads * sizes.head_dim for heads in (sizes.num_attention_heads, sizes.num_key_value_heads))
    attention = GroupedAttention(
        *(_linear(width, d, sizes.qkv_bias) for width in (d_q, d_kv, d_kv)),
        _linear(d, d_q, sizes.output_bias),
        sizes.num_attention_heads,
        sizes.num_key_value_heads,
    )
    mlp = GatedMLP(*(_linear(*shape, sizes.mlp_bias) for shape in ((d_mlp, d), (d_mlp, d), (d, d_mlp))))
    return DecoderBlock(attention, mlp, *(RMSNorm.unit(d, sizes.rms_norm_eps) for _ in range(2)))


class LlamaModel(Layer):
    """Embedding, blocks and norm: {input_ids (B, T), ...} -> hidden states (B, T, d).

    attention_mask (B, T): 0 for padding. segment_ids (B, T): texts packed into one row, which do not see each other.
    position_ids (B, T): default 0, 1, ... in each row, or segment.
    """

    def __init__(self, config, recompute=False):
        """config: the content of a config.json. recompute: of each block keep its input alone."""
        self.config, self.sizes = config, sizes = config, DECODERS[config["model_type"]].sizes(config)
        wrap = Recompute if recompute else lambda block: block
        super().__init__(
            children={
                "embed_tokens": Embedding(np.zeros((sizes.vocab_size, sizes.hidden_size), "f4")),
                "layers": Sequential({str(i): wrap(_block(sizes)) for i in range(sizes.num_hidden_layers)}),
                "norm": RMSNorm.unit(sizes.hidden_size, sizes.rms_norm_eps),
            }
        )
        self.frequencies = F.rotary_frequencies(sizes.head_dim, **sizes.rope)

    def check_input(self, batch):
        """Raise InputError unless these are sequences of known ids that the positions reach."""
        if not isinstance(batch, dict) or len(getattr(batch.get("input_ids"), "shape", ())) != 2:
            raise InputError(f"expected a batch {{'input_ids': (B, T), ...}}; got {short(batch)}")
        ids = batch["input_ids"]
        for name in ("attention_mask", "position_ids", "segment_ids"):
            if (own := batch.get(name)) is not None and tuple(own.shape) != tuple(ids.shape):
                raise InputError(f"{name} must have the shape of input_ids, {tuple(ids.shape)}; got {tuple(own.shape)}")
        if ids.shape[1] > self.sizes.longest and not {"position_ids", "segment_ids"} & batch.keys():
            raise InputError(
                f"sequences must have at most {self.sizes.longest} tokens; got {ids.shape[1]}. Truncate them"
            )
        if array_namespace(ids) is np:
            self.children["embed_tokens"].check_input(ids)

    def _placed(self, batch, x, run):
        """(the run with what attention sees and the positions' angles, how many tokens each row adds to its cache)."""
        ids, mask, segments = batch["input_ids"], batch.get("attention_mask"), batch.get("segment_ids")
        T, positions, counts = ids.shape[1], batch.get("position_ids"), None
        if run.kv is not None:
            if segments is not None or run.keep:
                raise InputError(
                    "a pass with a cache takes no segment_ids, and no backward: give it a Run with keep=False"
                )
            counts = run.kv.tokens(batch)
            at = asarray_like(run.kv.lengths, ids)[:, None] + arange_like(T, ids)[None, :]  # (B, T)
            spans = F.Spans(0 * at, at + 1)
            positions = at if positions is None else positions
        else:
            spans = F.causal_spans(T, ids, mask, segments)
        if positions is None:
            positions = arange_like(T, ids)[None, :]
            if segments is not None:
                positions = positions - F.causal_spans(T, ids, None, segments).first
        return run.but(spans=spans, angles=F.rotary_angles(positions, self.frequencies, x)), counts

    def forward(self, batch, run=RUN):
        self.check_input(batch)
        embed, layers, norm = self.children.values()
        x, embed_cache = embed(batch["input_ids"], run)
        run, counts = self._placed(batch, x, run)
        x, layers_cache = layers(x, run)
        h, norm_cache = norm(x, run)
        if counts is not None:
            run.kv.lengths = run.kv.lengths + counts
        return h, (embed_cache, layers_cache, norm_cache)

    def backward(self, dout, cache, need_dx=False):
        embed_cache, layers_cache, norm_cache = cache
        embed, layers, norm = self.children.values()
        inside = embed.trains() or layers.trains()
        dx, grads = norm.backward(dout, norm_cache, inside)
        grads = prefixed("norm", grads)
        if inside:
            dx, own = layers.backward(dx, layers_cache, embed.trains())
            grads |= prefixed("layers", own)
        if embed.trains():
            grads |= prefixed("embed_tokens", embed.backward(dx, embed_cache)[1])
        return None, grads


class LlamaForCausalLM(CausalLM):
    """logits (B, T, V) = lm_head(h): of each token the next one. What it learns and measures: see `CausalLM`."""

    def __init__(self, config, recompute=False, rng=None):
        """rng: numpy Generator or seed that draws weights N(0, initializer_range^2); None: they stay 0."""
        model = LlamaModel(config, recompute)
        sizes, embed = model.sizes, model.children["embed_tokens"]
        tied = embed.params["weight"] if sizes.tie_word_embeddings else None
        head = Linear(np.zeros((sizes.vocab_size, sizes.hidden_size), "f4") if tied is None else tied)
        super().__init__(model, head)
        self.config, self.sizes = config, sizes
        if rng is not None:
            rng = np.random.default_rng(rng)
            for array in self.trainable_params().values():
                if array.ndim == 2:
                    array[...] = rng.normal(0, sizes.initializer_range, array.shape)

    @property
    def default_targets(self):
        """What LoRA adapts unless told otherwise."""
        return DECODERS[self.config["model_type"]].targets

    @classmethod
    def from_pretrained(cls, path, base_dtype="float32", **kwargs):
        """Model with the weights of a Hugging Face folder; see `decoder_folder`. base_dtype: one of BASE_DTYPES."""
        config, tensors = open_decoder(path, DECODERS)
        model = cls(config, **kwargs)
        load_weights(path, model, tensors, base_dtype)
        return model


def last_tokens(batch):
    """(B, 1): where the last token of each row stands that is not padding; the field `asked` of a `Run`."""
    ids, mask = batch["input_ids"], batch.get("attention_mask")
    place = arange_like(ids.shape[1], ids)[None, :]
    xp = array_namespace(ids)
    place = xp.broadcast_to(place, ids.shape) if mask is None else xp.where(mask != 0, place, 0 * place)
    return xp.max(place, axis=1, keepdims=True)
