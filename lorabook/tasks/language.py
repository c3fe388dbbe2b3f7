"""Texts, completions, chats and translations, for a language model: loss in nats a token, and perplexity."""

from dataclasses import replace

from ..adapters import about, config_of
from ..data import (
    DOMAINS,
    LANGUAGES,
    Batches,
    Chat,
    Completion,
    Packed,
    Sequences,
    corpus_file,
    messages,
    no_template,
    shakespeare,
    snippets,
)
from ..errors import InputError
from ..files import record
from ..hub import entries_of, locate
from .base import SMALL, EvaluationJob, Task, TrainingJob, parts_of
from .predictions import check_input
from .sources import is_adapter

NAMED = {  # {name: what reads it from the folders of its entries in the hub}
    **{name: lambda folders, seed, name=name: snippets(*folders, name, seed) for name in DOMAINS},
    "shakespeare": lambda folders, seed: shakespeare(*folders, seed),
    **{f"messages-{code}": lambda folders, seed, code=code: messages(folders, code, seed) for code in LANGUAGES},
}
TEST_BATCH = 8  # rows: of each token there are as many logits as the vocabulary has words
MEASURED = 256  # texts: a run measures itself on so many of the test rows at most, as a language model takes its time


class LanguageModelling(Task):
    """A language model learns the next token: of named data, or of a file with texts, completions or chats.

    models: {name: model}, each with takes(model) -> bool, whether a name or path is for it, and load(model, adapter,
    max_length, base_dtype, recompute) -> a network with `about`, a `LanguageAbout`, its adapter in place. Which rows
    are held out does not depend on the seed.

    Options of its own: base_dtype, recompute: see `load_model`. pack: several texts a row. as_chat: completions become
    chats of two turns (default: as the adapter was trained, else not).
    """

    lr, epochs, batch_size, lr_schedule, least_steps = 2e-4, 1, 8, "linear", 50
    names, options = tuple(NAMED), ("base_dtype", "recompute", "pack", "as_chat")

    def __init__(self, models):
        self.models = models

    def takes(self, model):
        return any(own.takes(model) for own in self.models.values())

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
        base_dtype=None,
        recompute=False,
        pack=True,
        as_chat=None,
    ):
        if is_adapter(model):
            raise InputError(f"{model} is an adapter folder; name the model under it, and {model} as --adapter")
        corpus = self._read(data, encoding)
        kept, rows = corpus.validation() if validate and not eval_data else corpus, {"test": corpus.test}
        if eval_data:
            rows["validation"] = self._read(eval_data, encoding, split=False).test
        elif validate:
            rows["validation"] = kept.test
        network = self._load(model, adapter, max_length, base_dtype, recompute)
        as_chat = bool(network.about.chats) if as_chat is None else as_chat
        sequences = _sequences(kept.train, network, as_chat)
        examples = Packed(sequences, _room(sequences, self.batch_size)) if pack else sequences
        size = self.batch_size_for(examples.n) if batch_size is None else batch_size
        batches = Batches(examples, size * accumulate, seed)
        notes = [*corpus.notes, *examples.notes]
        for name, own in rows.items():
            if len(own) > MEASURED:
                notes.append(f"{name}: measured on the first {MEASURED} of {len(own):,} rows")
            rows[name] = _all(_sequences(own[:MEASURED], network, as_chat))
        check_input(network, ({"input_ids": ids[None]} for ids in sequences.ids))
        for own in rows.values():
            check_input(network, own)
        network.about = replace(network.about, chats=any(_is_chat(row, as_chat) for _, row in kept.train))
        before = about(adapter)["training_texts"] if adapter else None
        return TrainingJob(
            network,
            batches,
            labels=[],
            task_type=network.task_type,
            max_length=network.about.max_length,
            notes=tuple(notes),
            config=config_of(network) if adapter else None,
            training_texts=record([row.source for _, row in corpus.train], before or ""),
            **rows,
        )

    def test(
        self,
        model,
        data,
        adapter=None,
        split=None,
        seed=0,
        max_length=None,
        encoding="utf-8",
        base_dtype=None,
        as_chat=None,
    ):
        """Any data will do: what a model has learned of one domain shows on the others too."""
        part = split or ("test" if data in NAMED else "all")
        corpus = self._read(data, encoding, split=part != "all" or data in NAMED)
        network = self._load(model, adapter, max_length, base_dtype)
        rows = [row for name in parts_of(part) for row in getattr(corpus, name)]
        examples = _sequences(rows, network, bool(network.about.chats) if as_chat is None else as_chat)
        return EvaluationJob(network, _all(examples), [], True, (*corpus.notes, *examples.notes))

    def _read(self, data, encoding, split=True):
        """The Corpus of a name or a file."""
        if data in NAMED:
            return NAMED[data]([locate(entry) for entry in entries_of(data)], 0)
        return corpus_file(data, encoding, split)

    def _load(self, model, adapter, max_length, base_dtype, recompute=False):
        own = next(own for own in self.models.values() if own.takes(model))
        return own.load(model, adapter, max_length, base_dtype, recompute)


def _sequences(rows, network, as_chat):
    own = network.about
    where, rows = ([row[part] for row in rows] for part in (0, 1))
    if own.template is None and any(_is_chat(row, as_chat) for row in rows):
        raise no_template(own.name)
    return Sequences(rows, own.tokenizer, own.max_length, own.end_id, own.template, where, as_chat)


def _room(sequences, batch_size):
    """Tokens of a packed row: max_length, and of a small file fewer, so that an epoch still has several batches."""
    batches, _ = SMALL
    share = int(sequences.lengths.sum()) // (batches * batch_size)
    return max(2, int(sequences.lengths.max()), min(sequences.max_length, share))


def _is_chat(row, as_chat):
    return isinstance(row, Chat) or (as_chat and isinstance(row, Completion))


def _all(examples):
    """Batches that cover the examples once."""
    return [batch for _, batch in Batches(examples, min(TEST_BATCH, examples.n)).in_order()]
