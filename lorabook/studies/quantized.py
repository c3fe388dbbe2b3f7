"""LoRA over a base in few bits: what rounding costs a model, and where training on top of it ends.

A row is one training: the base in a format, LoRA on every matrix that was rounded, from one of two STARTS,

    "B = 0"    Q = quantise(W): QLoRA; before training the model is the rounded one
    "LoftQ"    Q + s B A near W, by `quantization.loftq`

A base in float32 with the start "LoftQ" is the control: the factors of LoftQ for NF4, over W - s B A, unrounded. It
starts at W exactly, so that what it gains over B = 0 is the start's doing and no repair.
"""

import copy
from dataclasses import replace

import joblib
import numpy as np
from tqdm import tqdm

from ..adapters import adapters
from ..data import digits
from ..layers import QuantizedLinear
from ..linalg import low_rank
from ..quantization import Quantized, loftq, quantizer
from ..training import AdamW, train
from .mlp_sweep import setting_for
from .rank_rows import start as with_adapters

STARTS = ("B = 0", "LoftQ")
FLOAT = "float32"  # the base as it is
RUNS = [(name, start) for name in (FLOAT, "nf4", "int4", "nf3", "nf2", "int2") for start in STARTS]
RUNS.remove(("int4", "LoftQ"))  # next to nf4 it has nothing to tell


def round_base(model, format, start, ranks, scalings):
    """Put the layers {path: rank} of a dense model into few bits, in place; ({path: (A, B)} of LoftQ, relative error).

    scalings: {path: s}. The error is that of Q + s B A over all of these matrices together.
    """
    layers, factors, lost, whole = dict(model.named_layers()), {}, 0.0, 0.0
    for path, r in ranks.items():
        layer, W, s = layers[path], layers[path].weight, scalings[path]
        if start == "LoftQ":
            Q, *factors[path], _ = loftq(W, r, quantizer("nf4" if format == FLOAT else format), scaling=s)
            update = s * (factors[path][1] @ factors[path][0])
        else:
            Q, update = None if format == FLOAT else quantizer(format)(W), np.zeros_like(W)
        values = W - update if format == FLOAT else Q.dequantize()
        lost += low_rank.frobenius((W - values - update).astype("f8")) ** 2
        whole += low_rank.frobenius(W.astype("f8")) ** 2
        if format != FLOAT and isinstance(Q, Quantized):
            parent, _, name = path.rpartition(".")
            layers[parent].children[name] = QuantizedLinear(Q, layer.bias)
        else:
            layer.params["weight"] = values
    return factors, float(np.sqrt(lost / whole))


def put_factors(model, factors):
    """Let the adapters {path: (A, B)} of a model start at these factors."""
    found = adapters(model)
    for path, arrays in factors.items():
        for name, array in zip(("lora_A", "lora_B"), arrays, strict=True):
            found[path].params[name][...] = array


def digits_rows(r=4, seeds=range(5), runs=RUNS, jobs=1, progress=False, epochs=None):
    """Rows {data, format, start, seed, weight_error, before, test_loss, test_accuracy} of the MLP on turned digits.

    before: share of upright test digits that the base, with the factors it starts with, still gets right. epochs: those
    of the rank sweep, unless given.
    """
    todo = [(format, start, seed) for seed in seeds for format, start in runs]
    parallel = joblib.Parallel(n_jobs=jobs, return_as="generator")
    rows = parallel(joblib.delayed(digits_row)(*run, r, epochs) for run in todo)
    return list(tqdm(rows, total=len(todo), disable=None if progress else True, unit="run"))


def digits_row(format, start, seed, r=4, epochs=None):
    """One of these rows."""
    setting, _ = setting_for("digits-rotated")
    setting = replace(setting, epochs=epochs or setting.epochs)
    problem = setting.problem(seed)
    ranks = {path: min(r, *shape) for path, shape in problem.shapes.items()}
    fresh = with_adapters(setting, problem, r, seed)
    scalings = {path: layer.scaling for path, layer in adapters(fresh).items()}
    base = copy.deepcopy(problem.base)
    factors, error = round_base(base, format, start, ranks, scalings)
    model = with_adapters(setting, replace(problem, base=base), r, seed)
    put_factors(model, factors)
    before = model.evaluate(digits("digits", seed).part("test"))[1]
    options = {"epochs": setting.epochs, "lr_schedule": setting.lr_schedule, "seed": seed, "workers": 1}
    train(model, problem.batches(setting.batch_size, seed), AdamW(setting.recipe(r).lr), **options)
    loss, accuracy = problem.evaluate(model)
    row = {"data": "digits-rotated", "format": format, "start": start, "r": r, "seed": seed}
    return row | {"weight_error": error, "before": before, "test_loss": loss, "test_accuracy": accuracy}
