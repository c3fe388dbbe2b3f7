"""The adapter that a user asks for by few words: a method of the table, and options of whichever method it is."""

import json
from dataclasses import fields

from ..adapters import METHODS
from ..errors import InputError
from ..files import short

OPTIONS = {"r": 8, "lora_alpha": 16, "use_rslora": False, "lora_dropout": 0.0}  # of the adapter, unless told otherwise
# What a method calls them, if it has them: its Config has one of these fields, or none.
NAMES = {
    "r": ("r",),
    "lora_alpha": ("lora_alpha", "alpha", "randlora_alpha"),
    "use_rslora": ("use_rslora",),
    "lora_dropout": (
        "lora_dropout",
        "hira_dropout",
        "miss_dropout",
        "gralora_dropout",
        "module_dropout",
        "vera_dropout",
        "randlora_dropout",
    ),
}
CHOSEN = ("target_modules", "modules_to_save", "exclude_modules", "layers_to_transform", "layers_pattern", "bias")


def adapter_config(method, given, more=(), **chosen):
    """The config of a method. given: {name of OPTIONS: value, or None}. more: "NAME=VALUE" of its own options.

    chosen: which layers. Raises InputError for a method that there is not, and an option that it does not have.
    """
    if (cls := METHODS.get(method)) is None:
        raise InputError(f"unknown method {short(method)}; expected one of {', '.join(METHODS)}")
    own = [field.name for field in fields(cls.Config) if field.name not in CHOSEN]
    options = {}
    for name, default in OPTIONS.items():
        field = next((field for field in NAMES[name] if field in own), None)
        if field:
            options[field] = default if given.get(name) is None else given[name]
        elif given.get(name) not in (None, default):
            flag = f"--{name.replace('_', '-')}"
            raise InputError(f"{flag} does not apply to the method {method}, whose options are {', '.join(own)}")
    for text in more or ():
        name, is_there, value = text.partition("=")
        if not is_there or name not in own:
            raise InputError(
                f"expected --option NAME=VALUE with a name of {method}: {', '.join(own)}; got {short(text)}"
            )
        options[name] = _value(value)
    return cls.Config(**options, **chosen)


def _value(text):
    try:
        return json.loads(text)
    except ValueError:
        return {"True": True, "False": False}.get(text, text)
