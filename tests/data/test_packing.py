"""Texts packed into rows: all of them, each once, nothing across them; and the loss of each as if it stood alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_language import END, Bigrams, byte_tokenizer
from tiny_llamas import SIZES

from lorabook import Batches, InputError
from lorabook.data import IGNORED, Completion, Packed, Plain, Sequences, pack
from lorabook.models import LlamaForCausalLM

TOKENIZER = byte_tokenizer()


@given(st.lists(st.integers(1, 20), min_size=1, max_size=60), st.integers(20, 50))
def test_every_text_is_in_one_row_and_rows_are_full(lengths, T):
    rows = pack(lengths, T)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    sums = sorted(sum(lengths[i] for i in row) for row in rows)
    assert sums[-1] <= T
    assert len(sums) < 2 or sums[0] + sums[1] > T  # no two rows would fit into one
    assert pack(lengths, T) == rows


def test_the_fullest_row_that_has_room_is_taken():
    assert pack([5, 4, 3, 2, 1], T=8) == [[0, 2], [1, 3, 4]]
    assert pack([], T=8) == []
    with pytest.raises(InputError, match="1 to 8 tokens each; got 2 to 9"):
        pack([2, 9], T=8)


@pytest.fixture
def texts():
    rows = [Plain("a" * 9), Completion("abc", "de"), Plain("xyz"), Plain("fghijk"), Completion("p", "q"), Plain("mn")]
    return Sequences(rows, TOKENIZER, 16, TOKENIZER.token_to_id(END))


def test_a_packed_batch(texts):
    packed = Packed(texts)
    batch = packed.rows(np.arange(packed.n))
    assert packed.tokens == texts.tokens == int((batch["labels"] >= 0).sum())
    for line, own in enumerate(packed.packed):
        at = 0
        for segment, i in enumerate(own, start=1):
            place = line, slice(at, at + texts.lengths[i])
            assert (batch["input_ids"][place] == texts.ids[i]).all()
            assert (batch["labels"][place] == texts.labels[i]).all()
            assert batch["position_ids"][place].tolist() == list(range(texts.lengths[i]))
            assert {*batch["segment_ids"][place].tolist()} == {segment}
            assert batch["labels"][line, at] == IGNORED
            at += texts.lengths[i]
        rest = line, slice(at, None)
        assert not any(batch[name][rest].any() for name in batch if name != "labels")
        assert (batch["labels"][rest] == IGNORED).all()
    total = packed.n * packed.T
    assert packed.padding == pytest.approx(1 - texts.lengths.sum() / total)
    assert f"packed 6 texts, 16 tokens a row, rows: {packed.n}" in packed.notes[-1]
    assert packed.first(1).n == 1 and packed.first(1).fingerprint() != packed.fingerprint()


def test_the_order_of_batches_depends_on_the_seed_alone(texts):
    def order(seed):
        batches = Batches(Packed(texts), 1, seed)
        return [batches.at(step)["input_ids"].tobytes() for step in range(9)]

    assert order(0) == order(0) != order(1)


def test_the_rows_that_texts_are_in_are_part_of_the_fingerprint():
    two = Sequences([Plain("a" * 6), Plain("b" * 5)], TOKENIZER, 16)
    together, apart = Packed(two), Packed(two, 7)
    assert (together.packed, apart.packed) == ([[0, 1]], [[0], [1]])
    assert together.fingerprint() != apart.fingerprint() != two.fingerprint()


def test_a_row_shorter_than_a_text_is_refused():
    with pytest.raises(InputError, match="1 to 5 tokens each; got 5 to 6"):
        Packed(Sequences([Plain("a" * 6), Plain("b" * 5)], TOKENIZER, 16), 5)


def llama(vocabulary):
    """A tiny decoder in float64, whose attention has to heed the segments, and its angles the positions."""
    config = SIZES | {"model_type": "llama", "vocab_size": vocabulary, "tie_word_embeddings": False}
    return LlamaForCausalLM(config, rng=0).to(np, "float64")


@pytest.mark.parametrize("made", [Bigrams, llama])
def test_the_loss_of_packed_rows_is_that_of_single_ones(texts, made):
    """Loss and gradients."""
    model, packed = made(TOKENIZER.get_vocab_size()), Packed(texts)
    single = [batch for _, batch in Batches(texts, 1).in_order()]
    counts = np.array([model.count(batch) for batch in single])
    batch = packed.rows(np.arange(packed.n))
    assert model.count(batch) == counts.sum() == texts.tokens
    loss, grads = model.loss_and_grad(batch)
    alone = [model.loss_and_grad(own) for own in single]
    assert loss == pytest.approx(counts @ [own for own, _ in alone] / counts.sum(), rel=1e-11)
    for name, grad in grads.items():
        want = sum(n * own[name] for n, (_, own) in zip(counts, alone, strict=True)) / counts.sum()
        np.testing.assert_allclose(grad, want, rtol=1e-9, atol=1e-12)
