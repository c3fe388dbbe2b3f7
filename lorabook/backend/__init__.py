"""NumPy or CuPy: `array_namespace` goes by the arrays, `get_xp` by a name, `to_numpy` is the door back to the host.

Here stands what the array standard has no word for and speed needs: in-place functions, `fuse`, `scatter_add`, stacked
products. `arrays` has all of it, `cublas` what CuPy's products leave undone, `gpu` says whether one answers. The only
room that may import cupy.
"""

from .arrays import (
    BLOCK,
    PHI,
    arange_like,
    array_namespace,
    asarray_like,
    bmm,
    check_float,
    contiguous,
    data_like,
    empty,
    exp_,
    fuse,
    get_xp,
    normal_cdf,
    ones,
    put_rows,
    reshape,
    scatter_add,
    to_numpy,
)
from .cublas import View, copies
from .gpu import cuda_driver_version, cupy_wheel, gpu_problem

__all__ = [
    "BLOCK",
    "PHI",
    "View",
    "arange_like",
    "array_namespace",
    "asarray_like",
    "bmm",
    "check_float",
    "contiguous",
    "copies",
    "cuda_driver_version",
    "cupy_wheel",
    "data_like",
    "empty",
    "exp_",
    "fuse",
    "get_xp",
    "gpu_problem",
    "normal_cdf",
    "ones",
    "put_rows",
    "reshape",
    "scatter_add",
    "to_numpy",
]
