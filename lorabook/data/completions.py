"""What a language model learns from, a row each: a text, a prompt and its completion, or a chat; read from files.

A row says what its text is, and which of its characters are learned: a `Learned`. All of a `Plain` text; of a
`Completion` what follows the prompt, and the end; of a `Chat` what the assistant says. Files: .csv, .tsv or .jsonl with
a column `text`, or `prompt` and `completion`; .jsonl also with `messages`, a list of {role, content}.
"""

from dataclasses import dataclass
from pathlib import Path

from ..errors import FormatError, InputError, note
from ..files import short, table_rows
from .chat import check_chat
from .text import check_text

KINDS = {"text": ("text",), "completion": ("prompt", "completion"), "chat": ("messages",)}
EXPECTED = "a column `text`; or `prompt` and `completion`; or, in a .jsonl file, `messages`"


@dataclass(frozen=True)
class Learned:
    """A text and the spans [(start, end)] of its characters that are learned.

    special: whether the tokenizer is to add the tokens that the model wants around a text. end: whether the token that
    ends a text follows, to be learned too.
    """

    text: str
    spans: tuple
    special: bool = True
    end: bool = True


@dataclass(frozen=True)
class Plain:
    """A text, all of which is learned."""

    text: str

    @property
    def source(self):
        """By what rows are told apart when some are held out."""
        return self.text

    def learned(self):
        """See `Learned`."""
        return Learned(self.text, ((0, len(self.text)),))


@dataclass(frozen=True)
class Completion:
    """A prompt and what is to follow it, which alone is learned. The two are joined as they stand."""

    prompt: str
    completion: str

    @property
    def source(self):
        """By what rows are told apart when some are held out: no prompt is on both sides."""
        return self.prompt

    def learned(self):
        """See `Learned`."""
        whole = self.prompt + self.completion
        return Learned(whole, ((len(self.prompt), len(whole)),))

    def as_chat(self):
        """The same as a chat of two turns, for a model that was trained on chats."""
        return Chat([{"role": "user", "content": self.prompt}, {"role": "assistant", "content": self.completion}])


@dataclass(frozen=True)
class Chat:
    """Messages [{role, content}]; what the assistant says is learned, and the mark that ends it."""

    messages: list

    @property
    def source(self):
        """By what rows are told apart when some are held out: all that is said before the assistant's last turn."""
        last = max((i for i, own in enumerate(self.messages) if own["role"] == "assistant"), default=None)
        return "\x1e".join(own["content"] for own in self.messages[:last]) or self.messages[0]["content"]


def language_file(path, encoding="utf-8"):
    """[(line, row)] of a file, the rows all of one kind: see above. Raises FormatError with the line of a fault.

    A column `label` is passed over, with a note.
    """
    path, kind, rows = Path(path), None, []
    columns = [column for own in KINDS.values() for column in own]
    for line, cells in table_rows(path, (), columns, encoding, rest=True, nested=("messages",)):
        kind = kind or _kind(cells, f"{path}, line {line}")
        if missing := [column for column in KINDS[kind] if cells.get(column) is None]:
            raise FormatError(f"{path}, line {line}: expected a {_and(missing)}, as in the rows above")
        rows.append((line, _row(kind, [cells[column] for column in KINDS[kind]], f"{path}, line {line}")))
    if not rows:
        raise FormatError(f"{path} holds no rows")
    if "label" in cells:
        note(f"{path}: the column label is passed over, as a language model learns texts")
    if glued := sum(isinstance(row, Completion) and _glued(row) for _, row in rows):
        note(
            f"{path}: in {glued:,} of {len(rows):,} rows prompt and completion meet without a blank between two "
            "letters or digits; they are joined as they stand"
        )
    return rows


def _kind(cells, where):
    found = [kind for kind, own in KINDS.items() if any(cells.get(column) is not None for column in own)]
    if len(found) > 1:
        columns = [column for kind in found for column in KINDS[kind] if cells.get(column) is not None]
        raise FormatError(f"{where}: expected one kind of row; got {_and(columns)}: remove what is not to be learned")
    if not found:
        sharegpt = "; call `conversations` messages" if "conversations" in cells else ""
        raise FormatError(f"{where}: expected {EXPECTED}; got {short(', '.join(map(str, cells)))}{sharegpt}")
    (kind,) = found
    if missing := [column for column in KINDS[kind] if cells.get(column) is None]:
        raise FormatError(f"{where}: expected a column {_and(missing)} too; got {short(', '.join(map(str, cells)))}")
    return kind


def _and(columns):
    return " and ".join(f"`{column}`" for column in columns)


def _row(kind, cells, where):
    if kind == "chat":
        (messages,) = cells
        if isinstance(messages, str):
            raise FormatError(f"{where}: expected a list of messages, which only a .jsonl file can hold; got text")
        check_chat(messages, where)
        if not any(message["role"] == "assistant" for message in messages):
            raise FormatError(f"{where}: no message of the assistant, so there is nothing to learn; drop the row")
        return Chat(messages)
    for column, cell in zip(KINDS[kind], cells, strict=True):
        check_text(cell, where if kind == "text" else f"{where}, {column}")
    return Plain(*cells) if kind == "text" else Completion(*cells)


def _glued(row):
    before, after = row.prompt[-1], row.completion[0]
    return (before + after).isascii() and before.isalnum() and after.isalnum()


def learned(rows, template=None, where=None, as_chat=False):
    """([Learned] of rows, how many of the assistant's turns have no span: see `chat.Rendered`).

    template: a `ChatTemplate`, for chats. where: what errors call each row. as_chat: make chats of completions.
    """
    where = where or [f"row {i}" for i in range(1, len(rows) + 1)]
    rows = [row.as_chat() if as_chat and isinstance(row, Completion) else row for row in rows]
    chats = [i for i, row in enumerate(rows) if isinstance(row, Chat)]
    if chats and template is None:
        raise InputError(f"{where[chats[0]]}: a chat needs a chat template; give that of the model")
    found = template.rendered([rows[i].messages for i in chats], [where[i] for i in chats]) if chats else []
    own = dict(zip(chats, found, strict=True))
    texts = [
        Learned(own[i].text, own[i].spans, special=False, end=False) if i in own else row.learned()
        for i, row in enumerate(rows)
    ]
    return texts, sum(chat.unstable for chat in found)
