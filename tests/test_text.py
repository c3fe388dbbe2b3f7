"""Text tasks: files read and refused, the split, the tokenizer, batches of similar length."""

import json

import numpy as np
import pytest
from checks import WORDS, write_tokenizer

from lorabook import FormatError, InputError
from lorabook.text import PADDING, TextBatches, TextTask, movie_reviews, text_file
from lorabook.tokenizer import load_tokenizer

ROWS = [(f"text, number {i} \u00e9", "no yes".split()[i % 2]) for i in range(8)]


@pytest.fixture
def tokenizer(tmp_path):
    write_tokenizer(tmp_path / "tokenizer.json")
    return load_tokenizer(tmp_path)


# ---- movie reviews ---------------------------------------------------------------------------------------------------


def reviews(folder, lines):
    (folder / "movieReviewSnippets_GroundTruth.txt").write_text("\n".join(lines), encoding="utf-8", newline="")
    return folder


def test_movie_reviews(tmp_path):
    lines = [
        "1_1\t1.5\ta caf\u00e9 of a film\u0085still the same line ",
        "1_2\t-0.4\tdull\tand long",
        "1_3\t0\tneither",
        "1_4\t0.0\tneither",
        "",
        "1_5\t2\t ",
        '1_6\t-3.9\t"awful',
        "1_7\t0.1\tfine",
        "",
    ]
    task = movie_reviews(reviews(tmp_path, lines), train=3)
    assert task.names == ["negative", "positive"]
    assert (len(task.train), len(task.test)) == (3, 1)
    assert set(task.train + task.test) == {
        ("a caf\u00e9 of a film\u0085still the same line", 1),
        ("dull\tand long", 0),
        ('"awful', 0),
        ("fine", 1),
    }


@pytest.mark.parametrize("line", ["1_1 1.5 text", "1_1\ttext\t1.5", "1_1\t1.5"])
def test_malformed_movie_reviews(tmp_path, line):
    with pytest.raises(FormatError, match="does not hold lines of id, rating and text"):
        movie_reviews(reviews(tmp_path, ["1_0\t1\tgood", line]))


def test_missing_movie_reviews(tmp_path):
    with pytest.raises(InputError, match="cannot read .*movieReviewSnippets_GroundTruth.txt: No such file"):
        movie_reviews(tmp_path)


# ---- the reader's own file -------------------------------------------------------------------------------------------


def written(path, rows=ROWS):
    if path.suffix == ".jsonl":
        lines = [json.dumps({"text": text, "label": label, "more": 1}) for text, label in rows]
        path.write_text("\n\n".join(lines), encoding="utf-8")
    elif path.suffix == ".tsv":
        path.write_text("label\tx\ttext\n" + "".join(f"{label}\t0\t{text}\n" for text, label in rows), encoding="utf-8")
    else:
        path.write_text("text,label\n" + "".join(f'"{text}",{label}\n' for text, label in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
def test_text_file(tmp_path, name):
    task = text_file(written(tmp_path / name))
    assert task.name == name
    assert task.names == ["no", "yes"]
    assert (len(task.train), len(task.test)) == (6, 2)
    assert sorted(task.train + task.test) == [(text, int(label == "yes")) for text, label in ROWS]


def test_the_same_rows_in_any_format_give_the_same_task(tmp_path):
    tasks = [text_file(written(tmp_path / name), seed=3) for name in ("a.csv", "a.tsv", "a.jsonl")]
    assert tasks[0].train == tasks[1].train == tasks[2].train
    assert tasks[0].test == tasks[1].test == tasks[2].test


def test_a_file_from_a_spreadsheet(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'\xef\xbb\xbftext,label\r\n"two\nlines, ""quoted""",1\r\nb,0\r\nc,0\r\n')
    task = text_file(path)
    assert {*task.train, *task.test} == {('two\nlines, "quoted"', 1), ("b", 0), ("c", 0)}


def test_numbers_and_truth_values_as_labels(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"t{i}", "label": i % 3}) for i in range(6)))
    assert text_file(path).names == ["0", "1", "2"]
    path.write_text("\n".join(json.dumps({"text": f"t{i}", "label": i > 2}) for i in range(6)))
    assert text_file(path).names == ["False", "True"]


BAD = {
    "a.txt": (b"text,label\na,1\nb,0\n", "expected a .csv, .tsv or .jsonl file"),
    "b.csv": (b"text;label\na;1\nb;0\n", "line 2: expected `text` and `label`; got ['text;label']"),
    "c.csv": (b"text,Label\na,1\nb,0\n", "line 2: expected `text` and `label`; got ['Label', 'text']"),
    "d.csv": (b"text,label\na,1\nb\n", "line 3: expected `text` and `label`"),
    "e.csv": (b"text,label\n", "holds no rows"),
    "f.csv": (b"", "holds no rows"),
    "g.csv": (b"text,label\na,1\n\xff,0\n", "cannot read"),
    "h.csv": (b"text,label\na,1\n  ,0\n", "text number 2 is empty"),
    "i.csv": (b"text,label\na,1\nb,\n", "label number 2 must be a name or a number; got ''"),
    "j.csv": (b"text,label\na,1\nb,1\nc,1\n", "expected two different labels or more; all 3 are ['1']"),
    "k.csv": (b'text,label\n"a,1\nb,0\n', "line 3 is malformed: unexpected end of data"),
    "l.tsv": (b'text\tlabel\n"great" film\t1\nb\t0\n', "line 2 is malformed: '\t' expected after '\"'"),
    "m.csv": (b"text,label\n" + b"a" * 200_000 + b",1\n", "line 2 is malformed: field larger than field limit"),
    "n.tsv": (b"text,label\na,1\n", "line 2: expected `text` and `label`; got ['text,label']"),
    "o.jsonl": (
        b'{"text": "a", "label": 1}\n{"text": "b", "label"\n',
        "line 2 is malformed: Expecting ':' delimiter at column 22",
    ),
    "p.jsonl": (b'["a", 1]\n', "line 1: expected `text` and `label`; got ['a', 1]"),
    "q.jsonl": (b'{"text": "a"}\n', "line 1: expected `text` and `label`; got ['text']"),
    "r.jsonl": (b'{"text": 3, "label": 1}\n{"text": "b", "label": 0}\n', "text number 1 is empty or no text"),
    "s.jsonl": (b'{"text": "a", "label": [1]}\n{"text": "b", "label": 0}\n', "label number 1 must be"),
    "t.jsonl": (b'{"text": "a", "label": null}\n', "line 1: expected `text` and `label`"),
    "u.jsonl": (b'{"a":' * 9999, "line 1 is malformed"),
    "v.jsonl": (b"\n\n", "holds no rows"),
    "w.jsonl": (b'{"text": "a", "label": 1}\n', "expected two different labels"),
    "x.jsonl": (
        b'{"text": "a", "label": 1}\n\n \n{"text": "b"]',
        "line 4 is malformed: Expecting ',' delimiter at column 13",
    ),
    "y.jsonl": (b'{"text": "a", "label": 1}\r\n\r\n["b"]', "line 3: expected `text` and `label`; got ['b']"),
    "z.csv": (b'text,label\n"a\nb",1\n\nc\n', "line 5: expected `text` and `label`"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused(tmp_path, name):
    content, message = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as error:
        text_file(tmp_path / name)
    assert message in str(error.value)
    assert name in str(error.value)


@pytest.mark.parametrize("name", ["nothing.csv", "folder.csv"])
def test_no_such_file(tmp_path, name):
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(InputError, match=f"cannot read .*{name}"):
        text_file(tmp_path / name)


# ---- the split -------------------------------------------------------------------------------------------------------


def test_split_is_a_shuffle_by_seed():
    texts, labels = [f"t{i}" for i in range(40)], [i % 3 for i in range(40)]
    tasks = [TextTask.split("x", texts, labels, seed) for seed in (0, 0, 1)]
    assert tasks[0] == tasks[1] != tasks[2]
    for task in tasks:
        assert (len(task.train), len(task.test)) == (30, 10)
        assert sorted(task.train + task.test) == sorted((t, i % 3) for i, t in enumerate(texts))
        assert task.train != sorted(task.train)


def test_labels_are_numbered_in_sorted_order():
    task = TextTask.split("x", list("abcd"), ["so so", "bad", "good", "bad"])
    assert task.names == ["bad", "good", "so so"]
    assert sorted(task.train + task.test) == [("a", 2), ("b", 0), ("c", 1), ("d", 0)]


@pytest.mark.parametrize("train", [0, 4, 5, -1])
def test_a_split_without_training_or_test_rows(train):
    with pytest.raises(InputError, match=f"4 texts cannot be split into {train} for training"):
        TextTask.split("x", list("abcd"), [0, 1, 0, 1], train=train)


# ---- batches ---------------------------------------------------------------------------------------------------------


def random_texts(rng, count, longest=60):
    """Texts of a random number of words, each of which is found again by its label."""
    lengths = rng.integers(1, longest, count)
    return [(" ".join(rng.choice(WORDS[4:], length)), label) for label, length in enumerate(lengths)]


@pytest.fixture
def batches(rng, tokenizer):
    return TextBatches(random_texts(rng, 1000), tokenizer, 16, seed=4)


def one_epoch(batches, epoch=0):
    return [batches.at(epoch * len(batches) + i) for i in range(len(batches))]


def test_a_batch_holds_the_texts_padded_to_the_longest(rng, tokenizer):
    rows = random_texts(rng, 50)
    batches = TextBatches(rows, tokenizer, 8)
    for ids, labels in (*one_epoch(batches), batches.rows([3, 40, 3])):
        encoded = [tokenizer.encode(rows[label][0]).ids for label in labels]
        assert ids.dtype == labels.dtype == np.int64
        assert ids.shape == (len(labels), max(map(len, encoded)))
        for row, tokens in zip(ids, encoded, strict=True):
            assert row.tolist() == tokens + [PADDING] * (ids.shape[1] - len(tokens))


def test_batches_depend_on_seed_and_step_alone(rng, tokenizer):
    rows = random_texts(rng, 200)
    a, b, other = (TextBatches(rows, tokenizer, 16, seed=seed) for seed in (4, 4, 5))
    steps = [0, 7, 30, 3, 30, 12]
    there = {step: a.at(step) for step in steps}
    for step in reversed(steps):
        for got, want in zip(b.at(step), there[step], strict=True):
            np.testing.assert_array_equal(got, want)
    assert any(sorted(other.at(step)[1]) != sorted(a.at(step)[1]) for step in steps)


@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_every_text_at_most_once_an_epoch(batches, epoch):
    seen = np.concatenate([labels for _, labels in one_epoch(batches, epoch)])
    assert len(batches) == 62
    assert len(seen) == len(set(seen.tolist())) == 992


def test_every_epoch_has_other_batches(batches):
    def sets(epoch):
        return {frozenset(labels.tolist()) for _, labels in one_epoch(batches, epoch)}

    assert not sets(0) & sets(1)


def test_lengths_come_in_no_order(batches):
    widths = [ids.shape[1] for ids, _ in one_epoch(batches)]
    assert widths != sorted(widths)
    assert abs(np.corrcoef(widths, np.arange(len(widths)))[0, 1]) < 0.5


@pytest.mark.parametrize("batch_size", [8, 16, 32])
def test_padding_is_not_paid_for(rng, tokenizer, batch_size):
    batches = TextBatches(random_texts(rng, 2000), tokenizer, batch_size, seed=1)
    padded = sum(ids.size for ids, _ in one_epoch(batches))
    real = sum(np.count_nonzero(ids != PADDING) for ids, _ in one_epoch(batches))
    assert 1 <= padded / real < 1.1
    unsorted = TextBatches(random_texts(rng, 2000), tokenizer, batch_size, seed=1, pool=1)
    assert sum(ids.size for ids, _ in one_epoch(unsorted)) > 1.3 * real


def test_in_order_covers_every_text_once(batches):
    seen, widths = [], []
    for rows, ids, labels in batches.in_order():
        np.testing.assert_array_equal(rows, labels)
        for got, want in zip((ids, labels), batches.rows(rows), strict=True):
            np.testing.assert_array_equal(got, want)
        seen += labels.tolist()
        widths.append(ids.shape[1])
    assert sorted(seen) == list(range(1000))
    assert len(widths) == 63
    assert widths == sorted(widths)


def test_fingerprint_sees_texts_labels_and_order(rng, tokenizer):
    rows = [("a film", 0), ("the plot", 1), ("good", 0)]
    base = TextBatches(rows, tokenizer, 1).fingerprint()
    assert TextBatches(rows, tokenizer, 2, seed=9).fingerprint() == base
    others = [rows[::-1], [("a film", 1), *rows[1:]], [("film a", 0), *rows[1:]], rows[:2]]
    assert all(TextBatches(other, tokenizer, 1).fingerprint() != base for other in others)


@pytest.mark.parametrize("batch_size", [0, -1, 4, 2.0, True])
def test_batch_size_must_fit(tokenizer, batch_size):
    with pytest.raises(InputError, match="batch_size must be an integer from 1 to the 3 texts"):
        TextBatches([("a", 0)] * 3, tokenizer, batch_size)


def test_a_text_without_a_token(tokenizer):
    from tokenizers.processors import TemplateProcessing

    tokenizer.post_processor = TemplateProcessing(single="$A", pair="$A $B")
    with pytest.raises(InputError, match=r"finds no token in '\\n'; drop that row"):
        TextBatches([("a", 0), ("\n", 1)], tokenizer, 1)


def test_first_texts_alone(batches):
    half = batches.first(0.5)
    assert len(half.ids) == len(half.labels) == 500 and len(half) == 500 // 16
    assert all(mine is theirs for mine, theirs in zip(half.ids, batches.ids[:500], strict=True))
    assert len(batches.ids) == 1000
    assert half.fingerprint() != batches.fingerprint()
    ids, labels = half.at(3)
    assert ids.shape[0] == len(labels) == 16
