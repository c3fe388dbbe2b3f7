"""Which tests run: all that bear no mark of LONG, and of those the ones that are asked for, by mark or by file."""

import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples on every run, or a slip that one draw in a hundred misses would be found by luck; another draw:
# pytest --hypothesis-profile=default
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")

# What takes minutes, or more than requirements.txt installs. Not run unless asked for; .ci/run asks for all.
LONG = {
    "chapters": "every chapter in a kernel of its own takes minutes: pytest -m chapters",
    "dask": "a Dask cluster that is started here takes a minute: pytest -m dask",
    "fuzz": "thousands of malformed files and random moments take minutes: pytest -m fuzz",
    "mpi": "several processes with mpiexec take a minute: pytest -m mpi",
    "mutants": "hundreds of slips, each with the tests that may notice it, take minutes: pytest -m mutants",
    "oracle": "a live comparison with torch, transformers and PEFT takes a minute: pytest -m oracle",
}
HERE = Path(__file__).parent
DEFAULT = {HERE, HERE / "tests"}  # naming these folders asks for nothing in particular
# One process runs all tests of these files, which share something dear; and they begin first, since they are long.
TOGETHER = ("test_first_minutes", "test_dask")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Mark chapters; skip what is long and not asked for, with the reason."""
    named = {Path(os.path.abspath(arg.partition("::")[0])) for arg in config.option.file_or_dir} - DEFAULT
    for item in items:
        if item.path.suffix == ".ipynb":
            item.add_marker(pytest.mark.chapters)
        if item.path.parent.name == "oracle":
            item.add_marker(pytest.mark.oracle)
        if item.path.stem in TOGETHER:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
        marks = [name for name in LONG if item.get_closest_marker(name)]
        if marks and not any(name in config.option.markexpr for name in marks):
            if not named & {item.path, *item.path.parents}:
                item.add_marker(pytest.mark.skip(reason=LONG[marks[0]]))


def pytest_xdist_auto_num_workers():
    """-n auto: one process a core that may be used, at most eight: each takes up to a gigabyte."""
    return min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def pytest_terminal_summary(terminalreporter):
    """One line a reason for what was skipped, instead of one a test."""
    reasons = Counter(str(report.longrepr[2]) for report in terminalreporter.stats.get("skipped", []))
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"skipped {count}: {reason.removeprefix('Skipped: ')}")
