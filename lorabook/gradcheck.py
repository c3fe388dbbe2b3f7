"""Is a hand-derived gradient right? Two independent answers: the complex step and central differences.

The scalar under test is L = sum(dout * y) with a random upstream gradient `dout`: with dout = 1 everywhere, every
layer-norm backward would pass. For the same reason check LoRA with a non-zero lora_B: at B = 0 every dA passes.
"""

import copy

import numpy as np

COMPLEX_H = 1e-30
CENTRAL_H = 6e-6  # about eps^(1/3): where truncation and rounding error of a central difference are balanced


def complex_step(f, v, h=COMPLEX_H):
    """df/dv of a real analytic f: array -> scalar, entry by entry: Im f(v + i h) / h (Squire and Trapp 1998).

    Nothing is subtracted, so nothing cancels: the error is rounding alone. f must use no abs, maximum or conjugate.
    """
    v = v.astype(complex)
    grad = np.zeros(v.shape)
    for i in np.ndindex(*v.shape):
        v[i] += 1j * h
        grad[i] = f(v).imag / h
        v[i] = v[i].real
    return grad


def finite_difference(f, v, h=CENTRAL_H):
    """df/dv of any f: array -> scalar, entry by entry: (f(v + h) - f(v - h)) / 2h. Error O(h^2) + O(eps / h)."""
    v = v.astype(float)
    grad = np.zeros(v.shape)
    for i in np.ndindex(*v.shape):
        old = v[i]
        v[i] = old + h
        above = f(v)
        v[i] = old - h
        grad[i] = (above - f(v)) / (2 * h)
        v[i] = old
    return grad


METHODS = {"complex": complex_step, "central": finite_difference}


def relative_error(got, want, largest=0.0):
    """max |got - want| / max |want|; infinite if a NaN is among them.

    Where `want` vanishes, or is rounding error beside `largest`, the error is relative to `largest`, or absolute.
    """
    scale = float(np.max(np.abs(want), initial=0.0))
    scale = largest if scale <= 1e-12 * largest else scale
    error = float(np.max(np.abs(got - want), initial=0.0)) / (scale or 1.0)
    return np.inf if np.isnan(error) else error  # max() over errors would pass over a NaN


def check_layer(layer, x, rng, method="complex", dropout_seed=None):
    """{name: relative error} of `layer.backward` for the input "x" and every trainable parameter.

    layer: a NumPy layer or model with `forward` and `backward`; it is not changed. x: float64 array or integer ids
    (then dx is not checked). rng: numpy Generator for dout. method: "complex" (smooth layers; expect below 1e-11) or
    "central" (kinks such as ReLU; expect below 1e-6). dropout_seed: check the training pass, with the dropout masks
    that this seed draws (default: the evaluation pass, without dropout). A missing, extra or misshapen gradient counts
    as infinitely wrong.
    """
    derivative, dtype = METHODS[method], "complex128" if method == "complex" else "float64"
    layer = copy.deepcopy(layer).to(np, "float64")
    y, cache = _forward(layer, x, dropout_seed)
    dout = rng.standard_normal(y.shape)
    dx, grads = layer.backward(dout, cache)
    probe = copy.deepcopy(layer).to(np, dtype)
    params = probe.trainable_params()

    def loss(x):
        return np.sum(dout * _forward(probe, x, dropout_seed)[0])

    def loss_of(array):
        def f(value):
            array[...] = value
            return loss(x)

        return f

    pairs = {}
    if np.issubdtype(x.dtype, np.floating):
        pairs["x"] = dx, derivative(loss, x)
        x = x.astype(dtype)
    for name, array in params.items():
        original = array.copy()
        pairs[name] = grads.get(name), derivative(loss_of(array), original.real)
        array[...] = original
    largest = max(float(np.max(np.abs(want), initial=0.0)) for _, want in pairs.values())  # a key's bias has gradient 0
    errors = {name: np.inf for name in grads.keys() - params.keys()}
    return errors | {name: _error(got, want, largest) for name, (got, want) in pairs.items()}


def _forward(layer, x, dropout_seed):
    return layer.forward(x, None if dropout_seed is None else np.random.default_rng(dropout_seed))


def _error(got, want, largest):
    return relative_error(got, want, largest) if got is not None and got.shape == want.shape else np.inf
