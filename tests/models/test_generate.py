"""Continuing prompts: a cache and batches change nothing but the time."""

import numpy as np
import pytest
from tiny_llamas import SIZES, made

from lorabook.adapters import LoRAConfig, inject, merge
from lorabook.errors import InputError
from lorabook.models import Sampling, continuations

PROMPTS = [[3, 1, 4], [1, 5, 9, 2, 6, 5, 3], [5]]


def texts(model, prompts, n, *args, **options):
    """What is added to each prompt."""
    found = [[] for _ in prompts]
    for step in continuations(model, prompts, n, *args, **options):
        for row, token in step.items():
            found[row].append(token)
    return found


def read_whole(model, prompt, n):
    """The same of one prompt, most probable first, without a cache: all is read again for each token."""
    text = list(prompt)
    for _ in range(n):
        text.append(int(model.answer({"input_ids": np.array([text])})[0, -1].argmax()))
    return text[len(prompt) :]


@pytest.fixture(params=["llama", "tied", "llama3", "qwen2"])
def model(request, rng):
    return made(request.param, rng)


def test_the_cache_and_the_other_rows_change_nothing(model):
    expected = [read_whole(model, prompt, 12) for prompt in PROMPTS]
    assert len({tuple(text) for text in expected}) == 3
    assert texts(model, PROMPTS, 12) == expected
    assert [texts(model, [prompt], 12)[0] for prompt in PROMPTS] == expected


def test_with_an_adapter_merged_or_not(rng):
    model = made("llama", rng)
    before = texts(model, PROMPTS, 12)
    inject(model, LoRAConfig(r=3, lora_alpha=30, target_modules=["q_proj", "down_proj"], init_lora_weights=False))
    beside = texts(model, PROMPTS, 12)
    merge(model)
    assert texts(model, PROMPTS, 12) == beside != before


def test_a_stop_token_ends_its_row_alone(model):
    whole = texts(model, PROMPTS, 12)
    stop = whole[1][2]
    expected = [text[: text.index(stop) + 1] if stop in text else text for text in whole]
    assert len(expected[1]) <= 3
    assert texts(model, PROMPTS, 12, stop={stop}) == expected


def test_whoever_reads_may_end_rows(rng):
    model = made("llama", rng)
    whole, found = texts(model, PROMPTS, 12), []
    steps = continuations(model, PROMPTS, 12)
    step = next(steps)
    with pytest.raises(StopIteration):
        while True:
            found.append(step)
            step = steps.send({1} if len(found) == 2 else {0, 2} if len(found) == 5 else None)
    assert [[step[row] for step in found if row in step] for row in range(3)] == [
        text[:n] for text, n in zip(whole, (5, 2, 5), strict=True)
    ]


@pytest.mark.parametrize("order", [(0, 1), (1, 0), (2, 0), (2, 1)])
def test_rows_keep_their_numbers_when_others_end_before_them(rng, order):
    model, (first, second) = made("llama", rng), order
    whole, found = texts(model, PROMPTS, 8), [[], [], []]
    steps = continuations(model, PROMPTS, 8)
    step = next(steps)
    with pytest.raises(StopIteration):
        for n in range(9):
            for row, token in step.items():
                found[row].append(token)
            step = steps.send({1: {first}, 3: {second}}.get(n))
    sizes = {first: 2, second: 4}
    assert found == [text[: sizes.get(row, 8)] for row, text in enumerate(whole)]


def test_draws_of_a_row_depend_on_its_generator_alone(rng):
    model, hot = made("llama", rng), Sampling(temperature=3.0, top_p=0.95)
    together = texts(model, PROMPTS, 12, hot, rngs=5)
    assert together == texts(model, PROMPTS, 12, hot, rngs=5) != texts(model, PROMPTS, 12, hot, rngs=6)
    alone = [texts(model, [prompt], 12, hot, rngs=[(5, i)])[0] for i, prompt in enumerate(PROMPTS)]
    assert alone == together
    assert len({tuple(text) for text in texts(model, [PROMPTS[0]] * 3, 12, hot)}) == 3


def test_float32(rng):
    model = made("llama", rng, "float32")
    assert texts(model, PROMPTS, 12) == [read_whole(model, prompt, 12) for prompt in PROMPTS]


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "got none"),
        ([[1], []], "prompt number 2 has no tokens"),
        ([[1] * 60], "60 tokens, and 5 new ones.*64 at most"),
        ([[1], [1, SIZES["vocab_size"]]], "tokens must be from 0 to 36; prompt number 2 has"),
        ([[-1]], "tokens must be from 0 to 36; prompt number 1 has"),
    ],
)
def test_prompts_that_cannot_be_continued(rng, prompts, message):
    with pytest.raises(InputError, match=message):
        next(continuations(made("llama", rng), prompts, 5))
