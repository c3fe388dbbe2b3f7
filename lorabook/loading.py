"""A classifier of texts from its name or folder, with what it needs to read texts and to name its answers."""

from dataclasses import dataclass
from pathlib import Path

from .adapter_io import about, classes_of, load_adapter
from .adapters import LoRAConfig
from .configs import short
from .errors import FormatError, InputError, check_integer
from .hub import known_name, locate
from .labels import placeholders
from .models.bert import BertForSequenceClassification
from .models.pretrained import label_names, open_pretrained
from .tokenizer import load_tokenizer

MAX_LENGTH = 128  # tokens of a text, unless told otherwise


@dataclass(frozen=True)
class About:
    """What a loaded model knows beside its weights: its attribute `about`.

    name: what messages call it. tokenizer: of the library `tokenizers`, cutting texts after `max_length` tokens.
    labels: the names of the classes, in order. trained: whether the classifier was read from a file, or is random.
    config: of the adapter, if there is one.
    """

    name: str
    tokenizer: object
    labels: tuple
    max_length: int
    trained: bool
    config: LoRAConfig | None = None


def load_model(model, adapter=None, labels=None, max_length=None, seed=0):
    """The classifier of texts that a name or a folder stands for, ready for `predict`, `inject` or `train`.

    model: an adapter folder, written by lorabook or PEFT, whose base model, labels and length follow from what is in
    it; a Hugging Face folder; or "minilm". adapter: a folder of an adapter for that model. labels: names of the
    classes, in order, for a model whose classifier is still to be trained: it then starts at random, by `seed`.
    max_length: tokens of a text, at most (default: as the adapter was trained, else 128).

    What reading texts takes is in `model.about`, an `About`. An adapter is in its place, frozen and not merged. Raises
    InputError if something is missing or does not fit, FormatError for a damaged file.

    >>> import lorabook
    >>> model = lorabook.load_model("runs/mine")
    >>> model.about.labels
    ('neg', 'pos')
    """
    return find(model, adapter).load(labels, max_length, seed)


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

    def load(self, labels=None, max_length=None, seed=0):
        """The model; see `load_model`. labels: if the files name theirs, these must be the same."""
        if labels is None and self.labels is None:
            raise InputError(
                f"{self.name} has no trained classifier: name the adapter that has one, or train it: lorabook train"
            )
        labels = self._agreed(labels)
        network = BertForSequenceClassification.from_pretrained(self.folder, labels=len(labels), rng=seed)
        adapter = load_adapter(self.adapter, network) if self.adapter else None
        config = network.children["bert"].config
        max_length = self._length(max_length, config["max_position_embeddings"])
        tokenizer, trained = self._tokenizer(max_length, config), bool(self.labels)
        network.about = About(self.name, tokenizer, labels, max_length, trained, adapter)
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

    def _tokenizer(self, max_length, config):
        tokenizer = load_tokenizer(self.tokenizer_folder, max_length)
        if (words := tokenizer.get_vocab_size()) > (rows := config["vocab_size"]):
            raise InputError(
                f"the tokenizer of {self.name} knows {words} tokens, the model only {rows}: they do not fit"
            )
        return tokenizer


def is_adapter(folder):
    """Whether a path is that of an adapter folder."""
    folder = Path(folder)
    return (folder / "adapter_config.json").exists() and not (folder / "config.json").exists()


def find(model, adapter=None):
    """The Source of a model: see `load_model`. A known model is fetched if need be."""
    model, adapter = known_name(str(model)), None if adapter is None else Path(adapter)
    if is_adapter(model):
        if adapter:
            raise InputError(
                f"{model} is an adapter folder; expected the model under it, or no other adapter beside it"
            )
        model, adapter = None, Path(model)
    told = about(adapter) if adapter else {}
    if model is None and (model := told["base_model"]) is None:
        raise InputError(
            f"{adapter} does not say what it was trained on; give that model, and {adapter} as its adapter"
        )
    if model != "minilm" and not Path(model).is_dir():
        here = f"; {adapter} was trained on it: give its place now, and {adapter} as its adapter" if told else ""
        raise InputError(f"unknown model {model!r}; expected minilm, an adapter folder, or a Hugging Face folder{here}")
    folder = locate(model)
    return Source(model, folder, adapter, _labels(adapter, folder, told.get("labels")), told.get("max_length"))


def _labels(adapter, folder, told):
    """The names of the classes: as the adapter tells them, else as config.json does, else LABEL_0, LABEL_1, ...

    As many as the classifier has rows, in the adapter or in the folder; None if there is no classifier.
    """
    config, tensors = open_pretrained(folder)
    classes = classes_of(adapter) if adapter else None
    if classes is None:
        if len(shape := tensors["classifier.weight"].shape if "classifier.weight" in tensors else ()) != 2:
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
