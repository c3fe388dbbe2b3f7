"""What every kind of task gives: a model and data, made ready; how long to train unless told otherwise."""

from dataclasses import dataclass

from ..adapters import AdapterConfig
from ..layers import Layer

TEST_BATCH = 64  # rows; what is kept of each is its answer alone
LEAST_STEPS = 200  # of a run whose length is not given: texts that fifty steps separate take a hundred by bad luck
SMALL = 8, 4  # batches an epoch of a small file, and rows in the smallest of its batches
SPLITS = ("test", "train", "all")


@dataclass(frozen=True)
class TrainingJob:
    """What `train` needs. batches: of the training rows. test: batches that cover the test rows once.

    model: the base model, or with its adapter and that one's config. max_length: tokens of a text, at most. notes:
    lines on what is odd about the data, for the reader. validation: as test, of rows to choose a model by, or None.
    training_texts: a `files.record`.
    """

    model: Layer
    batches: object
    test: list
    labels: list
    task_type: str | None = None
    modules_to_save: tuple = ()
    max_length: int | None = None
    notes: tuple = ()
    validation: list | None = None
    config: AdapterConfig | None = None
    training_texts: str | None = None


@dataclass(frozen=True)
class EvaluationJob:
    """What `evaluate` needs: a model with its adapter, and batches that cover the rows once.

    trained: whether its classifier is; otherwise it is random. notes: as of a TrainingJob. seen: how many test rows of
    a file the adapter was trained on, as far as its folder tells; None if it does not.
    """

    model: Layer
    batches: list
    labels: list
    trained: bool
    notes: tuple = ()
    seen: int | None = None


class Task:
    """Base class of the rows of TASKS: how a model learns it unless told otherwise; `epochs` is the least number."""

    lr, epochs, batch_size, lr_schedule = 1e-3, 1, 32, "linear"
    names = ()  # of its data
    least_steps = LEAST_STEPS  # of a run whose length is not given
    options = ()  # of `training` and `test`, that other tasks do not have
    made = None  # the name of its model, if that is made here rather than found

    def takes(self, model):
        """Whether a model, by its name or path, is one for this task."""
        raise NotImplementedError

    def training(self, model, data, **options):
        """The TrainingJob of a model (name or folder) on data (name or file).

        Options: batch_size, seed, max_length, encoding, adapter, eval_data, validate, accumulate. seed: of the batches
        and of what starts at random. encoding: of text files. adapter: folder of an adapter that is to be trained
        further; the labels of the data must be among its own. eval_data: file whose rows, all of them, are for
        validation. validate: without such a file, hold rows out of the training rows instead. batch_size: default
        `batch_size_for`. accumulate: so many of them make a batch.
        """
        raise NotImplementedError

    def test(self, model, data, **options):
        """The EvaluationJob of a model (name or folder) on data (name or file).

        Options: adapter, split, seed, max_length, encoding. split: "test" or "train", the rows that training holds out,
        or trains on; "all"; by default the test rows of named data, and all rows of a file, however few.
        """
        raise NotImplementedError

    def batch_size_for(self, rows):
        """The default batch size: of a small file smaller, so that an epoch has eight steps, with few rows left out."""
        batches, least = SMALL
        return min(rows, self.batch_size, max(least, rows // batches))

    def epochs_for(self, batches):
        """The default number of epochs: the task's, and on a small file as many as make `least_steps`."""
        return max(self.epochs, -(-self.least_steps // len(batches)))


def parts_of(split):
    """The parts of data that a name of SPLITS means."""
    return ("train", "test") if split == "all" else (split,)
