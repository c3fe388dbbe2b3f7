"""Checks of the exercises of chapter 09."""

import pytest

from lorabook.book.checks import NotYet, ch09

WRONG = [
    (ch09.capped, lambda dcapped, capped, cap: dcapped * (1 - capped**2)),
    (ch09.capped, lambda dcapped, capped, cap: cap * dcapped * (1 - (capped / cap) ** 2)),
    (ch09.capped, 1.0),
    (ch09.tied_A, lambda dx, ids, dlogits, y, B, s: s * (dlogits @ B).T @ y),
    (ch09.tied_A, lambda dx, ids, dlogits, y, B, s: s * B[ids].T @ dx),
    (ch09.tied_A, lambda dx, ids, dlogits, y, B, s: B[ids].T @ dx + (dlogits @ B).T @ y),
    (ch09.tied_A, lambda dx, ids, dlogits, y, B, s: B),
    (ch09.cache_bytes, lambda layers, kv_heads, d_head: 4 * layers * kv_heads * d_head),
    (ch09.cache_bytes, lambda layers, kv_heads, d_head: 16 * layers * kv_heads * d_head),
    (ch09.all_merged, 289),
    (ch09.all_merged, 500),
    (ch09.all_merged, 418.5),
]


@pytest.mark.parametrize(("check", "answer"), WRONG, ids=lambda value: getattr(value, "__name__", "answer"))
def test_wrong_answers_are_told(check, answer):
    with pytest.raises(NotYet) as caught:
        check(answer)
    assert "cannot be used" not in str(caught.value)


def test_right_answers_are_right(capsys):
    ch09.capped(lambda dcapped, capped, cap: dcapped * (1 - (capped / cap) ** 2))
    ch09.tied_A(lambda dx, ids, dlogits, y, B, s: s * (B[ids].T @ dx + (dlogits @ B).T @ y))
    ch09.cache_bytes(lambda layers, kv_heads, d_head: 8 * layers * kv_heads * d_head)
    ch09.all_merged(419)
    assert capsys.readouterr().out == "right\n" * 4
