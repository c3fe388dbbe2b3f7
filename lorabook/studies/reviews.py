"""The encoder's experiments: MiniLM on movie reviews, trained in many settings, resumably.

Each run leaves a folder with its adapter, or its update, and its result. Tables share the runs that they have in
common; a run that is there already is not repeated, one that was cut off continues at its checkpoint.
"""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import joblib
import numpy as np
from tqdm import tqdm

from ..adapters import LoRAConfig, count, inject, save_adapter
from ..errors import InputError
from ..files import output_folder, prepare_folder, write_atomic, write_safetensors
from ..hub import locate
from ..tasks import evaluate, training_job
from ..training import AdamW, train

FOLDER = "runs/reviews"
ATTENTION = ("query", "key", "value", "attention.output.dense")
RATES = {"lora": 1e-3, "head": 1e-3, "classifier": 1e-3, "full": 5e-5}
HEADS = {"head": slice(None), "classifier": slice(-1, None)}  # which of its head's layers train over a frozen encoder
RECIPE_EPOCHS = 2
TABLE_EPOCHS = 0.5  # half of the reviews, once, in each of the 57 runs behind the paper's Tables 5, 6 and 7
RANKS = (1, 2, 4, 8, 64)
SEEDS = (0, 1, 2)
# {(method, r): accuracy} that torch and PEFT reached in this recipe: one run each, on a split of their own. Full
# fine-tuning was noted as "more than 85 %".
PEFT = {("full", None): 0.85, ("lora", 8): 0.836, ("lora", 1): 0.814, ("head", None): 0.703}


@dataclass(frozen=True)
class ReviewsTask:
    """What all runs of a folder are trained on, as `tasks.training_job` takes it."""

    model: str = "minilm"
    data: str = "movie-reviews"
    batch_size: int = 32
    max_length: int = 128

    def job(self, seed=0):
        """The Job of one seed."""
        return training_job(self.model, self.data, self.batch_size, seed, self.max_length)


@dataclass(frozen=True)
class ReviewsRun:
    """One training. method: "lora" on `targets` at rank `r`, and the classifier; "full", all there is; one of HEADS.

    seed: of the batches, of the factors, and of the classifier's start. epochs: below 1, that share of the texts, once.
    """

    method: str
    targets: tuple[str, ...] = ()
    r: int | None = None
    seed: int = 0
    epochs: float = RECIPE_EPOCHS

    @property
    def name(self):
        """Folder of the run."""
        targets = [target.split(".")[0] for target in self.targets]
        rank = [f"r{self.r}"] if self.r else []
        return "-".join([self.method, *targets, *rank, f"epochs{self.epochs}", f"seed{self.seed}"])

    @property
    def row(self):
        """What a CSV says about the setting."""
        values = asdict(self) | {"targets": " ".join(self.targets), "lr": RATES[self.method]}
        return {column: values[column] for column in ("method", "targets", "r", "epochs", "lr", "seed")}


def recipe(seeds=SEEDS):
    """Full fine-tuning; LoRA on query and value; the head alone, which in BERT is the pooler and the classifier."""
    qv = ("query", "value")
    rows = [("full", (), None), ("lora", qv, 8), ("lora", qv, 1), ("head", (), None), ("classifier", (), None)]
    return [ReviewsRun(*row, seed) for row in rows for seed in seeds]


def which_matrices(seeds=SEEDS):
    """Which matrices at a fixed number of parameters? The settings of the LoRA paper's Table 5."""
    q, k, v, o = ATTENTION
    rows = [((q,), 8), ((k,), 8), ((v,), 8), ((o,), 8), ((q, k), 4), ((q, v), 4), ((q, k, v, o), 2)]
    return [ReviewsRun("lora", targets, r, seed, TABLE_EPOCHS) for targets, r in rows for seed in seeds]


def which_rank(seeds=SEEDS):
    """Which rank? The settings of the LoRA paper's Table 6."""
    q, _, v, _ = ATTENTION
    rows = [(targets, r) for targets in ((q,), (q, v), ATTENTION) for r in RANKS]
    return [ReviewsRun("lora", targets, r, seed, TABLE_EPOCHS) for targets, r in rows for seed in seeds]


def run_all(settings, folder=FOLDER, jobs=1, progress=False, task=None):
    """The rows of all settings, in their order, computed where they are missing in `folder`.

    jobs: processes; no number but the seconds depends on how many there are. task: `ReviewsTask()`, the movie reviews,
    unless told otherwise.
    """
    settings, task = list(dict.fromkeys(settings)), task or ReviewsTask()
    missing = [setting for setting in settings if _result(setting, folder) is None]
    if missing:
        prepare_folder(folder)
        for name in (task.model, task.data):
            locate(name)  # fetched once, here, not by every process
        parallel = joblib.Parallel(n_jobs=jobs, return_as="generator_unordered")
        rows = parallel(joblib.delayed(run)(setting, folder, task, None if jobs == 1 else 1) for setting in missing)
        for _ in tqdm(rows, total=len(missing), disable=None if progress else True, unit="run"):
            pass
    return [_result(setting, folder) for setting in settings]


def run(setting, folder=FOLDER, task=None, workers=None):
    """Row {method, targets, r, epochs, lr, seed, params, test_loss, test_accuracy, seconds}, computed if missing.

    The folder of the run keeps the adapter of LoRA, the update of the encoder's matrices of full fine-tuning.
    """
    if row := _result(setting, folder):
        return row
    with output_folder(Path(folder) / setting.name) as out:
        return _result(setting, folder) or _train(setting, out, task or ReviewsTask(), workers)


def _result(setting, folder):
    """The row of a finished run, or None."""
    path = Path(folder) / setting.name / "result.json"
    if not path.exists():
        return None
    row = json.loads(path.read_bytes())
    if (came := {column: row.get(column) for column in setting.row}) != setting.row:
        raise InputError(f"{path} is of another setting: {came}, not {setting.row}. Choose another folder of runs")
    return row


def _train(setting, out, task, workers):
    job = task.job(setting.seed)
    model, config, before = job.model, None, {}
    if setting.method == "lora":
        options = {"target_modules": setting.targets, "modules_to_save": job.modules_to_save}
        config = LoRAConfig(r=setting.r, lora_alpha=16, **options)
        inject(model, config, np.random.default_rng(setting.seed))
    elif setting.method in HEADS:
        layers = model.head_layers[HEADS[setting.method]]
        model.set_trainable(name for name in model.named_params() if name.rpartition(".")[0] in layers)
    else:
        blocks = model.architecture.blocks
        before = {n: a.copy() for n, a in model.named_params().items() if blocks in n and a.ndim == 2}
    batches = job.batches if setting.epochs >= 1 else job.batches.first(setting.epochs)
    start = time.perf_counter()
    train(
        model,
        batches,
        AdamW(RATES[setting.method]),
        epochs=max(1, setting.epochs),
        lr_schedule="linear",
        seed=setting.seed,
        checkpoint=None if before else out / "checkpoint.safetensors",  # 270 MB, for a run of minutes
        resume=True,
        description=setting.row | asdict(task),
        workers=workers,
    )
    seconds = time.perf_counter() - start
    loss, accuracy = evaluate(model, job.test, workers)
    if config:
        save_adapter(out, model, task.model, job.task_type, job.labels, job.max_length)
    if before:
        after = model.named_params()
        write_safetensors(out / "update.safetensors", {name: after[name] - a for name, a in before.items()})
    params = count(model.trainable_params())
    row = setting.row | {"params": params, "test_loss": loss, "test_accuracy": accuracy, "seconds": seconds}
    write_atomic(out / "result.json", json.dumps(row) + "\n")
    return row
