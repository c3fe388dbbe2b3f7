"""Self-attention as a layer. It calls the layers it is made of, so LoRA may sit on any of its projections."""

import math

from ..errors import InputError
from ..functional import (
    absorbed_attention,
    absorbed_attention_backward,
    absorbing_is_cheaper,
    attention,
    attention_backward,
    causal_bias,
)
from ..layers import MERGED, RUN, Layer, prefixed


class SelfAttention(Layer):
    """Multi-head attention of x (B, T, d) on itself: children query, key, value; see `functional.attention`.

    With `run.first` only the first so many tokens ask; all are still read. Then the output is (B, first, d).
    """

    def __init__(self, query, key, value, heads, names=("query", "key", "value")):
        """names: of the three children. A block may put others beside them, which are its own business."""
        super().__init__(children=dict(zip(names, (query, key, value), strict=True)))
        self.names = tuple(names)
        width = query.shape[0]
        if width % heads:
            raise InputError(f"the width of attention must be a multiple of its heads; got {width} and {heads}")
        self.heads = heads

    @property
    def projections(self):
        """The layers of query, key and value."""
        return [self.children[name] for name in self.names]

    def forward(self, x, run=RUN):
        query, key, value = self.projections
        q, query_cache = query(x if run.first is None else x[:, : run.first, :], run)
        if run.watch is None and absorbing_is_cheaper(q.shape[1], x.shape[1], self.heads, q.shape[2]):
            found = [layer.effective_weight(math.prod(x.shape[:-1]), run) for layer in (key, value)]
            if None not in found:
                (W_k, key_cache), (W_v, value_cache) = found
                bias = causal_bias(q.shape[1], q, x.shape[1]) if run.causal else None
                bias = run.bias if bias is None else bias if run.bias is None else bias + run.bias
                o, cache = absorbed_attention(q, x, W_k, W_v, value.effective_bias, self.heads, bias)
                weight_caches = None if key.merged or value.merged else (key_cache, value_cache)
                return o, (query_cache, weight_caches, cache)
        (k, key_cache), (v, value_cache) = key(x, run), value(x, run)
        o, cache = attention(q, k, v, self.heads, run.bias, run.keep, run.causal)
        return o, (query_cache, key_cache, value_cache, cache)

    def backward(self, dout, caches, need_dx=True):
        """x goes into all three projections, so its three gradients add."""
        if len(caches) == 3:
            return self._absorbed_backward(dout, caches, need_dx)
        *caches, cache = caches
        douts = attention_backward(dout, cache)
        dx, grads = None, {}
        for name, child, cache_, d in reversed(list(zip(self.names, self.projections, caches, douts, strict=True))):
            if need_dx or child.trains():
                d, own = child.backward(d, cache_, need_dx)
                grads |= prefixed(name, own)
                if dx is None:
                    dx = d
                elif need_dx:
                    dx[:, : d.shape[1], :] += d
        return dx, grads

    def _absorbed_backward(self, dout, caches, need_dx):
        query_cache, weight_caches, cache = caches
        if weight_caches is None:
            raise InputError(MERGED)
        dq, dx, dW_k, dW_v, db_v = absorbed_attention_backward(dout, cache, need_dx)
        query, key, value = self.projections
        of_query, of_key, of_value = self.names
        grads = prefixed(of_key, key.grads_of_weight(dW_k, 0 * db_v, weight_caches[0]))
        grads |= prefixed(of_value, value.grads_of_weight(dW_v, db_v, weight_caches[1]))
        if need_dx or query.trains():
            d, own = query.backward(dq, query_cache, need_dx)
            grads |= prefixed(of_query, own)
            if need_dx:
                dx[:, : d.shape[1], :] += d
        return dx, grads
