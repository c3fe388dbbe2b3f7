"""Chapters that need a fetched model are skipped, with the reason, where it cannot be had."""

import pytest

from lorabook import InputError, hub

NEEDS = {"08_real_encoder.ipynb": ("minilm", "movie-reviews")}


def pytest_collection_modifyitems(items):
    """Fetch what the collected chapters need; skip those that cannot have it."""
    for name in {item.path.name for item in items} & NEEDS.keys():
        try:
            for needed in NEEDS[name]:
                hub.locate(needed, progress=False)
        except InputError as error:
            reason = f"chapter {name} needs {needed}: {error}"
            for item in items:
                if item.path.name == name:
                    item.add_marker(pytest.mark.skip(reason=reason))
