"""DistilBERT (Sanh et al. 2019, arXiv:1910.01108): BERT's block under names of its own, without token types.

Its head is one linear layer more, `pre_classifier`, with ReLU. Both start at random where a checkpoint was not trained
to classify.
"""

from ..files import Rule
from .architecture import Architecture
from .encoder import Encoder, SentenceEmbedder, SequenceClassifier, TokenClassifier

DISTILBERT = Architecture(
    model_type="distilbert",
    block={
        "query": "attention.q_lin",
        "key": "attention.k_lin",
        "value": "attention.v_lin",
        "output": "attention.out_lin",
        "norm1": "sa_layer_norm",
        "up": "ffn.lin1",
        "down": "ffn.lin2",
        "norm2": "output_layer_norm",
    },
    blocks="transformer.layer",
    dense="pre_classifier",
    activation="relu",
    output="classifier",
    fields={
        "hidden_size": "dim",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "intermediate_size": "hidden_dim",
        "hidden_act": "activation",
        "type_vocab_size": None,
        "layer_norm_eps": None,  # always 1e-12
    },
    # Sines or learned, the positions are weights of the checkpoint.
    rules={"sinusoidal_pos_embds": Rule("true or false", lambda v: isinstance(v, bool), False)},
    other_heads=(
        "vocab_transform",
        "vocab_layer_norm",
        "vocab_projector",
        "qa_outputs",
        "pre_classifier",
        "classifier",
    ),
)


class DistilBertModel(Encoder):
    """Embeddings and blocks: ids (B, T) -> hidden states (B, T, d)."""

    architecture = DISTILBERT


class DistilBertForSequenceClassification(SequenceClassifier):
    """logits (B, k) = classifier(relu(pre_classifier(h[:, 0]))): one label a text."""

    architecture = DISTILBERT


class DistilBertForTokenClassification(TokenClassifier):
    """logits (B, T, k) = classifier(h): one label a token."""

    architecture = DISTILBERT


class DistilBertForSentenceEmbedding(SentenceEmbedder):
    """y (B, d): the mean of the hidden states."""

    architecture = DISTILBERT
