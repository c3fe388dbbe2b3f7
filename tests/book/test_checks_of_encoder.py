"""Checks of the exercises of chapter 08."""

import pytest

from lorabook.book.checks import NotYet, ch08

WRONG = [
    (ch08.count, lambda r, n: 6 * n * 2 * 384 * r),
    (ch08.count, 74_498),
    (ch08.random_phi, lambda i, j, d: min(i, j) / d),
    (ch08.random_phi, lambda i, j, d: i * j / d**2),
    (ch08.shared_A, lambda dq, dv, x, A, B_q, B_v, s: s * (dq @ B_q).T @ x),
    (ch08.shared_A, lambda dq, dv, x, A, B_q, B_v, s: (dq @ B_q + dv @ B_v).T @ x),
    (ch08.shared_A, lambda dq, dv, x, A, B_q, B_v, s: s * (dq.T @ x)),
    (ch08.louder, "8"),
]


@pytest.mark.parametrize(("check", "answer"), WRONG, ids=lambda value: getattr(value, "__name__", "answer"))
def test_wrong_answers_are_told(check, answer):
    with pytest.raises(NotYet) as caught:
        check(answer)
    assert "cannot be used" not in str(caught.value)


def test_a_shared_factor_gets_the_sum_of_both_gradients(capsys):
    ch08.shared_A(lambda dq, dv, x, A, B_q, B_v, s: s * (dq @ B_q + dv @ B_v).T @ x)
    ch08.count(lambda r, n: 6 * n * 2 * 384 * r + 770)
    ch08.random_phi(lambda i, j, d: max(i, j) / d)
    assert capsys.readouterr().out == "right\n" * 3
