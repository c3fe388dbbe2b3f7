import numpy as np
import pytest

from lorabook import InputError, data


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
    x, y = np.arange(10.0)[:, None], np.arange(10)
    a, b = data.Batches(x, y, 3, seed=5), data.Batches(x, y, 3, seed=5)
    assert len(a) == 3
    later = b.at(7)
    for step in range(9):
        rows, labels = a.at(step)
        np.testing.assert_array_equal(rows[:, 0], labels)
    np.testing.assert_array_equal(a.at(7)[1], later[1])
    epoch = np.concatenate([a.at(step)[1] for step in range(3)])
    assert len(set(epoch.tolist())) == 9
    assert not np.array_equal(epoch, np.concatenate([a.at(step)[1] for step in range(3, 6)]))


def write(tmp_path, text):
    path = tmp_path / "mine.csv"
    path.write_text(text)
    return str(path)


def test_own_csv(tmp_path):
    rng = np.random.default_rng(0)
    rows = [f"{a:.3f},{'cat' if a > 0 else 'dog'},{b:.3f},5" for a, b in rng.standard_normal((60, 2))]
    task = data.csv_task(write(tmp_path, "\n".join(["a,label,b,constant", *rows])))
    assert task.x_train.shape == (40, 3)
    assert task.classes == 2
    np.testing.assert_allclose(task.x_train.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(task.x_train.std(axis=0), [1, 1, 0], atol=1e-6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "header"),
        ("a,b\n1,2\n", "one column `label`"),
        ("label\nx\n", "others with numbers"),
        ("a,label\n", "rows"),
        ("a,label\n1,x\nfoo,y\n", "row 3.*foo"),
        ("a,label\n1,x\n1,2,y\n", "row 3: expected 2 cells.*got 3"),
        ("a,b,label\n1,2,x\n1,y\n", "row 3: expected 3 cells.*got 2"),
        ("a,label\n1,x\n2,x\n", "two labels or more.*x: 2"),
        ("a,label\n1,x\n2,x\n3,y\n", "y: 1"),
        ("a,label\n" + "1,x\n2,y\n" * 8 + "nan,x\n", "row 18: NaN or Inf"),
    ],
)
def test_a_csv_that_cannot_be_used_says_where(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        data.csv_task(write(tmp_path, text))


def test_other_bad_input(tmp_path):
    x, y = np.ones((4, 2), np.float32), np.zeros(4, np.int64)
    with pytest.raises(InputError, match="unknown data 'digit'.*digits-rotated"):
        data.digits("digit")
    with pytest.raises(InputError, match=r"cannot read .*nothing\.csv"):
        data.csv_task(str(tmp_path / "nothing.csv"))
    with pytest.raises(InputError, match="4 train rows but 3 labels"):
        data.Task("mine", x, y[:3], x, y)
    with pytest.raises(InputError, match="NaN or Inf in 1 of 4 test rows, first in row 2"):
        data.Task("mine", x, y, np.array([[1, 1], [1, 1], [1, np.nan], [1, 1]]), y)
    with pytest.raises(InputError, match="label -1 in the train rows"):
        data.Task("mine", x, y - 1, x, y)
    for batch_size in (0, 5, 2.0, True):
        with pytest.raises(InputError, match="integer from 1 to the 4 training rows"):
            data.Batches(x, y, batch_size)
    for bad in ({"rank": 0}, {"rank": 99}, {"condition": 0.5}, {"noise": -1}, {"n": 0}):
        with pytest.raises(InputError, match="expected 1 <= rank"):
            data.planted(**bad)
