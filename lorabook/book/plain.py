"""The smallest code of an idea, as a chapter derives it, to be read beside the formulas. The library's is faster."""

import math

from ..functional import merge_heads, softmax, split_heads


def attention(q, k, v, heads, bias=0):
    """q, k, v (B_, T, d) -> o (B_, T, d); bias: broadcastable to (B_, heads, T, T)."""
    q, k, v = (split_heads(x, heads) for x in (q, k, v))  # (B_, heads, T, d_head)
    c = 1 / math.sqrt(q.shape[-1])
    p, _ = softmax(c * (q @ k.mT) + bias)  # (B_, heads, T, T)
    o = p @ v  # (B_, heads, T, d_head)
    return merge_heads(o), (q, k, v, p, o, c)


def attention_backward(dout, cache):
    """Gradients dq, dk, dv (B_, T, d) of `attention`."""
    q, k, v, p, o, c = cache
    do = split_heads(dout, q.shape[1])  # (B_, heads, T, d_head)
    dv = p.mT @ do  # (B_, heads, T, d_head)
    dp = do @ v.mT  # (B_, heads, T, T)
    dscores = p * (dp - (do * o).sum(axis=-1, keepdims=True))  # (B_, heads, T, T)
    dq = c * (dscores @ k)  # (B_, heads, T, d_head)
    dk = c * (dscores.mT @ q)  # (B_, heads, T, d_head)
    return tuple(merge_heads(x) for x in (dq, dk, dv))


def block(x, layers, heads):
    """A post-norm block of `layers`, by their names in the drawing. x (B_, T, d) -> y (B_, T, d)."""
    caches = {}

    def call(name, x):
        y, caches[name] = layers[name](x)
        return y

    q, k, v = (call(name, x) for name in ("query", "key", "value"))
    o, caches["attention"] = attention(q, k, v, heads)
    u = call("norm1", x + call("output", o))
    y = call("norm2", u + call("down", call("gelu", call("up", u))))
    return y, caches


def block_backward(dy, layers, caches):
    """dx (B_, T, d), and {name: gradients} of the layers of `block`."""
    grads = {}

    def back(name, dout):
        dx, grads[name] = layers[name].backward(dout, caches[name])
        return dx

    dsum2 = back("norm2", dy)
    du = dsum2 + back("up", back("gelu", back("down", dsum2)))
    dsum1 = back("norm1", du)
    dq, dk, dv = attention_backward(back("output", dsum1), caches["attention"])
    dx = dsum1 + back("query", dq) + back("key", dk) + back("value", dv)
    return dx, grads
