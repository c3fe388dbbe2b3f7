"""Handwritten digits under a shift, for an MLP that is trained on upright ones in a second."""

import numpy as np

from ..adapters import about, load_adapter
from ..data import SHIFTS, Batches, digits
from ..errors import InputError
from .base import EvaluationJob, Task, TrainingJob, parts_of
from .pretrain import pretrained_mlp
from .sources import is_adapter

MODEL = "mlp-digits"


class Digits(Task):
    """MODEL learns one of the SHIFTS. Which rows are held out is drawn by the seed."""

    lr, epochs, batch_size, lr_schedule = 1e-2, 60, 64, "cosine"
    names, made = tuple(SHIFTS), MODEL

    def takes(self, model):
        return model == MODEL or (is_adapter(model) and about(model)["base_model"] == MODEL)

    def training(
        self,
        model,
        data,
        batch_size=None,
        seed=0,
        max_length=None,
        encoding="utf-8",
        adapter=None,
        eval_data=None,
        validate=False,
        accumulate=1,
    ):
        if model != MODEL:
            raise InputError(
                f"{model} is an adapter folder; name the model under it, {MODEL}, and {model} as --adapter"
            )
        if eval_data:
            raise InputError(f"{MODEL} holds its validation rows out of the training rows; got the file {eval_data}")
        base, task = _base_and_data(data, seed)
        config = load_adapter(adapter, base) if adapter else None
        kept = task.validation() if validate else task
        size = self.batch_size_for(len(kept.x_train)) if batch_size is None else batch_size
        batches = Batches(kept.part("train"), size * accumulate, seed)
        held_out = [kept.part("test")] if validate else None
        return TrainingJob(base, batches, [task.part("test")], _labels(), validation=held_out, config=config)

    def test(self, model, data, adapter=None, split=None, seed=0, max_length=None, encoding="utf-8"):
        base, task = _base_and_data(data, seed)
        if folder := adapter if model == MODEL else model:
            load_adapter(folder, base)
        parts = [task.part(part) for part in parts_of(split or "test")]
        return EvaluationJob(base, [{n: np.concatenate([own[n] for own in parts]) for n in parts[0]}], _labels(), True)


def _base_and_data(data, seed):
    if data not in SHIFTS:
        raise InputError(f"{MODEL} trains on {', '.join(SHIFTS)}; got {data!r}")
    return pretrained_mlp(digits(seed=seed), seed=seed), digits(data, seed)


def _labels():
    return [str(i) for i in range(10)]
