"""PEFT adapter folders, written and read without torch: adapter_config.json and adapter_model.safetensors.

A third file, lorabook.json, holds what PEFT has no place for; see `about`.
"""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..backend import array_namespace, asarray_like, to_numpy
from ..errors import FormatError, InputError, note
from ..files import (
    RECORD,
    REPOSITORIES,
    Rule,
    as_safetensors,
    check_values,
    fingerprint,
    integer,
    known_name,
    one_of,
    optional,
    public_name,
    read_json,
    short,
    write_together,
)
from ..layers import Linear
from .base import BASE
from .contents import own_tensors
from .formats import CONFIG, FOLDER, PREFIX, TENSORS, WHOLE, read_folder, saved_heads
from .inject import config_of, inject, linear_layers, select
from .methods import class_of
from .selection import ALL, is_saved, is_target
from .starts import as_plain
from .whole_model import adapters, base_params, plain_name

ABOUT = "lorabook.json"
SURROGATE = re.compile("[\ud800-\udfff]")  # so Python marks a byte of a file's name that is no text
RULES = {
    "base_sha256": Rule(
        "64 hexadecimal digits", lambda v: isinstance(v, str) and re.fullmatch("[0-9a-f]{64}", v), "0" * 64
    ),
    "base_model": optional(Rule("a name or a path", lambda v: isinstance(v, str))),
    "labels": optional(Rule("a list of names", lambda v: isinstance(v, list) and all(isinstance(n, str) for n in v))),
    "max_length": optional(integer(1)),
    "training_texts": optional(Rule("hashes of texts", lambda v: isinstance(v, str) and RECORD.fullmatch(v))),
    "chats": optional(one_of(False, True)),
    "base_dtype": optional(Rule("a word", lambda v: isinstance(v, str) and re.fullmatch("[a-z0-9_]{1,20}", v))),
}


def _contents(names, config, chosen):
    """{name in the file: name in the model} of what an adapter of this config holds, over the base's `names`.

    chosen: {path: names of the parameters and buffers of the adapter} of the adapted layers, which PEFT, and we, keep
    in `base_layer`.
    """
    cls, first = class_of(config), next(iter(chosen))
    files = cls.tensors | cls.kept
    held = {f"{WHOLE}{file}": f"{first}.{n}" for n, file in cls.shared.items() if config.saves_shared}
    held |= {f"{PREFIX}{path}.{files[n]}": f"{path}.{n}" for path, own in chosen.items() for n in files if n in own}
    for name in names:
        if config.trains_in_full(name, chosen):
            path, _, kind = name.rpartition(".")
            name = f"{path}.{BASE}.{kind}" if path in chosen else name
            held[f"{PREFIX}{name}"] = name
    return held


def base_fingerprint(model, held):
    """sha256 of the weights under an adapter: all but those that it holds itself.

    Of a base in few bits, the numbers that its codes stand for: the same in float32 is the same base.
    """
    held = {plain_name(name) for name in held.values()}
    weights = {name: array for name, array in base_params(model).items() if name not in held}
    for path, layer in model.named_layers():
        if isinstance(layer, Linear) and not layer.dense:
            weights[plain_name(f"{path}.weight")] = layer
    return fingerprint(weights)


# ---- writing ---------------------------------------------------------------------------------------------------------


def save_adapter(folder, model, base_model=None, task_type=None, labels=None, max_length=None, training_texts=None):
    """Write the adapter of a model as a PEFT adapter folder.

    model: has adapters from `inject` or `load_adapter`, and is saved by their config, whatever trains at the moment.
    Where their start moved the base weight, they are saved as plain LoRA of twice the rank; see `starts.as_plain`.
    The others are what `load_model` will want to know; a model from there knows them itself. base_model: known name, or
    folder, of the model under it. task_type: PEFT's, e.g. "SEQ_CLS". labels: names of the classes, in order.
    max_length: tokens of a text, at most. training_texts: their `files.record`, as the command `train` has it; without
    `evaluate` cannot tell that it measures on these. Of a language model, chats and base_dtype are in the file too, as
    its `about` has them. The folder is created, with its parents; what it held stays if the
    new content cannot be written. PEFT gives the classes their names with
    `AutoPeftModelForSequenceClassification.from_pretrained(folder, id2label=names)`, where
    names = dict(enumerate(labels)); a config.json with them would make transformers look for a whole model here.
    Raises InputError, with nothing written, if something trains that a PEFT folder has no place for; OSError if the
    folder cannot be written.

    >>> import lorabook as lb
    >>> model = lb.load_model("runs/mine")
    >>> lb.save_adapter("runs/copy", model)
    >>> lb.load_model("runs/copy").about.labels
    ('neg', 'pos')
    """
    model.refuse_merged(before="saving the adapter")  # the sha256 below is that of the base weights
    known = getattr(model, "about", None)
    base_model = base_model or getattr(known, "base", None)
    labels = labels or [*getattr(known, "labels", ())] or None
    max_length = max_length or getattr(known, "max_length", None)
    task_type = task_type or (known and model.task_type)
    config = _with_heads(config_of(model), model, task_type)
    config, changed = as_plain(config, adapters(model))
    arrays, chosen = model.state() | changed, {path: {*a.params, *a.buffers} for path, a in adapters(model).items()}
    held = _contents(base_params(model), config, chosen)
    if more := sorted(model.trainable_params().keys() - held.values()):
        raise InputError(f"{more[0]} trains, but is in no adapter; name its layer in modules_to_save, or freeze it")
    base = _base_name(base_model)
    options = {
        "peft_type": class_of(config).peft_type,
        "task_type": task_type,
        "base_model_name_or_path": public_name(base),
        "inference_mode": True,
        **config.for_peft(),
    }
    # What an expression, or "all-linear", takes in depends on what else a model has: there, Dropout; so names, as PEFT.
    options["target_modules"] = sorted(chosen if isinstance(config.target_modules, str) else config.target_modules)
    options = dict(sorted(options.items()))  # not sort_keys: where patterns overlap, the first one counts
    about = {"base_sha256": base_fingerprint(model, held), "base_model": base, "labels": labels}
    about |= {"max_length": max_length, "training_texts": training_texts}
    about |= {name: getattr(known, name, None) for name in ("chats", "base_dtype")}
    tensors = as_safetensors({file: arrays[name] for file, name in held.items()}, {"format": "pt"})
    texts = {name: json.dumps(content, indent=2) + "\n" for name, content in ((ABOUT, about), (CONFIG, options))}
    write_together(folder, {TENSORS: tensors} | texts)  # the config last: PEFT, and we, begin with it


def _with_heads(config, model, task_type):
    """The config with the model's head among modules_to_save, where PEFT puts it by the task's type."""
    heads = [head for head in saved_heads(task_type) if any(is_saved(path, head) for path in linear_layers(model))]
    if adapted := [path for path in adapters(model) if any(is_saved(path, head) for head in heads)]:
        raise InputError(
            f"{adapted[0]} has an adapter, but PEFT saves the head of {task_type} in full: "
            "name it in modules_to_save, or exclude_modules, or save with task_type=None"
        )
    return replace(
        config, modules_to_save=[*config.modules_to_save, *(h for h in heads if h not in config.modules_to_save)]
    )


def _base_name(base_model):
    """A base model as a later run finds it: its known name, or the absolute path of its folder or file.

    None for a path of bytes that are no text, which JSON cannot hold: a later run must be given it.
    """
    name = base_model and known_name(str(base_model))
    name = str(Path(name).absolute()) if name and name not in REPOSITORIES and Path(name).exists() else name
    return None if name and SURROGATE.search(name) else name


def about(folder):
    """What lorabook.json in an adapter folder says, as a dict; a value is None where nothing is known.

    base_sha256: of the weights under the adapter. base_model: a name or path that `hub.locate` takes. labels: the names
    of the classes, in order. max_length: tokens of a text, at most. training_texts: their `files.record`. Of a language
    model, chats: whether it was trained on chats; base_dtype: how its base was held. A folder that PEFT wrote knows its
    base model only.
    """
    path = Path(folder) / ABOUT
    content = read_json(path) if path.exists() else {}
    check_values(path, content, RULES)
    told = {name: content.get(name) for name in RULES}
    if told["base_model"] is None:
        base = read_json(Path(folder) / CONFIG, FOLDER).get("base_model_name_or_path")
        told["base_model"] = known_name(base) if isinstance(base, str) else None
    return told


def load_adapter(folder, model):
    """Inject the adapter of a PEFT folder into the model and load it, frozen; returns its config.

    Everything is checked before the model is touched: every tensor by name and shape, the base weights by the sha256 in
    lorabook.json where there is one.

    >>> import lorabook as lb
    >>> model = lb.MLP((64, 32, 10))
    >>> _ = lb.inject(model, lb.LoRAConfig(r=4))
    >>> lb.save_adapter("runs/mlp", model)
    >>> lb.load_adapter("runs/mlp", lb.MLP((64, 32, 10))).r  # the same base weights; others are refused
    4
    """
    folder = Path(folder)
    adapter = read_folder(folder)
    cls = class_of(adapter.config)
    part = _part(model, cls, adapter.arrays)
    try:
        config, remarks = _fitted(adapter.config, part)
        chosen = select(part, config)
        options, layers = config.options_for(chosen), linear_layers(part)
        sizes = {path: layers[path].shape for path in chosen}
        for path in chosen:
            cls.check_base(layers[path], path, **options[path])
        own = {p: cls.shapes(*sizes[p], where=p, **options[p]) | cls.kept_shapes(*sizes[p]) for p in chosen}
        own[chosen[0]] |= cls.shared_shapes([*sizes.values()], **options[chosen[0]])
    except InputError as error:
        raise FormatError(f"{folder / CONFIG} does not fit the model: {error}") from None
    params = part.named_params()
    held = _contents(params, config, own)
    shapes = {n: tuple(array.shape) for n, array in params.items()}
    shapes |= {f"{path}.{name}": shape for path in chosen for name, shape in own[path].items()}
    arrays = {n: a for n, a in adapter.arrays.items() if n in held or not _is_copy(n, a, params, adapter.arrays)}
    wrong = [f"missing {n}" for n in sorted(held.keys() - arrays.keys())]
    wrong += [f"unexpected {n}" for n in sorted(arrays.keys() - held.keys())]
    known = {n: arrays[n] for n in sorted(held.keys() & arrays.keys())}
    wrong += [
        f"{n} has shape {a.shape}, expected {shape}"
        for n, a in known.items()
        if a.shape != (shape := shapes[plain_name(held[n])])
    ]
    like = next(iter(params.values()))
    largest = float(array_namespace(like).finfo(like.dtype).max)
    wrong += [
        f"{n} holds no numbers that {like.dtype} can hold" for n, a in known.items() if not _is_within(a, largest)
    ]
    if wrong:
        more = f" (and {len(wrong) - 5} more)" if len(wrong) > 5 else ""
        raise FormatError(f"{folder / TENSORS} does not fit the model: {'; '.join(wrong[:5])}{more}")
    scalings = {path: cls.scale(**options[path]) for path in chosen}
    if too_large := [path for path, scaling in scalings.items() if abs(scaling) > largest]:
        path = too_large[0]
        raise FormatError(f"{folder / CONFIG}: the scaling {scalings[path]:g} of {path} is too large for {like.dtype}")
    base = base_fingerprint(part, held)
    if about(folder)["base_sha256"] not in (None, base):
        raise FormatError(_other_base(folder, model, base))
    inject(part, config)
    for remark in adapter.remarks + remarks:
        note(remark)
    state = part.state()
    for file_name, name in held.items():
        state[name][...] = asarray_like(arrays[file_name], state[name])
    model.freeze()
    return config


def _other_base(folder, model, sha256):
    """What the model is, as far as its config.json tells, and what the adapter needs."""
    told, config = about(folder), getattr(model, "config", {})
    came = f"sha256 {told['base_sha256'][:12]}..., this model's is {sha256[:12]}..."
    merged = config.get("merged_from")
    what = (
        f"; this model is {short(merged['model'])} with the adapter {short(merged['adapter'])} merged into it"
        if merged
        else ""
    )
    how = f"; give {short(told['base_model'])} as the model" if told["base_model"] else ""
    return f"{folder} was trained on other base weights ({came}){what}{how}"


def _is_within(array, largest):
    return array.dtype.kind == "f" and bool(np.all(np.abs(array.astype("f8")) <= largest))


def _is_copy(name, array, params, arrays):
    """Whether it is the model's own weight of this name, as in a whole state dict, or saved beside by PEFT.

    Or, of a layer, what all layers share and the file has once more.
    """
    own = params.get(name.removeprefix(PREFIX).replace(".base_layer.", "."))
    if own is None and name.startswith(PREFIX):
        own = arrays.get(f"{WHOLE}{name.rpartition('.')[2]}")
    return own is not None and tuple(own.shape) == array.shape and np.array_equal(to_numpy(own), array)


def _part(model, cls, arrays):
    """What the adapter was trained on: the model, or its encoder, if the tensors' names begin inside that."""
    inner = model.children.get(model.encoder)
    if inner is None or any(name.startswith(f"{PREFIX}{model.encoder}.") for name in arrays):
        return model
    paths = own_tensors(cls, arrays).keys()
    return inner if paths and paths <= linear_layers(inner).keys() else model


def _fitted(config, model):
    """(the config without what this model has no layer for, a line on what that was), as PEFT reads it.

    "all-linear" in a file spares no classifier: the task's type has put that among modules_to_save.
    """
    paths, weights = linear_layers(model), [path for path, layer in model.named_layers() if layer.params]
    there = [m for m in config.modules_to_save if any(is_saved(path, m) for path in (*paths, *weights))]
    config = replace(config, modules_to_save=there)  # an embedding may be one, and norms
    if config.target_modules == ALL:
        spared = (*config.modules_to_save, *model.output_modules)
        free = [p for p in paths if not any(is_saved(p, m) for m in spared)]
        return replace(config, target_modules=free), []
    if isinstance(config.target_modules, str):
        return config, []
    used = [t for t in config.target_modules if any(is_target(p, t) for p in paths)]
    unused = [t for t in config.target_modules if t not in used]
    if not used or not unused:
        return config, []
    lines = (
        f"target module {unused[0]!r}{f' (and {len(unused) - 1} more)' if unused[1:] else ''} matches no linear layer"
    )
    return replace(config, target_modules=used), [lines]
