"""Texts as they come: whole characters, stop texts over the borders of tokens, how each answer ends."""

import sys
from types import SimpleNamespace

import pytest
from tiny_language import END, SHORT, byte_tokenizer, turns
from tiny_llamas import SIZES

from lorabook import InputError
from lorabook.data import ChatTemplate
from lorabook.models import LlamaForCausalLM, Sampling, continuations
from lorabook.tasks import generation

TOKENIZER = byte_tokenizer()
END_ID = TOKENIZER.token_to_id(END)


def about(template=None):
    return SimpleNamespace(name="toy", tokenizer=TOKENIZER, ends={END_ID}, template=template, chats=None)


def ids_of(text):
    return TOKENIZER.encode(text, add_special_tokens=False).ids


@pytest.fixture
def scripted(monkeypatch):
    """A function: a model whose answers are these texts, byte by byte, and what was asked of it."""

    def model_of(*texts):
        asked = {}

        def answer(model, prompts, max_new_tokens, sampling, stop, seed):
            asked.update(prompts=prompts, seed=seed, sampling=sampling)
            rows = {row: ids_of(text)[:max_new_tokens] for row, text in enumerate(texts)}
            while rows:
                ended = (yield {row: own[0] for row, own in rows.items()}) or set()
                rows = {
                    row: own[1:] for row, own in rows.items() if own[1:] and own[0] not in stop and row not in ended
                }

        monkeypatch.setattr(sys.modules["lorabook.tasks.generation"], "continuations", answer)
        return SimpleNamespace(about=about(), asked=asked)

    return model_of


def pieces(model, n, *options, **more):
    """[[text of a piece, ...], how it ended] of each of n rows."""
    found = [[[], None] for _ in range(n)]
    for piece in generation.stream(model, ["p"] * n, *options, **more):
        assert found[piece.row][1] is None, "a piece behind the last"
        found[piece.row][0].append(piece.text)
        found[piece.row][1] = piece.end
    return found


def test_an_answer_ends_by_its_token_or_its_length(scripted):
    assert pieces(scripted(f"ab{END}cd"), 1) == [[["a", "b", ""], "stop"]]
    assert pieces(scripted("abcd"), 1, 3) == [[["a", "b", "c"], "length"]]
    assert pieces(scripted("abcd"), 1, 1) == [[["a"], "length"]]
    assert pieces(scripted(f"abc{END}"), 1, 4) == [[["a", "b", "c", ""], "stop"]]
    assert pieces(scripted(f"a{END}bc", "defg", f"hi{END}"), 3, 4) == [
        [["a", ""], "stop"],
        [["d", "e", "f", "g"], "length"],
        [["h", "i", ""], "stop"],
    ]


def test_characters_come_whole(scripted):
    """Each of these takes two to four bytes, and each byte is a token."""
    ((told, end),) = pieces(scripted(f"aé€{END}"), 1)
    assert told == ["a", "", "é", "", "", "€", ""] and end == "stop"


@pytest.mark.parametrize(
    ("text", "stop", "told", "end"),
    [
        ("one\n\nQ: two", ["\n\nQ:"], "one", "stop"),
        ("one\n\nA: two", ["\n\nQ:"], "one\n\nA: two", "length"),
        ("aab", ["ab"], "a", "stop"),
        ("abab", ["abb"], "abab", "length"),
        ("xyz", ["yz", "y"], "x", "stop"),
        ("xyz", ["yz", "xyz"], "", "stop"),
        ("xyzw", ["zw", "yzwv"], "xy", "stop"),
        (f"one{END}", ["e!"], "one", "stop"),
        ("one\n", ["\n\n"], "one\n", "length"),
        ("on€", ["n€"], "o", "stop"),
        ("", ["a"], "", "stop"),
    ],
)
def test_a_stop_text_ends_an_answer_that_does_not_hold_it(scripted, text, stop, told, end):
    """However it is cut into tokens; and no part of it was told before it was known to be none."""
    text = text or END
    ((found, ended),) = pieces(scripted(text), 1, len(ids_of(text)), stop=stop)
    assert ("".join(found), ended) == (told, end)
    assert generation.generate(scripted(text), ["p"], len(ids_of(text)), stop=stop) == [told]


def test_what_may_begin_a_stop_text_is_held_back_and_no_more(scripted):
    assert pieces(scripted("ab#c##d###e"), 1, 11, stop=["###"]) == [
        [["a", "b", "", "#c", "", "", "##d", "", "", ""], "stop"]
    ]


def test_a_stop_text_ends_its_row_alone(scripted):
    assert pieces(scripted("a.bc", "abc."), 2, 4, stop=["."]) == [[["a", ""], "stop"], [["a", "b", "c", ""], "stop"]]


def test_a_model_and_its_own_words():
    """The bytes that `continuations` finds, each row with a stream of its own."""
    model = LlamaForCausalLM(SIZES | {"model_type": "llama", "vocab_size": TOKENIZER.get_vocab_size()}, rng=0)
    model.about = about()
    hot = Sampling(temperature=1.5)
    prompts = ["once", "upon a time"]
    got = generation.generate(model, prompts, 12, hot, seed=3)
    rows = [[], []]
    for step in continuations(model, [ids_of(p) for p in prompts], 12, hot, {END_ID}, 3):
        for row, token in step.items():
            rows[row].append(token)
    for text, own in zip(got, rows, strict=True):
        whole = TOKENIZER.decode(own)
        assert whole.startswith(text) and set(whole[len(text) :]) <= {"\ufffd"}
    assert got != generation.generate(model, prompts, 12, hot, seed=4)


# ---- prompts ---------------------------------------------------------------------------------------------------------


def test_a_text_is_what_the_user_says_where_the_model_knows_chats():
    knows = about(ChatTemplate(SHORT))
    want = ids_of(f"<user>Hi{END}\n<assistant>")
    assert generation.tokens_of(knows, "Hi") == generation.tokens_of(knows, turns("Hi")) == want
    assert generation.tokens_of(knows, "Hi", chat=False) == generation.tokens_of(about(), "Hi") == ids_of("Hi")


def test_special_tokens_are_written_by_the_template_or_by_the_tokenizer():
    from tokenizers import processors

    tokenizer = byte_tokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(f"{END} $A", None, [(END, END_ID)])
    knows = SimpleNamespace(name="toy", tokenizer=tokenizer, template=ChatTemplate(SHORT), chats=None)
    assert generation.tokens_of(knows, "Hi", chat=False) == [END_ID, *ids_of("Hi")]
    assert generation.tokens_of(knows, "Hi") == ids_of(f"<user>Hi{END}\n<assistant>")


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ("Hi", {}, r"prompts must be a list of texts or chats; got the text 'Hi': pass \[text\]"),
        (["Hi", 3], {}, "prompt number 2 must be a text, or a list of messages .*; got 3"),
        ([turns("Hi")], {}, "toy has no chat template: expected"),
        (["Hi"], {"stop": "\n"}, r"stop must be a list of texts; got '\\n'"),
        (["Hi"], {"stop": [""]}, r"stop must be a list of texts; got \[''\]"),
        (["Hi"], {"stop": [3]}, r"stop must be a list of texts; got \[3\]"),
    ],
)
def test_what_is_refused(scripted, prompts, options, message):
    with pytest.raises(InputError, match=message):
        generation.generate(scripted("a"), prompts, **options)


def test_no_prompts():
    model = LlamaForCausalLM(SIZES | {"model_type": "llama"}, rng=0)
    model.about = about()
    with pytest.raises(InputError, match="expected a list of prompts"):
        generation.generate(model, [])
