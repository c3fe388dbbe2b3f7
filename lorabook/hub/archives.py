"""Archives that are not trusted: the listed members of a .zip, and of a .tar.gz inside it, written under fixed names.

A member is found by its exact path and is read to its stated size, never further; its sha256 decides. Nothing else of
the archive is unpacked, so absolute paths, `..`, links, devices and bombs beside the listed members do not matter.
"""

import errno
import gzip
import hashlib
import io
import os
import stat
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import PurePosixPath

from ..errors import FormatError
from ..files import MALFORMED

CHUNK = 1 << 20


@dataclass(frozen=True)
class Member:
    """One wanted file of an archive: its exact path there, its size in bytes, its sha256 (hexadecimal)."""

    path: str
    size: int
    sha256: str

    @property
    def file(self):
        """Its name once unpacked."""
        return PurePosixPath(self.path).name


@dataclass(frozen=True)
class Tarball(Member):
    """A .tar.gz inside the archive: `unpacked_size` is the size of the .tar, `members` are wanted from it."""

    unpacked_size: int
    members: tuple[Member, ...]


def unpack(archive, folder, members, tarball=None):
    """Write `members` of the .zip at `archive`, and of a `tarball` inside it, into `folder`, each fsynced.

    Raises FormatError, naming the member, unless each is a regular file of the stated size and sha256.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            for member in members:
                with _open_zip_member(opened, member) as source:
                    _write(source, folder, member)
            if tarball:
                packed = io.BytesIO()
                with _open_zip_member(opened, tarball) as source:
                    copy(source, packed, tarball)
                _unpack_tar(packed, folder, tarball)
    except FormatError:
        raise
    except (*MALFORMED, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # EINVAL: seek to before the start
            raise
        raise FormatError(f"cannot be unpacked ({type(error).__name__}: {error}); expected an intact archive") from None


def _open_zip_member(opened, member):
    try:
        info = opened.getinfo(member.path)
    except KeyError:
        raise FormatError(f"holds no member {member.path}; expected one of {member.size} bytes") from None
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):  # 0: written where there are no file types
        raise FormatError(f"member {member.path} is no regular file; expected one of {member.size} bytes")
    _check_size(member, info.file_size)
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise FormatError(f"member {member.path} has compression {info.compress_type}; expected stored or deflated")
    return opened.open(info)


def _unpack_tar(packed, folder, tarball):
    packed.seek(0)
    data = gzip.GzipFile(fileobj=packed).read(tarball.unpacked_size + 1)
    _check_size(tarball, len(data), tarball.unpacked_size)
    wanted = {member.path: member for member in tarball.members}
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as opened:
        for info in opened:
            if info.size < 0:  # older versions of Python then go round in circles
                raise FormatError(f"member {info.name} has size {info.size}; expected an intact archive")
            if member := wanted.pop(info.name, None):
                if not info.isreg() or info.issparse():
                    raise FormatError(f"member {member.path} is no regular file; expected one of {member.size} bytes")
                _check_size(member, info.size)
                with opened.extractfile(info) as source:
                    _write(source, folder, member)
            if not wanted:
                return
    missing = next(iter(wanted.values()))
    raise FormatError(f"{tarball.path} holds no member {missing.path}; expected one of {missing.size} bytes")


def _check_size(member, size, expected=None):
    expected = member.size if expected is None else expected
    if size != expected:
        raise FormatError(f"member {member.path} has {size} bytes or more; expected {expected}")


def _write(source, folder, member):
    with open(folder / member.file, "xb") as target:
        copy(source, target, member)
        target.flush()
        os.fsync(target.fileno())


def copy(source, target, member):
    """Copy a stream, one byte further than `member.size` at most. Raises FormatError if size or sha256 differ."""
    digest, size = hashlib.sha256(), 0
    while chunk := source.read(min(CHUNK, member.size + 1 - size)):
        digest.update(chunk)
        target.write(chunk)
        size += len(chunk)
    _check_size(member, size)
    if digest.hexdigest() != member.sha256:
        raise FormatError(f"member {member.path} has sha256 {digest.hexdigest()}; expected {member.sha256}")
