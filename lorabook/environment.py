"""What this machine computes with: versions, BLAS, threads. For checkpoints, CSV headers and `lorabook doctor`."""

import importlib.metadata
import platform

import numpy as np
from threadpoolctl import threadpool_info


def version(package):
    """Installed version of a package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def blas():
    """[{library, version, threads, architecture}] of the BLAS libraries loaded in this process."""
    return [
        {
            "library": i["internal_api"],
            "version": i["version"],
            "threads": i["num_threads"],
            "architecture": i.get("architecture"),
        }
        for i in threadpool_info()
        if i["user_api"] == "blas"
    ]


def environment():
    """What the bits of a result depend on; with another BLAS or thread count, results agree only up to rounding."""
    return {
        "lorabook": version("lorabook"),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "blas": blas()[:1],
    }


def summary():
    """One line for the header of a CSV."""
    first = next(iter(blas()), {"library": "unknown BLAS", "version": ""})
    names = ("lorabook", "numpy", "scipy", "scikit-learn", "matplotlib")
    return ", ".join(
        [
            f"python {platform.python_version()}",
            *(f"{n} {version(n)}" for n in names),
            f"{first['library']} {first['version']}",
        ]
    )
