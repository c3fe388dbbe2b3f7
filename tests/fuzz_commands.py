"""Malformed files in the place of right ones, in a small world of a model, adapters, data and unfinished runs.

PLACES holds a row for each: the files are those of `fuzz`, the commands are those that read them; `answer` makes one
and calls a command.
"""

import contextlib
import hashlib
import json
import re
import shlex
import shutil
import signal
import time
import zlib
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import fuzz
import numpy as np
import safetensors.numpy
from checks import reviews_file, tiny_bert, write_bert
from fuzz_adapters import BESIDE, BLOCKS, MLX, OPTIONS, OWN, adapter_tensors, changed
from fuzz_models import mutated

from lorabook import InputError, cli, files
from lorabook.adapters import patterns
from lorabook.book import plots
from lorabook.files import INDEX, WEIGHTS
from lorabook.models import BertForSequenceClassification
from lorabook.studies import unfinished

SAID = re.compile(
    r"note: |[\d,]+ steps: |step \d|about |  |after \^C |going on with |continuing at step "
)  # what may stand above the one line
NOT_FINITE = re.compile(r"lorabook \w+: .*\b(NaN|Inf|nan|inf)\b")  # a run that failed

WALL = 60  # seconds by the clock, however slow the machine; processor time is limited more strictly

TRAINED = "--epochs 1 --r 2 --max-length 9 --workers 1 --out out"
SWEPT = "--ranks 1 --seeds 1 --epochs 1 --out out"
MODEL = (
    "evaluate model data.csv --workers 1",
    "predict model texts.txt --out out/answers.csv",
    f"train model data.csv {TRAINED}",
    "merge model --adapter adapter --out out",
    "predict model --text good --json",
    f"sweep --model model --data data.csv --max-length 9 {SWEPT}",
    "predict adapter texts.txt",
)
SPECTRUM = ("spectrum {} --out out",)
ADAPTER = (
    "evaluate model data.csv --adapter {}",
    "merge model --adapter {} --out out",
    "spectrum {} --out out",
    "predict model texts.txt --adapter {}",
    f"train model data.csv --adapter {{}} {TRAINED.replace('--r 2 --max-length 9 ', '')}",
    "predict {} texts.txt --out out/answers.jsonl",
    "evaluate {} data.csv",
)


def of_texts(options=""):
    return (
        f"evaluate model {{}} --workers 1 {options}",
        f"train model {{}} {TRAINED} {options}",
        f"predict model {{}} --out out/answers.csv {options}",
        f"train model data.csv --eval-data {{}} {TRAINED} {options}",
        f"sweep --model model --data {{}} --max-length 9 {SWEPT} {options}",
        f"predict model {{}} {options}",
    )


def of_numbers(options=""):
    return (f"sweep --data {{}} --jobs 1 {SWEPT} {options}",)


class Place(NamedTuple):
    """make(rng) -> bytes of a file that stands at `path`; commands that read it, with {} for the file or its folder.

    judge: reads it as the commands do; what it refuses, they must refuse.
    """

    make: object
    path: str
    commands: tuple
    judge: object = None


def of_kind(name, path, commands, judged=True):
    """The Place of a kind of `fuzz`."""
    make, read, _ = fuzz.GENERATORS[name]
    return Place(make, path, commands, read if judged else None)


def forged_checkpoint(rng):
    """The checkpoint of a run of `train`, with other tensors and other values in its state."""
    with mock.patch.object(
        fuzz, "real_checkpoint", lambda: files.read_checkpoint("../real/train/checkpoint.safetensors")
    ):
        return fuzz.checkpoint(rng)


def forged_rows(rng):
    """What an unfinished sweep has, with other rows or another run, under a sha256 that is right."""
    arrays, state = files.read_checkpoint("../real/sweep/unfinished/rows.safetensors")
    text = mutated(rng, state)
    text = "".join(c for c in text if not "\ud800" <= c <= "\udfff")
    file = safetensors.numpy.save(arrays, {"lorabook": f"{files.fingerprint(arrays, text)} {text}"})
    return fuzz.damaged(rng, file) if rng.random() < 0.2 else file


def forged_full(rng):
    """The parameters that it keeps, likewise."""
    arrays, state = files.read_checkpoint("../real/sweep/unfinished/full-0.safetensors")
    for _ in range(rng.integers(1, 4)):
        fuzz.forge_tensor(rng, arrays)
    text = json.dumps(state)
    file = safetensors.numpy.save(arrays, {"lorabook": f"{files.fingerprint(arrays, text)} {text}"})
    return fuzz.damaged(rng, file) if rng.random() < 0.2 else file


def index_of_parts(rng):
    text = mutated(rng, json.loads(Path("../real/index.json").read_text())).encode("utf-8", "surrogatepass")
    if rng.random() < 0.2:
        text = text.replace(b"x.safe", fuzz.pick(rng, (b"../x.safe", b"/x.safe", b"x\\\\n.safe", b"y.safe")))
    return fuzz.damaged(rng, text) if rng.random() < 0.3 else text


def forged_beside(rng):
    """What `train` writes beside an adapter, with strange values."""
    return changed(json.loads(Path("../real/lorabook.json").read_text()), tuple(BESIDE))(rng)


def figure_csv(rng):
    """The numbers behind a figure, damaged."""
    content = (Path(__file__).parents[1] / "figures" / "data" / "planted_bound.csv").read_bytes()
    lines = content.split(b"\n")
    if rng.random() < 0.5:
        at = int(rng.integers(len(lines)))
        word = fuzz.pick(rng, (*fuzz.NUMBERS, *fuzz.WORDS)).encode()
        cells = lines[at].split(b",")
        cells[int(rng.integers(len(cells)))] = word
        lines[at] = b",".join(cells)
        if rng.random() < 0.2:
            del lines[2 + int(rng.integers(3)) :]
    content = b"\n".join(lines)
    return fuzz.damaged(rng, content) if rng.random() < 0.5 else content


PLACES = {
    "texts_csv": of_kind("texts_csv", "mine.csv", of_texts(), False),
    "texts_tsv": of_kind("texts_tsv", "mine.TSV", of_texts(), False),
    "texts_jsonl": of_kind("texts_jsonl", "mine.jsonl", of_texts(), False),
    "texts_utf16": of_kind("texts_utf16", "mine.csv", of_texts("--encoding utf-16"), False),
    "texts_cp1252": of_kind("texts_cp1252", "mine.csv", of_texts("--encoding cp1252"), False),
    "texts_train": of_kind("texts_csv", "mine.csv", of_texts()[1:2]),
    "texts_whole": of_kind("texts_whole", "mine.csv", of_texts()[:1]),
    "numbers_csv": of_kind("numbers_csv", "mine.csv", of_numbers()),
    "numbers_jsonl": of_kind("numbers_jsonl", "mine.jsonl", of_numbers()),
    "matrix_csv": of_kind("matrix_csv", "mine.csv", (*SPECTRUM, "spectrum W.npy --activations {} --out out")),
    "matrix_npy": of_kind("matrix_npy", "mine.npy", SPECTRUM),
    "activations": of_kind("matrix_npy", "mine.npy", ("spectrum W.npy --activations {} --out out",), False),
    "matrix_npz": of_kind("matrix_npz", "mine.npz", (*SPECTRUM, "spectrum {} {} --out out")),
    "predict_csv": of_kind("predict_csv", "mine.csv", of_texts()[2:3]),
    "predict_txt": of_kind("predict_txt", "mine.txt", of_texts()[5:]),
    "bytes": Place(lambda rng: rng.bytes(int(rng.integers(300))), "mine.csv", (*of_texts(), *of_numbers(), *SPECTRUM)),
    "safetensors": of_kind("safetensors", "mine.safetensors", (*SPECTRUM, "spectrum {} {} --out out")),
    "config": of_kind("config", "model/config.json", MODEL),
    "tokenizer": of_kind("tokenizer", "model/tokenizer.json", MODEL[:3]),
    "weights": of_kind("weights", f"model/{WEIGHTS}", (*MODEL, *SPECTRUM, "spectrum whole {} --out out"), False),
    "index": Place(index_of_parts, f"parts/{INDEX}", (*SPECTRUM, *(c.replace(" model ", " parts ") for c in MODEL))),
    "adapter_config": Place(
        changed(
            OPTIONS | {"base_model_name_or_path": "model"},
            (*OWN, "use_dora", "task_type", "an_option", "base_model_name_or_path"),
        ),
        "peft/adapter_config.json",
        ADAPTER,
    ),
    "adapter_mlx": Place(changed(MLX, (*MLX, "peft_type")), "mlx/adapter_config.json", ADAPTER),
    "adapter_beside": Place(forged_beside, "adapter/lorabook.json", ADAPTER),
    "adapter_tensors": Place(adapter_tensors, "peft/adapter_model.safetensors", ADAPTER),
    "checkpoint": Place(
        forged_checkpoint,
        "out/checkpoint.safetensors",
        (f"train model data.csv {TRAINED} --resume",),
        files.read_checkpoint,
    ),
    "unfinished_rows": Place(
        forged_rows, "out/unfinished/rows.safetensors", (f"sweep --data numbers.csv --jobs 1 {SWEPT}",)
    ),
    "unfinished_full": Place(
        forged_full, "out/unfinished/full-0.safetensors", (f"sweep --data numbers.csv --jobs 1 {SWEPT}",)
    ),
    "figure": Place(figure_csv, "out/data/planted_bound.csv", ("figures planted_bound --redraw --out out",)),
}

# What else is in the folder --out: a run that was cut off.
BESIDE_OF = {"checkpoint": "../real/train", "unfinished_rows": "../real/sweep", "unfinished_full": "../real/begun"}


# ---- the world -------------------------------------------------------------------------------------------------------


def make_world(root):
    """A folder `world` of files that are all right, and beside it `real`, what some of them are forged from."""
    folder, real, rng = root / "world", root / "real", np.random.default_rng(1)
    folder.mkdir()
    real.mkdir()
    for name in ("model", "whole", "parts"):
        labels = {"id2label": {"0": "a", "1": "b"}, "label2id": {"a": 0, "b": 1}}
        write_bert(folder / name, tiny_bert(np.random.default_rng(0), dtype="float32", labels=2), labels)
    arrays, _ = files.read_safetensors(folder / "parts" / WEIGHTS)
    (folder / "parts" / WEIGHTS).unlink()
    places = {name: f"{'xy'[i % 2]}.safetensors" for i, name in enumerate(arrays)}
    for part in ("x.safetensors", "y.safetensors"):
        files.write_safetensors(
            folder / "parts" / part, {name: arrays[name] for name in arrays if places[name] == part}
        )
    (real / "index.json").write_text(json.dumps({"metadata": {"total_size": 9}, "weight_map": places}))
    shutil.copy(real / "index.json", folder / "parts" / INDEX)
    factors = {
        f"base_model.model.{path}.{factor}.weight": rng.standard_normal(shape).astype("f4")
        for path in BLOCKS
        for factor, shape in (("lora_A", (2, 6)), ("lora_B", (6, 2)))
    }
    for name in ("peft", "mlx"):
        (folder / name).mkdir()
    files.write_safetensors(folder / "peft" / "adapter_model.safetensors", factors)
    (folder / "peft" / "adapter_config.json").write_text(json.dumps(OPTIONS | {"base_model_name_or_path": "model"}))
    factors = {f"{BLOCKS[0]}.lora_a": np.ones((6, 2), "f4"), f"{BLOCKS[0]}.lora_b": np.ones((2, 6), "f4")}
    files.write_safetensors(folder / "mlx" / "adapters.safetensors", factors)
    (folder / "mlx" / "adapter_config.json").write_text(json.dumps(MLX))
    data = reviews_file(folder / "data.csv", 24)
    data.write_text(data.read_text().replace(",pos", ",a").replace(",neg", ",b"))
    (folder / "texts.txt").write_text("good film\nbad\na plot\n")
    (folder / "numbers.csv").write_text("p,q,label\n" + "1,2,x\n3,1,y\n2,2,x\n4,1,y\n" * 5)
    np.save(folder / "W.npy", rng.standard_normal((5, 3)))
    (folder / "out").mkdir()
    (folder / "out" / "kept.txt").write_text("kept")
    with contextlib.chdir(folder):
        train = f"train model data.csv {TRAINED}".replace("--out out", "--out ../real/train").split()
        assert cli.main(train) == 0
        shutil.move(real / "train", folder / "adapter")
        shutil.copy(folder / "adapter" / "lorabook.json", real)
        loss_and_grad, left = BertForSequenceClassification.loss_and_grad, iter(range(2))

        def stops(self, *batch):
            if next(left, None) is None:
                raise KeyboardInterrupt
            return loss_and_grad(self, *batch)

        with mock.patch.object(BertForSequenceClassification, "loss_and_grad", stops):
            assert cli.main([*train, "--checkpoint-every", "2"]) == 130
        with mock.patch.object(unfinished.Unfinished, "remove"):
            sweep = f"sweep --data numbers.csv --jobs 1 {SWEPT}".replace("--out out", "--out ../real/sweep")
            assert cli.main(sweep.split()) == 0
    shutil.copytree(real / "sweep", real / "begun")  # its full fine-tuning is done, and no rank yet
    arrays, state = files.read_checkpoint(path := real / "begun" / "unfinished" / "rows.safetensors")
    files.write_checkpoint(path, arrays, state | {"rows": state["rows"][:1]})
    return folder


def tree(folder):
    """{path: sha256 of the file, None of a folder} of everything in a folder."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def answer(name, seed, said):
    """The exit code of a command on a file of PLACES, in the current folder, a world; said() -> what it has printed.

    AssertionError if it does what it must not. Whatever it did is cleared away.
    """
    make, path, commands, judge = PLACES[name]
    path, command = Path(path), commands[seed % len(commands)]
    before = tree(Path())
    right = path.read_bytes() if path.exists() else None
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = BESIDE_OF.get(name)
    try:
        if beside:
            shutil.copytree(beside, "out", dirs_exist_ok=True)
        path.write_bytes(make(np.random.default_rng([seed, zlib.crc32(name.encode())])))
        place = path if "/" not in path.as_posix() or path.parts[0] == "out" else path.parent
        argv = [word.replace("{}", str(place)) for word in command.split()]
        given = tree(Path())
        drawn = (
            contextlib.nullcontext() if seed // len(commands) % 4 == 0 else mock.patch.object(plots, "save", not_drawn)
        )
        with mock.patch.object(patterns, "SECONDS", 0.5), drawn:
            start = time.process_time()
            code, out, err = called(argv, said)
            seconds = time.process_time() - start
        assert seconds < fuzz.SECONDS, f"{shlex.join(argv)} took {seconds:.1f} s"
        check_answer(argv, code, out, err, given)
        if judge and code == 0 and (why := refused(judge, path)):
            raise AssertionError(f"{shlex.join(argv)} took what its reader refuses: {why}")
    finally:
        if right is not None:
            path.write_bytes(right)
        for left in sorted(tree(Path()).keys() - before.keys(), reverse=True):
            left = Path(left)
            left.rmdir() if left.is_dir() else left.unlink()
    assert tree(Path()) == before
    return code


def not_drawn(figure, path):
    """In the place of `plots.save`, which takes half the time: three of four pictures are not drawn."""
    files.write_atomic(path, "<svg/>")


def called(argv, said):
    """(exit code, stdout, stderr) of a command."""
    said()
    try:
        with fuzz.time_limit(2 * fuzz.SECONDS), wall_limit(WALL, shlex.join(argv)):
            code = cli.main(argv)
    except SystemExit as end:
        code = end.code
    return code, *said()


@contextlib.contextmanager
def wall_limit(seconds, command):
    """Waited, a BaseException that no command takes for its own, after so long by the clock, where there is a timer."""

    def over(*_):
        raise Waited(f"{command} has not ended after {seconds} s by the clock")

    if not hasattr(signal, "setitimer"):
        yield
        return
    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Waited(BaseException):
    """A command waits for what does not come."""


def check_answer(argv, code, out, err, given):
    """given: the tree that it was given, with the file."""
    command, (*above, last) = shlex.join(argv), err.splitlines() or [""]
    now = tree(Path())
    assert not [path for path in now if path.rpartition("/")[2].startswith(".lorabook")], f"{command} left {now}"
    if code:
        assert code == 2 or (code == 1 and NOT_FINITE.match(last)), f"{command}: exit code {code}: {err}"
        assert last.startswith(f"lorabook {argv[0]}: ") and len(last) < 1500, f"{command}: {err[:3000]!r}"
        assert out == "" or (argv[0] == "predict" and "--out" not in argv), f"{command} printed {out[:500]!r}"
        assert code == 1 or now == given, f"{command} changed {dict(now.items() ^ given.items())}"
    else:
        above = [*above, last] if last else above
        kept = {path: digest for path, digest in given.items() if path.partition("/")[0] != "out"}
        assert kept.items() <= now.items(), f"{command} changed {kept.items() - now.items()}"
    assert not [line for line in above if not SAID.match(line)], f"{command}: {err[:3000]!r}"


def refused(judge, path):
    try:
        judge(path)
    except InputError as error:
        return str(error)
    return None
