import json
import os
import signal
from collections import Counter

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from lorabook import backend, cli

# The matrices here are tiny: a second BLAS thread only waits, for seconds if the machine is busy.
# The variable is for subprocesses and kernels, the limit for this process.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
threadpool_limits(1)

# A job in the background of a shell script has SIGINT ignored, and so have the commands that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

pytest.register_assert_rewrite("checks", "mutants")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(params=["numpy", "array_api_strict", pytest.param("cupy", marks=pytest.mark.gpu)])
def xp(request):
    if request.param == "cupy" and (problem := backend.gpu_problem()):
        pytest.skip(problem)
    return backend.get_xp(request.param)


@pytest.fixture
def put(xp):
    """Host array -> a copy on the backend; for array-api-strict on the device that refuses conversion to NumPy."""
    device = {"device": xp.Device("device1")} if xp.__name__ == "array_api_strict" else {}
    return lambda host, dtype=None: xp.asarray(np.array(host, dtype), **device)


@pytest.fixture
def run(capsys):
    """Call the command line: (exit code, stdout, stderr)."""

    def call(*argv):
        try:
            code = cli.main([str(a) for a in argv])
        except SystemExit as exit:
            code = exit.code
        out, err = capsys.readouterr()
        return code, out, err

    return call


def pytest_collection_modifyitems(config, items):
    """Skip the long fuzz unless it is asked for."""
    if "fuzz" not in config.option.markexpr:
        for item in items:
            if item.get_closest_marker("fuzz"):
                item.add_marker(pytest.mark.skip(reason="100,000 malformed files take minutes: pytest -m fuzz"))


@pytest.fixture
def run_json(run):
    """Call the command line with --json: what it prints, as an object."""

    def call(*argv):
        code, out, err = run(*argv, "--json")
        assert code == 0, err
        return json.loads(out)

    return call


@pytest.fixture
def assert_refused(run):
    """Call the command line with what it is to refuse: exit code 2 and one line, with this message."""

    def call(message, *argv):
        code, out, err = run(*argv)
        assert (code, out) == (2, "")
        assert message in err
        assert err.count("\n") == 1

    return call


def pytest_terminal_summary(terminalreporter):
    """One line a reason for what was skipped, instead of one a test."""
    reasons = Counter(str(report.longrepr[2]) for report in terminalreporter.stats.get("skipped", []))
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"skipped {count}: {reason.removeprefix('Skipped: ')}")
