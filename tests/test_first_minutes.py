"""The README's first ten minutes, run as they are written, on files that a reader might bring."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lorabook import InputError
from lorabook.backend import gpu_problem
from lorabook.hub import locate
from lorabook.tables import read_csv, read_table

ROOT = Path(__file__).parents[1]
SECTION = (ROOT / "README.md").read_text(encoding="utf-8").split("## The first ten minutes")[1].split("\n## ")[0]
CLASSIFY, RANKS, GPU = re.findall(r"```bash\n(.*?)```", SECTION, re.DOTALL)
GOOD = ("a fine film", "moving and funny", "a joy from start to end", "I loved the music", "bright, warm and clever")
POOR = ("a dull film", "slow and empty", "a bore from start to end", "I hated the music", "loud, cold and stupid")

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the README's blocks are written for a POSIX shell")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with mine.csv, new.csv, matrix.csv and numbers.csv."""
    folder, rng = tmp_path_factory.mktemp("reader"), np.random.default_rng(0)
    texts = [
        (f"{text}, part {i}", label) for i in range(15) for label, of in (("pos", GOOD), ("neg", POOR)) for text in of
    ]
    (folder / "mine.csv").write_text("text,label\n" + "".join(f'"{text}",{label}\n' for text, label in texts))
    (folder / "new.csv").write_text("id,text\n7,a fine joy\n8,slow and dull\n")
    np.savetxt(folder / "matrix.csv", rng.standard_normal((9, 3)) @ rng.standard_normal((3, 8)), delimiter=",")
    x = rng.standard_normal((90, 5))
    rows = "".join(",".join([*map(str, row), "ab"[int(row[0] > 0)]]) + "\n" for row in x)
    (folder / "numbers.csv").write_text("a,b,c,d,e,label\n" + rows)
    return folder


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
    code = "import lorabook; print(lorabook.predict(lorabook.load_model('runs/mine'), ['a fine film'])[0].label)"
    assert code.split("print(")[1].split("[0]")[0].replace("'", '"') in SECTION
    assert shell(f'python -c "{code}"', home).stdout == "pos\n"


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
