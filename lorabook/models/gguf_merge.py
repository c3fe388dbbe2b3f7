"""A GGUF file with an update in its weights: what did not change is copied, byte for byte."""

import numpy as np

from ..adapters import adapters
from ..backend import to_numpy
from ..errors import InputError
from ..files import GGUFArray, read_gguf, short
from ..layers import distinct
from .gguf_llama import gguf_name, llama_of_gguf, permuted, turned_heads

KINDS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0"}  # what changed can be written as
# |W_file - W| / |W| is below this, by Frobenius norms: half of a last place; of Q8_0 half of 1/127 of the largest of
# 32, which is sqrt(32) times their root mean square at most. Numbers too small for a type lose more.
LOSS = {"F32": 0.0, "F16": 2.0**-11, "BF16": 2.0**-8, "Q8_0": 0.023}
FILE_TYPES = {"F32": 0, "F16": 1, "Q8_0": 7, "BF16": 32}  # what llama.cpp calls a file of mostly such tensors


def gguf_merged(path, model, dtype=None):
    """(metadata, {name: GGUFTensor or GGUFArray}) for `files.write_gguf`.

    path: of the base. model: the same base as a decoder, with the update in its weights: merged and unloaded. A matrix
    whose numbers are still those of the file stays as it is, raw; one that changed is written as `dtype`, one of KINDS,
    by default the one that it has, if that is of floats. A row that is not whole blocks of Q8_0 becomes F16, and
    vectors F32. Where the head was tied to the embedding and got an update of its own, the file has both.

    Raises InputError if a quantised matrix changed and no dtype is given, or an adapter is not merged.
    """
    if left := adapters(model):
        raise InputError(f"{next(iter(left))} has an adapter that is not merged; call merge and unload before")
    if dtype is not None and dtype not in KINDS:
        raise InputError(f"dtype must be one of {', '.join(KINDS)}; got {short(dtype)}")
    kind = KINDS.get(dtype)
    metadata, tensors = read_gguf(path)
    config, base = llama_of_gguf(path, metadata, tensors)
    params, new = model.named_params(), {}
    if params["lm_head.weight"] is params["model.embed_tokens.weight"]:
        params = distinct(params)
    own = {gguf_name(name): array for name, array in params.items()}
    if missing := tensors.keys() - own.keys():
        raise InputError(f"{path} has the tensor {min(missing)}, which the model lacks: it is another one")
    base = {gguf_name(name): weight for name, weight in base.items()}
    for name, array in own.items():
        array = to_numpy(array)
        old = base.get(name)  # none of the head, where it was tied
        if old is not None and old.shape != array.shape:
            raise InputError(f"{path}: {name} has the shape {old.shape}, the model's {array.shape}: it is another one")
        if old is not None and np.array_equal(old.read(), array):
            new[name] = tensors[name]
            continue
        was = (tensors[name] if old is not None else tensors["token_embd.weight"]).kind
        new[name] = GGUFArray(permuted(array, turned_heads(name, config)), _kind(path, name, array, kind, was))
    order = [*tensors, *(name for name in new if name not in tensors)]
    metadata, _ = read_gguf(path, typed=True)
    if kind is not None and any(new[name].kind == kind for name in new if isinstance(new[name], GGUFArray)):
        metadata["general.file_type"] = np.uint32(FILE_TYPES[kind])
    return metadata, {name: new[name] for name in order}


def _kind(path, name, array, kind, was):
    """What a changed tensor is written as."""
    if array.ndim < 2:
        return "F32"
    if kind is None and was not in ("F32", "F16", "BF16"):
        known = ", ".join(KINDS)
        raise InputError(
            f"{path}: {name} is of type {was}, and its update would be lost in rounding to that again; say what "
            f"changed matrices are to be written as, their dtype: {known}"
        )
    kind = kind or was
    return "F16" if kind == "Q8_0" and array.shape[-1] % 32 else kind
