"""PEFT adapter folders, written and read without torch: adapter_config.json and adapter_model.safetensors.

A third file, lorabook.json, holds what PEFT has no place for; see `about`.
"""

import json
import re
from dataclasses import replace
from pathlib import Path

from . import hub
from .adapters import LoRAConfig, inject
from .adapters.config import is_saved
from .adapters.inject import adapters, base_params
from .adapters.lora import scaling_of
from .backend import asarray_like
from .errors import FormatError, InputError
from .io import fingerprint, read_safetensors, write_atomic, write_safetensors
from .layers import Linear

TENSORS = "adapter_model.safetensors"
PREFIX = "base_model.model."
OWN = ("r", "lora_alpha", "target_modules", "use_rslora", "lora_dropout", "rank_pattern", "alpha_pattern",
       "modules_to_save", "bias", "init_lora_weights")  # fmt: skip
INFORMATION = ("peft_type", "peft_version", "base_model_name_or_path", "revision", "task_type", "inference_mode",
               "auto_mapping", "megatron_core", "qalora_group_size", "runtime_config", "eva_config")  # fmt: skip
ONLY_START = ("eva", "orthogonal", "mica")  # initialisations that choose other factors: what was trained is plain LoRA
CHANGE_BASE = ("pissa", "olora", "corda", "lora_ga")  # and those that take the first factors out of the base weights


def base_fingerprint(model):
    """sha256 of the weights that the adapter was trained on: all but its factors, saved modules and biases."""
    trained = model.trainable_params()
    return fingerprint({n: a for n, a in base_params(model).items() if n not in trained})


def _file_names(model):
    """{name in the model: name in the file} of everything that trains; PEFT keeps an adapted layer in `base_layer`."""
    layers = adapters(model)
    names = {}
    for name in model.trainable_params():
        path, _, kind = name.rpartition(".")
        if kind in ("lora_A", "lora_B"):
            names[name] = f"{PREFIX}{name}.weight"
        else:
            names[name] = f"{PREFIX}{path}.base_layer.{kind}" if path in layers else f"{PREFIX}{name}"
    return names


def save_adapter(folder, model, config, base_model=None, task_type=None, labels=None, max_length=None):
    """Write everything that trains as a PEFT adapter folder.

    model: has adapters from `inject(model, config)`. base_model: known name, or folder, of the model under it.
    task_type: PEFT's, e.g. "SEQ_CLS". labels: names of the classes, in order. max_length: tokens of a text, at most.
    """
    model.refuse_merged(before="saving the adapter")  # the sha256 below is that of the base weights
    folder, params = Path(folder), model.named_params()
    base = _base_name(base_model)
    options = {
        "peft_type": "LORA",
        "task_type": task_type,
        "base_model_name_or_path": hub.public_name(base),
        "inference_mode": True,
        "use_dora": False,
        "fan_in_fan_out": False,
    }
    options |= {name: getattr(config, name) for name in OWN}
    if not isinstance(config.target_modules, str):
        options["target_modules"] = sorted(config.target_modules)
    options["modules_to_save"] = list(config.modules_to_save) or None
    options = dict(sorted(options.items()))  # not sort_keys: where patterns overlap, the first one counts
    sha256 = base_fingerprint(model)
    about = {"base_sha256": sha256, "base_model": base, "labels": labels, "max_length": max_length}
    arrays = {file_name: params[name] for name, file_name in _file_names(model).items()}
    write_safetensors(folder / TENSORS, arrays, {"format": "pt"})
    write_atomic(folder / "lorabook.json", json.dumps(about, indent=2) + "\n")
    write_atomic(folder / "adapter_config.json", json.dumps(options, indent=2) + "\n")


def _base_name(base_model):
    """A base model as a later run finds it: its known name, or the absolute path of its folder."""
    name = base_model and hub.known_name(str(base_model))
    return str(Path(name).absolute()) if name and name not in hub.known() and Path(name).is_dir() else name


def about(folder):
    """What lorabook.json in an adapter folder says, as a dict; a value is None where nothing is known.

    base_sha256: of the weights under the adapter. base_model: a name or path that `hub.locate` takes. labels: the names
    of the classes, in order. max_length: tokens of a text, at most. A folder that PEFT wrote knows its base model only.
    """
    path = Path(folder) / "lorabook.json"
    content = _read_json(path) if path.exists() else {}
    told = {name: content.get(name) for name in ("base_sha256", "base_model", "labels", "max_length")}
    sha256, base, labels, max_length = told.values()
    if "base_sha256" in content and not (isinstance(sha256, str) and re.fullmatch("[0-9a-f]{64}", sha256)):
        raise FormatError(f"{path}: base_sha256 must be 64 hexadecimal digits; got {sha256!r}")
    if not isinstance(base, str | None):
        raise FormatError(f"{path}: base_model must be a name or a path; got {base!r}")
    if labels is not None and not (isinstance(labels, list) and all(isinstance(name, str) for name in labels)):
        raise FormatError(f"{path}: labels must be a list of names; got {labels!r}")
    if max_length is not None and (isinstance(max_length, bool) or not isinstance(max_length, int) or max_length < 1):
        raise FormatError(f"{path}: max_length must be a positive integer; got {max_length!r}")
    if base is None:
        base = _read_json(Path(folder) / "adapter_config.json").get("base_model_name_or_path")
        told["base_model"] = hub.known_name(base) if isinstance(base, str) else None
    return told


def _read_json(path):
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; expected a PEFT adapter folder") from None
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise FormatError(f"{path}: expected an object; got {type(content).__name__}")
    return content


def read_adapter_config(folder):
    """The LoRAConfig of an adapter folder. An option that is on, but not implemented here, is refused by name."""
    path = Path(folder) / "adapter_config.json"
    options = _read_json(path)
    if (kind := options.get("peft_type")) != "LORA":
        raise FormatError(f"{path}: peft_type is {kind!r}; only 'LORA' is implemented")
    init = _initialisation(path, options.get("init_lora_weights", True))
    for name, value in options.items():
        if name not in OWN + INFORMATION and value not in (None, False, {}, []):
            raise FormatError(
                f"{path}: option {name}={value!r} is not implemented here; convert the adapter to plain LoRA"
            )
    if options.get("target_modules") is None:
        raise FormatError(f"{path}: target_modules is missing")
    defaults = {"r": 8, "lora_alpha": 8}  # PEFT's, which a file may leave out
    own = {name: options[name] for name in OWN if options.get(name) is not None} | {"init_lora_weights": init}
    try:
        return LoRAConfig(**(defaults | own))
    except InputError as error:
        raise FormatError(f"{path}: {error}") from None


def _initialisation(path, init):
    """An adapter's init_lora_weights as LoRAConfig knows it; one that changed the base weights is refused."""
    name = init.lower() if isinstance(init, str) else init
    if name in ONLY_START:
        return True
    if name == "loftq":
        why = "was trained over quantised base weights, which are not in the folder; merge it in PEFT"
    elif isinstance(name, str) and name.startswith(CHANGE_BASE):
        how = "path_initial_model_for_weight_conversion of save_pretrained"
        why = f"changed the base weights; convert the adapter to plain LoRA in PEFT ({how})"
    elif name in (True, False, "gaussian"):
        return name
    else:
        why = "is unknown here and may have changed the base weights; convert the adapter to plain LoRA in PEFT"
    raise FormatError(f"{path}: init_lora_weights={init!r} {why}")


def _read_tensors(folder):
    """{name in the file: array} of an adapter folder."""
    if not (folder / TENSORS).exists() and (folder / "adapter_model.bin").exists():
        how = "save it again in PEFT: model.save_pretrained(folder, safe_serialization=True)"
        raise InputError(f"{folder}/adapter_model.bin is a pickle, which can run code and is not opened; {how}")
    arrays, _ = read_safetensors(folder / TENSORS)
    copies = (".original_module.", ".modules_to_save.")  # with bias="all" PEFT writes the head's bias three times
    return {name: a for name, a in arrays.items() if not any(copy in name for copy in copies)}


def load_adapter(folder, model):
    """Inject the adapter of a PEFT folder into the model and load it, frozen; returns its LoRAConfig.

    Everything is checked before the model is touched: every tensor by name and shape, the base weights by the sha256 in
    lorabook.json where there is one.
    """
    folder = Path(folder)
    config = read_adapter_config(folder)
    arrays = _read_tensors(folder)
    config = _fitted(config, model)
    expected = _expected(model, config)
    wrong = [f"missing {n}" for n in sorted(expected.keys() - arrays.keys())]
    wrong += [f"unexpected {n}" for n in sorted(arrays.keys() - expected.keys())]
    wrong += [
        f"{n} has shape {arrays[n].shape}, expected {shape}"
        for n, (_, shape) in sorted(expected.items())
        if n in arrays and arrays[n].shape != shape
    ]
    if wrong:
        more = f" (and {len(wrong) - 5} more)" if len(wrong) > 5 else ""
        raise FormatError(f"{folder / TENSORS} does not fit the model: {'; '.join(wrong[:5])}{more}")
    trained = {name for name, _ in expected.values()}
    base = fingerprint({n: a for n, a in model.named_params().items() if n not in trained})
    if (promised := about(folder)["base_sha256"]) not in (None, base):
        came = f"sha256 {promised[:12]}..., this model's is {base[:12]}..."
        raise FormatError(f"{folder} was trained on other base weights: {came}")
    inject(model, config)
    params = model.named_params()
    for file_name, (name, _) in expected.items():
        params[name][...] = asarray_like(arrays[file_name], params[name])
    model.freeze()
    return config


def labels_of(folder):
    """The names of the classes that an adapter was trained on, in order; None for one that PEFT wrote."""
    return about(folder)["labels"]


def classes_of(folder):
    """The number of classes of the classifier that an adapter holds, by its shape; None if it holds none."""
    folder = Path(folder)
    read_adapter_config(folder)  # is it an adapter folder at all?
    weight = _read_tensors(folder).get(f"{PREFIX}classifier.weight")
    if weight is not None and weight.ndim != 2:
        raise FormatError(f"{folder / TENSORS}: expected classifier.weight (classes, d); got the shape {weight.shape}")
    return None if weight is None else weight.shape[0]


def check_labels(folder, labels):
    """Raise InputError unless the adapter was trained on exactly these labels, in this order."""
    if (saved := labels_of(folder)) is not None and saved != list(labels):
        raise InputError(f"{folder} was trained on the labels {saved}; the data has {list(labels)}")


def _linears(model):
    return {path: layer for path, layer in model.named_layers() if isinstance(layer, Linear)}


def _fitted(config, model):
    """The config without the modules_to_save that the model lacks: PEFT lists both `classifier` and `score`."""
    paths = _linears(model)
    return replace(config, modules_to_save=[m for m in config.modules_to_save if any(is_saved(p, m) for p in paths)])


def _expected(model, config):
    """{name in the file: (name in the model, shape)} of what an adapter of this config holds for this model."""
    layers = _linears(model)
    chosen = config.select(layers)
    expected = {}
    for path in chosen:
        d_out, d_in = layers[path].params["weight"].shape
        r = config.for_layer(path)[0]
        expected[f"{PREFIX}{path}.lora_A.weight"] = f"{path}.lora_A", (r, d_in)
        expected[f"{PREFIX}{path}.lora_B.weight"] = f"{path}.lora_B", (d_out, r)
    for name, array in model.named_params().items():
        if config.trains_in_full(name, chosen):
            path, _, kind = name.rpartition(".")
            inside = f"{PREFIX}{path}.base_layer.{kind}" if path in chosen else f"{PREFIX}{name}"
            expected[inside] = name, tuple(array.shape)
    return expected


def adapter_updates(folder):
    """{path: scaling * lora_B @ lora_A (d_out, d_in)} of an adapter folder, in float64: no model is needed."""
    config, arrays = read_adapter_config(folder), _read_tensors(Path(folder))
    updates = {}
    for name, A in arrays.items():
        path, _, end = name.removeprefix(PREFIX).rpartition(".lora_A.")
        if end == "weight":
            B = arrays.get(name.replace(".lora_A.", ".lora_B."))
            if B is None or A.ndim != 2 or B.ndim != 2 or A.shape[0] != B.shape[1]:
                came = f"{A.shape} and {'none' if B is None else B.shape}"
                raise FormatError(f"{folder}: {path} needs lora_A (r, d_in) and lora_B (d_out, r); got {came}")
            r, lora_alpha = config.for_layer(path)
            scaling = scaling_of(r, lora_alpha, config.use_rslora)
            updates[path] = scaling * B.astype("f8") @ A.astype("f8")
    return updates
