from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from checks import sweep_setting

from lorabook import InputError
from lorabook.book import figures, plots
from lorabook.data import SHIFTS
from lorabook.files import format_table, median_by, read_csv
from lorabook.studies import TUNED, Recipe, best_recipes, candidates, choices, digits_title, trained

FOLDER = Path(__file__).parents[2] / "figures"


@pytest.mark.parametrize("name", list(figures.FIGURES))
def test_every_figure_is_drawn_from_its_csv_with_labelled_axes(name, tmp_path):
    rows = read_csv(FOLDER / "data" / f"{name}.csv")
    before = plt.get_fignums()
    figure = figures.FIGURES[name].plot(rows)
    assert plt.get_fignums() == before  # a notebook would show it twice
    plotted = [axes for axes in figure.axes if axes.axison]  # a drawing has none
    assert all(axes.get_xlabel() for axes in plotted)
    assert all(axes.get_ylabel() for axes in plotted[:1])
    assert any(axes.texts for axes in figure.axes)
    plots.save(figure, tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 10_000


@pytest.mark.parametrize("name", list(figures.FIGURES))
def test_every_figure_has_its_command_in_its_csv(name):
    assert (FOLDER / "data" / f"{name}.csv").read_text().startswith(f"# lorabook figures {name}\n# python ")
    assert (FOLDER / f"{name}.svg").exists()


def test_no_figure_without_numbers():
    assert (
        {p.stem for p in FOLDER.glob("*.svg")}
        == {p.stem for p in (FOLDER / "data").glob("*.csv")}
        == set(figures.FIGURES)
    )


def test_committed_rank_sweep_respects_the_bound():
    rows = read_csv(FOLDER / "data" / "rank_vs_error.csv")
    bound = {(row["r"], row["seed"]): row["weight_error"] for row in rows if row["method"] == "svd"}
    others = [row for row in rows if row["method"] in ("activation_svd", "lora")]
    assert len(others) == 2 * len(bound) == 2 * 7 * 5
    assert all(row["weight_error"] >= bound[row["r"], row["seed"]] for row in others)


def test_committed_planted_runs_reach_the_bound():
    rows = [
        row for row in read_csv(FOLDER / "data" / "planted_bound.csv") if row["steps"] == 1000 and row["condition"] == 3
    ]
    assert len(rows) == 6 * 5
    assert all(1 - 1e-6 <= row["ratio"] <= 1.01 for row in rows)


def test_the_sweep_trains_by_what_was_best_on_validation_rows():
    rows = read_csv(FOLDER / "data" / "learning_rates.csv")
    assert len(rows) == 10 * len(candidates(figures.RANKS))
    assert best_recipes(rows) == TUNED


def test_the_choices_that_are_compared_are_those_of_the_sweep():
    rows = read_csv(FOLDER / "data" / "headline_choices.csv")
    for r in (None, *choices.RANKS):
        own = [row for row in rows if (row["choice"], row["r"]) == ("tuned", r)]
        assert sorted((row["split"], row["seed"]) for row in own) == [(i, k) for i in range(10) for k in range(3)]
        assert all({name: row[name] for name in ("lr", "lora_alpha", "use_rslora")} == TUNED[r].cells(r) for row in own)


def test_choices_are_compared_on_the_same_splits():
    rows = choices.choice_rows(sweep_setting(), splits=(0,), seeds=(1,), ranks=(2,))
    assert [(row["choice"], row["r"]) for row in rows] == [
        ("first", None), ("tuned", None), ("first", 2), ("rslora", 2), ("tuned", 2)
    ]  # fmt: skip
    assert [row["lr"] for row in rows[:4]] == [3e-3, TUNED[None].lr, 1e-2, 1e-2]
    assert [(row["lora_alpha"], row["use_rslora"]) for row in rows[1:4]] == [(None, None), (16, 0), (16, 1)]
    assert all(1 <= row["directions_fc1"] <= (row["r"] or 7) for row in rows)
    problem = sweep_setting().problem(0)
    model, _ = trained(sweep_setting().using({2: Recipe(1e-2, 16, True)}), problem, 2, 1)
    assert rows[3]["test_accuracy"] == problem.evaluate(model)[1]


def test_rank_vs_error_can_be_drawn_from_few_ranks_and_one_seed():
    rows = [
        row for row in read_csv(FOLDER / "data" / "rank_vs_error.csv") if row["r"] in (None, 4) and row["seed"] == 0
    ]
    assert len(plots.rank_vs_error(rows, "few").axes) == 2


def test_the_headline_says_that_its_seeds_are_splits():
    rows = read_csv(FOLDER / "data" / "rank_vs_error.csv")
    assert "line: median of 5 splits" in figures.FIGURES["rank_vs_error"].plot(rows)._suptitle.get_text()
    assert "line: median of 5 seeds" in plots.rank_vs_error(rows)._suptitle.get_text()


def test_unknown_figure():
    with pytest.raises(InputError, match="unknown figure 'x'; expected one of rank_vs_error"):
        figures.rebuild("x", FOLDER)


# ---- tables ----------------------------------------------------------------------------------------------------------


def test_table_lines_up():
    rows = [{"n": "one", "v": 1}, {"n": "eleven", "v": 11}]
    text = format_table(rows, {"name": lambda row: row["n"], "value": lambda row: str(row["v"])})
    assert text == "name    value\n-------------\none         1\neleven     11"


def test_median_of_odd_and_even_groups():
    rows = [{"k": 1, "v": 3.0}, {"k": 1, "v": 1.0}, {"k": 1, "v": 2.0}, {"k": 2, "v": 1.0}, {"k": 2, "v": 2.0}]
    assert median_by(rows, ("k",), "v") == {(1,): (2.0, 1.0, 3.0), (2,): (1.5, 1.0, 2.0)}


@pytest.mark.parametrize("perfect", [True, False])
def test_titles_fit_and_a_perfect_score_is_drawn(perfect):
    rows = read_csv(FOLDER / "data" / "rank_vs_error.csv")
    if perfect:
        rows = [row | {"test_accuracy": 1.0} for row in rows]
    title = max((digits_title(name) for name in SHIFTS), key=len)
    figure = plots.rank_vs_error(rows, title)
    figure.canvas.draw()
    for text in (figure._suptitle, *(axes.title for axes in figure.axes)):
        box = text.get_window_extent()
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1
    low, high = figure.axes[1].get_ylim()
    assert 0 < low < high


def test_without_a_name_the_figures_are_listed_with_their_times_and_nothing_starts(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run("figures")
    assert (code, err) == (0, "") and not list(tmp_path.iterdir())
    lines = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line}
    assert all(lines[name][-1] in ("min", "h") for name in figures.FIGURES)
    assert lines["rank_vs_error"] == ["under", "1", "min"]


@pytest.mark.parametrize(
    "name", ["rank_vs_error", "learning_rates", "reviews_recipe", "reviews_matrices", "reviews_rank"]
)
def test_the_time_that_is_listed_is_that_of_the_runs_behind_the_figure(name):
    rows = read_csv(FOLDER / "data" / f"{name}.csv")
    runs = [row for row in rows if "svd" not in str(row.get("method"))]  # one SVD serves many rows
    cores = 1 if name.startswith("reviews_") else 2  # a run of the encoder takes both
    assert 0.5 <= figures.FIGURES[name].minutes / (sum(row["seconds"] for row in runs) / 60 / cores) <= 2
