"""PEFT adapter folders, written and read without torch: adapter_config.json and adapter_model.safetensors.

A third file, lorabook.json, holds what PEFT has no place for; see `about`.
"""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from . import hub
from .adapter_formats import CONFIG, FOLDER, OWN, PREFIX, TENSORS, read_adapter_config, read_folder, saved_heads
from .adapters import inject
from .adapters.inject import adapters, base_params, linear_layers, select
from .adapters.lora import scaling_of
from .adapters.selection import ALL, is_saved, is_target
from .backend import array_namespace, asarray_like, to_numpy
from .configs import Rule, check_values, integer, optional, read_json, short
from .errors import FormatError, InputError
from .io import as_safetensors, fingerprint, write_together
from .notes import note

__all__ = ["about", "adapter_updates", "check_labels", "classes_of", "labels_of", "load_adapter",
           "read_adapter_config", "save_adapter"]  # fmt: skip

ABOUT = "lorabook.json"
SURROGATE = re.compile("[\ud800-\udfff]")  # so Python marks a byte of a file's name that is no text
RULES = {
    "base_sha256": Rule(
        "64 hexadecimal digits", lambda v: isinstance(v, str) and re.fullmatch("[0-9a-f]{64}", v), "0" * 64
    ),
    "base_model": optional(Rule("a name or a path", lambda v: isinstance(v, str))),
    "labels": optional(Rule("a list of names", lambda v: isinstance(v, list) and all(isinstance(n, str) for n in v))),
    "max_length": optional(integer(1)),
}


def _contents(names, config, chosen):
    """{name in the file: name in the model} of what an adapter of this config holds, over the parameters `names`.

    chosen: the adapted layers, which PEFT keeps in `base_layer`.
    """
    held = {f"{PREFIX}{path}.{n}.weight": f"{path}.{n}" for path in chosen for n in ("lora_A", "lora_B")}
    for name in names:
        if config.trains_in_full(name, chosen):
            path, _, kind = name.rpartition(".")
            held[f"{PREFIX}{path}.base_layer.{kind}" if path in chosen else f"{PREFIX}{name}"] = name
    return held


def base_fingerprint(model, held):
    """sha256 of the weights under an adapter: all but those that it holds itself."""
    held = set(held.values())
    return fingerprint({name: array for name, array in base_params(model).items() if name not in held})


# ---- writing ---------------------------------------------------------------------------------------------------------


def save_adapter(folder, model, config, base_model=None, task_type=None, labels=None, max_length=None):
    """Write the adapter of a model as a PEFT adapter folder.

    model: has adapters from `inject(model, config)`. base_model: known name, or folder, of the model under it.
    task_type: PEFT's, e.g. "SEQ_CLS". labels: names of the classes, in order. max_length: tokens of a text, at most.
    The folder is created, with its parents; what it held stays if the new content cannot be written. PEFT gives the
    classes their names with `AutoPeftModelForSequenceClassification.from_pretrained(folder, id2label=names)`, where
    names = dict(enumerate(labels)); a config.json with them would make transformers look for a whole model here.
    Raises InputError, with nothing written, if the config is not that of the model, or if something trains that a PEFT
    folder has no place for; OSError if the folder cannot be written.
    """
    model.refuse_merged(before="saving the adapter")  # the sha256 below is that of the base weights
    params, layers = model.named_params(), adapters(model)
    config = _with_heads(config, model, task_type)
    chosen = select(model, config)
    _check_made_with(config, chosen, layers)
    held = _contents(base_params(model), config, chosen)
    if more := sorted(model.trainable_params().keys() - held.values()):
        raise InputError(f"{more[0]} trains, but is in no adapter; name its layer in modules_to_save, or freeze it")
    base = _base_name(base_model)
    options = {
        "peft_type": "LORA",
        "task_type": task_type,
        "base_model_name_or_path": hub.public_name(base),
        "inference_mode": True,
        "use_dora": False,
        "fan_in_fan_out": False,
    }
    options |= {name: value if value != () else None for name in OWN for value in [getattr(config, name)]}
    # What an expression, or "all-linear", takes in depends on what else a model has: there, Dropout; so names, as PEFT.
    options["target_modules"] = sorted(chosen if isinstance(config.target_modules, str) else config.target_modules)
    options = dict(sorted(options.items()))  # not sort_keys: where patterns overlap, the first one counts
    sha256 = base_fingerprint(model, held)
    about = {"base_sha256": sha256, "base_model": base, "labels": labels, "max_length": max_length}
    tensors = as_safetensors({file: params[name] for file, name in held.items()}, {"format": "pt"})
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


def _check_made_with(config, chosen, layers):
    """Raise InputError unless these adapter layers are what the config makes."""
    ranks = config.for_layers(chosen)
    says = {path: f"r={r}, lora_alpha={alpha}, use_rslora={config.use_rslora}" for path, (r, alpha) in ranks.items()}
    has = {p: f"r={a.r}, lora_alpha={a.lora_alpha}, use_rslora={a.use_rslora}" for p, a in layers.items()}
    if other := [path for path in [*has, *says] if has.get(path) != says.get(path)]:
        came = f"{other[0]} has {has.get(other[0], 'no adapter')}, the config says {says.get(other[0], 'none')}"
        raise InputError(f"{came}; pass the config that made the adapters")


def _base_name(base_model):
    """A base model as a later run finds it: its known name, or the absolute path of its folder.

    None for a path of bytes that are no text, which JSON cannot hold: a later run must be given it.
    """
    name = base_model and hub.known_name(str(base_model))
    name = str(Path(name).absolute()) if name and name not in hub.known() and Path(name).is_dir() else name
    return None if name and SURROGATE.search(name) else name


def about(folder):
    """What lorabook.json in an adapter folder says, as a dict; a value is None where nothing is known.

    base_sha256: of the weights under the adapter. base_model: a name or path that `hub.locate` takes. labels: the names
    of the classes, in order. max_length: tokens of a text, at most. A folder that PEFT wrote knows its base model only.
    """
    path = Path(folder) / ABOUT
    content = read_json(path) if path.exists() else {}
    check_values(path, content, RULES)
    told = {name: content.get(name) for name in RULES}
    if told["base_model"] is None:
        base = read_json(Path(folder) / CONFIG, FOLDER).get("base_model_name_or_path")
        told["base_model"] = hub.known_name(base) if isinstance(base, str) else None
    return told


def load_adapter(folder, model):
    """Inject the adapter of a PEFT folder into the model and load it, frozen; returns its LoRAConfig.

    Everything is checked before the model is touched: every tensor by name and shape, the base weights by the sha256 in
    lorabook.json where there is one.
    """
    folder = Path(folder)
    adapter = read_folder(folder)
    part = _part(model, adapter.arrays)
    try:
        config, remarks = _fitted(adapter.config, part)
        chosen = select(part, config)
        ranks = config.for_layers(chosen)
    except InputError as error:
        raise FormatError(f"{folder / CONFIG} does not fit the model: {error}") from None
    params, layers = part.named_params(), linear_layers(part)
    held = _contents(params, config, chosen)
    shapes = {n: tuple(array.shape) for n, array in params.items()}
    for path in chosen:
        d_out, d_in = layers[path].params["weight"].shape
        shapes |= {f"{path}.lora_A": (ranks[path][0], d_in), f"{path}.lora_B": (d_out, ranks[path][0])}
    arrays = {n: a for n, a in adapter.arrays.items() if n in held or not _is_copy(n, a, params)}
    wrong = [f"missing {n}" for n in sorted(held.keys() - arrays.keys())]
    wrong += [f"unexpected {n}" for n in sorted(arrays.keys() - held.keys())]
    known = {n: arrays[n] for n in sorted(held.keys() & arrays.keys())}
    wrong += [
        f"{n} has shape {a.shape}, expected {shapes[held[n]]}" for n, a in known.items() if a.shape != shapes[held[n]]
    ]
    like = next(iter(params.values()))
    largest = float(array_namespace(like).finfo(like.dtype).max)
    wrong += [
        f"{n} holds no numbers that {like.dtype} can hold" for n, a in known.items() if not _is_within(a, largest)
    ]
    if wrong:
        more = f" (and {len(wrong) - 5} more)" if len(wrong) > 5 else ""
        raise FormatError(f"{folder / TENSORS} does not fit the model: {'; '.join(wrong[:5])}{more}")
    scalings = {path: scaling_of(*ranks[path], config.use_rslora) for path in chosen}
    if too_large := [path for path, scaling in scalings.items() if abs(scaling) > largest]:
        path = too_large[0]
        raise FormatError(f"{folder / CONFIG}: the scaling {scalings[path]:g} of {path} is too large for {like.dtype}")
    base = base_fingerprint(part, held)
    if about(folder)["base_sha256"] not in (None, base):
        raise FormatError(_other_base(folder, model, base))
    inject(part, config)
    for remark in adapter.remarks + remarks:
        note(remark)
    params = part.named_params()
    for file_name, name in held.items():
        params[name][...] = asarray_like(arrays[file_name], params[name])
    model.freeze()
    return config


def _other_base(folder, model, sha256):
    """What the model is, as far as its config.json tells, and what the adapter needs."""
    told, config = about(folder), getattr(model.children.get(model.encoder, model), "config", {})
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


def _is_copy(name, array, params):
    """Whether it is the model's own weight of this name, as in a whole state dict, or saved beside by PEFT."""
    own = params.get(name.removeprefix(PREFIX).replace(".base_layer.", "."))
    return own is not None and tuple(own.shape) == array.shape and np.array_equal(to_numpy(own), array)


def _part(model, arrays):
    """What the adapter was trained on: the model, or its encoder, if the tensors' names begin inside that."""
    inner = model.children.get(model.encoder)
    if inner is None or any(name.startswith(f"{PREFIX}{model.encoder}.") for name in arrays):
        return model
    paths = {name.removeprefix(PREFIX).partition(".lora_")[0] for name in arrays if ".lora_" in name}
    return inner if paths and paths <= linear_layers(inner).keys() else model


def _fitted(config, model):
    """(the config without what this model has no layer for, a line on what that was), as PEFT reads it.

    "all-linear" in a file spares no output layer: the task's type has put that among modules_to_save.
    """
    paths = linear_layers(model)
    config = replace(config, modules_to_save=[m for m in config.modules_to_save if any(is_saved(p, m) for p in paths)])
    if config.target_modules == ALL:
        free = [p for p in paths if not any(is_saved(p, m) for m in config.modules_to_save)]
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


def labels_of(folder):
    """The names of the classes that an adapter was trained on, in order; None for one that PEFT wrote."""
    return about(folder)["labels"]


def classes_of(folder):
    """The number of classes of the classifier that an adapter holds, by its shape; None if it holds none."""
    weight = read_folder(folder).arrays.get(f"{PREFIX}classifier.weight")
    if weight is not None and weight.ndim != 2:
        raise FormatError(
            f"{Path(folder) / TENSORS}: expected classifier.weight (classes, d); got the shape {weight.shape}"
        )
    return None if weight is None else weight.shape[0]


def check_labels(folder, labels):
    """Raise InputError unless the adapter was trained on exactly these labels, in this order."""
    if (saved := labels_of(folder)) is not None and saved != list(labels):
        raise InputError(f"{folder} was trained on the labels {saved}; the data has {list(labels)}")


def adapter_updates(folder):
    """{path: scaling * lora_B @ lora_A (d_out, d_in)} of an adapter folder, in float64: no model is needed."""
    adapter = read_folder(folder)
    first = {n.removeprefix(PREFIX).removesuffix(".lora_A.weight"): n for n in adapter.arrays if ".lora_A." in n}
    updates, ranks = {}, adapter.config.for_layers(first)
    for path, name in first.items():
        A, B = adapter.arrays[name], adapter.arrays.get(name.replace(".lora_A.", ".lora_B."))
        r = ranks[path][0]
        if B is None or A.ndim != 2 or B.ndim != 2 or not r == A.shape[0] == B.shape[1]:
            came = f"{A.shape} and {'none' if B is None else B.shape}"
            needs = f"lora_A (r, d_in) and lora_B (d_out, r) with r = {short(r)}"
            raise FormatError(f"{folder}: {path} needs {needs}, as {CONFIG} says; got {came}")
        scaling = scaling_of(*ranks[path], adapter.config.use_rslora)
        with np.errstate(all="ignore"):  # whoever reads it looks
            updates[path] = scaling * B.astype("f8") @ A.astype("f8")
    return updates
