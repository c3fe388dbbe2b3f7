"""The figures of README and chapters: each is a CSV that a command makes, and a picture drawn from that CSV alone."""

import hashlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from . import plotting, plotting_bench, plotting_choices, plotting_reviews, review_directions, reviews
from .bench import Case, series
from .bounds import bound_sweep
from .choices import choice_rows
from .data import SHIFTS
from .errors import InputError
from .pretrain import csv_problem, digits_problem
from .sweep import Setting, rank_sweep
from .tables import is_table, read_csv, write_csv
from .tuning import candidates, learning_rate_sweep

RANKS = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Figure:
    """rows(jobs, progress, runs) computes the numbers, plot(rows) draws them. runs: folder of the encoder's runs.

    minutes: about how long the numbers take on two cores, from nothing.
    """

    rows: object
    plot: object
    minutes: float


def setting_for(data="digits-rotated", seed=0, encoding="utf-8", **options):
    """(Setting, title) of a sweep: from upright digits to a shifted version of them, or on the user's own table.

    A table has no upright version to pretrain on: its base is an untrained MLP, so Delta W is all that training does.
    seed: the one whose problem the title describes. encoding: of the table.
    """
    own = is_table(data)
    problem = partial(csv_problem, data, encoding=encoding) if own else partial(digits_problem, data)
    setting = Setting(problem, about={"data": data}, **options)
    sizes = _sizes(setting.problem(seed).base)
    if own:
        with open(data, "rb") as file:
            setting.about["data"] = hashlib.file_digest(file, "sha256").hexdigest()
    return setting, f"MLP {sizes} on {Path(data).name}, from random weights" if own else digits_title(data, sizes)


def digits_title(data="digits-rotated", sizes="64-128-128-10"):
    """What the sweep on shifted digits shows, in words."""
    return f"MLP {sizes}, pretrained on upright handwritten digits; now {SHIFTS[data][0]}"


def _sizes(model):
    weights = [array for array in model.named_params().values() if array.ndim == 2]
    return "-".join(str(n) for n in (weights[0].shape[1], *(W.shape[0] for W in weights)))


def _rank_vs_error(jobs, progress, runs):
    return rank_sweep(setting_for()[0], RANKS, range(5), jobs, progress)


def _headline_choices(jobs, progress, runs):
    return choice_rows(setting_for()[0], jobs=jobs, progress=progress)


def _learning_rates(jobs, progress, runs):
    return learning_rate_sweep(setting_for()[0], candidates(RANKS), range(10), jobs, progress)


def _planted_bound(jobs, progress, runs):
    return bound_sweep((1, 2, 3, 4, 6, 8), range(5), jobs=jobs, progress=progress)


def _reviews(settings):
    """rows of a Figure whose numbers are the results of these runs."""
    return lambda jobs, progress, runs: reviews.run_all(settings(), runs, jobs, progress)


def _step_time(jobs, progress, runs):
    return series.step_time(progress=progress)


def _step_scaling(jobs, progress, runs):
    return series.scaling(Case(), vs="peft", progress=progress)


def _plot_rank_vs_error(rows):
    return plotting.rank_vs_error(rows, digits_title(), repeated="splits")


FIGURES = {
    "rank_vs_error": Figure(_rank_vs_error, _plot_rank_vs_error, 0.5),
    "headline_choices": Figure(_headline_choices, plotting_choices.headline_choices, 7),
    "learning_rates": Figure(_learning_rates, plotting_choices.learning_rates, 20),
    "planted_bound": Figure(_planted_bound, plotting.planted_bound, 1),
    "reviews_recipe": Figure(_reviews(reviews.recipe), plotting_reviews.recipe, 110),
    "reviews_matrices": Figure(_reviews(reviews.which_matrices), plotting_reviews.matrices, 20),
    "reviews_rank": Figure(_reviews(reviews.which_rank), plotting_reviews.ranks, 45),
    "reviews_subspaces": Figure(review_directions.subspaces, plotting_reviews.subspaces, 50),
    "reviews_amplification": Figure(review_directions.amplifications, plotting_reviews.amplifications, 50),
    "reviews_spectrum": Figure(review_directions.spectra, plotting_reviews.spectra, 110),
    "reviews_intruders": Figure(review_directions.intruders, plotting_reviews.intruders, 110),
    "step_time": Figure(_step_time, plotting_bench.step_time, 10),  # these two need PEFT
    "step_scaling": Figure(_step_scaling, plotting_bench.step_scaling, 45),
}


def rebuild(name, folder, jobs=1, progress=False, runs=reviews.FOLDER):
    """Compute one figure: folder/data/NAME.csv and folder/NAME.svg. Returns the path of the picture.

    All from scratch, but for the runs of the encoder that are in the folder `runs` already.
    """
    if name not in FIGURES:
        raise InputError(f"unknown figure {name!r}; expected one of {', '.join(FIGURES)}")
    folder = Path(folder)
    rows = FIGURES[name].rows(jobs, progress, runs)
    write_csv(folder / "data" / f"{name}.csv", rows, f"lorabook figures {name}")
    return redraw(name, folder)


def redraw(name, folder):
    """Draw one figure from its CSV, without computing anything. Returns the path of the picture."""
    path = Path(folder) / f"{name}.svg"
    plotting.save(FIGURES[name].plot(read_csv(Path(folder) / "data" / f"{name}.csv")), path)
    return path
