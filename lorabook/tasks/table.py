"""The table of tasks."""

from ..errors import InputError
from .decoders import Decoders
from .digits import MODEL, Digits
from .language import LanguageModelling
from .texts import TextLabels

LANGUAGE_MODELS = {"decoders": Decoders}  # {name: what opens it}: see `LanguageModelling`

TASKS = {
    "digits": Digits(),
    "language": LanguageModelling(LANGUAGE_MODELS),
    "text labels": TextLabels(Digits.names, [MODEL]),  # takes what no other does
}


def task_of(model):
    """The first task of the table that a model, by its name or path, is for."""
    return next(task for task in TASKS.values() if task.takes(model))


def training_job(model, data, *given, **options):
    """The TrainingJob of a model (name or folder) on data (name or file); options: see `Task.training`."""
    return task_of(model).training(model, data, *given, **_own(model, options))


def evaluation_job(model, data, *given, **options):
    """The EvaluationJob of a model (name or folder) on data (name or file); options: see `Task.test`."""
    return task_of(model).test(model, data, *given, **_own(model, options))


def _own(model, options):
    """The options without those that other tasks have: these must not be given, so be None."""
    task = task_of(model)
    others = {name for other in TASKS.values() for name in other.options} - {*task.options}
    if given := [name for name in options if name in others and options[name] is not None]:
        raise InputError(f"--{given[0].replace('_', '-')} is for language models; {model} is none")
    return {n: value for n, value in options.items() if n not in others and not (n in task.options and value is None)}
