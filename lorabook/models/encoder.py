"""Encoders of the `Architecture` that they are given, and three heads on them.

A batch of token ids (B, T) goes in; no token attends to what its attention_mask hides. A "[PAD]" that stands in a text
is a token like any other. Wiring only: the block is in `blocks`, the mathematics in `functional`.
"""

import math

import numpy as np

from .. import functional as F
from ..backend import arange_like, array_namespace, ones
from ..errors import InputError
from ..files import short
from ..functional import padding_bias
from ..layers import RUN, Embedding, Layer, LayerNorm, Linear, Sequential, prefixed
from .blocks import PostNormBlock, at, put
from .classifier import Classifier, Model
from .pretrained import load_weights, open_pretrained

NAMES = ("word_embeddings", "position_embeddings", "token_type_embeddings", "LayerNorm")  # of Embeddings' children


def _linear(d_out, d_in):
    return Linear(np.zeros((d_out, d_in), "f4"), np.zeros(d_out, "f4"))


class Embeddings(Layer):
    """LayerNorm(word[input_ids] + position[0 .. T - 1] + token_type[token_type_ids]); without types, all are type 0.

    Where positions begin after padding (RoBERTa), a text's first token has that of the padding token's number plus one,
    and a token that is padding, or spelt like it, has the padding token's and is not counted.
    """

    def __init__(self, sizes):
        rows = {
            "word": sizes.vocab_size,
            "position": sizes.max_position_embeddings,
            "token_type": sizes.type_vocab_size,
        }
        d = sizes.hidden_size
        tables = {f"{name}_embeddings": Embedding(np.zeros((n, d), "f4")) for name, n in rows.items() if n}
        super().__init__(children=tables | {"LayerNorm": LayerNorm.unit(d, sizes.layer_norm_eps)})
        self.longest, self.padding = sizes.longest, sizes.pad_token_id if sizes.first_position else None

    def check_input(self, batch):
        """Raise InputError unless these are sequences of known ids that the positions reach."""
        if not isinstance(batch, dict) or len(getattr(batch.get("input_ids"), "shape", ())) != 2:
            raise InputError(f"expected a batch {{'input_ids': (B, T), ...}}; got {short(batch)}")
        ids = batch["input_ids"]
        if ids.shape[1] > self.longest:
            raise InputError(f"sequences must have at most {self.longest} tokens; got {ids.shape[1]}. Truncate them")
        if array_namespace(ids) is np:
            self.children["word_embeddings"].check_input(ids)

    def _positions(self, batch):
        """(T,), the same for all texts, or (B, T)."""
        ids, mask = batch["input_ids"], batch.get("attention_mask")
        if self.padding is None:
            return arange_like(ids.shape[1], ids)
        counted = ids != self.padding if mask is None else (ids != self.padding) & (mask != 0)
        xp = array_namespace(ids)
        counted = xp.astype(counted, xp.float32)  # exact: whole numbers below 2^24
        so_far = counted @ xp.triu(ones((ids.shape[1],) * 2, counted))  # (B, T): how many up to each
        return xp.astype(so_far * counted, ids.dtype) + self.padding

    def forward(self, batch, run=RUN):
        self.check_input(batch)
        words, positions, types, norm = (self.children.get(name) for name in NAMES)
        ids, type_ids = batch["input_ids"], batch.get("token_type_ids")
        x, words_cache = words(ids, run)  # (B, T, d)
        p, positions_cache = positions(self._positions(batch), run)  # (T, d), or (B, T, d)
        types_cache = None
        if types:
            t, types_cache = types(arange_like(1, ids) if type_ids is None else type_ids, run)  # (1, d), or (B, T, d)
            p = p + t
        y, norm_cache = norm(x + p, run)
        return y, (words_cache, positions_cache, types_cache, norm_cache)

    def backward(self, dout, cache, need_dx=True):
        words_cache, positions_cache, types_cache, norm_cache = cache
        xp = array_namespace(dout)
        inside = any(self.children[name].trains() for name in NAMES[:3] if name in self.children)
        dx, grads = self.children["LayerNorm"].backward(dout, norm_cache, inside)
        grads = prefixed("LayerNorm", grads)
        if not inside:
            return None, grads
        summed = xp.sum(dx, axis=0)  # (T, d)
        dp = dx if positions_cache.ndim == 2 else summed  # every sequence uses the same positions
        d = {"word_embeddings": (dx, words_cache), "position_embeddings": (dp, positions_cache)}
        if types_cache is not None:
            dt = dx if types_cache.ndim == 2 else xp.sum(summed, axis=0, keepdims=True)  # (1, d): all are of one type
            d["token_type_embeddings"] = dt, types_cache
        for name, arguments in d.items():
            grads |= prefixed(name, self.children[name].backward(*arguments)[1])
        return None, grads


class Encoder(Layer):
    """Embeddings and blocks: {input_ids (B, T), ...} -> hidden states (B, T, d)."""

    architecture = None  # of a subclass

    def __init__(self, config, architecture=None):
        """config: the content of a config.json. architecture: for an Encoder that is no subclass with one."""
        super().__init__()
        self.architecture = architecture or self.architecture
        self.config, sizes = config, self.architecture.sizes(config)
        d, d_mlp = sizes.hidden_size, sizes.intermediate_size
        shapes = dict.fromkeys(("query", "key", "value", "output"), (d, d)) | {"up": (d_mlp, d), "down": (d, d_mlp)}

        def block():
            layers = {part: _linear(*shape) for part, shape in shapes.items()}
            layers |= {part: LayerNorm.unit(d, sizes.layer_norm_eps) for part in ("norm1", "norm2")}
            return PostNormBlock(layers, sizes.num_attention_heads, sizes.hidden_act, self.architecture.block)

        self.children["embeddings"] = Embeddings(sizes)
        blocks = {str(i): block() for i in range(sizes.num_hidden_layers)}
        put(self, self.architecture.blocks, Sequential(blocks))

    def forward(self, batch, run=RUN):
        """With `run.first` only the hidden states of the first so many tokens, (B, first, d): saves most of a block."""
        x, embeddings_cache = self.children["embeddings"](batch, run)
        if (mask := batch.get("attention_mask")) is not None:
            whole = array_namespace(mask) is np and mask.all()  # on a GPU the host would have to wait for the answer
            if not whole:
                bias = padding_bias(mask, x)
                run = run.but(bias=bias if run.bias is None else run.bias + bias)
        h, blocks_cache = at(self, self.architecture.blocks)(x, run)
        return h, (embeddings_cache, blocks_cache)

    def backward(self, dout, cache, need_dx=False):
        embeddings_cache, blocks_cache = cache
        below = self.children["embeddings"].trains()
        dx, grads = at(self, self.architecture.blocks).backward(dout, blocks_cache, below)
        grads = prefixed(self.architecture.blocks, grads)
        if below:
            grads |= prefixed("embeddings", self.children["embeddings"].backward(dx, embeddings_cache)[1])
        return None, grads


class Head(Model, Layer):
    """Base of the models with a head on an encoder, which is the child with the name of its model_type.

    config: the content of the config.json, `sizes` what follows from it. head_layers: paths of the linear layers over
    the encoder; head_modules: what of them a checkpoint without a trained head does not hold.
    """

    architecture, large = None, True
    head_layers = head_modules = ()

    def __init__(self, config, labels=0, rng=None):
        """labels: number of classes, where there are any. rng: numpy Generator or seed that draws what no checkpoint of
        a bare encoder holds, N(0, 0.02^2).
        """
        if isinstance(self, Classifier) and (not isinstance(labels, int) or isinstance(labels, bool) or labels < 1):
            raise InputError(f"labels must be the number of classes, an integer from 1 on; got {labels!r}")
        self.config, self.sizes = config, self.architecture.sizes(config)
        super().__init__(children={self.encoder: Encoder(config, self.architecture)})
        rng, d = np.random.default_rng(0 if rng is None else rng), self.sizes.hidden_size
        for path in self.head_layers:
            put(self, path, layer := _linear(labels if path == self.output_layer else d, d))
            if path.startswith(tuple(f"{module}." for module in self.head_modules)) or path in self.head_modules:
                weight = layer.params["weight"]
                weight[...] = rng.normal(0, self.sizes.initializer_range, weight.shape)

    @property
    def encoder(self):
        """Name of the child that is the encoder."""
        return self.architecture.model_type

    @property
    def output_layer(self):
        """Path of the layer with one output a class; None if there is none."""
        return self.head_layers[-1] if self.head_layers else None

    @property
    def default_targets(self):
        """What LoRA adapts unless told otherwise."""
        return self.architecture.targets

    def inputs(self, batch):
        return batch

    def tokens(self, batch):
        return math.prod(batch["input_ids"].shape)

    @classmethod
    def from_pretrained(cls, path, **kwargs):
        """Model with the weights of a Hugging Face folder, as `pretrained.load_weights` reads them."""
        config, tensors = open_pretrained(path, {cls.architecture.model_type: cls.architecture})
        model = cls(config, **kwargs)
        load_weights(path, model, tensors)
        return model


class SequenceClassifier(Classifier, Head):
    """logits (B, k) = output(g(dense(h[:, 0]))): one label a text. Which layers these are, the architecture says."""

    task_type = "SEQ_CLS"

    @property
    def head_layers(self):
        return self.architecture.head_layers

    @property
    def head_modules(self):
        return self.architecture.head_modules

    def forward(self, batch, run=RUN):
        dense, output = (at(self, path) for path in self.head_layers)
        h, encoder_cache = self.children[self.encoder](batch, run.but(first=1))  # (B, 1, d)
        z, dense_cache = dense(h[:, 0, :], run)  # (B, d)
        pooled, *activation_cache = F.ACTIVATIONS[self.architecture.activation](z)
        logits, output_cache = output(pooled, run)
        return logits, (encoder_cache, dense_cache, activation_cache, output_cache)

    def backward(self, dout, cache, need_dx=False):
        dense, output = (at(self, path) for path in self.head_layers)
        encoder_cache, dense_cache, activation_cache, output_cache = cache
        dpooled, output_grads = output.backward(dout, output_cache)
        dz = F.activation_backward(dpooled, *activation_cache)
        dfirst, dense_grads = dense.backward(dz, dense_cache)
        _, encoder_grads = self.children[self.encoder].backward(dfirst[:, None, :], encoder_cache)
        of_dense, of_output = self.head_layers
        grads = prefixed(of_output, output_grads) | prefixed(of_dense, dense_grads)
        return None, grads | prefixed(self.encoder, encoder_grads)


class TokenClassifier(Classifier, Head):
    """logits (B, T, k) = classifier(h): one label a token. A label below 0 (padding: -100) does not count."""

    task_type = "TOKEN_CLS"
    head_layers = head_modules = ("classifier",)

    def forward(self, batch, run=RUN):
        h, encoder_cache = self.children[self.encoder](batch, run)
        logits, classifier_cache = self.children["classifier"](h, run)
        return logits, (encoder_cache, classifier_cache)

    def backward(self, dout, cache, need_dx=False):
        encoder_cache, classifier_cache = cache
        dh, grads = self.children["classifier"].backward(dout, classifier_cache)
        _, encoder_grads = self.children[self.encoder].backward(dh, encoder_cache)
        return None, prefixed("classifier", grads) | prefixed(self.encoder, encoder_grads)


class SentenceEmbedder(Head):
    """y (B, d): the mean of the hidden states over the tokens that are not padding. It has no labels."""

    def forward(self, batch, run=RUN):
        h, encoder_cache = self.children[self.encoder](batch, run.but(first=None))  # the mean is over all
        xp = array_namespace(h)
        mask = batch.get("attention_mask")
        mask = ones(h.shape[:2], h) if mask is None else xp.astype(mask, h.dtype)
        share = mask / xp.sum(mask, axis=1, keepdims=True)  # (B, T)
        return xp.sum(h * share[:, :, None], axis=1), (encoder_cache, share)

    def backward(self, dout, cache, need_dx=False):
        """y_b = sum_t share_bt h_bt, so dh_bt = share_bt dy_b."""
        encoder_cache, share = cache
        _, grads = self.children[self.encoder].backward(dout[:, None, :] * share[:, :, None], encoder_cache)
        return None, prefixed(self.encoder, grads)
