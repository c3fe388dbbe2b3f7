"""Products of stacks. Without a GPU, a stand-in for cuBLAS reads host memory as cuBLAS does, by address."""

import ctypes
import sys
import types

import numpy as np
import pytest
from checks import assert_close

from lorabook import backend
from lorabook.backend import bmm, cublas, to_numpy

B, H, T, S, D = 2, 3, 5, 4, 7  # texts, heads, queries, keys, d_head


class DeviceArray:
    """A CuPy array, as far as `cublas` sees one, in host memory."""

    def __init__(self, host):
        self.host = host
        self.data = types.SimpleNamespace(ptr=host.__array_interface__["data"][0])

    shape = property(lambda self: self.host.shape)
    strides = property(lambda self: self.host.strides)
    dtype = property(lambda self: self.host.dtype)
    itemsize = property(lambda self: self.host.itemsize)

    def transpose(self, *axes):
        return DeviceArray(self.host.transpose(axes))

    def __matmul__(self, other):
        LOG.append("matmul")
        return DeviceArray(self.host @ other.host)

    def get(self):
        return self.host


DeviceArray.__module__ = "cupy"
LOG = []
KINDS = {0: np.float32, 1: np.float64}  # CUDA_R_32F, CUDA_R_64F


def by_columns(address, kind, rows, columns, ld):
    """The matrix (rows, columns) whose entry (i, j) is at i + j ld numbers from the address."""
    assert ld >= rows, "cuBLAS would refuse this ld"
    dtype = np.dtype(KINDS[kind])
    memory = (ctypes.c_char * (((columns - 1) * ld + rows) * dtype.itemsize)).from_address(address)
    return np.ndarray((rows, columns), dtype, memory, strides=(dtype.itemsize, ld * dtype.itemsize))


def gemm(handle, transa, transb, m, n, k, alpha, A, Atype, lda, strideA, B, Btype, ldb, strideB, beta, C, Ctype, ldc,
         strideC, batch, compute, algo):  # fmt: skip
    """C = alpha op(A) op(B) + beta C for each of the batch, all by columns, as CuPy 14.2 declares it."""
    LOG.append(("gemm", batch, compute))
    itemsize = np.dtype(KINDS[Ctype]).itemsize
    factor, keep = (by_columns(scalar, Ctype, 1, 1, 1)[0, 0] for scalar in (alpha, beta))
    assert (handle, algo, factor, keep) == ("handle", -1, 1, 0)
    for i in range(batch):
        a = by_columns(A + i * strideA * itemsize, Atype, *((k, m) if transa else (m, k)), lda)
        b = by_columns(B + i * strideB * itemsize, Btype, *((n, k) if transb else (k, n)), ldb)
        c = by_columns(C + i * strideC * itemsize, Ctype, m, n, ldc)
        c[...] = (a.T if transa else a) @ (b.T if transb else b)


@pytest.fixture
def fake(monkeypatch):
    """cupy with a cuBLAS that computes on the host; returns a way to say what CUPY_TF32 is."""

    def copied(x):
        LOG.append("copy")
        return DeviceArray(np.ascontiguousarray(x.host))

    def module(name, **content):
        made = types.ModuleType(name)
        vars(made).update(content)
        monkeypatch.setitem(sys.modules, name, made)
        return made

    constants = {"CUBLAS_COMPUTE_32F": 68, "CUBLAS_COMPUTE_64F": 70, "CUBLAS_COMPUTE_32F_FAST_TF32": 77}
    library = module("cupy_backends.cuda.libs.cublas", gemmStridedBatchedEx=gemm, CUBLAS_GEMM_DEFAULT=-1, **constants)
    for name in ("cupy_backends", "cupy_backends.cuda"):
        module(name)
    module("cupy_backends.cuda.libs", cublas=library)
    dtypes = module("cupy._core._dtype", to_cuda_dtype=lambda dtype: {"f": 0, "d": 1}[dtype.char])
    settings = module("cupy._core._routines_linalg", COMPUTE_TYPE_TF32=7, get_compute_type=lambda dtype: 1)
    module("cupy._core", _dtype=dtypes, _routines_linalg=settings)
    device = types.SimpleNamespace(get_cublas_handle=lambda: "handle")
    module(
        "cupy",
        empty=lambda shape, dtype: DeviceArray(np.full(shape, np.nan, dtype)),
        ascontiguousarray=copied,
        asarray=DeviceArray,
        cuda=types.SimpleNamespace(device=device),
    )
    look_again()
    yield lambda: setattr(settings, "get_compute_type", lambda dtype: 7 if dtype == "f" else 1)
    cublas.library.cache_clear()


def look_again():
    """What `cublas` finds in this cupy; LOG holds what comes afterwards."""
    cublas.library.cache_clear()
    cublas.library()
    LOG.clear()


def heads(rng, length, h=H, texts=B):
    """(B, h, length, D), as split_heads makes it: a view of (B, length, h D)."""
    return rng.standard_normal((texts, length, h, D)).transpose(0, 2, 1, 3)


def stack(rng, *matrix):
    return rng.standard_normal((B, H, *matrix))


def windows(rng):
    """(B, H, T, D) whose rows overlap."""
    return np.lib.stride_tricks.sliding_window_view(rng.standard_normal((B, H, T + D - 1)), D, -1)


# name: (a, b, copies, calls of cuBLAS)
STACKS = {
    "contiguous": lambda rng: (stack(rng, T, D), stack(rng, D, S), 0, 1),
    "one axis": lambda rng: (rng.standard_normal((4, T, D)), rng.standard_normal((4, D, S)), 0, 1),
    "three axes": lambda rng: (rng.standard_normal((2, 2, 3, T, D)), rng.standard_normal((2, 2, 3, D, S)), 0, 1),
    "q k^T": lambda rng: (heads(rng, T), heads(rng, S).swapaxes(-1, -2), 0, 2),
    "p v": lambda rng: (stack(rng, T, S), heads(rng, S), 0, 2),
    "p^T do": lambda rng: (stack(rng, T, S).swapaxes(-1, -2), heads(rng, T), 0, 2),
    "both transposed": lambda rng: (stack(rng, D, T).swapaxes(-1, -2), stack(rng, S, D).swapaxes(-1, -2), 0, 1),
    "heads transposed": lambda rng: (heads(rng, T).swapaxes(-1, -2), heads(rng, T), 0, 2),
    "one text": lambda rng: (heads(rng, T, texts=1), heads(rng, S, texts=1).swapaxes(-1, -2), 0, 1),
    "one head": lambda rng: (heads(rng, T, h=1), heads(rng, S, h=1).swapaxes(-1, -2), 0, 1),
    "many texts, many heads": lambda rng: (heads(rng, T, 6, 8), heads(rng, S, 6, 8).swapaxes(-1, -2), 2, 1),
    "many, one of them contiguous": lambda rng: (rng.standard_normal((8, 6, T, S)), heads(rng, S, 6, 8), 1, 1),
    "many, transposed": lambda rng: (rng.standard_normal((8, 6, S, T)).swapaxes(-1, -2), heads(rng, S, 6, 8), 1, 1),
    "part of the rows": lambda rng: (stack(rng, T + 3, D)[:, :, 1 : T + 1], stack(rng, D, S + 2)[..., 2:], 0, 1),
    "every other head": lambda rng: (rng.standard_normal((B, 2 * H, T, D))[:, ::2], stack(rng, D, S), 0, 1),
    "every other text": lambda rng: (rng.standard_normal((2 * B, H, T, D))[::2], stack(rng, D, S), 0, 2),
    "every other column": lambda rng: (stack(rng, T, 2 * D)[..., ::2], stack(rng, D, S), 1, 1),
    "backwards": lambda rng: (stack(rng, T, D)[:, ::-1], stack(rng, D, S)[..., ::-1, :], 2, 1),
    "one matrix for all": lambda rng: (
        np.broadcast_to(rng.standard_normal((T, D)), (B, H, T, D)),
        stack(rng, D, S),
        0,
        1,
    ),
    "one row for all rows": lambda rng: (np.broadcast_to(stack(rng, 1, D), (B, H, T, D)), stack(rng, D, S), 1, 1),
    "windows": lambda rng: (windows(rng), stack(rng, D, S).swapaxes(-1, -2).copy().swapaxes(-1, -2), 1, 1),
    "one row": lambda rng: (stack(rng, 1, D), stack(rng, D, S), 0, 1),
    "one column": lambda rng: (stack(rng, T, D), stack(rng, D, 1), 0, 1),
    "one row of many": lambda rng: (stack(rng, T, D)[:, :, 2:3], stack(rng, S, D).swapaxes(-1, -2), 0, 1),
    "one column of many": lambda rng: (stack(rng, T, D)[..., 3:4], stack(rng, S, D)[:, :, 1:2], 0, 1),
    "a column as a row": lambda rng: (stack(rng, D, T)[..., 1:2].swapaxes(-1, -2), stack(rng, D, S), 0, 1),
    "inner size 1": lambda rng: (stack(rng, T, 1), stack(rng, 1, S), 0, 1),
    "all of size 1": lambda rng: (rng.standard_normal((1, 1, 1, 1)), rng.standard_normal((1, 1, 1, 1)), 0, 1),
}


@pytest.mark.parametrize("dtype, compute", [("float32", 68), ("float64", 70)])
@pytest.mark.parametrize("name", STACKS)
def test_views_are_read_where_they_are(fake, rng, name, dtype, compute):
    a, b, copied, calls = STACKS[name](rng)
    a, b = (like_strides(x, dtype) for x in (a, b))
    got = bmm(DeviceArray(a), DeviceArray(b))
    assert_close(got.host, a.astype("f8") @ b.astype("f8"), 1e-6 if dtype == "float32" else 1e-14)
    assert got.host.dtype == dtype and got.host.flags.c_contiguous
    assert LOG.count("copy") == copied == sum(cublas.copies(cublas.View.of(a), cublas.View.of(b)))
    assert [entry[2] for entry in LOG if entry[0] == "gemm"] == [compute] * calls
    assert "matmul" not in LOG


def like_strides(x, dtype):
    """x in another dtype, with the same strides in numbers."""
    if x.dtype == dtype:
        return x
    base = x
    while base.base is not None:
        base = base.base
    start = (x.__array_interface__["data"][0] - base.__array_interface__["data"][0]) // 8
    flat, strides = base.reshape(-1).astype(dtype), [s // 2 for s in x.strides]
    view = np.lib.stride_tricks.as_strided(flat[start:], x.shape, strides)
    assert np.allclose(view, x)
    return view


def test_tf32_only_where_cupy_is_asked_for_it(fake, rng):
    a, b, *_ = STACKS["contiguous"](rng)
    fake()
    for dtype in ("f4", "f8"):
        bmm(DeviceArray(a.astype(dtype)), DeviceArray(b.astype(dtype)))
    assert [entry[2] for entry in LOG] == [77, 70]


FALLBACK = {
    "two matrices": ((T, D), (D, S), "f4", "f4"),
    "broadcast": ((B, H, T, D), (D, S), "f4", "f4"),
    "broadcast axis": ((B, H, T, D), (1, H, D, S), "f4", "f4"),
    "complex": ((B, T, D), (B, D, S), "c8", "c8"),
    "two dtypes": ((B, T, D), (B, D, S), "f4", "f8"),
    "integers": ((B, T, D), (B, D, S), "i8", "i8"),
    "no texts": ((0, T, D), (0, D, S), "f4", "f4"),
    "nothing inside": ((B, T, 0), (B, 0, S), "f4", "f4"),
}


@pytest.mark.parametrize("name", FALLBACK)
def test_the_rest_is_left_to_cupy(fake, name):
    shape_a, shape_b, dtype_a, dtype_b = FALLBACK[name]
    a, b = np.ones(shape_a, dtype_a), np.ones(shape_b, dtype_b)
    assert_close(bmm(DeviceArray(a), DeviceArray(b)).host, a @ b)
    assert LOG == ["matmul"]


@pytest.mark.parametrize("missing", ["cupy._core._routines_linalg", "get_compute_type", "gemmStridedBatchedEx"])
def test_a_cupy_that_is_arranged_otherwise(fake, rng, monkeypatch, missing, capsys):
    settings, library = sys.modules["cupy._core._routines_linalg"], sys.modules["cupy_backends.cuda.libs.cublas"]
    if missing in sys.modules:
        monkeypatch.setitem(sys.modules, missing, None)
        monkeypatch.delattr(sys.modules["cupy._core"], "_routines_linalg")
    else:
        monkeypatch.delattr(settings if hasattr(settings, missing) else library, missing)
    look_again()
    assert capsys.readouterr().err.startswith("note: cuBLAS is not used straight from views (")
    steps_aside(rng)
    assert capsys.readouterr().err == ""  # once is enough


def steps_aside(rng):
    a, b, *_ = STACKS["q k^T"](rng)
    assert_close(bmm(DeviceArray(a), DeviceArray(b)).host, a @ b)
    assert LOG == ["matmul"]


def transposes_nothing(handle, transa, transb, *arguments):
    gemm(handle, 0, 0, *arguments)


def other_order(*arguments):
    """As in a release in which two arguments have changed places."""
    gemm(*arguments[:11], arguments[12], arguments[11], *arguments[13:])


def one_of_the_batch(*arguments):
    gemm(*arguments[:-3], 1, *arguments[-2:])


def off_by_a_bit(*arguments):
    gemm(*arguments)
    m, n, address, kind, ld = arguments[3], arguments[4], arguments[16], arguments[17], arguments[18]
    out = by_columns(address, kind, m, n, ld)
    out[...] = np.nextafter(out, np.inf)


def fails(*arguments):
    raise RuntimeError("CUBLAS_STATUS_NOT_SUPPORTED\nmore")


@pytest.mark.parametrize(
    "wrong", [transposes_nothing, other_order, one_of_the_batch, off_by_a_bit, fails, lambda: None]
)
def test_a_cupy_whose_products_differ_or_fail(fake, rng, monkeypatch, capsys, wrong):
    monkeypatch.setattr(sys.modules["cupy_backends.cuda.libs.cublas"], "gemmStridedBatchedEx", wrong)
    look_again()
    said = capsys.readouterr().err
    assert said.startswith("note: cuBLAS is not used straight from views (") and said.count("\n") == 1
    steps_aside(rng)


def test_the_check_would_notice_a_plan_that_is_wrong(fake, monkeypatch):
    """Not only CuPy: what is told to it."""
    right = cublas.split
    monkeypatch.setattr(cublas, "split", lambda axes: (right(axes)[0], []))  # the first of several calls
    cublas.plan.cache_clear()
    look_again()
    assert cublas.library() is None
    cublas.plan.cache_clear()


def test_it_is_used_in_tf32_too(fake, capsys):
    """What is compared is the same there, to the last bit."""
    fake()
    look_again()
    assert cublas.library() is not None and capsys.readouterr().err == ""


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", STACKS)
def test_every_backend(put, rng, name, dtype):
    a, b, *_ = STACKS[name](rng)
    a, b = np.array(a, dtype), np.array(b, dtype)
    assert_close(to_numpy(bmm(put(a), put(b))), a.astype("f8") @ b.astype("f8"), 1e-5 if dtype == "float32" else 1e-13)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", STACKS)
def test_views_on_a_gpu(rng, name, dtype):
    if problem := backend.gpu_problem():
        pytest.skip(problem)
    cupy = backend.get_xp("cupy")
    a, b, *_ = STACKS[name](rng)
    a, b = (like_strides(x, dtype) for x in (a, b))
    on_gpu = []
    for x in (a, b):
        base = x
        while base.base is not None:
            base = base.base
        start = (x.__array_interface__["data"][0] - base.__array_interface__["data"][0]) // x.itemsize
        on_gpu.append(cupy.lib.stride_tricks.as_strided(cupy.asarray(base.reshape(-1))[start:], x.shape, x.strides))
    assert_close(bmm(*on_gpu), a.astype("f8") @ b.astype("f8"), 1e-5 if dtype == "float32" else 1e-13)
