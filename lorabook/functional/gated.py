"""The gated product of Llama's MLP, forward and backward."""

from ..backend import array_namespace, fuse


@fuse
def _gated(gate, up):
    xp = array_namespace(gate, up)
    y = xp.tanh(0.5 * gate)
    y += 1  # 2 sigma
    y *= gate
    y *= up
    y *= 0.5
    return (y,)


@fuse
def _gated_backward(dout, gate, up):
    xp = array_namespace(dout, gate, up)
    sigma = xp.tanh(0.5 * gate)
    sigma += 1
    sigma *= 0.5
    value = gate * sigma
    slope = value * sigma
    slope *= -1
    slope += value
    slope += sigma
    slope *= up
    slope *= dout
    value *= dout
    return slope, value


def swiglu(gate, up):
    """y = silu(gate) up, elementwise; silu(x) = x sigma(x) (Shazeer 2020, GLU Variants, arXiv:2002.05202).

    What is kept are the two inputs: the slope costs one tanh, and would be an array of their size.
    """
    (y,) = _gated(gate, up)
    return y, (gate, up)


def swiglu_backward(dout, cache):
    """dy = silu'(gate) up dgate + silu(gate) dup, and silu' = sigma + silu (1 - sigma), so

    dgate = dout up (sigma + silu (1 - sigma))      dup = dout silu
    """
    return _gated_backward(dout, *cache)
