"""BERT (Devlin et al. 2018, arXiv:1810.04805) in its Hugging Face names: encoder, and three heads on it.

Token ids (B, T) go in; PADDING (-1) fills up the batch, and no token attends to it. A "[PAD]" that stands in a text is
a token like any other. Wiring only: the block is in `transformer`, the mathematics in `functional`.
"""

import json
from pathlib import Path

import numpy as np

from .. import functional as F
from ..attention import PADDING, padding_bias
from ..backend import arange_like, array_namespace
from ..errors import FormatError, InputError
from ..io import read_safetensors, write_atomic, write_safetensors
from ..layers import Embedding, Layer, LayerNorm, Linear, Sequential, prefixed
from .classifier import Classifier
from .transformer import AddNorm, PostNormBlock, SelfAttention

SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
         "max_position_embeddings", "type_vocab_size")  # fmt: skip
ACTIVATION_NAMES = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}  # theirs: ours


def read_config(path):
    """The config.json of a BERT folder as a dict, with every value that this implementation depends on checked."""
    path = Path(path) / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("not an object")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is not a JSON object: {error}") from None
    fixed = {
        "model_type": "bert",
        "position_embedding_type": "absolute",
        "is_decoder": False,
        "add_cross_attention": False,
    }
    for key, expected in fixed.items():
        if (came := config.get(key, expected)) != expected:
            raise FormatError(f"{path}: {key} is {came!r}; only {expected!r} is implemented")
    for key in SIZES:
        if not _is_integer(config.get(key)) or config[key] < 1:
            raise FormatError(f"{path}: {key} must be a positive integer; got {config.get(key)!r}")
    if config["hidden_size"] % config["num_attention_heads"]:
        sizes = f"{config['hidden_size']} and {config['num_attention_heads']}"
        raise FormatError(f"{path}: hidden_size must be a multiple of num_attention_heads; got {sizes}")
    if (act := config.get("hidden_act", "gelu")) not in [*F.ACTIVATIONS, *ACTIVATION_NAMES]:
        raise FormatError(f"{path}: hidden_act is {act!r}; expected one of {', '.join(F.ACTIVATIONS)}")
    if (pad := config.get("pad_token_id")) is not None and not (_is_integer(pad) and 0 <= pad < config["vocab_size"]):
        raise FormatError(f"{path}: pad_token_id must be from 0 to {config['vocab_size'] - 1}; got {pad!r}")
    for key in ("layer_norm_eps", "initializer_range"):
        value = config.get(key, 1.0)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2:
            raise FormatError(f"{path}: {key} must be a small positive number; got {value!r}")
    return config


def label_names(config):
    """The names of the classes that a config.json gives, in order; [] if it gives none."""
    names = config.get("id2label")
    return list(map(str, names.values())) if isinstance(names, dict) else []


def _is_integer(value):
    return isinstance(value, int) and not isinstance(value, bool)


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

    def __init__(self, config, labels=0, rng=None):
        """labels: number of classes. rng: numpy Generator or seed that draws the classifier, N(0, 0.02^2)."""
        if isinstance(self, Classifier) and (not _is_integer(labels) or labels < 1):
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
        """Model with the weights of a Hugging Face folder: config.json and model.safetensors.

        A classifier that the file does not hold keeps its random start; a pooler that the model does not use is passed
        over. Every other missing, extra or misshapen tensor raises InputError by name.
        """
        path = Path(path)
        if not (path / "model.safetensors").exists() and (
            pickled := sorted(path.glob("*.bin")) + sorted(path.glob("*.pt*"))
        ):
            how = "convert it with transformers: model.save_pretrained(folder, safe_serialization=True)"
            raise InputError(f"{pickled[0]} is a pickle, which can run code and is not opened; {how}")
        config = read_config(path)
        tensors, _ = read_safetensors(path / "model.safetensors")
        found = {
            name if name.startswith(("bert.", "classifier.")) else f"bert.{name}": a for name, a in tensors.items()
        }
        found.pop("bert.embeddings.position_ids", None)  # a buffer of old versions: 0, 1, 2, ...
        for name, sizes in {  # before memory is taken for what config.json promises
            "embeddings.word_embeddings.weight": ("vocab_size", "hidden_size"),
            "embeddings.position_embeddings.weight": ("max_position_embeddings", "hidden_size"),
            "embeddings.token_type_embeddings.weight": ("type_vocab_size", "hidden_size"),
            f"encoder.layer.{config['num_hidden_layers'] - 1}.intermediate.dense.weight": (
                "intermediate_size",
                "hidden_size",
            ),
        }.items():
            promised, came = tuple(config[size] for size in sizes), getattr(found.get(f"bert.{name}"), "shape", "none")
            if promised != came:
                raise FormatError(
                    f"{path}: config.json promises {name} of shape {promised} ({', '.join(sizes)}); found {came}"
                )
        model = cls(config, **kwargs)
        own = model.named_params()
        if not cls.pooler:
            found = {name: a for name, a in found.items() if not name.startswith("bert.pooler.")}
        model.load({name: a for name, a in own.items() if name.startswith("classifier.")} | found)
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


def save_pretrained(folder, model, source, labels):
    """Write a plain model as a Hugging Face folder: its weights, the config with its labels, the source's tokenizer."""
    names = {
        "id2label": {str(i): name for i, name in enumerate(labels)},
        "label2id": {n: i for i, n in enumerate(labels)},
    }
    config = model.children["bert"].config | names | {"architectures": [type(model).__name__]}
    write_safetensors(Path(folder) / "model.safetensors", model.named_params(), {"format": "pt"})
    write_atomic(Path(folder) / "tokenizer.json", (Path(source) / "tokenizer.json").read_bytes())
    write_atomic(Path(folder) / "config.json", json.dumps(config, indent=2) + "\n")
