"""`lorabook doctor`: what this machine computes with."""

import os
import platform
import textwrap

from .. import hub
from ..backend import cuda_driver_version, cupy_wheel, get_xp, gpu_problem
from ..environment import blas, version

HELP = "versions, BLAS, threads, GPU, which cupy wheel to install, what is cached"
EXAMPLE = "lorabook doctor --json"
SHARED = ("backend",)
PACKAGES = ("lorabook", "numpy", "scipy", "matplotlib", "scikit-learn", "joblib", "safetensors", "threadpoolctl")
OPTIONAL = ("cupy-cuda12x", "cupy-cuda13x", "distributed", "mpi4py", "mpich", "torch", "transformers", "peft")


def add_arguments(parser):
    """No options of its own."""


def run(args):
    """Look, touch nothing."""
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
    lines += [f"backend       {'cupy: cannot be used' if unusable else get_xp(args.backend).__name__}"]
    lines += [f"cache         {result['cache']}"]
    lines += [f"{name:<13} {state or 'not fetched'}" for name, state in result["cached"].items()]
    return result, "\n".join(lines)


def _cached(name):
    folder, damage = hub.cached(name)
    return f"damaged: {damage}" if damage else folder and str(folder)
