import numpy as np
import pytest

from lorabook import backend

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
