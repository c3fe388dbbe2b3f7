import numpy as np
import pytest
from checks import assert_close
from sklearn import metrics as theirs

from lorabook import InputError, NonFiniteError
from lorabook.data import report


def logits_for(predicted, k):
    """Logits whose largest is that of the class in question."""
    return np.eye(k)[predicted] * 3 - 1


CASES = {  # true labels, predicted labels, classes
    "all right": ([0, 1, 2, 1], [0, 1, 2, 1], 3),
    "all wrong": ([0, 1, 2], [1, 2, 0], 3),
    "mixed": ([0, 0, 0, 0, 1, 1, 2], [0, 0, 1, 2, 1, 0, 2], 3),
    "a class never given": ([0, 0, 1, 2], [0, 0, 0, 2], 3),
    "a class that is given but never true": ([0, 0, 1], [0, 2, 1], 3),
    "a class that does not occur": ([0, 0, 2, 2], [0, 2, 2, 2], 4),
    "one row": ([1], [1], 2),
    "one row, wrong": ([1], [0], 2),
    "two rows of two classes": ([0, 1], [1, 0], 2),
    "half right": ([0, 1, 0, 1], [0, 0, 0, 0], 2),
    "one class": ([1, 1, 1, 1], [1, 1, 0, 1], 2),
}


@pytest.mark.parametrize(("true", "predicted", "k"), CASES.values(), ids=CASES)
def test_scikit_learn_says_the_same(true, predicted, k):
    found, every = report(logits_for(predicted, k), true), range(k)
    assert found.rows == len(true)
    assert found.accuracy == pytest.approx(theirs.accuracy_score(true, predicted), abs=1e-15)
    assert found.macro_f1 == pytest.approx(
        theirs.f1_score(true, predicted, average="macro", zero_division=0), abs=1e-15
    )
    np.testing.assert_array_equal(found.confusion, theirs.confusion_matrix(true, predicted, labels=every))
    precision, recall, f1, counts = theirs.precision_recall_fscore_support(
        true, predicted, labels=every, zero_division=0
    )
    for got, want in ((found.precision, precision), (found.recall, recall), (found.f1, f1), (found.counts, counts)):
        assert_close(got, want, 1e-15)
    np.testing.assert_array_equal(found.predicted, np.bincount(predicted, minlength=k))


def test_by_hand():
    """Three of class 0, of which one is taken for 1; one of class 1, right: F1 of 4 / 5 and 2 / 3."""
    found = report(logits_for([0, 0, 1, 1], 2), [0, 0, 0, 1])
    assert found.confusion.tolist() == [[2, 1], [0, 1]]
    assert found.precision.tolist() == [1, 0.5]
    assert found.recall.tolist() == pytest.approx([2 / 3, 1])
    assert found.macro_f1 == pytest.approx((4 / 5 + 2 / 3) / 2)


def test_loss_is_the_mean_cross_entropy(rng):
    logits, labels = 3 * rng.standard_normal((7, 4)), rng.integers(0, 4, 7)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    want = theirs.log_loss(labels, p, labels=range(4))
    assert report(logits, labels).loss == pytest.approx(want, rel=1e-12)
    assert report((logits + 1e4).astype("f4"), labels).loss == pytest.approx(want, rel=1e-2)  # no overflow
    assert report([[0.0, 800.0]], [0]).loss == 800


def test_of_equal_logits_the_first_class_is_taken():
    found = report(np.zeros((3, 3)), [0, 1, 2])
    assert found.predicted.tolist() == [3, 0, 0]
    assert found.loss == pytest.approx(np.log(3))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_no_answer(bad):
    with pytest.raises(NonFiniteError, match="first for row 2 of 3"):
        report([[0, 1], [bad, 0], [bad, 0]], [0, 1, 1])


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.zeros((2, 2)), [0], r"got \(2, 2\) and \(1,\)"),
        (np.zeros((0, 2)), [], "N >= 1"),
        (np.zeros(2), [0, 1], "expected logits"),
        (np.zeros((2, 2)), [0, 2], "from 0 to 1; got 0 to 2"),
        (np.zeros((2, 2)), [-1, 0], "got -1 to 0"),
    ],
    ids=str,
)
def test_shapes_that_do_not_fit(logits, labels, message):
    with pytest.raises(InputError, match=message):
        report(logits, labels)
