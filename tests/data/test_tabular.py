import numpy as np
import pytest

from lorabook import InputError, data
from lorabook.data import Batches


def test_digits_are_the_real_ones():
    task = data.digits()
    assert len(task.x_train) + len(task.x_test) == 1797
    assert task.x_train.dtype == np.float32
    assert (task.x_train.min(), task.x_train.max()) == (0, 1)
    assert task.classes == 10


@pytest.mark.parametrize("name", list(data.SHIFTS))
def test_a_shift_moves_pixels_but_neither_rows_nor_labels(name):
    upright, task = data.digits(seed=3), data.digits(name, seed=3)
    np.testing.assert_array_equal(task.y_train, upright.y_train)
    np.testing.assert_array_equal(task.y_test, upright.y_test)
    if name not in ("digits", "digits-tilted"):  # the others only exchange pixels
        assert not np.array_equal(task.x_test, upright.x_test)
        np.testing.assert_array_equal(np.sort(task.x_test, axis=1), np.sort(upright.x_test, axis=1))


def test_the_split_follows_the_seed_and_keeps_the_share_of_each_class():
    a, b, c = data.digits(seed=1), data.digits(seed=1), data.digits(seed=2)
    np.testing.assert_array_equal(a.x_test, b.x_test)
    assert not np.array_equal(a.x_test, c.x_test)
    assert np.abs(np.bincount(a.y_test) / len(a.y_test) - np.bincount(a.y_train) / len(a.y_train)).max() < 0.01


def test_validation_rows_come_from_the_training_rows():
    task = data.digits()
    held_out = task.validation(share=0.25, seed=1)
    assert len(held_out.x_test) == round(0.25 * len(task.x_train))
    rows = {row.tobytes() for row in task.x_train}
    assert {row.tobytes() for row in held_out.x_train} | {row.tobytes() for row in held_out.x_test} == rows


def test_planted_update_has_its_rank_and_spectrum():
    problem = data.planted(rank=3, noise=0.0)
    s = np.linalg.svd(problem.delta)[1]
    np.testing.assert_allclose(s[:3], [1, 0.75, 0.5])
    assert s[3] < 1e-14
    np.testing.assert_allclose(problem.y, problem.x @ (problem.weight + problem.delta).T)


def test_planted_inputs_have_their_condition():
    s = np.linalg.svd(data.planted(n=20_000, condition=100.0).x, compute_uv=False)
    assert s[0] / s[-1] == pytest.approx(100, rel=0.05)


def test_batches_depend_on_seed_and_step_alone():
    arrays = {"x": np.arange(10.0)[:, None], "labels": np.arange(10)}
    a, b = Batches(arrays, 3, seed=5), Batches(arrays, 3, seed=5)
    assert len(a) == 3
    later = b.at(7)
    for step in range(9):
        batch = a.at(step)
        assert batch.keys() == arrays.keys()
        np.testing.assert_array_equal(batch["x"][:, 0], batch["labels"])
    np.testing.assert_array_equal(a.at(7)["labels"], later["labels"])
    epoch = np.concatenate([a.at(step)["labels"] for step in range(3)])
    assert len(set(epoch.tolist())) == 9
    assert not np.array_equal(epoch, np.concatenate([a.at(step)["labels"] for step in range(3, 6)]))


def test_batches_of_a_table_in_order_and_of_its_first_rows():
    """Any arrays with as many rows: what there is beside x and labels goes along."""
    arrays = {"pixels": np.arange(60.0).reshape(10, 2, 3), "labels": np.arange(10), "weight": np.ones(10)}
    batches = Batches(arrays, 4)
    got = list(batches.in_order())
    assert [rows.tolist() for rows, _ in got] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    for rows, batch in got:
        assert batch.keys() == arrays.keys()
        assert all(np.array_equal(batch[name], arrays[name][rows]) for name in arrays)
    half = batches.first(0.5)
    assert (half.n, len(half), batches.n, len(batches)) == (5, 1, 10, 2)
    assert half.at(7)["labels"].max() < 5
    assert half.fingerprint() == Batches({name: a[:5] for name, a in arrays.items()}, 4).fingerprint()
    assert half.fingerprint() != batches.fingerprint()


@pytest.mark.parametrize(
    ("arrays", "came"),
    [({"x": np.ones((3, 2)), "labels": np.ones(4)}, r"x \(3, 2\), labels \(4,\)"), ({}, "none")],
)
def test_arrays_of_as_many_rows_each(arrays, came):
    with pytest.raises(InputError, match=f"expected arrays of as many rows each; got {came}"):
        Batches(arrays, 1)


# ---- the reader's own numbers ----------------------------------------------------------------------------------------


def write(path, x, y):
    """A table of numbers with these columns, the last of them constant, and labels."""
    header = [*"abcdefgh"[: x.shape[1]], "constant", "label"]
    rows = [[*map(repr, row.tolist()), "0.1", label] for row, label in zip(x, y, strict=True)]
    if path.suffix == ".jsonl":
        lines = [
            "{" + ",".join(f'"{k}": {v}' for k, v in zip(header, [*row[:-1], f'"{row[-1]}"'], strict=True)) + "}"
            for row in rows
        ]
    else:
        separator = "\t" if path.suffix == ".tsv" else ","
        lines = [separator.join(row) for row in [header, *rows]]
    path.write_text("\n".join(lines))
    return str(path)


@pytest.fixture
def mine(rng):
    x = rng.standard_normal((60, 3))
    return x, ["cat" if a > 0 else "dog" for a in x[:, 0]]


@pytest.mark.parametrize("name", ["mine.csv", "mine.TSV", "mine.tsv", "mine.jsonl"])
def test_own_table(tmp_path, mine, name):
    path = tmp_path / name
    task = data.csv_task(write(path.with_suffix(path.suffix.lower()), *mine), seed=1)
    assert task.x_train.shape == (40, 4) and task.x_train.dtype == task.x_test.dtype == np.float32
    assert task.classes == 2
    np.testing.assert_allclose(task.x_train.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(task.x_train.std(axis=0), [1, 1, 1, 0], atol=1e-6)
    assert not task.x_test[:, 3].any()
    x, y = np.concatenate([task.x_train, task.x_test]), np.concatenate([task.y_train, task.y_test])
    for mine_column, column in zip(mine[0].T, x.T, strict=False):
        np.testing.assert_allclose(np.corrcoef(np.sort(mine_column), np.sort(column))[0, 1], 1, atol=1e-9)
    assert y[np.argsort(x[:, 0])].tolist() == [1] * mine[1].count("dog") + [0] * mine[1].count("cat")


@pytest.mark.parametrize(
    "units",
    [
        *(lambda x: 1e30 * x, lambda x: 1e-30 * x, lambda x: 1e300 * x, lambda x: 1e-300 * x, lambda x: -5 * x),
        *(lambda x: x + 1.7e9, lambda x: 1e30 * (x + 1000), lambda x: 1e-30 * (x - 1000), lambda x: 3e38 / 4 * x),
    ],
)
def test_no_choice_of_units_changes_anything(tmp_path, mine, units):
    x, y = mine
    usual = data.csv_task(write(tmp_path / "a.csv", x, y))
    other = data.csv_task(write(tmp_path / "b.csv", units(x), y))
    sign = -1 if units(np.array([1.0]))[0] < units(np.array([0.0]))[0] else 1
    for part in ("x_train", "x_test"):
        np.testing.assert_allclose(sign * getattr(other, part), getattr(usual, part), rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(other.y_train, usual.y_train)


def test_an_offset_takes_no_digit_that_the_file_has(tmp_path, mine):
    x, y = np.rint(8 * mine[0]), mine[1]
    usual, far = (data.csv_task(write(tmp_path / "a.csv", x + offset, y)) for offset in (0, 2**50))
    np.testing.assert_allclose(far.x_train, usual.x_train, rtol=2e-7, atol=2e-7)
    np.testing.assert_allclose(far.x_test, usual.x_test, rtol=2e-7, atol=2e-7)


@pytest.mark.parametrize("size", [1e-300, 1e-30, 0.1, 1.7e9, 3e38, 1e300])
def test_a_column_that_differs_by_rounding_alone_is_constant(tmp_path, mine, size):
    x, y = mine
    noise = np.where(x[:, :1] > 0, np.nextafter(size, np.inf), size)
    task = data.csv_task(write(tmp_path / "a.csv", np.hstack([noise, x[:, 1:]]), y))
    assert not task.x_train[:, 0].any() and not task.x_test[:, 0].any()
    faint = data.csv_task(write(tmp_path / "a.csv", np.hstack([size * (1 + 1e-12 * x[:, :1]), x[:, 1:]]), y))
    np.testing.assert_allclose(faint.x_train[:, 0].std(), 1, rtol=1e-3)


def test_labels_are_numbered_by_size_and_the_split_follows_the_seed(tmp_path, rng):
    x = np.arange(108.0)[:, None]
    path = write(tmp_path / "a.csv", x, [str(i % 12) for i in range(108)])
    a, b, c = (data.csv_task(path, seed) for seed in (1, 1, 2))
    assert a.classes == 12
    np.testing.assert_array_equal(a.x_test, b.x_test)
    assert not np.array_equal(a.x_test, c.x_test)
    np.testing.assert_array_equal(np.bincount(a.y_test), np.bincount(c.y_test))
    order = np.argsort(np.concatenate([a.x_train, a.x_test])[:, 0])
    np.testing.assert_array_equal(np.concatenate([a.y_train, a.y_test])[order], np.arange(108) % 12)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "mine.csv is empty; expected a header"),
        ("a,b\n1,2\n", "line 1: expected a column `label`; got 'a, b'"),
        ("a,Label,LABEL\n1,x,y\n", "line 1: two columns are called 'Label' and 'LABEL'; rename or remove one"),
        ("label\nx\n", "expected rows, and a column of numbers beside `label`"),
        ("a,label\n", "expected rows, and a column of numbers beside `label`"),
        ("a;label\n1;x\n", "line 1: the columns are separated by semicolons; expected commas"),
        (",label\n1,x\n", "line 1: column 1 has no name; name it or remove it"),
        ("a,A,label\n1,2,x\n", "line 1: two columns are called 'a' and 'A'"),
        (
            "a,label\n1,x\nfoo,y\n",
            "line 3, column 'a': expected a number such as 0.5; got 'foo': drop that row or fill",
        ),
        ('a,label\n"1,5",x\n', "line 2, column 'a': expected a number such as 0.5; got '1,5'"),
        ("a,label\n1_000,x\n", "line 2, column 'a': expected a number such as 0.5; got '1_000'"),
        ("a,label\n1,x\n,y\n", "line 3, column 'a': expected a number such as 0.5; got ''"),
        ("a,label\n" + "1,x\n2,y\n" * 8 + "nan,x\n", "line 18, column 'a': expected a number such as 0.5; got 'nan'"),
        ("a,label\n1,x\n1e309,y\n", "line 3, column 'a': '1e309' is too large for a number of 64 bits"),
        ("a,label\n1,x\n1,2,y\n", "line 3: 3 cells, beginning with '1'; the header has 2"),
        ("a,b,label\n1,2,x\n1,y\n", "line 3: 2 cells, beginning with '1'; the header has 3"),
        ("a,label\n1,x\n1,\n", "line 3: a label must be text or a number; got ''"),
        ("a,label\n1,1\n1,1.0\n", "line 3: the label '1.0' is the same number as '1' in line 2"),
        ("a,label\n1,x\n2,x\n", "two labels or more and at least three rows of each; got 'x: 2'"),
        ("a,label\n1,x\n2,x\n3,y\n", "got 'x: 2, y: 1'"),
    ],
)
def test_a_table_that_cannot_be_used_says_where(tmp_path, text, message):
    (tmp_path / "mine.csv").write_text(text)
    with pytest.raises(InputError) as error:
        data.csv_task(str(tmp_path / "mine.csv"))
    assert "mine.csv" in str(error.value) and message in str(error.value)


def test_a_truth_value_is_no_number(tmp_path):
    (tmp_path / "mine.jsonl").write_text('{"a": 1, "label": "x"}\n{"a": true, "label": "y"}\n')
    with pytest.raises(InputError, match="line 2, column 'a': expected a number such as 0.5; got True"):
        data.csv_task(str(tmp_path / "mine.jsonl"))


def test_other_bad_input(tmp_path):
    x, y = np.ones((4, 2), np.float32), np.zeros(4, np.int64)
    with pytest.raises(InputError, match="unknown data 'digit'.*digits-rotated"):
        data.digits("digit")
    with pytest.raises(InputError, match=r"cannot read .*nothing\.csv"):
        data.csv_task(str(tmp_path / "nothing.csv"))
    with pytest.raises(InputError, match="4 train rows but 3 labels"):
        data.NumberTask("mine", x, y[:3], x, y)
    with pytest.raises(InputError, match="NaN or Inf in 1 of 4 test rows, first in row 2"):
        data.NumberTask("mine", x, y, np.array([[1, 1], [1, 1], [1, np.nan], [1, 1]]), y)
    with pytest.raises(InputError, match="label -1 in the train rows"):
        data.NumberTask("mine", x, y - 1, x, y)
    for batch_size in (0, 5, 2.0, True):
        with pytest.raises(InputError, match="integer from 1 to the 4 training rows"):
            Batches({"x": x, "labels": y}, batch_size)
    for bad in ({"rank": 0}, {"rank": 99}, {"condition": 0.5}, {"noise": -1}, {"n": 0}):
        with pytest.raises(InputError, match="expected 1 <= rank"):
            data.planted(**bad)
