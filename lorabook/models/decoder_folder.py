"""Hugging Face folders of decoders: config.json and weights, checked, translated and read one tensor at a time."""

import re

import numpy as np

from ..errors import FormatError, InputError
from ..files import open_weights, short
from ..layers import QuantizedLinear, quantizable
from ..quantization import quantize_weight
from .pretrained import read_config

OLD = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")  # a buffer of old versions


def open_decoder(folder, decoders):
    """(config, {our name: Tensor}) of a folder: checked, and not yet read. decoders: {model_type: Decoder}.

    Raises FormatError if a tensor stands there under two names, or if config.json promises other sizes. A head that is
    tied to the embedding is passed over where the file has the embedding.
    """
    config, tensors = read_config(folder, decoders), {}
    sizes = decoders[config["model_type"]].sizes(config)
    for name, tensor in open_weights(folder).items():
        ours = name if name.startswith(("model.", "lm_head.")) else f"model.{name}"
        if ours in tensors:
            raise FormatError(f"{folder} holds {ours} under two names: {tensors[ours].name} and {name}")
        if not OLD.fullmatch(ours):
            tensors[ours] = tensor
    d, last = sizes.hidden_size, sizes.num_hidden_layers - 1
    embed, head = "model.embed_tokens.weight", "lm_head.weight"
    if sizes.tie_word_embeddings and embed in tensors:
        tensors.pop(head, None)
    for name, promised, keys in (  # before memory is taken for what config.json promises
        (
            embed if embed in tensors or not sizes.tie_word_embeddings else head,
            (sizes.vocab_size, d),
            "vocab_size, hidden_size",
        ),
        (f"model.layers.{last}.mlp.up_proj.weight", (sizes.intermediate_size, d), "intermediate_size, hidden_size"),
    ):
        came = getattr(tensors.get(name), "shape", "none")
        if came != promised:
            expected = f"{name} of shape {short(promised)} ({keys})"
            raise FormatError(f"{folder}: config.json promises {expected}; found {came}")
    return config, tensors


def load_weights(path, model, weights, base_dtype="float32"):
    """Read {name: Tensor or GGUFWeight} into a model of zeros, one after another; see BASE_DTYPES.

    The model takes no memory for a weight before that is written, so that the peak is little above what stays. Raises
    FormatError, by name, for a missing, extra or misshapen tensor; InputError where base_dtype does not go with it.
    """
    if base_dtype not in BASE_DTYPES:
        raise InputError(f"base_dtype must be one of {', '.join(BASE_DTYPES)}; got {short(base_dtype)}")
    if whole := [f"{name} ({weight.dtype})" for name, weight in weights.items() if not weight.floating]:
        raise FormatError(f"{path}: expected floating-point numbers in every weight; got {', '.join(whole[:5])}")
    try:
        model.check_fits(weights)
    except FormatError:
        raise
    except InputError as error:
        raise FormatError(f"{path}: {error}") from None
    hold = BASE_DTYPES[base_dtype]
    chosen = quantizable(model) if hold else ()
    if base_dtype == "q4" and not any(getattr(weights[f"{name}.weight"], "in_blocks", False) for name in chosen):
        raise InputError(
            f"{path} holds no matrix in blocks of 4 or 8 bits (types Q4_0, Q4_1, Q8_0 of a GGUF file), so base_dtype "
            "cannot be q4: choose nf4 or float32"
        )
    layers = dict(model.named_layers())
    for name, array in model.named_params().items():  # in the model's order: the largest, embeddings, first of all
        place, _, kind = name.rpartition(".")
        if kind == "weight" and place in chosen and (found := hold(weights[name], name)) is not None:
            parent, _, own = place.rpartition(".")
            layers[parent].children[own] = QuantizedLinear(found, layers[place].bias)
        elif name in weights:
            array[...] = np.asarray(weights[name], array.dtype)


def _kept(weight, name):
    """The codes and scales of a GGUF file as they are; None for a weight of another type, which stays in float32."""
    return weight.quantized() if getattr(weight, "in_blocks", False) else None


def _rounded(weight, name):
    try:
        return quantize_weight(np.asarray(weight, "f4"), "nf4")
    except InputError as error:
        raise InputError(f"{name}: {error}") from None


# How the matrices of the blocks are held, while all else is float32. q4: in the blocks of a GGUF file, bit for bit.
# nf4: rounded here, as QLoRA does. {name: function of (weight, its name) -> Quantized, or None for float32}
BASE_DTYPES = {"float32": None, "q4": _kept, "nf4": _rounded}
