"""What a name, a path or an adapter folder stands for: the model under it, and the adapter, before either is opened."""

from pathlib import Path
from typing import NamedTuple

from ..adapters import about
from ..errors import InputError
from ..files import CAUSAL_LMS, known_name, read_json
from ..models import DECODER_MODELS


class Named(NamedTuple):
    """base: the name or path of a model. adapter: the folder over it, or None. told: what that says, see `about`."""

    base: str
    adapter: Path | None
    told: dict

    @property
    def name(self):
        """What messages call it."""
        return str(self.adapter or self.base)


def is_adapter(folder):
    """Whether a path is that of an adapter folder."""
    folder = Path(folder)
    return (folder / "adapter_config.json").exists() and not (folder / "config.json").exists()


def named(model, adapter=None):
    """The `Named` of a model, by name or path, or by an adapter folder, whose base is followed."""
    model, adapter = known_name(str(model)), None if adapter is None else Path(adapter)
    if is_adapter(model):
        if adapter:
            raise InputError(
                f"{model} is an adapter folder; expected the model under it, or no other adapter beside it"
            )
        model, adapter = None, Path(model)
    told = about(adapter) if adapter else {}
    if model is None and (model := told["base_model"]) is None:
        raise InputError(
            f"{adapter} does not say what it was trained on; give that model, and {adapter} as its adapter"
        )
    return Named(model, adapter, told)


def is_causal(model):
    """Whether a model, by name or path, continues texts, as far as its name, or its config.json, tells."""
    if is_adapter(model):
        model = about(model)["base_model"] or ""
    path = Path(known_name(str(model)))
    if str(path) in CAUSAL_LMS or path.suffix == ".gguf" or gguf_files(path):
        return True
    config = path / "config.json"
    return config.is_file() and read_json(config).get("model_type") in [*DECODER_MODELS]  # it may be a list


def gguf_files(folder):
    """The GGUF files of a folder that holds no Hugging Face model."""
    folder = Path(folder)
    return [] if (folder / "config.json").exists() else sorted(folder.glob("*.gguf"))
