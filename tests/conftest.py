import contextlib
import json
import os
import signal
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from threadpoolctl import threadpool_limits

from lorabook import backend, cli

# The matrices here are tiny: a second BLAS thread only waits, for seconds if the machine is busy.
# The variable is for subprocesses and kernels, the limit for this process.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
threadpool_limits(1)

# A job in the background of a shell script has SIGINT ignored, and so have the commands that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# On a busy machine a draw may take seconds: that is no fault of what is tested.
settings.register_profile("lorabook", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("lorabook")

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


@pytest.fixture
def public():
    """A folder that every user of the system can enter, as those of pytest's `tmp_path` are not."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder).resolve()


@pytest.fixture
def read_only():
    """Context in which a folder inside `public` cannot be written to; root, whom no mode stops, is nobody meanwhile."""

    @contextlib.contextmanager
    def locked(folder):
        root = os.geteuid() == 0
        folder.chmod(0o555)
        if root:
            os.seteuid(65534)
        try:
            yield
        finally:
            if root:
                os.seteuid(0)
            folder.chmod(0o755)

    return locked
