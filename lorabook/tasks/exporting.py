"""A model with its adapter, written for other programs: merged, as a folder or a GGUF file, or the adapter alone.

What is written is read back, and held against what it was made from, before it gets its name.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..adapters import adapters, as_plain, config_of, merge, unload
from ..backend import data_like, to_numpy
from ..data import gguf_tokenizer_files
from ..errors import InputError
from ..files import FilesTogether, GGUFArray, output_folder, read_gguf, write_gguf
from ..layers import dequantize
from ..models import (
    DTYPES,
    FACTORS,
    KINDS,
    LOSS,
    TOKENIZER_FILES,
    causal_lm_of,
    gguf_adapter,
    gguf_merged,
    load_causal_lm,
    load_classifier,
    open_causal_lm,
    read_gguf_adapter,
    save_decoder,
    save_pretrained,
)

MERGED, PROBE = "model.gguf", 16
MORE_FILES = ("chat_template.jinja", "generation_config.json", "tokenizer_config.json")  # of the base, if need be
CLOSE = 1e-3  # of the largest logit: more than rounding does to a whole model in float32
NOTHING = "; nothing was kept"


class Written(NamedTuple):
    """files: their names. difference: of the logits from those of the base with the adapter beside its weights, the
    largest, as a share of the largest logit. error: |W_file - W| / |W| of a matrix, at most. changed: how many tensors
    of a GGUF base got other numbers.
    """

    files: list
    difference: float
    error: float
    changed: int | None = None


# ---- what is written -------------------------------------------------------------------------------------------------


def write_classifier(out, model, source, merged_from=None):
    """Merge the adapter of a classifier of texts into it, and write it as a Hugging Face folder. Returns `Written`.

    model: of this `loading.Source`, with its adapter in place, not merged; it is plain afterwards, here and below.
    """
    before, told, labels = _merged(model), [], list(source.labels)

    def check(folder):
        told[:] = check_same(model, load_classifier(folder, len(labels)), before)

    options = {"tokenizer_files": source.tokenizer_files, "merged_from": merged_from, "check": check}
    files = save_pretrained(out, model, source.tokenizer_folder, labels, **options)
    return Written(files, *told)


def write_folder(out, model, source, dtype=None, merged_from=None):
    """The same of a decoder; see `save_decoder`. source: the `decoders.DecoderSource`, whose tokenizer goes along.

    dtype: "float32" or "float16"; default float32, but of a quantised base it must be said.
    """
    check_dtype(source, model, False, dtype)
    files, before, told = tokenizer_files(source.files, source.adapter), _merged(model), []
    limit = LOSS["F16" if dtype == "float16" else "F32"]

    def check(folder):
        told[:] = check_same(model, load_causal_lm(folder), before, dict.fromkeys(model.named_params(), limit))

    files = save_decoder(out, model, files, dtype or "float32", merged_from=merged_from, check=check)
    return Written(files, *told)


def write_merged_gguf(out, model, source, dtype=None):
    """The same as one file, `out`/model.gguf: the base's, with other numbers where the update changes them.

    dtype: of what changed; see `gguf_merged`.
    """
    check_dtype(source, model, True, dtype)
    before = _merged(model)
    metadata, tensors = gguf_merged(source.files.path, model, dtype)
    new = {name: tensor.kind for name, tensor in tensors.items() if isinstance(tensor, GGUFArray)}
    with FilesTogether(out) as place:
        write_gguf(place(MERGED), metadata, tensors)
        config, weights = open_causal_lm(place(MERGED), *read_gguf(place(MERGED)))
        limits = {name: LOSS[new.get(weight.tensor.name, "F32")] for name, weight in weights.items()}
        told = check_same(model, causal_lm_of(place(MERGED), config, weights), before, limits)
    return Written(place.files, *told, len(new))


def check_dtype(source, model, gguf, dtype):
    """Raise InputError unless the base and its adapter can be written so: as a GGUF file, or a folder; see above.

    For whoever asks before the work begins.
    """
    opened = source.files
    if gguf and not hasattr(opened, "metadata"):
        how = "convert the merged folder with llama.cpp's convert_hf_to_gguf.py, or write the adapter alone: export"
        raise InputError(f"{source.base} is no GGUF file, from which a merged one has its tokenizer; {how}")
    changed = {f"{path}.weight" for path in adapters(model)} if gguf else opened.weights
    kinds = sorted({w.dtype for name, w in opened.weights.items() if name in changed and w.dtype.startswith("Q")})
    if dtype is None and kinds:
        known = ", ".join(KINDS if gguf else DTYPES)
        what = "its update would be lost in rounding to that again" if gguf else "a folder holds floats"
        raise InputError(f"{opened.path} is quantised ({', '.join(kinds)}), and {what}; say --dtype: {known}")


def write_adapter_gguf(path, model, dtype="float32", name=None):
    """Write the LoRA adapter of a decoder as a GGUF file at `path`: see `gguf_adapter`. Returns how many it adapts."""
    path = Path(path)
    metadata, tensors = gguf_adapter(model, dtype, name)
    limit = max(LOSS[FACTORS[dtype]], 1e-6)  # B may be another multiple of its own
    with output_folder(path.parent) as folder, FilesTogether(folder) as place:
        write_gguf(place(path.name), metadata, tensors)
        found, chosen = read_gguf_adapter(place(path.name), model.config), adapters(model)
        if found.keys() != chosen.keys():
            raise RuntimeError(f"the adapter was read back, and adapts other layers{NOTHING}")
        plain = model.named_params() | as_plain(config_of(model), chosen)[1]
        for layer, (A, B, scaling) in found.items():
            own = {factor: to_numpy(plain[f"{layer}.{factor}"]) for factor in ("lora_A", "lora_B")}
            _check_error(f"{layer}.lora_A", A, own["lora_A"], limit)
            _check_error(f"{layer}.lora_B", scaling * B, chosen[layer].scaling * own["lora_B"], limit)
    return len(found)


def tokenizer_files(opened, adapter=None):
    """{name: bytes or text} of what a folder needs to read texts; opened: `DecoderSource.files`.

    The files beside the adapter, if it has a tokenizer of its own, else those of the base; of a GGUF file they are made
    from what is in it.
    """
    if hasattr(opened, "metadata"):
        return gguf_tokenizer_files(opened.path, opened.metadata)
    own = adapter if adapter and (adapter / "tokenizer.json").exists() else opened.path
    places = [opened.path / name for name in MORE_FILES] + [own / name for name in TOKENIZER_FILES]
    return {place.name: place.read_bytes() for place in places if place.is_file()}


# ---- read back -------------------------------------------------------------------------------------------------------


def _merged(model):
    """The logits of a model before its adapter is merged into it, which it is afterwards, in dense weights."""
    logits = probe(model)
    merge(model)
    unload(model)
    dequantize(model)
    return logits


def probe(model):
    """Logits (1, T, V) or (1, k) of a few tokens, always the same: what tells two models apart."""
    T, words = min(PROBE, model.sizes.longest), model.sizes.vocab_size
    ids = np.random.default_rng(0).integers(0, words, (1, T))
    like = next(iter(model.named_params().values()))
    batch = data_like({"input_ids": ids, "attention_mask": np.ones_like(ids)}, like)
    return to_numpy(model.answer(batch)).astype("f8")


def check_same(model, reloaded, before, limits=None):
    """(difference of the logits, largest error of a weight) of a merged model and the same read back; see `Written`.

    before: logits of the model with the adapter beside its weights. limits: {parameter: the error that its type in the
    file may make}, 0 for others. InputError where one is larger, RuntimeError where the logits are another model's.
    """
    theirs, limits = reloaded.named_params(), limits or {}
    worst = max(
        _check_error(name, to_numpy(theirs[name]), to_numpy(array), limits.get(name, 0.0))
        for name, array in model.named_params().items()
    )
    logits = probe(reloaded)
    difference = float(np.abs(logits - before).max() / max(np.abs(before).max(), 1e-30))
    if not worst and not difference <= CLOSE:
        raise RuntimeError(
            f"the merged model was read back, and its logits are {difference:.1e} of the largest away from those of "
            f"the base with its adapter{NOTHING}"
        )
    return difference, worst


def _check_error(name, came, want, limit):
    """|came - want| / |want|, by Frobenius norms, or InputError: above the limit."""
    error = np.inf
    if came.shape == want.shape:
        size, distance = (float(np.linalg.norm(a)) for a in (want, came - want))
        error = distance / size if size else distance
    if not error <= limit:
        how = "its numbers are too small for the type; write float32" if limit else "the file is not what was written"
        raise InputError(f"{name} was read back with an error of {error:.1e} of its size: {how}{NOTHING}")
    return error
