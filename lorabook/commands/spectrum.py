"""`lorabook spectrum`: how compressible each weight matrix of a model is, at every rank."""

import textwrap
from pathlib import Path

from tqdm import tqdm

from ..errors import InputError
from ..files import CAUSAL_LMS, ENCODERS, format_table, output_folder, write_csv

HELP = "how compressible matrices are: singular values, and the error of every rank, as table, CSV and picture"
EXAMPLE = """lorabook spectrum minilm --layer layer.0.attention.self.query
  lorabook spectrum matrix.csv
  lorabook spectrum runs/mine             (an adapter folder: its updates B A)
  lorabook spectrum minilm runs/tuned     (two checkpoints: their difference)"""
SHARED = ("seed",)
NOTES = (
    "stable r: stable rank, sum of the squared singular values over the largest squared; 1: one direction has it all.",
    "r 90 %, 99 %: smallest rank that keeps this share of the squared norm.",
    "break-even: below this rank two factors B and A hold fewer numbers than the matrix.",
)
AT_HALF = "svd, activation_svd: error in the outputs at half rank; activation_svd weighs by the inputs."


def add_arguments(parser):
    """Options of the command."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help=f"mlp-digits, {', '.join((*ENCODERS, *CAUSAL_LMS))}, a Hugging Face or a PEFT adapter folder, or a "
        ".safetensors, .gguf, .npy, .npz, .csv or .tsv file",
    )
    parser.add_argument("tuned", nargs="?", metavar="TUNED", help="a second checkpoint: look at TUNED - MODEL")
    parser.add_argument("--layer", metavar="NAME", help="list the matrices of this name, or end of it; draw one thick")
    parser.add_argument(
        "--activations", metavar="FILE", help="inputs (N, d_in) of the matrices, .npy or .csv: adds activation_svd"
    )
    parser.add_argument(
        "--out", metavar="DIR", help="folder of spectrum.csv and spectrum.svg (default: runs/spectrum-MODEL)"
    )


def run(args):
    """Decompose every matrix; write the curves and their picture."""
    from ..linalg import find_layers
    from ..tasks import matrices_of, read_matrix, update_between

    if args.tuned:
        (matrices, notes), inputs = update_between(args.model, args.tuned), {}
    else:
        (matrices, inputs), notes = matrices_of(args.model, args.seed), []
    asked = find_layers(matrices, args.layer) if args.layer else list(matrices)
    if args.activations:
        X = read_matrix(args.activations)
        inputs = {name: X for name, W in matrices.items() if X.ndim == 2 and X.shape[1] == W.shape[1]}
        if not inputs:
            shapes = ", ".join(f"{n} {W.shape}" for n, W in list(matrices.items())[:8])
            raise InputError(f"{args.activations} has shape {X.shape}; expected (N, d_in) for one of {shapes}")
    with output_folder(args.out or f"runs/spectrum-{Path(args.tuned or args.model).resolve().stem}") as out:
        return _spectra(args, matrices, inputs, asked, notes, out)


def _spectra(args, matrices, inputs, asked, notes, out):
    from ..linalg import most_compressible, spectrum
    from .pictures import plotting_if_there

    plotting = plotting_if_there()
    curves, summaries = {}, {}
    for name, W in tqdm(matrices.items(), delay=2, disable=None, unit="matrix", leave=False):
        curves[name], summaries[name] = spectrum(name, W, inputs.get(name))
    shown = most_compressible([summaries[name] for name in asked])
    files = [str(out / "spectrum.csv")]
    rows = [row for curve in curves.values() for row in curve]
    empty = dict.fromkeys(max(rows, key=len))  # not every matrix has inputs
    write_csv(files[0], [empty | row for row in rows], args.command_line)
    wrote = f"wrote {files[0]}"
    if plotting:
        files.append(str(out / "spectrum.svg"))
        plotting.save(plotting.spectrum(curves, shown), files[1])
        wrote += f"\n      {files[1]} (thick: {shown})"
    if zero := [name for name, row in summaries.items() if not row["rank_90"]]:
        notes.append(f"zero everywhere: {', '.join(zero[:8])}{', ...' if len(zero) > 8 else ''}.")
    layers = [summaries[name] for name in asked]
    lines = [textwrap.fill(note, 79, subsequent_indent="  ") for note in (*_reading(layers), *notes)]
    text = "\n".join([_table(layers), "", *lines, "", wrote])
    return {"model": args.model, "tuned": args.tuned, "layers": layers, "shown": shown, "files": files}, text


def _reading(layers):
    """What the columns of the table say."""
    yield from NOTES
    if any("svd_output_error" in row["half"] for row in layers):
        yield AT_HALF


def _table(layers):
    columns = {
        "matrix": lambda row: row["layer"],
        "shape": lambda row: "{}x{}".format(*row["shape"]),
        "stable r": lambda row: f"{row['stable_rank']:.1f}",
        "r 90 %": lambda row: str(row["rank_90"]),
        "99 %": lambda row: str(row["rank_99"]),
        "break-even": lambda row: f"{row['break_even_rank']:.1f}",
    }
    if any("svd_output_error" in row["half"] for row in layers):
        columns |= {"svd": _error("svd_output_error"), "activation_svd": _error("activation_svd_output_error")}
    return format_table(layers, columns)


def _error(column):
    return lambda row: f"{100 * row['half'][column]:.1f} %" if column in row["half"] else ""
