"""The chapters are what their sources say; pytest runs them through nbmake."""

import json
import os
import re
import subprocess
import sys

import nbformat
import pytest

from lorabook.book import chapters

SOURCES = chapters.sources()


def name(source):
    return source.stem if source.parent.name == "src" else f"{source.stem}-solutions"


@pytest.mark.parametrize("source", SOURCES, ids=name)
def test_notebook_has_the_cells_of_its_source(source):
    want = chapters.read_source(source)
    got = nbformat.read(chapters.target(source), as_version=4)
    assert [(c.cell_type, c.source) for c in got.cells] == [(c.cell_type, c.source) for c in want.cells]


@pytest.mark.parametrize("source", SOURCES, ids=name)
def test_notebook_was_run_in_order_without_errors_or_noise(source):
    path = chapters.target(source)
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert path.stat().st_size < 300_000
    assert not re.search(r"/(home|root|tmp|work|Users)/", path.read_text())


@pytest.mark.parametrize("source", [s for s in SOURCES if s.parent.name == "src"], ids=name)
def test_chapter_has_a_question_exercises_and_solutions(source):
    text = source.read_text()
    assert re.search(r"^# # .*\?", text, re.MULTILINE), "the title asks a question"
    assert "your turn" in text
    assert (source.parent / "solutions" / source.name).exists()


@pytest.mark.parametrize("source", SOURCES, ids=name)
def test_no_cell_is_long_and_no_line_is_wide(source):
    cells = chapters.read_source(source).cells
    assert not [cell.source for cell in cells if cell.cell_type == "code" and len(cell.source.splitlines()) > 40]
    assert not [line for cell in cells for line in cell.source.splitlines() if len(line) > 100]


@pytest.mark.parametrize("source", [s for s in SOURCES if s.parent.name == "src"], ids=name)
def test_an_exercise_shows_neither_its_check_nor_its_answer(source):
    cells = [cell.source for cell in chapters.read_source(source).cells if "your turn" in cell.source]
    assert len(cells) >= 3
    for cell in cells:
        last, check = cell.splitlines()[-2:]
        assert last.startswith("answer = None  # your turn: ")
        assert re.fullmatch(rf"ch{source.stem[:2]}\.\w+\(answer\)", check)


@pytest.mark.parametrize("source", [s for s in SOURCES if s.parent.name == "src"], ids=name)
def test_a_chapter_says_what_to_remember_and_what_comes_next(source):
    text = source.read_text()
    assert re.search(r"^# > \*\*What to remember\*\*$", text, re.MULTILINE)
    assert re.search(r"\]\(\d\d_\w+\.ipynb\)", text.split("What to remember")[1].split("## Exercises")[0])
    opened = re.findall(r"^# ```(\w*)$", text, re.MULTILINE)[::2]
    assert all(opened), "mathematics is typeset, not a block of text; a block of code says its language"


def test_a_cell_may_open_folded(tmp_path):
    (tmp_path / "00.py").write_text('# %% jupyter={"source_hidden": true} tags=["hide-input"] other=1\n1\n')
    (cell,) = chapters.read_source(tmp_path / "00.py").cells
    assert cell.metadata == {"jupyter": {"source_hidden": True}, "tags": ["hide-input"]}


def test_no_chapter_without_a_source():
    built = set(chapters.ROOT.glob("*.ipynb")) | set((chapters.ROOT / "solutions").glob("*.ipynb"))
    assert built == {chapters.target(source) for source in SOURCES}


def test_building_a_chapter_twice_gives_the_same_bytes(tmp_path, monkeypatch):
    source = tmp_path / "src" / "00_small.py"
    source.parent.mkdir()
    source.write_text("# %% [markdown]\n# # Why?\n\n# %%\nprint(1 + 1)\n")
    monkeypatch.setattr(chapters, "ROOT", tmp_path)
    first = chapters.build(source).read_bytes()
    assert chapters.build(source).read_bytes() == first
    assert json.loads(first)["cells"][1]["outputs"][0]["text"] == ["2\n"]


def test_what_a_cell_prints_is_one_text(tmp_path, monkeypatch):
    """However often the kernel sends what was printed so far."""
    source = tmp_path / "src" / "00_small.py"
    source.parent.mkdir()
    source.write_text("# %%\nfor i in range(3):\n    print(i, flush=True)\n")
    monkeypatch.setattr(chapters, "ROOT", tmp_path)
    (output,) = json.loads(chapters.build(source).read_bytes())["cells"][0]["outputs"]
    assert output["text"] == ["0\n", "1\n", "2\n"]


BUILD = """
import signal, sys
from pathlib import Path
from lorabook.book import chapters
from lorabook import cli
chapters.ROOT = Path(sys.argv[1])
code = cli.main(["notebooks"])
print(code, signal.getsignal(signal.SIGINT) is signal.default_int_handler)
"""


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_a_chapter_that_is_stopped_leaves_the_old_notebook(tmp_path):
    """And the signals as they were. In a process of its own: nbclient leaves torn coroutines behind."""
    (tmp_path / "src").mkdir()
    cell = "import os, signal, time\nos.kill(os.getppid(), signal.SIGINT)\ntime.sleep(60)\n"
    (tmp_path / "src" / "00_small.py").write_text(f"# %%\n{cell}\n# %%\n1 + 1\n")
    (tmp_path / "00_small.ipynb").write_text("old")
    done = subprocess.run([sys.executable, "-c", BUILD, tmp_path], capture_output=True, text=True, timeout=50)
    assert (done.stdout, done.stderr) == ("130 True\n", "lorabook notebooks: interrupted\n")
    assert (tmp_path / "00_small.ipynb").read_text() == "old"


def test_a_chapter_that_fails_leaves_the_old_notebook(tmp_path, monkeypatch):
    source = tmp_path / "src" / "00_small.py"
    source.parent.mkdir()
    source.write_text("# %%\nassert False, 'broken'\n")
    (tmp_path / "00_small.ipynb").write_text("old")
    monkeypatch.setattr(chapters, "ROOT", tmp_path)
    with pytest.raises(RuntimeError, match="broken"):
        chapters.build(source)
    assert (tmp_path / "00_small.ipynb").read_text() == "old"
