"""One run a folder: a lock that lives exactly as long as the run that writes there.

The system holds it, on an open file: it ends with its process, however that ends, and a file that a killed run leaves
locks nothing. A process that is forked meanwhile does not keep it.
"""

import contextlib

import filelock

from ..errors import InputError
from .atomic import prepare_folder, sweep_temporaries

LOCK = ".lorabook.lock"


@contextlib.contextmanager
def output_folder(path):
    """Context of the folder `path`, created with its parents, which no other run writes to meanwhile.

    What a killed run left half-written is removed. Raises InputError if the folder is another run's or cannot be
    written to.
    """
    folder = prepare_folder(path)
    with folder_lock(folder):
        sweep_temporaries(folder)
        yield folder


@contextlib.contextmanager
def folder_lock(folder):
    """Context in which no other process and no other thread holds the lock of this folder, which must exist."""
    lock = filelock.FileLock(folder / LOCK, blocking=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise InputError(f"another run writes to {folder}; wait until it ends, or choose another --out") from None
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"cannot lock the output folder {folder}: {reason}. Choose one on a local disk with --out"
        ) from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows: an open file stays; filelock removes it when it lets go
            if not (folder / LOCK).stat().st_size:  # ours is empty
                (folder / LOCK).unlink()
        lock.release()
