"""Adapters: one variant a file and a row of the table METHODS; `inject` puts them into a model.

`base` has what all variants share, `additive` what those do whose update is added, `starts` where factors start;
`whole_model` answers for all adapters of a model;
`config` and `selection` say which layers get one, with PEFT's options; `peft_folder` writes and reads PEFT's folders,
`contents` tells what is in one, `convert` makes plain LoRA of any, `formats` what others write; `memory` counts.
"""

from .additive import AdditiveAdapter, merging_is_cheaper
from .base import Adapter
from .config import AdapterConfig
from .contents import adapter_updates, classes_of
from .convert import to_lora
from .delora import DeLoRAConfig, DeLoRALinear
from .dora import DoRAConfig, DoRALinear
from .formats import read_adapter_config, read_folder
from .fourierft import FourierFTConfig, FourierFTLinear
from .gralora import GraLoRAConfig, GraLoRALinear
from .hira import HiRAConfig, HiRALinear
from .ia3 import IA3Config, IA3Linear
from .inject import config_of, inject, inputs_of, linear_layers, select, unfreeze, unload
from .loha import LoHaConfig, LoHaLinear
from .lokr import LoKrConfig, LoKrLinear
from .lora import LoRALinear
from .lora_config import LoRAConfig
from .memory import count, memory_table
from .methods import METHODS
from .miss import MiSSConfig, MiSSLinear
from .patterns import SUFFIX, matches
from .peft_folder import about, load_adapter, save_adapter
from .randlora import RandLoRAConfig, RandLoRALinear
from .rank_config import scaling_of
from .selection import is_saved
from .starts import STARTS, as_plain
from .vera import VeRAConfig, VeRALinear
from .whole_model import adapters, base_params, effective_weights, merge, plain_name, unmerge

__all__ = [
    "METHODS",
    "STARTS",
    "SUFFIX",
    "Adapter",
    "AdapterConfig",
    "AdditiveAdapter",
    "DeLoRAConfig",
    "DeLoRALinear",
    "DoRAConfig",
    "DoRALinear",
    "FourierFTConfig",
    "FourierFTLinear",
    "GraLoRAConfig",
    "GraLoRALinear",
    "HiRAConfig",
    "HiRALinear",
    "IA3Config",
    "IA3Linear",
    "LoHaConfig",
    "LoHaLinear",
    "LoKrConfig",
    "LoKrLinear",
    "LoRAConfig",
    "LoRALinear",
    "MiSSConfig",
    "MiSSLinear",
    "RandLoRAConfig",
    "RandLoRALinear",
    "VeRAConfig",
    "VeRALinear",
    "about",
    "adapter_updates",
    "adapters",
    "as_plain",
    "base_params",
    "classes_of",
    "config_of",
    "count",
    "effective_weights",
    "inject",
    "inputs_of",
    "is_saved",
    "linear_layers",
    "load_adapter",
    "matches",
    "memory_table",
    "merge",
    "merging_is_cheaper",
    "plain_name",
    "read_adapter_config",
    "read_folder",
    "save_adapter",
    "scaling_of",
    "select",
    "to_lora",
    "unfreeze",
    "unload",
    "unmerge",
]
