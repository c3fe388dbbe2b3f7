"""Text tasks: movie reviews, or the reader's own file; tokens; batches of texts of similar length."""

import copy
import hashlib
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from .attention import PADDING
from .configs import short
from .errors import FormatError, InputError, check_integer
from .io import fingerprint
from .labels import alike, among, in_order, named_labels
from .tables import read_table
from .tokenizer import encode

TEST_SHARE = 1 / 4
FEW = 8  # rows of a class, below which it is mentioned


@dataclass(frozen=True)
class TextTask:
    """Rows (text, label), labels 0 .. k - 1, for training and for the test; `names[label]` is the label's name.

    notes: lines on what is odd about the data, for the reader.
    """

    name: str
    train: list
    test: list
    names: list
    notes: tuple = ()

    @classmethod
    def whole(cls, name, texts, labels, names=None):
        """All rows are for the test, in their order, however few. names: number the labels so (None: in_order)."""
        rows, names = _numbered(name, texts, labels, names)
        return cls(name, [], rows, names)

    @classmethod
    def shuffled(cls, name, texts, labels, train, seed=0):
        """Shuffled by seed; the first `train` rows are for training, the others for the test."""
        if not 0 < train < len(texts):
            raise InputError(f"{name}: {len(texts)} texts cannot be split into {train} for training and others to test")
        rows, names = _numbered(name, texts, labels)
        order = np.random.default_rng(seed).permutation(len(rows))
        return cls(name, [rows[i] for i in order[:train]], [rows[i] for i in order[train:]], names)

    @classmethod
    def split(cls, name, texts, labels):
        """A quarter for the test, chosen text by text: rows that come, go or change places move no other row.

        A text is for the test if the hash of its words is below a quarter of the largest, so equal texts are on one
        side. A class of different texts that would all be on one side has one on the other: that with the lowest hash
        is for the test, or that with the highest for training. Both sides are in the order of the hashes.
        """
        rows, names = _numbered(name, texts, labels)
        if len(names) < 2:
            raise InputError(f"{name}: expected two different labels or more; all {len(rows)} are {short(names)}")
        hashes = [_hash(text) for text, _ in rows]
        tested = _tested(hashes, [label for _, label in rows])
        order = sorted(range(len(rows)), key=lambda i: (hashes[i], rows[i]))
        train = [rows[i] for i in order if hashes[i] not in tested]
        test = [rows[i] for i in order if hashes[i] in tested]
        if not train or not test:
            raise InputError(f"{name}: expected two different texts or more of one label at least, one for the test")
        return cls(name, train, test, names, tuple(_notes(train, test, names)))

    def validation(self):
        """This task with its test rows replaced by a quarter of the training rows, chosen in the same way.

        What is chosen by them says nothing about the test rows, which stay unseen.
        """
        hashes = [_hash(f"validation {text}") for text, _ in self.train]
        tested = _tested(hashes, [label for _, label in self.train])
        held_out, kept = (
            [row for row, h in zip(self.train, hashes, strict=True) if (h in tested) is side] for side in (True, False)
        )
        if not held_out or not kept:
            raise InputError(
                f"{self.name}: too few texts to hold some out of the {len(self.train)} that are for training"
            )
        return replace(self, train=kept, test=held_out)

    def numbered(self, names):
        """This task with its labels numbered as in `names`, which may be more than it has."""
        if unknown := [name for name in self.names if name not in names]:
            raise InputError(f"{self.name}: the label {short(unknown[0])} is none of {short(list(names))}")
        number = [list(names).index(name) for name in self.names]
        train, test = ([(text, number[label]) for text, label in rows] for rows in (self.train, self.test))
        return replace(self, train=train, test=test, names=list(names))


def _numbered(name, texts, labels, names=None):
    names = in_order(labels) if names is None else list(names)
    number = {label: i for i, label in enumerate(names)}
    if unknown := [label for label in labels if label not in number]:
        raise InputError(f"{name}: the label {short(unknown[0])} is none of {short(names)}")
    return [(text, number[label]) for text, label in zip(texts, labels, strict=True)], names


def _hash(text):
    """0 .. 1, from the words of a text alone: not from the line ends of the system that wrote it."""
    return int.from_bytes(hashlib.sha256(" ".join(text.split()).encode()).digest()[:6]) / 2**48


def _tested(hashes, labels):
    """The hashes whose texts are for the test."""
    tested, of_class = {h for h in hashes if h < TEST_SHARE}, {}
    for h, label in zip(hashes, labels, strict=True):
        of_class.setdefault(label, set()).add(h)
    classes = Counter(h for own in of_class.values() for h in own)
    for _, own in sorted(of_class.items()):
        movable = {h for h in own if classes[h] == 1} or own  # the same text with two labels: others depend on it too
        if own <= tested:
            tested.discard(max(movable))
        elif len(own) > 1 and not own & tested:
            tested.add(min(movable))
    return tested


def _notes(train, test, names):
    trained, tested = (Counter(label for _, label in rows) for rows in (train, test))
    rare = [i for i in range(len(names)) if trained[i] + tested[i] < FEW]
    if rare:
        some = [f"{short(names[i])} ({trained[i]} for training, {tested[i]} for the test)" for i in rare[:4]]
        more = f", and {len(rare) - 4} more" if len(rare) > 4 else ""
        yield f"labels with few rows: {', '.join(some)}{more}"
    for a, b in alike(names)[:4]:
        yield f"the labels {short(a)} and {short(b)} look alike, and are two labels here"


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
    return TextTask.shuffled("movie-reviews", [text for text, _ in rows], labels, train, seed)


def text_file(path, encoding="utf-8", split=True, names=None):
    """A TextTask from a .csv, .tsv or .jsonl file with `text` and `label`: `TextTask.split`, or `whole` if not `split`.

    Labels: see `labels`. names: those that may occur (None: any), see `labels.among`; a file that is not split is
    numbered in their order.
    """
    path = Path(path)
    rows = read_table(path, ("text", "label"), encoding=encoding)
    for line, row in rows:
        check_text(row["text"], f"{path}, line {line}")
    texts, labels = [row["text"] for _, row in rows], named_labels([(line, row["label"]) for line, row in rows], path)
    labels = labels if names is None else among(labels, names)
    for (line, _), label in zip(rows, labels, strict=True):
        if names is not None and label not in names:
            hint = "; the model has no names for its classes: write their numbers" * (among(["0"], names) != ["0"])
            raise FormatError(f"{path}, line {line}: the label {short(label)} is none of {short(list(names))}{hint}")
    return TextTask.split(path.name, texts, labels) if split else TextTask.whole(path.name, texts, labels, names)


def check_text(text, where):
    """Raise FormatError, beginning with `where`, unless it is a text of characters that are not all blank."""
    if not isinstance(text, str) or not text.strip():
        raise FormatError(f"{where}: expected a text; got {short(text)}: write one, or drop the row")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:  # so Python marks a byte of the command line that is no UTF-8
            raise FormatError(f"{where}: half of a surrogate pair, which is no character, in {short(text)}") from None


def _tokens(encoding):
    """Those of the text itself, not [CLS] and the like."""
    return len(encoding) - sum(encoding.special_tokens_mask)


class TextBatches:
    """Batches of (ids (B, T), labels (B,)), padded with PADDING to the longest; texts of similar length go together.

    `at(step)` depends on seed and step alone. Every epoch shuffles the texts, sorts pools of `pool` batches by length,
    cuts them into batches and shuffles those: little padding, and still another composition in every epoch.
    """

    def __init__(self, rows, tokenizer, batch_size, seed=0, pool=50):
        """rows: [(text, label)]."""
        self.batch_size = check_integer("batch_size", batch_size, 1, len(rows), f"the {len(rows)} texts")
        encodings = encode(tokenizer, [text for text, _ in rows])
        self.ids = [np.array(e.ids, np.int64) for e in encodings]
        self.lengths = np.array([[_tokens(e), sum(map(_tokens, e.overflowing))] for e in encodings])  # kept, cut off
        self.max_length = (tokenizer.truncation or {}).get("max_length")
        if empty := [text for (text, _), ids in zip(rows, self.ids, strict=True) if not len(ids)]:
            raise InputError(f"the tokenizer finds no token in {empty[0]!r}; drop that row")
        self.labels = np.array([label for _, label in rows], np.int64)
        self.seed, self.pool = seed, pool
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

    @property
    def cut(self):
        """(number of texts that are longer than the tokenizer's limit, share of all tokens that were cut off)."""
        kept, lost = self.lengths.T
        return int(np.count_nonzero(lost)), float(lost.sum() / max(1, kept.sum() + lost.sum()))

    def cut_note(self):
        """The same in a sentence, or None if every text is whole."""
        texts, share = self.cut
        if not texts:
            return None
        return (
            f"{texts:,} of {len(self.ids):,} texts have more than {self.max_length} tokens and were cut, "
            f"{100 * share:.{1 if share < 0.1 else 0}f} % of all tokens; --max-length sets the limit"
        )

    def first(self, share):
        """The same of the first texts alone, a share of 0 .. 1 of them."""
        part, n = copy.copy(self), round(share * len(self.ids))
        part.ids, part.labels, part.lengths, part._epoch = self.ids[:n], self.labels[:n], self.lengths[:n], None
        return part

    def in_order(self):
        """(rows, ids, labels) of batches that cover every text once, shortest first: for evaluation."""
        order = np.array(sorted(range(len(self.ids)), key=lambda i: len(self.ids[i])))
        for i in range(0, len(order), self.batch_size):
            rows = order[i : i + self.batch_size]
            yield rows, *self.rows(rows)

    def rows(self, rows):
        """(ids (B, T), labels (B,)) of the texts with these numbers."""
        ids = np.full((len(rows), max(len(self.ids[i]) for i in rows)), PADDING, np.int64)
        for line, i in zip(ids, rows, strict=True):
            line[: len(self.ids[i])] = self.ids[i]
        return ids, self.labels[rows]
