"""BERT (Devlin et al. 2018, arXiv:1810.04805) in its Hugging Face names: encoder, and three heads on it.

Token ids (B, T) go in; PADDING (-1) fills up the batch, and no token attends to it. A "[PAD]" that stands in a text is
a token like any other. Wiring only: the block is in `transformer`, the mathematics in `functional`.
"""

import numpy as np

from .. import functional as F
from ..attention import PADDING, padding_bias
from ..backend import arange_like, array_namespace
from ..errors import InputError
from ..layers import Embedding, Layer, LayerNorm, Linear, Sequential, prefixed
from .classifier import Classifier
from .pretrained import ACTIVATION_NAMES, load_weights, open_pretrained
from .transformer import AddNorm, PostNormBlock, SelfAttention


class BertEmbeddings(Layer):
    """LayerNorm(word[ids] + position[0 .. T - 1] + token_type[0])."""

    def __init__(self, config):
        def table(rows):
            return Embedding(np.zeros((config[rows], config["hidden_size"]), "f4"))

        super().__init__(
            children={
                "word_embeddings": table("vocab_size"),
                "position_embeddings": table("max_position_embeddings"),
                "token_type_embeddings": table("type_vocab_size"),
                "LayerNorm": LayerNorm.unit(config["hidden_size"], config.get("layer_norm_eps", 1e-12)),
            }
        )

    def check_input(self, ids):
        self.children["word_embeddings"].check_input(ids[ids != PADDING])

    def forward(self, ids, rng=None):
        words, positions, types, norm = self.children.values()
        xp = array_namespace(ids)
        if xp is np:
            self.check_input(ids)
        limit = positions.params["weight"].shape[0]
        if ids.shape[1] > limit:
            raise InputError(f"sequences must have at most {limit} tokens; got {ids.shape[1]}. Truncate them")
        x, words_cache = words.forward(xp.maximum(ids, 0))  # (B, T, d); padding: any row, since no token attends to it
        p, positions_cache = positions.forward(arange_like(ids.shape[1], ids))  # (T, d)
        t, types_cache = types.forward(arange_like(1, ids))  # (1, d)
        y, norm_cache = norm.forward(x + (p + t))
        return y, (words_cache, positions_cache, types_cache, norm_cache)

    def backward(self, dout, cache, need_dx=True):
        words, positions, types, norm = self.children.values()
        words_cache, positions_cache, types_cache, norm_cache = cache
        inside = words.trains() or positions.trains() or types.trains()
        dx, norm_grads = norm.backward(dout, norm_cache, inside)
        if not inside:
            return None, prefixed("LayerNorm", norm_grads)
        dp = array_namespace(dx).sum(dx, axis=0)  # (T, d): every sequence uses the same positions
        dt = array_namespace(dx).sum(dp, axis=0, keepdims=True)  # (1, d)
        grads = prefixed("LayerNorm", norm_grads)
        for name, layer, d, layer_cache in (
            ("word_embeddings", words, dx, words_cache),
            ("position_embeddings", positions, dp, positions_cache),
            ("token_type_embeddings", types, dt, types_cache),
        ):
            grads |= prefixed(name, layer.backward(d, layer_cache)[1])
        return None, grads


class BertModel(Layer):
    """Embeddings and blocks: ids (B, T) -> hidden states (B, T, d). `pooler`: have that layer, which heads may use."""

    def __init__(self, config, pooler=True):
        d, d_mlp = config["hidden_size"], config["intermediate_size"]
        eps, act = config.get("layer_norm_eps", 1e-12), config.get("hidden_act", "gelu")
        act = ACTIVATION_NAMES.get(act, act)

        def linear(d_out, d_in):
            return Linear(np.zeros((d_out, d_in), "f4"), np.zeros(d_out, "f4"))

        def block():
            attention = SelfAttention(linear(d, d), linear(d, d), linear(d, d), config["num_attention_heads"])
            output = AddNorm(linear(d, d_mlp), LayerNorm.unit(d, eps))
            return PostNormBlock(
                attention, AddNorm(linear(d, d), LayerNorm.unit(d, eps)), linear(d_mlp, d), output, act
            )

        blocks = Sequential({str(i): block() for i in range(config["num_hidden_layers"])})
        children = {"embeddings": BertEmbeddings(config), "encoder": Layer(children={"layer": blocks})}
        if pooler:
            children["pooler"] = Layer(children={"dense": linear(d, d)})
        super().__init__(children=children)
        self.config = config

    def forward(self, ids, rng=None, first=None, keep=True):
        """`first`: only the hidden states of the first so many tokens, (B, first, d), which saves most of a block.

        Without `keep` nothing is kept for a backward pass.
        """
        x, embeddings_cache = self.children["embeddings"].forward(ids, rng)
        mask = ids != PADDING
        whole = array_namespace(mask) is np and mask.all()  # on a GPU the host would have to wait for the answer
        bias = None if whole else padding_bias(mask, x)
        h, blocks_cache = self.children["encoder"].children["layer"].forward(x, rng, {"first": first}, keep, bias=bias)
        return h, (embeddings_cache, blocks_cache)

    def backward(self, dout, cache, need_dx=False):
        embeddings_cache, blocks_cache = cache
        below = self.children["embeddings"].trains()
        dx, grads = self.children["encoder"].children["layer"].backward(dout, blocks_cache, below)
        grads = prefixed("encoder.layer", grads)
        if below:
            grads |= prefixed("embeddings", self.children["embeddings"].backward(dx, embeddings_cache)[1])
        return None, grads


class Head(Layer):
    """Base of the models with a head: children `bert` and perhaps `classifier`."""

    pooler = False
    output_layer, encoder = "classifier", "bert"

    def __init__(self, config, labels=0, rng=None):
        """labels: number of classes. rng: numpy Generator or seed that draws the classifier, N(0, 0.02^2)."""
        if isinstance(self, Classifier) and (not isinstance(labels, int) or isinstance(labels, bool) or labels < 1):
            raise InputError(f"labels must be the number of classes, an integer from 1 on; got {labels!r}")
        children = {"bert": BertModel(config, self.pooler)}
        if labels:
            rng = np.random.default_rng(0 if rng is None else rng)
            weight = rng.normal(0, config.get("initializer_range", 0.02), (labels, config["hidden_size"]))
            children["classifier"] = Linear(weight.astype("f4"), np.zeros(labels, "f4"))
        super().__init__(children=children)

    def predict(self, ids):
        return self.forward(ids, keep=False)[0]

    @classmethod
    def from_pretrained(cls, path, **kwargs):
        """Model with the weights of a Hugging Face folder, as `pretrained.load_weights` reads them."""
        config, tensors = open_pretrained(path)
        model = cls(config, **kwargs)
        load_weights(path, model, tensors)
        return model


class BertForSequenceClassification(Classifier, Head):
    """logits (B, k) = classifier(tanh(pooler.dense(h[:, 0]))): one label a text."""

    pooler = True

    def forward(self, ids, rng=None, keep=True):
        bert, classifier = self.children.values()
        h, bert_cache = bert.forward(ids, rng, 1, keep)  # (B, 1, d)
        z, dense_cache = bert.children["pooler"].children["dense"].forward(h[:, 0, :], rng)  # (B, d)
        pooled, tanh_cache = F.tanh(z)
        logits, classifier_cache = classifier.forward(pooled, rng)
        return logits, (bert_cache, dense_cache, tanh_cache, classifier_cache)

    def backward(self, dout, cache, need_dx=False):
        bert, classifier = self.children.values()
        bert_cache, dense_cache, tanh_cache, classifier_cache = cache
        dpooled, grads = classifier.backward(dout, classifier_cache)
        dz = F.activation_backward(dpooled, tanh_cache)
        dfirst, pooler_grads = bert.children["pooler"].children["dense"].backward(dz, dense_cache)
        _, bert_grads = bert.backward(dfirst[:, None, :], bert_cache)
        grads = prefixed("classifier", grads) | prefixed("bert.pooler.dense", pooler_grads)
        return None, grads | prefixed("bert", bert_grads)


class BertForTokenClassification(Classifier, Head):
    """logits (B, T, k) = classifier(h): one label a token. A label below 0 (padding: -100) does not count."""

    def forward(self, ids, rng=None, keep=True):
        h, bert_cache = self.children["bert"].forward(ids, rng, keep=keep)
        logits, classifier_cache = self.children["classifier"].forward(h, rng)
        return logits, (bert_cache, classifier_cache)

    def backward(self, dout, cache, need_dx=False):
        bert_cache, classifier_cache = cache
        dh, grads = self.children["classifier"].backward(dout, classifier_cache)
        _, bert_grads = self.children["bert"].backward(dh, bert_cache)
        return None, prefixed("classifier", grads) | prefixed("bert", bert_grads)


class BertForSentenceEmbedding(Head):
    """y (B, d): the mean of the hidden states over the tokens that are not padding, as all-MiniLM-L6-v2 uses it."""

    def forward(self, ids, rng=None, keep=True):
        bert = self.children["bert"]
        h, bert_cache = bert.forward(ids, rng, keep=keep)
        xp = array_namespace(h, ids)
        mask = xp.astype(ids != PADDING, h.dtype)
        share = mask / xp.sum(mask, axis=1, keepdims=True)  # (B, T)
        return xp.sum(h * share[:, :, None], axis=1), (bert_cache, share)

    def backward(self, dout, cache, need_dx=False):
        """y_b = sum_t share_bt h_bt, so dh_bt = share_bt dy_b."""
        bert_cache, share = cache
        _, grads = self.children["bert"].backward(dout[:, None, :] * share[:, :, None], bert_cache)
        return None, prefixed("bert", grads)
