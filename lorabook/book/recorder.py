"""NumPy arrays that take notes: which operations a step needs, what each computes and moves, when the host must wait.

CuPy would launch one kernel for each (a reduction may take two; copies before a stacked product are noted). Views cost
nothing and are not noted. Nor are a handful of operations on ids, labels and padding.
"""

import math
import sys
from pathlib import Path

import numpy as np

from .. import functional as F
from ..backend import View, copies

BOOK = str(Path(__file__).parent)
LIBRARY = str(Path(__file__).parents[1])
HELPERS = ("row_sums", "row_means", "shift")
COPIES = ("copy", "contiguous", "stack", "reshape", "concatenate")
FREE = (np.empty_like,)  # reserves memory, and writes none
RANK = 8  # a side of a product with A or B, and no other size of what is recorded


class Recorded(np.ndarray):
    """A NumPy array that notes the operations on it, and when the host asks for its value.

    log: {name, place, flops, bytes, phase, ...} of each operation. waits: where the host asked. Both are of the class.
    """

    __module__ = "numpy"  # `array_namespace` goes by it
    log, waits, phase = [], [], "the loss"

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        out = kwargs.get("out", (None,))[0]
        arrays = plain(inputs)
        result = getattr(ufunc, method)(*arrays, **plain(kwargs))
        note(ufunc.__name__, arrays, result)
        return recorded(result) if out is None else out

    def __array_function__(self, function, types, args, kwargs):
        args = plain(args)
        result = function(*args, **plain(kwargs))
        sources = [a for arg in args for a in (arg if isinstance(arg, list) else [arg]) if isinstance(a, np.ndarray)]
        view = any(np.may_share_memory(result, a) for a in sources)
        if not view and function not in FREE:
            note(function.__name__, sources, result)
        return recorded(result)

    def __setitem__(self, key, value):
        target, value = self.view(np.ndarray), plain(value)
        if not np.may_share_memory(target, np.asarray(value)):  # else: the end of `a[key] += b`, nothing to copy
            note("copy", [np.asarray(value)], target[key])
        target[key] = value

    def __float__(self):
        self.waits.append(place())
        return float(self.view(np.ndarray))


def begin():
    """(log, waits): both empty; what is computed from now on is written there."""
    Recorded.log, Recorded.waits = [], []
    return Recorded.log, Recorded.waits


def plain(value):
    """The value with NumPy's own arrays in the place of recorded ones, also inside of tuples, lists and dicts."""
    if isinstance(value, Recorded):
        return value.view(np.ndarray)
    if isinstance(value, dict):
        return {name: plain(v) for name, v in value.items()}
    return type(value)(plain(v) for v in value) if isinstance(value, tuple | list) else value


def recorded(value):
    """An array that takes notes; what is no array stays as it is."""
    return np.asarray(value).view(Recorded) if isinstance(value, np.ndarray | np.generic) else value


def during(phase, function):
    """The function; what it does is noted under the name of the phase."""

    def call(*args, **kwargs):
        before, Recorded.phase = Recorded.phase, phase
        try:
            return function(*args, **kwargs)
        finally:
            Recorded.phase = before

    return call


# ---- what is noted ---------------------------------------------------------------------------------------------------


def place():
    """module.function of the library that is at work; of a helper, the function that called it."""
    frame = sys._getframe(1)
    while frame:
        path, function = frame.f_code.co_filename, frame.f_code.co_name
        own = path.startswith(LIBRARY) and not path.startswith(BOOK)
        if own and not path.endswith("arrays.py") and function not in HELPERS:
            return f"{Path(path).stem}.{function}"
        frame = frame.f_back
    return "chapter"


def in_memory(a):
    """Bytes of an array; what is only broadcast along an axis is there once."""
    return a.itemsize * math.prod(n for n, stride in zip(a.shape, a.strides, strict=True) if stride or not n)


def note(name, arrays, result):
    """Write one operation down: its FLOPs, and the bytes that it reads and writes."""
    arrays, result = [a for a in arrays if isinstance(a, np.ndarray)], np.asarray(result)
    read, flops = sum(map(in_memory, arrays)), max(a.size for a in (*arrays, result))
    if name in COPIES:
        flops = 0
    if name == "take":  # reads the rows that it takes, not the table
        read, flops = result.nbytes, 0
    if name == "ones":  # only writes
        read, flops = 0, 0
    if name == "matmul":
        flops = 2 * result.size * arrays[0].shape[-1]
        if arrays[1].ndim == 1:  # sums along rows, as products with ones
            name = "sum"
        if arrays[0].ndim > 2:
            for a, copied in zip(arrays, ours(*arrays), strict=True):
                if copied:
                    note("stack", [a], a)
    entry = {"name": name, "place": place(), "flops": flops, "bytes": read + result.nbytes, "phase": Recorded.phase}
    entry |= {"batched": arrays[0].ndim > 2 if arrays else False, "dtype": result.dtype.name, "size": result.size}
    Recorded.log.append(entry | {"r": RANK in {n for a in arrays for n in a.shape}})


# ---- what a device does in another way than NumPy --------------------------------------------------------------------


def naive(a, b):
    """Which operands CuPy's own stacked product, `a @ b`, copies: [bool, bool]."""
    return [not x.flags.c_contiguous for x in (a, b)]


def ours(a, b):
    """Which of them `backend.bmm` copies."""
    return copies(View.of(a), View.of(b))


def bmm(a, b, out=None):
    """`backend.bmm` as it is on CuPy: the product, and then a copy to where it is to be."""
    y = a @ b
    if out is None:
        return y
    out[...] = y
    return out


def contiguous(x):
    """`backend.contiguous`, with a note where it copies."""
    if x.flags.c_contiguous:
        return x
    note("contiguous", [x], x)
    return recorded(np.ascontiguousarray(plain(x)))


def empty(shape, like):
    """`backend.empty`, which writes nothing."""
    return recorded(np.empty(shape, like.dtype))


def ones(shape, like):
    """`backend.ones`, which a device has to write."""
    result = np.ones(shape, like.dtype)
    note("ones", [], result)
    return recorded(result)


def unfused_gelu():
    """The notes on GELU and its derivative, operation by operation, for four numbers: the log.

    In float64, and so by erf, as on a GPU; float32 would go by NumPy's faster way.
    """
    log, _ = begin()
    F.gelu_erf.__wrapped__(recorded(np.ones(4)))
    begin()
    return log


def one_kernel(x, run=None):
    """GELU and its derivative as `fuse` makes them on CuPy: one pass over memory."""
    y, slope = F.gelu_erf(plain(x))
    entry = {"name": "fused", "place": "activations.gelu_erf", "flops": FUSED * x.size, "bytes": 3 * x.nbytes}
    Recorded.log.append(entry | {"phase": Recorded.phase})
    return recorded(y), recorded(slope)


FUSED = len(unfused_gelu())
