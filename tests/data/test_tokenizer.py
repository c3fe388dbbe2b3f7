"""The door to the library `tokenizers`: what it raises, and what it panics at, comes out as one line."""

import json
import os
import subprocess
import sys

import pytest
from checks import WORDS, write_tokenizer

from lorabook.data import Texts, encode, load_tokenizer
from lorabook.data import tokenizer as door
from lorabook.errors import FormatError, InputError


def changed(folder, **changes):
    """A folder with the tiny tokenizer and other values for some of its keys."""
    write_tokenizer(folder / "tokenizer.json")
    content = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(content | changes))
    return folder


UNKNOWN = {"type": "WordLevel", "vocab": {"film": 0}, "unk_token": "none"}  # fails on a text with another word
BROKEN = {
    "no model": {"model": 3},
    "another model": {"model": {"type": "Telepathy"}},
    "an expression": {"normalizer": {"type": "Replace", "pattern": {"Regex": "("}, "content": ""}},
    "no vocabulary": {"model": {"type": "Unigram", "vocab": [], "unk_id": 5}},
    "a merge of what is not there": {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}},
    "fails on any text": {"model": {"type": "WordLevel", "vocab": {}, "unk_token": "none"}},
    "panics on any text": {
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "X", "type_id": 0}}],
            "pair": [],
            "special_tokens": {},
        }
    },
}


def test_long_texts_are_cut(tmp_path):
    write_tokenizer(tmp_path / "tokenizer.json")
    ids = load_tokenizer(tmp_path, 5).encode("the plot, a fine film").ids
    assert [WORDS[i] for i in ids] == ["[CLS]", "the", "plot", "[UNK]", "[SEP]"]
    short, _ = encode(load_tokenizer(tmp_path, 4), ["film", "a film"])
    assert short.ids == [2, 8, 3]  # no padding


@pytest.mark.parametrize("content", [None, b"", b"{}", b"[]", b'{"model": 3}', b"\0", b"\xff", b'{"a":' * 99_999])
def test_a_folder_without_a_tokenizer(tmp_path, content):
    if content is not None:
        (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(InputError, match="tokenizer.json") as error:
        load_tokenizer(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("changes", BROKEN.values(), ids=BROKEN)
def test_a_tokenizer_that_cannot_be_used(tmp_path, capfd, changes):
    with pytest.raises(FormatError, match=r"tokenizer\.json is not a tokenizer that can be used: \S") as error:
        load_tokenizer(changed(tmp_path, **changes))
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_a_file_that_is_too_large_is_not_read_whole(tmp_path, monkeypatch):
    write_tokenizer(tmp_path / "tokenizer.json")
    monkeypatch.setattr(door, "SIZE", os.path.getsize(tmp_path / "tokenizer.json") - 1)
    with pytest.raises(FormatError, match="tokenizer.json has more than"):
        load_tokenizer(tmp_path)


def test_a_text_that_it_fails_on_is_named(tmp_path, monkeypatch, capfd):
    tokenizer = load_tokenizer(changed(tmp_path, model=UNKNOWN | {"vocab": {"film": 0, "a": 1}}, post_processor=None))
    assert [e.ids for e in encode(tokenizer, ["film", "a film film"])] == [[0], [1, 0, 0]]
    message = r"tokenizer\.json fails on 'good': .*\S"
    with pytest.raises(InputError, match=message):
        encode(tokenizer, ["film", "good", "bad"])
    with pytest.raises(InputError, match=message):
        Texts([("film", 0), ("good", 1)], tokenizer)
    assert capfd.readouterr() == ("", "")


def test_an_expression_that_would_search_for_ever(tmp_path, capfd):
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$b"}, "behavior": "Isolated", "invert": False}
    tokenizer = load_tokenizer(changed(tmp_path, pre_tokenizer=split))
    with pytest.raises(InputError, match=r"tokenizer\.json fails on 'aaa.*Regex search error"):
        encode(tokenizer, ["film", "a" * 100])
    assert capfd.readouterr() == ("", "")


def test_a_text_that_is_none(tmp_path):
    write_tokenizer(tmp_path / "tokenizer.json")
    for text in ("\ud800", 3, None):
        with pytest.raises(InputError, match="fails on"):
            encode(load_tokenizer(tmp_path), ["film", text])


@pytest.mark.parametrize("stops", [KeyboardInterrupt, SystemExit, MemoryError])
def test_an_interrupt_passes(stops):
    class Tokenizer:
        def encode_batch(self, texts):
            raise stops

    with pytest.raises(stops):
        encode(Tokenizer(), ["film"])


def test_stderr_is_there_again_afterwards(tmp_path, capfd):
    for changes in ({}, BROKEN["panics on any text"]):
        try:
            load_tokenizer(changed(tmp_path, **changes))
        except FormatError:
            assert changes
        os.write(2, b"heard\n")
    assert capfd.readouterr().err == "heard\n" * 2


@pytest.mark.skipif(os.name != "posix", reason="closes a file descriptor of the process")
def test_without_a_stderr(tmp_path):
    write_tokenizer(tmp_path / "tokenizer.json")
    code = "import os, sys; os.close(2); from lorabook.data.tokenizer import *; "
    code += "print(load_tokenizer(sys.argv[1]).encode('a').ids)"
    done = subprocess.run([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True)
    assert done.stdout == "[2, 10, 3]\n"
