"""Checks of exercises: right answers pass, wrong ones get a hint that does not give the answer away."""

import numpy as np
import pytest

from lorabook import functional as F
from lorabook.book.checks import NotYet, ch01, ch02, exercise, need


@exercise
def _even(answer):
    need(answer % 2 == 0, "it is odd")


def test_an_exercise_says_right_or_not_answered_yet(capsys):
    _even(None)
    _even(4)
    assert capsys.readouterr().out == "not answered yet\nright\n"


@pytest.mark.parametrize(("answer", "hint"), [(3, "it is odd"), ([], "your answer cannot be used: TypeError: .*")])
def test_a_wrong_answer_gets_one_line_and_no_lines_of_the_check(answer, hint):
    with pytest.raises(NotYet, match=hint) as caught:
        _even(answer)
    assert caught.value._render_traceback_() == [f"not yet: {caught.value}"]
    assert caught.value.__suppress_context__


WRONG = [
    (ch01.geometric, lambda q, r: q ** (r + 1)),
    (ch01.geometric, lambda q, r: q ** (2 * r)),  # of the squares
    (ch01.geometric, 0.8),
    (ch01.shared, lambda dW_1, dW_2, r: 0.0),
    (ch01.shared, lambda dW_1, dW_2, r: np.linalg.norm(dW_1)),
    (ch01.shared, lambda dW_1, dW_2, r: sum(np.sum(np.linalg.svd(d)[1][r:] ** 2) for d in (dW_1, dW_2)) ** 0.5),
    (ch01.budget, (32, 44)),
    (ch01.budget, (31, 43)),
    (ch01.budget, 32),
    (ch01.not_the_only_one, np.diag([3.0, 0, 0])),
    (ch01.not_the_only_one, np.diag([0.5, 0, 0])),
    (ch01.not_the_only_one, np.diag([2.0, 1, 0])),
    (ch01.other_order, np.eye(2)),
    (ch01.other_order, [1.0, 3.0]),
    (ch01.random_share, 0.9),
    (ch01.random_share, 0.48),
    (ch02.softplus_slope, np.tanh),
    (ch02.rms_norm_dx, lambda v, xhat, rstd: rstd * v),
    (ch02.rms_norm_dx, lambda v, xhat, rstd: v[0]),
    (ch02.normed_gate_dA, lambda dout, x, A, B, s: s * (dout @ B).T @ x),
    (ch02.used_twice_dW, lambda dout, x, z, W: dout.T @ z),
    (ch02.single_precision, F.CENTRAL_STEP),
    (ch02.single_precision, 0.1),
]


@pytest.mark.parametrize(("check", "answer"), WRONG, ids=lambda value: getattr(value, "__name__", "answer"))
def test_wrong_answers_are_told(check, answer):
    with pytest.raises(NotYet) as caught:
        check(answer)
    assert "cannot be used" not in str(caught.value)
