"""A checkpoint that was made to fit its sha256, and does not fit the run: refused before anything is changed."""

import json
import re

import numpy as np
import pytest

from lorabook import FormatError, LoRAConfig, files, inject
from lorabook.data import Batches
from lorabook.models import MLP
from lorabook.training import AdamW, Evaluation, train

N, D, K = 40, 6, 3


def model():
    network = MLP((D, 8, K), rng=np.random.default_rng(0))
    inject(network, LoRAConfig(r=2), np.random.default_rng(1))
    return network


def run(network, path, optimizer=None, resume=False, every=3):
    """Ten steps, with an evaluation after each third and after the last."""
    rng = np.random.default_rng(2)
    batches = Batches({"x": rng.standard_normal((N, D)).astype("f4"), "labels": np.arange(N) % K}, 8, seed=1)
    batch = batches.at(0)
    hook = Evaluation(lambda network, workers: network.evaluate(batch), every, keep="best")
    options = {"epochs": 2, "checkpoint": path, "checkpoint_every": 4, "resume": resume, "hooks": [hook]}
    return train(network, batches, optimizer or AdamW(1e-2), **options)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """(arrays, state) of a finished run."""
    path = tmp_path_factory.mktemp("run") / "checkpoint"
    run(model(), path)
    return files.read_checkpoint(path)


def changed(arrays, state, **changes):
    """Tensors by name, the state's keys by `state_` and name, of its run by `run_`; None takes out."""
    arrays, state = dict(arrays), dict(state, run=dict(state["run"]))
    for name, value in changes.items():
        part, key = {"state": (state, name[6:]), "run_": (state["run"], name[4:])}.get(
            "state" if name.startswith("state_") else name[:4], (arrays, name)
        )
        part[key] = value
        if value is None:
            del part[key]
    return arrays, state


def history(rows, change=lambda array: None):
    array = np.full((rows, 5), np.nan)
    array[:, :3] = 0.5
    array[[i for i in range(rows) if i % 3 == 2 or i == 9], 3:] = 0.25
    change(array)
    return array


def put(value, *at):
    return lambda array: array.__setitem__(at, value)


A = "param:fc1.lora_A"  # (2, 6)
FORGED = {
    "no parameter": ({A: None}, r"param:fc1\.lora_A \(2, 6\) is missing"),
    "no moment": ({"m:fc1.lora_A": None}, r"m:fc1\.lora_A \(2, 6\) is missing"),
    "no best weights": ({"best:fc1.lora_A": None}, r"best:fc1\.lora_A \(2, 6\) is missing"),
    "no history": ({"history": None}, r"history \(10, 5\) is missing"),
    "one more": ({"param:fc9.lora_A": np.ones((2, 6), "f4")}, r"'param:fc9\.lora_A' is no tensor of it"),
    "a shape": ({A: np.ones((2, 7), "f4")}, r"param:fc1\.lora_A has shape \(2, 7\), expected \(2, 6\)"),
    "a shape that broadcasts": ({"v:fc1.lora_A": np.ones((1, 6), "f4")}, r"has shape \(1, 6\), expected \(2, 6\)"),
    "a dtype": ({A: np.ones((2, 6))}, "param:fc1.lora_A has dtype float64, expected float32"),
    "integers": ({"m:fc1.lora_A": np.ones((2, 6), "i4")}, "m:fc1.lora_A has dtype int32, expected float32"),
    "NaN": ({A: np.full((2, 6), np.nan, "f4")}, "param:fc1.lora_A holds NaN or Inf"),
    "Inf in a moment": ({"v:fc1.lora_A": np.full((2, 6), np.inf, "f4")}, "v:fc1.lora_A holds NaN or Inf"),
    "a negative square": ({"v:fc1.lora_A": np.full((2, 6), -1e-9, "f4")}, "v:fc1.lora_A holds numbers below 0"),
    "NaN in the best": ({"best:fc1.lora_A": np.full((2, 6), np.nan, "f4")}, "best:fc1.lora_A holds NaN or Inf"),
    "a history of one number": ({"history": np.ones(())}, r"history has shape \(\), expected \(10, 5\)"),
    "a history too wide": ({"history": np.ones((10, 6))}, r"history has shape \(10, 6\), expected \(10, 5\)"),
    "a history too short": ({"history": history(9)}, r"history has shape \(9, 5\), expected \(10, 5\)"),
    "a history of floats": ({"history": history(10).astype("f4")}, "history has dtype float32, expected float64"),
    "NaN in the history": ({"history": history(10, put(np.nan, 4, 0))}, "its history holds NaN or Inf"),
    "a lost evaluation": ({"history": history(10, put(np.nan, 5, 3))}, "its history .* lacks an evaluation"),
    "one too many": ({"history": history(10, put(0.5, 4, 3))}, "its history holds"),
    "no step": ({"state_step": None}, "step must be of the kind int; got None"),
    "a step in words": ({"state_step": "10"}, "step must be of the kind int; got '10'"),
    "half a step": ({"state_step": 9.5}, r"step must be of the kind int; got 9\.5"),
    "a true step": ({"state_step": True, "history": history(1)}, "step must be of the kind int; got True"),
    "before the first": ({"state_step": 0, "history": history(0)}, "it stands at step 0 of 10"),
    "below zero": ({"state_step": -1}, "it stands at step -1 of 10"),
    "past the end": ({"state_step": 11, "history": history(11)}, "it stands at step 11 of 10"),
    "a huge step": ({"state_step": 10**30}, "it stands at step 10{30} of 10"),
    "an optimizer behind": ({"state_optimizer_steps": 9}, "it stands at step 10 of 10, its optimizer at 9"),
    "an optimizer far ahead": ({"state_optimizer_steps": 10**400}, "its optimizer at 1000"),
    "an optimizer without steps": (
        {"state_optimizer_steps": None},
        "optimizer_steps must be of the kind int; got None",
    ),
    "no run": ({"state_run": None}, "run must be of the kind dict; got None"),
    "a list of runs": ({"state_run": []}, r"run must be of the kind dict; got \[\]"),
    "no environment": ({"state_environment": None}, "environment must be of the kind dict; got None"),
    "a seed less": ({"run_seed": None}, "its seed is None, here it is 0"),
    "a run of more": ({"run_odd": {"a": ["b"] * 999}}, r"its odd is \{'a': \['b', .*\.\.\., here it is None"),
    "a run of lines": ({"run_a\nb": 1}, r"its a\\nb is 1, here it is None"),
    "rows in words": ({"run_training_rows.rows": "many"}, "the training rows changed: 'many' then, 40 now"),
    "a hash of another kind": ({"run_base_weights.sha256": 7}, "the base weights changed"),
}


@pytest.mark.parametrize(("changes", "message"), FORGED.values(), ids=FORGED)
def test_a_forged_checkpoint_is_refused_and_nothing_is_changed(tmp_path, written, changes, message):
    path, network, optimizer = tmp_path / "checkpoint", model(), AdamW(1e-2)
    files.write_checkpoint(path, *changed(*written, **changes))
    before, data = {n: a.copy() for n, a in network.named_params().items()}, path.read_bytes()
    with pytest.raises(FormatError, match=message) as error:
        run(network, path, optimizer, resume=True)
    assert str(path) in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 600
    assert [n for n, a in network.named_params().items() if a.tobytes() != before[n].tobytes()] == []
    assert optimizer.step_count == 0
    assert all(not a.any() for arrays in optimizer.state.values() for a in arrays.values())
    assert path.read_bytes() == data


def test_what_is_not_forged_is_taken(tmp_path, written):
    """The cases above are refused for what was changed in them."""
    path, network = tmp_path / "checkpoint", model()
    files.write_checkpoint(path, *changed(*written, history=history(10)))
    rows = run(network, path, resume=True)
    assert [row["eval_loss"] for row in rows] == [None, None, 0.25, None, None, 0.25, None, None, 0.25, 0.25]


@pytest.mark.parametrize("text", ["", "null", "[1]", "{", '{"a": NaN}', '{"a": 1, "a": 2}', "[" * 100_000], ids=repr)
def test_a_state_that_is_no_object_is_refused(tmp_path, written, text):
    path = tmp_path / "checkpoint"
    arrays = written[0]
    files.write_safetensors(path, arrays, {"lorabook": f"{files.fingerprint(arrays, text)} {text}"})
    with pytest.raises(FormatError, match=re.escape(str(path))):
        run(model(), path, resume=True)


def test_a_state_that_no_json_can_hold_is_not_written(tmp_path, written):
    with pytest.raises(ValueError, match="JSON"):
        files.write_checkpoint(tmp_path / "checkpoint", written[0], {"a": np.nan})
    assert not (tmp_path / "checkpoint").exists()


def test_a_checkpoint_of_an_optimizer_that_had_run_before_goes_on(tmp_path):
    path, first = tmp_path / "checkpoint", AdamW(1e-2)
    run(model(), tmp_path / "before", first)
    whole = model()
    expected = run(whole, path, first)
    assert files.read_checkpoint(path)[1]["optimizer_steps"] == first.step_count == 20
    again = model()
    assert run(again, path, resume=True) == expected
    assert json.dumps(expected)  # plain numbers
    assert all(np.array_equal(a, whole.named_params()[n]) for n, a in again.named_params().items())
