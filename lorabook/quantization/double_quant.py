"""Double quantisation: the scales of the blocks in 8 bits too (Dettmers et al. 2023, arXiv:2305.14314, section 3).

A float32 scale for 64 weights costs half a bit a weight. The scales are positive and alike, so their mean is taken off,
and what is left goes to 8 bits in groups of 256, each with one float32: 8/64 + 32/(64 * 256) = 0.127 bits a weight.
The paper uses 8-bit floats; here the 255 levels are evenly spaced, which costs the same memory.
"""

import numpy as np

from ..backend import array_namespace

GROUP, LARGEST = 256, 127


def quantize_scales(scale):
    """{"scale_codes": int8 (n,), "scale_steps": (ceil(n / 256),), "scale_mean": (1,)} of scales (n,) float32."""
    mean = np.mean(scale, dtype="f8").astype("f4")
    groups = np.zeros((-(-scale.size // GROUP), GROUP), "f4")
    groups.reshape(-1)[: scale.size] = scale - mean
    steps = np.max(np.abs(groups), axis=1) / np.float32(LARGEST)
    codes = np.rint(groups / np.where(steps == 0, np.float32(1), steps)[:, None]).astype("i1")
    return {"scale_codes": codes.reshape(-1)[: scale.size], "scale_steps": steps, "scale_mean": mean[None]}


def dequantize_scales(arrays):
    """The scales (n,) float32, on the backend of the arrays: code * step of its group + mean."""
    codes, steps, mean = (arrays[f"scale_{part}"] for part in ("codes", "steps", "mean"))
    xp, n = array_namespace(codes, steps, mean), codes.shape[0]
    return xp.astype(codes, steps.dtype) * xp.repeat(steps, GROUP)[:n] + mean
