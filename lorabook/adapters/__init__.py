"""Adapters: one variant a file, and `inject` to put them into a model."""

from .config import LoRAConfig
from .inject import adapters, inject, merge, unfreeze, unload, unmerge
from .lora import LoRALinear
from .memory import memory_table

__all__ = ["LoRAConfig", "LoRALinear", "adapters", "inject", "memory_table", "merge", "unfreeze", "unload", "unmerge"]
