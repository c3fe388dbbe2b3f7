"""Is a layer's backward pass right? Its gradients against the complex step, or central differences."""

import copy

import numpy as np

from ..functional import METHODS, relative_error
from .run import Run


def check_layer(layer, x, rng, method="complex", dropout_seed=None, directions=None):
    """{name: relative error} of `layer.backward` for the input "x" and every trainable parameter.

    layer: a NumPy layer or model with `forward` and `backward`; it is not changed. x: float64 array; or integer ids, or
    a batch {name: array} (then dx is not checked). rng: numpy Generator for dout. method: "complex" (smooth layers;
    expect below 1e-11) or "central" (kinks such as ReLU; expect below 1e-6). dropout_seed: check the training pass,
    with the dropout masks that this seed draws (default: the evaluation pass, without dropout). directions: compare
    along so many random directions of each array, <grad, v>, in place of every number: passes as many, and a gradient
    that is wrong anywhere is wrong along all but a set of measure 0. A missing, extra or misshapen gradient counts as
    infinitely wrong.
    """
    derivative, dtype = METHODS[method], "complex128" if method == "complex" else "float64"
    layer = copy.deepcopy(layer).to(np, "float64")
    y, cache = _forward(layer, x, dropout_seed)
    dout = rng.standard_normal(y.shape)
    dx, grads = layer.backward(dout, cache)
    grads = layer.add_tied(grads)
    probe = copy.deepcopy(layer).to(np, dtype)
    params = probe.trainable_params()

    def pair(got, f, value):
        """(the gradient that came, the derivative of f at value), number by number or along the directions."""
        if directions is None or got is None or got.shape != value.shape:
            return got, derivative(f, value)
        along = rng.standard_normal((directions, *value.shape))
        slopes = derivative(lambda t: f(value + np.tensordot(t, along, 1)), np.zeros(directions))
        return np.tensordot(along, got, got.ndim), slopes

    def loss(x):
        return np.sum(dout * _forward(probe, x, dropout_seed)[0])

    def loss_of(array):
        def f(value):
            array[...] = value
            return loss(x)

        return f

    pairs = {}
    if getattr(x, "dtype", None) == "float64":
        pairs["x"] = pair(dx, loss, x)
        x = x.astype(dtype)
    for name, array in params.items():
        original = array.copy()
        pairs[name] = pair(grads.get(name), loss_of(array), original.real)
        array[...] = original
    largest = max(float(np.max(np.abs(want), initial=0.0)) for _, want in pairs.values())  # a key's bias has gradient 0
    errors = {name: np.inf for name in grads.keys() - params.keys()}
    return errors | {name: _error(got, want, largest) for name, (got, want) in pairs.items()}


def _forward(layer, x, dropout_seed):
    return layer(x, Run(rng=None if dropout_seed is None else np.random.default_rng(dropout_seed)))


def _error(got, want, largest):
    return relative_error(got, want, largest) if got is not None and got.shape == want.shape else np.inf
