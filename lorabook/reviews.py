"""The encoder's experiments: MiniLM on movie reviews, trained in many settings, one after another, resumably.

Each run leaves a folder with its adapter and its result; a run that is there already is not repeated, one that was cut
off continues at its checkpoint. `lorabook figures` collects the results.
"""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from .adapter_io import save_adapter
from .adapters import LoRAConfig, inject
from .adapters.memory import count
from .io import prepare_folder, write_atomic, write_safetensors
from .jobs import evaluate, make_job
from .optim import AdamW
from .train import train

ATTENTION = ("query", "key", "value", "attention.output.dense")
RATES = {"lora": 1e-3, "head": 1e-3, "full": 5e-5}


@dataclass(frozen=True)
class Setting:
    """One training. method: "lora" on `targets` at rank `r`; "full", every parameter; "head", pooler's output only."""

    method: str
    targets: tuple[str, ...] = ()
    r: int | None = None
    seed: int = 0
    epochs: int = 2

    @property
    def name(self):
        """Folder of the run."""
        parts = [
            self.method,
            *(t.split(".")[0] for t in self.targets),
            f"r{self.r}" if self.r else "",
            f"seed{self.seed}",
        ]
        return "-".join([p for p in parts if p] + ([f"epochs{self.epochs}"] if self.epochs != 2 else []))


def recipe(seeds=range(3)):
    """The settings whose accuracy is compared with PEFT's: LoRA on query and value, head only, full fine-tuning."""
    qv = ("query", "value")
    rows = [("lora", qv, 8), ("lora", qv, 1), ("head", (), None), ("full", (), None)]
    return [Setting(*row, seed) for seed in seeds for row in rows]


def which_matrices(seeds=range(3)):
    """Which matrices at a fixed number of parameters? The settings of the LoRA paper's Table 5."""
    q, k, v, o = ATTENTION
    rows = [((q,), 8), ((k,), 8), ((v,), 8), ((o,), 8), ((q, k), 4), ((q, v), 4), ((q, k, v, o), 2)]
    return [Setting("lora", targets, r, seed) for seed in seeds for targets, r in rows]


def which_rank(seeds=range(3)):
    """Which rank? The settings of the LoRA paper's Table 6."""
    q, _, v, _ = ATTENTION
    return [Setting("lora", t, r, seed) for seed in seeds for t in ((q,), (q, v), ATTENTION) for r in (1, 2, 4, 8, 64)]


def run_all(settings, folder, progress=False):
    """The rows of all settings, computed where they are missing in `folder`."""
    quiet = None if progress else True
    return [run(setting, folder, progress) for setting in tqdm(settings, delay=2, disable=quiet, unit="run")]


def run(setting, folder, progress=False):
    """Row {method, targets, r, seed, params, test_loss, test_accuracy, seconds} of one setting, computed if missing."""
    out = Path(folder) / setting.name
    done = out / "result.json"
    if done.exists():
        return json.loads(done.read_text())
    out = prepare_folder(out)
    job = make_job("minilm", "movie-reviews", seed=setting.seed)
    model, config = job.model, None
    if setting.method == "lora":
        config = LoRAConfig(r=setting.r, target_modules=setting.targets, modules_to_save=job.modules_to_save)
        inject(model, config, np.random.default_rng(setting.seed))
    elif setting.method == "head":
        model.set_trainable(["classifier.weight", "classifier.bias"])
    before = (
        {name: array.copy() for name, array in model.trainable_params().items()} if setting.method == "full" else {}
    )
    start = time.perf_counter()
    train(
        model,
        job.batches,
        AdamW(RATES[setting.method]),
        epochs=setting.epochs,
        lr_schedule="linear",
        seed=setting.seed,
        checkpoint=None if setting.method == "full" else out / "checkpoint.safetensors",
        resume=True,
        description=asdict(setting) | {"targets": list(setting.targets)},
        progress=progress,
    )
    seconds = time.perf_counter() - start
    loss, accuracy = evaluate(model, job.test)
    if config:
        save_adapter(out, model, config, "minilm", job.task_type, job.labels)
    if before:
        matrices = {name: array - before[name] for name, array in model.trainable_params().items() if array.ndim == 2}
        write_safetensors(out / "update.safetensors", {n: a for n, a in matrices.items() if "encoder" in n})
    row = {
        "method": setting.method,
        "targets": " ".join(setting.targets),
        "r": setting.r,
        "seed": setting.seed,
        "params": count(model.trainable_params()),
        "test_loss": loss,
        "test_accuracy": accuracy,
        "seconds": seconds,
    }
    write_atomic(done, json.dumps(row) + "\n")
    return row
