"""The chat template and the tokens that are learned, against transformers' apply_chat_template."""

import numpy as np
import pytest
from tiny_language import END, SMOLLM2, START, byte_tokenizer, turns

from lorabook.data import Chat, ChatTemplate, Sequences

MARKED = (  # as SmolLM2's, with the assistant's turns marked for transformers' own mask
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "<|im_start|>system\nBe brief.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}<|im_end|>{% endgeneration %}\n"
    "{% else %}{{ message['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONTROLS = (  # what templates use besides: loop controls, namespaces, tojson, trimmed blocks
    "{%- set ns = namespace(n=0) -%}\n{% for m in messages %}\n  {% if m.role == 'system' %}{% continue %}{% endif %}\n"
    "{% set ns.n = ns.n + 1 %}[{{ ns.n }}|{{ m | tojson }}|{{ m.content | trim }}]{{ eos_token }}\n{% endfor %}"
)
CHATS = (
    turns("Hi", "Yes."),
    turns("What is <b>é</b>?", " \u4e2d\u6587 \n", "And \U0001f600?", 'say "no"\n'),
    turns("Hi", "Yes", "Thanks", system="You are terse."),
    turns("Hi", "Yes", system=""),
)


@pytest.fixture
def theirs(transformers):
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer(), bos_token=START, eos_token=END)


@pytest.mark.parametrize("source", [SMOLLM2, MARKED, CONTROLS], ids=["smollm2", "marked", "controls"])
@pytest.mark.parametrize("prompt", [False, True])
def test_the_text_is_that_of_transformers(theirs, source, prompt):
    template = ChatTemplate(source, {"bos_token": START, "eos_token": END})
    for chat in CHATS:
        want = theirs.apply_chat_template(chat, chat_template=source, tokenize=False, add_generation_prompt=prompt)
        assert template.text(chat, add_generation_prompt=prompt) == want


def test_the_tokens_and_those_that_are_learned_are_those_of_transformers(theirs):
    ours = Sequences([Chat(chat) for chat in CHATS], byte_tokenizer(), 999, template=ChatTemplate(MARKED))
    for i, chat in enumerate(CHATS):
        want = theirs.apply_chat_template(
            chat, chat_template=MARKED, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        assert ours.ids[i].tolist() == want["input_ids"]
        np.testing.assert_array_equal(ours.labels[i] >= 0, np.array(want["assistant_masks"]) == 1)
