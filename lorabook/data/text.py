"""Text tasks: movie reviews, or the reader's own file; texts as tokens."""

import copy
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..errors import FormatError, InputError
from ..files import fingerprint, read_table, short
from . import splits
from .labels import alike, among, in_order, named_labels
from .pairs import PAIR, columns_of, text_of
from .tokenizer import encode

FEW = 8  # rows of a class, below which it is mentioned


@dataclass(frozen=True)
class TextTask:
    """Rows (text, label) for training and for the test, a text being a str or a pair, labels 0 .. k - 1.

    `names[label]` is the label's name. notes: lines on what is odd about the data, for the reader.
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
        """A quarter of the different texts of each class for the test: see `splits.held_out`; in the order they come.

        Rows that are appended move no other row; rows that go, or change places or labels, do.
        """
        rows, names = _numbered(name, texts, labels)
        if len(names) < 2:
            raise InputError(f"{name}: expected two different labels or more; all {len(rows)} are {short(names)}")
        train, test = _divided(rows)
        if not test:
            raise InputError(f"{name}: expected two different texts or more of one label at least, one for the test")
        return cls(name, train, test, names, tuple(_notes(train, test, names)))

    def validation(self):
        """This task with its test rows replaced by a quarter of the training rows, chosen in the same way.

        What is chosen by them says nothing about the test rows, which stay unseen.
        """
        kept, held_out = _divided(self.train, "validation ")
        if not held_out:
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


def _divided(rows, salt=""):
    """(rows that stay, rows that are held out)."""
    sides = splits.held_out(*zip(*rows, strict=True), salt)
    return [[row for row, out in zip(rows, sides, strict=True) if out is side] for side in (False, True)]


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

    A column `text_pair` makes each text a pair.

    Labels: see `labels`. names: those that may occur (None: any), see `labels.among`; a file that is not split is
    numbered in their order.

    >>> import lorabook as lb
    >>> task = lb.text_file("mine.csv")
    >>> text, label = task.train[0]
    >>> task.names, task.names[label]
    (['neg', 'pos'], 'pos')
    """
    path = Path(path)
    rows = read_table(path, ("text", "label"), (PAIR,), encoding)
    texts = [text_of(row) for _, row in rows]
    for (line, _), text in zip(rows, texts, strict=True):
        check_text(text, f"{path}, line {line}")
        if type(text) is not type(texts[0]):
            raise FormatError(f"{path}, line {line}: expected a text_pair in every row, or in none")
    labels = named_labels([(line, row["label"]) for line, row in rows], path)
    labels = labels if names is None else among(labels, names)
    for (line, _), label in zip(rows, labels, strict=True):
        if names is not None and label not in names:
            hint = "; the model has no names for its classes: write their numbers" * (among(["0"], names) != ["0"])
            raise FormatError(f"{path}, line {line}: the label {short(label)} is none of {short(list(names))}{hint}")
    return TextTask.split(path.name, texts, labels) if split else TextTask.whole(path.name, texts, labels, names)


def check_text(text, where):
    """Raise FormatError, beginning with `where`, unless it is a text, or a pair, of characters, not all blank."""
    if isinstance(text, tuple) and len(text) == 2:
        for name, part in columns_of(text).items():
            check_text(part, f"{where}, {name}" if isinstance(part, str) else where)
        return
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


class Texts:
    """Texts as a tokenizer cuts them, and their labels: examples for `batches.Batches`.

    A batch has input_ids and attention_mask (B, T), T the longest text of the batch, 0 in both where a text has ended;
    labels (B,); and token_type_ids (B, T) where the tokenizer tells two texts apart.

    >>> import lorabook as lb
    >>> model = lb.load_model("runs/mine")
    >>> texts = lb.Texts([("good", 1), ("a bad film", 0)], model.about.tokenizer)
    >>> texts.rows([0, 1])["attention_mask"].tolist()  # [CLS] and [SEP] count too
    [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    """

    def __init__(self, rows, tokenizer):
        """rows: [(text, label)], a text being a str or a pair of them. Raises InputError for one without a token."""
        encodings = encode(tokenizer, [text for text, _ in rows])
        self.ids = [np.array(e.ids, np.int64) for e in encodings]
        types = [np.array(e.type_ids, np.int64) for e in encodings]
        self.types = types if any(own.any() for own in types) else None
        self.tokens = np.array([[_tokens(e), sum(map(_tokens, e.overflowing))] for e in encodings])  # kept, cut off
        self.lengths = np.array([len(ids) for ids in self.ids])
        self.max_length = (tokenizer.truncation or {}).get("max_length")
        if not self.lengths.all():
            text, _ = rows[int(self.lengths.argmin())]
            raise InputError(f"the tokenizer finds no token in {text!r}; drop that row")
        self.labels = np.array([label for _, label in rows], np.int64)

    @property
    def n(self):
        """Texts."""
        return len(self.ids)

    def fingerprint(self):
        """sha256 of ids, types and labels."""
        types = {} if self.types is None else {"types": np.concatenate(self.types)}
        return fingerprint({"ids": np.concatenate(self.ids), "lengths": self.lengths, "labels": self.labels, **types})

    def rows(self, rows):
        """The batch of the texts with these numbers."""
        columns = {"input_ids": self.ids} | ({} if self.types is None else {"token_type_ids": self.types})
        batch = {
            name: np.zeros((len(rows), self.lengths[rows].max()), np.int64) for name in (*columns, "attention_mask")
        }
        for line, i in enumerate(rows):
            for name, own in columns.items():
                batch[name][line, : self.lengths[i]] = own[i]
            batch["attention_mask"][line, : self.lengths[i]] = 1
        return batch | {"labels": self.labels[rows]}

    def first(self, n):
        """The first n texts alone."""
        part = copy.copy(self)
        part.ids, part.labels, part.tokens, part.lengths = (
            own[:n] for own in (self.ids, self.labels, self.tokens, self.lengths)
        )
        part.types = self.types and self.types[:n]
        return part

    @property
    def cut(self):
        """(number of texts that are longer than the tokenizer's limit, share of all tokens that were cut off)."""
        kept, lost = self.tokens.T
        return int(np.count_nonzero(lost)), float(lost.sum() / max(1, kept.sum() + lost.sum()))

    def cut_note(self):
        """The same in a sentence, or None if every text is whole."""
        texts, share = self.cut
        if not texts:
            return None
        return (
            f"{texts:,} of {self.n:,} texts have more than {self.max_length} tokens and were cut, "
            f"{100 * share:.{1 if share < 0.1 else 0}f} % of all tokens; --max-length sets the limit"
        )
