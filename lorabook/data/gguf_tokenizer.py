"""The tokenizer in a GGUF file, rebuilt from its own vocabulary and merges by the library `tokenizers`."""

import json

from ..errors import FormatError
from ..files import short
from .tokenizer import checked_tokenizer

CONTROL, USER_DEFINED = 3, 4  # kinds of tokens, as llama.cpp numbers them: both are found in a text before it is cut
DIGITS = {"gpt-2": False, "smollm": True}  # llama.cpp's names of rules for cutting words: does a digit stand alone?


def gguf_tokenizer(path, metadata):
    """The `tokenizers.Tokenizer` of the metadata that `files.read_gguf` found at `path`: byte-level BPE.

    A text is cut into words by GPT-2's rule, digits one by one where the file says so; each word's bytes are merged in
    the order of the list. Raises FormatError for another kind of tokenizer, or lists that do not fit together.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    model, cut = (metadata.get(f"tokenizer.ggml.{key}") for key in ("model", "pre"))
    if not (isinstance(model, str) and isinstance(cut, str) and model == "gpt2" and cut in DIGITS):
        known = " or ".join(map(repr, DIGITS))
        came = f"tokenizer.ggml.model is {short(model)}, pre {short(cut)}"
        raise FormatError(f"{path}: {came}; only 'gpt2' (byte-level BPE) with {known} is read here")
    tokens, kinds, merges = _lists(path, metadata)
    vocab = {token: i for i, token in enumerate(tokens)}

    def build():
        tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
        words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        digits = [pre_tokenizers.Digits(individual_digits=True)] if DIGITS[cut] else []
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*digits, words])
        tokenizer.decoder = decoders.ByteLevel()
        for kind, special in ((CONTROL, True), (USER_DEFINED, False)):
            found = [
                AddedToken(t, special=special, normalized=False)
                for t, k in zip(tokens, kinds, strict=True)
                if k == kind
            ]
            (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(found)
        if metadata.get("tokenizer.ggml.add_bos_token") is True:
            i = metadata["tokenizer.ggml.bos_token_id"]
            special = [(tokens[i], i)]
            tokenizer.post_processor = processors.TemplateProcessing(f"{tokens[i]} $A", None, special)
        return tokenizer

    return checked_tokenizer(build, path)


def _lists(path, metadata):
    """(tokens, their kinds, merges as pairs), checked."""
    tokens, merges = (metadata.get(f"tokenizer.ggml.{key}") for key in ("tokens", "merges"))
    for key, value in (("tokens", tokens), ("merges", merges)):
        if not isinstance(value, list) or not value:
            raise FormatError(f"{path}: tokenizer.ggml.{key} must be a list of texts; got {short(value)}")
    known = set(tokens)
    if len(known) < len(tokens) or "" in known:
        raise FormatError(f"{path}: tokenizer.ggml.tokens holds a token twice, or an empty one")
    kinds = metadata.get("tokenizer.ggml.token_type")
    if getattr(kinds, "shape", None) != (len(tokens),):
        raise FormatError(f"{path}: tokenizer.ggml.token_type must have a number for each of {len(tokens):,} tokens")
    pairs = [tuple(merge.split(" ")) for merge in merges]
    for merge, pair in zip(merges, pairs, strict=True):
        if len(pair) != 2 or not {*pair, "".join(pair)} <= known:
            raise FormatError(f"{path}: the merge {short(merge)} is not of two tokens into one")
    for key in ("bos", "eos", "padding", "unknown"):
        i = metadata.get(f"tokenizer.ggml.{key}_token_id", 0)
        if type(i) is not int or not 0 <= i < len(tokens):
            raise FormatError(f"{path}: tokenizer.ggml.{key}_token_id is {short(i)}; expected 0 to {len(tokens) - 1}")
    if metadata.get("tokenizer.ggml.add_bos_token") is True and "tokenizer.ggml.bos_token_id" not in metadata:
        raise FormatError(f"{path}: tokenizer.ggml.add_bos_token is true, but there is no bos_token_id")
    return tokens, [int(kind) for kind in kinds], pairs


def gguf_tokenizer_files(path, metadata):
    """{file's name: its text}: the same tokenizer as a Hugging Face folder has it, its chat template in it.

    tokenizer.json is of the library `tokenizers`; tokenizer_config.json is what transformers adds: which tokens begin,
    end and pad a text, and the template. Raises FormatError as `gguf_tokenizer` does.
    """
    tokenizer, tokens = gguf_tokenizer(path, metadata), metadata["tokenizer.ggml.tokens"]
    config = {
        "add_bos_token": bool(metadata.get("tokenizer.ggml.add_bos_token", False)),
        "clean_up_tokenization_spaces": False,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    for key, name in (("bos", "bos"), ("eos", "eos"), ("padding", "pad"), ("unknown", "unk")):
        if (i := metadata.get(f"tokenizer.ggml.{key}_token_id")) is not None:
            config[f"{name}_token"] = tokens[i]
    if type(longest := metadata.get("llama.context_length")) is int:
        config["model_max_length"] = longest
    if (template := chat_template(metadata)) is not None:
        config["chat_template"] = template
    texts = {"tokenizer.json": tokenizer.to_str(pretty=True), "tokenizer_config.json": json.dumps(config, indent=2)}
    return {name: text + "\n" for name, text in texts.items()}


def chat_template(metadata):
    """The Jinja template by which messages become a prompt, or None."""
    template = metadata.get("tokenizer.chat_template")
    return template if isinstance(template, str) else None
