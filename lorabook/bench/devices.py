"""How to wait for a device, and how much of its memory one step takes at its peak, in MB (10^6 bytes)."""

import sys
from pathlib import Path

from ..errors import InputError


class Host:
    """The CPU: nothing to wait for; its memory is this process's, from its start on."""

    def synchronize(self):
        """Nothing is pending."""

    def peak_mb(self, once):
        """Largest resident set so far. Linux: of this program alone; ru_maxrss would start from the parent's peak."""
        status = Path("/proc/self/status")
        if status.exists():
            line = next(
                line
                for line in status.read_text(encoding="utf-8", errors="replace").splitlines()
                if line.startswith("VmHWM:")
            )
            return int(line.split()[1]) * 1024 / 1e6
        try:
            import resource
        except ImportError:
            raise InputError("peak memory can be read on Linux and macOS only") from None
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


class CupyDevice:
    """A GPU under CuPy; `xp` is the module."""

    def __init__(self, xp):
        self.xp = xp

    def synchronize(self):
        """Wait for all streams."""
        self.xp.cuda.Device().synchronize()

    def peak_mb(self, once):
        """Most bytes in use at once in CuPy's pool while once() runs: a hook looks after each allocation."""
        pool = self.xp.get_default_memory_pool()
        used = [pool.used_bytes()]

        class Watch(self.xp.cuda.MemoryHook):
            name = "lorabook.bench"

            def malloc_postprocess(self, **_):
                used.append(pool.used_bytes())

        with Watch():
            once()
        self.synchronize()
        return max(used) / 1e6


class TorchCuda:
    """A GPU under PyTorch; `torch` is the module."""

    def __init__(self, torch):
        self.cuda = torch.cuda

    def synchronize(self):
        """Wait for all streams."""
        self.cuda.synchronize()

    def peak_mb(self, once):
        """Most bytes in use at once in PyTorch's allocator while once() runs."""
        self.synchronize()
        self.cuda.reset_peak_memory_stats()
        once()
        self.synchronize()
        return self.cuda.max_memory_allocated() / 1e6
