"""What stands at the top of the package: loaded when it is used, and each name with an example that runs."""

import doctest
import inspect
import subprocess
import sys
import types

import pytest
from checks import encoder_folder, reviews_file
from tiny_decoders import gguf_file, poems

import lorabook
from lorabook import cli

HEAVY = {"cupy", "matplotlib", "mpi4py", "pypi_simple", "scipy", "sklearn", "tokenizers", "torch"}
SECONDS = 0.3  # of processor time, that `import lorabook` may take


def wants_example(value):
    """All that can be called does; an error is met, not called, and a plain value has no docstring of its own."""
    return callable(value) and not (isinstance(value, type) and issubclass(value, Exception))


NAMES = [name for name in lorabook.__all__ if wants_example(getattr(lorabook, name))]


def examples_in(text, name):
    """The doctest of a docstring. It starts with no name known: what a reader copies is whole."""
    return doctest.DocTestParser().get_doctest(inspect.cleandoc(text or ""), {}, name, None, 0)


def failures(test):
    said = []
    doctest.DocTestRunner(verbose=False).run(test, out=said.append)
    return "".join(said)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with `mine.csv`, and `runs/mine`, the adapter of a tiny model that was trained on it.

    And `runs/poet`, that of a tiny language model.
    """
    folder = tmp_path_factory.mktemp("home")
    model, data = encoder_folder(folder / "model"), reviews_file(folder / "mine.csv", 400)
    options = ["--epochs", "30", "--batch-size", "8", "--r", "4", "--max-length", "9", "--lr", "0.005"]
    assert cli.main(["train", str(model), str(data), "--out", str(folder / "runs" / "mine"), *options]) == 0
    model, data = gguf_file(folder / "poet.gguf"), poems(folder / "poems.csv")
    options = ["--epochs", "40", "--lr", "0.02", "--target-modules", "all-linear", "--base-dtype", "q4"]
    assert cli.main(["train", str(model), str(data), "--out", str(folder / "runs" / "poet"), *options]) == 0
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_example(name, home, monkeypatch):
    monkeypatch.chdir(home)
    test = examples_in(getattr(lorabook, name).__doc__, name)
    code = "".join(example.source for example in test.examples)
    assert any(example.want for example in test.examples), "the docstring has no example with a result"
    assert f"lb.{name}(" in code, "the example is about something else"
    assert 2 <= len(test.examples) <= 7
    assert failures(test) == ""


def test_most_names_have_one():
    assert len(NAMES) > 25
    left_out = {*lorabook.__all__} - {*NAMES}
    assert left_out == {"FormatError", "InputError", "NonFiniteError"}


def test_an_example_that_is_not_true_is_seen():
    assert failures(examples_in(">>> import lorabook as lb\n>>> lb.break_even_rank(4, 4)\n2.0", "right")) == ""
    assert "Got:\n    2.0" in failures(
        examples_in(">>> import lorabook as lb\n>>> lb.break_even_rank(4, 4)\n3.0", "wrong")
    )
    assert "NameError" in failures(examples_in(">>> np.ones(3)", "unknown"))
    assert not wants_example(lorabook.InputError) and not wants_example(lorabook.__version__)
    assert wants_example(lorabook.train) and wants_example(lorabook.MLP)


# ---- at the top ------------------------------------------------------------------------------------------------------


def python(code):
    """What a fresh interpreter prints."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_names_are_there_when_they_are_used():
    code = "import lorabook, sys; print(sorted(n for n in sys.modules if n.startswith('lorabook.')))"
    code += "; print({*lorabook.__all__} <= {*dir(lorabook)}, lorabook.predict.__module__)"
    code += "; import lorabook.tasks.predictions; print(callable(lorabook.predict))"
    assert python(code) == "[]\nTrue lorabook.tasks.predictions\nTrue\n"
    with pytest.raises(AttributeError, match="no attribute 'predicts'"):
        _ = lorabook.predicts


def test_no_name_is_that_of_a_room_or_file():
    """Importing the file would put it in the name's place."""
    for name in lorabook.__all__:
        assert not isinstance(getattr(lorabook, name), types.ModuleType), name


def test_importing_takes_no_time_and_nothing_heavy():
    code = "import sys, time; begin = time.process_time(); import lorabook; spent = time.process_time() - begin"
    code += f"; print(min({SECONDS}, spent) < {SECONDS}, sorted({HEAVY!r} & {{*sys.modules}}))"
    assert python(code) == "True []\n"


@pytest.mark.parametrize("names", ["LoRAConfig, inject, MLP", "load_adapter, save_adapter, merge", "truncate, pca"])
def test_what_chapters_need_is_light(names):
    """Neither a picture nor a GPU, a cluster nor a package index: what only some need is imported where it is used."""
    code = (
        f"import sys; from lorabook import {names}; print(sorted({HEAVY - {'scipy', 'sklearn'}!r} & {{*sys.modules}}))"
    )
    assert python(code) == "[]\n"
