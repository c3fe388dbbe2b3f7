"""Tiny models of the architectures beside BERT, whose own is in `checks`."""

import numpy as np
from checks import tiny_config

from lorabook.models import (
    BertForSequenceClassification,
    DistilBertForSentenceEmbedding,
    DistilBertForSequenceClassification,
    DistilBertForTokenClassification,
    RobertaForSentenceEmbedding,
    RobertaForSequenceClassification,
    RobertaForTokenClassification,
)

HEADS = {
    "distilbert": {
        "classification": DistilBertForSequenceClassification,
        "tokens": DistilBertForTokenClassification,
        "embedding": DistilBertForSentenceEmbedding,
    },
    "roberta": {
        "classification": RobertaForSequenceClassification,
        "tokens": RobertaForTokenClassification,
        "embedding": RobertaForSentenceEmbedding,
    },
}
HEAD_LAYERS = {"distilbert": ("pre_classifier", "classifier"), "roberta": ("classifier.dense", "classifier.out_proj")}
PAD = 1  # of RoBERTa: the number of its padding token


def config_of(kind, **changes):
    """config.json of a tiny model whose sizes are all different: 12 words, d = 6, two blocks of two heads."""
    if kind != "distilbert":
        more = {"pad_token_id": PAD, "max_position_embeddings": 11} if kind == "roberta" else {}
        return tiny_config(model_type=kind) | more | changes
    sizes = {"vocab_size": 12, "dim": 6, "n_layers": 2, "n_heads": 2, "hidden_dim": 7, "max_position_embeddings": 9}
    return {"model_type": kind, "pad_token_id": 0, "activation": "gelu"} | sizes | changes


def made(rng, kind, head="classification", dtype="float64", **changes):
    """A model with random weights, no two of which are equal."""
    labels = {} if head == "embedding" else {"labels": 3}
    cls = BertForSequenceClassification if kind == "bert" else HEADS[kind][head]
    model = cls(config_of(kind, **changes), **labels).to(np, dtype)
    for name, array in model.named_params().items():
        array[...] = 0.4 * rng.standard_normal(array.shape) + name.endswith(("LayerNorm.weight", "_norm.weight"))
    return model
