"""The table of the variants: a new one is its file, and a row here."""

from ..errors import InputError
from ..files import short
from .delora import DeLoRALinear
from .dora import DoRALinear
from .fourierft import FourierFTLinear
from .gralora import GraLoRALinear
from .hira import HiRALinear
from .ia3 import IA3Linear
from .loha import LoHaLinear
from .lokr import LoKrLinear
from .lora import LoRALinear
from .miss import MiSSLinear
from .randlora import RandLoRALinear
from .vera import VeRALinear

METHODS = {
    "lora": LoRALinear,
    "dora": DoRALinear,
    "loha": LoHaLinear,
    "lokr": LoKrLinear,
    "hira": HiRALinear,
    "delora": DeLoRALinear,
    "gralora": GraLoRALinear,
    "miss": MiSSLinear,
    "fourierft": FourierFTLinear,
    "ia3": IA3Linear,
    "vera": VeRALinear,
    "randlora": RandLoRALinear,
}


def class_of(config):
    """The variant that a config is of."""
    if (cls := METHODS.get(getattr(config, "method", None))) is None:
        known = ", ".join(cls.Config.__name__ for cls in METHODS.values())
        raise InputError(f"expected the config of an adapter, {known}; got {short(config)}")
    return cls


def of_peft(options):
    """The variant that PEFT's options {name: value} are of, or None."""
    return next((cls for cls in METHODS.values() if cls.is_peft(options)), None)
