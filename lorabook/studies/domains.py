"""A language model adapted to one of four domains, and measured on all of them: what it learns, and what it forgets.

SmolLM2-135M learns tweets in a few hundred short steps: all of its numbers, or LoRA of several ranks on the seven
linear layers of every block. First the learning rates are chosen on validation rows, which are held out of the training
rows. Each run leaves a folder with its result; one that is there already is not repeated.
"""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import joblib
import numpy as np
from tqdm import tqdm

from ..adapters import LoRAConfig, count, inject
from ..data import DOMAINS, Batches, Packed, Sequences, snippets
from ..errors import InputError
from ..files import output_folder, prepare_folder, write_atomic
from ..hub import locate
from ..tasks import evaluate, load_model
from ..training import AdamW, train

FOLDER = "runs/domains"
RANKS = (1, 8, 64)
SEEDS = (0, 1, 2)
# LoRA's is chosen at r = 8: with lora_alpha / r the first step of AdamW is as large at every rank (chapter 03).
RATES = {"lora": (3e-4, 1e-3, 3e-3), "full": (1e-5, 3e-5, 1e-4)}
TUNED_RANK = 8


@dataclass(frozen=True)
class DomainsTask:
    """What all runs of a folder have in common. steps: of a run; half of them where rates are compared.

    A step takes `batch_size` rows of `T` tokens, several texts packed into each. measured: texts of each domain whose
    perplexity is taken, from the start of its test rows.
    """

    model: str = "smollm2"
    learned: str = "tweets"
    T: int = 48
    batch_size: int = 2
    steps: int = 200
    measured: int = 64

    def rows(self, domain, part):
        """Sequences of the "train", "validation" or "test" rows of a domain."""
        corpus = snippets(locate("snippets"), domain)
        if part != "test":
            corpus = corpus.validation()
        rows = [row for _, row in (corpus.train if part == "train" else corpus.test)]
        return rows if part == "train" else rows[: self.measured]


@dataclass(frozen=True)
class DomainRun:
    """One training. method: "base", the model as it is; "full"; "lora" at rank `r`.

    tuning: half of the steps, measured on validation rows of the learned domain alone. seed: of batches and factors.
    """

    method: str
    r: int | None = None
    lr: float | None = None
    seed: int | None = None
    tuning: bool = False

    @property
    def name(self):
        """Folder of the run."""
        parts = {"r": self.r, "lr": self.lr, "seed": self.seed}
        told = [f"{name}{value:g}" for name, value in parts.items() if value is not None]
        return "-".join([self.method, *told, *["tuning"] * self.tuning])


def rate_runs():
    """The runs that the learning rates are chosen by."""
    ranks = {"lora": TUNED_RANK, "full": None}
    return [DomainRun(m, ranks[m], lr, 0, tuning=True) for m, rates in RATES.items() for lr in rates]


def best_rates(rows):
    """{method: the rate of lowest validation loss} from the rows of `rate_runs`."""
    return {m: min((row for row in rows if row["method"] == m), key=lambda row: row["loss"])["lr"] for m in RATES}


def learning_runs(rates, seeds=SEEDS):
    """The model as it is, full fine-tuning, and LoRA at each rank, with these rates {method: lr}."""
    kinds = [("full", None), *(("lora", r) for r in RANKS)]
    return [DomainRun("base"), *(DomainRun(m, r, rates[m], seed) for m, r in kinds for seed in seeds)]


def rows(jobs=1, progress=False, folder=FOLDER, task=None):
    """Rows {method, r, lr, seed, params, part, domain, tokens, loss, perplexity, seconds}, of each run and domain.

    First the runs behind the choice of rates (part "validation"), then those with the chosen ones (part "test").
    """
    tuning = run_all(rate_runs(), folder, jobs, progress, task)
    return tuning + run_all(learning_runs(best_rates(tuning)), folder, jobs, progress, task)


def run_all(settings, folder=FOLDER, jobs=1, progress=False, task=None):
    """The rows of all settings, in their order, computed where they are missing in `folder`.

    jobs: processes, of one thread each if there are several; no number but the seconds depends on how many there are.
    """
    task = task or DomainsTask()
    missing = [setting for setting in settings if _result(setting, folder, task) is None]
    if missing:
        prepare_folder(folder)
        for name in (task.model, "snippets"):
            locate(name)  # fetched once, here, not by every process
        parallel = joblib.Parallel(n_jobs=jobs, return_as="generator_unordered")
        found = parallel(joblib.delayed(run)(setting, folder, task, None if jobs == 1 else 1) for setting in missing)
        for _ in tqdm(found, total=len(missing), disable=None if progress else True, unit="run"):
            pass
    return [row for setting in settings for row in _result(setting, folder, task)]


def run(setting, folder=FOLDER, task=None, workers=None):
    """The rows of one run, computed if missing."""
    task = task or DomainsTask()
    if (found := _result(setting, folder, task)) is not None:
        return found
    with output_folder(Path(folder) / setting.name) as out:
        return _result(setting, folder, task) or _train(setting, out, task, workers)


def _result(setting, folder, task):
    """The rows of a finished run, or None."""
    path = Path(folder) / setting.name / "result.json"
    if not path.exists():
        return None
    found = json.loads(path.read_bytes())
    if (came := found.get("run")) != (own := {"setting": asdict(setting), "task": asdict(task)}):
        raise InputError(f"{path} is of another setting: {came}, not {own}. Choose another folder of runs")
    return found["rows"]


class _Few(Batches):
    """The first `steps` batches of an epoch: as many rows, drawn by the seed."""

    def __init__(self, examples, batch_size, seed, steps):
        super().__init__(examples, batch_size, seed)
        self.steps = steps

    def __len__(self):
        return min(self.steps, super().__len__())


def _train(setting, out, task, workers):
    model, seconds = load_model(task.model), 0.0
    about = model.about

    def sequences(domain, part):
        return Packed(Sequences(task.rows(domain, part), about.tokenizer, task.T, about.end_id))

    if setting.method == "lora":
        config = LoRAConfig(r=setting.r, lora_alpha=16, target_modules="all-linear")
        inject(model, config, np.random.default_rng(setting.seed))
    if setting.method != "base":
        steps = task.steps // 2 if setting.tuning else task.steps
        start = time.perf_counter()
        train(
            model,
            _Few(sequences(task.learned, "train"), task.batch_size, setting.seed, steps),
            AdamW(setting.lr),
            epochs=1,
            lr_schedule="linear",
            seed=setting.seed,
            checkpoint=out / "checkpoint.safetensors" if setting.method == "lora" else None,  # else 1.6 GB
            checkpoint_every=50,
            resume=True,
            description=asdict(task),
            workers=workers,
        )
        seconds = time.perf_counter() - start
    params = 0 if setting.method == "base" else count(model.trainable_params())
    own = {"method": setting.method, "r": setting.r, "lr": setting.lr, "seed": setting.seed, "params": params}
    part, found = "validation" if setting.tuning else "test", []
    for domain in (task.learned,) if setting.tuning else DOMAINS:
        texts = sequences(domain, part)
        loss, perplexity, tokens = evaluate(model, Batches(texts, min(4, texts.n)), workers)
        measured = {"part": part, "domain": domain, "tokens": tokens, "loss": loss, "perplexity": perplexity}
        found.append(own | measured | {"seconds": seconds})
    result = {"run": {"setting": asdict(setting), "task": asdict(task)}, "rows": found}
    write_atomic(out / "result.json", json.dumps(result) + "\n")
    return found
