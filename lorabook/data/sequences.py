"""Texts as a language model learns them: token ids, and labels that are -100 where there is no loss.

Labels are not shifted, as on the Hugging Face hub: the model compares what it answers at t with the label at t + 1. The
first token of a text follows nothing, so its label is -100 too, and the labels >= 0 are the tokens that count.
"""

import copy

import numpy as np

from ..errors import InputError, check_integer
from ..files import fingerprint, short
from .completions import learned
from .tokenizer import encode, without_truncation

IGNORED = -100


class Sequences:
    """Rows of a language model's data as token ids: examples for `batches.Batches`.

    A batch has input_ids and attention_mask (B, T), 0 in both where a text has ended, and labels (B, T), -100 where
    there is no loss. lengths (n,): tokens of each. `tokens`: how many count in the loss.

    cut: rows that had more than max_length tokens and lost their end; lost: tokens that went with it. dropped: rows of
    which nothing was left to be learned. unstable: see `chat.Rendered`.

    """

    def __init__(self, rows, tokenizer, max_length, end_id=None, template=None, where=None, as_chat=False):
        """rows: of `completions`. end_id: the token that ends a text (None: there is none). Others: see `learned`.

        Raises InputError for a row that the tokenizer cannot handle, and where nothing is left to be learned at all.
        """
        self.max_length = check_integer("max_length", max_length, 2)
        where = where or [f"row {i}" for i in range(1, len(rows) + 1)]
        texts, self.unstable = learned(rows, template, where, as_chat)
        tokenizer, encodings = without_truncation(tokenizer), [None] * len(texts)
        for special in (True, False):
            places = [i for i, own in enumerate(texts) if own.special is special]
            found = encode(tokenizer, [texts[i].text for i in places], special) if places else []
            for i, encoding in zip(places, found, strict=True):
                encodings[i] = encoding
        cut = [_tokens(*both, end_id) for both in zip(texts, encodings, strict=True)]
        self.cut = sum(len(ids) > max_length for ids, _ in cut)
        self.lost = sum(max(0, len(ids) - max_length) for ids, _ in cut)
        cut = [(ids[:max_length], labels[:max_length]) for ids, labels in cut]
        self.kept = np.flatnonzero([(labels >= 0).any() for _, labels in cut])  # numbers of the rows that are left
        gone = np.setdiff1d(np.arange(len(rows)), self.kept)
        self.dropped = [where[i] for i in gone]
        if not len(self.kept):
            raise InputError(
                f"{short(where[0])}: nothing to learn is left of this row, nor of any other, within {max_length} "
                "tokens; raise --max-length"
                if self.cut
                else f"{short(where[0])}: no token of any row is learned"
            )
        self.ids, self.labels = ([cut[i][part] for i in self.kept] for part in (0, 1))
        self.lengths = np.array([len(ids) for ids in self.ids])

    @property
    def n(self):
        """Rows."""
        return len(self.ids)

    @property
    def tokens(self):
        """How many tokens count in the loss."""
        return int(sum(np.count_nonzero(own >= 0) for own in self.labels))

    def fingerprint(self):
        """sha256 of ids and labels."""
        arrays = {"ids": np.concatenate(self.ids), "labels": np.concatenate(self.labels), "lengths": self.lengths}
        return fingerprint(arrays)

    def rows(self, rows):
        """The batch of the rows with these numbers."""
        T = int(self.lengths[rows].max())
        batch = {
            "input_ids": np.zeros((len(rows), T), np.int64),
            "attention_mask": np.zeros((len(rows), T), np.int64),
            "labels": np.full((len(rows), T), IGNORED, np.int64),
        }
        for line, i in enumerate(rows):
            own = slice(0, self.lengths[i])
            batch["input_ids"][line, own], batch["labels"][line, own] = self.ids[i], self.labels[i]
            batch["attention_mask"][line, own] = 1
        return batch

    def first(self, n):
        """The first n rows alone."""
        part = copy.copy(self)
        part.ids, part.labels, part.lengths = self.ids[:n], self.labels[:n], self.lengths[:n]
        return part

    @property
    def notes(self):
        """Lines on what was cut off, what was dropped, and what a template does not let be learned."""
        lines = []
        if self.cut:
            share = self.lost / (self.lost + self.lengths.sum())
            lines.append(
                f"{self.cut:,} rows have more than {self.max_length} tokens and were cut: {self.lost:,} tokens lost, "
                f"{100 * share:.{1 if share < 0.1 else 0}f} % of all; --max-length sets the limit"
            )
        if self.dropped:
            first = short(self.dropped[0])
            lines.append(
                f"{len(self.dropped):,} rows were dropped, as no token to learn is left of them; first {first}"
            )
        if self.unstable:
            lines.append(
                f"the chat template writes {self.unstable:,} turns of the assistant otherwise once more follows; they "
                "are read and not learned"
            )
        return tuple(lines)


def _tokens(text, encoding, end_id):
    """(ids, labels), (T,) each, of a `Learned` as it was encoded.

    A token is learned if it begins in a span: one that begins before, with the prompt's last character, is not what
    follows that prompt.
    """
    ids = np.array(encoding.ids, np.int64)
    start, _ = np.array(encoding.offsets, np.int64).reshape(-1, 2).T
    own, inside = np.array(encoding.special_tokens_mask) == 0, np.zeros(len(ids), bool)
    for first, end in text.spans:
        inside |= own & (start >= first) & (start < end)
    labels = np.where(inside, ids, IGNORED)
    if text.end and end_id is not None:
        if not len(ids) or ids[-1] != end_id:
            ids, labels = np.append(ids, end_id), np.append(labels, end_id)
        labels[-1] = end_id
    labels[:1] = IGNORED
    return ids, labels
