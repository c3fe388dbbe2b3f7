"""In words: what a measurement was made on, and with which libraries."""

import platform
from pathlib import Path

from ..backend import get_xp
from ..files import blas, version
from ..parallel import cores


def machine(backend="numpy"):
    """E.g. "Intel(R) Xeon(R) Processor, 2 cores"; with a GPU, its name first."""
    cpu = f"{_cpu()}, {cores()} cores"
    if backend == "numpy":
        return cpu
    gpu = get_xp(backend).cuda.runtime.getDeviceProperties(0)["name"]
    return f"{gpu.decode() if isinstance(gpu, bytes) else gpu}; {cpu}"


def versions(backend="numpy", vs=None):
    """E.g. "numpy 2.4.6, openblas 0.3.30, torch 2.13.0, transformers 5.23.0, peft 0.21.2"."""
    names = ["numpy", *(["torch", "transformers", "peft"] if vs == "peft" else [])]
    found = [f"{name} {version(name)}" for name in names]
    found[1:1] = [f"{pool['library']} {pool['version']}" for pool in blas()[:1]]
    if backend == "cupy":
        found.insert(1, f"cupy {get_xp(backend).__version__}")
    return ", ".join(found)


def _cpu():
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(names), None) or platform.processor() or platform.machine()
