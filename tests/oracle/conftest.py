import pytest

REASON = "live comparison needs torch, transformers and peft: pip install torch==2.13.0 -e '.[oracle]'"


def pytest_collection_modifyitems(items):
    for item in items:
        if "oracle" in str(item.path):
            item.add_marker(pytest.mark.oracle)


@pytest.fixture(scope="session", autouse=True)
def torch():
    return pytest.importorskip("torch", reason=REASON)
