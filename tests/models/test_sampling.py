"""Choosing the next token: each option by its definition, and what they leave together."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lorabook.errors import InputError, NonFiniteError
from lorabook.models import Sampling

P = np.array([0.05, 0.4, 0.25, 0.2, 0.1])
LOGITS = np.log(P) + 3


def left(**options):
    """{token: probability} that the options leave of P, before they are made to add up to 1."""
    order, share = Sampling(**{"temperature": 1.0} | options).left(LOGITS)
    return dict(zip(order.tolist(), share.round(9).tolist(), strict=True))


def test_without_options_all_are_left_in_order():
    assert list(left().items()) == [(1, 0.4), (2, 0.25), (3, 0.2), (4, 0.1), (0, 0.05)]


def test_top_k_leaves_so_many():
    assert left(top_k=2) == {1: round(0.4 / 0.65, 9), 2: round(0.25 / 0.65, 9)}
    assert left(top_k=99) == left()


def test_top_p_leaves_the_fewest_that_reach_it():
    assert [*left(top_p=0.39)] == [*left(top_p=0.01)] == [1]
    assert [*left(top_p=0.41)] == [*left(top_p=0.64)] == [1, 2]
    assert [*left(top_p=0.66)] == [1, 2, 3]
    assert [*left(top_p=1.0)] == [*left()]


def test_min_p_is_a_share_of_the_most_probable():
    assert [*left(min_p=0.49)] == [1, 2, 3]
    assert [*left(min_p=0.51)] == [1, 2]
    assert [*left(min_p=1.0)] == [1]


def test_top_p_and_min_p_see_what_top_k_leaves():
    assert [*left(top_k=2, top_p=0.6)] == [1]  # 0.4 / 0.65 is more than 0.6
    assert [*left(top_k=3, top_p=0.7, min_p=0.6)] == [1, 2]


def test_temperature_divides_the_logits():
    share = P**2 / (P**2).sum()
    assert left(temperature=0.5) == {i: round(float(share[i]), 9) for i in (1, 2, 3, 4, 0)}
    assert [*left(temperature=1e-300).values()] == [1, 0, 0, 0, 0]


def test_of_equals_the_first_is_taken():
    rng = np.random.default_rng(0)
    assert Sampling().choose(np.array([1.0, 2.0, 2.0]), [], rng) == 1
    assert Sampling(temperature=1.0, top_k=1).choose(np.array([1.0, 2.0, 2.0]), [], rng) == 1


def test_a_token_that_is_there_already_is_less_probable_whatever_the_sign_of_its_logit():
    logits = np.array([2.0, -1.0, 3.0, -4.0])
    assert Sampling(repetition_penalty=2.0).penalised(logits, [2, 1, 2]).tolist() == [2.0, -2.0, 1.5, -4.0]
    assert logits.tolist() == [2.0, -1.0, 3.0, -4.0]
    assert Sampling(repetition_penalty=2.0).choose(logits, [2], None) == 0


@pytest.mark.parametrize("options", [{"top_k": 3}, {"top_p": 0.8}, {"min_p": 0.4}], ids=str)
def test_draws_follow_the_distribution_that_is_left(options):
    rng, sampling, n = np.random.default_rng(0), Sampling(temperature=1.0, **options), 20_000
    shares = np.bincount([sampling.choose(LOGITS, [], rng) for _ in range(n)], minlength=5) / n
    expected = np.array([0, 0.4, 0.25, 0.2, 0]) / 0.85
    assert shares[[0, 4]].tolist() == [0, 0]
    assert abs(shares - expected).max() < 4 * np.sqrt(0.25 / n)


def test_one_draw_a_token_whatever_the_options():
    for options in ({}, {"top_k": 2}, {"top_p": 0.3}, {"min_p": 0.9}):
        rng, other = np.random.default_rng(7), np.random.default_rng(7)
        Sampling(temperature=1.0, **options).choose(LOGITS, [], rng)
        other.random()
        assert rng.random() == other.random()


@given(
    arrays("f4", st.integers(1, 30), elements=st.floats(-(2.0**100), 2.0**100, width=32)),
    st.floats(1e-6, 100),
    st.integers(0, 40),
    st.floats(1e-6, 1),
    st.floats(0, 1),
)
def test_some_token_is_always_left(logits, temperature, k, p, share):
    sampling = Sampling(temperature=temperature, top_k=k, top_p=p, min_p=share)
    order, shares = sampling.left(logits.astype("f8"))
    assert 1 <= len(order) == len(shares) <= (k or len(logits))
    assert order[0] == logits.argmax()
    assert sampling.choose(logits, [], np.random.default_rng(0)) in order


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_damaged_logits(bad):
    with pytest.raises(NonFiniteError, match="token 1 the logit"):
        Sampling().choose(np.array([1.0, bad]), [], None)


@pytest.mark.parametrize(
    ("name", "value", "bound"),
    [
        ("temperature", -0.1, "at least 0"),
        ("temperature", float("nan"), "at least 0"),
        ("temperature", True, "at least 0"),
        ("top_p", 0, "above 0 and at most 1"),
        ("top_p", 1.1, "above 0 and at most 1"),
        ("min_p", 2, "at least 0 and at most 1"),
        ("repetition_penalty", 0, "above 0"),
        ("top_k", -1, "0"),
        ("top_k", 1.5, "integer"),
    ],
)
def test_options_that_mean_nothing(name, value, bound):
    with pytest.raises(InputError, match=f"{name} must be.*{bound}"):
        Sampling(**{name: value})
