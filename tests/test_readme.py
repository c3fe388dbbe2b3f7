"""What the README says is so: its links lead somewhere, its commands parse, its figures are those of the CSV files."""

import re
from pathlib import Path

from lorabook.cli import COMMANDS, parser
from lorabook.tables import median_by, read_csv

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


def percent(spread):
    return "{:.1f} % ({:.1f} - {:.1f})".format(*(100 * v for v in spread))


def test_figures_of_the_rank_sweep():
    rows = read_csv(ROOT / "figures" / "data" / "rank_vs_error.csv")
    accuracy = median_by(rows, ("method", "r"), "test_accuracy")
    distance = median_by(rows, ("method", "r"), "weight_error")
    params = median_by(rows, ("method", "r"), "params")
    for key in (("full", None), ("svd", 4), ("activation_svd", 4), ("lora", 4)):
        assert percent(accuracy[key]) in TEXT
    assert "{:.2f} ({:.2f} - {:.2f}), the bound is {:.2f}".format(*distance["lora", 4], distance["svd", 4][0]) in TEXT
    assert f"{params['lora', 4][0]:,} numbers" in TEXT
    assert f"all {params['full', None][0]:,} weights" in TEXT
    useful = [r for (method, r), spread in accuracy.items() if method == "svd" and r and spread[0] > 0.9]
    assert min(useful) == 8  # "useless as a model below rank 8"
    assert f"is {100 * accuracy['lora', 2][0]:.1f} % right at rank 2" in TEXT
    assert max(v[0] for (method, _), v in accuracy.items() if method == "lora") < accuracy["full", None][0]


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
    assert f"the same command gave {', '.join(time[:4])} and {time[4]}" in text
    assert sum(row["time_ratio"] > 1 for row in other) == 2 and "PEFT was ahead in two of the five" in text


def test_number_of_mutants():
    from test_mutants import CASES

    assert f"{len(CASES)} of {len(CASES)}" in TEXT
