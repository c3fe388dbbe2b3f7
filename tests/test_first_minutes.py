"""The README's first ten minutes, run as they are written, on files that a reader might bring."""

import csv
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lorabook import InputError
from lorabook.adapters import about
from lorabook.backend import gpu_problem
from lorabook.files import read_csv, read_table
from lorabook.hub import locate

ROOT = Path(__file__).parents[1]
SECTION = (ROOT / "README.md").read_text(encoding="utf-8").split("## The first ten minutes")[1].split("\n## ")[0]
CLASSIFY, RANKS, GPU = re.findall(r"```bash\n(.*?)```", SECTION, re.DOTALL)
(TEN_LINES,) = re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)
GOOD = ("a fine film", "moving and funny", "a joy from start to end", "I loved the music", "bright, warm and clever")
POOR = ("a dull film", "slow and empty", "a bore from start to end", "I hated the music", "loud, cold and stupid")

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the README's blocks are written for a POSIX shell")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with mine.csv, new.csv, matrix.csv and numbers.csv."""
    folder, rng = tmp_path_factory.mktemp("reader"), np.random.default_rng(0)
    texts = [
        (f"{text}, part {i}", label) for i in range(6) for label, of in (("pos", GOOD), ("neg", POOR)) for text in of
    ]
    (folder / "mine.csv").write_text("text,label\n" + "".join(f'"{text}",{label}\n' for text, label in texts))
    (folder / "new.csv").write_text("id,text\n7,a fine joy\n8,slow and dull\n")
    np.savetxt(folder / "matrix.csv", rng.standard_normal((9, 3)) @ rng.standard_normal((3, 8)), delimiter=",")
    x = rng.standard_normal((90, 5))
    rows = "".join(",".join([*map(str, row), "ab"[int(row[0] > 0)]]) + "\n" for row in x)
    (folder / "numbers.csv").write_text("a,b,c,d,e,label\n" + rows)
    return folder


def one_core():
    """Leave the other cores to the other tests: two processes with threads on each core wait for each other."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def shell(block, home, check=True):
    """The finished process of a block, with this environment's commands."""
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block],
        cwd=home,
        env=os.environ | {"PATH": places, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=check,
        timeout=900,
        preexec_fn=one_core if "PYTEST_XDIST_WORKER" in os.environ else None,
    )


@pytest.fixture(scope="module")
def classified(home):
    """What the first block prints."""
    try:
        locate("minilm", progress=False)
    except (InputError, OSError) as error:
        pytest.skip(f"MiniLM is not in the cache and cannot be fetched: {error}")
    return shell(CLASSIFY, home).stdout


def test_texts_are_classified_and_new_ones_labelled(home, classified):
    accuracy = float(re.search(r"test accuracy.*-> ([\d.]+) %", classified)[1])
    assert accuracy > 90 and f"{accuracy:.1f} % right" in classified  # evaluate --split test finds the same rows
    printed = [line for line in classified.splitlines() if "a fine film" in line or "two hours" in line]
    assert len(printed) == 2
    rows = [row for _, row in read_table(home / "labels.csv", ["text", "label", "probability"])]
    assert [(row["text"], row["label"]) for row in rows] == [("a fine joy", "pos"), ("slow and dull", "neg")]


def test_the_same_in_ten_lines_of_python(home, classified):
    """What the commands say of its folder is what the lines printed: labels, tokenizer and base model are known."""
    assert len([line for line in TEN_LINES.splitlines() if line]) <= 10
    measured, answer = shell(f"python - <<'END'\n{TEN_LINES}END", home).stdout.splitlines()
    accuracy = float(re.fullmatch(r"Measured\(loss=[\d.e-]+, accuracy=([\d.]+)\)", measured)[1])
    assert accuracy > 0.9 and re.fullmatch(r"pos \([\d.]+ %\)", answer)
    assert about(home / "runs/python") | {"base_sha256": 0} == {
        **{"base_model": "minilm", "labels": ["neg", "pos"], "max_length": 128},
        **{"base_sha256": 0, "training_texts": None, "base_dtype": None, "chats": None},
    }
    said = shell("lorabook evaluate runs/python mine.csv --split test --json", home).stdout
    assert json.loads(said)["accuracy"] == pytest.approx(accuracy)
    text, label, probability = read_answer(shell("lorabook predict runs/python --text 'a fine film'", home).stdout)
    assert (text, label, f"({100 * probability:.1f} %)") == ("a fine film", "pos", answer.removeprefix("pos "))


def read_answer(printed):
    """(text, label, probability) of a line of CSV with its header."""
    row = next(csv.DictReader(io.StringIO(printed)))
    return row["text"], row["label"], float(row["probability"])


def test_rank_against_error_of_ones_own_matrix_adapter_and_numbers(home, classified):
    printed = shell(RANKS, home).stdout
    wrote = re.findall(r"runs/\S+\.(?:csv|svg)", printed)
    assert len(wrote) == 6 and all((home / path).is_file() for path in wrote)
    errors = [row["weight_error"] for row in read_csv(home / wrote[0])]
    assert errors[2] > 0.01 and errors[3] < 1e-12  # the matrix has rank 3
    assert "bert.encoder.layer.0.attention.self.query" in printed
    assert {row["method"] for row in read_csv(home / wrote[4])} == {"full", "svd", "activation_svd", "lora"}


def test_without_a_gpu_the_third_block_says_what_is_missing(home):
    if not gpu_problem():
        pytest.skip("a GPU answers here: tests with the mark gpu use it")
    done = shell(GPU, home, check=False)
    assert done.returncode == 2 and "gpu" in done.stdout.lower()
    assert done.stderr.count("\n") == 1 and "backend cupy cannot be used" in done.stderr
    assert gpu_problem() in done.stderr
    assert not (home / "runs" / "sweep-digits-rotated").exists()
    assert json.loads(shell("lorabook doctor --json", home).stdout)
