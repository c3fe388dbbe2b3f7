"""lorabook: LoRA derived by hand and implemented in NumPy, no autograd; the same code runs on a GPU through CuPy."""

from .adapters import LoRAConfig, LoRALinear, inject, memory_table, merge, unmerge
from .backend import array_namespace, get_xp, to_numpy
from .errors import FormatError, InputError, NonFiniteError

__version__ = "0.1.0"

__all__ = [
    "FormatError", "InputError", "LoRAConfig", "LoRALinear", "NonFiniteError", "array_namespace", "get_xp", "inject",
    "memory_table", "merge", "to_numpy", "unmerge",
]  # fmt: skip
