"""Prompts of models from files, as they were trained to see them; several at once, and adapters merged or not."""

from dataclasses import replace

import pytest
from tiny_decoders import TOKENIZER, decoder_folder, gguf_file
from tiny_language import END, START

import lorabook as lb
from lorabook import InputError
from lorabook.tasks import generate
from lorabook.tasks.generation import tokens_of

END_ID = TOKENIZER.token_to_id(END)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return lb.load_model(decoder_folder(tmp_path_factory.mktemp("generation") / "model"))


def ids(text):
    return TOKENIZER.encode(text).ids


PROMPTS = ["a", "The bees are", "Roses and violets"]


def test_several_prompts_are_answered_as_one_by_one(model):
    together = generate(model, PROMPTS, 12)
    assert together == [generate(model, [prompt], 12)[0] for prompt in PROMPTS] and len({*together}) == 3
    hot = lb.Sampling(temperature=1.5)
    drawn = generate(model, PROMPTS, 12, hot, seed=4)
    assert drawn == generate(model, PROMPTS, 12, hot, seed=4) != generate(model, PROMPTS, 12, hot, seed=5)
    assert drawn[0] == generate(model, PROMPTS[:1], 12, hot, seed=4)[0]


def test_merged_or_not_the_text_is_the_same(tmp_path):
    model = lb.load_model(gguf_file(tmp_path / "tiny.gguf"), base_dtype="q4")
    before = generate(model, PROMPTS, 12)
    config = lb.LoRAConfig(r=4, lora_alpha=32, target_modules="all-linear", init_lora_weights=False)
    lb.inject(model, config, rng=1)
    beside = generate(model, PROMPTS, 12)
    lb.merge(model)
    assert generate(model, PROMPTS, 12) == beside != before
    lb.unload(model)
    assert generate(model, PROMPTS, 12) == beside


# ---- what a prompt becomes -------------------------------------------------------------------------------------------


def test_a_text_becomes_what_the_model_was_trained_to_see(model):
    chat = ids("<user>Hello<|im_end|>\n<assistant>")
    about = model.about
    assert tokens_of(about, "Hello") == chat
    assert tokens_of(about, "Hello", chat=False) == ids("Hello")
    for learned, expected in ((True, chat), (False, ids("Hello"))):
        own = replace(about, chats=learned)
        assert tokens_of(own, "Hello") == expected
        assert tokens_of(own, "Hello", chat=not learned) != expected
    several = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]
    several += [{"role": "user", "content": "Hello"}]
    assert tokens_of(replace(about, chats=False), several)[: len(ids("<user>Hi"))] == ids("<user>Hi")


def test_a_model_without_a_template(model):
    own = replace(model.about, template=None)
    assert tokens_of(own, "Hello") == ids("Hello")
    for options in ({"chat": True}, {"prompt": [{"role": "user", "content": "Hello"}]}):
        with pytest.raises(InputError, match="has no chat template"):
            tokens_of(own, **({"prompt": "Hello"} | options))


def test_special_tokens_of_a_chat_are_tokens(model):
    assert END_ID in tokens_of(model.about, "Hello") and END_ID not in tokens_of(model.about, "Hello", chat=False)
    assert TOKENIZER.token_to_id(START) is not None


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ("a text", {}, "must be a list of texts or chats"),
        ([3], {}, "prompt number 1 must be a text"),
        (["a", "  "], {}, "prompt number 2"),
        ([[{"role": "king", "content": "a"}]], {}, "the role 'king'"),
        (["a" * 100], {"max_new_tokens": 20}, "new ones were asked for.*128 at most"),
        (["a"], {"stop": "."}, "stop must be a list of texts"),
        (["a"], {"stop": [""]}, "stop must be a list of texts"),
        ([], {}, "got none"),
    ],
)
def test_what_cannot_be_answered(model, prompts, options, message):
    with pytest.raises(InputError, match=message):
        generate(model, prompts, **options)


def test_a_prompt_is_never_cut(model):
    assert len(tokens_of(replace(model.about, max_length=4), "A text of more tokens", chat=False)) == 21
