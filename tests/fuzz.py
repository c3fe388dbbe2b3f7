"""Files that no honest program wrote: damaged, hostile, or of another kind than their name says.

GENERATORS holds a row for each kind of file from outside, those of `fuzz_*.py` beside this file too; `refusal` makes
one such file and reads it.
"""

import contextlib
import functools
import io as std_io
import json
import signal
import tempfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors.numpy

from lorabook import InputError, NonFiniteError, data, files
from lorabook.data import Batches, text, windows
from lorabook.files import tables
from lorabook.models import MLP
from lorabook.tasks import matrices
from lorabook.training import AdamW, Evaluation, train

SECONDS = 5  # of processor time a file may take


class Kind(NamedTuple):
    """make(rng) -> bytes of a file; read(path), as a command does; how the file's name ends, or the whole of it."""

    make: object
    read: object
    suffix: str


def refusal(name, seed, folder):
    """Read a file of GENERATORS: why it was refused, or None. Raises what a reader must not, or AssertionError."""
    make, read, suffix = GENERATORS[name]
    path = folder / (name + suffix if suffix.startswith(".") else suffix)
    path.write_bytes(make(np.random.default_rng([seed, zlib.crc32(name.encode())])))
    try:
        with time_limit(SECONDS):
            read(path)
    except InputError as error:
        message = str(error)
        assert path.name in message, f"the file is not named: {message}"
        assert len(message.splitlines()) == 1 and len(message) < 1000, f"not one line: {message[:2000]!r}"
        return message
    return None


@contextlib.contextmanager
def time_limit(seconds):
    """TimeoutError after this processor time, where the system has such a timer (not on Windows)."""

    def over(*_):
        raise TimeoutError(f"more than {seconds} s")

    if not hasattr(signal, "setitimer"):
        yield
        return
    before = signal.signal(signal.SIGVTALRM, over)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


# ---- damage, to any bytes --------------------------------------------------------------------------------------------

BYTES = (
    b"\0",
    b"\xff",
    b"\xff\xfe",
    b"\xfe\xff",
    b"\xef\xbb\xbf",
    b"\x80",
    b"\xed\xa0\x80",
    b"\r",
    b"\n",
    b"\r\n",
    b'"',
)


def damaged(rng, content, pieces=BYTES, most=4):
    """The bytes after up to `most` accidents: a bit flips; a stretch is lost, doubled or random; some piece comes."""
    content = bytearray(content)
    for _ in range(rng.integers(0, most + 1)):
        at, end = sorted(rng.integers(0, len(content) + 1, 2).tolist())
        end = min(end, at + int(rng.geometric(0.1)))
        what = rng.integers(6)
        if what == 0 and content:
            content[at % len(content)] ^= 1 << int(rng.integers(8))
        elif what == 1:
            del content[at:end]
        elif what == 2:
            content[at:at] = content[at:end] * int(rng.integers(1, 4))
        elif what == 3:
            content[at:end] = rng.bytes(end - at)
        elif what == 4 and rng.random() < 0.3:
            del content[at:]
        else:
            content[at:at] = pieces[rng.integers(len(pieces))]
    return bytes(content)


def pick(rng, choices):
    """One of a sequence, as it is (NumPy's choice makes an array of it)."""
    return choices[int(rng.integers(len(choices)))]


def strange_json(rng, depth=3):
    """The text of a JSON value, or of what looks like one."""
    kind = rng.integers(8) if depth else rng.integers(5)
    if kind < 4:
        return pick(rng, JSON)
    if kind == 4:
        return json.dumps(pick(rng, WORDS), ensure_ascii=bool(rng.integers(2)))
    if kind == 5:
        return "[" + ",".join(strange_json(rng, depth - 1) for _ in range(rng.integers(4))) + "]"
    if kind == 6:
        inside = (f"{json.dumps(pick(rng, WORDS))}:{strange_json(rng, depth - 1)}" for _ in range(rng.integers(4)))
        return "{" + ",".join(inside) + "}"
    deep = int(rng.integers(1, 3000))
    return pick(rng, ("[", '{"a":')) * deep + pick(rng, ("", "]" * deep, "}" * deep))


JSON = (
    *(
        "0",
        "-0",
        "1",
        "1.0",
        "-1",
        "1e999",
        "-1e-999",
        "9" * 30,
        "9" * 5000,
        str(2**63),
        "NaN",
        "Infinity",
        "-Infinity",
    ),
    *("true", "false", "null", '""', '" "', '"\\ud800"', '"\\udc00\\ud800"', '"\\u0000"', "'a'", "01", "", "\\", "nul"),
    '"' + "a" * 3000 + '"',
)
WORDS = (
    *(
        "text",
        "label",
        "Text",
        " label",
        "a",
        "b",
        "",
        " ",
        "pos",
        " pos",
        "Pos",
        "neg",
        "1",
        "1.0",
        "01",
        "true",
        "nan",
    ),
    *("NaN", "null", "caf\u00e9", "cafe\u0301", "\u4e2d\u6587", "\U0001f600", "\u0085", "\u2028", "\u00a0", "\ufeff"),
    *('say "no"', '"', '""', "a,b", "a\tb", "two\nlines", "old\rmac", "#", "a" * 3000),
)


# ---- tables ----------------------------------------------------------------------------------------------------------

NUMBERS = (
    *("0", "-1", "2.5", "1e30", "1e-30", "3e38", "1e308", "-1e308", "1e309", "1e-400", "5e-324", "9" * 500, "1_000"),
    *(
        "1,5",
        "nan",
        "inf",
        "-Infinity",
        "0x10",
        "",
        " 7 ",
        "+3",
        ".",
        "1.",
        ".5",
        "1e",
        "\u0661",
        "12 kg",
        "true",
        "1\0",
    ),
)
ENCODINGS = (
    "utf-8",
    "utf-8-sig",
    "utf-16",
    "utf-16-le",
    "utf-16-be",
    "utf-32",
    "cp1252",
    "latin-1",
    "cp1251",
    "koi8-r",
)


def table(rng, separator=",", words=WORDS, header=("text", "label"), encoding="utf-8"):
    """Rows of cells under a header, right or wrong in what it says, how it is quoted, separated, encoded and cut."""
    header = list(header)
    for _ in range(rng.integers(3) if rng.random() < 0.3 else 0):
        header.insert(int(rng.integers(len(header) + 1)), pick(rng, (*WORDS, *header)))
    rows = [[pick(rng, words) for _ in header] for _ in range(rng.integers(5) if rng.random() < 0.5 else 0)]
    rows += [["ab"[i % 2] if name == "label" else str(i) for name in header] for i in range(12 * rng.integers(2))]
    if rows and rng.random() < 0.2:
        row = pick(rng, rows)
        row[:] = row[1:] if rng.integers(2) else [*row, "more"]
    separator = pick(rng, ",;\t|") if rng.random() < 0.1 else separator
    quote = rng.random() < 0.8

    def cell(word):
        strange = any(c in word for c in (separator, '"', "\n", "\r"))
        return '"' + word.replace('"', '""') + '"' if quote and strange else word

    end = pick(rng, ("\n", "\n", "\r\n", "\r", "\n\n", "\n \n"))
    return encoded(rng, end.join(separator.join(map(cell, row)) for row in [header, *rows]) + end, encoding)


def json_lines(rng, header=("text", "label")):
    """One JSON object a line, or something like it."""
    lines = []
    for i in range(rng.integers(15)):
        names = [name if rng.random() < 0.99 else pick(rng, WORDS) for name in header]
        names += [pick(rng, (*WORDS, *header))] * int(rng.random() < 0.05)
        values = [strange_json(rng) if rng.random() < 0.03 else json.dumps(f"{(i, i % 2)[n % 2]}") for n in range(9)]
        inside = ",".join(f"{json.dumps(name)}:{value}" for name, value in zip(names, values, strict=False))
        lines.append("{" + inside + "}" if rng.random() < 0.98 else strange_json(rng))
    return encoded(rng, pick(rng, ("\n", "\r\n", "\n\n")).join(lines))


def encoded(rng, content, encoding="utf-8"):
    """The text in this encoding, sometimes in another, sometimes damaged."""
    encoding = pick(rng, ENCODINGS) if rng.random() < 0.15 else encoding
    content = content.encode(encoding, "replace")
    return damaged(rng, content) if rng.random() < 0.5 else content


def numbers(rng, header=("a", "label", "b")):
    """A table of numbers, with labels unless told otherwise."""
    return table(rng, words=NUMBERS if rng.random() < 0.3 else NUMBERS[:7], header=header)


def our_csv(rng):
    """What `write_csv` writes, damaged."""
    rows = "full,,0,0.25\nlora,4,1,1e-05\n" * int(rng.integers(4))
    return damaged(rng, f"# lorabook sweep\n# python 3\nmethod,r,seed,loss\n{rows}".encode())


def array_file(rng, archive):
    """A .npy file, or an .npz archive of two, of any dtype, with a header that may lie; or damaged."""
    out, kind = std_io.BytesIO(), pick(rng, ("f2", "f4", "f8", "i4", "?", "c8", "O", "U3", "f4,i2"))
    array = np.zeros(rng.integers(0, 4, rng.integers(4)), kind)
    if archive:
        np.savez(out, **{pick(rng, WORDS).replace("\0", "") or "a": array, "W": np.ones((3, 2))})
    else:
        np.save(out, array)
    content = out.getvalue()
    if rng.random() < 0.4:
        content = content.replace(
            b"'shape': (", b"'shape': (" + pick(rng, (b"9, ", b"99999999, ", b"-1, ", b"(), ", b"x"))
        )
    return damaged(rng, content) if rng.random() < 0.7 else content


def read_whole(path):
    """As evaluate does."""
    return text.text_file(path, split=False)


def predicted(path):
    """As predict does."""
    return list(windows.file_windows(path))


def read_in(encoding):
    """Read a text file in this encoding."""
    return lambda path: text.text_file(path, encoding)


# ---- checkpoints -----------------------------------------------------------------------------------------------------


def resumed(path, model=None):
    """Continue a run of six steps from its checkpoint; a file that is refused must have changed nothing."""
    model = model or MLP((3, 4, 2), rng=np.random.default_rng(0))
    hook = Evaluation(lambda model, workers: (0.5, 0.5), 2, keep="best")
    optimizer, before = AdamW(0.01), {name: array.copy() for name, array in model.named_params().items()}
    rows = {"x": np.eye(3, dtype="f4")[[0, 1, 2, 0, 1, 2]], "labels": np.array([0, 1, 0, 1, 0, 1])}
    batches = Batches(rows, 2)
    options = {"epochs": 2, "checkpoint": path, "checkpoint_every": 4, "workers": 1, "hooks": [hook], "resume": True}
    try:
        train(model, batches, optimizer, **options)
    except InputError:
        assert all(np.array_equal(array, before[name]) for name, array in model.named_params().items())
        assert not optimizer.step_count and not any(a.any() for own in optimizer.state.values() for a in own.values())
        raise
    except NonFiniteError:  # what was forged is a number like any other: a negative second moment
        pass


@functools.cache
def real_checkpoint():
    """(arrays, state) of the run of `resumed`."""
    with tempfile.TemporaryDirectory() as folder:
        resumed(Path(folder) / "checkpoint")
        return files.read_checkpoint(Path(folder) / "checkpoint")


def checkpoint(rng):
    """A checkpoint whose sha256 is right, whatever it holds; or one that is damaged."""
    arrays, state = ({**part} for part in real_checkpoint())
    state["run"] = {**state["run"]}
    for _ in range(rng.integers(4)):
        what = rng.integers(5)
        if what < 3:
            forge_tensor(rng, arrays)
        else:
            part = state if what == 3 or not isinstance(state.get("run"), dict) else state["run"]
            part[pick(rng, [*part, *WORDS])] = forged_value(rng)
            part.pop(pick(rng, [*part]) if rng.random() < 0.2 else None, None)
    try:
        content = json.dumps(state) if rng.random() < 0.9 else strange_json(rng)
    except RecursionError:  # a forged value of its state may lie deeper than Python can write
        content = strange_json(rng)
    content = "".join(c for c in content if not "\ud800" <= c <= "\udfff")
    file = safetensors.numpy.save(arrays, {"lorabook": f"{files.fingerprint(arrays, content)} {content}"})
    return damaged(rng, file) if rng.random() < 0.2 else file


@np.errstate(all="ignore")
def forge_tensor(rng, arrays):
    """One more, one less, or one of another shape, dtype or content."""
    name = pick(rng, [*arrays])
    array = arrays.pop(name).copy()
    what, dtype = rng.integers(7), pick(rng, ("f2", "f4", "f8", "i4", "i8", "u1", "?"))
    if what == 1:
        arrays[name + pick(rng, ("", ".", "\n", "x"))] = array
    elif what == 2:
        arrays[name] = array.astype(dtype)
    elif what == 3:
        arrays[name] = np.zeros(rng.integers(0, 3, rng.integers(5)), dtype)
    elif what == 4:
        kind = array.dtype if array.dtype.kind == "f" else "f4"
        arrays[name] = np.full(array.shape, pick(rng, (np.nan, np.inf, -np.inf, 1e30, -1.0, 0.0)), kind)
    elif what == 5:
        arrays[name] = np.resize(array, int(rng.integers(array.size + 2)))
    elif what == 6:
        arrays[name] = array
        arrays[pick(rng, WORDS)] = array


def forged_value(rng):
    """A JSON value of any kind."""
    try:
        return json.loads(strange_json(rng, 2))
    except (ValueError, RecursionError):
        return pick(rng, (None, True, 0, -1, 3, 7, 2**63, 10**400, 0.5, "", "6", [], {}, {"a": 1}))


GENERATORS = {
    "texts_csv": Kind(table, text.text_file, ".csv"),
    "texts_tsv": Kind(lambda rng: table(rng, "\t"), text.text_file, ".TSV"),
    "texts_jsonl": Kind(json_lines, text.text_file, ".jsonl"),
    "texts_whole": Kind(table, read_whole, ".csv"),
    "texts_utf16": Kind(lambda rng: table(rng, encoding="utf-16"), read_in("utf-16"), ".csv"),
    "texts_cp1252": Kind(lambda rng: table(rng, encoding="cp1252"), read_in("cp1252"), ".csv"),
    "numbers_csv": Kind(numbers, data.csv_task, ".csv"),
    "numbers_jsonl": Kind(lambda rng: json_lines(rng, ("a", "label")), data.csv_task, ".jsonl"),
    "matrix_csv": Kind(lambda rng: numbers(rng, ("a", "b")), matrices.read_matrix, ".csv"),
    "matrix_npy": Kind(lambda rng: array_file(rng, False), matrices.matrices_of, ".npy"),
    "matrix_npz": Kind(lambda rng: array_file(rng, True), matrices.matrices_of, ".npz"),
    "predict_csv": Kind(table, predicted, ".csv"),
    "predict_txt": Kind(lambda rng: encoded(rng, "\n".join(pick(rng, WORDS) for _ in range(9))), predicted, ".txt"),
    "our_csv": Kind(our_csv, tables.read_csv, ".csv"),
    "checkpoint": Kind(checkpoint, resumed, ".safetensors"),
    "bytes_csv": Kind(lambda rng: rng.bytes(int(rng.integers(300))), text.text_file, ".csv"),
}
