"""Hugging Face folders of BERT: config.json, weights under old and new names, tokenizer files; read and written."""

import json
import re
from pathlib import Path

from .. import functional as F
from ..configs import Rule, check_values, integer, number, one_of, optional, read_json, short
from ..errors import FormatError, InputError
from ..io import write_atomic
from ..notes import note
from ..weights import SHARD_BYTES, FilesTogether, open_weights, write_weights

ACTIVATION_NAMES = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}  # theirs: ours
SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
         "max_position_embeddings", "type_vocab_size")  # fmt: skip
RULES = {
    "model_type": one_of("bert"),
    "position_embedding_type": one_of("absolute"),
    "is_decoder": one_of(False),
    "add_cross_attention": one_of(False),
    "quantization_config": one_of(None),
    "problem_type": one_of(None, "single_label_classification"),
    **{size: integer(1) for size in SIZES},
    "hidden_act": one_of("gelu", *sorted({*F.ACTIVATIONS, *ACTIVATION_NAMES} - {"gelu"})),
    "pad_token_id": optional(integer(0)),
    "layer_norm_eps": number(0, 1, default=1e-12),
    "initializer_range": number(0, 1, default=0.02),
    "merged_from": optional(Rule("the names of a model and an adapter", lambda v: _is_merged_from(v))),
}
OTHER_HEADS = ("cls", "qa_outputs", "classifier")  # of pretraining, of question answering, and one that is not wanted
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt"),
    *("vocab.json", "merges.txt", "sentencepiece.bpe.model", "spiece.model", "tokenizer.model", "chat_template.jinja"),
)


# ---- config.json -----------------------------------------------------------------------------------------------------


def read_config(folder):
    """The config.json of a BERT folder as a dict, with every value that this implementation depends on checked."""
    path = Path(folder) / "config.json"
    unfinished = (path.parent / "checkpoint.safetensors").exists() and not path.exists()
    what = "a Hugging Face or an adapter folder"
    config = read_json(path, f"{what}; its training has not ended: train with --resume" if unfinished else what)
    check_values(path, config, RULES)
    if config["hidden_size"] % config["num_attention_heads"]:
        sizes = short(config["hidden_size"]), short(config["num_attention_heads"])
        raise FormatError(f"{path}: hidden_size must be a multiple of num_attention_heads; got {' and '.join(sizes)}")
    if (config.get("pad_token_id") or 0) >= config["vocab_size"]:
        raise FormatError(f"{path}: pad_token_id must be below vocab_size; got {short(config['pad_token_id'])}")
    names = config.get("id2label") or {}
    if not isinstance(names, dict) or names.keys() != {str(i) for i in range(len(names))}:
        raise FormatError(f"{path}: id2label must name the classes 0, 1, ... without a gap; got {short(names)}")
    if not all(isinstance(name, str) for name in names.values()) or len({*names.values()}) < len(names):
        raise FormatError(f"{path}: id2label must give each class a name of its own; got {short(names)}")
    numbers = {name: int(i) for i, name in names.items()}
    if (came := config.get("label2id")) and (came != numbers or not all(type(i) is int for i in came.values())):
        raise FormatError(f"{path}: label2id {short(came)} does not fit id2label {short(names)}")
    return config


def _is_merged_from(value):
    names = value.values() if isinstance(value, dict) and value.keys() == {"model", "adapter"} else (None,)
    return all(isinstance(name, str) for name in names)


def label_names(config):
    """The names of the classes that a config of `read_config` gives, in order; [] if it gives none."""
    names = config.get("id2label") or {}
    return [names[str(i)] for i in range(len(names))]


# ---- weights ---------------------------------------------------------------------------------------------------------


def open_pretrained(folder):
    """(config, {our name: Tensor}) of a folder: checked, translated, and not yet read.

    Raises FormatError if a tensor stands there under two names, or if config.json promises other sizes.
    """
    config, tensors = read_config(folder), {}
    for name, tensor in open_weights(folder).items():
        if (ours := _our_name(name)) in tensors:
            raise FormatError(f"{folder} holds {ours} under two names: {tensors[ours].name} and {name}")
        if ours != "bert.embeddings.position_ids":  # a buffer of old versions: 0, 1, 2, ...
            tensors[ours] = tensor
    last = f"encoder.layer.{config['num_hidden_layers'] - 1}.intermediate.dense.weight"
    for name, sizes in {  # before memory is taken for what config.json promises
        "embeddings.word_embeddings.weight": ("vocab_size", "hidden_size"),
        "embeddings.position_embeddings.weight": ("max_position_embeddings", "hidden_size"),
        "embeddings.token_type_embeddings.weight": ("type_vocab_size", "hidden_size"),
        last: ("intermediate_size", "hidden_size"),
    }.items():
        promised, came = tuple(config[size] for size in sizes), getattr(tensors.get(f"bert.{name}"), "shape", "none")
        if promised != came:
            expected = f"{name} of shape {short(promised)} ({', '.join(sizes)})"
            raise FormatError(f"{folder}: config.json promises {expected}; found {came}")
    return config, tensors


def _our_name(name):
    """The name of today, with its prefix. TensorFlow's gamma and beta are what BERT's first checkpoints have."""
    name = re.sub(r"(?<=LayerNorm\.)(gamma|beta)$", lambda old: {"gamma": "weight", "beta": "bias"}[old[0]], name)
    return name if name.startswith(("bert.", *(f"{head}." for head in OTHER_HEADS))) else f"bert.{name}"


def load_weights(folder, model, tensors):
    """Read what `open_pretrained` found into a model, one tensor at a time.

    A classifier that the folder does not hold keeps its random start. A pooler that the model does not use is passed
    over, and so are heads for other tasks, with a note. Raises FormatError for every other missing, extra or misshapen
    tensor, by name.
    """
    own = model.named_params()
    heads = tuple(f"{head}." for head in OTHER_HEADS if head not in model.children)
    others = [name for name in tensors if name.startswith(heads)]
    if others:
        names = ", ".join(sorted({name.partition(".")[0] for name in others}))
        note(f"{folder}: heads for other tasks are passed over ({names})")
    unused = {*others, *(n for n in tensors if n not in own and n.startswith("bert.pooler."))}
    found = {name: tensor for name, tensor in tensors.items() if name not in unused}
    if whole := [f"{name} ({tensor.dtype})" for name, tensor in found.items() if not tensor.floating]:
        raise FormatError(f"{folder}: expected floating-point numbers in every weight; got {', '.join(whole[:5])}")
    if not any(name.startswith("classifier.") for name in found):
        found |= {name: array for name, array in own.items() if name.startswith("classifier.")}
    try:
        model.load(found)
    except FormatError:
        raise
    except InputError as error:
        raise FormatError(f"{folder}: {error}") from None


def save_pretrained(folder, model, tokenizer, labels, max_shard_size=SHARD_BYTES, merged_from=None):
    """Write a plain model as a Hugging Face folder: weights, in parts above `max_shard_size` bytes; the config with its
    labels; the tokenizer files of the folder `tokenizer`. They appear together, config.json last, or not at all.

    merged_from: {"model", "adapter"}, the names of what was merged, for config.json. Returns the files' names.
    """
    params = model.named_params()
    config = {k: v for k, v in model.children["bert"].config.items() if k not in ("num_labels", "torch_dtype")} | {
        "architectures": [type(model).__name__],
        "dtype": str(next(iter(params.values())).dtype),
        "id2label": {str(i): name for i, name in enumerate(labels)},
        "label2id": {name: i for i, name in enumerate(labels)},
    }
    config |= {"merged_from": merged_from} if merged_from else {}
    with FilesTogether(folder) as place:
        for file in TOKENIZER_FILES:
            if (Path(tokenizer) / file).is_file():
                write_atomic(place(file), (Path(tokenizer) / file).read_bytes())
        write_weights(place, params, max_shard_size)
        write_atomic(place("config.json"), json.dumps(config, indent=2) + "\n")
    return place.files
