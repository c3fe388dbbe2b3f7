"""Which large files had the right sha256 when they were last read whole, so that not every call reads 90 MB again.

A stamp is what the system says about a file: its size, inode, and the times of its last change. Whoever writes to a
file changes the latter, and cannot set it (st_ctime; on Windows only st_mtime tells), so a file with another stamp is
read again. Stamps lie in the cache folder; without them, or where they cannot be written, every call reads.
"""

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path

from ..files import write_atomic

STAMPS = "verified.json"
SMALL = 1 << 21  # bytes; a file up to this size is read each time: it takes milliseconds
SETTLED = 2.0  # seconds since the last change: a later one within the clock's grain might leave no trace (FAT: 2 s)


def sha256_of(path, cache, again=False):
    """sha256 (hexadecimal) of a file: the one remembered in the folder `cache`, if the file has not changed since.

    again: read it, whatever is remembered. Raises OSError if it cannot be read.
    """
    key = os.fspath(Path(path).absolute())
    remembered, stamp = _read(cache), _stamp(path)
    if not again and remembered.get(key, [])[:-1] == stamp:
        return remembered[key][-1]
    with open(path, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    settled = time.time() - max(stamp[-2:]) / 1e9 > SETTLED
    if stamp[0] > SMALL and settled and _stamp(path) == stamp:  # it did not change meanwhile
        kept = {name: value for name, value in remembered.items() if os.path.exists(name)}
        with contextlib.suppress(OSError):
            write_atomic(Path(cache) / STAMPS, json.dumps(kept | {key: [*stamp, sha256]}, indent=2) + "\n")
    return sha256


def _stamp(path):
    status = os.stat(path)
    return [status.st_size, status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns]


def _read(cache):
    """{path: [*stamp, sha256]}; whatever cannot be one is as if it were not there."""
    try:
        content = json.loads((Path(cache) / STAMPS).read_bytes())
        return {name: value for name, value in content.items() if isinstance(value, list) and len(value) == 6}
    except (OSError, ValueError, RecursionError, AttributeError):
        return {}
