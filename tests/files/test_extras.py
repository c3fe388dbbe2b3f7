"""What a plain installation needs and what it can do; who misses an extra hears in one line how to get it."""

import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from checks import encoder_folder, reviews_file

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
NAME = re.compile(r"[\w.-]+")


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def with_all_that_they_need(requirements):
    """Canonical names of these distributions and all that they need, as far as they are installed here."""
    from packaging.requirements import Requirement

    found, left = set(), list(requirements)
    while left:
        one = Requirement(left.pop())
        if one.marker and not any(one.marker.evaluate({"extra": extra}) for extra in one.extras or {""}):
            continue
        if (name := canonical(one.name)) not in found:
            found.add(name)
            try:
                needed = importlib.metadata.requires(name) or []
            except importlib.metadata.PackageNotFoundError:
                continue
            left += [needs for needs in needed if "extra ==" not in needs]
    return found


def test_the_extras_are_no_dependencies():
    needed = with_all_that_they_need(PROJECT["dependencies"])
    brought = {canonical(NAME.match(one)[0]) for one in EXTRAS["book"]}
    assert len(brought) > 4 and not brought & needed
    assert {"numpy", "huggingface-hub", "requests"} <= needed  # the walk got somewhere


def test_requirements_txt_installs_all_of_it_with_the_same_bounds():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    listed = [line.partition("#")[0].strip() for line in lines]
    assert "-e .[book]" in listed
    for requirement in [*PROJECT["dependencies"], *EXTRAS["book"]]:
        assert requirement in listed, requirement
    assert all("#" in line or line.startswith("-e") for line in lines)  # each with its reason


# Whatever is beside the standard library, lorabook and what it depends on is as if it were not installed.
PLAIN = """
import importlib.metadata, json, re, sys

allowed, owners = {*json.loads(sys.argv[1])}, importlib.metadata.packages_distributions()

def is_hidden(module):
    names = {re.sub("[-_.]+", "-", name).lower() for name in owners.get(module, ())}
    return bool(names) and not names & allowed

class Hiding:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, *args):
        return None if is_hidden(name.partition(".")[0]) else self.finder.find_spec(name, *args)

sys.meta_path[:] = map(Hiding, sys.meta_path)
from lorabook.cli import main

for argv in json.loads(sys.argv[2]):
    code = main(argv)
    assert code == 0, (argv, code)
for name in ("matplotlib", "jupytext", "torch"):
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    raise AssertionError(f"{name} was not hidden")
"""


def test_models_are_trained_and_read_with_the_dependencies_alone(tmp_path):
    """Nothing else can be imported: not what the extras bring, nor what happens to be installed beside."""
    base, data = str(encoder_folder(tmp_path / "base")), str(reviews_file(tmp_path / "mine.csv"))
    np.savetxt(tmp_path / "matrix.csv", np.diag([3.0, 2.0, 1.0]), delimiter=",")
    run, merged = str(tmp_path / "run"), str(tmp_path / "merged")
    commands = [
        ["train", base, data, "--out", run, "--epochs", "1"],
        ["evaluate", run, data],
        ["predict", run, "--text", "a good film"],
        ["predict", run, data, "--out", str(tmp_path / "labels.csv")],
        ["merge", base, "--adapter", run, "--out", merged],
        ["spectrum", str(tmp_path / "matrix.csv"), "--out", str(tmp_path / "spectrum"), "--json"],
        ["sweep", "--ranks", "1", "--seeds", "1", "--epochs", "1", "--jobs", "1", "--out", str(tmp_path / "sweep")],
        ["fetch"],
        ["doctor"],
        ["--help"],
    ]
    allowed = sorted(with_all_that_they_need(PROJECT["dependencies"]) | {"lorabook"})
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, json.dumps(allowed), json.dumps(commands)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    notes = [line for line in done.stderr.splitlines() if "matplotlib" in line]
    assert len(notes) == 2 and all("no picture" in line and "'.[book]'" in line for line in notes)  # spectrum, sweep
    assert [path.name for path in (tmp_path / "spectrum").iterdir()] == ["spectrum.csv"]
    assert [path.name for path in (tmp_path / "sweep").iterdir()] == ["rank_vs_error.csv"]
    spectrum = next(json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"model"'))
    assert spectrum["files"] == [str(tmp_path / "spectrum" / "spectrum.csv")]
    assert (Path(merged) / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("argv", "module", "extra"),
    [
        (["figures"], "matplotlib", "book"),
        (["figures", "planted_bound", "--redraw"], "matplotlib", "book"),
        (["notebooks", "01"], "jupytext", "book"),
        (["notebooks", "01"], "PIL", "book"),
        (["notebooks", "01"], "nbclient", "book"),
        (["notebooks", "01"], "ipykernel", "book"),
        (["sweep", "--scheduler", "tcp://127.0.0.1:9"], "distributed", "dask"),
        (["train", "mlp-digits", "digits", "--distributed", "--out", "x"], "mpi4py", "mpi"),
        (["bench", "step", "--model", "block-1024", "--vs", "peft", "--runs", "1"], "peft", "oracle"),
    ],
)
def test_a_command_that_needs_an_extra_says_so_in_one_line(argv, module, extra, run, tmp_path, monkeypatch):
    """Before it writes, fetches or computes anything."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    code, out, err = run(*argv)
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert err.startswith(f"lorabook {argv[0]}: ") and module in err and f"pip install -e '.[{extra}]'" in err
    assert [*tmp_path.iterdir()] == []
