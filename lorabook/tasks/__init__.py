"""Tasks: a model and data made ready to train, evaluate and predict. A new kind of task is a file and a row of TASKS.

`base` is what a task gives, `table` has all of them. `sources` says what a name stands for, `loading` and `decoders`
open it. `fine_tuning` prepares a run, `adapter_options` its adapter, `measures` tells how well a model does,
`predictions` gives labels, `generation` texts; `exporting` writes models for other programs; `pretrain` makes the small
base models, `matrices` gets at the weights of all models.
"""

from .base import LEAST_STEPS, SPLITS, TrainingJob
from .decoders import DecoderSource, LanguageAbout
from .exporting import Written, check_dtype, write_adapter_gguf, write_classifier, write_folder, write_merged_gguf
from .fine_tuning import described, hardly_learned, prepare
from .generation import Piece, generate, stream
from .language import LanguageModelling
from .loading import find, load_model
from .matrices import matrices_of, read_matrix, update_between
from .measures import Perplexity, evaluate
from .predictions import Prediction, answers, for_each, outputs, predict
from .pretrain import Problem, csv_problem, digits_problem, shapes_of
from .sources import is_adapter, is_causal
from .table import evaluation_job, task_of, training_job

__all__ = [
    "LEAST_STEPS",
    "SPLITS",
    "DecoderSource",
    "LanguageAbout",
    "LanguageModelling",
    "Perplexity",
    "Piece",
    "Prediction",
    "Problem",
    "TrainingJob",
    "Written",
    "answers",
    "check_dtype",
    "csv_problem",
    "described",
    "digits_problem",
    "evaluate",
    "evaluation_job",
    "find",
    "for_each",
    "generate",
    "hardly_learned",
    "is_adapter",
    "is_causal",
    "load_model",
    "matrices_of",
    "outputs",
    "predict",
    "prepare",
    "read_matrix",
    "shapes_of",
    "stream",
    "task_of",
    "training_job",
    "update_between",
    "write_adapter_gguf",
    "write_classifier",
    "write_folder",
    "write_merged_gguf",
]
