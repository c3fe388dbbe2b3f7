"""Products of stacks of matrices on a GPU, straight from views: cuBLAS's gemmStridedBatchedEx, as CuPy 14 hands it on.

`cupy.matmul` copies every operand of a stacked product that is not contiguous, a transposed one too, and computes in
float32 whatever CUPY_TF32 says. cuBLAS needs no copies: it takes for each operand a flag, transposed or not, the
distance `ld` from one row to the next, and the distance `stride` from one matrix of the stack to the next.

cuBLAS counts by columns: entry (i, j) of a matrix is at i + j ld. A row-major X (p, q) is to it an X^T, with ld = q. So
out = a b, row-major, is made as out^T = b^T a^T: b comes first, and an operand that is row-major is not transposed.

This is no public part of CuPy. So before the first product a few small ones are made both ways; where the way here is
missing, fails or differs, `a @ b` does everything, and a note says so.

One call takes one stride. The heads of attention, views (B, h, T, d_head) of an array (B, T, h, d_head), have two:
from head to head and from text to text. Then the smaller of B and h is a loop or, if that is long, they are copied.
"""

import functools
import itertools
import math
from typing import NamedTuple

import numpy as np

from ..errors import note, printable

CALLS = 4  # that a loop may have: an assumption, one copy takes about as long as so many calls


class View(NamedTuple):
    """How an array (..., p, q) lies in memory; strides in numbers."""

    shape: tuple
    strides: tuple

    @classmethod
    def of(cls, x):
        """Of a NumPy or CuPy array."""
        return cls(x.shape, tuple(stride // x.itemsize for stride in x.strides))


def bmm(a, b):
    """a (..., m, k), b (..., k, n), CuPy arrays -> (..., m, n), contiguous. `a @ b` does what is not done here."""
    stack, (m, k), n = a.shape[:-2], a.shape[-2:], b.shape[-1]
    same = a.dtype == b.dtype and b.shape[:-1] == (*stack, k)  # nothing is broadcast
    if not same or a.dtype.char not in "fd" or not stack or 0 in (*stack, m, k, n) or library() is None:
        return a @ b
    return multiplied(a, b, *library())


def multiplied(a, b, cublas, dtypes, settings):
    """a b by gemmStridedBatchedEx; stacks of one dtype, float32 or float64, nothing broadcast, no size 0."""
    import cupy

    stack, (m, k), n = a.shape[:-2], a.shape[-2:], b.shape[-1]
    copied = copies(View.of(a), View.of(b))
    a, b = (cupy.ascontiguousarray(x) if copy else x for x, copy in zip((a, b), copied, strict=True))
    out = cupy.empty((*stack, m, n), a.dtype)
    compute = cublas.CUBLAS_COMPUTE_64F if a.dtype.char == "d" else cublas.CUBLAS_COMPUTE_32F
    if settings.get_compute_type(a.dtype) == settings.COMPUTE_TYPE_TF32:  # CUPY_TF32, heeded as for two matrices
        compute = cublas.CUBLAS_COMPUTE_32F_FAST_TF32
    one, zero, kind = np.ones((), a.dtype), np.zeros((), a.dtype), dtypes.to_cuda_dtype(a.dtype)
    (transpose_a, lda), (transpose_b, ldb), batch, strides, starts = plan(View.of(a), View.of(b))
    for start in starts:
        at_b, at_a, at_out = (x.data.ptr + i * x.itemsize for x, i in zip((b, a, out), start, strict=True))
        cublas.gemmStridedBatchedEx(
            cupy.cuda.device.get_cublas_handle(), transpose_b, transpose_a, n, m, k,
            one.ctypes.data, at_b, kind, ldb, strides[0], at_a, kind, lda, strides[1],
            zero.ctypes.data, at_out, kind, n, strides[2], batch, compute, cublas.CUBLAS_GEMM_DEFAULT,
        )  # fmt: skip
    return out


@functools.cache
def library():
    """CuPy's (cublas, dtypes, settings); or None, with a note, for a CuPy in which these are elsewhere or otherwise."""
    try:
        from cupy._core import _dtype, _routines_linalg
        from cupy_backends.cuda.libs import cublas

        found = cublas, _dtype, _routines_linalg
        problem = "another product came" if differs(*found) else None
    except Exception as error:  # what is private may be anything in another release, and raise anything
        problem = f"{type(error).__name__}: {error}"
    if problem:
        note(f"cuBLAS is not used straight from views ({printable(problem)}): cupy.matmul takes its place, and copies")
        return None
    return found


def differs(cublas, dtypes, settings):
    """Whether small products come out otherwise than from `a @ b`.

    Of small integers, which every precision holds, TF32 too: so they are equal to the last bit, or wrong.
    """
    import cupy

    rng = np.random.default_rng(0)
    for dtype in ("f4", "f8"):
        q, k, p = (
            cupy.asarray(rng.integers(-4, 5, shape).astype(dtype))
            for shape in ((2, 5, 3, 7), (2, 4, 3, 7), (2, 3, 5, 4))
        )
        heads_q, heads_k = (x.transpose(0, 2, 1, 3) for x in (q, k))  # views (2, 3, T, 7), two calls
        transposed_k, transposed_p = heads_k.transpose(0, 1, 3, 2), p.transpose(0, 1, 3, 2)
        for a, b in ((heads_q, transposed_k), (p, heads_k), (transposed_p, heads_q), (transposed_p, p)):
            if not np.array_equal(multiplied(a, b, cublas, dtypes, settings).get(), (a @ b).get()):
                return True
    return False


# Where everything lies depends on shapes and strides only. A step has few of them, so it is found out once.


@functools.lru_cache(1024)
def plan(a, b):
    """(layout of a, of b, matrices in a call, strides (b, a, out), for each call where it starts in the three)."""
    shape = (*a.shape[:-1], b.shape[-1])
    out = View(shape, tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape))))
    (batch, strides), loop = split(axes(b, a, out))
    starts = [
        [sum(i * steps[x] for i, (_, steps) in zip(index, loop, strict=True)) for x in range(3)]
        for index in itertools.product(*(range(size) for size, _ in loop))
    ]
    return layout(a), layout(b), batch, strides, starts


@functools.lru_cache(1024)
def copies(a, b):
    """Which of the two operands, given as Views, `bmm` copies first: [bool, bool]."""
    copy = [layout(x) is None for x in (a, b)]
    views = [x for x, copied in zip((a, b), copy, strict=True) if not copied]
    if views and calls(*views) > CALLS:
        copy = [copied or len(axes(x)) > 1 for x, copied in zip((a, b), copy, strict=True)]
    return copy


def calls(*views):
    """How many calls take the stacks through a product without a copy."""
    _, loop = split(axes(*views))
    return math.prod(size for size, _ in loop)


def layout(x):
    """(transposed, ld) of the matrices (rows, columns) of a View, as cuBLAS is told; None if it can read no such."""
    (*_, rows, columns), (*_, down, across) = x  # sizes, and how far it is to the next
    if min(x.strides) < 0:
        return None
    if rows == 1:
        down = columns  # there is no next row: any distance will do
    if columns == 1:
        across = rows
    if (across == 1 or columns == 1) and down >= columns:
        return 0, down
    if (down == 1 or rows == 1) and across >= rows:
        return 1, across
    return None


def axes(*views):
    """[(size, stride in each view)] of the stack's axes; two over which all go in even steps are one."""
    found = []
    for axis, size in enumerate(views[0].shape[:-2]):
        strides = [x.strides[axis] for x in views]
        if found and found[-1][1] == [size * s for s in strides]:
            found[-1] = (found[-1][0] * size, strides)
        elif size > 1:
            found.append((size, strides))
    return found


def split(axes):
    """(the largest axis, which one call can do, or one of a single matrix; the others, to be looped over)."""
    if not axes:
        return (1, [0, 0, 0]), []
    largest = max(range(len(axes)), key=lambda i: axes[i][0])
    return axes[largest], axes[:largest] + axes[largest + 1 :]
