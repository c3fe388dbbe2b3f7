"""Files of completions and chats, and folders with a chat template, that no honest program wrote."""

import functools
import json

from fuzz import GENERATORS, WORDS, Kind, damaged, encoded, json_lines, pick, strange_json, table
from tiny_language import END, SHORT, byte_tokenizer

from lorabook.data import ChatTemplate, Sequences, language_file, rendering
from lorabook.errors import FormatError

TOKENIZER = byte_tokenizer()
ROLES = ("user", "assistant", "system", "tool", "user", "assistant", "gpt", "", "User")


def chats(rng):
    """One chat a line, right or wrong in its roles, contents and keys."""
    lines = []
    for _ in range(rng.integers(9)):
        messages = [message(rng, i) for i in range(rng.integers(2, 6))]
        inside = strange_json(rng) if rng.random() < 0.04 else "[" + ",".join(messages) + "]"
        more = f',"{pick(rng, ("id", "text", "messages", "label"))}":{strange_json(rng)}' if rng.random() < 0.05 else ""
        key = "messages" if rng.random() < 0.97 else pick(rng, ("conversations", "Messages", *WORDS[:6]))
        lines.append("{" + f"{json.dumps(key)}:{inside}{more}" + "}")
    return encoded(rng, "\n".join(lines))


def message(rng, i):
    """One message."""
    role = json.dumps(("user", "assistant")[i % 2] if rng.random() < 0.96 else pick(rng, ROLES))
    content = json.dumps(pick(rng, WORDS)) if rng.random() < 0.1 else json.dumps(f"word {i}")
    content = strange_json(rng) if rng.random() < 0.02 else content
    role = strange_json(rng) if rng.random() < 0.01 else role
    keys = ("from", "value") if rng.random() < 0.02 else ("role", "content")
    return "{" + f'"{keys[0]}":{role},"{keys[1]}":{content}' + "}"


@functools.cache
def compiled():
    """The template of all chats."""
    return rendering.compiled(SHORT)


def read(path):
    """As training does; the template is rendered here, as a process for each file would take hours."""
    rows = language_file(path)
    template, names = compiled(), {}
    for _, row in rows:
        if hasattr(row, "messages"):
            rendering.turns(template, row.messages, names)
    plain = [(line, row) for line, row in rows if not hasattr(row, "messages")]
    if plain:
        where = [f"{path}, line {line}" for line, _ in plain]
        Sequences([row for _, row in plain], TOKENIZER, 9, TOKENIZER.token_to_id(END), where=where)


PARTS = (
    SHORT,
    "",
    "{{ bos_token }}",
    "{% if",
    "{{ messages[9].content }}",
    "{% for m in messages %}{{ m.role }}",
    "{{",
)


def template_config(rng):
    """A tokenizer_config.json with a template, or with what is none."""
    template = json.dumps(pick(rng, PARTS)) if rng.random() < 0.7 else strange_json(rng)
    token = json.dumps("<s>") if rng.random() < 0.5 else strange_json(rng)
    content = "{" + f'"chat_template":{template},"bos_token":{token}' + "}"
    content = content if rng.random() < 0.9 else strange_json(rng)
    content = content.encode("utf-8", "surrogatepass")
    return damaged(rng, content) if rng.random() < 0.3 else content


def read_template(path):
    """Found in its folder and compiled, in this process."""
    if (template := ChatTemplate.read(path.parent)) is None:
        return
    answers = [*rendering.answers({"template": template.source, "names": template.special_tokens, "prompt": False,
                                   "turns": True, "chats": [[{"role": "assistant", "content": "a"}]]})]  # fmt: skip
    if answers and "failure" in answers[0]:
        raise FormatError(f"{path}: {answers[0]['failure']}")


LANGUAGE = ("prompt", "completion")
GENERATORS |= {
    "completions_csv": Kind(lambda rng: table(rng, header=LANGUAGE), read, ".csv"),
    "completions_tsv": Kind(lambda rng: table(rng, "\t", header=LANGUAGE), read, ".tsv"),
    "completions_jsonl": Kind(lambda rng: json_lines(rng, LANGUAGE), read, ".jsonl"),
    "language_texts_jsonl": Kind(lambda rng: json_lines(rng, ("text",)), read, ".jsonl"),
    "chats_jsonl": Kind(chats, read, ".jsonl"),
    "chat_template": Kind(template_config, read_template, "tokenizer_config.json"),
}
