"""Tables from outside, read or refused with file and line; our own CSV files."""

import io
import os
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorabook import FormatError, InputError
from lorabook.files import read_csv, read_table, readers, stream_table, table_rows, tables, write_csv

COLUMNS = ("text", "label")


@pytest.fixture
def read(tmp_path):
    """Write a file, and read its `text` and `label` unless told otherwise."""

    def call(name, content, columns=COLUMNS, *args, **options):
        (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return read_table(tmp_path / name, columns, *args, **options)

    return call


# ---- what is read ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_row_has_the_number_of_the_line_on_which_it_begins(read, end):
    csv = end.join(["label,text", "", "1,a", '2,"two', "", 'lines"', " ", "3,c", ""])
    assert read("a.csv", csv) == [
        (3, {"text": "a", "label": "1"}),
        (4, {"text": f"two{end}{end}lines", "label": "2"}),
        (8, {"text": "c", "label": "3"}),
    ]
    tsv = end.join(["label\ttext", "", "1\ta", " ", "3\tc", ""])
    assert read("a.tsv", tsv) == [(3, {"text": "a", "label": "1"}), (5, {"text": "c", "label": "3"})]
    jsonl = end.join(["", '{"text": "a", "label": 1}', " ", '{"label": 2.5, "text": "b"}'])
    assert read("a.jsonl", jsonl) == [(2, {"text": "a", "label": 1}), (4, {"text": "b", "label": 2.5})]


@pytest.mark.parametrize("name", ["a.CSV", "a.Tsv", "a.JSONL"])
def test_endings_in_capitals(read, name):
    content = {"csv": "text,label\na,1", "tsv": "text\tlabel\na\t1", "jsonl": '{"text": "a", "label": "1"}'}
    assert read(name, content[name[2:].lower()])[0][1] == {"text": "a", "label": "1"}
    assert tables.is_table(name) and not tables.is_table("digits") and not tables.is_table("a.csv.gz")


def test_quotes_in_csv(read):
    rows = read("a.csv", 'text,label\n"a, ""b""",1\n6" pipe,2\n"",3\n')
    assert [row["text"] for _, row in rows] == ['a, "b"', '6" pipe', ""]


def test_quotes_in_tsv(read):
    """Only a cell that is quoted as spreadsheets do is unquoted; a stray quote swallows nothing."""
    cells = {
        '"quoted"': "quoted",
        '"with ""quotes"""': 'with "quotes"',
        '"with\ttab"': "with\ttab",
        '""': "",
        '""""': '"',
        '"stray': '"stray',
        '"great" film': '"great" film',
        'film "great"': 'film "great"',
        '"': '"',
        '"a"b"': '"a"b"',
        '"""': '"""',
    }
    lines = [f"{cell}\t{i}" for i, cell in enumerate(cells)] + [f"{i}\t{cell}" for i, cell in enumerate(cells)]
    rows = read("a.tsv", "\n".join(["text\tlabel", *lines]))
    assert [row["text"] for _, row in rows[: len(cells)]] == list(cells.values())
    assert [row["label"] for _, row in rows[len(cells) :]] == list(cells.values())


def test_a_long_cell_is_read(read):
    for name, content in {"a.csv": "text,label\n{},1\n", "a.tsv": "text\tlabel\n{}\t1\n"}.items():
        assert read(name, content.format("a" * 200_000))[0][1] == {"text": "a" * 200_000, "label": "1"}
    assert len(read("a.csv", 'text,label\n"' + "ab\n" * 100_000 + '",1\n')[0][1]["text"]) == 300_000


@pytest.mark.parametrize(("name", "begin"), [("a.csv", '"'), ("a.tsv", ""), ("a.jsonl", '{"text": "')])
def test_a_line_without_end_is_refused_before_it_fills_the_memory(tmp_path, name, begin, monkeypatch):
    with open(tmp_path / name, "wb") as file:
        file.write({".csv": b"text,label\n", ".tsv": b"text\tlabel\n"}.get(name[1:], b"\n") + begin.encode())
        file.seek(1 << 26)  # zeros, which take no place on most disks
        file.write(b"\n")
    monkeypatch.setattr(readers, "LONGEST", 100_000)
    tracemalloc.start()
    with pytest.raises(FormatError, match="line 2 has more than 100,000 characters"):
        read_table(tmp_path / name, COLUMNS)
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()


def test_a_quote_that_never_closes_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "LONGEST", 200_000)
    monkeypatch.setattr(readers.csv, "field_size_limit", lambda *size: 0)  # as in a process that has not raised it
    (tmp_path / "a.csv").write_text('text,label\n"' + "a,1\n" * 40_000)
    with pytest.raises(FormatError, match="a.csv, line 2"):
        read_table(tmp_path / "a.csv", COLUMNS)


def test_a_table_of_one_column(read):
    for name in ("a.csv", "a.tsv"):
        assert read(name, "\n text\n\na; b\n", ("text",)) == [(4, {"text": "a; b"})]


def test_rows_that_a_spreadsheet_cleared_are_passed_over(read):
    assert read("a.csv", "text,label,\na,1,\n,,\nb,2,\n , ,\n,\n") == [
        (2, {"text": "a", "label": "1"}),
        (4, {"text": "b", "label": "2"}),
    ]
    assert read("a.tsv", "text\tlabel\na\t1\n\t\n") == [(2, {"text": "a", "label": "1"})]
    assert read("b.csv", 'text\na\n""\n', ("text",)) == [(2, {"text": "a"}), (3, {"text": ""})]  # a cell, not a row


def test_columns_that_are_asked_for(read):
    csv = "n, text ,more,label\n1,a,x,p\n2,b,,q\n"
    assert read("a.csv", csv, ("label",), ("text", "pair")) == [
        (2, {"label": "p", "text": "a", "pair": None}),
        (3, {"label": "q", "text": "b", "pair": None}),
    ]
    assert read("a.csv", csv, ("label",), None)[1] == (3, {"n": "2", "text": "b", "more": "", "label": "q"})
    jsonl = '{"text": "a", "more": [1]}\n{"text": "b", "pair": "c"}\n{"pair": null, "text": "d"}'
    assert [row for _, row in read("a.jsonl", jsonl, ("text",), ("pair",))] == [
        {"text": "a", "pair": None},
        {"text": "b", "pair": "c"},
        {"text": "d", "pair": None},
    ]
    with pytest.raises(FormatError, match=r"line 2: expected 'a, b', as before; got 'c, b'"):
        read("a.jsonl", '{"a": 1, "b": 2}\n{"c": 1, "b": 2}', (), None)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
def test_columns_in_capitals(read, name):
    """A column is found in any capitals; those that nobody asked for keep theirs."""
    line = ",\t"[name == "a.tsv"].join
    table = f"{line(['Text ', 'More', 'LABEL'])}\n{line(['a', 'x', 'p'])}"
    table = '{" Text": "a", "More": "x", "LABEL": "p"}' if name == "a.jsonl" else table
    found = {"text": "a", "label": "p"}
    assert read(name, table) == read(name, table, ("label",), ("text",)) == [(read(name, table)[0][0], found)]
    assert read(name, table, ("text", "label"), ("MORE",))[0][1] == found | {"MORE": "x"}
    assert read(name, table, ("label",), None)[0][1] == {"label": "p", "More": "x"} | (
        {" Text": "a"} if name == "a.jsonl" else {"Text": "a"}
    )


def test_json_lines_in_other_capitals_from_line_to_line(read):
    rows = read("a.jsonl", '{"a": 1, "Label": 2}\n{"a": 3, "label": 4}', ("label",), None)
    assert [row for _, row in rows] == [{"label": 2, "a": 1}, {"label": 4, "a": 3}]


def test_rows_of_a_stream_come_as_they_are_written():
    ends = os.pipe()
    reading, writing = open(ends[0]), open(ends[1], "w", buffering=1, newline="\n")
    with reading, writing:
        rows = stream_table(reading, ".csv", ("text",))
        for line in ("text\n", "first\n", '"second\n', 'of two"\n'):
            writing.write(line)
        assert [next(rows), next(rows)] == [(2, {"text": "first"}), (3, {"text": "second\nof two"})]
        writing.write("third\n")
        assert next(rows) == (5, {"text": "third"})
        writing.write("too, many\n")
        with pytest.raises(FormatError, match="standard input, line 6: 2 cells"):
            next(rows)


# ---- what is refused -------------------------------------------------------------------------------------------------

BAD = {
    "too_many.csv": (
        "text,label\n\ngood, really good,pos\n",
        "line 3: 3 cells, beginning with 'good'; the header has 2",
    ),
    "too_few.csv": ("text,label\na,1\n\n\nb\n", "line 5: 1 cell, beginning with 'b'; the header has 2"),
    "empty_cells.csv": ("text,label\na,1,\n", "line 2: 3 cells"),
    "no_text.csv": ("txt,label\na,1\n", "line 1: expected a column `text`; got 'txt, label'"),
    "neither.csv": ("a,1\nb,2\n", "line 1: expected a column `text` and a column `label`; got 'a, 1'"),
    "twice.csv": ("text,text,label\na,b,1\n", "line 1: two columns are called 'text' and 'text'; rename or remove one"),
    "spaces.csv": ("text, text ,label\na,b,1\n", "line 1: two columns are called 'text' and 'text'"),
    "capitals.csv": ("text,Text,label\na,b,1\n", "line 1: two columns are called 'text' and 'Text'"),
    "two_capitals.tsv": ("TEXT\tlabel\tText\na\t1\tb\n", "line 1: two columns are called 'TEXT' and 'Text'"),
    "capitals.jsonl": ('{"text": "a", "label": 1, "Label": 2}\n', "line 1: two columns are called 'label' and 'Label'"),
    "semicolons_capital.csv": ("Text;LABEL\na;1\n", "line 1: the columns are separated by semicolons"),
    "semicolons.csv": ("text;label\na;1\n", "line 1: the columns are separated by semicolons; expected commas"),
    "semicolons_quoted.csv": ('"label";"n";"text"\n1;2;"a"\n', "separated by semicolons"),
    "tabs.csv": (
        "text\tlabel\na\t1\n",
        "separated by tabs; expected commas: save the file with commas, or call it .tsv",
    ),
    "commas.tsv": ("text,label\na,1\n", "separated by commas; expected tabs: save the file with tabs, or call it .csv"),
    "bars.csv": ("n|text|label\n1|a|1\n", "separated by bars"),
    "open.csv": ('text,label\na,1\n"b,0\nc,0\n', "line 3: a cell opens with a quote that is never closed"),
    "stray.csv": (
        'text,label\n"b,0\nc",0\nd,"1"x\n',
        "line 4: a quoted cell goes on after its closing quote; write every quote inside it twice",
    ),
    "swallowed.csv": (
        'text,label\n"b,0\nc,0\n"d",1\n',
        "line 2: a quoted cell goes on after its closing quote, 2 lines f",
    ),
    "two_lines.tsv": (
        'text\tlabel\n"a\nb"\t1\n',
        "line 2: 1 cell, beginning with '\"a'; the header has 2 (a cell can hold",
    ),
    "empty.csv": ("", "empty.csv is empty; expected a header and rows"),
    "blank.tsv": ("\n \n", "blank.tsv is empty; expected a header and rows"),
    "header.csv": ("text,label\n\n", "header.csv holds no rows"),
    "blank.jsonl": ("\n\n", "blank.jsonl holds no rows"),
    "nul.csv": ("text,label\na,1\nb\0c,1\n", "line 3: a NUL character; the file is damaged, or in another encoding"),
    "cut.jsonl": (
        '{"text": "a", "label": 1}\n\n{"text": "b", "l',
        "line 3 is not JSON: Unterminated string starting at",
    ),
    "two.jsonl": ('{"text": "a", "label": 1} {}\n', "line 1 is not JSON: Extra data at column 27"),
    "list.jsonl": ('["a", 1]\n', "line 1: expected a JSON object, one a line; got ['a', 1]"),
    "indented.jsonl": ('[\n {"text": "a"}\n]\n', "line 1 is not JSON: Expecting value at column 2; expected one"),
    "missing.jsonl": ('{"text": "a", "label": 1}\n{"text": "b"}\n', "line 2: expected a column `label`; got 'text'"),
    "null.jsonl": ('{"text": "a", "label": null}\n', "line 1: expected text or a number as `label`; got None"),
    "object.jsonl": ('{"text": {}, "label": 1}\n', "line 1: expected text or a number as `text`; got {}"),
    "twice.jsonl": ('{"text": "a", "text": "b", "label": 1}\n', "line 1 is not JSON: a key stands there twice: 'text'"),
    "nan.jsonl": ('{"text": "a", "label": NaN}\n', "line 1 is not JSON: no finite number: 'NaN'"),
    "huge.jsonl": ('{"text": "a", "label": 1e999}\n', "line 1 is not JSON: no finite number: '1e999'"),
    "half.jsonl": ('{"text": "a\\ud800", "label": 1}\n', "line 1: half of a surrogate pair, which is no character"),
    "deep.jsonl": ('{"text": ' + "[" * 5000, "line 1 is not JSON: nested more than"),
    "a.txt": ("text,label\na,1\n", "a.txt: expected a .csv, .tsv or .jsonl file"),
    "latin.csv": (
        b"text,label\nb,1\ncaf\xe9,0\n",
        "line 3: byte 0xe9 is not utf-8; the file looks like cp1252: pass --en",
    ),
    "utf16.csv": (
        "text,label\na,1\n".encode("utf-16"),
        "line 1: byte 0xff is not utf-8; the file looks like utf-16: pass",
    ),
    "utf16le.csv": (
        "text,label\na,1\n".encode("utf-16-le"),
        "line 1: a NUL character; the file looks like utf-16-le: pass",
    ),
    "utf16be.tsv": (
        "text\tlabel\na\t1\n".encode("utf-16-be"),
        "line 1: a NUL character; the file looks like utf-16-be",
    ),
    "utf32.csv": ("text,label\na,1\n".encode("utf-32"), "line 1: byte 0xff is not utf-8; the file looks like utf-32"),
    "mixed.csv": (
        b"text,label\n\xc3\xa9\xe9,0\n",
        "line 2: byte 0xe9 is not utf-8; the file is damaged, or in another enc",
    ),
    "cut.csv": (
        b"text,label\n\xc3\xa9\xc3,0\n",
        "line 2: byte 0xc3 is not utf-8; the file is damaged, or in another enc",
    ),
    "russian.csv": (
        "text,label\nпривет мир,0\n".encode("cp1251"),
        "is not utf-8; the file is damaged, or in another enc",
    ),
    "surrogate.csv": (b"text,label\n\xed\xa0\x80,0\n", "line 2: byte 0xed is not utf-8"),
}


@pytest.mark.parametrize("name", BAD)
def test_refused_with_file_line_and_reason(read, name):
    content, message = BAD[name]
    with pytest.raises(InputError) as error:
        read(name, content)
    assert name in str(error.value) and message in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_a_name_that_is_no_file(tmp_path):
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(InputError, match=r"cannot read .*nothing\.csv: No such file"):
        read_table(tmp_path / "nothing.csv", COLUMNS)
    with pytest.raises(InputError, match=r"cannot read .*folder\.csv: not a file"):
        read_table(tmp_path / "folder.csv", COLUMNS)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(InputError, match="not a file"):
        read_table(tmp_path / "pipe.csv", COLUMNS)


# ---- encodings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "encoding", ["utf-8", "UTF8", "utf-8-sig", "cp1252", "latin-1", "utf-16", "utf-16-le", "utf-16-be"]
)
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_the_encoding_that_is_named_is_read(read, encoding, mark):
    if mark and encoding in ("cp1252", "latin-1"):
        return
    content = f"{mark}text,label\r\ncaf\u00e9,1\r\n".encode(encoding)
    assert read("a.csv", content, encoding=encoding) == [(2, {"text": "caf\u00e9", "label": "1"})]


@pytest.mark.parametrize("encoding", ["no-such", "hex", "rot13", "", "a\0b"])
def test_an_encoding_that_is_none(read, encoding):
    with pytest.raises(InputError, match="unknown encoding .*; expected one such as utf-8, cp1252, utf-16"):
        read("a.csv", "text,label\na,1\n", encoding=encoding)


def test_another_encoding_than_the_one_that_is_named(read):
    with pytest.raises(FormatError, match="a.csv, after line 0: not utf-16 .*; name its encoding, or save it as UTF-8"):
        read("a.csv", "text,label\na,1\n", encoding="utf-16")
    with pytest.raises(FormatError, match="line 2: byte 0x81 is not cp1252; name the encoding in which it was saved"):
        read("a.csv", b"text,label\n\x81,1\n", encoding="cp1252")


# ---- anything at all -------------------------------------------------------------------------------------------------

CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).filter(lambda c: not c.isspace())


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(CELLS, CELLS), min_size=1))
def test_whatever_the_csv_module_writes_is_read_back(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = readers.csv.writer(file)
        writer.writerows([COLUMNS, *rows])
    assert [(row["text"], row["label"]) for _, row in table_rows(path, COLUMNS)] == rows


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.text(st.sampled_from('" ab\u00e9')) | st.text(st.characters(codec="utf-8", exclude_characters="\0\t\r\n"))
    )
)
def test_no_quote_in_tsv_swallows_a_row(cells):
    content = "text\tlabel\n" + "".join(f"{cell}\t{i}\n" for i, cell in enumerate(cells))
    rows = list(stream_table(io.TextIOWrapper(io.BytesIO(content.encode())), ".tsv", COLUMNS))
    assert [row["label"] for _, row in rows] == [str(i) for i in range(len(cells))]
    for (_, row), cell in zip(rows, cells, strict=True):
        inside = cell[1:-1]
        quoted = len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in inside.replace('""', "")
        assert row["text"] == (inside.replace('""', '"') if quoted else cell)


# ---- our own CSV files -----------------------------------------------------------------------------------------------


def test_csv_round_trip(tmp_path):
    rows = [{"name": "a", "r": None, "x": 0.1234567891}, {"name": "#b", "r": 3, "x": 2e-9}]
    write_csv(tmp_path / "x.csv", rows, "lorabook test 'two\nlines' \udcff")
    assert read_csv(tmp_path / "x.csv") == [
        {"name": "a", "r": None, "x": 0.123457},
        {"name": "#b", "r": 3, "x": 2e-9},
    ]
    assert (tmp_path / "x.csv").read_text(encoding="utf-8").startswith("# lorabook test 'two lines' \\udcff\n# python ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"# made\na,b\n1\n", "x.csv, line 3: 1 cell"),
        (b"# made\na,b\n1,2,3\n", "x.csv, line 3: 3 cells"),
        (b"a,a\n1,2\n", "x.csv, line 1: two columns are called 'a' and 'a'"),
        (b"a,\n1,2\n", "x.csv, line 1: column 2 has no name"),
        (b"a\n\xe9\n", "x.csv, line 2: byte 0xe9 is not utf-8"),
        (b"# made\n", "x.csv is empty"),
        (b"a\n", "x.csv holds no rows"),
    ],
)
def test_our_csv_damaged(tmp_path, content, message):
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(FormatError) as error:
        read_csv(tmp_path / "x.csv")
    assert message in str(error.value)


def test_no_rows_are_not_written(tmp_path):
    with pytest.raises(InputError, match="x.csv: there are no rows to write"):
        write_csv(tmp_path / "x.csv", [], "lorabook test")
    assert not (tmp_path / "x.csv").exists()
    with pytest.raises(InputError, match="nothing.csv"):
        read_csv(tmp_path / "nothing.csv")
