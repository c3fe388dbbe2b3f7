"""BERT (Devlin et al. 2018, arXiv:1810.04805) in its Hugging Face names: the encoder, and three heads on it."""

from ..files import one_of
from .architecture import Architecture
from .blocks import BLOCK
from .encoder import Encoder, SentenceEmbedder, SequenceClassifier, TokenClassifier

BERT = Architecture(
    model_type="bert",
    block=BLOCK,
    blocks="encoder.layer",
    dense="bert.pooler.dense",
    activation="tanh",
    output="classifier",
    rules={
        "position_embedding_type": one_of("absolute"),
        "is_decoder": one_of(False),
        "add_cross_attention": one_of(False),
    },
    other_heads=("cls", "qa_outputs", "classifier"),
)


class BertModel(Encoder):
    """Embeddings and blocks: ids (B, T) -> hidden states (B, T, d)."""

    architecture = BERT


class BertForSequenceClassification(SequenceClassifier):
    """logits (B, k) = classifier(tanh(bert.pooler.dense(h[:, 0]))): one label a text."""

    architecture = BERT


class BertForTokenClassification(TokenClassifier):
    """logits (B, T, k) = classifier(h): one label a token."""

    architecture = BERT


class BertForSentenceEmbedding(SentenceEmbedder):
    """y (B, d): the mean of the hidden states over the tokens that are not padding, as all-MiniLM-L6-v2 uses it."""

    architecture = BERT
