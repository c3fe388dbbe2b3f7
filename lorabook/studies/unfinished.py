"""A sweep that is not finished yet: what it has so far, in the folder OUT/unfinished, so that a killed run goes on.

    rows.safetensors        a checkpoint without arrays: what defines the run, and its rows, exactly
    rank_vs_error.csv       the same rows, to look at
    full-SEED.safetensors   all parameters that full fine-tuning changed; rows to come need them

What stands beside the folder is of a finished sweep, and stays until this one is finished too.
"""

import contextlib
from pathlib import Path

from ..errors import FormatError, InputError, printable
from ..files import cut, prepare_folder, read_checkpoint, short, sweep_temporaries, write_checkpoint, write_csv
from ..parallel import fingerprint
from .rank_rows import COLUMNS
from .sweep import METHODS, Kept

NUMBERS = (int, type(None))  # a rank, or none
FOLDER, ROWS, TABLE = "unfinished", "rows.safetensors", "rank_vs_error.csv"
WIDTH = 100  # characters of a value in an error


class Unfinished(Kept):
    """`Kept`, written through to a folder."""

    def __init__(self, out, run, command):
        """Take up the rows that are in out/unfinished already.

        run: {what: JSON-able} that decides every row but for its method, rank and seed; to it come code, libraries and
        processor, on which the bits depend. Raises InputError, by name, if the rows there are of another run. command:
        for the header of the CSV.
        """
        super().__init__()
        self.folder, self.command = Path(out) / FOLDER, command
        self.run = {name: printable(value) for name, value in (run | fingerprint()).items()}
        if self.folder.is_dir():
            sweep_temporaries(self.folder)  # the caller holds the lock of `out`
        if (path := self.folder / ROWS).exists():
            _, state = read_checkpoint(path)
            self._check(path, state)
            self.rows = _rows(path, state)

    def add(self, rows):
        """More rows, written before this returns."""
        super().add(rows)
        prepare_folder(self.folder)
        write_checkpoint(self.folder / ROWS, {}, {"run": self.run, "rows": self.rows})
        write_csv(self.folder / TABLE, self.rows, self.command)

    def add_full(self, seed, arrays):
        """{name: array} of all parameters that full fine-tuning changed."""
        prepare_folder(self.folder)
        write_checkpoint(self._path(seed), arrays, {"run": self.run})

    def has_full(self, seed):
        """Whether they are there."""
        return self._path(seed).exists()

    def full(self, seed):
        """Those arrays."""
        arrays, state = read_checkpoint(self._path(seed))
        self._check(self._path(seed), state)
        return arrays

    def remove(self):
        """Remove the folder: the sweep is finished, and its results are written."""
        for path in (self.folder / ROWS, self.folder / TABLE, *self.folder.glob("full-*.safetensors")):
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # something of the user's is in it, or there never was one
            self.folder.rmdir()

    def _path(self, seed):
        return self.folder / f"full-{seed}.safetensors"

    def _check(self, path, state):
        """Raise InputError unless a file here is of this run."""
        came = state.get("run") if isinstance(state, dict) else None
        if not isinstance(came, dict) or not all(isinstance(value, str) for value in came.values()):
            raise FormatError(f"{path} does not say of which sweep it is; delete {self.folder} to start anew")
        other = [name for name in self.run | came if came.get(name) != self.run.get(name)]
        if other:
            values = came.get(other[0]), self.run.get(other[0])
            digests = all(value is not None and len(value) == 64 for value in values)  # say nothing to a reader
            was, here = (cut(str(value), WIDTH) for value in values)
            what = "differs from what is here" if digests else f"was {was}, here it is {here}"
            raise InputError(
                f"{self.folder} holds a sweep that was cut off, and not this one: its {cut(other[0], WIDTH)} {what}. "
                "Give the same options to go on with it, or choose another --out, or delete that folder"
            )


def _rows(path, state):
    """The rows in the state of a checkpoint, each with the columns of a sweep and numbers in them."""
    rows = state.get("rows")
    for row in rows if isinstance(rows, list) else [None]:
        right = isinstance(row, dict) and set(row) == set(COLUMNS) and row["method"] in METHODS
        if not right or not all(type(row[c]) in (int, float) for c in COLUMNS[2:]) or type(row["r"]) not in NUMBERS:
            raise FormatError(f"{path} holds what is no row of a sweep: {short(row)}")
    return [{column: row[column] for column in COLUMNS} for row in rows]
