"""The benchmark runs and adds up; how fast anything is, is no matter for a test."""

import importlib.util
import json

import numpy as np
import pytest
from checks import tiny_bert, write_bert

from lorabook import cli

OPTIONS = ["--batch-size", "3", "--seq-len", "5", "--r", "2", "--threads", "1", "--runs", "2"]


@pytest.fixture
def model(tmp_path):
    network = tiny_bert(np.random.default_rng(0), dtype="float32")
    return str(write_bert(tmp_path / "model", network, tensors={"classifier.weight": None, "classifier.bias": None}))


def test_a_step_is_measured_in_a_process_of_its_own(model, capsys):
    assert cli.main(["bench", "step", "--model", model, *OPTIONS, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    side = result["lorabook"]
    assert 0 < side["min"] <= side["median"]
    assert 10 < side["peak_mb"] < 1000
    assert result["gemm_share"] == pytest.approx(result["gemm_seconds"] / side["median"])
    assert "time_ratio" not in result
    assert cli.main(["bench", "step", "--model", model, *OPTIONS]) == 0
    assert "matrix products alone" in capsys.readouterr().out


@pytest.mark.skipif(
    importlib.util.find_spec("peft") is not None, reason="peft is installed: its absence cannot be tested"
)
def test_without_peft_the_comparison_says_so(model, capsys):
    assert cli.main(["bench", "step", "--model", model, *OPTIONS, "--vs", "peft"]) == 2
    assert "the peft side of the comparison cannot run: ModuleNotFoundError" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--runs", "0"], "--runs must be at least 1; got 0"),
        (["--batch-size", "-1"], "--batch-size must be at least 1; got -1"),
        (["--target-modules", "nothing"], "matches no linear layer"),
        (["--r", "99"], "r must be an integer from 1 to 6"),
    ],
)
def test_bad_input(model, capsys, argv, message):
    assert cli.main(["bench", "step", "--model", model, *OPTIONS, *argv]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
