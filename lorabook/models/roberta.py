"""RoBERTa (Liu et al. 2019, arXiv:1907.11692): BERT's block and names; positions begin behind the padding token's.

Its head, `classifier.dense` and `classifier.out_proj`, starts at random where a checkpoint was not trained to classify.
"""

from ..files import integer, one_of
from .architecture import Architecture
from .blocks import BLOCK
from .encoder import Encoder, SentenceEmbedder, SequenceClassifier, TokenClassifier

ROBERTA = Architecture(
    model_type="roberta",
    block=BLOCK,
    blocks="encoder.layer",
    dense="classifier.dense",
    activation="tanh",
    output="classifier.out_proj",
    rules={
        "pad_token_id": integer(0, default=1),
        "position_embedding_type": one_of("absolute"),
        "is_decoder": one_of(False),
        "add_cross_attention": one_of(False),
    },
    after_padding=True,
    other_heads=("lm_head", "qa_outputs", "classifier"),
)


class RobertaModel(Encoder):
    """Embeddings and blocks: ids (B, T) -> hidden states (B, T, d)."""

    architecture = ROBERTA


class RobertaForSequenceClassification(SequenceClassifier):
    """logits (B, k) = classifier.out_proj(tanh(classifier.dense(h[:, 0]))): one label a text."""

    architecture = ROBERTA


class RobertaForTokenClassification(TokenClassifier):
    """logits (B, T, k) = classifier(h): one label a token."""

    architecture = ROBERTA


class RobertaForSentenceEmbedding(SentenceEmbedder):
    """y (B, d): the mean of the hidden states."""

    architecture = ROBERTA
