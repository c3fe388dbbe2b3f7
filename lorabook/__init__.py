"""lorabook: LoRA derived by hand and implemented in NumPy, no autograd; the same code runs on a GPU through CuPy."""

import importlib

__version__ = "0.1.0"

HOMES = {  # where what is public lives: loaded when it is first asked for, so that ^C can end even a command's start
    "adapters": ("LoRAConfig", "LoRALinear", "inject", "memory_table", "merge", "unmerge"),
    "backend": ("array_namespace", "get_xp", "to_numpy"),
    "errors": ("FormatError", "InputError", "NonFiniteError"),
    "loading": ("load_model",),
    "predictions": ("Prediction", "predict"),
}
__all__ = sorted(name for names in HOMES.values() for name in names)


def __getattr__(name):
    for home, names in HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f".{home}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted({*globals(), *__all__})
