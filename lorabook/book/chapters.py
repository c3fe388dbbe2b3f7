"""Build the chapters: notebooks/src/NN_name.py (py:percent, what is edited) -> notebooks/NN_name.ipynb (executed)."""

import base64
import io
import os
import signal
import subprocess
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from PIL import Image

from ..errors import InputError
from ..files import write_atomic

ROOT = Path(__file__).parents[2] / "notebooks"
FOLDED = ("jupyter", "tags")  # what of a cell's metadata is kept: it says that a cell opens folded


def sources(names=()):
    """The sources of the named chapters ("01", "01_low_rank") and their solutions; of all chapters if none is named."""
    found = sorted((ROOT / "src").glob("[0-9]*.py")) + sorted((ROOT / "src" / "solutions").glob("[0-9]*.py"))
    if not found:
        raise InputError(
            f"no chapters in {ROOT / 'src'}; run this command in a checkout installed with pip install -e ."
        )
    for name in names:
        if not any(path.stem.startswith(name) for path in found):
            raise InputError(f"no chapter {name!r}; expected one of {', '.join(dict.fromkeys(p.stem for p in found))}")
    return [path for path in found if not names or any(path.stem.startswith(name) for name in names)]


def target(source):
    """Where the notebook of a source goes: notebooks/, or notebooks/solutions/."""
    folder = ROOT / "solutions" if source.parent.name == "solutions" else ROOT
    return folder / f"{source.stem}.ipynb"


def read_source(source):
    """The unexecuted notebook of a py:percent source, with cell ids that stay the same from build to build."""
    notebook = jupytext.read(source, fmt="py:percent")
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        cell.metadata = nbformat.from_dict({key: cell.metadata[key] for key in FOLDED if key in cell.metadata})
    return notebook


def build(source, timeout=300):
    """Execute one chapter from top to bottom and write its notebook; if a cell fails, the old notebook stays."""
    notebook = read_source(source)
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")  # or the debugger warns into the outputs
    where = {"metadata": {"path": str(ROOT)}}
    client = NotebookClient(
        notebook,
        timeout=timeout,
        record_timing=False,
        coalesce_streams=True,  # or where a cell's text is cut would depend on when the kernel sends it
        resources=where,
    )
    handlers = {kind: signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)}
    try:
        client.execute(stderr=subprocess.DEVNULL)  # the kernel's own words; what a cell prints is in the notebook
    except CellExecutionError as error:
        raise RuntimeError(f"chapter {source.stem} failed:\n{error}") from None
    except Exception:
        if hasattr(client, "_async_cleanup_kernel_future"):  # nbclient has stopped the kernel at a signal, and trips
            raise KeyboardInterrupt from None
        raise
    finally:
        for kind, handler in handlers.items():  # nbclient puts its own there, and takes away what was
            signal.signal(kind, handler)
    shrink_pictures(notebook)
    notebook.metadata["language_info"] = {"name": "python"}  # the exact Python version would differ on every machine
    target(source).parent.mkdir(exist_ok=True)
    write_atomic(target(source), nbformat.writes(notebook) + "\n")
    return target(source)


def shrink_pictures(notebook):
    """Reduce the PNG outputs to 64 colours, in place: a third of the size, and no difference to the eye in a plot."""
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        if png := output.get("data", {}).get("image/png"):
            picture, small = Image.open(io.BytesIO(base64.b64decode(png))), io.BytesIO()
            picture.convert("RGB").quantize(64, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
            output["data"]["image/png"] = base64.b64encode(small.getvalue()).decode()
