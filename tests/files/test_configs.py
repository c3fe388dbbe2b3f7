import json
import os

import pytest

from lorabook.errors import FormatError, InputError
from lorabook.files import check_values, configs, integer, number, one_of, optional, parse_json, read_json


def written(folder, data):
    path = folder / "config.json"
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def test_an_object_is_read_as_json_reads_it(tmp_path):
    content = {"a": [1, -2.5e-3, True, None, {"b": "ä😀\u0000"}], "c": {}, "": 10**400, "nested": [[[[]]]]}
    for ensure_ascii in (True, False):
        assert read_json(written(tmp_path, json.dumps(content, ensure_ascii=ensure_ascii))) == content


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("", "Expecting value: line 1"),
        ("{", "line 1 column 2"),
        ("[1]", "expected a JSON object; got [1]"),
        ("null", "expected a JSON object; got None"),
        ('{"a": 1} {}', "Extra data"),
        (b'{"a": "\xff"}', "can't decode byte 0xff"),
        (b'\xef\xbb\xbf{"a": 1}', "Unexpected UTF-8 BOM"),
        ('{"a": 1}'.encode("utf-16"), "is not JSON"),
        ('{"a": NaN}', "no finite number: 'NaN'"),
        ('{"a": [-Infinity]}', "no finite number: '-Infinity'"),
        ('{"a": 1e999}', "no finite number: '1e999'"),
        ('{"a": 1, "b": {"c": 1, "d": 2, "c": 1}}', "a key stands there twice: 'c'"),
        (r'{"a": "\ud83d"}', "surrogates not allowed"),
        (r'{"\udc00": 1}', "surrogates not allowed"),
        ('{"a": ' + "9" * 5000 + "}", "Exceeds the limit"),
        ('{"a": 1.' + "9" * 5000 + "e999}", "no finite number: '1.99"),
        ('{"a":' * 66 + "1" + "}" * 66, "nested more than 64 deep"),
        ('{"a":' + "[" * 65 + "]" * 65 + "}", "nested more than 64 deep"),
        ('{"a":' * 99_999, "nested more than 64 deep"),
        ("[" * 99_999, "nested more than 64 deep"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_anything_else_is_refused_in_one_short_line(tmp_path, data, message):
    path = written(tmp_path, data)
    with pytest.raises(FormatError) as error:
        read_json(path)
    assert message in str(error.value) and str(error.value).startswith(str(path))
    assert "\n" not in str(error.value) and len(str(error.value)) < len(str(path)) + 170
    str(error.value).encode()


def test_64_deep_is_read(tmp_path):
    assert read_json(written(tmp_path, '{"a":' * 64 + "1" + "}" * 64))


def test_a_file_that_is_too_large_is_not_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(configs, "SIZE", 30)
    assert read_json(written(tmp_path, '{"a": 1}'.ljust(30))) == {"a": 1}
    with pytest.raises(FormatError, match="config.json has more than 30 bytes"):
        read_json(written(tmp_path, '{"a": 1}'.ljust(31)))


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match=r"nothing\.json: No such file or directory; expected a PEFT adapter folder"):
        read_json(tmp_path / "nothing.json", "a PEFT adapter folder")
    with pytest.raises(InputError, match="not a file"):
        read_json(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(InputError, match="not a file"):
        read_json(tmp_path / "config.json")


def test_one_text_may_hold_any_value():
    assert parse_json("[1]") == [1] and parse_json(b'"\xc3\xa4"') == "ä"
    with pytest.raises(ValueError, match="line 1 column 3"):
        parse_json("[1")


# ---- values ----------------------------------------------------------------------------------------------------------

RULES = {
    "size": integer(1),
    "pad": optional(integer(0, 11)),
    "eps": number(0, 1, default=1e-12),
    "act": one_of("gelu", "relu"),
    "decoder": one_of(False),
}


@pytest.mark.parametrize(
    "content",
    [
        {"size": 1},
        {"size": 10**30, "pad": None, "eps": 0, "act": "relu", "decoder": False, "other": [1]},
        {"size": 3, "pad": 11, "eps": 1.0},
    ],
)
def test_values_that_fit(content):
    check_values("config.json", content, RULES)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "size must be an integer from 1 on; got None"),
        ({"size": 0}, "size must be an integer from 1 on; got 0"),
        ({"size": True}, "size must be an integer from 1 on; got True"),
        ({"size": 6.0}, "got 6.0"),
        ({"size": "6"}, "got '6'"),
        ({"pad": 12}, "pad must be an integer from 0 to 11, or null; got 12"),
        ({"pad": -1}, "got -1"),
        ({"pad": False}, "got False"),
        ({"eps": -1e-30}, "eps must be a number from 0 to 1; got -1e-30"),
        ({"eps": 1.5}, "got 1.5"),
        ({"eps": None}, "got None"),
        ({"eps": False}, "got False"),
        ({"eps": float("nan")}, "got nan"),
        ({"act": "mish"}, "act must be one of 'gelu', 'relu'; got 'mish'"),
        ({"act": ["gelu"]}, "got ['gelu']"),
        ({"decoder": 0}, "decoder must be False; got 0"),
        ({"decoder": True}, "decoder must be False; got True"),
        ({"size": "x" * 500}, "got '" + "x" * 116 + "..."),
    ],
    ids=str,
)
def test_values_that_do_not_fit_are_named(content, message):
    with pytest.raises(FormatError) as error:
        check_values("config.json", {"size": 1} | content if content else {}, RULES)
    assert str(error.value).startswith("config.json: ") and message in str(error.value)
