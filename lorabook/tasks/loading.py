"""A model from its name or folder: a classifier of texts, with what it needs to read texts and to name its answers.

A language model is opened by `decoders`.
"""

from dataclasses import dataclass
from pathlib import Path

from ..adapters import classes_of, load_adapter
from ..data import load_tokenizer, placeholders
from ..errors import FormatError, InputError, check_integer
from ..files import CAUSAL_LMS, ENCODERS, short
from ..hub import known, locate
from ..models import TOKENIZER_FILES, classifier_of, label_names, load_classifier, open_pretrained
from .decoders import DecoderSource
from .sources import is_causal, named

MAX_LENGTH = 128  # tokens of a text, unless told otherwise


@dataclass(frozen=True)
class About:
    """What a loaded model knows beside its weights: its attribute `about`.

    name: what messages call it. tokenizer: of the library `tokenizers`, cutting texts after `max_length` tokens.
    labels: the names of the classes, in order. trained: whether the classifier was read from a file, or is random.
    base: name or path of the model under its adapter, or its own.
    """

    name: str
    base: str
    tokenizer: object
    labels: tuple
    max_length: int
    trained: bool


def load_model(model, adapter=None, labels=None, max_length=None, seed=0, base_dtype=None, recompute=False):
    """The model that a name or a folder stands for, ready for `predict` or `generate`, `inject` and `train`.

    model: an adapter folder, written by lorabook or PEFT, whose base model, labels and length follow from what is in
    it; a Hugging Face folder; "minilm" or "smollm2"; or a .gguf file. adapter: a folder of an adapter for that model.
    labels: names of the classes, in order, for a model whose classifier is still to be trained: it then starts at
    random, by `seed`. max_length: tokens of a text, at most (default: as the adapter was trained, else 128; of a row of
    a language model 512). base_dtype: of a language model, how the matrices of its blocks are held: "float32", "q4",
    the 4-bit blocks of a GGUF file as they are, or "nf4", rounded now (default: as the adapter was trained, else
    "float32"). recompute: of a language model, to train in less memory; see `layers.Recompute`.

    What reading texts takes is in `model.about`, an `About`, or a `LanguageAbout`. An adapter is in its place, frozen
    and not merged. Raises InputError if something is missing or does not fit, FormatError for a damaged file.

    >>> import lorabook as lb
    >>> model = lb.load_model("runs/mine")
    >>> model.about.labels
    ('neg', 'pos')
    """
    source = find(model, adapter)
    if isinstance(source, DecoderSource):
        return source.load(labels, max_length, seed, base_dtype, recompute)
    if base_dtype is not None or recompute:
        raise InputError(f"base_dtype and recompute are for language models; {source.name} is none")
    return source.load(labels, max_length, seed)


@dataclass(frozen=True)
class Source:
    """Where a model comes from, and what its files say of it before any weight is read.

    base: its name or path. folder: the Hugging Face folder of the base. adapter: a PEFT folder, or None. labels: names
    of the classes, in order; None if no file holds a classifier. max_length: as the adapter was trained, or None.
    """

    base: str
    folder: Path
    adapter: Path | None
    labels: tuple | None
    max_length: int | None

    @property
    def name(self):
        """What messages call it."""
        return str(self.adapter or self.base)

    @property
    def tokenizer_folder(self):
        """Where its tokenizer is: beside the adapter, as transformers' trainer leaves it, or else with the base."""
        return self.adapter if self.adapter and (self.adapter / "tokenizer.json").exists() else self.folder

    @property
    def tokenizer_files(self):
        """Those that go with a copy of it: of a known model what has a known sha256, and nothing that lies beside."""
        if self.tokenizer_folder != self.folder or self.base not in (entries := known()):
            return TOKENIZER_FILES
        checked = {member.file for member in entries[self.base].wanted}
        return [file for file in TOKENIZER_FILES if file in checked]

    def load(self, labels=None, max_length=None, seed=0):
        """The model; see `load_model`. labels: if the files name theirs, these must be the same."""
        if labels is None and self.labels is None:
            raise InputError(
                f"{self.name} has no trained classifier: name the adapter that has one, or train it: lorabook train"
            )
        labels = self._agreed(labels)
        network = self.load_network(len(labels), seed)
        max_length = self._length(max_length, network.sizes.longest)
        tokenizer, trained = self._tokenizer(max_length, network.sizes.vocab_size), bool(self.labels)
        network.about = About(self.name, self.base, tokenizer, labels, max_length, trained)
        return network

    def load_network(self, classes, seed=0):
        """The model with its adapter, without what reads texts: nothing of a tokenizer is asked for."""
        network = load_classifier(self.folder, classes, seed)
        if self.adapter:
            load_adapter(self.adapter, network)
        return network

    def _agreed(self, labels):
        if labels is None:
            return tuple(self.labels)
        if isinstance(labels, str) or not (labels := tuple(labels)) or len({*labels}) < len(labels):
            raise InputError(f"labels must be a list of different names; got {short(labels)}")
        if self.labels is None:
            return labels
        if self.labels != labels and (_named(self.labels) or len(labels) != len(self.labels)):
            came, expected = short(list(labels)), short(list(self.labels))
            raise InputError(f"{self.name} was trained on the labels {expected}; the data has {came}")
        return labels

    def _length(self, max_length, longest):
        if max_length is None:
            max_length = self.max_length or min(MAX_LENGTH, longest)
        return check_integer("max_length", max_length, 2, longest, f"{longest}, the positions of {self.base}")

    def _tokenizer(self, max_length, rows):
        tokenizer = load_tokenizer(self.tokenizer_folder, max_length)
        if (words := tokenizer.get_vocab_size()) > rows:
            raise InputError(
                f"the tokenizer of {self.name} knows {words} tokens, the model only {rows}: they do not fit"
            )
        return tokenizer


def find(model, adapter=None, also=(), answers=None):
    """Where a model comes from, a Source or a DecoderSource: see `load_model`. A known model is fetched if need be.

    also: names that whoever asks takes besides, for the message where this one is unknown. answers: "labels" or
    "texts", what the model is to answer with; one that does something else is an InputError that names the command.
    """
    found = named(model, adapter)
    base, adapter = found.base, found.adapter
    if is_causal(base):
        if answers == "labels":
            raise InputError(f"{found.name} is a language model, which continues texts: lorabook generate")
        return DecoderSource(found)
    if base not in ENCODERS and not Path(base).is_dir():
        here = f"; {adapter} was trained on it: give its place now, and {adapter} as its adapter" if adapter else ""
        known = ", ".join((*also, *ENCODERS, *CAUSAL_LMS, "an adapter folder, a Hugging Face folder, or a .gguf file"))
        raise InputError(f"unknown model {base!r}; expected {known}{here}")
    if answers == "texts":
        raise InputError(f"{found.name} is no language model, but one that gives texts labels: lorabook predict")
    folder, told = locate(base), found.told
    return Source(base, folder, adapter, _labels(adapter, folder, told.get("labels")), told.get("max_length"))


def _labels(adapter, folder, told):
    """The names of the classes: as the adapter tells them, else as config.json does, else LABEL_0, LABEL_1, ...

    As many as the classifier has rows, in the adapter or in the folder; None if there is no classifier.
    """
    config, tensors = open_pretrained(folder)
    output = classifier_of(config).architecture.output
    classes = classes_of(adapter, output) if adapter else None
    if classes is None:
        if len(shape := tensors[f"{output}.weight"].shape if f"{output}.weight" in tensors else ()) != 2:
            return None
        classes = shape[0]
    named = label_names(config) if told is None else told
    if told is not None and len(told) != classes:
        raise FormatError(f"{adapter}: {len(told)} labels for a classifier of {classes} classes")
    labels = named if len(named) == classes else placeholders(classes)
    if len({*labels}) < classes:
        raise FormatError(f"{adapter or folder}: two classes have the same label; got {short(labels)}")
    return tuple(labels)


def _named(labels):
    """Whether somebody has given the labels their names."""
    return list(labels) != placeholders(len(labels))
