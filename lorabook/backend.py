"""The one door to the array library: NumPy, CuPy, or array-api-strict (the tests' stand-in for "not NumPy").

The library comes from the data: `xp = array_namespace(x)`. There is no global switch, so host and device arrays can be
compared in one process. Random numbers are drawn on the host and cross over through `asarray_like`; results come back
through `to_numpy`. This is the only file that imports cupy, but for `cublas`, which only this file imports.
"""

import ctypes
import functools
import importlib.util
import math
import sys

import numpy as np

from .errors import InputError

BACKENDS = ("numpy", "cupy", "array_api_strict")
HOST = ({np.ndarray}, {np.ndarray, type(None)})


def _library(array):
    return type(array).__module__.partition(".")[0]


def array_namespace(*arrays):
    """The module the arrays belong to, e.g. `numpy`; None is skipped. Raises TypeError for a mix or a non-array."""
    if {*map(type, arrays)} in HOST:  # nearly always, and asked some thousand times in a step
        return np
    arrays = [a for a in arrays if a is not None]
    names = {_library(a) for a in arrays}
    if not names or not names <= set(BACKENDS):
        came = ", ".join(sorted({type(a).__name__ for a in arrays})) or "nothing"
        raise TypeError(f"expected arrays of {', '.join(BACKENDS)}; got {came}")
    if len(names) > 1:
        raise TypeError(
            f"arrays of different backends in one call: {' and '.join(sorted(names))}; "
            "move one by layer.to(xp) or to_numpy"
        )
    return sys.modules[names.pop()]


def get_xp(name="numpy"):
    """Array library by name: "numpy", "cupy", "auto" (cupy where a GPU answers, else numpy), "array_api_strict".

    Raises InputError when "cupy" was asked for and cannot work, saying which of driver, GPU and package is missing.
    """
    if name == "auto":
        return get_xp("cupy" if gpu_problem() is None else "numpy")
    if name == "numpy":
        return np
    if name == "array_api_strict":
        import array_api_strict

        return array_api_strict
    if name == "cupy":
        if problem := gpu_problem():
            raise InputError(f"backend cupy cannot be used: {problem}")
        import cupy

        return cupy
    raise InputError(f"unknown backend {name!r}; expected numpy, cupy or auto")


def to_numpy(array):
    """Copy to the host: the one door to files, plots and prints. Scalars and NumPy arrays pass through."""
    if _library(array) == "cupy":
        return array.get()
    if _library(array) == "array_api_strict":
        array = array.to_device(sys.modules["array_api_strict"].Device("CPU_DEVICE"))
    return np.asarray(array)


def asarray_like(host, like, dtype=None):
    """The host array on the backend and device of `like`, in `dtype` (default: the dtype of `like`)."""
    return array_namespace(like).asarray(host, dtype=dtype or like.dtype, **_device(like))


def empty(shape, like):
    """Memory for an array of this shape, on the backend and device and in the dtype of `like`."""
    return array_namespace(like).empty(shape, dtype=like.dtype, **_device(like))


def ones(shape, like):
    """Ones of this shape, on the backend and device and in the dtype of `like`."""
    return array_namespace(like).ones(shape, dtype=like.dtype, **_device(like))


def _device(like):
    return {} if _library(like) == "cupy" else {"device": like.device}


def data_like(host, like):
    """Host data on the backend and device of `like`: numbers in the dtype of `like`, labels and ids as int64."""
    return asarray_like(host, like, dtype=array_namespace(like).int64 if host.dtype.kind in "iu" else None)


def check_float(array, what="array"):
    """Raise InputError unless `array` is float32 or float64 (complex is let through for complex-step checks)."""
    if (name := str(array.dtype).rpartition(".")[2]) not in ("float32", "float64", "complex64", "complex128"):
        why = (
            " (no BLAS multiplies half precision on a CPU: products would be orders of magnitude slower)"
            if name == "float16"
            else ""
        )
        raise InputError(
            f"{what} has dtype {name}{why}; expected float32 or float64. Convert it with .astype('float32')"
        )


BLOCK = 1 << 17  # elements: 512 KB in float32, so that what a chain of operations passes on stays in the cache


def fuse(function):
    """Make a chain of elementwise operations one pass over memory: `cupy.fuse` on CuPy, cache-sized blocks on NumPy.

    function: one array x -> a tuple of arrays of its shape. The result takes `overwrite`: x is needed no more, and its
    memory may serve for the last of them.
    """
    fused = None

    @functools.wraps(function)
    def call(x, overwrite=False):
        nonlocal fused
        if _library(x) == "numpy" and x.size > 2 * BLOCK:
            return _in_blocks(function, x, overwrite and x.flags.c_contiguous)
        if _library(x) != "cupy":
            return function(x)
        if fused is None:
            import cupy

            fused = cupy.fuse(function)
        return fused(x)

    return call


def _in_blocks(function, x, overwrite):
    flat = x.reshape(-1)
    first = function(flat[:BLOCK])
    outputs = [np.empty(flat.shape, y.dtype) for y in (first[:-1] if overwrite else first)]
    outputs += [flat] * overwrite
    for start in range(0, flat.size, BLOCK):
        stop = start + BLOCK
        for out, y in zip(outputs, function(flat[start:stop]) if start else first, strict=True):
            out[start:stop] = y
    return tuple(out.reshape(x.shape) for out in outputs)


# Phi(x) = (1 + tanh(x (c_0 + c_1 x^2 + .. + c_6 x^12))) / 2: least squares in Phi on (0, 5.6], reweighted until the
# largest error, 3e-8, was the least.
PHI = (0.797884941, 3.63330844e-2, -3.25947153e-5, -5.53063306e-5, 3.96477597e-6, -1.32266525e-7, 1.75628492e-9)


def normal_cdf(x):
    """Phi(x), the distribution function of the standard normal, elementwise.

    float32 on NumPy: by PHI, with an error below 2e-7, most of it rounding; with SciPy's erf, GELU would take a fifth
    of an encoder's training step.
    """
    if not (array_namespace(x) is np and x.dtype == np.float32 and x.ndim):
        return 0.5 * (1 + _erf(x * math.sqrt(0.5)))
    with np.errstate(over="ignore"):  # far out: tanh(inf) = 1
        square = np.square(x)
        cdf = square * PHI[-1]
        for c in PHI[-2:0:-1]:
            cdf += c
            cdf *= square
        cdf += PHI[0]
        cdf *= x
    np.tanh(cdf, out=cdf)
    cdf *= 0.5
    cdf += 0.5
    return cdf


def _erf(x):
    if _library(x) == "cupy":
        from cupyx.scipy.special import erf
    else:
        from scipy.special import erf
    return asarray_like(erf(to_numpy(x)), x) if _library(x) == "array_api_strict" else erf(x)


def exp_(x):
    """exp in place: x becomes e^x, and is returned. The array API standard has no output argument."""
    xp = array_namespace(x)
    if xp.__name__ == "array_api_strict":
        x[...] = xp.exp(x)
        return x
    return xp.exp(x, out=x)


def contiguous(x):
    """x, or its C-ordered copy: BLAS multiplies small matrices fastest, and cuBLAS a whole stack, if rows lie so."""
    xp = array_namespace(x)
    return x if xp.__name__ == "array_api_strict" else xp.ascontiguousarray(x)


def bmm(a, b, out=None):
    """a (..., m, k), b (..., k, n) -> (..., m, n): the product of each two matrices; into `out`, if given.

    On NumPy a transposed b is copied unless it is the larger one: that takes less time than a product with it. For CuPy
    see `cublas`.
    """
    library = array_namespace(a, b).__name__
    if library == "numpy":
        return np.matmul(a, b if b.size > a.size else np.ascontiguousarray(b), out=out)
    if library == "cupy":
        from . import cublas

        y = cublas.bmm(a, b)
    else:
        y = a @ b
    if out is None:
        return y
    out[...] = y
    return out


def scatter_add(target, rows, values):
    """target[rows[i]] += values[i] in place, repeated rows summed. target (V, d), rows (N,), values (N, d)."""
    library = array_namespace(target, rows, values).__name__
    if library == "numpy":
        np.add.at(target, rows, values)
    elif library == "cupy":
        import cupyx

        cupyx.scatter_add(target, rows, values)
    else:
        for i in range(rows.shape[0]):
            target[int(rows[i]), :] += values[i, :]


def arange_like(n, like):
    """Integers 0 .. n - 1 on the backend and device of `like`, made there."""
    xp = array_namespace(like)
    return xp.arange(n, dtype=xp.int64, **_device(like))


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
