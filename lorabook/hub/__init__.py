"""Models and data sets, fetched once: `catalogue` says what is known and its sha256, `cache` holds what was fetched,
`index` downloads it, `archives` unpacks the files that are wanted. Nothing fetched is installed or run."""

from .archives import Member, Tarball
from .cache import cache_folder, cached, entries_of, known, locate
from .catalogue import KNOWN, SETS, Entry

__all__ = [
    "KNOWN",
    "SETS",
    "Entry",
    "Member",
    "Tarball",
    "cache_folder",
    "cached",
    "entries_of",
    "known",
    "locate",
]
