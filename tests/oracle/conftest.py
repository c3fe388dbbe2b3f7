import pytest

REASON = "live comparison needs torch, transformers and peft: pip install torch==2.13.0 -e '.[oracle]'"


@pytest.fixture(scope="session", autouse=True)
def torch():
    return pytest.importorskip("torch", reason=REASON)


@pytest.fixture(scope="session")
def transformers(torch):
    module = pytest.importorskip("transformers", reason=REASON)
    module.logging.set_verbosity_error()
    return module


@pytest.fixture(scope="session")
def peft(torch):
    return pytest.importorskip("peft", reason=REASON)
