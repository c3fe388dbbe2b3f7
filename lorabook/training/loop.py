"""The loop: batch -> loss and gradients -> optimizer; history, hooks, checkpoint and resume."""

import math
import sys
from pathlib import Path

from ..adapters import plain_name
from ..errors import InputError, check_integer
from ..files import fingerprint, short
from ..parallel import team
from .checkpoint import Checkpoint, begun, live, plain
from .clipping import check_max_grad_norm
from .hooks import Hooks, Loop
from .optim import Optimizer
from .progress import Progress, Right
from .schedules import schedule
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
    accumulate=1,
    hooks=(),
):
    """Train the trainable parameters in place; returns the history, a list of {step, epoch, loss, lr, grad_norm}.

    model: a Layer that is a `Classifier`. batches: `Batches`. seed: drives dropout, by step, so that a
    run depends on nothing that came before. checkpoint: path of the file written every `checkpoint_every` steps and at
    the end; with `resume` a run continues from it and ends bit for bit where the uninterrupted run ends. description:
    a JSON-able dict of what else defines the run, against which a checkpoint is checked. progress: tell on stderr how
    many steps there are and how far they are. workers: threads that share each step's work, one a core by default, or
    `Workers` or `Ranks` at work; the result is the same for any number. Of several ranks only the first touches the
    checkpoint. read_every: steps after which the host reads losses and norms, and so waits for a GPU; default: 1 on
    NumPy, 10 on a device. The result is the same for any number. accumulate: parts in which each batch is computed, one
    after another, so that less of it is in memory; the gradients are those of the whole batch but for rounding. hooks:
    what happens beside the steps, e.g. `hooks.Evaluation`; each adds its columns to the history, None where it has no
    value.

    Raises NonFiniteError, naming the layer, before a NaN or Inf reaches the weights or the optimizer.

    >>> import numpy as np, lorabook as lb
    >>> x = np.random.default_rng(0).standard_normal((64, 2))
    >>> batches = lb.Batches({"x": x, "labels": (x[:, 0] > x[:, 1]).astype(int)}, batch_size=16)
    >>> history = lb.train(lb.MLP((2, 8, 2)), batches, lb.AdamW(1e-2), epochs=20)
    >>> len(history), history[-1]["loss"] < history[0]["loss"] / 2
    (80, True)
    """
    if not isinstance(optimizer, Optimizer):
        raise InputError(
            f"optimizer must be a lorabook.training.optim.Optimizer, such as AdamW(1e-3); got {short(optimizer)}"
        )
    epochs, checkpoint_every = check_integer("epochs", epochs), check_integer("checkpoint_every", checkpoint_every)
    seed, max_grad_norm = check_integer("seed", seed, 0), check_max_grad_norm(max_grad_norm)
    model.refuse_merged(before="training")
    total = epochs * len(batches)
    accumulate = check_integer("accumulate", accumulate, 1, batches.batch_size, "the rows of a batch")
    factor, hooks = schedule(lr_schedule, total, warmup), Hooks(hooks, total)
    params = model.trainable_params()
    if not params:
        raise InputError(
            "nothing to train: the model has no trainable parameters; inject adapters or call set_trainable first"
        )
    optimizer.check_rates(params)
    columns = (*HISTORY, *hooks.columns)
    with team(workers) as workers:
        loop = Loop(model, optimizer, workers, params, total, len(batches))
        right = Right() if progress else None
        steps = Steps(loop, hooks, batches, seed, max_grad_norm, accumulate, read_every, right)
        file = found = None
        if checkpoint is not None or workers.size > 1:
            frozen = {plain_name(n): a for n, a in model.state().items() if n not in params}
            run = plain({
                **(description or {}),
                "base_weights": {"sha256": fingerprint(frozen)},
                "training_rows": {"rows": batches.n, "sha256": batches.fingerprint()},
                "optimizer": type(optimizer).__name__, **{f"optimizer.{k}": v for k, v in optimizer.options.items()},
                "batch_size": batches.batch_size, "batch_seed": batches.seed, "steps": total, "seed": seed,
                "lr_schedule": lr_schedule, "warmup": warmup, "max_grad_norm": max_grad_norm,
                **({} if accumulate == 1 else {"accumulate": accumulate}), **hooks.options,
            })  # fmt: skip
            workers.agree(lambda: run | {"trainable_weights": fingerprint(params)})
            if checkpoint is not None and workers.first:
                file = Checkpoint(checkpoint, run, columns, loop, hooks)
                found = file.read(resume)
        history, optimizer_steps = workers.share(begun(found) or [[], optimizer.step_count])
        if progress:
            _tell(epochs, batches, total, len(history), checkpoint if resume else None)
        if history:
            hooks.resume(loop, len(history))
        if found:
            file.check(found[0])
        optimizer.step_count = optimizer_steps
        hooks.start(loop, [row[len(HISTORY) :] for row in history])
        if history:
            if found:
                file.restore(*found)
            workers.copy(live(loop, hooks))

        bar = Progress(len(history), total, progress)
        for step in bar:
            steps.take(step, factor(step))
            saved, watched = (step + 1) % checkpoint_every == 0 or step + 1 == total, hooks.due(step)
            if saved or watched or steps.unread == steps.read_every:
                history += [[*row, *hooks.nothing] for row in steps.read()]
                if watched:
                    history[-1][len(HISTORY) :] = hooks.after_step(step, loop)
                bar.show(step, dict(zip(columns, history[-1], strict=True)), right)
            if saved:
                workers.agree(lambda step=step: {f"weights after step {step}": fingerprint(params)}, RuntimeError)
                if file:
                    file.save(history)
        hooks.finish(loop)
    return [
        {"step": i, "epoch": i // len(batches)}
        | {name: None if math.isnan(value) else value for name, value in zip(columns, row, strict=True)}
        for i, row in enumerate(history)
    ]


def _tell(epochs, batches, total, taken, resumed):
    """What is about to happen, on stderr. resumed: the path of the checkpoint that was asked for."""
    if taken:
        print(f"continuing at step {taken} of {total}", file=sys.stderr)
        return
    if resumed is not None:
        print(f"no checkpoint in {Path(resumed).parent}: starting at step 0 of {total}", file=sys.stderr)
    rows = f"{batches.n:,} training rows in batches of {batches.batch_size}"
    print(f"{total:,} steps: {rows}, {epochs} epoch{'s' * (epochs > 1)} of {len(batches)} steps", file=sys.stderr)
