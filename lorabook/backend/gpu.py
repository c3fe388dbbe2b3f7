"""Whether a GPU and CuPy answer here, and if not, what is missing and how to get it."""

import ctypes
import importlib.util


def cuda_driver_version():
    """(major, minor) of the newest CUDA the installed NVIDIA driver supports, or None where no driver answers."""
    for name in ("libcuda.so.1", "libcuda.dylib", "nvcuda.dll"):
        try:
            driver = ctypes.CDLL(name)
        except OSError:
            continue
        version = ctypes.c_int()
        if driver.cuInit(0) == 0 and driver.cuDriverGetVersion(ctypes.byref(version)) == 0:
            return version.value // 1000, version.value % 1000 // 10
    return None


def cupy_wheel(driver):
    """The cupy wheel for a driver version (major, minor): what to pip install. None if the driver is too old."""
    return f"cupy-cuda{min(driver[0], 13)}x[ctk]" if driver[0] >= 12 else None


def gpu_problem():
    """None if CuPy can compute here; otherwise one sentence saying what is missing and what to do about it."""
    driver, installed = cuda_driver_version(), importlib.util.find_spec("cupy") is not None
    if driver is None:
        package = "cupy is installed, but" if installed else "cupy is not installed, and"
        return f"{package} no NVIDIA driver with a GPU answers on this machine. Use --backend numpy"
    version, wheel = f"CUDA {driver[0]}.{driver[1]}", cupy_wheel(driver)
    if wheel is None:
        return f"the NVIDIA driver supports only {version}; cupy needs 12.0 or newer. Update the driver"
    if not installed:
        return f"the NVIDIA driver answers ({version}), but cupy is not installed. Run: pip install '{wheel}'"
    try:
        import cupy

        cupy.cuda.runtime.getDeviceCount()
        cupy.zeros(1).sum().get()
    except Exception as error:  # cupy reports a broken installation in many types; each becomes this one sentence
        return (
            f"cupy is installed and the driver answers ({version}), but it fails: {error}. Try: pip install '{wheel}'"
        )
    return None
