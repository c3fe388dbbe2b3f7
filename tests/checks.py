import numpy as np

from lorabook.backend import array_namespace, to_numpy

TOLERANCES = {"float32": 2e-6, "float64": 1e-12}


def assert_close(got, want, tolerance=1e-12):
    """Largest deviation relative to the largest wanted entry; shapes equal; NaN never passes."""
    got, want = np.asarray(to_numpy(got)), np.asarray(to_numpy(want))
    assert got.shape == want.shape, f"shape {got.shape}, expected {want.shape}"
    error = np.max(np.abs(got - want), initial=0.0)
    scale = np.max(np.abs(want), initial=0.0) or 1.0
    assert error <= tolerance * scale, f"relative error {error / scale:.3g}, expected at most {tolerance:.3g}"


def assert_lives_on(like, *arrays):
    """Every array has the namespace, device and dtype of `like`."""
    for array in arrays:
        assert array_namespace(array) is array_namespace(like)
        assert array.device == like.device
        assert array.dtype == like.dtype


def move(layer, put, dtype=None):
    """The layer with its parameters put on another backend, in place."""
    for _, part in layer.named_layers():
        for name, array in part.params.items():
            part.params[name] = put(array, dtype)
    return layer


def same_bits(got, want):
    got, want = to_numpy(got), to_numpy(want)
    return got.dtype == want.dtype and got.shape == want.shape and got.tobytes() == want.tobytes()
