"""Decoders written: a plain Hugging Face folder, which transformers opens."""

import json

from ..adapters import adapters
from ..backend import to_numpy
from ..errors import InputError
from ..files import SHARD_BYTES, FilesTogether, short, write_atomic, write_weights
from ..layers import distinct

DTYPES = ("float32", "float16")
CLASSES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM"}  # transformers'


def save_decoder(
    folder, model, files=None, dtype="float32", max_shard_size=SHARD_BYTES, merged_from=None, check=lambda folder: None
):
    """Write a plain decoder as a Hugging Face folder: weights, in parts above `max_shard_size` bytes, and config.json.

    folder: exists. model: without adapters. files: {name: bytes or text} of what goes beside, as a tokenizer has it.
    dtype: of the weights, "float32" or "float16". A head that is the embedding's own array is left out, and config.json
    says that they are tied; one that is not is written, and config.json says that. merged_from: {"model", "adapter"},
    for config.json. check: is called with a folder in which all files stand already; if it raises, none gets its place.
    They appear together, config.json last, or not at all. Returns the files' names.
    """
    if left := adapters(model):
        raise InputError(f"{next(iter(left))} has an adapter; merge and unload it before, or save the adapter alone")
    if dtype not in DTYPES:
        raise InputError(f"weights can be written as {' or '.join(DTYPES)}; got {short(dtype)}")
    params = model.named_params()
    tied = params["lm_head.weight"] is params["model.embed_tokens.weight"]
    arrays = {}
    for name, array in distinct(params).items():
        arrays[name] = to_numpy(array).astype(dtype, copy=False)
    config = {k: v for k, v in model.config.items() if k != "torch_dtype"}
    config |= {"architectures": [CLASSES[config["model_type"]]], "dtype": dtype, "tie_word_embeddings": tied}
    config |= {"merged_from": merged_from} if merged_from else {}
    with FilesTogether(folder) as place:
        for name, content in (files or {}).items():
            write_atomic(place(name), content)
        write_weights(place, arrays, max_shard_size)
        write_atomic(place("config.json"), json.dumps(config, indent=2) + "\n")
        check(place.written)
    return place.files
