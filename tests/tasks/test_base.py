"""What every kind of task shares: how good a model is."""

import numpy as np
import pytest

from lorabook import MLP, Batches, InputError, evaluate


@pytest.fixture
def rows(rng):
    return {"x": rng.standard_normal((23, 5)).astype("f4"), "labels": rng.integers(0, 3, 23)}


def test_one_batch_a_list_and_batches_have_the_same_loss_and_accuracy(rows):
    model = MLP((5, 4, 3))
    logits = model.predict(rows["x"]).astype("f8")
    logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    want = -logs[np.arange(23), rows["labels"]].mean(), (logits.argmax(axis=1) == rows["labels"]).mean()
    parts = [{name: array[own] for name, array in rows.items()} for own in (slice(4), slice(4, 5), slice(5, None))]
    for test in (rows, parts, Batches(rows, 4), Batches(rows, 23)):
        found = evaluate(model, test)
        assert found == pytest.approx(want, rel=1e-5)
        assert (found.loss, found.accuracy) == found


def test_a_label_below_0_does_not_count(rows):
    model = MLP((5, 4, 3))
    some = {name: array[:7] for name, array in rows.items()}
    hidden = rows | {"labels": np.where(np.arange(23) < 7, rows["labels"], -100)}
    assert evaluate(model, hidden) == pytest.approx(evaluate(model, some), rel=1e-5)


def test_nothing_to_measure_by():
    model = MLP((5, 4, 3))
    with pytest.raises(InputError, match="a batch at least"):
        evaluate(model, [])
    with pytest.raises(InputError, match="all are below 0"):
        evaluate(model, {"x": np.ones((2, 5), "f4"), "labels": np.array([-1, -100])})
