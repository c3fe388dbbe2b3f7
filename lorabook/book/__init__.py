"""The book: `figures` makes each CSV and draws it, `chapters` builds the notebooks, `plots` turn rows into Figures."""

from .. import lazily

FILES = ("chapters", "figures", "plots")  # that others use as they are
HOMES = {}
__all__ = sorted([*FILES, *(name for names in HOMES.values() for name in names)])
__getattr__ = lazily(__name__, HOMES)
