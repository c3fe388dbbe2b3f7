"""Models: wiring only. The mathematics is in `functional`, the parameters in `layers`, the updates in `adapters`.

`attention` and `blocks` are the transformer's parts, `bert`, `mlp` and the like whole models, `classifier` what every
model with one output a row can do; `pretrained` opens and writes Hugging Face folders, the table MODELS says of whom.
`gguf_llama` gives what a GGUF file holds Hugging Face's names, `gguf_lora` and `gguf_merge` write such files,
`decoder_save` a folder.
"""

from .attention import SelfAttention
from .bert import BertForSentenceEmbedding, BertForSequenceClassification, BertForTokenClassification, BertModel
from .blocks import BLOCK, PostNormBlock, PreNormBlock
from .causal_lm import CausalLM
from .classifier import Classifier, counted, right_of
from .decoder_block import DecoderBlock, GatedMLP, GroupedAttention
from .decoder_folder import BASE_DTYPES
from .decoder_save import DTYPES, save_decoder
from .distilbert import (
    DistilBertForSentenceEmbedding,
    DistilBertForSequenceClassification,
    DistilBertForTokenClassification,
    DistilBertModel,
)
from .generate import continuations
from .gguf_llama import GGUFWeight, llama_of_gguf
from .gguf_lora import FACTORS, gguf_adapter, read_gguf_adapter
from .gguf_merge import KINDS, LOSS, gguf_merged
from .kv_cache import KVCache
from .llama import DECODERS, LlamaForCausalLM, LlamaModel, last_tokens
from .mlp import MLP
from .pretrained import TOKENIZER_FILES, label_names, save_pretrained
from .roberta import (
    RobertaForSentenceEmbedding,
    RobertaForSequenceClassification,
    RobertaForTokenClassification,
    RobertaModel,
)
from .sampling import Sampling
from .table import (
    DECODER_MODELS,
    MODELS,
    causal_lm_of,
    classifier_of,
    load_causal_lm,
    load_classifier,
    open_causal_lm,
    open_pretrained,
    read_config,
)

__all__ = [
    "BASE_DTYPES",
    "BLOCK",
    "DECODERS",
    "DECODER_MODELS",
    "DTYPES",
    "FACTORS",
    "KINDS",
    "LOSS",
    "MLP",
    "MODELS",
    "TOKENIZER_FILES",
    "BertForSentenceEmbedding",
    "BertForSequenceClassification",
    "BertForTokenClassification",
    "BertModel",
    "CausalLM",
    "Classifier",
    "DecoderBlock",
    "DistilBertForSentenceEmbedding",
    "DistilBertForSequenceClassification",
    "DistilBertForTokenClassification",
    "DistilBertModel",
    "GGUFWeight",
    "GatedMLP",
    "GroupedAttention",
    "KVCache",
    "LlamaForCausalLM",
    "LlamaModel",
    "PostNormBlock",
    "PreNormBlock",
    "RobertaForSentenceEmbedding",
    "RobertaForSequenceClassification",
    "RobertaForTokenClassification",
    "RobertaModel",
    "Sampling",
    "SelfAttention",
    "causal_lm_of",
    "classifier_of",
    "continuations",
    "counted",
    "gguf_adapter",
    "gguf_merged",
    "label_names",
    "last_tokens",
    "llama_of_gguf",
    "load_causal_lm",
    "load_classifier",
    "open_causal_lm",
    "open_pretrained",
    "read_config",
    "read_gguf_adapter",
    "right_of",
    "save_decoder",
    "save_pretrained",
]
