"""Series of measurements: how a step's cost grows, the settings of the figure, the sweep in one process or many."""

import statistics
import time
from dataclasses import replace

import joblib
from tqdm import tqdm

from ..errors import InputError
from .case import SIX, Case
from .turns import compare, rows

# What `bench step --scaling` varies, one at a time around the case.
GRID = {
    "batch_size": (1, 2, 4, 8, 16, 32),
    "seq_len": (16, 32, 64, 128, 256),
    "r": (1, 4, 8, 16, 64),
    "adapted": (SIX[:1], SIX[:2], SIX[:3], SIX),
}

# The settings of figures/step_time.svg.
STEP_TIME = (
    Case(batch_size=16, seq_len=128),
    Case(batch_size=16, seq_len=128, target_modules=("query", "value")),
    Case(batch_size=32, seq_len=32),
    Case(batch_size=1, seq_len=32),
    Case(what="forward", batch_size=16, seq_len=128),
)


def scaling(case, runs=5, vs=None, progress=False, grid=None):
    """Rows {varied, value, ...as `turns.rows`}: the case with its batch, sequence, rank and targets changed in turn.

    A sequence or a rank that the model cannot have is left out. value: of what varies; for "adapted" the number of
    matrices. Each setting is measured in processes of its own, once, even if several of the series pass through it.
    """
    config = case.config()
    limits = {
        "seq_len": config["max_position_embeddings"],
        "r": min(config["hidden_size"], config["intermediate_size"]),
    }
    series = []
    for varied, values in (grid or GRID).items():
        for value in values:
            if varied == "adapted":
                series.append((varied, replace(case, target_modules=value)))
            elif value <= limits.get(varied, value):
                series.append((varied, replace(case, **{varied: value})))
    measured, tidy = {}, []
    for varied, one in tqdm(series, disable=None if progress else True, unit="setting"):
        if one not in measured:
            measured[one] = compare(one, runs, vs)
        tidy += [{"varied": varied, "value": row[varied]} | row for row in rows(measured[one])]
    return tidy


def step_time(runs=15, progress=False):
    """The rows of figures/step_time.svg: every setting of STEP_TIME beside PEFT."""
    cases = tqdm(STEP_TIME, disable=None if progress else True, unit="setting")
    return [row for case in cases for row in rows(compare(case, runs, vs="peft"))]


def sweep_jobs(jobs=-1, ranks=(1, 2, 4, 8, 16, 32, 64), seeds=2, epochs=60, runs=3, progress=False):
    """Seconds of the rank sweep on rotated digits with one process and with `jobs`, taking turns.

    {jobs, ranks, seeds, epochs, runs, one: {median, min}, many: {median, min}, time_ratio: many over one}.
    """
    from ..studies import rank_sweep, setting_for

    jobs = joblib.effective_n_jobs(jobs)
    if jobs < 2 or runs < 1:
        raise InputError(f"the sweep is compared with itself in 2 processes or more, once or more; got {jobs}, {runs}")
    setting = setting_for("digits-rotated", epochs=epochs)[0]
    setting.check(list(ranks), range(seeds))
    rank_sweep(replace(setting, epochs=1), ranks[:1], range(jobs), jobs)  # the processes start, and stay
    seconds = {1: [], jobs: []}
    for _ in tqdm(range(runs), delay=2, disable=None if progress else True, unit="turn"):
        for n, times in seconds.items():
            start = time.perf_counter()
            rank_sweep(setting, ranks, range(seeds), n)
            times.append(time.perf_counter() - start)
    one, many = ({"median": statistics.median(s), "min": min(s)} for s in seconds.values())
    result = {"jobs": jobs, "ranks": list(ranks), "seeds": seeds, "epochs": epochs, "runs": runs}
    return result | {"one": one, "many": many, "time_ratio": many["median"] / one["median"]}
