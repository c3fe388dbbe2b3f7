"""A language model from its name, Hugging Face folder, GGUF file or adapter folder, with what texts and chats take."""

import functools
from dataclasses import dataclass
from pathlib import Path

from ..adapters import load_adapter
from ..data import ChatTemplate, gguf_tokenizer, load_tokenizer
from ..errors import FormatError, InputError, check_integer
from ..files import check_values, integer, read_gguf, read_json, short
from ..hub import locate
from ..models import causal_lm_of, open_causal_lm
from .sources import Named, gguf_files, is_causal, named

MAX_LENGTH = 512  # tokens of a row, unless told otherwise
GGUF_ENDS = ("eos", "eot", "eom")  # tokens that end a text, a turn, a message that wants an answer


@dataclass(frozen=True)
class LanguageAbout:
    """What a loaded language model knows beside its weights: its attribute `about`.

    name: what messages call it. base: name or path of the model under its adapter. tokenizer: of the library
    `tokenizers`; it cuts nothing. max_length: tokens of a row of training data. end_id: the token that ends a text in
    training, or None. ends: the tokens that end an answer. template: the model's `ChatTemplate`, or None. chats:
    whether its adapter learned chats, None where that is not known. base_dtype: how the base is held.
    """

    name: str
    base: str
    tokenizer: object
    max_length: int
    end_id: int | None = None
    ends: frozenset = frozenset()
    template: ChatTemplate | None = None
    chats: bool | None = None
    base_dtype: str = "float32"


@dataclass(frozen=True)
class DecoderSource:
    """Where a language model comes from; `load` opens it. base, adapter: see `sources.Named`."""

    named: Named
    labels = None  # of classes: none

    @property
    def name(self):
        """What messages call it."""
        return self.named.name

    @property
    def base(self):
        """The name or path of the model under the adapter."""
        return self.named.base

    @property
    def adapter(self):
        """A PEFT folder, or None."""
        return self.named.adapter

    @functools.cached_property
    def files(self):
        """What opens the base: `path`, `config`, `weights`, and of a GGUF file its `metadata`."""
        return _files(self.base)

    def load(self, labels=None, max_length=None, seed=0, base_dtype=None, recompute=False):
        """The model, its adapter in place, frozen and not merged; see `loading.load_model`."""
        if labels is not None:
            raise InputError(f"{self.name} is a language model, which has no labels; got {short(list(labels))}")
        told, files = self.named.told, self.files
        base_dtype = base_dtype or told.get("base_dtype") or "float32"
        tokenizer = files.tokenizer(self.adapter)
        if (words := tokenizer.get_vocab_size()) > files.config["vocab_size"]:
            raise InputError(
                f"the tokenizer of {self.name} knows {words} tokens, the model only {files.config['vocab_size']}: they "
                "do not fit"
            )
        network = causal_lm_of(files.path, files.config, files.weights, base_dtype, recompute)
        if self.adapter:
            load_adapter(self.adapter, network)
        longest = network.sizes.longest
        if max_length is None:
            max_length = told.get("max_length") or min(MAX_LENGTH, longest)
        max_length = check_integer("max_length", max_length, 2, longest, f"{longest}, the positions of {self.base}")
        facts = {"template": files.template(), "chats": told.get("chats"), "base_dtype": base_dtype}
        end_id, ends = files.ends(tokenizer)
        network.about = LanguageAbout(self.name, self.base, tokenizer, max_length, end_id, ends, **facts)
        return network


class Decoders:
    """What opens language models for the task that trains them; see `language.LanguageModelling`."""

    takes = staticmethod(is_causal)

    @staticmethod
    def load(model, adapter=None, max_length=None, base_dtype=None, recompute=False):
        """The model of a name or path; see `loading.load_model`."""
        return DecoderSource(named(model, adapter)).load(None, max_length, 0, base_dtype, recompute)


def _files(base):
    """What opens the files of a model, by its name or path."""
    path = locate(base)
    if path.is_dir() and (found := gguf_files(path)):
        if len(found) > 1:
            names = ", ".join(own.name for own in found)
            raise InputError(f"{path} holds {len(found)} GGUF files ({names}); name one of them")
        path = found[0]
    return _Folder(path) if path.is_dir() else _GGUF(path, base)


class _Folder:
    """A Hugging Face folder."""

    def __init__(self, path):
        self.path = path
        self.config, self.weights = open_causal_lm(path)

    def tokenizer(self, adapter):
        own = adapter if adapter and (adapter / "tokenizer.json").exists() else self.path
        tokenizer = load_tokenizer(own)
        tokenizer.no_truncation()
        return tokenizer

    def template(self):
        return ChatTemplate.read(self.path)

    def ends(self, tokenizer):
        path, ends = self.path / "generation_config.json", _tokens(self.config, self.path / "config.json")
        more = _tokens(read_json(path), path) if path.exists() else []
        end = _word(self.path / "tokenizer_config.json", "eos_token")
        end_id = None if end is None else tokenizer.token_to_id(end)
        ends = [*([] if end_id is None else [end_id]), *ends, *more]
        return (ends[0] if ends else None), frozenset(ends)


class _GGUF:
    """A file of llama.cpp."""

    def __init__(self, path, base):
        self.path, self.base = path, base
        self.metadata, tensors = read_gguf(path)
        self.config, self.weights = open_causal_lm(path, self.metadata, tensors)

    def tokenizer(self, adapter):
        return gguf_tokenizer(self.path, self.metadata)

    def template(self):
        return ChatTemplate.of_metadata(self.metadata, self.base)

    def ends(self, tokenizer):
        ends = [self.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in GGUF_ENDS]
        ends = [own for own in ends if type(own) is int and own >= 0]
        return (ends[0] if ends else None), frozenset(ends)


def _tokens(config, path):
    """The tokens in a config's eos_token_id: one, several, or none."""
    value = config.get("eos_token_id")
    found = value if isinstance(value, list) else [] if value is None else [value]
    for own in found:
        check_values(path, {"eos_token_id": own}, {"eos_token_id": integer(0)})
    return found


def _word(path: Path, name):
    """The text of a special token that tokenizer_config.json names, or None."""
    value = read_json(path).get(name) if path.exists() else None
    value = value.get("content") if isinstance(value, dict) else value
    if value is not None and not isinstance(value, str):
        raise FormatError(f"{path}: {name} must be a text; got {short(value)}")
    return value
