"""Text tasks: movie reviews, or the reader's own file; tokens; batches of texts of similar length."""

import copy
import csv
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .errors import FormatError, InputError
from .io import fingerprint


@dataclass(frozen=True)
class TextTask:
    """Texts with labels 0 .. k - 1, split into training and test; `names[label]` is the label's name."""

    name: str
    train: list
    test: list
    names: list

    @classmethod
    def split(cls, name, texts, labels, seed=0, train=None):
        """Shuffle by seed; the first `train` texts (default: three quarters) are for training, the rest for testing.

        labels: any text or number, numbered in sorted order. Raises InputError for an empty text, or one class.
        """
        for i, text in enumerate(texts):
            if not isinstance(text, str) or not text.strip():
                raise InputError(f"{name}: text number {i + 1} is empty or no text; drop that row")
        for i, label in enumerate(labels):
            if not isinstance(label, str | int | float) or not str(label).strip():
                raise InputError(f"{name}: label number {i + 1} must be a name or a number; got {label!r}")
        names = sorted(set(map(str, labels)))
        if len(names) < 2:
            raise InputError(f"{name}: expected two different labels or more; all {len(labels)} are {names}")
        train = round(0.75 * len(texts)) if train is None else train
        if not 0 < train < len(texts):
            raise InputError(
                f"{name}: {len(texts)} texts cannot be split into {train} for training and the rest for a test"
            )
        rows = [(text, names.index(str(label))) for text, label in zip(texts, labels, strict=True)]
        order = np.random.default_rng(seed).permutation(len(rows))
        return cls(name, [rows[i] for i in order[:train]], [rows[i] for i in order[train:]], names)


def movie_reviews(path, seed=0, train=8000):
    """The 10,605 movie-review snippets of Hutto and Gilbert (ICWSM 2014), labelled by the sign of their mean rating.

    path: folder with movieReviewSnippets_GroundTruth.txt: id, mean of ten ratings in -4 .. 4, text; tabs, UTF-8.
    A rating of exactly 0 has no sign: those snippets are left out.
    """
    path = Path(path) / "movieReviewSnippets_GroundTruth.txt"
    try:
        rows = [line.split("\t", 2) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
        rows = [(text.strip(), float(rating)) for _, rating, text in rows if float(rating) != 0 and text.strip()]
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise FormatError(f"{path} does not hold lines of id, rating and text: {error}") from None
    labels = ["positive" if rating > 0 else "negative" for _, rating in rows]
    return TextTask.split("movie-reviews", [text for text, _ in rows], labels, seed, train)


def text_file(path, seed=0):
    """A TextTask from a .csv, .tsv or .jsonl file with columns (or keys) `text` and `label`."""
    path = Path(path)
    if path.suffix not in (".csv", ".tsv", ".jsonl"):
        raise InputError(f"{path}: expected a .csv, .tsv or .jsonl file with `text` and `label`")
    read = _json_lines if path.suffix == ".jsonl" else _csv_rows
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:  # spreadsheets begin their files with a mark
            rows = list(read(path, file))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}") from None
    for line, row in rows:
        if not isinstance(row, dict) or row.get("text") is None or row.get("label") is None:
            keys = sorted(map(str, row)) if isinstance(row, dict) else row
            raise FormatError(f"{path}, line {line}: expected `text` and `label`; got {keys}")
    if not rows:
        raise InputError(f"{path} holds no rows")
    return TextTask.split(path.name, [row["text"] for _, row in rows], [row["label"] for _, row in rows], seed)


def _json_lines(path, file):
    """(line number, value) of every line that is not empty."""
    for number, line in enumerate(file, start=1):
        if line.strip():
            try:
                yield number, json.loads(line.rstrip())
            except (ValueError, RecursionError) as error:
                why = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
                raise FormatError(f"{path}, line {number} is malformed: {why}") from None


def _csv_rows(path, file):
    """(number of the line it ends in, {column: cell}) of every row."""
    rows = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
    try:
        for row in rows:
            yield rows.reader.line_num, row
    except csv.Error as error:
        raise FormatError(f"{path}, line {rows.reader.line_num} is malformed: {error}") from None


def load_tokenizer(path, max_length=128):
    """The tokenizer of a Hugging Face folder, cutting texts after `max_length` tokens (library `tokenizers`)."""
    from tokenizers import Tokenizer

    path = Path(path) / "tokenizer.json"
    if not path.is_file():
        raise InputError(f"no tokenizer.json in {path.parent}; expected a Hugging Face folder with a fast tokenizer")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception for a malformed file
        raise FormatError(f"{path} is not a tokenizer: {error}") from None
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length)
    return tokenizer


class TextBatches:
    """Batches of (ids (B, T), labels (B,)), padded to the longest of the batch; texts of similar length go together.

    `at(step)` depends on seed and step alone. Every epoch shuffles the texts, sorts pools of `pool` batches by length,
    cuts them into batches and shuffles those: little padding, and still another composition in every epoch.
    """

    def __init__(self, rows, tokenizer, batch_size, seed=0, pad_token_id=0, pool=50):
        """rows: [(text, label)]."""
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or not 1 <= batch_size <= len(rows):
            raise InputError(f"batch_size must be an integer from 1 to the {len(rows)} texts; got {batch_size!r}")
        self.ids = [np.array(e.ids, np.int64) for e in tokenizer.encode_batch([text for text, _ in rows])]
        if empty := [text for (text, _), ids in zip(rows, self.ids, strict=True) if not len(ids)]:
            raise InputError(f"the tokenizer finds no token in {empty[0]!r}; drop that row")
        self.labels = np.array([label for _, label in rows], np.int64)
        self.batch_size, self.seed, self.pad_token_id, self.pool = batch_size, seed, pad_token_id, pool
        self._epoch, self._batches = None, None

    @property
    def n(self):
        """Texts."""
        return len(self.ids)

    def __len__(self):
        """Steps an epoch."""
        return self.n // self.batch_size

    def fingerprint(self):
        """sha256 of ids and labels."""
        lengths = np.array([len(ids) for ids in self.ids])
        return fingerprint({"ids": np.concatenate(self.ids), "lengths": lengths, "labels": self.labels})

    def at(self, step):
        """(ids, labels) of one step, counted over all epochs."""
        epoch, i = divmod(step, len(self))
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self._shuffled(np.random.default_rng([self.seed, epoch]))
        return self.rows(self._batches[i])

    def _shuffled(self, rng):
        order = rng.permutation(len(self.ids))[: len(self) * self.batch_size]
        size = self.pool * self.batch_size
        pools = [order[i : i + size] for i in range(0, len(order), size)]
        by_length = np.concatenate([sorted(pool, key=lambda i: len(self.ids[i])) for pool in pools])
        return rng.permutation(by_length.reshape(len(self), self.batch_size))

    def first(self, share):
        """The same of the first texts alone, a share of 0 .. 1 of them."""
        part, n = copy.copy(self), round(share * len(self.ids))
        part.ids, part.labels, part._epoch = self.ids[:n], self.labels[:n], None
        return part

    def in_order(self):
        """(rows, ids, labels) of batches that cover every text once, shortest first: for evaluation."""
        order = np.array(sorted(range(len(self.ids)), key=lambda i: len(self.ids[i])))
        for i in range(0, len(order), self.batch_size):
            rows = order[i : i + self.batch_size]
            yield rows, *self.rows(rows)

    def rows(self, rows):
        """(ids (B, T), labels (B,)) of the texts with these numbers."""
        ids = np.full((len(rows), max(len(self.ids[i]) for i in rows)), self.pad_token_id, np.int64)
        for line, i in zip(ids, rows, strict=True):
            line[: len(self.ids[i])] = self.ids[i]
        return ids, self.labels[rows]
