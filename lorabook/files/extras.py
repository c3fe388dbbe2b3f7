"""What a plain installation leaves out: modules that only some commands need, and one line for who misses them."""

import importlib.util

from ..errors import InputError


def missing(*modules):
    """The first of the modules that is not installed, or None. Nothing is imported."""
    return next((name for name in modules if importlib.util.find_spec(name) is None), None)


def how_to_install(extra):
    """What to type, and where, to get an extra of pyproject.toml."""
    return f"pip install -e '.[{extra}]' in lorabook's folder"


def require(extra, what, *modules):
    """Raise InputError if one of these modules, which the extra brings, is not installed. what: who needs it."""
    if name := missing(*modules):
        raise InputError(f"{what} needs {name}, which is not installed: {how_to_install(extra)}")
