"""Texts, or pairs of them, with a label each, for an encoder with a head."""

from ..adapters import about, config_of
from ..data import Batches, Texts, movie_reviews, text_file
from ..errors import InputError
from ..files import record, remembered, short
from ..hub import locate
from .base import TEST_BATCH, EvaluationJob, Task, TrainingJob, parts_of
from .loading import find
from .predictions import check_input

NAMED = {"movie-reviews": movie_reviews}  # {name of the hub: what reads it}


class TextLabels(Task):
    """A model from a name or folder learns the labels of texts: named data, or a .csv, .tsv or .jsonl file.

    Texts are split into training and test rows alike whatever the seed is, so that no test row of one run is a training
    row of another. not_for: names of data, and of models, that belong to other tasks; errors tell of them.
    """

    lr, epochs, batch_size, lr_schedule = 1e-3, 2, 32, "linear"
    names = tuple(NAMED)

    def __init__(self, other_data=(), other_models=()):
        self._other_data, self._other_models = other_data, list(other_models)

    def takes(self, model):
        return True

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
        source = find(model, adapter, self._other_models)
        if source.adapter and not adapter:
            raise InputError(f"{model} is an adapter folder; name the model under it, and {model} as --adapter")
        task = self._read(data, encoding, names=source.labels if adapter else None)
        if adapter:
            task = task.numbered(source.labels)
        kept, rows = task.validation() if validate and not eval_data else task, {"test": task.test}
        if eval_data:
            rows["validation"] = self._read(eval_data, encoding, split=False, names=task.names).test
        elif validate:
            rows["validation"] = kept.test
        base = source.load(task.names, max_length, seed)
        size = self.batch_size_for(len(kept.train)) if batch_size is None else batch_size
        examples = Texts(kept.train, base.about.tokenizer)
        batches = Batches(examples, size * accumulate, seed)
        rows = {name: _all(Texts(own, base.about.tokenizer)) for name, own in rows.items()}
        check_input(base, ({"input_ids": ids[None]} for ids in examples.ids))
        for own in rows.values():
            check_input(base, own)
        before = about(adapter)["training_texts"] if adapter else None
        return TrainingJob(
            base,
            batches,
            labels=task.names,
            task_type=base.task_type,
            modules_to_save=base.head_modules,
            max_length=base.about.max_length,
            notes=tuple(filter(None, (*task.notes, examples.cut_note()))),
            config=config_of(base) if adapter else None,
            training_texts=record([text for text, _ in task.train], before or ""),
            **rows,
        )

    def test(self, model, data, adapter=None, split=None, seed=0, max_length=None, encoding="utf-8"):
        """If the model's files name the labels, those of the data must be among them."""
        source = find(model, adapter, self._other_models)
        part = split or ("test" if data in NAMED else "all")
        task = self._read(data, encoding, split=part != "all", names=source.labels)
        task = task if source.labels is None else task.numbered(source.labels)
        rows, labels = [row for name in parts_of(part) for row in getattr(task, name)], task.names
        if len(labels) < 2:
            raise InputError(
                f"{data}: all labels are {short(labels[0])}, and {model} has no trained classifier to test"
            )
        network = source.load(labels, max_length, seed)
        examples = Texts(rows, network.about.tokenizer)
        seen, line = _seen(source.adapter, data, rows) if split == "test" else (None, None)
        notes = tuple(filter(None, [examples.cut_note(), line]))
        return EvaluationJob(network, _all(examples), labels, network.about.trained, notes, seen)

    def _read(self, data, encoding, **options):
        """The TextTask of a name or a file. options: of `text_file`."""
        if data in self._other_data:
            named = ", ".join(NAMED)
            raise InputError(f"{data} is made of images; expected texts: {named} or a .csv, .tsv or .jsonl file")
        return NAMED[data](locate(data)) if data in NAMED else text_file(data, encoding, **options)


def _all(examples):
    """Batches that cover the examples once."""
    return [batch for _, batch in Batches(examples, min(TEST_BATCH, examples.n)).in_order()]


def _seen(adapter, data, rows):
    """(how many test rows of a file an adapter was trained on, a line on them); None where nothing is known."""
    known = about(adapter)["training_texts"] if adapter and data not in NAMED else None
    if known is None:
        return None, None
    seen, whole = remembered([text for text, _ in rows], known)
    many = f"{seen:,}" if whole else f"at least {seen:,}"
    line = f"{adapter} was trained on {many} of these {len(rows):,} test rows, which makes it look better than it is: "
    line += f"{data} was sorted, cut or edited since, or is another file; rows that are appended move no other row"
    return seen, line if seen else None
