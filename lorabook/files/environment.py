"""What this machine computes with: versions, BLAS, threads. For checkpoints, CSV headers and `lorabook doctor`."""

import importlib.metadata
import platform
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_info


def version(package):
    """Installed version of a package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def blas():
    """[{owner, library, version, threads, architecture}] of the BLAS libraries loaded in this process, NumPy's first.

    The wheels of NumPy and SciPy bring one each; only NumPy's multiplies here, so only its state decides the bits.
    """
    found = [
        {
            "owner": Path(pool["filepath"]).parent.name.removesuffix(".libs"),
            "library": pool["internal_api"],
            "version": pool["version"],
            "threads": pool["num_threads"],
            "architecture": pool.get("architecture"),
        }
        for pool in threadpool_info()
        if pool["user_api"] == "blas"
    ]
    return sorted(found, key=lambda pool: (pool["owner"] != "numpy", pool["owner"]))


def snapshot():
    """What the bits of a result depend on; with another BLAS or thread count, results agree only up to rounding."""
    versions = {"lorabook": version("lorabook"), "python": platform.python_version(), "numpy": np.__version__}
    return versions | {"blas": blas()[:1]}


def summary():
    """What a chapter prints: the versions, and the BLAS on a line of its own. The header of a CSV joins them."""
    names = ("lorabook", "numpy", "scipy", "scikit-learn", "matplotlib")
    libraries = [f"{name} {version(name)}" for name in names]
    first = ", ".join([f"python {platform.python_version()}", *libraries])
    return ",\n".join([first, *(f"{pool['library']} {pool['version']}" for pool in blas()[:1])])
