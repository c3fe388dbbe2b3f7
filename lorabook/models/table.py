"""The tables of models by the model_type of their files: a new one is a file beside this one, and a row here."""

from . import pretrained
from .bert import BertForSequenceClassification
from .decoder_folder import load_weights, open_decoder
from .distilbert import DistilBertForSequenceClassification
from .gguf_llama import llama_of_gguf
from .llama import DECODERS, LlamaForCausalLM
from .roberta import RobertaForSequenceClassification

# {model_type of config.json: the model that gives a text its label}. The first row is for a config that does not say.
MODELS = {
    "bert": BertForSequenceClassification,
    "distilbert": DistilBertForSequenceClassification,
    "roberta": RobertaForSequenceClassification,
}
DECODER_MODELS = dict.fromkeys(DECODERS, LlamaForCausalLM)  # the same, of those that continue a text
ARCHITECTURES = {name: model.architecture for name, model in MODELS.items()}


def read_config(folder):
    """The config.json of a folder of any of the MODELS; see `pretrained.read_config`."""
    return pretrained.read_config(folder, ARCHITECTURES)


def open_pretrained(folder):
    """(config, {our name: Tensor}) of a folder of any of the MODELS; see `pretrained.open_pretrained`."""
    return pretrained.open_pretrained(folder, ARCHITECTURES)


def classifier_of(config):
    """The class in MODELS of the models with this config."""
    return MODELS[config.get("model_type", next(iter(MODELS)))]


def load_classifier(folder, labels, rng=None):
    """A model of texts with one of so many labels, with the weights of a Hugging Face folder; see `from_pretrained`."""
    return classifier_of(read_config(folder)).from_pretrained(folder, labels=labels, rng=rng)


def open_causal_lm(path, metadata=None, tensors=None):
    """(config, {our name: Tensor or GGUFWeight}) of a decoder, checked, and not yet read.

    path: a Hugging Face folder; or a .gguf file, with what `files.read_gguf` found in it. Raises FormatError, with the
    kinds that there are, for one of another.
    """
    return open_decoder(path, DECODERS) if metadata is None else llama_of_gguf(path, metadata, tensors)


def causal_lm_of(path, config, weights, base_dtype="float32", recompute=False):
    """The model of what `open_causal_lm` found. base_dtype: one of BASE_DTYPES. recompute: see `LlamaModel`."""
    model = DECODER_MODELS[config["model_type"]](config, recompute)
    load_weights(path, model, weights, base_dtype)
    return model


def load_causal_lm(folder, base_dtype="float32", recompute=False):
    """A decoder that continues texts, with the weights of a Hugging Face folder."""
    return causal_lm_of(folder, *open_causal_lm(folder), base_dtype, recompute)
