"""The checks of chapters 05 and 15 refuse what is wrong; that they take what is right, the solutions show."""

import numpy as np
import pytest

from lorabook.book.checks import NotYet, ch05, ch15

WRONG = {
    ch05.value_bias: {"not multiplied": lambda W_o, b: b, "transposed": lambda W_o, b: W_o.T @ b, "nothing": 1.0},
    ch05.scores_A: {
        "not transposed": lambda dscores, x, B, c, s: c * s * (x @ B.T).T @ dscores @ x,
        "not scaled": lambda dscores, x, B, c, s: c * (x @ B.T).T @ dscores.T @ x,
        "of B": lambda dscores, x, B, c, s: (c * s * (x @ B.T).T @ dscores.T @ x).T,
    },
    ch05.shared_keys: {
        "mean": lambda dk, group: dk.reshape(len(dk), -1, group, *dk.shape[2:]).mean(axis=2),
        "heads far apart": lambda dk, group: dk.reshape(len(dk), group, -1, *dk.shape[2:]).sum(axis=1),
        "one of them": lambda dk, group: dk[:, ::group],
    },
    ch05.unscaled: {"the other way": (0.79, 0.11), "alike": (0.11, 0.11), "one": 0.11},
    ch05.way_down: {"all": 36, "whole blocks": 24, "with the adapted": 22, "half": 20.5},
    ch15.labels_that_count: {
        "by rows": lambda grads, labels: sum(g * len(y) for g, y in zip(grads, labels, strict=True)) / 6,
        "mean": lambda grads, labels: np.mean(grads, axis=0),
        "one number": lambda grads, labels: grads[0].sum(),
    },
    ch15.frozen_A: {
        "A trains": lambda d_in, d_out: d_in * d_out / (d_in + d_out),
        "sides swapped": lambda d_in, d_out: d_in * d_out / (2 * d_in + d_out),
    },
    ch15.memory_share: {"a quarter": 0.25, "the inverse": 3.2},
    ch15.slow_network: {"ten times": lambda P, n: 20 * (n - 1) / n * P * 4 / 125e6, "bits": lambda P, n: 18 * P / 1e9},
    ch15.more_cores: {"infinity": (float("inf"), 2), "half of the time": (1 / 0.3, 0.7)},
}


@pytest.mark.parametrize(
    ("check", "wrong"),
    [pytest.param(check, w, id=f"{check.__name__}-{why}") for check, all in WRONG.items() for why, w in all.items()],
)
def test_a_wrong_answer_is_refused(check, wrong, capsys):
    with pytest.raises(NotYet):
        check(wrong)
    assert "right\n" not in capsys.readouterr().out
