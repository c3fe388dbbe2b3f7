"""The weights of a Hugging Face folder, in one safetensors file or in several with an index, read and written.

model.safetensors                                           or
model-00001-of-00002.safetensors, ..., model.safetensors.index.json: {"weight_map": {tensor: file}}
"""

import json
import os
import re
import shutil
from pathlib import Path

from ..errors import FormatError, InputError
from .atomic import temporary_name, write_atomic
from .configs import read_json, short
from .safetensors import check_finite, read_header, write_safetensors

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5 * 10**9


def open_weights(path):
    """{name: Tensor} of a safetensors file, or of a Hugging Face folder: names and shapes, read from the headers alone.

    Raises InputError if there is none; FormatError for a damaged file, and for parts that are missing, that no index
    mentions, or that hold other tensors than the index says: by name.
    """
    path = Path(path)
    if not path.is_dir():
        return read_header(path)[0]
    if not (path / WEIGHTS).exists():
        if (path / INDEX).exists():
            return _open_parts(path)
        if pickled := sorted(path.glob("*.bin")) + sorted(path.glob("*.pt*")):
            how = "convert it with transformers: model.save_pretrained(folder, safe_serialization=True)"
            raise InputError(f"{pickled[0]} is a pickle, which can run code and is not opened; {how}")
    return read_header(path / WEIGHTS)[0]


def read_weights(path):
    """{name: NumPy array} of the same, all of it in memory."""
    return {name: tensor.read() for name, tensor in open_weights(path).items()}


def _open_parts(folder):
    index = folder / INDEX
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(file, str) for file in places.values()):
        raise FormatError(f"{index}: weight_map must say the file of each tensor; got {short(places)}")
    if odd := [name for name in places if not name.isprintable()]:
        raise FormatError(f"{index}: a tensor is called {short(odd[0])}")
    files = sorted(set(places.values()))
    for file in files:
        if not re.fullmatch(r"[^/\\:]{1,200}\.safetensors", file) or not file.isprintable():
            raise FormatError(f"{index}: expected the name of a .safetensors file beside it; got {short(file)}")
    wrong = [f"part {file} is missing" for file in files if not (folder / file).exists()]
    others = sorted(part.name for part in folder.glob("model-*-of-*.safetensors"))
    wrong += [f"part {file} is not in the index" for file in others if file not in files]
    _refuse(index, wrong)
    tensors = {}
    for file in files:
        found = read_header(folder / file)[0]
        wrong += [f"{name} is in {tensors[name].path.name} and in {file}" for name in found if name in tensors]
        wrong += [f"{name} in {file} is not in the index" for name in found if name not in places]
        wrong += [f"{name} is in {file}, not in {places[name]}" for name in found if places.get(name, file) != file]
        tensors |= found
    wrong += [f"{name} is missing in {file}" for name, file in sorted(places.items()) if name not in tensors]
    _refuse(index, wrong)
    return tensors


def _refuse(index, wrong):
    if wrong:
        more = f" (and {len(wrong) - 5} more)" if len(wrong) > 5 else ""
        raise FormatError(f"{index} does not fit its parts: {'; '.join(wrong[:5])}{more}")


def write_weights(place, arrays, max_shard_size=SHARD_BYTES):
    """Write {name: array} as a Hugging Face folder holds it; `place` gives the path to write a file to, by its name.

    Above `max_shard_size` bytes in parts of at most so much, or of one tensor, and their index: transformers' way.
    Raises InputError for NaN or Inf, by name, before anything is written.
    """
    for name, array in arrays.items():
        check_finite(array, f"the weight {name}")
    parts, room = [{}], max_shard_size
    for name, array in arrays.items():
        if array.nbytes > room and parts[-1]:
            parts.append({})
            room = max_shard_size
        parts[-1][name] = array
        room -= array.nbytes
    if len(parts) == 1:
        return write_safetensors(place(WEIGHTS), arrays, {"format": "pt"})
    places = {}
    for i, part in enumerate(parts, 1):
        file = f"model-{i:05}-of-{len(parts):05}.safetensors"
        places |= dict.fromkeys(part, file)
        write_safetensors(place(file), part, {"format": "pt"})
    index = {"metadata": {"total_size": sum(a.nbytes for a in arrays.values())}, "weight_map": places}
    write_atomic(place(INDEX), json.dumps(index, indent=2, sort_keys=True) + "\n")


class FilesTogether:
    """Context in which files of a folder are written: all get their names at its end, or none does.

        with FilesTogether(folder) as place:
            write_atomic(place("weights"), ...)
            write_atomic(place("config.json"), ...)    # last: what makes the folder whole

    They get them in the order in which they were asked for. Until then they stand, under their own names, in a hidden
    folder beside, `place.written`, where they can be opened as they will be: who finds them wrong there raises.
    """

    def __init__(self, folder):
        self.folder, self.written, self.files = Path(folder), Path(folder) / temporary_name(), []

    def __call__(self, file):
        """Where to write the file of this name."""
        if file not in self.files:
            self.files.append(file)
        self.written.mkdir(exist_ok=True)
        return self.written / file

    def __enter__(self):
        return self

    def __exit__(self, kind, error, _):
        try:
            for file in self.files if error is None else ():
                os.replace(self.written / file, self.folder / file)
            for file in self.files if isinstance(error, OSError) else ():
                if error.filename == str(self.written / file):
                    raise OSError(error.errno, error.strerror, str(self.folder / file)) from None
        finally:
            shutil.rmtree(self.written, ignore_errors=True)
