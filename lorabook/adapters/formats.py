"""Adapter folders as others write them, brought to one form: a `LoRAConfig`, and tensors under PEFT's names.

PEFT's own folders, of old versions too; state dicts of a live PEFT model, which have the adapter's name in every key;
and folders of mlx-lm.
"""

import re
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from ..errors import FormatError, InputError
from ..files import check_values, integer, number, optional, read_json, read_safetensors, short
from .config import AdapterConfig
from .lora_config import LoRAConfig
from .methods import METHODS, class_of, of_peft

CONFIG, TENSORS, MLX_TENSORS = "adapter_config.json", "adapter_model.safetensors", "adapters.safetensors"
FOLDER = "a PEFT adapter folder"
PREFIX, WHOLE = "base_model.model.", "base_model."  # of a layer's tensors; of one that all layers share
NULL = ("exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save", "feedforward_modules")
# options that null turns off; so it does all patterns
INFORMATION = ("peft_type", "peft_version", "base_model_name_or_path", "revision", "task_type", "inference_mode",
               "auto_mapping", "megatron_core", "qalora_group_size", "runtime_config", "eva_config")  # fmt: skip
# What PEFT saves in full for a task, whatever the model calls its head: a fact of its files, not of our models.
HEADS = {"SEQ_CLS": ("classifier", "score"), "TOKEN_CLS": ("classifier", "score"), "QUESTION_ANS": ("qa_outputs",)}


@dataclass
class AdapterFolder:
    """What a folder holds: its config, {PEFT's name: array}, and what its reader should be told, a line each."""

    config: AdapterConfig
    arrays: dict
    remarks: list


def read_folder(folder):
    """The `AdapterFolder` at a path. An option that is on, but not implemented here, is refused by name."""
    folder = Path(folder)
    options = read_json(folder / CONFIG, FOLDER)
    if _is_mlx(options):
        return _read_mlx(folder, options)
    config = _read_options(folder / CONFIG, options)
    if not (folder / TENSORS).exists() and (folder / "adapter_model.bin").exists():
        how = "save it again in PEFT: model.save_pretrained(folder, safe_serialization=True)"
        raise InputError(f"{folder}/adapter_model.bin is a pickle, which can run code and is not opened; {how}")
    cls = class_of(config)
    arrays, adapter = _plain_names(folder / TENSORS, read_safetensors(folder / TENSORS)[0], cls.tensors | cls.shared)
    named = f"{folder / TENSORS} has the adapter's name {adapter!r} in its keys, as the state dict of a live model"
    return AdapterFolder(config, arrays, [f"{named}; read all the same"] if adapter else [])


def read_adapter_config(folder):
    """The config of an adapter folder. An option that is on, but not implemented here, is refused by name."""
    path = Path(folder) / CONFIG
    options = read_json(path, FOLDER)
    return _read_mlx(Path(folder), options).config if _is_mlx(options) else _read_options(path, options)


def saved_heads(task_type):
    """The modules that PEFT saves in full, whatever modules_to_save says, in an adapter of this task_type."""
    return HEADS.get(task_type, ()) if isinstance(task_type, str) else ()


# ---- PEFT ------------------------------------------------------------------------------------------------------------


def _read_options(path, options):
    if (cls := of_peft(options)) is None:
        *others, last = dict.fromkeys(repr(cls.peft_type) for cls in METHODS.values())
        known = f"{', '.join(others)} and {last} are" if others else f"{last} is"
        raise FormatError(f"{path}: peft_type is {short(options.get('peft_type'))}; only {known} implemented")
    if options.get("target_modules") is None:
        raise FormatError(f"{path}: target_modules is missing")
    known = {field.name for field in fields(cls.Config)}
    own = {n: v for n, v in options.items() if n in known and not (v is None and n in (*NULL, *cls.Config.patterns))}
    config = cls.Config.from_peft(path, own)  # which knows best why a start, with options of its own, is refused
    for name, value in options.items():
        if name not in known and name not in INFORMATION and not (_is_off(value) or cls.is_neutral(name, value)):
            raise FormatError(
                f"{path}: option {name}={short(value)} is not implemented here; convert the adapter to plain LoRA"
            )
    heads = [head for head in saved_heads(options.get("task_type")) if head not in config.modules_to_save]
    return replace(config, modules_to_save=[*config.modules_to_save, *heads])


def _is_off(value):
    """null, false, {} and []: what PEFT writes for an option that is not used. 0 is a value."""
    return value is None or value is False or (isinstance(value, dict | list) and not value)


def _plain_names(path, arrays, tensors):
    """({PEFT's name: array}, the name of the adapter if the keys have it, as in `lora_A.default.weight`).

    Of a saved module there may be copies: as it was before training (original_module), and where it trains
    (modules_to_save), which with bias="all" PEFT writes besides, and in a state dict of a live model is the only one.
    tensors: of the variant's class.
    """
    own = "|".join(sorted({re.escape(name.partition(".")[0]) for name in tensors.values()}))
    named = re.compile(rf"(\.(?:{own}))\.(?!(?:weight|bias)$)([^.]+)((?:\.(?:weight|bias))?)$")
    saved = re.compile(r"\.modules_to_save\.([^.]+)\.")
    found = {match[2] for name in arrays if (match := named.search(name))}
    found = found or {match[1] for name in arrays if (match := saved.search(name))}
    if len(found) > 1:
        raise FormatError(f"{path} holds several adapters, {', '.join(sorted(found))}; expected one a folder")
    (adapter,) = found or (None,)
    plain = {n: a for n, a in arrays.items() if ".original_module." not in n and ".modules_to_save." not in n}
    if adapter is None:
        return plain, None
    trained = {saved.sub(".", name): array for name, array in arrays.items() if f".modules_to_save.{adapter}." in name}
    live = any(map(named.search, arrays)) or trained.keys() - plain.keys()
    both = plain | trained if live else trained | plain
    return {named.sub(r"\1\3", name): array for name, array in both.items()}, adapter if live else None


# ---- mlx-lm ----------------------------------------------------------------------------------------------------------

MLX_RULES = {"rank": integer(1, 1_000_000), "scale": number(-1e30, 1e30), "dropout": number(0, 1, 0.0)}


def _is_mlx(options):
    return "peft_type" not in options and ("fine_tune_type" in options or "lora_parameters" in options)


def _read_mlx(folder, options):
    """mlx-lm keeps lora_a (d_in, r) and lora_b (r, d_out), and the scaling itself: alpha is scale * r.

    It adapts the layers called `keys` of the last num_layers blocks; which they are, the tensors tell.
    """
    path = folder / CONFIG
    if (kind := options.get("fine_tune_type", "lora")) != "lora":
        raise FormatError(f"{path}: fine_tune_type is {short(kind)}; only 'lora' is implemented")
    parameters = options.get("lora_parameters")
    if not isinstance(parameters, dict) or (more := sorted(parameters.keys() - MLX_RULES.keys() - {"keys"})):
        came = f"the unknown {short(more)}" if isinstance(parameters, dict) else short(parameters)
        raise FormatError(f"{path}: lora_parameters must hold rank, scale, dropout and keys; got {came}")
    check_values(path, parameters, MLX_RULES)
    check_values(path, options, {"num_layers": optional(integer(-1))})
    arrays, found = {}, read_safetensors(folder / MLX_TENSORS)[0]
    for name, array in found.items():
        where, _, factor = name.rpartition(".")
        if factor not in ("lora_a", "lora_b") or array.ndim != 2:
            raise FormatError(f"{folder / MLX_TENSORS}: {name} {array.shape} is no lora_a or lora_b of a linear layer")
        arrays[f"{PREFIX}{where}.lora_{factor[-1].upper()}.weight"] = np.ascontiguousarray(array.T)
    r, targets = parameters["rank"], sorted({name.rpartition(".")[0] for name in found})
    try:
        dropout = parameters.get("dropout", 0.0)
        config = LoRAConfig(r=r, lora_alpha=parameters["scale"] * r, lora_dropout=dropout, target_modules=targets)
    except InputError as error:
        raise FormatError(f"{path}: {error}") from None
    return AdapterFolder(
        config, arrays, [f"{folder} is an adapter of mlx-lm; read as LoRA with lora_alpha = scale * rank"]
    )
