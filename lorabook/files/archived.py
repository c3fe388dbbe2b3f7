"""Files read straight from a .zip (a wheel is one) or a .tar.gz, into memory and never further than stated sizes.

Only regular files that are asked for are read; nothing is written, so a name with `..` or a link does not matter.
"""

import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

from ..errors import FormatError, InputError

SIZE = 1 << 24  # bytes of one file
TOTAL = 1 << 27  # of all that are asked for; four times as many of a .tar.gz, which has to be read through
MALFORMED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    struct.error,
    EOFError,
    LookupError,
    RuntimeError,  # encrypted, or compressed in a way that is not known
    ValueError,
    OverflowError,
)


def files_in(path, wanted):
    """[(name, bytes)], sorted by name, of the files of an archive for whose names `wanted(name)` is true.

    Raises InputError if it cannot be read; FormatError if it is damaged, or what is wanted is larger than is allowed.
    """
    path = Path(path)
    try:
        found = (_of_zip if zipfile.is_zipfile(path) else _of_tar)(path, wanted)
        return sorted(found)
    except InputError:
        raise
    except (*MALFORMED, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None and not path.is_file():
            raise InputError(f"cannot read {path}: {error.strerror}") from None
        raise FormatError(f"{path} is no intact archive ({type(error).__name__}); expected a .zip or .tar.gz") from None


def _of_zip(path, wanted):
    total = 0
    with zipfile.ZipFile(path) as opened:
        for info in opened.infolist():
            if not info.is_dir() and wanted(info.filename):
                with opened.open(info) as file:
                    total += len(data := file.read(SIZE + 1))
                _check(path, info.filename, len(data), total)
                yield info.filename, data


def _of_tar(path, wanted):
    total, passed = 0, 0
    with tarfile.open(path, "r:gz") as opened:
        for info in opened:
            passed += max(0, info.size)
            if info.size < 0 or passed > 4 * TOTAL:
                raise FormatError(f"{path} unpacks to more than {4 * TOTAL:,} bytes; expected a smaller archive")
            if info.isreg() and not info.issparse() and wanted(info.name):
                with opened.extractfile(info) as file:
                    total += len(data := file.read(SIZE + 1))
                _check(path, info.name, len(data), total)
                yield info.name, data


def _check(path, name, size, total):
    if size > SIZE or total > TOTAL:
        raise FormatError(f"{path}: {name} is too large; expected at most {SIZE:,} bytes, and {TOTAL:,} of all")
