"""The split of a file: exactly a quarter, class by class, that appended rows leave as it is; the record of a run."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorabook.data import TextTask, held_out, text_file
from lorabook.files import DIGITS, RECORD, REMEMBERED, record, remembered, word_hash

SETTINGS = settings(max_examples=300, deadline=None, report_multiple_bugs=False)  # several are raised as a group
# Classes of very different sizes, and texts that come twice; each text has one label.
TEXTS = st.lists(st.integers(0, 90), max_size=150).map(lambda numbers: [f"text {n}" for n in numbers])


def class_of(text):
    return int(np.log2(1 + int(text[5:])))


def sides(texts, labels):
    """{label: (its different texts, those that are held out)}."""
    found = {label: (set(), set()) for label in labels}
    for text, label, out in zip(texts, labels, held_out(texts, labels), strict=True):
        for words in found[label][: 1 + out]:
            words.add(" ".join(text.split()))
    return found


@given(TEXTS)
@SETTINGS
def test_of_n_texts_of_a_class_a_quarter_is_held_out_and_both_sides_have_some(texts):
    for all_of, out in sides(texts, list(map(class_of, texts))).values():
        n, t = len(all_of), len(out)
        assert abs(t - n / 4) < 1
        assert n % 4 or t == n / 4
        assert 0 < t < n or (n == 1 and t == 0)


def test_a_text_that_comes_again_is_not_counted_again():
    once = [f"text {i}" for i in range(40)]
    assert held_out([text for text in once for _ in range(3)], ["a"] * 120)[::3] == held_out(once, ["a"] * 40)


MIXED = st.lists(st.tuples(st.integers(0, 12).map(lambda n: f"a {n}"), st.integers(0, 3)), max_size=80)


@given(MIXED, MIXED)
@SETTINGS
def test_appended_rows_move_none_and_equal_texts_are_on_one_side(rows, more):
    """Whatever labels a text has, even several."""
    texts, labels = [[row[i] for row in rows + more] for i in (0, 1)]
    texts = [text.replace(" ", " \r\n"[i % 3]) for i, text in enumerate(texts)]
    found = held_out(texts, labels)
    assert held_out(texts[: len(rows)], labels[: len(rows)]) == found[: len(rows)]
    of_text = {}
    for text, out in zip(texts, found, strict=True):
        assert of_text.setdefault(" ".join(text.split()), out) is out


def test_texts_of_two_labels_are_made_up_for():
    """All of class 1 but the last are texts of class 0, of one side or the other."""
    texts = [f"text {i}" for i in range(40)]
    for side in (False, True):
        shared = [text for text, out in zip(texts, held_out(texts, [0] * 40), strict=True) if out is side][:8]
        own = [f"own {i}" for i in range(40)]
        found = held_out([*texts, *shared, *own], [0] * 40 + [1] * 48)[40:]
        assert found[:8] == [side] * 8
        assert found[8:32] == [False] * 24 if side else found[8:10] == [True] * 2
        assert sum(found) == 48 / 4


def test_a_class_that_shares_its_texts_may_be_all_on_one_side():
    """Appended rows move none, so the sides that another class has given to its texts stay."""
    texts = [f"text {i}" for i in range(40)]
    sides = held_out(texts, [0] * 40)
    for side in (False, True):
        shared = [text for text, out in zip(texts, sides, strict=True) if out is side][:6]
        assert held_out([*texts, *shared], [0] * 40 + [1] * 6) == [*sides, *[side] * 6]


def test_each_text_is_as_likely_to_be_held_out():
    """Of those after the first four: by place in its four, and by how many come after it."""
    counts = Counter()
    for i in range(2000):
        counts.update(np.flatnonzero(held_out([f"{i} {j}" for j in range(12)], [0] * 12)).tolist())
    assert counts[1] == 2000 and not {0, 2, 3} & counts.keys()
    shares = np.array([counts[place] for place in range(4, 12)]) / 2000
    assert abs(shares - 1 / 4).max() < 4 * np.sqrt(3 / 16 / 2000)
    assert counts.total() == 6000


KNOWN = ["text 2", "text 3", "text 11", "text 12", "text 17", "text 20"]


def test_the_split_is_that_of_every_machine_and_year():
    texts, labels = [f"text {i}" for i in range(24)], [f"c{i % 2}" for i in range(24)]
    task = TextTask.split("x", texts, labels)
    assert [text for text, _ in task.test] == KNOWN
    assert [text for text, _ in task.train] == [text for text in texts if text not in KNOWN]


def test_a_file_that_grows_keeps_its_rows_and_one_that_is_sorted_does_not(tmp_path):
    lines = [f"some text {i},{'ab'[i % 2]}" for i in range(150)]

    def task(*lines):
        (tmp_path / "a.csv").write_text("\n".join(["text,label", *lines]))
        return text_file(tmp_path / "a.csv")

    first, grown = task(*lines[:96]), task(*lines)
    assert Counter(label for _, label in first.test) == {0: 12, 1: 12}
    assert grown.test[: len(first.test)] == first.test and grown.train[: len(first.train)] == first.train
    assert set(task(*sorted(lines)).test) != set(grown.test)


# ---- the record of a run ---------------------------------------------------------------------------------------------


def test_a_record_tells_its_texts_from_others():
    known = record(["a b", "c", "a\r\nb"])
    assert RECORD.fullmatch(known) and len(known) == 2 * DIGITS
    assert remembered(["d", "a \n b", "c", "c"], known) == (3, True)
    assert remembered(["a b"], record([])) == (0, True)


def test_a_record_is_bounded_and_a_fair_sample():
    texts = [f"text {i}" for i in range(20_000)]
    known = record(texts)
    assert len(known) == REMEMBERED * DIGITS and RECORD.fullmatch(known)
    found, whole = remembered(texts[:5000], known)
    assert not whole
    assert abs(found - REMEMBERED / 4) < 4 * np.sqrt(REMEMBERED * 3 / 16)
    assert remembered([f"other {i}" for i in range(20_000)], known) == (0, False)


def test_the_record_of_two_runs_is_that_of_all_their_texts():
    texts = [f"text {i}" for i in range(9000)]
    assert record(texts[6000:], record(texts[:7000])) == record(texts)
    assert remembered(texts[:1], record(texts[1:5], record(texts[:1]))) == (1, True)


@pytest.mark.parametrize("known", ["0", "g" * DIGITS, "0" * DIGITS * (REMEMBERED + 1), word_hash("a").upper()])
def test_what_is_no_record(known):
    assert not RECORD.fullmatch(known)
