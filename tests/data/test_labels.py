"""What labels are called, which are the same, how they are numbered."""

import math

import pytest

from lorabook import FormatError
from lorabook.data import labels


@pytest.mark.parametrize(
    ("value", "name"),
    [
        *(("pos", "pos"), (" pos\t", "pos"), ("so so", "so so"), ("1.0", "1.0"), ("nan", "nan"), ("True", "True")),
        *((1, "1"), (1.0, "1"), (-0.0, "0"), (2.5, "2.5"), (1e300, str(int(1e300))), (10**20, "1" + "0" * 20)),
    ],
)
def test_name_of_a_label(value, name):
    assert labels.label_name(value) == name


@pytest.mark.parametrize("value", [True, False, None, math.nan, math.inf, "", " \u00a0", [1], {"a": 1}])
def test_no_label(value):
    with pytest.raises(FormatError) as error:
        labels.named_labels([(2, "a"), (7, value)], "mine.csv")
    assert (
        str(error.value)
        == f"mine.csv, line 7: a label must be text or a number; got {value!r}: write one, or drop the row"
    )


def test_labels_of_a_file():
    rows = [(2, "b"), (3, " a "), (5, "a"), (6, 1), (7, "1"), (8, 1.0)]
    assert labels.named_labels(rows, "mine.jsonl") == ["b", "a", "a", "1", "1", "1"]


@pytest.mark.parametrize(
    ("one", "other"), [("1", "1.0"), ("01", "1"), ("+1", "1"), ("1e2", "100"), ("0", "-0"), (".5", "0.50")]
)
def test_one_number_written_in_two_ways(one, other):
    with pytest.raises(FormatError) as error:
        labels.named_labels([(2, one), (3, "x"), (9, other)], "mine.csv")
    assert f"line 9: the label {other!r} is the same number as {one!r} in line 2; write them alike" in str(error.value)


def test_order():
    assert labels.in_order(["2", "10", "0", "11", "2"]) == ["0", "2", "10", "11"]
    assert labels.in_order(["2.5", "-1", "10", "1e-3"]) == ["-1", "1e-3", "2.5", "10"]
    assert labels.in_order(["2", "10", "x"]) == ["10", "2", "x"]
    assert labels.in_order(["nan", "2", "10"]) == ["10", "2", "nan"]
    assert labels.in_order([]) == []


@pytest.mark.parametrize(
    "text", ["", "nan", "inf", "1_000", "1,5", "0x10", "\u0661", ".", "e5", "1e", "1 2", " 1", "-", "--1"]
)
def test_no_number(text):
    assert labels.parse_number(text) is None


def test_numbers():
    texts = ["1", "+2", "-3", ".5", "5.", "1e3", "2E-1", "9" * 400]
    assert [labels.parse_number(text) for text in texts] == [1, 2, -3, 0.5, 5.0, 1000.0, 0.2, int("9" * 400)]
    assert labels.parse_number("9" * 5000) is None  # Python reads no such integer


def test_labels_that_may_be_one():
    assert labels.alike(["Pos", "neg", "pos", "so  so", "so so", "POS"]) == [
        ("Pos", "pos"),
        ("so  so", "so so"),
        ("Pos", "POS"),
    ]
    assert labels.alike(["caf\u00e9", "cafe", "cafe\u0301"]) == [("caf\u00e9", "cafe\u0301")]
