"""Texts that continue prompts, as they come: whole characters, up to a token or a text that ends them."""

from dataclasses import dataclass

from ..data import check_text, encode, no_template
from ..errors import InputError
from ..files import short
from ..models import Sampling, continuations

NEW_TOKENS = 256  # of an answer, at most, unless told otherwise


@dataclass(frozen=True)
class Piece:
    """What one token adds to the answer of a row, "" while a character is not whole; `end`, with its last piece.

    end: "stop" after the token that ends a text, or a text of `stop`; "length" after `max_new_tokens`; before, None.
    """

    row: int
    text: str
    end: str | None = None


def generate(model, prompts, max_new_tokens=NEW_TOKENS, sampling=None, stop=(), seed=0, chat=None):
    """The answer to each prompt, in their order; options as of `stream`.

    >>> import lorabook as lb
    >>> model = lb.load_model("runs/poet")  # trained on prompts and completions; "smollm2" answers as in a chat
    >>> lb.generate(model, ["Roses are", "Snow is"], max_new_tokens=10)
    [' red.', ' white.']
    """
    if isinstance(prompts, str):
        raise InputError(f"prompts must be a list of texts or chats; got the text {short(prompts)}: pass [text]")
    prompts = list(prompts)
    answers = [""] * len(prompts)
    for piece in stream(model, prompts, max_new_tokens, sampling, stop, seed, chat):
        answers[piece.row] += piece.text
    return answers


def stream(model, prompts, max_new_tokens=NEW_TOKENS, sampling=None, stop=(), seed=0, chat=None):
    """Yield the `Piece`s of the answers to prompts, of all rows in turn, as they are found.

    model: a decoder from `load_model`. prompts: texts, or chats [{role, content}, ...]. chat: whether a text is what
    the user says in a chat, or is continued as it stands; default: as the model was trained, which an adapter folder
    tells, and else a chat template. max_new_tokens: of an answer, at
    most. sampling: `Sampling`; default the most probable token each time. stop: texts that end an answer, which does
    not hold them. seed: of what is drawn; row i draws from the stream (seed, i), whatever the other rows are.
    """
    about = model.about
    if isinstance(stop, str) or not all(isinstance(text, str) and text for text in stop):
        raise InputError(f"stop must be a list of texts; got {short(stop)}")
    ids = [tokens_of(about, prompt, chat, f"prompt number {i}") for i, prompt in enumerate(prompts, start=1)]
    answers = [_Answer(about.tokenizer, stop) for _ in prompts]
    steps = continuations(model, ids, max_new_tokens, sampling or Sampling(), about.ends, seed)
    found, left = next(steps), max_new_tokens - 1
    while True:
        stopped = set()
        for row, token in found.items():
            text, ended = answers[row].add(token, token in about.ends)
            if ended:
                stopped.add(row)
            elif not left:
                text += answers[row].held
            yield Piece(row, text, "stop" if ended else None if left else "length")
        try:
            found, left = steps.send(stopped), left - 1
        except StopIteration:
            return


def tokens_of(about, prompt, chat=None, where="the prompt"):
    """The token numbers of a text or a chat, as the model that `about` tells of was trained to see it."""
    if not isinstance(prompt, str | list):
        raise InputError(f"{where} must be a text, or a list of messages {{role, content}}; got {short(prompt)}")
    if chat is None:
        chat = about.template is not None if about.chats is None else about.chats
    if isinstance(prompt, str):
        check_text(prompt, where)
        if not chat:
            return encode(about.tokenizer, [prompt])[0].ids
        prompt = [{"role": "user", "content": prompt}]
    if about.template is None:
        raise no_template(about.name)
    text = about.template.text(prompt, add_generation_prompt=True, where=where)
    return encode(about.tokenizer, [text], add_special_tokens=False)[0].ids  # the template writes them


class _Answer:
    """The text of tokens as they come. held: the end of what was found, which may be the beginning of a stop text."""

    def __init__(self, tokenizer, stop):
        from tokenizers.decoders import DecodeStream

        self.tokenizer, self.stop, self.held = tokenizer, tuple(stop), ""
        self.decoder = DecodeStream(skip_special_tokens=True)

    def add(self, token, last):
        """(what can be told now, whether the answer ends here) after one token more; last: it ends the text itself."""
        if last:
            text, self.held = self.held, ""
            return text, True
        self.held += self.decoder.step(self.tokenizer, token) or ""
        places = [place for text in self.stop if (place := self.held.find(text)) >= 0]
        if places:
            return self.held[: min(places)], True
        begun = max((n for text in self.stop for n in range(1, len(text)) if self.held.endswith(text[:n])), default=0)
        told = self.held[: len(self.held) - begun]
        self.held = self.held[len(told) :]
        return told, False
