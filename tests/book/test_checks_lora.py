"""The checks of chapters 03 and 04 refuse what is wrong, in one line; that they take what is right, solutions show."""

import copy

import numpy as np
import pytest

from lorabook import LoRAConfig, inject
from lorabook.book.checks import NotYet, ch03, ch04
from lorabook.tasks import digits_problem


def shared(dout_q, dout_v, x, B_q, B_v, s):
    return (s * (dout_q @ B_q + dout_v @ B_v)).T @ x


WRONG = {
    ch03.gate: {
        "no scaling": lambda dout, z, B, s: (z * (dout @ B)).sum(axis=0),
        "not summed": lambda dout, z, B, s: s * z * (dout @ B),
        "nothing": 3.0,
    },
    ch03.shared_A: {
        "one of two": lambda dout_q, dout_v, x, B_q, B_v, s: (s * dout_q @ B_q).T @ x,
        "transposed": lambda *given: shared(*given).T,
        "scaled twice": lambda *given: given[-1] * shared(*given),
    },
    ch03.gaussian_start: {"square forgotten": 12**0.5, "variance of U(-1, 1)": 4.0, "the other way": 1 / 12},
    ch03.double_alpha: {"alike": (0.5, 0.5), "swapped": (0.5, 0.25), "up": (4, 2), "one": 0.25},
    ch03.convert: {
        "not transposed": lambda a, b, scale: (a, b, scale * 3),
        "not times r": lambda a, b, scale: (a.T, b.T, scale),
    },
    ch04.half_life: {"in powers of e": lambda beta: -1 / np.log(beta), "window": lambda beta: 1 / (1 - beta)},
    ch04.frozen_A: {
        "both": lambda model, seed: inject(model, LoRAConfig(r=4, lora_alpha=16), seed),
        "nothing": lambda model, seed: None,
        "another rank": lambda model, seed: only_B(model, 2, seed),
    },
    ch04.one_layer: {"no layer": "fc9"},
    ch04.exact_update: {
        "not transposed": lambda W, turn: W @ turn - W,
        "the new weight": lambda W, turn: W @ turn.T,
    },
    ch04.its_rank: {"full": 64, "of LoRA": 2},
}


def only_B(model, r, seed):
    inject(model, LoRAConfig(r=r, lora_alpha=16), seed)
    model.set_trainable([name for name in model.named_params() if name.endswith("lora_B")])


@pytest.mark.parametrize(
    ("check", "wrong"),
    [
        pytest.param(check, w, id=f"{check.__name__}-{why}")
        for check, found in WRONG.items()
        for why, w in found.items()
    ],
)
def test_a_wrong_answer_is_refused(check, wrong, capsys):
    with pytest.raises(NotYet):
        check(wrong)
    assert "right\n" not in capsys.readouterr().out


def test_an_answer_that_is_missing_or_fails_is_told(capsys):
    ch03.gate(None)
    assert capsys.readouterr().out == "not answered yet\n"
    with pytest.raises(NotYet, match="ValueError") as caught:
        ch03.gate(lambda dout, z, B, s: z @ B)
    assert caught.value._render_traceback_() == [f"not yet: {caught.value}"]


def test_checks_leave_the_base_model_as_it_was():
    base = digits_problem("digits-rotated", seed=0).base
    before = copy.deepcopy(base.named_params())
    ch04.exact_update(lambda W, turn: W @ turn.T - W)
    assert all(np.array_equal(before[name], array) for name, array in base.named_params().items())
