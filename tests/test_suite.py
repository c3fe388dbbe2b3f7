"""The suite itself: what runs when, and that nothing is left out without a word."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import mutants
import pytest

ROOT = Path(__file__).parents[1]
CI = (ROOT / ".ci" / "run").read_text()
MARKERS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["markers"]
LONG = {marker.partition(":")[0] for marker in MARKERS} - {"gpu"}


def test_the_ci_runs_the_command_of_the_readme_and_every_mark():
    assert re.findall(r"^python3 .*bin/pytest.*$", (ROOT / "README.md").read_text(), re.MULTILINE) == [
        "python3 -m venv .venv && .venv/bin/pip install -r requirements.txt && .venv/bin/pytest -n auto"
    ]
    assert "grep -m 1 'bin/pytest' README.md" in CI
    asked = re.findall(r"bin/pytest -n \S+ -m (?:'([^']+)'|(\w+))$", CI, re.MULTILINE)
    assert {name for groups in asked for name in "".join(groups).split(" or ")} == LONG
    assert "conftest.py" in CI and (ROOT / "conftest.py").read_text().count("LONG = {") == 1


def test_every_slip_finds_its_place():
    """Without a run of the tests that should notice it: who changes a line learns at once that a slip stood in it."""
    lost = [
        f"{target}: {fragment!r}"
        for targets in mutants.MUTANTS.values()
        for target, slips in targets.items()
        for _, fragment, _ in slips
        if mutants.source_of(target).count(fragment) != 1
    ]
    assert lost == []


SUITE = """
import pytest

@pytest.mark.{}
def test_long():
    pass

def test_short():
    pass
"""


def outcome(folder, *argv):
    """What pytest says of a small suite in `folder`, with the conftest of this one."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *argv],
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTEST_ADDOPTS": ""},
    )
    return done.stdout


@pytest.fixture
def suite(tmp_path):
    """A folder with this suite's conftest.py and settings, and a test of each mark."""
    for name in ("conftest.py", "pyproject.toml"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    (tmp_path / "tests").mkdir()
    (tmp_path / "notebooks").mkdir()
    for mark in LONG:
        (tmp_path / "tests" / f"test_{mark}.py").write_text(SUITE.format(mark))
    return tmp_path


def test_what_is_long_is_skipped_with_its_reason_unless_asked_for(suite):
    count = len(LONG)
    said = outcome(suite)
    assert f"{count} passed, {count} skipped" in said
    for mark in LONG:
        assert re.search(rf"^skipped 1: .*pytest -m {mark}$", said, re.MULTILINE), said
    assert f"{count} passed, {count} deselected" in outcome(suite, "-m", " or ".join(LONG))
    assert "1 passed" in outcome(suite, "tests/test_fuzz.py::test_long")  # who names a file means it
    assert f"2 passed, {count - 1} skipped" in outcome(
        suite, "-n", "2", "tests/test_fuzz.py", "tests", "-k", "long or fuzz"
    )
