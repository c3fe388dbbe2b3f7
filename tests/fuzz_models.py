"""Malformed files of models: weights, configs, indices, tokenizers. They join the kinds of `fuzz`."""

import functools
import json
import tempfile
from pathlib import Path

import numpy as np
import safetensors.numpy
from checks import tiny_bert, tiny_config, write_tokenizer
from fuzz import GENERATORS, Kind, damaged, pick, strange_json

from lorabook import InputError
from lorabook.data import encode, load_tokenizer
from lorabook.files import INDEX, WEIGHTS, read_safetensors, read_weights, write_safetensors
from lorabook.models import BertForSequenceClassification, label_names, read_config

ODD = (
    *("0", "-1", "4", "5", "16", "2.0", "true", "null", "[]", "[0]", "[-4]", "[0,16]", "[16,32]", "{}", '"I8"', '"X"'),
    *(str(2**62), f"[{2**63}]", f"[0,{2**62},{2**62}]", "[1e3]", "[99999999,99999999]", "9" * 400, "[" * 70 + "]" * 70),
)


def places(value, path=()):
    """The paths of everything inside a JSON value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inside:
        yield (*path, key)
        yield from places(item, (*path, key))


def mutated(rng, value, most=3):
    """The text of a JSON value in which up to `most` things are replaced, lost, or there twice."""
    value = json.loads(json.dumps(value))
    texts = []
    for _ in range(rng.integers(0, most + 1)):
        *outer, key = pick(rng, [*places(value)] or [("x",)])
        inside = value
        for step in outer:
            inside = inside[step]
        if isinstance(inside, dict) and rng.random() < 0.2:
            inside[pick(rng, ("@@twice", "", "more"))] = inside.pop(key)
        else:
            inside[key] = f"@@{len(texts)}"
            texts.append(strange_json(rng) if rng.random() < 0.3 else pick(rng, ODD))
    text = json.dumps(value)
    if isinstance(value, dict) and value:
        text = text.replace('"@@twice"', json.dumps(next(iter(value))))
    for i, replacement in enumerate(texts):
        text = text.replace(f'"@@{i}"', replacement)
    return text


def forged_header(rng):
    """Three tensors whose header says something else."""
    header = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
        "b": {"dtype": pick(rng, ("BF16", "F16", "I16")), "shape": [2, 2], "data_offsets": [16, 24]},
        "c": {"dtype": "U8", "shape": [], "data_offsets": [24, 25]},
    }
    text = mutated(rng, header).encode("utf-8", "surrogatepass")
    data = np.ones(25, "u1").tobytes() if rng.random() < 0.8 else rng.bytes(int(rng.integers(60)))
    whole = len(text).to_bytes(8, "little") + text + data
    return damaged(rng, whole, most=1) if rng.random() < 0.3 else whole


def forged_config(rng):
    """A config.json with labels."""
    config = tiny_config(id2label={"1": "b", "0": "a"}, label2id={"a": 0, "b": 1}, problem_type=None)
    text = mutated(rng, config).encode("utf-8", "surrogatepass")
    return damaged(rng, text) if rng.random() < 0.3 else text


def forged_index(rng):
    """The index of two parts."""
    index = {"metadata": {"total_size": 32}, "weight_map": {"a": "x.safetensors", "b": "y.safetensors"}}
    text = mutated(rng, index).encode("utf-8", "surrogatepass")
    if rng.random() < 0.2:
        text = text.replace(b"x.safe", pick(rng, (b"../x.safe", b"/x.safe", b"x\\\\n.safe", b"y.safe")))
    return damaged(rng, text) if rng.random() < 0.3 else text


def read_index(path):
    """As a model in parts is read."""
    for name, tensor in (("x", "a"), ("y", "b")):
        if not (path.parent / f"{name}.safetensors").exists():
            write_safetensors(path.parent / f"{name}.safetensors", {tensor: np.ones(4, "f4")})
    return read_weights(path.parent)


def damaged_weights(rng):
    """The weights of a tiny model, damaged, with numbers that are none, or under other names."""
    arrays = tiny_bert(np.random.default_rng(0), dtype="float32").named_params()
    if rng.random() < 0.5:
        array = pick(rng, list(arrays.values()))
        array[pick(rng, [*np.ndindex(array.shape)])] = pick(rng, (np.nan, np.inf, -np.inf, 3e38, 1e-45))
    for _ in range(rng.integers(3)):
        name = pick(rng, list(arrays))
        array, name = (
            arrays.pop(name),
            pick(rng, ("qa_outputs.x", name.replace("weight", "gamma"), name[5:], name + ".y")),
        )
        with np.errstate(all="ignore"):
            arrays[name] = pick(rng, (array, array.astype("f2"), array.astype("i8"), array[..., :1], array[None]))
    content = safetensors.numpy.save({n: np.ascontiguousarray(a) for n, a in arrays.items()})
    return damaged(rng, content, most=2) if rng.random() < 0.4 else content


def read_model(path):
    """As every command does; an error names the folder, or the file in it."""
    (path.parent / "config.json").write_text(json.dumps(tiny_config()))
    try:
        return BertForSequenceClassification.from_pretrained(path.parent, labels=3)
    except InputError as error:
        if str(path.parent) in str(error):
            raise InputError(f"{path.name} in {error}") from None
        raise


def part(kind, **options):
    """A part of a tokenizer.json."""
    return {"type": kind} | options


@functools.cache
def tiny_tokenizer():
    """The content of a tokenizer.json."""
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder) / "tokenizer.json")
        return json.loads((Path(folder) / "tokenizer.json").read_text())


FEW = {"a": 0, "film": 1, "##s": 2, "[UNK]": 3, "good": 4}
TEMPLATE = [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
CLS = {"[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]}}
PARTS = {
    "model": (
        part("WordPiece", unk_token="[UNK]", continuing_subword_prefix="##", max_input_chars_per_word=5, vocab=FEW),
        part("BPE", vocab=FEW | {"fi": 5, "f": 6, "i": 7}, merges=[["f", "i"]], unk_token="[UNK]"),
        part("Unigram", vocab=[["a", -1.0], ["film", -2.5], ["[UNK]", 0.0]], unk_id=2, byte_fallback=False),
        part("WordLevel", vocab=FEW, unk_token="[NONE]"),
    ),
    "post_processor": (
        part("TemplateProcessing", single=TEMPLATE, pair=[*TEMPLATE, *TEMPLATE], special_tokens=CLS),
        part("TemplateProcessing", single=TEMPLATE, pair=TEMPLATE, special_tokens={}),
        part("RobertaProcessing", sep=["[SEP]", 3], cls=["[CLS]", 2], trim_offsets=True, add_prefix_space=True),
        None,
    ),
    "normalizer": (
        part("BertNormalizer", clean_text=True, handle_chinese_chars=True, strip_accents=None, lowercase=True),
        part("Replace", pattern={"Regex": "(a|b"}, content="c"),
        part("Sequence", normalizers=[part("NFKC"), part("Replace", pattern={"String": ""}, content="c")]),
    ),
    "truncation": ({"max_length": 2, "strategy": "LongestFirst", "stride": 9, "direction": "Right"},),
    "added_tokens": (
        [
            {"id": i, "content": word, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
            | {"special": True}
            for i, word in ((2, "[CLS]"), (2**32 - 1, "film"), (7, ""))
        ],
    ),
}


def forged_tokenizer(rng):
    """A tokenizer.json with other things in it."""
    content = dict(tiny_tokenizer())
    for key, choices in PARTS.items():
        if rng.random() < 0.3:
            content[key] = pick(rng, choices)
    text = mutated(rng, content, most=1).encode("utf-8", "surrogatepass")
    return damaged(rng, text) if rng.random() < 0.2 else text


def read_tokenizer(path):
    """As every command does."""
    return encode(load_tokenizer(path.parent, 9), ["a film", "Good, bad and fine\n", "", "\U0001f600\0"])


GENERATORS |= {
    "safetensors": Kind(forged_header, read_safetensors, ".safetensors"),
    "config": Kind(forged_config, lambda path: label_names(read_config(path.parent)), "config.json"),
    "index": Kind(forged_index, read_index, INDEX),
    "weights": Kind(damaged_weights, read_model, WEIGHTS),
    "tokenizer": Kind(forged_tokenizer, read_tokenizer, "tokenizer.json"),
}
