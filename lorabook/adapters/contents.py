"""What an adapter folder tells by itself, without the model that it is for."""

from pathlib import Path

from ..errors import FormatError, InputError
from .formats import PREFIX, TENSORS, read_folder
from .methods import class_of


def own_tensors(cls, arrays):
    """{path: {parameter: array}} of the variant's own among the arrays of a file."""
    found = {}
    for name, array in arrays.items():
        for own, file in (cls.tensors | cls.kept).items():
            if name.endswith(f".{file}"):
                found.setdefault(name.removeprefix(PREFIX).removesuffix(f".{file}"), {})[own] = array
    return found


def classes_of(folder, output_layer):
    """The number of classes of the layer at this path that an adapter holds, by its shape; None if it holds none."""
    weight = read_folder(folder).arrays.get(f"{PREFIX}{output_layer}.weight")
    if weight is not None and weight.ndim != 2:
        raise FormatError(
            f"{Path(folder) / TENSORS}: expected {output_layer}.weight (classes, d); got the shape {weight.shape}"
        )
    return None if weight is None else weight.shape[0]


def adapter_updates(folder):
    """{path: W_eff - W (d_out, d_in)} of an adapter folder, in float64: scaling lora_B lora_A. No model is needed."""
    adapter = read_folder(folder)
    cls = class_of(adapter.config)
    found = own_tensors(cls, adapter.arrays)
    options = adapter.config.options_for(found)
    try:
        return {path: cls.update_of(tensors, path, **options[path]) for path, tensors in found.items()}
    except InputError as error:
        raise FormatError(f"{folder}: {error}") from None
