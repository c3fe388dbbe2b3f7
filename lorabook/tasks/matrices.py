"""Matrices to look at, from wherever a reader has them: a model, a checkpoint, an adapter, two checkpoints, a table."""

import contextlib
import math
import tokenize
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np

from .. import hub
from ..adapters import adapter_updates, inputs_of
from ..errors import FormatError, InputError
from ..files import CAUSAL_LMS, ENCODERS, known_name, open_weights, read_gguf, read_numbers, short
from ..models import MODELS, open_causal_lm
from .sources import gguf_files

# What NumPy and zipfile raise for a file that is none of theirs.
UNREADABLE = (
    *(OSError, ValueError, EOFError, OverflowError, RuntimeError, SyntaxError, TypeError, KeyError, MemoryError),
    *(tokenize.TokenError, zipfile.BadZipFile, zlib.error),
)
FILES = "a Hugging Face folder, a PEFT adapter folder, or a .safetensors, .gguf, .npy, .npz, .csv or .tsv file"
EXPECTED = ", ".join(("mlp-digits", *ENCODERS, *CAUSAL_LMS, FILES))


def matrices_of(source, seed=0):
    """({name: W (d_out, d_in)}, {name: its inputs (N, d_in), where known}) of a model, by name or path.

    A PEFT adapter folder gives the update scaling * B A of each of its layers. Of a checkpoint W is a `Tensor` that is
    still in its file, so that one matrix at a time takes memory.
    """
    if source == "mlp-digits":
        from ..data import digits
        from .pretrain import pretrained_mlp

        task = digits(seed=seed)
        mlp = pretrained_mlp(task, seed=seed)
        weights = {name: W for name, W in mlp.named_params().items() if W.ndim == 2}
        return weights, {f"{path}.weight": x for path, x in inputs_of(mlp, task.x_train).items()}
    path = Path(source)
    if not path.exists():
        if known_name(source) not in (*ENCODERS, *CAUSAL_LMS):  # before anything is fetched
            raise InputError(f"{path} is neither a file nor a folder; expected {EXPECTED}")
        path = hub.locate(source)
    return _two_dimensional(path, _read(path)), {}


def update_between(base, tuned):
    """({name: W_tuned - W_base}, notes) of two checkpoints, matrix by matrix, in float64.

    Matrices that only one of them has are left out, and named in a note. The encoder's name may stand before the others
    in one of the two, as in a model with a head.
    """
    before, after = ({_plain(n): W for n, W in matrices_of(source)[0].items()} for source in (base, tuned))
    both = [name for name in before if name in after]
    if not both:
        raise InputError(f"{base} and {tuned} have no matrix of one name: {_few(before)} there, {_few(after)} here")
    for name in both:
        if before[name].shape != after[name].shape:
            shapes = f"{before[name].shape} in {base}, {after[name].shape} in {tuned}"
            raise InputError(f"{name} is {shapes}; expected two checkpoints of one model")
    alone = sorted(before.keys() ^ after.keys())
    notes = [f"only one of the two has {_few(alone)}: left out"] if alone else []
    return {name: np.asarray(after[name], "f8") - np.asarray(before[name], "f8") for name in both}, notes


def read_matrix(path):
    """The numbers in a .npy, .csv or .tsv file; a .npy file is mapped, so that one which lies about its size fails."""
    path = Path(path)
    if path.suffix.lower() in (".csv", ".tsv"):
        return read_numbers(path)
    if path.suffix.lower() != ".npy":
        raise InputError(f"{path}: expected a .npy file, as numpy.save writes it, or a .csv or .tsv file of numbers")
    with _reading(path, "a .npy array"):
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.dtype.kind not in "fiu":
        raise InputError(f"{path} holds {array.dtype}; expected numbers")
    return array.astype("f8") if array.dtype.kind in "iu" else array


def _read(path):
    if path.suffix.lower() == ".gguf" or (found := gguf_files(path)):
        return open_causal_lm(gguf := path if path.is_file() else found[0], *read_gguf(gguf))[1]
    if path.is_dir():
        adapter = (path / "adapter_config.json").exists()
        return adapter_updates(path) if adapter else open_weights(path)
    suffix = path.suffix.lower()
    if suffix == ".npz":
        return _read_npz(path)
    if suffix in (".npy", ".csv", ".tsv"):
        return {path.stem: read_matrix(path)}
    if suffix != ".safetensors":
        raise InputError(f"{path}: expected {EXPECTED}")
    return open_weights(path)


def _read_npz(path):
    """{name: array} of an .npz archive. A header that promises more than its member holds is refused unread."""
    arrays = {}
    with _reading(path, "an .npz archive"), zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            with archive.open(member) as file:
                _check_npy(file, member.file_size)
            with archive.open(member) as file:
                arrays[member.filename.removesuffix(".npy")] = np.lib.format.read_array(file, allow_pickle=False)
    return arrays


@contextlib.contextmanager
def _reading(path, what):
    """Context in which NumPy reads a file: what it cannot read is a FormatError, what it warns about is read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a header as Python 2 wrote it
            yield
    except UNREADABLE as error:
        raise FormatError(f"cannot read {path} as {what}: {short(error)}") from None


def _check_npy(file, size):
    """Raise ValueError unless the header of a .npy member of `size` bytes promises what follows it."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"its format is {version}; expected (1, 0) or (2, 0)")
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(file)
    promised = math.prod(shape) * dtype.itemsize
    if dtype.hasobject or promised != size - file.tell():
        raise ValueError(f"a member does not hold the {promised} bytes of {dtype} that it promises")


def _two_dimensional(path, arrays):
    """Those of the arrays, or Tensors still in their file, that are matrices of floating-point numbers."""
    found = {n: W for n, W in arrays.items() if len(W.shape) == 2 and _floating(W)}
    if not found:
        came = [f"{n} ({W.dtype}, shape {W.shape})" for n, W in list(arrays.items())[:8]]
        raise InputError(
            f"{path} holds no matrix of floating-point numbers; found {short(came) if came else 'nothing'}"
        )
    return found


def _floating(W):
    return W.dtype.kind == "f" if isinstance(W, np.ndarray) else W.floating


def _plain(name):
    encoder, _, inside = name.partition(".")
    return inside if encoder in MODELS else name


def _few(names):
    return ", ".join(list(names)[:4]) + (", ..." if len(names) > 4 else "")
