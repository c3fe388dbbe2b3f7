"""Malformed adapter folders: configs with strange values and explosive expressions, tensors, what stands beside."""

import dataclasses
import json
from unittest import mock

import numpy as np
import safetensors.numpy
from checks import tiny_bert
from fuzz import GENERATORS, Kind, damaged, encoded, pick, strange_json

from lorabook import InputError
from lorabook.adapters import LoRAConfig, patterns, peft_folder, read_adapter_config

BLOCKS = [f"bert.encoder.layer.{i}.attention.self.{name}" for i in (0, 1) for name in ("query", "value")]
OPTIONS = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "target_modules": ["query", "value"], "bias": "none"}
PATTERNS = (
    "query",
    r".*\.query",
    "(?:query|key)",
    "(",
    "[[a]",
    "(?i)QUERY",
    "(?P<index>a)",
    "\0",
    "*",
    ".*" * 40,
)
EXPLOSIVE = ("(a+)+$", r"([a-z.]+)*\d", "(?:a?){40}", r"(.*a){25}(.)\2", "(?i)" + "[a-\U0010ffff]" * 200)
MLX = {"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": {"rank": 2, "scale": 1.5, "keys": ["query"]}}
BESIDE = {"base_sha256": "0" * 64, "base_model": "minilm", "labels": ["a", "b"], "max_length": 9}
BESIDE["training_texts"] = "0123456789ab"


def strange_value(rng):
    """The text of a JSON value for an option that may be a regular expression."""
    kind = rng.random()
    if kind < 0.01:
        return json.dumps(pick(rng, EXPLOSIVE))
    if kind < 0.1:
        return json.dumps({pick(rng, PATTERNS): pick(rng, (0, 1, 2.5, None, "2"))})
    if kind < 0.2:
        return json.dumps(pick(rng, PATTERNS))
    if kind < 0.4:
        return json.dumps(pick(rng, ([], [0], 0, 1, -1, True, False, 0.0, ["query"], [""], [[]], {}, "eva", "pissa")))
    return strange_json(rng)


def changed(options, names):
    """A generator of JSON objects: these options, with strange values for some of these names."""

    def make(rng):
        texts = {name: json.dumps(value) for name, value in options.items()}
        texts |= {pick(rng, names): strange_value(rng) for _ in range(rng.integers(4))}
        text = "{" + ",".join(f"{json.dumps(name)}:{value}" for name, value in texts.items()) + "}"
        return encoded(rng, text) if rng.random() < 0.2 else text.encode("utf-8", "surrogatepass")

    return make


def adapter_tensors(rng):
    """A safetensors file of an adapter, whole or damaged, with numbers that are none, too few or too many tensors."""
    arrays = {}
    for path in BLOCKS[int(rng.integers(2)) * int(rng.random() < 0.2) :]:
        for factor, shape in (("lora_A", (2, 6)), ("lora_B", (6, 2))):
            array = rng.standard_normal(shape).astype(pick(rng, ("f4", "f4", "f8", "f2")))
            array[0, 0] = pick(rng, (1, 1, 1, 1, np.nan, np.inf)) if rng.random() < 0.1 else 1
            infix = pick(rng, ("", "", "", ".default", ".b")) if rng.random() < 0.1 else ""
            arrays[f"base_model.model.{path}.{factor}{infix}.weight"] = array
    content = safetensors.numpy.save(arrays)
    return damaged(rng, content) if rng.random() < 0.6 else content


def select(path):
    """Read an adapter's config, and choose layers by it, in less time than a user is given."""
    with mock.patch.object(patterns, "SECONDS", 0.5):
        config = read_adapter_config(path.parent)
        try:
            config.for_layers(config.select(BLOCKS))
        except InputError as error:
            raise InputError(f"{path}: {error}") from None


def select_mlx(path):
    """The same for a folder of mlx-lm."""
    factors = {f"{BLOCKS[0]}.lora_a": np.ones((6, 2), "f4"), f"{BLOCKS[0]}.lora_b": np.ones((2, 6), "f4")}
    safetensors.numpy.save_file(factors, path.parent / "adapters.safetensors")
    select(path)


def read_beside(path):
    """What lorabook.json says."""
    (path.parent / "adapter_config.json").write_text(json.dumps(OPTIONS))
    peft_folder.about(path.parent)


def load_tensors(path):
    """Load an adapter into a model."""
    (path.parent / "adapter_config.json").write_text(json.dumps(OPTIONS))
    peft_folder.load_adapter(path.parent, tiny_bert(np.random.default_rng(0), dtype="float32"))


OWN = [field.name for field in dataclasses.fields(LoRAConfig)]
GENERATORS |= {
    "adapter_config": Kind(
        changed(OPTIONS, (*OWN, "use_dora", "task_type", "an_option")), select, "adapter_config.json"
    ),
    "adapter_mlx": Kind(changed(MLX, (*MLX, "peft_type")), select_mlx, "adapter_config.json"),
    "adapter_beside": Kind(changed(BESIDE, tuple(BESIDE)), read_beside, "lorabook.json"),
    "adapter_tensors": Kind(adapter_tensors, load_tensors, "adapter_model.safetensors"),
}
