"""Attention of a few queries without keys and values: their weights are absorbed into the query and the output.

A head that reads only the first token asks one question a text in the last block. Then it is cheaper to carry that
question through W_k to the inputs x, and the mean of the x through W_v back, than to make a key and a value of every
token: the two products with B T rows become two with B f. (The order in which DeepSeek-V2 decodes, Liu et al. 2024,
arXiv:2405.04434, section 2.1.2.)
"""

import math

from ..backend import array_namespace, bmm
from .reductions import row_sums
from .softmax import softmax_


def absorbing_is_cheaper(f, T, heads, d):
    """Whether f queries of T tokens cost fewer FLOPs so: f (d + heads T) against T d, times 4 B d_in in both."""
    return f * (d + heads * T) < T * d


def absorbed_attention(q, x, key_weight, value_weight, value_bias, heads, bias=None):
    """o (B, f, d): as `attention` gives it for k = x W_k^T + 1 b_k^T and v = x W_v^T + 1 b_v^T.

    q (B, f, d), x (B, T, d_in), weights (d, d_in), value_bias (d,) or None; bias broadcastable to (B, heads, f, T).
    In each head, with p = softmax(scores) and c = 1 / sqrt(d_head):

        scores = c q (x W_k^T + 1 b_k^T)^T = c q W_k x^T + (c q b_k) 1^T  what is the same in a row, softmax ignores
        o      = p (x W_v^T + 1 b_v^T)     = (p x) W_v^T + 1 b_v^T        rows of p sum to 1
    """
    xp = array_namespace(q, x, key_weight, value_weight)
    (B, f, d), T = q.shape, x.shape[1]
    q = _by_head(q, heads) * (1 / math.sqrt(d // heads))  # (heads, B f, d_head)
    W_k, W_v = (xp.reshape(W, (heads, d // heads, x.shape[-1])) for W in (key_weight, value_weight))
    t = _by_text(bmm(q, W_k), B, f)  # (B, heads f, d_in)
    p = xp.reshape(bmm(t, x.mT), (B, heads, f, T))
    if bias is not None:
        p += bias
    p = xp.reshape(softmax_(p), (B, heads * f, T))
    u = bmm(p, x)  # (B, heads f, d_in)
    o = _merge(bmm(_of_text(u, heads), W_v.mT), B, f)  # (B, f, d)
    if value_bias is not None:
        o += value_bias
    return o, (q, x, W_k, W_v, t, p, u)


def absorbed_attention_backward(dout, cache, need_dx=True):
    """(dq, dx, dW_k, dW_v, db_v) of `absorbed_attention`; b_k has the gradient 0. The cached q is q_in c.

    With t = q W_k and u = p x, in each head:

        do = du W_v^T + u dW_v^T + 1 db_v^T:      du = do W_v        dW_v = do^T u        db_v = do^T 1
        du = dp x + p dx, dscores = p (dp - D):   dp = du x^T        D_i = sum_j dp_ij p_ij = <du_i, u_i>
        dscores = dt x^T + t dx^T:                dt = dscores x     dx = p^T du + dscores^T t
        dt = dq W_k + q dW_k:                     dq_in = c dt W_k^T                      dW_k = q^T dt
    """
    q, x, W_k, W_v, t, p, u = cache
    xp = array_namespace(dout, x)
    (heads, d_head, d_in), (B, f, _) = W_k.shape, dout.shape
    do = _by_head(dout, heads)  # (heads, B f, d_head)
    du = _by_text(bmm(do, W_v), B, f)  # (B, heads f, d_in)
    dW_v = xp.reshape(bmm(do.mT, _of_text(u, heads)), (heads * d_head, d_in))
    dscores = bmm(du, x.mT)  # dp, (B, heads f, T)
    dscores -= row_sums(du * u)[..., None]
    dscores *= p
    dt = _of_text(bmm(dscores, x), heads)  # (heads, B f, d_in)
    dx = bmm(p.mT, du) + bmm(dscores.mT, t) if need_dx else None
    dq = _merge(bmm(dt, W_k.mT), B, f) * (1 / math.sqrt(d_head))
    dW_k = xp.reshape(bmm(q.mT, dt), (heads * d_head, d_in))
    return dq, dx, dW_k, dW_v, xp.sum(dout, axis=(0, 1))


def _by_head(x, heads):
    """(B, f, heads n) -> (heads, B f, n)."""
    B, f, d = x.shape
    xp = array_namespace(x)
    return xp.reshape(xp.permute_dims(xp.reshape(x, (B * f, heads, d // heads)), (1, 0, 2)), (heads, B * f, d // heads))


def _merge(x, B, f):
    """(heads, B f, n) -> (B, f, heads n)."""
    heads, _, n = x.shape
    xp = array_namespace(x)
    return xp.reshape(xp.permute_dims(x, (1, 0, 2)), (B, f, heads * n))


def _by_text(x, B, f):
    """(heads, B f, n) -> (B, heads f, n)."""
    heads, _, n = x.shape
    xp = array_namespace(x)
    return xp.reshape(xp.permute_dims(xp.reshape(x, (heads, B, f, n)), (1, 0, 2, 3)), (B, heads * f, n))


def _of_text(x, heads):
    """(B, heads f, n) -> (heads, B f, n)."""
    (B, _, n), f = x.shape, x.shape[1] // heads
    xp = array_namespace(x)
    return xp.reshape(xp.permute_dims(xp.reshape(x, (B, heads, f, n)), (1, 0, 2, 3)), (heads, B * f, n))
