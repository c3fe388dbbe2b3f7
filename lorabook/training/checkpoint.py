"""The checkpoint of a run: whether it belongs to this run and is sound, and how the run goes on from it."""

import json
import sys
from pathlib import Path

import numpy as np

from ..backend import asarray_like
from ..errors import FormatError, InputError
from ..files import prepare_folder, read_checkpoint, short, snapshot, write_checkpoint

STATE = {"run": dict, "step": int, "optimizer_steps": int, "environment": dict}


def live(loop, hooks):
    """Everything that a checkpoint restores, under names that cannot collide: the arrays themselves."""
    loop.optimizer.prepare(loop.trained)
    state = loop.optimizer.state.items()
    slots = {f"{slot}:{name}": a for slot, arrays in state for name, a in arrays.items() if name in loop.trained}
    return {f"param:{name}": a for name, a in loop.trained.items()} | slots | hooks.arrays(loop.params)


def plain(run):
    """What defines a run as JSON gives it back, one level deep: {"a": 1, "b": {"c": 2}} -> {"a": 1, "b.c": 2}."""
    try:
        run = json.loads(json.dumps(run, allow_nan=False, default=lambda number: number.item()))  # of NumPy
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(f"expected numbers, texts, and lists of them, which a checkpoint can hold: {error}") from None
    flat = {}
    for name, value in run.items():
        flat |= {f"{name}.{k}": v for k, v in value.items()} if isinstance(value, dict) and value else {name: value}
    return flat


def begun(found):
    """[history, steps of the optimizer] of what `Checkpoint.read` found; None of None."""
    return found and [found[0]["history"].tolist(), found[1]["optimizer_steps"]]


class Checkpoint:
    """The file of a run. run: what defines it, as `plain` gives it. columns: of the history."""

    def __init__(self, path, run, columns, loop, hooks):
        self.path, self.run, self.columns, self.loop, self.hooks = Path(path), run, columns, loop, hooks
        prepare_folder(self.path.parent)

    def read(self, resume):
        """(arrays, state) to go on from, or None for a new run; `check` has the last word on the arrays.

        All is checked that does not depend on what trained when it was written, which hooks may have changed.
        """
        if not self.path.exists():
            return None
        if not resume:
            raise InputError(
                f"{self.path} exists already; pass --resume to continue that run, or choose another folder"
            )
        arrays, state = read_checkpoint(self.path)
        for key, kind in STATE.items():
            if type(value := state.get(key)) is not kind:
                raise FormatError(f"{self.path}: {key} must be of the kind {kind.__name__}; got {short(value)}")
        self._check_run(state["run"])
        self._check_history(arrays.get("history"), state)
        return arrays, state

    def restore(self, arrays, state):
        """Parameters, optimizer and hooks as they were; after `check`."""
        for name, array in live(self.loop, self.hooks).items():
            array[...] = asarray_like(arrays[name], array)
        if state["environment"] != snapshot():
            made = f"{self.path.name} was written with {state['environment']}"
            print(f"note: {made}; bits may differ from here on", file=sys.stderr)

    def save(self, history):
        """Replace the file, atomically."""
        state = {
            "run": self.run,
            "step": len(history),
            "optimizer_steps": self.loop.optimizer.step_count,
            "environment": snapshot(),
        }
        arrays = live(self.loop, self.hooks) | {"history": np.array(history)}
        write_checkpoint(self.path, arrays, state)

    def _check_run(self, saved):
        for key in dict.fromkeys([*self.run, *saved]):
            if (then := saved.get(key)) != (now := self.run.get(key)):
                raise FormatError(f"{self.path} is of another run: {self._difference(key, then, now, saved)}")

    def _difference(self, key, then, now, saved):
        """What is different, in words."""
        name, _, kind = key.rpartition(".")
        if key not in self.run or kind not in ("rows", "sha256"):
            hint = "; a schedule cannot be lengthened afterwards" if key == "steps" else ""
            return f"its {short(key)[1:-1]} is {short(then)}, here it is {short(now)}{hint}"
        what, rows = f"the {name.replace('_', ' ')} changed", f"{name}.rows"
        if rows in self.run:
            many = saved.get(rows), self.run[rows]
            what += ": {} then, {} now".format(*map(short, many)) + (", but others" if many[0] == many[1] else "")
        hashes = (str(facts.get(f"{name}.sha256"))[:8] for facts in (saved, self.run))
        return f"{what} (sha256 {'..., '.join(hashes)}...). Resume with what it began with, or start in another folder"

    def _wrong(self, what):
        return FormatError(f"{self.path} does not fit this run: {what}")

    def _check_history(self, history, state):
        step, own_steps = state["step"], state["optimizer_steps"]
        if not 1 <= step <= self.run["steps"] or not step <= own_steps < 2**53:
            at = f"it stands at step {short(step)} of {self.run['steps']}, its optimizer at {short(own_steps)}"
            raise self._wrong(at)
        self._compare("history", history, (step, len(self.columns)), "float64")
        steps = len(self.columns) - len(self.hooks.columns)
        filled = [[True] * steps + self.hooks.filled(i) for i in range(step)]
        if not np.array_equal(np.isfinite(history), filled):
            raise self._wrong("its history holds NaN or Inf, or lacks an evaluation")

    def _compare(self, name, came, shape, dtype):
        if came is None:
            raise self._wrong(f"{name} {shape} is missing")
        if came.shape != shape:
            raise self._wrong(f"{name} has shape {short(came.shape)}, expected {shape}")
        if came.dtype != dtype:
            raise self._wrong(f"{name} has dtype {came.dtype}, expected {dtype}")

    def check(self, arrays):
        """Raise FormatError unless these are what trains now or did, with its optimizer's and hooks' state."""
        own = {
            name: (tuple(array.shape), str(array.dtype).rpartition(".")[2])
            for name, array in live(self.loop, self.hooks).items()
        }
        for name in sorted((own.keys() | arrays.keys()) - {"history"}):
            if name not in own:
                raise self._wrong(f"{short(name)} is no tensor of it")
            self._compare(name, came := arrays.get(name), *own[name])
            if not np.isfinite(came).all():
                raise self._wrong(f"{name} holds NaN or Inf")
            if name.partition(":")[0] in self.loop.optimizer.positive and (came < 0).any():
                raise self._wrong(f"{name} holds numbers below 0, which no mean of squares is")
