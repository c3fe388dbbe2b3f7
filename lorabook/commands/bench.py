"""`lorabook bench`: time and peak memory, side by side in one run."""

import contextlib
import textwrap
from pathlib import Path

from ..backend import get_xp
from ..errors import InputError
from ..files import ENCODERS, format_table, output_folder, require, write_csv
from ..quantization import FORMATS
from .arguments import integer

HELP = "time and peak memory: of a step, beside PEFT or full fine-tuning, and beside what the machine can multiply"
EXAMPLE = "lorabook bench step --model minilm --batch-size 16 --seq-len 128 --r 8 --vs peft"
SHARED = ("seed", "backend")
SHAPE, BLOCK = {"batch_size": 16, "seq_len": 128}, {"batch_size": 4, "seq_len": 512}
SHAPES = {"block-1024": BLOCK, "smollm2": {"batch_size": 4, "seq_len": 128}}
GEMM = {"model": ENCODERS[0], "r": 8, "target_modules": ["all-linear"], "threads": 2, "tf32": False, "runs": 5}
GEMM |= dict.fromkeys(SHAPE)  # None: as SHAPE or SHAPES says
OPTIONS = {  # what is measured: its options with their defaults
    "gemm": GEMM,
    "step": GEMM | {"runs": 15, "vs": None, "scaling": False, "base_dtype": "float32", "recompute": False},
    "forward": GEMM | {"runs": 15, "vs": None},
    "generate": {"model": "smollm2", "batch_size": 1, "seq_len": 128, "new_tokens": 64, "threads": 2, "runs": 7}
    | {"base_dtype": "float32", "vs": None},
    "predict": {
        "model": ENCODERS[0],
        "data": "movie-reviews",
        "texts": 1000,
        "batch_size": 16,
        "seq_len": 128,
        "r": 8,
        "threads": 2,
    }
    | {"target_modules": ["query", "value"], "runs": 7, "vs": None},
    "sweep": {"jobs": -1, "ranks": [1, 2, 4, 8, 16, 32, 64], "seeds": 2, "epochs": 60, "runs": 3},
}
WHAT = """gemm: the matrix products of a step alone, the ceiling; step: forward, backward and AdamW; forward: inference
with the adapters merged; generate: a prompt continued greedily; predict: from texts to probabilities;
sweep: the rank sweep on digits in one process and in several. float32, no dropout"""


def add_arguments(parser):
    """Options of the command. Their defaults are in OPTIONS, so that an option without meaning here is noticed."""
    parser.add_argument("what", choices=list(OPTIONS), help=WHAT)

    def option(name, text, **kwargs):
        parser.add_argument(f"--{name}", default=None, help=text, **kwargs)

    known = f"{ENCODERS[0]} (default), block-1024 or smollm2 (random weights of their sizes, no download)"
    option("model", f"{known}, or a Hugging Face folder with an encoder")
    option("data", "predict: texts, movie-reviews (default) or a file as of `lorabook predict`", metavar="FILE")
    option("texts", "predict: how many of them (default: 1000)", type=integer(1), metavar="N")
    option(
        "batch-size", "texts (default: 16; of block-1024 and smollm2 4, of generate 1)", type=integer(1), metavar="B"
    )
    option("seq-len", "tokens a text (default: 128; of block-1024 512)", type=integer(1), metavar="T")
    option("r", "rank (default: 8)", type=integer(1, 2**16))
    option("target-modules", "(default: all-linear; of predict query value)", nargs="+", metavar="NAME")
    option("threads", "threads of each side (default: 2)", type=integer(1, 1024), metavar="N")
    option("tf32", "both sides multiply in TF32 (cupy only)", action="store_true")
    option("new-tokens", "generate: that follow on seq-len tokens (default: 64)", type=integer(1), metavar="N")
    option("base-dtype", "smollm2: of lorabook's frozen weights (default: float32)", choices=["float32", *FORMATS])
    option("recompute", "smollm2: lorabook keeps of each block its input alone", action="store_true")
    option("runs", "turns that count (default: 15; gemm 5, generate, predict 7, sweep 3)", type=integer(1), metavar="N")
    option(
        "vs",
        "the other side of step, forward, generate, predict; peft needs the extra `oracle`, ranks (one a thread) `mpi`",
        choices=["peft", "full", "ranks"],
    )
    option("scaling", "step: how it grows with batch, sequence, rank and adapted matrices", action="store_true")
    option(
        "jobs",
        "sweep: processes to compare with one; -1: one per core (default)",
        type=integer(1, 1024, -1),
        metavar="N",
    )
    option("ranks", "sweep: as of `lorabook sweep`", type=integer(1), nargs="+", metavar="R")
    option("seeds", "sweep: runs of each method (default: 2)", type=integer(1, 1000), metavar="N")
    option("epochs", "sweep: epochs of each run (default: 60)", type=integer(1), metavar="N")
    parser.add_argument("--out", metavar="FILE.csv", help="also write the numbers as CSV")


def run(args):
    """Measure, print, and write the CSV if asked."""
    options = _options(args)
    if args.out and Path(args.out).suffix != ".csv":
        raise InputError(f"--out must be a file whose name ends in .csv; got {args.out}")
    if options.get("vs") == "peft":
        require("oracle", "--vs peft", "torch", "transformers", "peft")
    with output_folder(Path(args.out).parent) if args.out else contextlib.nullcontext():
        result, rows, text = {"gemm": _gemm, "predict": _predict, "sweep": _sweep}.get(args.what, _step)(args, options)
        if args.out:
            write_csv(args.out, rows, args.command_line)
            text += f"\n\nwrote {args.out}"
    return result, text


def _options(args):
    """The options of args.what: what was given, else the default. InputError for one that means nothing there."""
    own, every = OPTIONS[args.what], {name for options in OPTIONS.values() for name in options}
    if idle := sorted(name for name in every - own.keys() if getattr(args, name) is not None):
        raise InputError(f"bench {args.what} has no option --{idle[0].replace('_', '-')}")
    return {name: default if getattr(args, name) is None else getattr(args, name) for name, default in own.items()}


def _case(args, options):
    from ..bench import SEVEN, SIX, Case

    shape, decodes = SHAPES.get(options["model"], SHAPE), options["model"] == "smollm2"
    options = {"tf32": False} | options | {name: value for name, value in shape.items() if options[name] is None}
    if options.get("target_modules", ["all-linear"]) == ["all-linear"]:
        options["target_modules"] = SEVEN if decodes else SIX
    backend = get_xp(args.backend).__name__
    if options["tf32"] and backend != "cupy":
        raise InputError("--tf32 is a way of GPUs to multiply; it needs --backend cupy")
    fields = {name: options[name] for name in options if name in Case.__dataclass_fields__}
    if decodes and (backend != "numpy" or options.get("scaling")):
        raise InputError("bench measures decoders with --backend numpy, and without --scaling")
    what = args.what if args.what in ("forward", "generate") else "step"
    return Case(what, **fields, backend=backend, seed=args.seed)


# ---- step and forward ------------------------------------------------------------------------------------------------

LABELS = {"lorabook": "lorabook", "ranks": "MPI ranks", "full": "full fine-tuning", "peft": "PEFT"}
WAYS = {"one": "1 thread", "blas": "BLAS", "shards": "shards", "device": "GPU"}


def _step(args, options):
    from ..bench import compare, rows, scaling

    case = _case(args, options)
    if case.what != "step" and options["vs"] in ("full", "ranks"):
        raise InputError(f"--vs {options['vs']} is for bench step: merged, the two sides compute the same")
    if case.backend != "numpy" and options["vs"] == "ranks":
        raise InputError("--vs ranks is about processors; pass --backend numpy")
    if options.get("scaling"):
        tidy = scaling(case, options["runs"], options["vs"], progress=True)
        return {"rows": tidy}, tidy, f"{_title(case, tidy[0])}\n\n{_scaling_table(tidy)}"
    result = compare(case, options["runs"], options["vs"], progress=True)
    return result, rows(result), f"{_title(case, result)}\n\n{_table(result)}\n{_ceiling(result)}"


def _title(case, result):
    """What was measured, and on what; result: a dict with machine and versions."""
    what = {"forward": "inference, merged LoRA", "generate": f"{case.new_tokens} new tokens"}.get(case.what, "one step")
    base = "" if case.base_dtype == "float32" else f"; lorabook's base in {case.base_dtype}"
    base += "; blocks recomputed" if case.recompute else ""
    where = f"{case.threads} threads" if case.backend == "numpy" else "GPU, TF32" if case.tf32 else "GPU"
    lines = (
        f"{what}: {Path(case.model).name}, {case.batch_size} x {case.seq_len} tokens, r {case.r}",
        f"{case.targets}; {where}{base}",
        f"{result['machine']}; {result['versions']}",
    )
    return "\n".join(textwrap.fill(line, 79) for line in lines)


def _table(result):
    sides = [name for name in LABELS if name in result]
    rows = [{"": LABELS[name]} | result[name] for name in sides]
    columns = {
        "": lambda row: row[""],
        "median s": lambda row: _seconds(row["median"]),
        "min s": lambda row: _seconds(row["min"]),
        "peak MB": lambda row: f"{row['peak_mb']:.0f}",
        "of ceiling": lambda row: f"{100 * row['gemm_share']:.0f} %",
    }
    text = format_table(rows, columns)
    if result["vs"]:
        time, memory = (f"{result[name]:.3f}" for name in ("time_ratio", "memory_ratio"))
        text += f"\n\nlorabook over {LABELS[result['vs']]}:\n"
        text += f"time ratio {time} (median of the turns'), memory ratio {memory}"
    if result["what"] == "generate":
        tokens = result["batch_size"] * result["new_tokens"]
        rates = (f"{LABELS[name]} {tokens / result[name]['median']:.1f}" for name in sides)
        text += f"\n\nnew tokens a second, the pass over the prompt included: {', '.join(rates)}"
    return f"{text}\n\nOf ceiling: the share that the products alone would take, in their fastest way:"


def _ceiling(result):
    """The table of what a step's products take alone."""
    columns = {
        "the products alone": lambda method: {"lora": "LoRA", "full": "full fine-tuning"}[method],
        "GFLOP": lambda method: f"{result['gflop'][method]:.1f}",
    }
    for way in next(iter(result["gemm"].values())):
        columns[f"{WAYS[way]}, s"] = lambda method, way=way: _seconds(result["gemm"][method][way])
    return format_table(list(result["gemm"]), columns)


def _scaling_table(rows):
    columns = {
        "varied": lambda row: row["varied"],
        "value": lambda row: str(row["value"]),
        "side": lambda row: LABELS[row["side"]],
        "median s": lambda row: _seconds(row["median"]),
        "peak MB": lambda row: f"{row['peak_mb']:.0f}",
        "of ceiling": lambda row: f"{100 * row['gemm_share']:.0f} %",
    }
    return format_table(rows, columns)


def _seconds(s):
    return f"{s:.3f}" if s >= 0.1 else f"{s:.5f}"


# ---- predict ---------------------------------------------------------------------------------------------------------


def _predict(args, options):
    from ..bench import AnswersCase, answer_rows, compare_answers

    if get_xp(args.backend).__name__ == "cupy":
        raise InputError("bench predict measures processors; pass --backend numpy")
    if options["vs"] not in (None, "peft"):
        raise InputError(f"--vs {options['vs']} is for bench step: predict is compared with peft")
    case = AnswersCase("predict", seed=args.seed, **{n: v for n, v in options.items() if n not in ("runs", "vs")})
    result = compare_answers(case, options["runs"], options["vs"], progress=True)
    columns = {
        "": lambda name: LABELS[name],
        "median s": lambda name: _seconds(result[name]["median"]),
        "min s": lambda name: _seconds(result[name]["min"]),
        "peak MB": lambda name: f"{result[name]['peak_mb']:.0f}",
    }
    size = f"{case.texts:,} texts of {Path(case.data).name}, {case.batch_size} at a time, {case.threads} threads"
    title = [f"from texts to probabilities: {Path(case.model).name}, {size}"]
    title += [f"{result['machine']}; {result['versions']}"]
    text = "\n".join(textwrap.fill(line, 79) for line in title)
    text += "\n\n" + format_table([name for name in ("lorabook", "peft") if name in result], columns)
    if result["vs"]:
        time, memory = (f"{result[name]:.3f}" for name in ("time_ratio", "memory_ratio"))
        text += f"\n\nlorabook over PEFT's merged model in transformers:\ntime ratio {time} "
        text += f"(median of the turns'), memory ratio {memory}"
    text += f"\n\n`lorabook predict --text` from start to end: {result['first_seconds']:.2f} s"
    return result, answer_rows(result), text


# ---- gemm and sweep --------------------------------------------------------------------------------------------------


def _gemm(args, options):
    from ..bench import KINDS, ceiling

    case = _case(args, options)
    result = ceiling(case, options["runs"])
    ways = list(result["rows"][0]["gflops"])
    columns = {
        "product": lambda row: f"{row['kind']:<8}{KINDS[row['kind']]}",
        "rows N": lambda row: str(row["N"]),
        "d_in": lambda row: str(row["d_in"]),
        "d_out": lambda row: str(row["d_out"]),
        "LoRA": lambda row: str(row["lora"]),
        "full": lambda row: str(row["full"]),
    } | {f"{WAYS[way]}": lambda row, way=way: f"{row['gflops'][way]:.1f}" for way in ways}
    reading = "LoRA, full: how often a step has this product; last columns: GFLOP/s."
    if "blas" in ways:
        reading += (
            f"\nBLAS: one product after another on {case.threads} BLAS threads; shards: the rows divided\n"
            "among as many Python threads with one BLAS thread each."
        )
    text = f"{_title(case, result)}\n\n{format_table(result['rows'], columns)}\n\n{reading}\n\n{_ceiling(result)}"
    shared = {name: result[name] for name in ("model", "batch_size", "seq_len", "threads", "backend", "tf32")}
    tidy = [
        shared
        | {name: row[name] for name in ("kind", "N", "d_in", "d_out", "lora", "full")}
        | {"way": way, "gflops": rate, "machine": result["machine"], "versions": result["versions"]}
        for row in result["rows"]
        for way, rate in row["gflops"].items()
    ]
    return result, tidy, text


def _sweep(args, options):
    from ..bench import machine, sweep_jobs, versions

    if get_xp(args.backend).__name__ == "cupy":
        raise InputError("bench sweep compares processes, which cannot share one GPU; use --backend numpy")
    result = sweep_jobs(**options, progress=True) | {"machine": machine(), "versions": versions()}
    tidy = [
        {"jobs": jobs, "seeds": result["seeds"], "epochs": result["epochs"], "runs": result["runs"]}
        | result[name]
        | {"time_ratio": result[name]["median"] / result["one"]["median"]}
        | {"machine": result["machine"], "versions": result["versions"]}
        for jobs, name in ((1, "one"), (result["jobs"], "many"))
    ]
    columns = {
        "processes": lambda row: str(row["jobs"]),
        "median s": lambda row: _seconds(row["median"]),
        "min s": lambda row: _seconds(row["min"]),
        "ratio": lambda row: f"{row['time_ratio']:.3f}",
    }
    title = f"rank sweep on rotated digits: ranks {', '.join(map(str, result['ranks']))}; seeds: {result['seeds']}"
    return result, tidy, f"{title}\n{result['machine']}\n\n{format_table(tidy, columns)}"
