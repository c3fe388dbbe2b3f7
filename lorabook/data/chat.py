"""Chats: lists of messages {role, content}, checked; and the chat template that makes one text of them.

The template comes with the model, in tokenizer_config.json, chat_template.jinja or the metadata of a GGUF file. It is a
program by strangers, so it is rendered by `rendering`, in a process with limits of time and memory.
"""

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import FormatError, InputError
from ..files import read_file, read_json, short
from .text import check_text

ROLES = ("system", "developer", "user", "assistant", "tool")
OTHERS = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant", "chatgpt": "assistant"}
SPECIAL = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
SIZE = 1 << 20  # bytes of a template
SECONDS, EACH = 20.0, 0.05  # for all chats, and for each of them besides
WHERE = "tokenizer_config.json or chat_template.jinja beside the model, or tokenizer.chat_template in its GGUF file"


def check_chat(messages, where):
    """Raise FormatError, beginning with `where`, unless messages is a chat: [{role, content}, ...], both of them text.

    Roles are ROLES. Only a system prompt may be blank, as that switches off a template's own.
    """
    if not isinstance(messages, list) or not messages:
        raise FormatError(f"{where}: expected a list of messages {{role, content}}; got {short(messages)}")
    for i, message in enumerate(messages, start=1):
        at = f"{where}, message {i}"
        if not isinstance(message, dict) or not {"role", "content"} <= {*message}:
            sharegpt = isinstance(message, dict) and {"from", "value"} <= {*message}
            hint = "; call `from` role and `value` content" if sharegpt else ""
            raise FormatError(f"{at}: expected an object with role and content; got {short(message)}{hint}")
        if (role := message["role"]) not in ROLES:
            hint = f": call it {OTHERS[role]}" if isinstance(role, str) and role in OTHERS else ""
            raise FormatError(f"{at}: the role {short(role)} is none of {', '.join(ROLES)}{hint}")
        if not (role == "system" and message["content"] == ""):
            check_text(message["content"], at)


@dataclass(frozen=True)
class Rendered:
    """A chat as one text; spans: [(start, end)] of the characters of the assistant's turns, with their end marks.

    unstable: how many of its turns the template writes otherwise once more follows; they have no span.
    """

    text: str
    spans: tuple
    unstable: int


@dataclass(frozen=True)
class ChatTemplate:
    """A template in Jinja; special_tokens: {"bos_token": text, ...} as it may name them; name: what messages call it.

    >>> import lorabook as lb
    >>> ChatTemplate("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}").text([
    ...     {"role": "user", "content": "Hello"}])
    '<user>Hello'
    """

    source: str
    special_tokens: dict = field(default_factory=dict)
    name: str = "the chat template"

    def __post_init__(self):
        if not isinstance(self.source, str) or not self.source.strip():
            raise FormatError(f"{self.name}: expected a text in Jinja; got {short(self.source)}")
        if len(self.source) > SIZE:
            raise FormatError(f"{self.name} has {len(self.source):,} characters; expected at most {SIZE:,}")

    @classmethod
    def read(cls, folder):
        """That of a Hugging Face folder, or None."""
        folder, config = Path(folder), {}
        path = folder / "tokenizer_config.json"
        if path.exists():
            config = read_json(path)
        names = {name: text for name in SPECIAL if (text := _token(config.get(name)))}
        if (own := folder / "chat_template.jinja").exists():
            try:
                return cls(read_file(own, SIZE).decode(), names, str(own))
            except UnicodeDecodeError:
                raise FormatError(f"{own} is not UTF-8") from None
        source = config.get("chat_template")
        if isinstance(source, list):  # several with names
            named = {own.get("name"): own.get("template") for own in source if isinstance(own, dict)}
            if "default" not in named:
                raise FormatError(f"{path}: chat_template lists {short([*named])}; expected one called default")
            source = named["default"]
        return None if source is None else cls(source, names, f"chat_template in {path}")

    @classmethod
    def of_metadata(cls, metadata, name="the GGUF file"):
        """That of the metadata of a GGUF file, {key: value}, which names special tokens by their numbers; or None."""
        if (source := metadata.get("tokenizer.chat_template")) is None:
            return None
        tokens = metadata.get("tokenizer.ggml.tokens", ())
        numbers = {own: metadata.get(f"tokenizer.ggml.{own}_id") for own in SPECIAL}
        numbers["pad_token"] = metadata.get("tokenizer.ggml.padding_token_id")
        numbers["unk_token"] = metadata.get("tokenizer.ggml.unknown_token_id")
        names = {own: str(tokens[i]) for own, i in numbers.items() if i is not None and 0 <= int(i) < len(tokens)}
        return cls(source, names, f"the chat template of {name}")

    def text(self, messages, add_generation_prompt=False, where="the chat"):
        """The text of one chat. add_generation_prompt: with the beginning of the assistant's next turn."""
        check_chat(messages, where)
        return self._render([messages], [where], prompt=bool(add_generation_prompt))[0]["text"]

    def rendered(self, chats, where=None):
        """[Rendered] of chats that have passed `check_chat`. where: what errors call each of them.

        Where an assistant's turn begins and ends is found by rendering the chat up to it, with the prompt for it, and
        with it: each must be the beginning of the next and of the whole. Raises FormatError for a chat that the
        template refuses, one without an assistant's turn, and one all of whose turns it writes otherwise later.
        """
        where = where or [f"chat {i}" for i in range(1, len(chats) + 1)]
        found = []
        for place, messages, own in zip(where, chats, self._render(chats, where, turns=True), strict=True):
            if not own["spans"]:
                raise FormatError(f"{place}: {self._nothing(messages, own)}")
            found.append(Rendered(own["text"], tuple(map(tuple, own["spans"])), own["unstable"]))
        return found

    def _nothing(self, messages, own):
        if not any(message["role"] == "assistant" for message in messages):
            return "no message of the assistant, so there is nothing to learn; write one, or drop the row"
        if own["refusal"]:
            return f"{self.name} refuses its beginning: {short(own['refusal'])}"
        if not own["unstable"]:
            return f"{self.name} leaves out what the assistant says"
        return (
            f"{self.name} writes every turn of the assistant otherwise once more follows, so what is to be learned "
            "cannot be told; write rows of prompt and completion instead"
        )

    def _render(self, chats, where, turns=False, prompt=False):
        """The answers of `rendering`, none of which is an error."""
        job = {"template": self.source, "names": self.special_tokens, "chats": chats, "turns": turns, "prompt": prompt}
        script = Path(__file__).with_name("rendering.py")
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-S", str(script), *filter(None, sys.path)],
                input=json.dumps(job).encode(),
                capture_output=True,
                timeout=SECONDS + EACH * len(chats),
            ).stdout
        except subprocess.TimeoutExpired as expired:
            done = expired.stdout or b""
        except OSError as error:
            raise InputError(f"{self.name} needs a process of its own, which cannot start: {error.strerror}") from None
        answers = [json.loads(line) for line in done.splitlines(keepends=True) if line.endswith(b"\n")]
        if answers and "failure" in answers[0]:
            raise FormatError(f"{self.name} is no template that can be used: {short(answers[0]['failure'])}")
        for place, answer in zip(where, answers, strict=False):
            if "error" in answer:
                raise FormatError(f"{place}: {self.name} refuses it: {short(answer['error'])}")
        if len(answers) < len(chats):
            raise FormatError(f"{where[len(answers)]}: {self.name} comes to no end, or takes too much memory")
        return answers


def no_template(model):
    """The error for a model without one."""
    return InputError(
        f"{model} has no chat template: expected {WHERE}. A base model has none: use an instruct model, or rows of "
        "prompt and completion"
    )


def _token(value):
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else None
