"""Files read from archives: what is asked for, into memory, or one clear error."""

import io
import tarfile
import zipfile

import pytest

from lorabook import InputError
from lorabook.errors import FormatError
from lorabook.files import archived, files_in


def make(path, **files):
    if path.suffix == ".whl":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
            for name, data in files.items():
                opened.writestr(name, data)
        return path
    with tarfile.open(path, "w:gz") as opened:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            opened.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("link.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        opened.addfile(link)
    return path


@pytest.fixture(params=["a.whl", "a.tar.gz"])
def path(request, tmp_path):
    return tmp_path / request.param


def is_text(name):
    return name.endswith("txt")


def test_what_is_wanted_comes_sorted(path):
    make(path, **{"b.txt": b"2", "a.txt": b"1", "../c.py": b"3"})
    assert files_in(path, is_text) == [("a.txt", b"1"), ("b.txt", b"2")]
    assert not (path.parent.parent / "c.py").exists()


def test_too_much(path, monkeypatch):
    make(path, a=b"", **{"a.txt": b"0" * 5000, "b.txt": b"0" * 5000})
    monkeypatch.setattr(archived, "SIZE", 4999)
    with pytest.raises(FormatError, match="a.txt is too large; expected at most 4,999 bytes"):
        files_in(path, is_text)
    monkeypatch.setattr(archived, "SIZE", 5000)
    monkeypatch.setattr(archived, "TOTAL", 9000)
    with pytest.raises(FormatError, match="b.txt is too large"):
        files_in(path, is_text)


def test_what_nobody_asks_for_is_not_read(path, monkeypatch):
    make(path, **{"a.txt": b"1", "b.py": b"2" * 99})
    monkeypatch.setattr(archived, "SIZE", 1)
    assert files_in(path, is_text) == [("a.txt", b"1")]
    assert files_in(path, lambda name: False) == []


def test_a_tarball_that_unpacks_to_too_much_beside(tmp_path, monkeypatch):
    path = make(tmp_path / "a.tar.gz", **{"bomb": b"0" * 5000, "z.txt": b"1"})
    monkeypatch.setattr(archived, "TOTAL", 1000)
    with pytest.raises(FormatError, match="unpacks to more than 4,000 bytes"):
        files_in(path, is_text)


def test_no_archive(path):
    with pytest.raises(InputError, match="cannot read"):
        files_in(path, is_text)
    for data in (b"", b"nothing", make(path, **{"a.txt": b"1" * 999}).read_bytes()[:90]):
        path.write_bytes(data)
        with pytest.raises(FormatError, match="no intact archive"):
            files_in(path, is_text)
