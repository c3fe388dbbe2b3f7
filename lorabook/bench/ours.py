"""lorabook's sides: the LoRA step, the full fine-tuning step by the same code, and inference with merged adapters."""

import numpy as np

from ..adapters import LoRAConfig, inject, merge
from ..backend import data_like, get_xp
from ..hub import locate
from ..models import classifier_of, load_classifier
from ..parallel import Workers
from ..training import AdamW
from . import decoder
from .case import LABELS, RANDOM
from .devices import CupyDevice, Host


def lora(case, workers=None):
    """(once, device) of the LoRA side. workers: share a step's work; default: the case's threads."""
    if case.what == "generate":
        return decoder.generate(case.config(), case)
    model = network(case)
    targets = {"target_modules": case.target_modules, "modules_to_save": model.head_modules}
    inject(model, LoRAConfig(r=case.r, lora_alpha=16, **targets), case.seed)
    once = _forward(case, model) if case.what == "forward" else _step(case, model, workers)
    return once, _device(case)


def full(case):
    """(once, device) of full fine-tuning: the same step with everything trainable, embeddings and norms included."""
    return _step(case, network(case)), _device(case)


def _step(case, model, workers=None):
    batch = _batch(case, model)
    optimizer, params = AdamW(1e-3), model.trainable_params()
    workers = workers or _workers(case)

    def step():
        _, grads = workers.loss_and_grad(model, batch)  # as `train` does
        optimizer.step(params, grads)

    return step


def _forward(case, model):
    batch = _batch(case, model)
    merge(model)
    workers = _workers(case)

    return lambda: workers.answer(model, batch)


def network(case):
    """The model on the case's backend: from its folder, or N(0, 0.02^2) with norms at rest."""
    config = case.config()
    if decoder.decodes(config):
        model = decoder.network(config, case)
    elif case.model not in RANDOM:
        model = load_classifier(locate(case.model), LABELS, case.seed)
    else:
        model, rng = classifier_of(config)(config, labels=LABELS), np.random.default_rng(case.seed)
        for array in model.named_params().values():
            if array.ndim == 2:
                rng.standard_normal(dtype="float32", out=array)
                array *= 0.02
    return model if case.backend == "numpy" else model.to(get_xp(case.backend))


def _batch(case, model):
    like = next(iter(model.named_params().values()))
    return data_like(case.batch(model.sizes.vocab_size), like)


def _workers(case):
    """Threads for as long as the process lives. None on a GPU: the hook on its memory sees only its own thread."""
    return Workers(case.threads if case.backend == "numpy" else 1).__enter__()


def _device(case):
    return Host() if case.backend == "numpy" else CupyDevice(get_xp(case.backend))
