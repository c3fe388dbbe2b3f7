"""The recorder of chapter 16: what it notes, that it leaves the library as it was, and the chapter's exercises."""

import numpy as np
import pytest

from lorabook import functional as F
from lorabook.book import counted, recorder
from lorabook.book.checks import NotYet, ch16
from lorabook.functional import attend, reductions
from lorabook.training import optim

SMALL = counted.TINY | {"hidden_size": 24, "intermediate_size": 40}  # no size but the rank is 8


def test_a_product_is_noted_with_its_flops_and_bytes():
    x, W = (recorder.recorded(np.ones(shape, "f4")) for shape in ((5, 6), (7, 6)))
    log, _ = recorder.begin()
    y = x @ W.T
    (entry,) = log
    assert (entry["name"], entry["flops"]) == ("matmul", 2 * 5 * 6 * 7)
    assert entry["bytes"] == 4 * (5 * 6 + 6 * 7 + 5 * 7)
    assert not entry["r"] and entry["dtype"] == "float32" and isinstance(y, recorder.Recorded)


def test_views_are_free_and_values_asked_for_are_waits():
    x = recorder.recorded(np.arange(6.0))
    log, waits = recorder.begin()
    view = x.reshape(2, 3).T
    assert view.shape == (3, 2) and not log and not waits
    assert float(x[3:4].reshape(())) == 3.0 and len(waits) == 1


def test_recorded_values_are_those_of_numpy():
    x = np.random.default_rng(0).standard_normal((4, 9))
    assert np.array_equal(np.asarray(F.softmax(recorder.recorded(x.copy()))), F.softmax(x.copy()))


def test_a_step_is_as_many_launches_for_any_batch_and_the_library_is_left_as_it_was():
    before = optim.BLOCK, attend.bmm, reductions.ones
    first, second = (counted.record(counted.prepare(SMALL), B, 7) for B in (6, 10))
    assert first[1] == second[1] and sum(first[1].values()) == len(first[0]) and not first[2]
    assert (optim.BLOCK, attend.bmm, reductions.ones) == before


def test_work_is_affine_in_the_batch():
    step = counted.Step(SMALL, 7)
    log, _, _ = counted.record(step.model, 5, 7)
    assert np.array_equal(step.work(5), np.array([[e["flops"], e["bytes"]] for e in log], float).T)
    rows = step.by_part(16)
    assert sum(row["launches"] for row in rows) == len(step.parts)
    assert np.isclose(sum(row["time"] for row in rows), step.seconds(16).sum())


WRONG = [
    (ch16.ridge, lambda peak, bandwidth, itemsize: itemsize * peak / bandwidth),
    (ch16.ridge, 120),
    (ch16.few_tokens, (lambda N: N, lambda peak, bandwidth: peak / bandwidth)),
    (ch16.few_tokens, (lambda N: N / 2, lambda peak, bandwidth: peak / bandwidth)),
    (ch16.few_tokens, 40),
    (ch16.last_copies, 24),
    (ch16.last_copies, "23"),
    (ch16.float64, "bcf"),
    (ch16.float64, "abcfg"),
    (ch16.float64, ["b"]),
]


@pytest.mark.parametrize(("check", "answer"), WRONG, ids=lambda value: getattr(value, "__name__", "answer"))
def test_wrong_answers_are_told(check, answer, capsys):
    with pytest.raises(NotYet) as caught:
        check(answer)
    assert "cannot be used" not in str(caught.value)
