"""The chat template: what it writes, which characters are the assistant's, and what a hostile one can do."""

import json
import time

import pytest
from tiny_language import SHORT, SMOLLM2, turns

from lorabook import InputError
from lorabook.data import ChatTemplate, chat, check_chat, rendering
from lorabook.errors import FormatError


def spoken(template, messages):
    (found,) = ChatTemplate(template).rendered([messages])
    here = rendering.turns(rendering.compiled(template), messages, {})
    assert (here["text"], [*map(tuple, here["spans"])], here["unstable"]) == (
        found.text,
        [*found.spans],
        found.unstable,
    )
    return [found.text[a:b] for a, b in found.spans], found


def test_smollm2_puts_its_system_prompt_before_a_chat_that_has_none():
    text = ChatTemplate(SMOLLM2).text(turns("Hi"), add_generation_prompt=True)
    assert text.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    own = ChatTemplate(SMOLLM2).text(turns("Hi", system="Be brief."))
    assert own == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"


def test_the_assistants_turns_and_their_end_marks_are_found():
    found, rendered = spoken(SMOLLM2, turns("Hi", "Yes.\n", "And?", "No", "Thanks"))
    assert found == ["Yes.\n<|im_end|>", "No<|im_end|>"]
    assert rendered.unstable == 0
    assert spoken(SMOLLM2, turns("assistant\n", "<|im_start|>assistant\n"))[0] == ["<|im_start|>assistant\n<|im_end|>"]


def test_without_an_end_mark_the_blanks_at_the_end_are_the_turn():
    assert spoken("{% for m in messages %}{{ m.content }}\n{% endfor %}", turns("a", "b"))[0] == ["b\n"]


def test_generation_marks_change_nothing():
    marked = SHORT.replace("{{ m.content }}", "{% generation %}{{ m.content }}{% endgeneration %}")
    assert spoken(marked, turns("a", "b")) == spoken(SHORT, turns("a", "b"))


def test_a_turn_that_is_written_otherwise_later_is_not_learned():
    """As where a model's thoughts are left out once the next question is there."""
    hides = "{% for m in messages %}<{{ m.role }}>"
    hides += "{{ m.content if loop.last or m.role == 'user' else '...' }}<|im_end|>{% endfor %}"
    hides += "{% if add_generation_prompt %}<assistant>{% endif %}"
    found, rendered = spoken(hides, turns("a", "bcd", "e", "fgh"))
    assert (found, rendered.unstable) == (["fgh<|im_end|>"], 1)


def test_a_template_that_is_never_stable_is_refused():
    counts = "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(FormatError, match="chat 1.*otherwise once more follows.*prompt and completion"):
        spoken(counts, turns("a", "b"))


ALTERNATE = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{{ m.content }}{% endfor %}"
)


def test_a_chat_that_the_template_refuses_is_named():
    misordered = [*turns("a", "b"), {"role": "assistant", "content": "c"}]
    with pytest.raises(FormatError, match=r"mine.jsonl, line 7: the chat template refuses it: 'roles must alternate'"):
        ChatTemplate(ALTERNATE).rendered([turns("a", "b"), misordered], ["mine.jsonl, line 3", "mine.jsonl, line 7"])


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{% if", "no template that can be used"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{{ namespace(__class__=1) }}", "cannot hold"),
        ("{{ dict.__globals__.x }}", "unsafe"),
        ("{{ 'a' * 99999999999 }}", "memory"),
        ("{{ 'a' * 4194305 }}", "more than 4,194,304 characters"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
    ],
)
def test_a_template_that_cannot_be_used_or_does_harm(template, why):
    with pytest.raises(FormatError, match=why) as error:
        ChatTemplate(template).text(turns("a"))
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_a_template_without_end_is_stopped(monkeypatch):
    monkeypatch.setattr(chat, "SECONDS", 3.0)
    began = time.monotonic()
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    only_second = "{% if messages | length > 1 %}" + endless + "{% endif %}"
    with pytest.raises(FormatError, match="line 2: the chat template comes to no end"):
        ChatTemplate(only_second)._render([turns("a"), turns("a", "b")], ["line 1", "line 2"])
    assert time.monotonic() - began < 60


def test_the_same_limits_hold_in_this_process():
    template = rendering.compiled(SHORT)
    found = rendering.turns(template, turns("a", "b"), {})
    assert found == {"text": "<user>a<|im_end|>\n<assistant>b<|im_end|>\n", "spans": [[29, 40]], "unstable": 0,
                     "refusal": None}  # fmt: skip
    answers = [*rendering.answers({"template": "{{", "chats": [[]], "turns": False, "prompt": False, "names": {}})]
    assert [[*answer] for answer in answers] == [["failure"]]
    with pytest.raises(ValueError, match="more than"):
        rendering.rendered(rendering.compiled("{% for i in range(99999) %}" + "a" * 99 + "{% endfor %}"), [], {})


def test_special_tokens_have_names():
    template = ChatTemplate("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}", {"bos_token": "<s>"})
    assert template.text(turns("a")) == "<s>a"
    assert rendering.rendered(rendering.compiled(template.source), turns("a"), template.special_tokens) == "<s>a"


def write(folder, **config):
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_a_folder_has_the_template_in_one_of_three_ways(tmp_path):
    tokens = {"bos_token": {"content": "<s>"}, "eos_token": END, "pad_token": None}
    one = ChatTemplate.read(write(tmp_path, chat_template=SHORT, **tokens))
    assert (one.source, one.special_tokens) == (SHORT, {"bos_token": "<s>", "eos_token": END})
    several = [{"name": "tool_use", "template": "{{ 1 }}"}, {"name": "default", "template": SHORT}]
    assert ChatTemplate.read(write(tmp_path, chat_template=several)).source == SHORT
    (tmp_path / "chat_template.jinja").write_text(SMOLLM2)
    assert ChatTemplate.read(tmp_path).source == SMOLLM2


END = "<|im_end|>"


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"chat_template": 3}, "expected a text in Jinja"),
        ({"chat_template": " "}, "expected a text in Jinja"),
        ({"chat_template": [{"name": "rag", "template": "a"}]}, "expected one called default"),
        ({"chat_template": "a" * (1 << 21)}, "characters; expected at most"),
    ],
)
def test_a_folder_without_a_template_that_can_be_used(tmp_path, config, why):
    with pytest.raises(InputError, match=why):
        ChatTemplate.read(write(tmp_path, **config))


def test_a_base_model_has_none(tmp_path):
    assert ChatTemplate.read(tmp_path) is None and ChatTemplate.read(write(tmp_path)) is None


def test_the_metadata_of_a_gguf_file():
    metadata = {
        "tokenizer.chat_template": "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}",
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>"],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 99,
    }
    template = ChatTemplate.of_metadata(metadata)
    assert template.special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}
    assert template.text(turns("a")) == "<s>a</s>"
    assert ChatTemplate.of_metadata({}, "tiny.gguf") is None


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        ([], r"expected a list of messages"),
        ({"role": "user"}, r"expected a list of messages"),
        ("Hi", r"expected a list of messages"),
        (["Hi"], r"message 1: expected an object"),
        ([{"role": "user"}], r"message 1: expected an object"),
        ([{"from": "human", "value": "Hi"}], r"call `from` role and `value` content"),
        ([{"role": "human", "content": "Hi"}], r"'human' is none of .*: call it user"),
        ([{"role": ["user"], "content": "Hi"}], r"is none of system"),
        ([{"role": "user", "content": 3}], r"message 1: expected a text; got 3"),
        ([{"role": "user", "content": None}], r"message 1: expected a text"),
        ([{"role": "user", "content": [{"type": "text", "text": "Hi"}]}], r"message 1: expected a text"),
        ([*turns("a"), {"role": "assistant", "content": " \n"}], r"message 2: expected a text"),
        ([*turns("a"), {"role": "assistant", "content": ""}], r"message 2: expected a text"),
        (turns("", "b"), r"message 1: expected a text"),
        (turns("a", "b", system=" "), r"message 1: expected a text"),
    ],
)
def test_what_is_no_chat(messages, why):
    with pytest.raises(FormatError, match=f"line 4.*{why}"):
        check_chat(messages, "line 4")


def test_a_blank_system_prompt_switches_off_the_templates_own():
    check_chat(turns("Hi", system=""), "here")
    assert "SmolLM" not in ChatTemplate(SMOLLM2).text(turns("Hi", system=""))
