"""lorabook: LoRA derived by hand and implemented in NumPy, no autograd; the same code runs on a GPU through CuPy."""

import importlib

__version__ = "0.1.0"


def lazily(package, homes):
    """The `__getattr__` of a package whose `homes` are {module in it: names}: a name is loaded when it is asked for."""

    def load(name):
        for home, names in homes.items():
            if name in names:
                return getattr(importlib.import_module(f".{home}", package), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return load


HOMES = {  # where what is public lives: loaded when it is first asked for, so that ^C can end even a command's start
    "adapters": ("LoRAConfig", "LoRALinear", "inject", "load_adapter", "memory_table", "merge", "save_adapter",
                 "unload", "unmerge"),
    "backend": ("array_namespace", "get_xp", "to_numpy"),
    "data": ("Batches", "Texts", "text_file"),
    "errors": ("FormatError", "InputError", "NonFiniteError"),
    "linalg": ("activation_factor", "break_even_rank", "energy_rank", "pca", "randomized_svd", "rank_errors",
               "stable_rank", "truncate", "truncate_for_inputs", "truncated_svd"),
    "models": ("MLP", "Sampling"),
    "tasks": ("Prediction", "evaluate", "generate", "load_model", "predict"),
    "training": ("AdamW", "train"),
}  # fmt: skip
__all__ = sorted(name for names in HOMES.values() for name in names)
__getattr__ = lazily(__name__, HOMES)


def __dir__():
    return sorted({*globals(), *__all__})
