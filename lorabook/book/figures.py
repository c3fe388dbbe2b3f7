"""The figures of README and chapters: each is a CSV that a command makes, and a picture drawn from that CSV alone."""

from dataclasses import dataclass
from pathlib import Path

from ..bench import Case, series
from ..errors import FormatError, InputError
from ..files import read_csv, short, write_csv
from ..studies import (
    bound_sweep,
    candidates,
    choice_rows,
    digits_title,
    domains,
    learning_rate_sweep,
    quantized,
    rank_sweep,
    review_directions,
    reviews,
    setting_for,
)
from . import counted, four_bits, parts, plots, sizes, updates
from .plots import (
    bench,
    choices,
    drawing_backprop,
    drawing_block,
    drawing_decoder,
    drawing_four_bits,
    drawing_host_device,
    drawing_lora,
    drawing_mlp,
    drawing_shards,
    drawing_svd,
    drawing_updates,
)
from .plots import domains as plotting_domains
from .plots import four_bits as plotting_four_bits
from .plots import reviews as plotting_reviews

RANKS = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Figure:
    """rows(jobs, progress, runs) computes the numbers, plot(rows) draws them.

    minutes: about how long the numbers take on two cores, from nothing. runs: the folder that the trainings behind them
    are left in, unless told otherwise; None: there is none.
    """

    rows: object
    plot: object
    minutes: float
    runs: str | None = None


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


def _domains(jobs, progress, runs):
    return domains.rows(jobs, progress, runs)


def _few_bits(jobs, progress, runs):
    return quantized.digits_rows(jobs=jobs, progress=progress)


def _step_time(jobs, progress, runs):
    return series.step_time(progress=progress)


def _step_scaling(jobs, progress, runs):
    return series.scaling(Case(), vs="peft", progress=progress)


def _plot_rank_vs_error(rows):
    return plots.rank_vs_error(rows, digits_title(), repeated="splits")


FIGURES = {
    "rank_vs_error": Figure(_rank_vs_error, _plot_rank_vs_error, 0.5),
    "headline_choices": Figure(_headline_choices, choices.headline_choices, 7),
    "learning_rates": Figure(_learning_rates, choices.learning_rates, 20),
    "planted_bound": Figure(_planted_bound, plots.planted_bound, 1),
    "svd": Figure(drawing_svd.rows, drawing_svd.svd, 0.1),
    "backprop": Figure(drawing_backprop.rows, drawing_backprop.backprop, 0.1),
    "lora": Figure(sizes.one_layer, drawing_lora.lora, 0.1),
    "mlp_adapters": Figure(sizes.digits_mlp, drawing_mlp.mlp, 0.1),
    "block": Figure(parts.block, drawing_block.block, 0.1),
    "decoder": Figure(parts.decoder, drawing_decoder.decoder, 0.1),
    "shards": Figure(parts.shards, drawing_shards.shards, 0.1),
    "host_device": Figure(counted.by_phase, drawing_host_device.host_device, 0.1),
    "updates": Figure(updates.rows, drawing_updates.updates, 0.3),
    "reviews_recipe": Figure(_reviews(reviews.recipe), plotting_reviews.recipe, 110, reviews.FOLDER),
    "reviews_matrices": Figure(_reviews(reviews.which_matrices), plotting_reviews.matrices, 20, reviews.FOLDER),
    "reviews_rank": Figure(_reviews(reviews.which_rank), plotting_reviews.ranks, 45, reviews.FOLDER),
    "reviews_subspaces": Figure(review_directions.subspaces, plotting_reviews.subspaces, 50, reviews.FOLDER),
    "reviews_amplification": Figure(
        review_directions.amplifications, plotting_reviews.amplifications, 50, reviews.FOLDER
    ),
    "reviews_spectrum": Figure(review_directions.spectra, plotting_reviews.spectra, 110, reviews.FOLDER),
    "reviews_intruders": Figure(review_directions.intruders, plotting_reviews.intruders, 110, reviews.FOLDER),
    "four_bits": Figure(four_bits.drawing, drawing_four_bits.four_bits, 0.1),
    "format_errors": Figure(four_bits.format_errors, plotting_four_bits.format_errors, 1),
    "few_bits": Figure(_few_bits, plotting_four_bits.trainings, 1.5),
    "domains": Figure(_domains, plotting_domains.domains, 45, domains.FOLDER),
    "step_time": Figure(_step_time, bench.step_time, 10),  # these two need PEFT
    "step_scaling": Figure(_step_scaling, bench.step_scaling, 45),
}


def rebuild(name, folder, jobs=1, progress=False, runs=None):
    """Compute one figure: folder/data/NAME.csv and folder/NAME.svg. Returns the path of the picture.

    All from scratch, but for the trainings that are in the folder `runs` already (default: the figure's own).
    """
    if name not in FIGURES:
        raise InputError(f"unknown figure {name!r}; expected one of {', '.join(FIGURES)}")
    folder = Path(folder)
    rows = FIGURES[name].rows(jobs, progress, runs or FIGURES[name].runs)
    path = folder / "data" / f"{name}.csv"
    write_csv(path, rows, f"lorabook figures {name}")
    return _save(FIGURES[name].plot(read_csv(path)), name, folder)


def redraw(name, folder):
    """Draw one figure from its CSV, without computing anything. Returns the path of the picture.

    Raises FormatError if the CSV was changed, and is not what the figure is drawn from any more.
    """
    path = Path(folder) / "data" / f"{name}.csv"
    rows = read_csv(path)
    try:
        return _save(FIGURES[name].plot(rows), name, folder)
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        came = f"{type(error).__name__}: {short(error)}"
        how = f"restore it, or compute it again: lorabook figures {name}"
        raise FormatError(f"{path} does not hold what this figure is drawn from ({came}); {how}") from error


def _save(figure, name, folder):
    path = Path(folder) / f"{name}.svg"
    plots.save(figure, path)
    return path
