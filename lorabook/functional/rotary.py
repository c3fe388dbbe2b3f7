"""Rotary position embedding: queries and keys are turned by angles that grow with the position (Su et al. 2021).

arXiv:2104.09864, in the convention of Hugging Face's checkpoints: entry i of a head is paired with i + d_head / 2. The
product of a query at position m with a key at position n then depends on n - m alone.
"""

import math

import numpy as np

from ..backend import array_namespace, asarray_like, empty, reshape
from ..errors import InputError

SCALINGS = {  # rope_type: what it is told beside rope_theta
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


def rotary_frequencies(d_head, theta=10000.0, rope_type="default", **scaling):
    """Radians a position, (d_head / 2,), host float64: w_i = theta^(-2 i / d_head), scaled for longer texts.

    "linear": w / factor (Chen et al. 2023, arXiv:2306.15595). "llama3" (Llama 3.1, arXiv:2407.21783): with the wave
    length l = 2 pi / w and the length L on which the model was trained first, w stays where l < L / high_freq_factor,
    becomes w / factor where l > L / low_freq_factor, and is mixed of both in between,

        w (1 - t) / factor + w t,    t = (L / l - low_freq_factor) / (high_freq_factor - low_freq_factor)
    """
    if rope_type not in SCALINGS:
        raise InputError(f"unknown rope_type {rope_type!r}; expected one of {', '.join(SCALINGS)}")
    w = theta ** (-np.arange(0, d_head, 2) / d_head)
    if rope_type == "linear":
        return w / scaling["factor"]
    if rope_type == "llama3":
        factor, low, high, length = (scaling[name] for name in SCALINGS["llama3"])
        t = np.clip(
            (length * w / (2 * math.pi) - low) / (high - low), 0, 1
        )  # 1 where l < L / high, 0 where l > L / low
        return w * ((1 - t) / factor + t)
    return w


def rotary_angles(positions, frequencies, like):
    """(cos, sin), each (..., 1, d_head / 2), in the dtype of `like`. positions (...) integers on its backend.

    The angles are computed in float64: a float32 of 10,000 radians is off by up to 0.0005.
    """
    xp = array_namespace(positions, like)
    w = asarray_like(frequencies, like, dtype=xp.float64)
    angles = xp.astype(positions, xp.float64)[..., None, None] * w
    return xp.astype(xp.cos(angles), like.dtype), xp.astype(xp.sin(angles), like.dtype)


def rotary(x, cos, sin, overwrite=False):
    """y: each head of x turned by the angles of its position.

    x (B, T, heads d_head); cos, sin (1 or B, T, 1, d_head / 2). overwrite: x is needed no more, and y takes its memory.

    With the halves x_1, x_2 of a head:  y_1 = x_1 cos - x_2 sin,  y_2 = x_2 cos + x_1 sin.
    """
    half = cos.shape[-1]
    if x.shape[-1] % (2 * half):
        raise InputError(f"x {tuple(x.shape)} must have heads of {2 * half} features, as the angles have")
    array_namespace(x, cos, sin)  # complains of a mix
    heads = reshape(x, (*x.shape[:-1], x.shape[-1] // (2 * half), 2 * half))  # (B, T, heads, d_head)
    one, two = heads[..., :half], heads[..., half:]
    y = heads if overwrite else empty(heads.shape, x)
    turned = two * sin, one * sin
    for i, part in enumerate((one, two)):
        own = y[..., i * half : (i + 1) * half]
        if overwrite:
            own *= cos
        else:
            own[...] = part * cos
    y[..., :half] -= turned[0]
    y[..., half:] += turned[1]
    return reshape(y, x.shape)


def rotary_backward(dout, cos, sin, overwrite=False):
    """dx of `rotary`. A turn is orthogonal, dx = R^T dout, and R^T turns back: by the same angle, negative."""
    return rotary(dout, cos, -sin, overwrite)
