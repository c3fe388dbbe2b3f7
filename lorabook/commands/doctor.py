"""`lorabook doctor`: what this machine computes with; with --backend, whether that computes what NumPy does."""

import os
import platform
import sys
import textwrap

from .. import hub
from ..backend import cuda_driver_version, cupy_wheel, get_xp, gpu_problem
from ..files import blas, format_table, version

HELP = "versions, BLAS, threads, GPU, which cupy wheel to install, what is cached; --backend cupy: the self-test"
EXAMPLE = """lorabook doctor --json
  lorabook doctor --backend cupy    (every function and a step of every model there, against NumPy)"""
SHARED = {
    "backend": {
        "choices": ("numpy", "cupy", "auto", "array_api_strict"),  # the last is what the tests have for a GPU
        "metavar": "{numpy,cupy,auto}",
        "help": "array library; one that is not NumPy is tested against it (default: LORABOOK_BACKEND, else numpy)",
    }
}
PACKAGES = ("lorabook", "numpy", "scipy", "matplotlib", "scikit-learn", "joblib", "safetensors", "threadpoolctl")
OPTIONAL = ("cupy-cuda12x", "cupy-cuda13x", "distributed", "mpi4py", "mpich", "torch", "transformers", "peft")

LEGEND = """float64, float32: largest difference in that dtype, relative to the largest entry. In float32
also abs: that difference; NumPy and here: milliseconds until the result is on the host"""


def add_arguments(parser):
    """No options of its own."""


def run(args):
    """Look, change nothing."""
    import scipy.linalg  # noqa: F401  # loads SciPy's own BLAS, so that it is listed beside NumPy's

    driver, problem = cuda_driver_version(), gpu_problem()
    result = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "packages": {name: version(name) for name in (*PACKAGES, *OPTIONAL)},
        "blas": blas(),
        "cuda": None if driver is None else f"{driver[0]}.{driver[1]}",
        "cupy_wheel": None if driver is None else cupy_wheel(driver),
        "gpu": problem or "works",
        "cache": str(hub.cache_folder()),
        "cached": {name: _cached(name) for name in hub.known()},
    }
    lines = [f"python        {result['python']} on {result['platform']}, {result['cores']} cores"]
    lines += [f"{name:<13} {result['packages'][name] or 'not installed'}" for name in PACKAGES]
    lines += [f"{name:<13} {v}" for name in OPTIONAL if (v := result["packages"][name])]
    lines += [
        f"BLAS          {b['library']} {b['version']} of {b['owner']}, {b['threads']} threads, {b['architecture']}"
        for b in result["blas"]
    ]
    gpu = f"{'no: ' if problem else ''}{result['gpu']}"
    lines += [textwrap.fill(f"GPU           {gpu}", 79, subsequent_indent=" " * 14)]
    unusable = args.backend == "cupy" and problem
    backend = None if unusable else get_xp(args.backend).__name__
    lines += [f"backend       {backend or 'cupy: cannot be used'}"]
    lines += [f"cache         {result['cache']}"]
    lines += [f"{name:<13} {state or 'not fetched'}" for name, state in result["cached"].items()]
    if backend not in (None, "numpy"):
        result["selftest"], tables = _selftest(args, backend)
        lines += ["", *tables]
    return result, "\n".join(lines)


def _selftest(args, backend):
    """({rows, summary}, lines) of the self-test; something wrong makes the exit code 1."""
    from ..bench import selftest, summary

    rows = selftest(backend, progress=True)
    told = summary(rows)
    lines = [*textwrap.wrap(f"self-test of {backend} against NumPy. {LEGEND}", 79), ""]
    names = list(dict.fromkeys((row["module"], row["name"]) for row in rows))
    by = {(row["module"], row["name"], row["dtype"]): row for row in rows}
    columns = {
        "float64": lambda name: _number(by[*name, "float64"]["rel"], ".0e"),
        "float32": lambda name: _number(by[*name, "float32"]["rel"], ".0e"),
        "abs": lambda name: _number(by[*name, "float32"]["abs"], ".0e"),
        "NumPy": lambda name: _number(by[*name, "float32"]["numpy_seconds"], ".2f", 1e3),
        "here": lambda name: _number(by[*name, "float32"]["seconds"], ".2f", 1e3),
    }
    for module in dict.fromkeys(module for module, _ in names):
        table = format_table([name for name in names if name[0] == module], {module: lambda name: name[1]} | columns)
        lines += [table, ""]
    wrong = [f"{row['module']}.{row['name']} in {row['dtype']}: {row['problem']}" for row in rows if not row["ok"]]
    lines += [f"{told['cases']} cases, {told['wrong']} of them wrong{':' if wrong else ''}", *wrong]
    if wrong:
        args.code = 1
        print(f"lorabook doctor: {told['wrong']} of {told['cases']} cases of the self-test are wrong", file=sys.stderr)
    return {"summary": told, "rows": rows}, lines


def _number(value, form, unit=1):
    return "failed" if value is None else format(unit * value, form)


def _cached(name):
    folder, damage = hub.cached(name)
    return f"damaged: {damage}" if damage else folder and str(folder)
