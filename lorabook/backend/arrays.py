"""The one door to the array library: NumPy, CuPy, or array-api-strict (the tests' stand-in for "not NumPy").

The library comes from the data: `xp = array_namespace(x)`. There is no global switch, so host and device arrays can be
compared in one process. Random numbers are drawn on the host and cross over through `asarray_like`; results come back
through `to_numpy`. No other file computes with cupy, but for `cublas`, which only this file imports.
"""

import functools
import math
import sys

import numpy as np

from ..errors import InputError
from .gpu import gpu_problem

BACKENDS = ("numpy", "cupy", "array_api_strict")
HOST = ({np.ndarray}, {np.ndarray, type(None)})


def _library(array):
    return type(array).__module__.partition(".")[0]


def array_namespace(*arrays):
    """The module the arrays belong to, e.g. `numpy`; None is skipped. Raises TypeError for a mix or a non-array.

    >>> import lorabook as lb
    >>> def rms(x):  # computes where its argument is
    ...     xp = lb.array_namespace(x)
    ...     return xp.sqrt(xp.mean(x * x))
    >>> float(rms(lb.get_xp("auto").asarray([3.0, -3.0])))
    3.0
    """
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

    >>> import lorabook as lb
    >>> xp = lb.get_xp("auto")
    >>> model = lb.MLP((64, 32, 10)).to(xp)
    >>> model(xp.ones((5, 64)))[0].shape
    (5, 10)
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
    """Copy to the host: the one door to files, plots and prints. Scalars and NumPy arrays pass through.

    >>> import lorabook as lb
    >>> x = lb.get_xp("auto").ones(3)  # on a GPU, if one answers
    >>> type(lb.to_numpy(x))
    <class 'numpy.ndarray'>
    """
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


def reshape(x, shape):
    """x in another shape: of NumPy the method, since the function takes longer than a small product."""
    return x.reshape(shape) if isinstance(x, np.ndarray) else array_namespace(x).reshape(x, shape)


def ones(shape, like):
    """Ones of this shape, on the backend and device and in the dtype of `like`."""
    return array_namespace(like).ones(shape, dtype=like.dtype, **_device(like))


def _device(like):
    return {} if _library(like) == "cupy" else {"device": like.device}


def data_like(host, like):
    """Host data on the backend and device of `like`: numbers in the dtype of `like`, labels and ids as int64.

    host: an array, or a batch {name: array}.
    """
    if isinstance(host, dict):
        return {name: data_like(array, like) for name, array in host.items()}
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


BLOCK = 1 << 17  # elements: 512 KB in float32, so that the few arrays of a chain of operations stay in the cache


def fuse(function):
    """Make a chain of elementwise operations one pass over memory: `cupy.fuse` on CuPy, cache-sized blocks on NumPy.

    function: arrays of one shape -> a tuple of arrays of that shape. The result takes `overwrite`: its first argument
    is needed no more, and that memory may serve for the last of them.
    """
    fused = None

    @functools.wraps(function)
    def call(x, *more, overwrite=False):
        nonlocal fused
        if _library(x) == "numpy" and x.size > 2 * BLOCK:
            return _in_blocks(function, (x, *more), overwrite and x.flags.c_contiguous)
        if _library(x) != "cupy":
            return function(x, *more)
        if fused is None:
            import cupy

            fused = cupy.fuse(function)
        return fused(x, *more)

    return call


def _in_blocks(function, arrays, overwrite):
    flat = [x.reshape(-1) for x in arrays]
    first = function(*(x[:BLOCK] for x in flat))
    outputs = [np.empty(flat[0].shape, y.dtype) for y in (first[:-1] if overwrite else first)]
    outputs += flat[:1] * overwrite
    for start in range(0, flat[0].size, BLOCK):
        stop = start + BLOCK
        for out, y in zip(outputs, function(*(x[start:stop] for x in flat)) if start else first, strict=True):
            out[start:stop] = y
    return tuple(out.reshape(arrays[0].shape) for out in outputs)


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


def put_rows(target, rows, values):
    """target[rows[i]] = values[i] in place, no row twice. target (V, d), rows (N,), values (N, d)."""
    if array_namespace(target, rows, values).__name__ != "array_api_strict":
        target[rows] = values
        return
    for i in range(rows.shape[0]):
        target[int(rows[i]), :] = values[i, :]


def arange_like(n, like):
    """Integers 0 .. n - 1 on the backend and device of `like`, made there."""
    xp = array_namespace(like)
    return xp.arange(n, dtype=xp.int64, **_device(like))
