"""Files of texts, completions and chats: their rows, and the line of every fault."""

import json

import numpy as np
import pytest
from tiny_language import END, SHORT, START, byte_tokenizer, turns, words

from lorabook import Batches, InputError
from lorabook.data import IGNORED, Chat, ChatTemplate, Completion, Plain, Sequences, language_file
from lorabook.errors import FormatError

TOKENIZER = byte_tokenizer()
END_ID = TOKENIZER.token_to_id(END)


def jsonl(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def sequences(*rows, max_length=99, **options):
    return Sequences(rows, TOKENIZER, max_length, END_ID, ChatTemplate(SHORT), **options)


def test_each_chat_is_learned_by_its_own_turns_between_other_rows():
    rows = [Plain("xy"), Chat(turns("a", "bcd")), Completion("p", "q"), Chat(turns("efgh", "i", "j", "kl"))]
    got = [words(TOKENIZER, own) for own in sequences(*rows).labels]
    assert got == [f"y{END}", f"bcd{END}", f"q{END}", f"i{END}kl{END}"]


def test_what_rows_are_told_apart_by_is_what_stands_before_the_answer():
    assert Plain("a").source == Completion("a", "b").source == Chat(turns("a", "b")).source == "a"
    assert Chat(turns("a", "b", "c", "d")).source == "\x1e".join("abc") == Chat(turns("a", "b", "c", "x", "y")).source
    assert Chat([{"role": "assistant", "content": "b"}]).source == "b"


def test_tokens_that_the_tokenizer_adds_are_not_learned():
    from tokenizers import processors

    tokenizer, start = byte_tokenizer(), TOKENIZER.token_to_id(START)
    tokenizer.post_processor = processors.TemplateProcessing(f"{START} {START} $A {START}", None, [(START, start)])
    found = Sequences([Plain("abc"), Completion("a", "bc")], tokenizer, 99, END_ID)
    assert [own.tolist().count(start) for own in found.ids] == [3, 3]
    assert [words(TOKENIZER, own) for own in found.labels] == [f"abc{END}", f"bc{END}"]


def learned(found):
    return [words(TOKENIZER, own) for own in found.labels]


def test_three_kinds_of_rows(tmp_path):
    (tmp_path / "a.csv").write_text('prompt,note,completion\n"2, 2",x," 4"\n\nb,,c\n')
    assert language_file(tmp_path / "a.csv") == [(2, Completion("2, 2", " 4")), (4, Completion("b", "c"))]
    (tmp_path / "a.tsv").write_text("text\nyes\nno\n")
    assert language_file(tmp_path / "a.tsv") == [(2, Plain("yes")), (3, Plain("no"))]
    messages = turns("Hi", "Hello", system="")
    path = jsonl(tmp_path / "a.jsonl", {"messages": messages, "tools": [1]}, {"id": 1, "messages": messages})
    assert language_file(path) == [(1, Chat(messages)), (2, Chat(messages))]


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([], "holds no rows"),
        ([{"label": 1}], "line 1: expected a column `text`; or `prompt`"),
        ([{"conversations": []}], "call `conversations` messages"),
        ([{"prompt": "a"}], "line 1: expected a column `completion` too"),
        ([{"prompt": "a", "completion": None}], "line 1: expected a column `completion` too"),
        (
            [{"text": "a", "prompt": "b", "completion": "c"}],
            "expected one kind of row; got `text` and `prompt`",
        ),
        ([{"text": "a"}, {"prompt": "b", "completion": "c"}], "line 2: expected a `text`, as in the rows above"),
        (
            [{"prompt": "a", "completion": "c"}, {"prompt": "b"}],
            "line 2: expected a `completion`, as in the rows",
        ),
        ([{"prompt": "a", "completion": ""}], "line 1, completion: expected a text; got ''"),
        ([{"prompt": " ", "completion": "c"}], "line 1, prompt: expected a text"),
        ([{"prompt": "a", "completion": 4}], "line 1, completion: expected a text; got 4"),
        ([{"prompt": turns("a"), "completion": "c"}], "line 1: expected text or a number as `prompt`"),
        ([{"text": ""}], "line 1: expected a text"),
        ([{"messages": "Hi"}], "line 1: expected a list of messages"),
        ([{"messages": turns("a", "b")}, {"messages": turns("a")}], "line 2: no message of the assistant"),
        ([{"messages": [{"role": "gpt", "content": "a"}]}], "line 1, message 1: the role 'gpt'.*call it assistant"),
        ([{"messages": [*turns("a"), {"role": "assistant", "content": ""}]}], "line 1, message 2: expected a text"),
    ],
)
def test_every_fault_has_its_line(tmp_path, rows, why):
    with pytest.raises(InputError, match=f"mine.jsonl.*{why}"):
        language_file(jsonl(tmp_path / "mine.jsonl", *rows))


def test_chats_do_not_fit_in_a_cell(tmp_path):
    (tmp_path / "a.csv").write_text('messages\n"[{}]"\n')
    with pytest.raises(FormatError, match="line 2: expected a list of messages, which only a .jsonl file can hold"):
        language_file(tmp_path / "a.csv")


def test_what_is_odd_is_said(tmp_path, capsys):
    language_file(jsonl(tmp_path / "a.jsonl", {"text": "a", "label": 1}))
    assert "label is passed over" in capsys.readouterr().err
    rows = [{"prompt": "2+2", "completion": "4"}, {"prompt": "2+2=", "completion": "4"}]
    language_file(jsonl(tmp_path / "b.jsonl", *rows))
    assert "in 1 of 2 rows prompt and completion meet without a blank" in capsys.readouterr().err


def test_only_what_is_to_be_learned_has_labels():
    found = sequences(Completion("2+2=", "4é"), Plain("abc"), Chat(turns("Hi", "Yes", "So", "No")))
    assert learned(found) == [f"4é{END}", f"bc{END}", f"Yes{END}No{END}"]
    for ids, labels in zip(found.ids, found.labels, strict=True):
        assert labels[0] == IGNORED and ((labels == ids) | (labels == IGNORED)).all()
    assert words(TOKENIZER, found.ids[2]) == f"<user>Hi{END}\n<assistant>Yes{END}\n<user>So{END}\n<assistant>No{END}\n"
    assert found.tokens == sum(len(own) for own in ([1] * 4, [1] * 3, [1] * 7))


def test_a_completion_as_a_chat():
    found = sequences(Completion("2+2", "4"), as_chat=True)
    assert words(TOKENIZER, found.ids[0]) == f"<user>2+2{END}\n<assistant>4{END}\n" and learned(found) == [f"4{END}"]


def test_a_batch_is_padded_on_the_right():
    found = sequences(Completion("ab", "cd"), Plain("xyz"), Plain("long text"))
    batch = found.rows(np.array([1, 0]))
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 0], [1] * 5]
    assert words(TOKENIZER, batch["input_ids"][0][:4]) == f"xyz{END}"
    assert batch["labels"][0, 4] == IGNORED and batch["labels"][1].tolist()[:2] == [IGNORED] * 2
    assert found.first(2).n == 2 and found.first(2).fingerprint() != found.fingerprint()
    rows = [row for own, _ in Batches(found, 2).in_order() for row in own]
    assert sorted(rows) == [0, 1, 2]


def test_what_is_cut_off_is_told():
    rows = Completion("abc", "defgh"), Completion("abcdefg", "h"), Plain("abc")
    found = Sequences(rows, TOKENIZER, 6, END_ID, where=["line 2", "line 3", "line 4"])
    assert learned(found) == ["def", f"bc{END}"] and found.kept.tolist() == [0, 2]
    assert (found.cut, found.lost, found.dropped) == (2, 3 + 3, ["line 3"])
    assert "2 rows have more than 6 tokens and were cut: 6 tokens lost, 38 % of all" in found.notes[0]
    assert "1 rows were dropped" in found.notes[1] and "line 3" in found.notes[1]
    with pytest.raises(InputError, match="line 3.*within 6 tokens; raise --max-length"):
        Sequences(rows[1:2], TOKENIZER, 6, END_ID, where=["line 3"])


def test_nothing_to_learn():
    with pytest.raises(InputError, match="row 1.*no token of any row is learned"):
        Sequences([Plain("a")], TOKENIZER, 6)


def test_a_tokenizer_that_cuts_or_adds_does_neither_twice():
    from tokenizers.processors import TemplateProcessing

    own = byte_tokenizer()
    own.enable_truncation(4)
    own.post_processor = TemplateProcessing(
        single="<|im_start|> $A <|im_end|>", special_tokens=[("<|im_start|>", END_ID - 1), ("<|im_end|>", END_ID)]
    )
    found = Sequences([Plain("abcdef"), Chat(turns("a", "b"))], own, 99, END_ID, ChatTemplate(SHORT))
    assert learned(found) == [f"abcdef{END}", f"b{END}"]
    assert words(own, found.ids[0]) == f"<|im_start|>abcdef{END}"
    assert words(own, found.ids[1]) == f"<user>a{END}\n<assistant>b{END}\n"
    assert own.truncation["max_length"] == 4


def test_a_chat_needs_a_template():
    with pytest.raises(InputError, match="row 2: a chat needs a chat template"):
        Sequences([Plain("abc"), Chat(turns("a", "b"))], TOKENIZER, 9, END_ID)


def test_turns_that_are_not_learned_are_counted():
    hides = "{% for m in messages %}<{{ m.role }}>"
    hides += "{{ m.content if loop.last or m.role == 'user' else '...' }}<|im_end|>{% endfor %}"
    hides += "{% if add_generation_prompt %}<assistant>{% endif %}"
    found = Sequences([Chat(turns("a", "b", "c", "d"))], TOKENIZER, 99, END_ID, ChatTemplate(hides))
    assert learned(found) == [f"d{END}"] and "writes 1 turns of the assistant otherwise" in found.notes[0]
