"""The cache of keys and values: rows of different lengths, chosen rows, lengths set back; and what it refuses."""

import numpy as np
import pytest
from checks import assert_close, put_all, same_bits
from tiny_llamas import batch_of, made

from lorabook import InputError
from lorabook.layers import INFERENCE, RUN
from lorabook.models import KVCache, last_tokens

LENGTHS = (9, 5, 7)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "llama3"])
def test_a_cache_of_rows_of_different_lengths(rng, kind):
    """A prompt, then token by token: what the whole texts give, row by row."""
    model, batch, more = made(kind, rng), batch_of(rng, LENGTHS), rng.integers(0, 37, (3, 4))
    cache = KVCache(3, 13)
    asked = last_tokens(batch)
    got = [model.predict(batch, INFERENCE.but(kv=cache, asked=asked))]
    got += [model.predict({"input_ids": more[:, i : i + 1]}, INFERENCE.but(kv=cache)) for i in range(4)]
    assert cache.lengths.tolist() == [n + 4 for n in LENGTHS]
    for row, n in enumerate(LENGTHS):
        ids = np.concatenate([batch["input_ids"][row, :n], more[row]])[None, :]
        want = model.predict({"input_ids": ids})[0, n - 1 :]
        assert_close(np.concatenate(got, axis=1)[row], want, 1e-12)


def test_a_cache_on_every_backend(put, rng):
    model, batch, more = made("llama", rng), batch_of(rng, LENGTHS), rng.integers(0, 37, (3, 2))
    whole = [np.concatenate([batch["input_ids"][row, :n], more[row]])[None, :] for row, n in enumerate(LENGTHS)]
    want = [model.predict({"input_ids": ids})[0, -1] for ids in whole]
    for _, layer in model.named_layers():
        layer.change_arrays(lambda array, *_: put(array, array.dtype))
    cache, batch = KVCache(3, 11), put_all(put, batch)
    model.predict(batch, INFERENCE.but(kv=cache, asked=last_tokens(batch)))
    chosen = cache.take([2, 0])
    got = model.predict({"input_ids": put(more)}, INFERENCE.but(kv=cache))
    for row in range(3):
        assert_close(got[row, -1, :], want[row], 1e-12)
    got = model.predict({"input_ids": put(more[[2, 0]])}, INFERENCE.but(kv=chosen))
    for row, i in enumerate((2, 0)):
        assert_close(got[row, -1, :], want[i], 1e-12)


@pytest.mark.parametrize("rows", [[2], [2, 0], [1, 1, 2, 0], np.array([0, 2])], ids=str)
def test_taken_rows_go_on_as_they_would_have(rng, rows):
    """In any order, and more than once; the first cache stays as it was."""
    model, batch, more = made("llama3", rng), batch_of(rng, LENGTHS), rng.integers(0, 37, (len(rows), 2))
    cache = KVCache(3, 11)
    model.predict(batch, INFERENCE.but(kv=cache))
    before = {layer: [x.copy() for x in pair] for layer, pair in cache._held.items()}
    taken = cache.take(rows)
    assert (taken.rows, taken.capacity, taken.lengths.tolist()) == (len(rows), 11, [LENGTHS[i] for i in rows])
    got = model.predict({"input_ids": more}, INFERENCE.but(kv=taken))
    for line, i in enumerate(rows):
        ids = np.concatenate([batch["input_ids"][i, : LENGTHS[i]], more[line]])[None, :]
        assert_close(got[line], model.predict({"input_ids": ids})[0, -2:], 1e-12)
    assert cache.lengths.tolist() == [*LENGTHS]
    assert all(same_bits(a, b) for layer, pair in cache._held.items() for a, b in zip(pair, before[layer], strict=True))


def test_rows_of_a_cache_that_nothing_was_read_into():
    cache = KVCache(3, 11).take([0, 0])
    assert cache.rows == 2 and cache.lengths.tolist() == [0, 0]
    cache = KVCache(3, 11)
    taken = cache.take([0, 1, 2])
    taken.lengths += 1
    assert cache.lengths.tolist() == [0, 0, 0]


def test_lengths_set_back_forget_what_stands_behind(rng):
    model, batch, more = made("llama", rng), batch_of(rng, LENGTHS), rng.integers(0, 37, (3, 2))
    cache = KVCache(3, 11)
    model.predict(batch, INFERENCE.but(kv=cache))
    cache.lengths = cache.lengths - 3
    got = model.predict({"input_ids": more}, INFERENCE.but(kv=cache))
    for row, n in enumerate(LENGTHS):
        ids = np.concatenate([batch["input_ids"][row, : n - 3], more[row]])[None, :]
        assert_close(got[row], model.predict({"input_ids": ids})[0, -2:], 1e-12)


def test_it_is_full_to_the_last_place(rng):
    model, cache, ids = made("llama", rng), KVCache(1, 5), np.zeros((1, 1), int)
    for _ in range(5):
        model.predict({"input_ids": ids}, INFERENCE.but(kv=cache))
    with pytest.raises(InputError, match="the cache has room for 5 tokens a row; got 6"):
        model.predict({"input_ids": ids}, INFERENCE.but(kv=cache))
    assert cache.lengths.tolist() == [5]


@pytest.mark.parametrize(
    ("rows", "came"),
    [
        ([], r"\[\]"),
        ([3], r"\[3\]"),
        ([-1], r"\[-1\]"),
        ([0, 1.5], r"\[0, 1.5\]"),
        ([True], r"\[True\]"),
        (2, "2"),
        ("0", "'0'"),
    ],
    ids=str,
)
def test_rows_that_there_are_none_of(rows, came):
    with pytest.raises(InputError, match=f"expected a list of rows of the cache, each from 0 to 2; got {came}"):
        KVCache(3, 11).take(rows)


@pytest.mark.parametrize("sizes", [(0, 5), (2, 0), (2, 1.5), (True, 4)], ids=str)
def test_sizes_that_are_none(sizes):
    with pytest.raises(InputError, match="(rows|capacity) must be an integer of at least 1; got"):
        KVCache(*sizes)


@pytest.mark.parametrize(
    ("change", "run", "message"),
    [
        ({"input_ids": np.zeros((2, 4), int)}, INFERENCE, r"the cache is for 3 rows; got input_ids \(2, 4\)"),
        ({"attention_mask": np.array([[1, 1, 0, 1]] * 3)}, INFERENCE, "padding stands behind a row's tokens"),
        ({"attention_mask": np.array([[1] * 4, [0, 1, 1, 1], [1] * 4])}, INFERENCE, "on the right.*has 0 before 1"),
        ({"input_ids": np.zeros((3, 12), int)}, INFERENCE, "room for 11 tokens a row; got 12"),
        ({"segment_ids": np.zeros((3, 4), int)}, INFERENCE, "takes no segment_ids, and no backward"),
        ({}, RUN, "give it a Run with keep=False"),
    ],
    ids=str,
)
def test_passes_that_are_refused(rng, change, run, message):
    cache = KVCache(3, 11)
    with pytest.raises(InputError, match=message):
        made("llama", rng).predict({"input_ids": np.zeros((3, 4), int)} | change, run.but(kv=cache))
    assert cache.lengths.tolist() == [0, 0, 0] and not cache._held
