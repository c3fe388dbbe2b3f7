"""Tokens that continue prompts, one after another, by a cache of keys and values that lives as long as the loop."""

import numpy as np

from ..backend import data_like, to_numpy
from ..errors import InputError, check_integer
from ..files import short
from ..layers import INFERENCE
from .kv_cache import KVCache
from .llama import last_tokens
from .sampling import Sampling


def continuations(model, prompts, max_new_tokens, sampling=None, stop=(), rngs=0, run=INFERENCE):
    """Yield {row: its next token} after every pass, until each row has ended; a row's last may be one of `stop`.

    model: a `CausalLM`. prompts: lists of token numbers, of any lengths: a row's answer depends on no other, but for
    rounding. stop: tokens that end a row. rngs: of each row a numpy Generator or seed, or one seed for all, from which
    each row has a stream of its own. What is sent into the generator is a set of rows to end (a stop string was found).

    A pass over all prompts fills the cache, then each pass reads one token of each row: N tokens after a prompt of P
    cost P + N rows of products instead of N P + N^2 / 2.
    """
    sampling = Sampling() if sampling is None else sampling
    max_new_tokens = check_integer("max_new_tokens", max_new_tokens)
    texts = _checked(model, prompts, max_new_tokens)
    if isinstance(rngs, int):
        rngs = [(rngs, row) for row in range(len(texts))]
    rngs = [np.random.default_rng(rng) for rng in rngs]
    rows, fresh = list(range(len(texts))), [list(text) for text in texts]
    cache = KVCache(len(texts), max(map(len, texts)) + max_new_tokens)
    like = next(iter(model.named_params().values()))
    for _ in range(max_new_tokens):
        batch = data_like(_right_padded(fresh), like)
        logits = to_numpy(model.answer(batch, run.but(kv=cache, asked=last_tokens(batch))))[:, 0, :]  # (B, V)
        found = {row: sampling.choose(own, texts[row], rngs[row]) for row, own in zip(rows, logits, strict=True)}
        for row, token in found.items():
            texts[row].append(token)
        ended = (yield found) or set()
        alive = [i for i, row in enumerate(rows) if found[row] not in stop and row not in ended]
        if not alive:
            return
        if len(alive) < len(rows):
            cache, rows = cache.take(alive), [rows[i] for i in alive]
        fresh = [[found[row]] for row in rows]


def _checked(model, prompts, max_new_tokens):
    """The prompts as lists of integers. Raises InputError unless each has a token, and room for its answer."""
    texts = [[int(token) for token in prompt] for prompt in prompts]
    if not texts:
        raise InputError("expected a list of prompts, each a list of tokens; got none")
    for i, text in enumerate(texts):
        if not text:
            raise InputError(f"prompt number {i + 1} has no tokens")
        if len(text) + max_new_tokens > (most := model.sizes.longest):
            raise InputError(
                f"prompt number {i + 1} has {len(text):,} tokens, and {max_new_tokens:,} new ones were asked for; "
                f"the model reads {most:,} at most: shorten the prompt, or lower max_new_tokens"
            )
        words = model.sizes.vocab_size
        if not 0 <= min(text) <= max(text) < words:
            raise InputError(f"tokens must be from 0 to {words - 1}; prompt number {i + 1} has {short(text)}")
    return texts


def _right_padded(texts):
    """{input_ids, attention_mask} (B, T): a cache wants padding behind the tokens."""
    T = max(map(len, texts))
    ids, mask = np.zeros((2, len(texts), T), int)
    for row, text in enumerate(texts):
        ids[row, : len(text)], mask[row, : len(text)] = text, 1
    return {"input_ids": ids, "attention_mask": mask}
