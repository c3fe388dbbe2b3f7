"""`lorabook spectrum`: how compressible each weight matrix of a model is, at every rank."""

import contextlib
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..io import read_safetensors
from ..locks import output_folder
from ..low_rank import (
    activation_factor,
    break_even_rank,
    check_matrix,
    energy_rank,
    output_errors,
    rank_errors,
    stable_rank,
    svd,
    truncate_for_inputs,
)
from ..tables import format_table, write_csv

HELP = "how compressible a model's matrices are: singular values, truncation errors at every rank (with --out)"
EXAMPLE = "lorabook spectrum mlp-digits --layer fc2 --out runs/spectrum"
SHARED = ("seed",)


def add_arguments(parser):
    """Options of the command."""
    parser.add_argument(
        "model", metavar="MODEL", help="mlp-digits, a .safetensors file, a folder with one, or a .npy matrix"
    )
    parser.add_argument("--layer", metavar="NAME", help="one matrix, by name or the end of it (default: all)")
    parser.add_argument(
        "--activations", metavar="FILE.npy", help="inputs (N, d_in) of the matrices, for activation-aware errors"
    )
    parser.add_argument(
        "--out", metavar="DIR", help="write spectrum.csv, and spectrum.svg of the matrix with the most rows"
    )


def run(args):
    """Decompose every matrix; write files only if asked to."""
    matrices, inputs = _load(args.model, args.seed)
    if args.layer:
        matrices = {n: W for n, W in matrices.items() if _named(n, args.layer)} or _no_layer(args.layer, matrices)
    if args.activations:
        X = load_npy(args.activations)
        inputs = {name: X for name, W in matrices.items() if X.ndim == 2 and X.shape[1] == W.shape[1]}
        if not inputs:
            shapes = ", ".join(f"{n} {W.shape}" for n, W in matrices.items())
            raise InputError(f"{args.activations} has shape {X.shape}; expected (N, d_in) for one of {shapes}")
    with output_folder(args.out) if args.out else contextlib.nullcontext() as out:
        return _spectra(args, matrices, inputs, out)


def _spectra(args, matrices, inputs, out):
    summaries, curves = [], {}
    for name, W in matrices.items():
        check_matrix(W, name)
        curves[name], s = _curves(name, W.astype("f8"), inputs.get(name))
        summaries.append(
            {
                "layer": name,
                "shape": list(W.shape),
                "stable_rank": stable_rank(s),
                "rank_90": energy_rank(s, 0.9),
                "rank_99": energy_rank(s, 0.99),
                "break_even_rank": break_even_rank(*W.shape),
                "half": curves[name][min(W.shape) // 2],
            }
        )
    notes = ["r 90 %, 99 %: smallest rank that keeps this share of the squared norm."]
    if any("output_error" in row["half"] for row in summaries):
        notes.append("plain, aware: error in the outputs at half rank, of plain and of\nactivation-aware truncation.")
    text, files = "\n".join([_table(summaries), "", *notes]), []
    if out:
        from .. import plotting

        shown = max(curves, key=lambda name: len(curves[name]))
        write_csv(out / "spectrum.csv", [row for rows in curves.values() for row in rows], args.command_line)
        plotting.save(plotting.spectrum(curves[shown], shown), out / "spectrum.svg")
        files = [str(out / "spectrum.csv"), str(out / "spectrum.svg")]
        text += f"\n\nwrote {files[0]}\n      {files[1]} ({shown})"
    return {"model": args.model, "layers": summaries, "files": files}, text


def _curves(name, W, X):
    """Rows {layer, r, singular_value, weight_error, ...} for r = 0 .. n, errors relative to rank 0; and s."""
    s = svd(W)[1]
    if s[0] == 0:
        raise InputError(f"{name} is zero everywhere: it has no spectrum")
    columns = {"singular_value": [None, *s.tolist()], "weight_error": rank_errors(s) / rank_errors(s)[0]}
    if X is not None:
        R = activation_factor([X.astype("f8")])
        plain, aware = output_errors(W, R), truncate_for_inputs(W, R).errors
        columns |= {"output_error": plain / plain[0], "activation_output_error": aware / plain[0]}
    rows = [{"layer": name, "r": r} | {c: _float(v[r]) for c, v in columns.items()} for r in range(len(s) + 1)]
    return rows, s


def _float(value):
    return None if value is None else float(value)


def _table(summaries):
    columns = {
        "matrix": lambda row: row["layer"],
        "shape": lambda row: "{} x {}".format(*row["shape"]),
        "stable r": lambda row: f"{row['stable_rank']:.1f}",
        "r 90 %": lambda row: str(row["rank_90"]),
        "99 %": lambda row: str(row["rank_99"]),
        "break-even": lambda row: f"{row['break_even_rank']:.1f}",
    }
    if all("output_error" in row["half"] for row in summaries):
        columns |= {
            "plain": lambda row: f"{100 * row['half']['output_error']:.1f} %",
            "aware": lambda row: f"{100 * row['half']['activation_output_error']:.1f} %",
        }
    return format_table(summaries, columns)


def _named(name, layer):
    stem = name.removesuffix(".weight")
    return layer in (name, stem) or stem.endswith(f".{layer}")


def _no_layer(layer, matrices):
    raise InputError(f"no matrix is called {layer!r}; expected one of {', '.join(list(matrices)[:8])}")


def _load(model, seed):
    """({name: 2-D weight}, {name: its inputs (N, d_in), where known}) of a model by name or path."""
    if model == "mlp-digits":
        from ..data import digits
        from ..pretrain import pretrained_mlp

        task = digits(seed=seed)
        mlp = pretrained_mlp(task, seed=seed)
        weights = {name: W for name, W in mlp.named_params().items() if W.ndim == 2}
        return weights, {f"{path}.weight": x for path, x in mlp.inputs_of(task.x_train).items()}
    path = Path(model)
    if path.is_dir():
        found = sorted(p.name for p in path.glob("*.safetensors"))
        if "model.safetensors" not in found and len(found) != 1:
            raise InputError(f"{path} must hold model.safetensors, or one .safetensors file; found {found or 'none'}")
        path = path / ("model.safetensors" if "model.safetensors" in found else found[0])
    if not path.is_file():
        raise InputError(
            f"{path} is no file; expected mlp-digits, a .safetensors file, a folder with one, or a .npy file"
        )
    if path.suffix == ".npy":
        return {path.stem: load_npy(path)}, {}
    if path.suffix != ".safetensors":
        raise InputError(f"{path}: expected a .safetensors or a .npy file")
    tensors, _ = read_safetensors(path)
    matrices = {n: W for n, W in tensors.items() if W.ndim == 2 and W.dtype.kind == "f"}
    if not matrices:
        raise InputError(
            f"{path} holds no 2-D floating-point tensor; found {', '.join(list(tensors)[:8]) or 'nothing'}"
        )
    return matrices, {}


def load_npy(path):
    """A floating-point array from a .npy file, mapped: a header that promises more than the file holds is refused."""
    if Path(path).suffix != ".npy":
        raise InputError(f"{path}: expected a .npy file, as numpy.save writes it")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, OverflowError) as error:
        raise InputError(f"cannot read {path} as a .npy array: {error}") from None
    if array.dtype.kind != "f":
        raise InputError(f"{path} holds {array.dtype}; expected floating-point numbers")
    return array
