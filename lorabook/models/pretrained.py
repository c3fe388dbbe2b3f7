"""Hugging Face folders of encoders: config.json, weights under old and new names, tokenizer files; read and written."""

import json
import re
from pathlib import Path

from ..errors import FormatError, InputError, note
from ..files import (
    SHARD_BYTES,
    FilesTogether,
    Rule,
    check_values,
    one_of,
    open_weights,
    optional,
    read_json,
    short,
    write_atomic,
    write_weights,
)
from ..layers import distinct

RULES = {  # whatever the architecture
    "quantization_config": one_of(None),
    "problem_type": one_of(None, "single_label_classification"),
    "merged_from": optional(Rule("the names of a model and an adapter", lambda v: _is_merged_from(v))),
}
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt"),
    *("vocab.json", "merges.txt", "sentencepiece.bpe.model", "spiece.model", "tokenizer.model", "chat_template.jinja"),
)


# ---- config.json -----------------------------------------------------------------------------------------------------


def read_config(folder, architectures):
    """The config.json of a folder as a dict, with every value that this implementation depends on checked.

    architectures: {model_type: Architecture} of those that may be there; the first is that of a config without one.
    """
    path = Path(folder) / "config.json"
    unfinished = (path.parent / "checkpoint.safetensors").exists() and not path.exists()
    what = "a Hugging Face or an adapter folder"
    config = read_json(path, f"{what}; its training has not ended: train with --resume" if unfinished else what)
    check_values(path, config, {"model_type": one_of(*architectures)})
    config.setdefault("model_type", next(iter(architectures)))
    check_values(path, config, RULES)
    architectures[config["model_type"]].sizes(config, path)
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


def open_pretrained(folder, architectures):
    """(config, {our name: Tensor}) of a folder: checked, translated, and not yet read.

    architectures: as of `read_config`. Raises FormatError if a tensor stands there under two names, or if config.json
    promises other sizes.
    """
    config, tensors = read_config(folder, architectures), {}
    own = architectures[config["model_type"]]
    for name, tensor in open_weights(folder).items():
        if (ours := _our_name(name, own)) in tensors:
            raise FormatError(f"{folder} holds {ours} under two names: {tensors[ours].name} and {name}")
        if ours != f"{own.model_type}.embeddings.position_ids":  # a buffer of old versions: 0, 1, 2, ...
            tensors[ours] = tensor
    for name, sizes in {  # before memory is taken for what config.json promises
        "embeddings.word_embeddings.weight": ("vocab_size", "hidden_size"),
        "embeddings.position_embeddings.weight": ("max_position_embeddings", "hidden_size"),
        "embeddings.token_type_embeddings.weight": ("type_vocab_size", "hidden_size"),
        f"{own.blocks}.{{last}}.{own.block['up']}.weight": ("intermediate_size", "hidden_size"),
    }.items():
        if None in (keys := [own.field(size) for size in sizes]):
            continue
        name = name.format(last=config[own.field("num_hidden_layers")] - 1)
        promised = tuple(config[key] for key in keys)
        came = getattr(tensors.get(f"{own.model_type}.{name}"), "shape", "none")
        if promised != came:
            expected = f"{name} of shape {short(promised)} ({', '.join(keys)})"
            raise FormatError(f"{folder}: config.json promises {expected}; found {came}")
    return config, tensors


def _our_name(name, architecture):
    """The name of today, with its prefix. TensorFlow's gamma and beta are what BERT's first checkpoints have."""
    name = re.sub(r"(?<=LayerNorm\.)(gamma|beta)$", lambda old: {"gamma": "weight", "beta": "bias"}[old[0]], name)
    known = (architecture.model_type, *architecture.other_heads)
    return name if name.startswith(tuple(f"{part}." for part in known)) else f"{architecture.model_type}.{name}"


def load_weights(folder, model, tensors):
    """Read what `open_pretrained` found into a model, one tensor at a time.

    A head that the folder does not hold keeps its random start. A pooler that the model does not use is passed
    over, and so are heads for other tasks, with a note. Raises FormatError for every other missing, extra or misshapen
    tensor, by name.
    """
    own, architecture = model.named_params(), model.architecture
    heads = tuple(f"{head}." for head in architecture.other_heads if head not in model.children)
    others = [name for name in tensors if name.startswith(heads)]
    if others:
        names = ", ".join(sorted({name.partition(".")[0] for name in others}))
        note(f"{folder}: heads for other tasks are passed over ({names})")
    unused = {*others, *(n for n in tensors if n not in own and n.startswith(f"{model.encoder}.pooler."))}
    found = {name: tensor for name, tensor in tensors.items() if name not in unused}
    if whole := [f"{name} ({tensor.dtype})" for name, tensor in found.items() if not tensor.floating]:
        raise FormatError(f"{folder}: expected floating-point numbers in every weight; got {', '.join(whole[:5])}")
    fresh = tuple(f"{module}." for module in model.head_modules)
    if not any(name.startswith(fresh) for name in found):
        found |= {name: array for name, array in own.items() if name.startswith(fresh)}
    try:
        model.load(found)
    except FormatError:
        raise
    except InputError as error:
        raise FormatError(f"{folder}: {error}") from None


def save_pretrained(
    folder,
    model,
    tokenizer,
    labels,
    max_shard_size=SHARD_BYTES,
    merged_from=None,
    tokenizer_files=TOKENIZER_FILES,
    check=lambda folder: None,
):
    """Write a plain model as a Hugging Face folder: weights, in parts above `max_shard_size` bytes; the config with its
    labels; of the folder `tokenizer` the `tokenizer_files` that are there. They appear together, config.json last, or
    not at all.

    merged_from: {"model", "adapter"}, the names of what was merged, for config.json. check: is called with a folder
    in which all files stand already; if it raises, none gets its place. Returns the files' names.
    """
    params = model.named_params()
    config = {k: v for k, v in model.config.items() if k not in ("num_labels", "torch_dtype")} | {
        "architectures": [type(model).__name__],
        "dtype": str(next(iter(params.values())).dtype),
        "id2label": {str(i): name for i, name in enumerate(labels)},
        "label2id": {name: i for i, name in enumerate(labels)},
    }
    config |= {"merged_from": merged_from} if merged_from else {}
    with FilesTogether(folder) as place:
        for file in tokenizer_files:
            if (Path(tokenizer) / file).is_file():
                write_atomic(place(file), (Path(tokenizer) / file).read_bytes())
        write_weights(place, distinct(params), max_shard_size)
        write_atomic(place("config.json"), json.dumps(config, indent=2) + "\n")
        check(place.written)
    return place.files
