"""The loop: batch -> loss and gradients -> optimizer; history, progress bar, checkpoint and resume."""

import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from .backend import asarray_like, to_numpy
from .environment import environment
from .errors import FormatError, InputError
from .io import fingerprint, read_checkpoint, write_checkpoint
from .optim import schedule
from .parallel import team
from .steps import Steps

HISTORY = ("loss", "lr", "grad_norm")


def train(
    model,
    batches,
    optimizer,
    *,
    epochs,
    lr_schedule="cosine",
    warmup=0,
    max_grad_norm=None,
    seed=0,
    checkpoint=None,
    checkpoint_every=100,
    resume=False,
    description=None,
    progress=False,
    workers=None,
    read_every=None,
):
    """Train the trainable parameters in place; returns the history, a list of {step, epoch, loss, lr, grad_norm}.

    model: a Layer that is a `Classifier`. batches: `Batches` or `TextBatches`. seed: drives dropout, by step, so that a
    run depends on nothing that came before. checkpoint: path of the file written every `checkpoint_every` steps and at
    the end; with `resume` a run continues from it and ends bit for bit where the uninterrupted run ends. description:
    a JSON-able dict of what else defines the run, against which a checkpoint is checked. workers: threads that share
    each step's work, one a core by default, or `Workers` or `Ranks` at work; the result is the same for any number. Of
    several ranks only the first touches the checkpoint. read_every: steps after which the host reads losses and norms,
    and so waits for a GPU; default: 1 on NumPy, 10 on a device. The result is the same for any number.

    Raises NonFiniteError, naming the layer, before a NaN or Inf reaches the weights or the optimizer.
    """
    for name, value in {"epochs": epochs, "checkpoint_every": checkpoint_every}.items():
        if value < 1:
            raise InputError(f"{name} must be at least 1; got {value}")
    model.refuse_merged(before="training")
    total = epochs * len(batches)
    factor = schedule(lr_schedule, total, warmup)
    params = model.trainable_params()
    if not params:
        raise InputError(
            "nothing to train: the model has no trainable parameters; inject adapters or call set_trainable first"
        )
    run = {
        "steps": total, "batch_size": batches.batch_size, "batch_seed": batches.seed, "seed": seed,
        "lr_schedule": lr_schedule, "warmup": warmup, "max_grad_norm": max_grad_norm,
        "optimizer": type(optimizer).__name__, "lr": optimizer.lr,
        "weight_decay": optimizer.weight_decay, **(description or {}),
    }  # fmt: skip
    with team(workers) as workers:
        steps = Steps(workers, model, batches, optimizer, params, seed, max_grad_norm, read_every)
        if checkpoint is not None or workers.size > 1:
            frozen = {n: a for n, a in model.named_params().items() if n not in params}
            run |= {"frozen_weights": fingerprint(frozen), "data": batches.fingerprint()}
        workers.agree(lambda: _flat(run) | {"trainable_weights": fingerprint(params)})
        history = []
        if checkpoint is not None:
            if workers.first:
                history = _begin(checkpoint, resume, run, params, optimizer)
            history, optimizer.step_count = workers.share([history, optimizer.step_count])
            if history:
                optimizer.prepare(params)
                workers.copy(_arrays(params, optimizer))
                if progress:
                    print(f"continuing at step {len(history)} of {total}", file=sys.stderr)
            elif resume and progress:
                print(f"no checkpoint in {Path(checkpoint).parent}: starting at step 0 of {total}", file=sys.stderr)

        quiet = None if progress else True  # None: a bar on stderr if that is a terminal
        bar = tqdm(range(len(history), total), initial=len(history), total=total, delay=2, disable=quiet, unit="step")
        for step in bar:
            steps.take(step, factor(step))
            due = (step + 1) % checkpoint_every == 0 or step + 1 == total
            if due or steps.unread == steps.read_every:
                history += steps.read()
            if due:
                workers.agree(lambda step=step: {f"weights after step {step}": fingerprint(params)}, RuntimeError)
                if checkpoint is not None and workers.first:
                    _save(checkpoint, run, params, optimizer, history)
    rows = enumerate(history)
    return [{"step": i, "epoch": i // len(batches), **dict(zip(HISTORY, row, strict=True))} for i, row in rows]


# ---- checkpoints -----------------------------------------------------------------------------------------------------


def _arrays(params, optimizer):
    """Everything a checkpoint restores, under names that cannot collide: the live arrays themselves."""
    slots = {f"{slot}:{name}": a for slot, arrays in optimizer.state.items() for name, a in arrays.items()}
    return {f"param:{name}": a for name, a in params.items()} | slots


def _begin(path, resume, run, params, optimizer):
    """The history to continue from, with params and optimizer as they were then; [] for a new run."""
    if not Path(path).exists():
        return []
    if not resume:
        raise InputError(f"{path} exists already; pass --resume to continue that run, or choose another folder")
    return _restore(path, run, params, optimizer)


def _save(path, run, params, optimizer, history):
    state = {"run": run, "step": optimizer.step_count, "environment": environment()}
    write_checkpoint(path, _arrays(params, optimizer) | {"history": np.array(history)}, state)


def _flat(options):
    """{"a": 1, "b": {"c": 2}} -> {"a": 1, "b.c": 2}, one level deep: so that a difference can be named."""
    flat = {}
    for name, value in options.items():
        flat |= {f"{name}.{k}": v for k, v in value.items()} if isinstance(value, dict) and value else {name: value}
    return flat


def _restore(path, run, params, optimizer):
    """Copy a checkpoint into params and optimizer; returns its history. All is checked before anything is changed."""
    arrays, state = read_checkpoint(path)
    saved, run = _flat(state["run"]), _flat(run)
    for key in sorted(run.keys() | saved.keys()):
        if (came := saved.get(key)) != (expected := run.get(key)):
            hint = "; a schedule cannot be lengthened afterwards" if key == "steps" else ""
            raise FormatError(f"{path} is of another run: its {key} is {came!r}, here it is {expected!r}{hint}")
    optimizer.prepare(params)
    own = _arrays(params, optimizer)
    shapes = {name: tuple(a.shape) for name, a in arrays.items() if name != "history"}
    if shapes != {name: tuple(a.shape) for name, a in own.items()}:
        wrong = min(
            name
            for name in shapes.keys() | own.keys()
            if shapes.get(name) != tuple(getattr(own.get(name), "shape", ()))
        )
        expected = tuple(own[wrong].shape) if wrong in own else "no such tensor"
        raise FormatError(
            f"{path} does not fit this model: {wrong} has shape {shapes.get(wrong, 'missing')}, expected {expected}"
        )
    for name, array in own.items():
        array[...] = asarray_like(arrays[name], array)
    optimizer.step_count = state["step"]
    if state["environment"] != environment():
        tqdm.write(
            f"note: {Path(path).name} was written with {state['environment']}; bits may differ from here on",
            file=sys.stderr,
        )
    return [tuple(row) for row in to_numpy(arrays["history"]).tolist()]
