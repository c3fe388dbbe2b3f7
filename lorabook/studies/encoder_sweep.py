"""Rank versus error for an encoder on texts: what `sweep` takes in the place of an MLP and its numbers.

Adapted are the linear layers of the blocks, or those that are named. The head, of BERT pooler and classifier, trains in
full in every method; embeddings, norms and biases stay as they are. The rows of a text task are split by the task, not
by the seed: seeds vary the order of the batches, the first factors and the start of a fresh classifier.

A checkpoint that was fine-tuned elsewhere may take the place of full fine-tuning: Delta W is its matrices minus those
of the model that it was trained from. Its truncations keep everything else of it.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..adapters import LoRAConfig, is_saved, linear_layers, select
from ..backend import data_like, to_numpy
from ..errors import InputError
from ..files import fingerprint
from ..functional import rows
from ..layers import Layer, watching
from ..linalg import activation_factor
from ..tasks import TrainingJob, evaluate, is_adapter, is_causal, task_of, training_job
from .reviews import RATES
from .sweep import Recipe, Setting

RECIPES = {None: Recipe(RATES["full"]), 1: Recipe(RATES["lora"])}  # of figures/data/reviews_recipe.csv
TOKENS_A_DIMENSION = 16  # inputs that `factors` takes for each dimension of the widest matrix
FOLD = 8192  # of them that it keeps before it folds them into R


class Encoder:
    """The problems of an encoder: called with a seed, it gives that seed's `EncoderProblem`, and keeps the last one."""

    def __init__(
        self,
        model,
        data,
        base=None,
        target_modules=("all-linear",),
        batch_size=None,
        max_length=None,
        encoding="utf-8",
        seed=0,
    ):
        """model: name or folder, as `training_job` takes it: what every method starts from. With `base`, a name or
        folder too, they start from that, and `model` is what full fine-tuning of it gave. seed: the first to be asked
        for. The others: as of `training_job`. Raises InputError, by name, if these do not go together.
        """
        if (task := task_of(model)).made:
            raise InputError(f"{task.made} is what a sweep without --model begins with; for texts, name an encoder")
        for name in filter(None, (model, base)):
            if is_causal(name):
                raise InputError(f"{name} is a language model; a sweep is of an encoder, on texts with labels")
            if is_adapter(name):
                raise InputError(
                    f"{name} is an adapter folder; a sweep begins with a whole model: name the one under it, or write "
                    "the two as one with `lorabook merge`"
                )
        self.model, self.source, self.data = model, model if base is None else base, data
        self.targets, self._reading = list(target_modules), {"max_length": max_length, "encoding": encoding}
        self._batch_size = batch_size
        self._tuned, self._texts = None, None
        self._last = self._problem(seed)
        if base is not None:
            self._tuned = self._fine_tuned(self._last)
            self._last = replace(self._last, tuned=self._tuned)

    def __call__(self, seed, validation=False):
        if self._last.seed != seed:
            self._last = self._problem(seed)
        return self._last

    def _job(self, model, seed):
        return training_job(model, self.data, self._batch_size, seed, **self._reading)

    def _problem(self, seed):
        job = self._job(self.source, seed)
        if self._texts not in (None, texts := job.batches.fingerprint()):
            raise InputError(f"{self.data} has changed while the sweep was running")
        self._texts = texts
        layers = linear_layers(job.model)
        head = job.model.head_layers
        targets = self.targets[0] if self.targets == ["all-linear"] else self.targets
        chosen = select(job.model, LoRAConfig(target_modules=targets, modules_to_save=head))
        shapes = {path: layers[path].shape for path in chosen}
        return EncoderProblem(seed, job, shapes, head, self._tuned)

    def _fine_tuned(self, problem):
        """The reader's own model, in which trains what differs from the base."""
        job = self._job(self.model, problem.seed)
        if not job.model.about.trained:
            raise InputError(
                f"{self.model} has no trained classifier; with --base it must be one that was fine-tuned to classify"
            )
        own, before = job.model.named_params(), problem.base.named_params()
        for name in sorted(own.keys() | before.keys()):
            came, expected = (getattr(arrays.get(name), "shape", "missing") for arrays in (own, before))
            if came != expected:
                raise InputError(f"{self.model} was not trained from {self.source}: {name} is {came}, there {expected}")
        if job.batches.fingerprint() != self._texts:
            raise InputError(
                f"{self.model} and {self.source} read texts differently: their tokenizers are not the same"
            )
        changed = {name for name, array in own.items() if not np.array_equal(array, before[name])}
        weights = {f"{path}.weight" for path in problem.shapes}
        if not weights & changed:
            raise InputError(f"{self.model} has the matrices of {self.source}: there is no update to compare with")
        job.model.set_trainable(weights | changed)
        return job.model

    def setting(self, epochs=None, recipes=None, workers=None, backend="numpy"):
        """The Setting of a sweep. epochs: default `Task.epochs_for`."""
        batches = self._last.job.batches
        return Setting(
            self,
            task_of(self.source).epochs_for(batches) if epochs is None else epochs,
            batches.batch_size,
            recipes=recipes or RECIPES,
            backend=backend,
            lr_schedule="linear",
            workers=workers,
            one_full=self._tuned is not None,
            about=self.about,
        )

    @property
    def title(self):
        """What the sweep shows, in words."""
        job, n = self._last.job, len(self._last.shapes)
        texts = f"{Path(self.data).name}, {job.batches.n:,} texts"
        if self._tuned:
            return f"{Path(self.model).name}, fine-tuned from {Path(self.source).name}: {n} matrices; {texts}"
        return f"{Path(self.model).name}, fine-tuned on {texts}: {n} matrices of its blocks"

    @property
    def notes(self):
        """Lines for the reader."""
        yield from self._last.job.notes
        if self._tuned is None and self._last.base.about.trained:
            yield (
                f"{self.model} has a trained classifier, and every method starts from there. If it is your own "
                "fine-tuned model, name with --base what it was trained from: it is then `full` itself"
            )

    @property
    def about(self):
        """{what: JSON-able}: all that decides a row beside the options of a `Setting`."""
        problem, job = self._last, self._last.job
        fresh = () if problem.base.about.trained else problem.base.head_modules  # by seed
        weights = {n: a for n, a in problem.base.named_params().items() if not any(is_saved(n, m) for m in fresh)}
        test = {f"{i}.{name}": array for i, batch in enumerate(job.test) for name, array in batch.items()}
        tuned = {} if self._tuned is None else {"fine-tuned weights": fingerprint(self._tuned.named_params())}
        return {
            "target modules": " ".join(sorted(self.targets)),
            "max length": problem.base.about.max_length,
            "training texts": job.batches.n,
            "training data": self._texts,
            "held-out data": fingerprint(test),
            "base weights": fingerprint(weights),
            **tuned,
        }


@dataclass(frozen=True)
class EncoderProblem:
    """The base model of a seed and its texts, as a `tasks.TrainingJob`; what `pretrain.Problem` is for numbers.

    shapes: {path: (d_out, d_in)} of the matrices that are adapted. head: modules that train in full. tuned: a model
    that was fine-tuned in full already.
    """

    seed: int
    job: TrainingJob
    shapes: dict
    head: tuple
    tuned: Layer | None

    @property
    def base(self):
        """The model that every method starts from."""
        return self.job.model

    def batches(self, size, seed):
        """Batches of the training texts, which the job has already."""
        return self.job.batches

    def evaluate(self, model, workers=None, every=1):
        """(loss, accuracy) on the held-out texts; every: on each such batch alone, for a guess."""
        return evaluate(model, self.job.test[::every], workers)

    def factors(self, model, seed, workers):
        """{path: R, R^T R = X^T X}, X the inputs (N, d_in) of the matrix, N for as many training texts as it takes.

        Texts are drawn by seed. Those of one length go together: no row of X is padding.
        """
        inputs = {path: _Inputs() for path in self.shapes}

        def look(path, x, _):
            if path in inputs:
                inputs[path].rows.append(rows(x))

        like, run = next(iter(model.named_params().values())), watching(model, look, keep=False)
        wanted = TOKENS_A_DIMENSION * max(d_in for _, d_in in self.shapes.values())
        for ids in _same_length(self.job.batches.examples.ids, wanted, seed):
            model.predict(data_like({"input_ids": ids}, like), run)
            list(workers.map(_Inputs.fold, [own for own in inputs.values() if own.waiting >= FOLD]))
        return dict(zip(inputs, workers.map(_Inputs.fold, inputs.values()), strict=True))


class _Inputs:
    """What comes into a layer: the last rows as they are, those before as their factor R."""

    def __init__(self):
        self.R, self.rows = None, []

    @property
    def waiting(self):
        """How many rows are not in R yet."""
        return sum(x.shape[0] for x in self.rows)

    def fold(self):
        """R of all that came."""
        if self.rows:
            known = [] if self.R is None else [self.R]
            X = np.concatenate([*known, *(to_numpy(x).astype("f8") for x in self.rows)])
            self.R, self.rows = activation_factor([X]), []
        return self.R


def _same_length(ids, tokens, seed):
    """Arrays (B, T) of texts without padding, drawn by seed: as many as have `tokens` tokens together, or all."""
    order = np.random.default_rng(seed).permutation(len(ids))
    together = np.cumsum([len(ids[i]) for i in order])
    groups = {}
    for i in order[: np.searchsorted(together, tokens) + 1]:
        groups.setdefault(len(ids[i]), []).append(ids[i])
    for length, texts in sorted(groups.items()):
        size = max(1, FOLD // (4 * length))
        yield from (np.stack(texts[i : i + size]) for i in range(0, len(texts), size))
