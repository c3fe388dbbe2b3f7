"""Text tasks: files read and refused, the split, the tokenizer, batches of similar length."""

import json

import numpy as np
import pytest
from checks import WORDS, write_tokenizer

from lorabook import FormatError, InputError
from lorabook.data import Batches, Texts, TextTask, load_tokenizer, movie_reviews, text_file

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


def everything(task):
    return sorted(task.train + task.test)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
def test_text_file(tmp_path, name):
    task = text_file(written(tmp_path / name))
    assert task.name == name
    assert task.names == ["no", "yes"]
    assert everything(task) == [(text, int(label == "yes")) for text, label in ROWS]


def test_the_same_rows_in_any_format_give_the_same_task(tmp_path):
    tasks = [text_file(written(tmp_path / name)) for name in ("a.csv", "a.tsv", "a.jsonl")]
    tasks += [text_file(str(tmp_path / "a.csv"))]
    assert all((task.train, task.test) == (tasks[0].train, tasks[0].test) for task in tasks)


def test_a_file_from_a_spreadsheet(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'\xef\xbb\xbftext,label\r\n"two\r\nlines, ""quoted""",1\r\nb,0\r\nc,0\r\n')
    assert everything(text_file(path)) == [("b", 0), ("c", 0), ('two\r\nlines, "quoted"', 1)]
    path.write_bytes(path.read_bytes().decode().replace("b,0", "caf\u00e9,0").encode("utf-16"))
    assert everything(text_file(path, "utf-16"))[1] == ("caf\u00e9", 0)


def test_numbers_as_labels(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"t{i}", "label": [i % 12, i % 12 + 0.0][i % 2]}) for i in range(50)))
    task = text_file(path)
    assert task.names == [str(i) for i in range(12)]
    assert dict(everything(task))["t22"] == 10


BAD = {
    "a.txt": ("text,label\na,1\nb,0\n", "expected a .csv, .tsv or .jsonl file"),
    "b.csv": ("text,label\na,1,2\nb,0\n", "line 2: 3 cells"),
    "c.csv": ('text,label\n\n"a\nb",1\n\n  ,0\n', "line 6: expected a text; got '  ': write one, or drop the row"),
    "d.csv": ("text,label\na,1\nb,\n", "line 3: a label must be text or a number; got ''"),
    "e.csv": ("text,label\na,1\nb,1\nc,1\n", "expected two different labels or more; all 3 are ['1']"),
    "f.csv": ("text,label\na,1\nb,1.0\nc,0\n", "line 3: the label '1.0' is the same number as '1' in line 2"),
    "g.csv": ("text,label\na,1\nb,0\n", "expected two different texts or more of one label at least"),
    "h.csv": ("text,label\na,1\na,1\na,0\n", "expected two different texts or more of one label at least"),
    "i.jsonl": ('{"text": "a", "label": true}\n', "line 1: a label must be text or a number; got True"),
    "j.jsonl": ('\n{"text": 3, "label": 1}\n', "line 2: expected a text; got 3"),
    "k.jsonl": ('{"text": "", "label": 1}\n', "line 1: expected a text; got ''"),
    "l.csv": ("text,label\n", "holds no rows"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused(tmp_path, name):
    content, message = BAD[name]
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError) as error:
        text_file(tmp_path / name)
    assert name in str(error.value) and message in str(error.value)


# ---- the whole of a file ---------------------------------------------------------------------------------------------


def test_a_whole_file_is_the_test_in_its_order(tmp_path):
    task = text_file(written(tmp_path / "a.csv"), split=False)
    assert (task.train, task.names) == ([], ["no", "yes"])
    assert task.test == [(text, int(label == "yes")) for text, label in ROWS]


def test_one_row_of_one_class_under_the_names_of_a_model(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\na,1\n")
    assert text_file(tmp_path / "a.csv", split=False).test == [("a", 0)]
    task = text_file(tmp_path / "a.csv", split=False, names=["0", "2", "1"])
    assert (task.test, task.names) == ([("a", 2)], ["0", "2", "1"])
    with pytest.raises(InputError, match=r"a.csv, line 2: the label '1' is none of \['no', 'yes'\]"):
        text_file(tmp_path / "a.csv", split=False, names=["no", "yes"])


# ---- the split -------------------------------------------------------------------------------------------------------


def labelled(count, classes=3, first=0):
    """(texts, labels)."""
    numbers = range(first, first + count)
    return [f"text {i}" for i in numbers], [f"c{i % classes}" for i in numbers]


def test_rare_classes_are_mentioned():
    texts, labels = labelled(90)
    assert TextTask.split("x", texts, labels).notes == ()
    task = TextTask.split("x", [*texts, "a", "b", "c"], [*labels, "one", "two", "two"])
    assert task.notes == (
        "labels with few rows: 'one' (1 for training, 0 for the test), 'two' (1 for training, 1 for the test)",
    )
    many = TextTask.split("x", *labelled(60, 10))
    assert many.notes[0].count("for training") == 4 and many.notes[0].endswith(", and 6 more")
    task = TextTask.split("x", *(2 * rows for rows in (texts, [label.upper() for label in labels])))
    assert task.notes == ()
    task = TextTask.split("x", texts, [label.upper() if i < 45 else label for i, label in enumerate(labels)])
    assert task.notes[0] == "the labels 'C0' and 'c0' look alike, and are two labels here"


def test_movie_reviews_are_shuffled_by_seed():
    texts, labels = [f"t{i}" for i in range(40)], [str(i % 3) for i in range(40)]
    tasks = [TextTask.shuffled("x", texts, labels, 30, seed) for seed in (0, 0, 1)]
    assert tasks[0] == tasks[1] != tasks[2]
    for task in tasks:
        assert (len(task.train), len(task.test)) == (30, 10)
        assert everything(task) == sorted((t, i % 3) for i, t in enumerate(texts))
    order = np.random.default_rng(1).permutation(40)
    assert tasks[2].train == [(texts[i], i % 3) for i in order[:30]]


@pytest.mark.parametrize("train", [0, 4, 5, -1])
def test_a_split_without_training_or_test_rows(train):
    with pytest.raises(InputError, match=f"4 texts cannot be split into {train} for training"):
        TextTask.shuffled("x", list("abcd"), ["0", "1", "0", "1"], train)


def test_validation_rows_are_training_rows_chosen_text_by_text():
    texts, labels = labelled(4000)
    task = TextTask.split("x", texts + texts[:50], labels + labels[:50])
    again = task.validation()
    assert (again.names, again.notes, again.name) == (task.names, task.notes, task.name)
    assert sorted(again.train + again.test) == sorted(task.train)
    assert not {text for text, _ in again.train} & {text for text, _ in again.test}, "a text is on both sides"
    assert len({text for text, _ in again.test}) == len({text for text, _ in task.train}) / 4 == 750
    more = TextTask.split("x", [*texts, *texts[:50], "one more"], [*labels, *labels[:50], labels[0]]).validation()
    assert set(more.test) >= set(again.test), "a row has changed sides"
    assert not {text for text, _ in again.test} & {text for text, _ in task.test}
    alone = TextTask.split("x", *([str(row[i]) for row in task.train] for i in (0, 1)))
    assert {text for text, _ in alone.test} != {text for text, _ in again.test}, "by the hashes of the split"


def test_every_class_has_rows_on_both_sides_of_the_validation():
    task = TextTask("x", [("a", 0), ("b", 0), ("c", 1), ("d", 1)], [("e", 0)], ["one", "two"])
    again = task.validation()
    for rows in (again.train, again.test):
        assert {label for _, label in rows} == {0, 1}
    with pytest.raises(InputError, match="too few texts to hold some out of the 1 that are for training"):
        TextTask("x", [("a", 0)], [("e", 0)], ["one"]).validation()


def test_validation_keeps_the_order_of_the_training_rows():
    task = TextTask.shuffled("x", *labelled(40), train=30)
    again = task.validation()
    assert again.train == [row for row in task.train if row in again.train]


def test_labels_numbered_as_another_file_numbers_them():
    task = TextTask("x", [("a", 0), ("b", 1)], [("c", 1)], ["one", "two"], ("a note",))
    again = task.numbered(("two", "three", "one"))
    assert (again.train, again.test) == ([("a", 2), ("b", 0)], [("c", 0)])
    assert (again.names, again.notes) == (["two", "three", "one"], ("a note",))
    with pytest.raises(InputError, match=r"x: the label 'two' is none of \['one'\]"):
        task.numbered(["one"])


# ---- batches ---------------------------------------------------------------------------------------------------------


def random_texts(rng, count, longest=60):
    """Texts of a random number of words, each of which is found again by its label."""
    lengths = rng.integers(1, longest, count)
    return [(" ".join(rng.choice(WORDS[4:], length)), label) for label, length in enumerate(lengths)]


@pytest.fixture
def batches(rng, tokenizer):
    return Batches(Texts(random_texts(rng, 1000), tokenizer), 16, seed=4)


def one_epoch(batches, epoch=0):
    return [batches.at(epoch * len(batches) + i) for i in range(len(batches))]


def assert_same(got, want):
    assert got.keys() == want.keys()
    for name, array in want.items():
        np.testing.assert_array_equal(got[name], array)


def test_a_batch_holds_the_texts_padded_to_the_longest(rng, tokenizer):
    tokenizer.add_special_tokens(["[PAD]"])
    rows = [*random_texts(rng, 50), ("good [PAD] film", 50)]
    batches = Batches(Texts(rows, tokenizer), 8)
    for batch in (*one_epoch(batches), batches.examples.rows([3, 40, 3]), batches.examples.rows([50, 3])):
        assert batch.keys() == {"input_ids", "attention_mask", "labels"}
        ids, mask, labels = (batch[name] for name in ("input_ids", "attention_mask", "labels"))
        encoded = [tokenizer.encode(rows[label][0]).ids for label in labels]
        assert ids.dtype == mask.dtype == labels.dtype == np.int64
        assert ids.shape == mask.shape == (len(labels), max(map(len, encoded)))
        for row, seen, tokens in zip(ids, mask, encoded, strict=True):
            assert row.tolist() == tokens + [0] * (ids.shape[1] - len(tokens))
            assert seen.tolist() == [1] * len(tokens) + [0] * (ids.shape[1] - len(tokens))


def test_a_padding_token_in_a_text_is_a_token(tokenizer):
    """Only the mask says what is padding: the id 0 may be that of a word."""
    tokenizer.add_special_tokens(["[PAD]"])
    batch = Texts([("good [PAD] film", 0)], tokenizer).rows([0])
    assert batch["input_ids"].tolist() == [[2, 4, 0, 8, 3]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1]]


def test_two_texts_in_a_row_have_types(tokenizer):
    rows = [("good", 0), (("bad plot", "a film"), 1), (("the", "the plot"), 0)]
    batch = Texts(rows, tokenizer).rows([1, 0])
    assert batch["input_ids"].tolist() == [[2, 5, 9, 3, 10, 8, 3], [2, 4, 3, 0, 0, 0, 0]]
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1] * 7, [1] * 3 + [0] * 4]
    assert batch["token_type_ids"].dtype == np.int64
    assert Texts(rows, tokenizer).first(2).rows([1])["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1, 1]]
    assert "token_type_ids" not in Texts([("good", 0), ("bad plot", 1)], tokenizer).rows([0, 1])


def test_a_fingerprint_sees_where_the_second_text_begins(tokenizer):
    """The same ids, divided elsewhere."""
    from tokenizers.processors import TemplateProcessing

    tokenizer.post_processor = TemplateProcessing(single="$A", pair="$A $B:1")
    one, other, alone = (
        Texts([(text, 0)], tokenizer) for text in (("a", "good film"), ("a good", "film"), "a good film")
    )
    assert one.ids[0].tolist() == other.ids[0].tolist() == alone.ids[0].tolist()
    assert len({examples.fingerprint() for examples in (one, other, alone)}) == 3
    two, others = (
        Texts([(text, 0) for text in texts], tokenizer) for texts in (("a", "good film"), ("a good", "film"))
    )
    assert two.fingerprint() != others.fingerprint()  # where one text ends and the next begins


def test_batches_depend_on_seed_and_step_alone(rng, tokenizer):
    rows = random_texts(rng, 200)
    a, b, other = (Batches(Texts(rows, tokenizer), 16, seed=seed) for seed in (4, 4, 5))
    steps = [0, 7, 30, 3, 30, 12]
    there = {step: a.at(step) for step in steps}
    for step in reversed(steps):
        assert_same(b.at(step), there[step])
    assert any(sorted(other.at(step)["labels"]) != sorted(a.at(step)["labels"]) for step in steps)


@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_every_text_at_most_once_an_epoch(batches, epoch):
    seen = np.concatenate([batch["labels"] for batch in one_epoch(batches, epoch)])
    assert len(batches) == 62
    assert len(seen) == len(set(seen.tolist())) == 992


def test_every_epoch_has_other_batches(batches):
    def sets(epoch):
        return {frozenset(batch["labels"].tolist()) for batch in one_epoch(batches, epoch)}

    assert not sets(0) & sets(1)


def test_lengths_come_in_no_order(batches):
    widths = [batch["input_ids"].shape[1] for batch in one_epoch(batches)]
    assert widths != sorted(widths)
    assert abs(np.corrcoef(widths, np.arange(len(widths)))[0, 1]) < 0.5


@pytest.mark.parametrize("batch_size", [8, 16, 32])
def test_padding_is_not_paid_for(rng, tokenizer, batch_size):
    batches = Batches(Texts(random_texts(rng, 2000), tokenizer), batch_size, seed=1)
    padded = sum(batch["input_ids"].size for batch in one_epoch(batches))
    real = sum(batch["attention_mask"].sum() for batch in one_epoch(batches))
    assert 1 <= padded / real < 1.1
    unsorted = Batches(Texts(random_texts(rng, 2000), tokenizer), batch_size, seed=1, pool=1)
    assert sum(batch["input_ids"].size for batch in one_epoch(unsorted)) > 1.3 * real


def test_in_order_covers_every_text_once(batches):
    seen, widths = [], []
    for rows, batch in batches.in_order():
        np.testing.assert_array_equal(rows, batch["labels"])
        assert_same(batch, batches.examples.rows(rows))
        seen += batch["labels"].tolist()
        widths.append(batch["input_ids"].shape[1])
    assert sorted(seen) == list(range(1000))
    assert len(widths) == 63
    assert widths == sorted(widths)


def test_fingerprint_sees_texts_labels_and_order(rng, tokenizer):
    rows = [("a film", 0), ("the plot", 1), ("good", 0)]
    base = Batches(Texts(rows, tokenizer), 1).fingerprint()
    assert Batches(Texts(rows, tokenizer), 2, seed=9).fingerprint() == base
    others = [rows[::-1], [("a film", 1), *rows[1:]], [("film a", 0), *rows[1:]], rows[:2]]
    assert all(Batches(Texts(other, tokenizer), 1).fingerprint() != base for other in others)


@pytest.mark.parametrize("batch_size", [0, -1, 4, 2.0, True])
def test_batch_size_must_fit(tokenizer, batch_size):
    with pytest.raises(InputError, match="batch_size must be an integer from 1 to the 3 training rows"):
        Batches(Texts([("a", 0)] * 3, tokenizer), batch_size)


def test_a_text_without_a_token(tokenizer):
    from tokenizers.processors import TemplateProcessing

    tokenizer.post_processor = TemplateProcessing(single="$A", pair="$A $B")
    with pytest.raises(InputError, match=r"finds no token in '\\n'; drop that row"):
        Texts([("a", 0), ("\n", 1)], tokenizer)


def test_what_was_cut_off_is_counted(tmp_path):
    write_tokenizer(tmp_path / "tokenizer.json")
    rows = [("a good film", 0), ("bad", 1), ("the plot a film", 0), ("good bad good bad good bad good", 1)]
    texts = Texts(rows, load_tokenizer(tmp_path, 5))
    assert [len(ids) for ids in texts.ids] == texts.lengths.tolist() == [5, 3, 5, 5]
    assert texts.cut == (2, (1 + 4) / (3 + 1 + 4 + 7))
    assert texts.cut_note() == (
        "2 of 4 texts have more than 5 tokens and were cut, 33 % of all tokens; --max-length sets the limit"
    )
    assert texts.first(2).cut == (0, 0) and texts.first(2).cut_note() is None
    assert texts.first(3).cut == (1, 1 / 8)
    for tokens, share in {(3, 997): "100", (1, 99): "99", (977, 23): "2.3"}.items():
        texts.tokens[:] = tokens
        assert f" {share} % of all tokens;" in texts.cut_note()
    whole = Texts(rows, load_tokenizer(tmp_path, 9))
    assert whole.cut == (0, 0) and whole.cut_note() is None


def test_an_empty_share_of_lost_tokens(tmp_path):
    write_tokenizer(tmp_path / "tokenizer.json")
    assert Texts([("\n", 0)], load_tokenizer(tmp_path, 5)).cut == (0, 0)


def test_first_texts_alone(batches):
    half = batches.first(0.5)
    own, all_ids = half.examples, batches.examples.ids
    assert len(own.ids) == len(own.labels) == half.n == 500 and len(half) == 500 // 16
    assert all(mine is theirs for mine, theirs in zip(own.ids, all_ids[:500], strict=True))
    assert len(all_ids) == batches.n == 1000
    assert half.fingerprint() != batches.fingerprint()
    batch = half.at(3)
    assert len(batch["input_ids"]) == len(batch["labels"]) == 16
    assert batch["labels"].max() < 500
