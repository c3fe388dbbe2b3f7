"""The self-test of a backend: it runs all there is, and notices what is off."""

import importlib
import inspect
import json

import pytest

from lorabook import backend
from lorabook.bench import FUNCTIONS, MODELS, selftests

FILES = {
    "attention": "functional.attend",
    "absorbed": "functional.absorbed",
    "functional": "functional.activations functional.linear functional.losses"
    " functional.norms functional.reductions functional.softmax functional.gated functional.rotary"
    " functional.language_loss",
    "grouped": "functional.grouped",
    "low_rank": "linalg.low_rank",
    "randomized": "linalg.randomized",
    "optim": "training.optim training.clipping training.schedules",
    "subspace": "linalg.subspace",
}
# Public functions that take no arrays: there is nothing to compare. And the parent of all optimizers.
HOST = {
    "attention": set(),
    "absorbed": {"absorbing_is_cheaper"},
    "functional": {"rotary_frequencies", "chunks", "check_labels", "perplexity"},
    "grouped": set(),
    "low_rank": {"check_rank", "break_even_rank"},
    "randomized": set(),
    "optim": {"schedule", "check_max_grad_norm", "Optimizer"},
    "subspace": set(),
}


@pytest.mark.parametrize("module", HOST)
def test_every_public_function_is_run(module):
    files = [importlib.import_module(f"lorabook.{file}") for file in FILES[module].split()]
    public = {
        name
        for own in files
        for name, value in vars(own).items()
        if not name.startswith("_") and callable(value) and getattr(value, "__module__", None) == own.__name__
    }
    results = {"Truncation", "Spans"}  # what a function returns
    assert public - results == FUNCTIONS[module].keys() | HOST[module]


def test_every_model_takes_a_step():
    from lorabook.layers import Layer
    from lorabook.models import attention, bert, blocks, decoder_block, llama, mlp, table

    kinds = {
        name
        for module in (attention, bert, blocks, decoder_block, llama, mlp)
        for name, value in vars(module).items()
        if inspect.isclass(value) and issubclass(value, Layer) and value.__module__ == module.__name__
    }
    inside = {"BertModel", "SelfAttention", "LlamaModel", "DecoderBlock", "GroupedAttention", "GatedMLP"}
    kinds -= {*inside, *(kind.__name__ for kind in table.MODELS.values())}
    assert kinds | table.MODELS.keys() == {name.partition(",")[0] for name in MODELS}


@pytest.mark.parametrize("name", ["numpy", "array_api_strict", pytest.param("cupy", marks=pytest.mark.gpu)])
def test_a_backend_computes_what_numpy_does(name):
    if name == "cupy" and (problem := backend.gpu_problem()):
        pytest.skip(problem)
    rows = selftests.selftest(name)
    assert not [row for row in rows if not row["ok"]]
    assert len(rows) == 2 * (len(MODELS) + sum(map(len, FUNCTIONS.values())))
    if name == "numpy":
        assert {row["abs"] for row in rows} == {0.0}  # the same bits twice: a case draws the same numbers


def on_strict(a, right, wrong):
    return (wrong if backend.array_namespace(a(1)).__name__ == "array_api_strict" else right)(a)


WRONG = {
    "a little off": (lambda a: a(9) * (1 + 2e-5), "differs by"),
    "nan": (lambda a: a(9) * float("nan"), "not finite"),
    "another shape": (lambda a: a(3, 3), "expected float"),
    "integers": (lambda a: a.integers(0, 2, 9), "got int64"),
    "one array too few": (lambda a: [], "got groups of [0] arrays, expected [1]"),
    "an error": (lambda a: 1 / 0, "ZeroDivisionError"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_noticed_and_the_rest_still_runs(name):
    wrong, problem = WRONG[name]
    cases = {"functional": {"f": lambda a: on_strict(a, lambda a: a(9), wrong), "g": lambda a: a(9)}}
    rows = selftests.selftest("array_api_strict", cases=cases)
    assert [(row["name"], row["ok"]) for row in rows] == [("f", False), ("f", False), ("g", True), ("g", True)]
    assert all(problem in row["problem"] for row in rows[:2])
    assert selftests.summary(rows)["wrong"] == 2


def test_a_small_gradient_beside_a_large_one_is_measured_by_the_large_one():
    """As the gradient of a key's bias, which is 0 but for rounding; but a group of its own is measured by itself."""
    together = {"m": {"f": lambda a: {"large": a(9), "small": on_strict(a, lambda a: 0 * a(9), lambda a: 1e-9 * a(9))}}}
    apart = {"m": {"f": lambda a: (a(9), on_strict(a, lambda a: 1e-9 * a(9), lambda a: 1.1e-9 * a(9)))}}
    assert [row["ok"] for row in selftests.selftest("array_api_strict", cases=together)] == [False, True]
    assert [row["ok"] for row in selftests.selftest("array_api_strict", cases=apart)] == [False, False]


@pytest.mark.parametrize("name", ["normal_cdf", "exp_", "scatter_add", "bmm"])
def test_a_slip_in_one_backend_is_noticed(monkeypatch, name):
    """In what `backend` has for it alone."""
    right = getattr(backend, name)

    def wrong(x, *others):
        y = right(x, *others)
        if backend.array_namespace(x).__name__ == "array_api_strict":
            (x if name == "scatter_add" else y)[...] *= 1.001
        return y

    monkeypatch.setattr(backend, name, wrong)
    rows = selftests.selftest("array_api_strict", cases={"backend": FUNCTIONS["backend"]})
    assert {row["name"] for row in rows if not row["ok"]} == {name}


# ---- the command -----------------------------------------------------------------------------------------------------

STRICT = ["doctor", "--backend", "array_api_strict"]


def test_doctor_prints_the_table(run):
    code, out, err = run(*STRICT)
    assert (code, err) == (0, "") and "198 cases, 0 of them wrong" in out and "BertForTokenClassification" in out
    table = out.partition("self-test of array_api_strict against NumPy")[2]
    assert max(map(len, table.splitlines())) <= 79
    assert "self-test" not in run("doctor")[1]  # NumPy is not tested against itself


def test_doctor_with_json_is_one_object(run_json):
    result = run_json(*STRICT)["selftest"]
    assert result["summary"]["wrong"] == 0 and result["summary"]["cases"] == len(result["rows"])
    assert all(row["seconds"] > 0 and row["rel"] <= row["tolerance"] for row in result["rows"])


@pytest.mark.parametrize("as_json", [False, True])
def test_doctor_fails_if_one_is_off(run, monkeypatch, as_json):
    monkeypatch.setattr(
        selftests,
        "CASES",
        {"functional": {"f": lambda a: on_strict(a, lambda a: a(9), WRONG["an error"][0]), "g": lambda a: a(9)}},
    )
    code, out, err = run(*STRICT, *["--json"] * as_json)
    assert code == 1 and err == "lorabook doctor: 2 of 4 cases of the self-test are wrong\n"
    if as_json:
        assert json.loads(out)["selftest"]["summary"]["wrong"] == 2
    else:
        assert "functional.f in float32: ZeroDivisionError" in out and "failed" in out


def test_where_there_is_no_gpu_the_report_stands_alone(run, monkeypatch):
    monkeypatch.setattr("lorabook.commands.doctor.gpu_problem", lambda: "no driver answers")
    code, out, _ = run("doctor", "--backend", "cupy")
    assert code == 0 and "cupy: cannot be used" in out and "self-test" not in out


def test_only_doctor_takes_the_stand_in(run, monkeypatch, tmp_path):
    code, _, err = run("train", "mlp-digits", "digits", "--out", tmp_path / "x", "--backend", "array_api_strict")
    assert code == 2 and "invalid choice" in err
