"""Is a hand-derived gradient right? Two independent answers: the complex step and central differences.

The scalar under test is L = sum(dout * y) with a random upstream gradient `dout`: with dout = 1 everywhere, every
layer-norm backward would pass. For the same reason check LoRA with a non-zero lora_B: at B = 0 every dA passes.
"""

import numpy as np

SIDEWAYS_STEP = 1e-30
CENTRAL_STEP = 6e-6  # about eps^(1/3): where truncation and rounding error of a central difference are balanced


def complex_step(f, v, step=SIDEWAYS_STEP):
    """df/dv of a real analytic f: array -> scalar, entry by entry: Im f(v + i step) / step (Squire and Trapp 1998).

    Nothing is subtracted, so nothing cancels: the error is rounding alone. f must use no abs, maximum or conjugate.
    """
    v = v.astype(complex)
    grad = np.zeros(v.shape)
    for i in np.ndindex(*v.shape):
        v[i] += 1j * step
        grad[i] = f(v).imag / step
        v[i] = v[i].real
    return grad


def finite_difference(f, v, step=CENTRAL_STEP):
    """df/dv of any f: array -> scalar, entry by entry: (f(v + step) - f(v - step)) / (2 step).

    The error is O(step^2) + O(eps / step).
    """
    v = v.astype(float)
    grad = np.zeros(v.shape)
    for i in np.ndindex(*v.shape):
        old = v[i]
        v[i] = old + step
        above = f(v)
        v[i] = old - step
        grad[i] = (above - f(v)) / (2 * step)
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
