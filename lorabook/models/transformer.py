"""The transformer block: self-attention and an MLP, each with a residual connection and layer norm around or before it.

Every forward stands above its backward; both call the layers that they are made of, so LoRA may sit on any linear one.
"""

import itertools
import math

from ..absorbed import absorbed_attention, absorbed_attention_backward, absorbing_is_cheaper
from ..attention import attention, attention_backward
from ..errors import InputError
from ..layers import MERGED, Activation, Layer, LayerNorm, Linear, prefixed


class SelfAttention(Layer):
    """Multi-head attention of x (B, T, d) on itself: children query, key, value; see `attention.attention`.

    `first`: only the first so many tokens ask; all are still read. Then the output is (B, first, d).
    """

    def __init__(self, query, key, value, heads):
        super().__init__(children={"query": query, "key": key, "value": value})
        width = query.params["weight"].shape[0]
        if width % heads:
            raise InputError(f"the width of attention must be a multiple of its heads; got {width} and {heads}")
        self.heads = heads

    def forward(self, x, rng=None, bias=None, first=None, keep=True):
        query, key, value = self.children.values()
        if first is not None and bias is not None and bias.shape[-2] > 1:
            bias = bias[..., :first, :]  # a row for each token that asks
        q, query_cache = query.forward(x if first is None else x[:, :first, :], rng)
        if absorbing_is_cheaper(q.shape[1], x.shape[1], self.heads, q.shape[2]):
            W_k, W_v = (layer.effective_weight(math.prod(x.shape[:-1]), rng) for layer in (key, value))
            if W_k is not None and W_v is not None:
                o, cache = absorbed_attention(q, x, W_k, W_v, value.params.get("bias"), self.heads, bias)
                return o, (query_cache, (key.merged or value.merged), cache)
        (k, key_cache), (v, value_cache) = key.forward(x, rng), value.forward(x, rng)
        o, cache = attention(q, k, v, self.heads, bias, keep)
        return o, (query_cache, key_cache, value_cache, cache)

    def backward(self, dout, caches, need_dx=True):
        """x goes into all three projections, so its three gradients add."""
        if len(caches) == 3:
            return self._absorbed_backward(dout, caches, need_dx)
        *caches, cache = caches
        douts = attention_backward(dout, cache)
        dx, grads = None, {}
        for (name, child), cache_, d in reversed(list(zip(self.children.items(), caches, douts, strict=True))):
            if need_dx or child.trains():
                d, own = child.backward(d, cache_, need_dx)
                grads |= prefixed(name, own)
                if dx is None:
                    dx = d
                elif need_dx:
                    dx[:, : d.shape[1], :] += d
        return dx, grads

    def _absorbed_backward(self, dout, caches, need_dx):
        query_cache, merged, cache = caches
        if merged:
            raise InputError(MERGED)
        dq, dx, dW_k, dW_v, db_v = absorbed_attention_backward(dout, cache, need_dx)
        query, key, value = self.children.values()
        grads = prefixed("key", key.grads_of_weight(dW_k, 0 * db_v))
        grads |= prefixed("value", value.grads_of_weight(dW_v, db_v))
        if need_dx or query.trains():
            d, own = query.backward(dq, query_cache, need_dx)
            grads |= prefixed("query", own)
            if need_dx:
                dx[:, : d.shape[1], :] += d
        return dx, grads


class AddNorm(Layer):
    """y = LayerNorm(residual + dense(x)): how post-norm blocks end each half. x (..., d_in), residual (..., d)."""

    def __init__(self, dense, norm):
        super().__init__(children={"dense": dense, "LayerNorm": norm})

    def forward(self, x, residual, rng=None):
        z, dense = self.children["dense"].forward(x, rng)
        z += residual
        y, norm = self.children["LayerNorm"].forward(z)
        return y, (dense, norm)

    def backward(self, dout, cache, need_dx=True):
        """(dx, dresidual, grads): the sum hands dz to both of its terms; both None unless `need_dx`."""
        dense, norm = cache
        inside = need_dx or self.children["dense"].trains()
        dz, grads = self.children["LayerNorm"].backward(dout, norm, inside)
        grads = prefixed("LayerNorm", grads)
        if not inside:
            return None, None, grads
        dx, dense_grads = self.children["dense"].backward(dz, dense, need_dx)
        return dx, (dz if need_dx else None), prefixed("dense", dense_grads) | grads


class PostNormBlock(Layer):
    """BERT's block (Devlin et al. 2018, arXiv:1810.04805), under its Hugging Face names. x (B, T, d) -> (B, T, d).

    u = LayerNorm(x + attention.output.dense(attention.self(x)))
    y = LayerNorm(u + output.dense(gelu(intermediate.dense(u))))

    `first`: compute y for the first so many tokens only, (B, first, d): all that a head on the first token reads.
    """

    def __init__(self, attention, attention_output, intermediate, output, activation="gelu"):
        children = {"self": attention, "output": attention_output}
        super().__init__(
            children={
                "attention": Layer(children=children),
                "intermediate": Layer(children={"dense": intermediate}),
                "output": output,
            }
        )
        self.activation = Activation(activation, overwrite=True)

    @classmethod
    def random(cls, d, heads, d_mlp, rng, eps=1e-12):
        """A block with random weights."""
        linear = itertools.starmap(
            lambda d_in, d_out: Linear.random(d_in, d_out, rng), [(d, d)] * 4 + [(d, d_mlp), (d_mlp, d)]
        )
        query, key, value, dense, up, down = linear
        first, second = AddNorm(dense, LayerNorm.unit(d, eps)), AddNorm(down, LayerNorm.unit(d, eps))
        return cls(SelfAttention(query, key, value, heads), first, up, second)

    def _parts(self):
        attention = self.children["attention"].children
        return (
            attention["self"],
            attention["output"],
            self.children["intermediate"].children["dense"],
            self.children["output"],
        )

    def forward(self, x, rng=None, bias=None, first=None, keep=True):
        attention, attention_output, intermediate, output = self._parts()
        a, attention_cache = attention.forward(x, rng, bias, first, keep)
        u, attention_output_cache = attention_output.forward(a, x[:, : a.shape[1], :], rng)
        h, intermediate_cache = intermediate.forward(u, rng)
        h, activation_cache = self.activation.forward(h, keep=keep)
        y, output_cache = output.forward(h, u, rng)
        return y, (attention_cache, attention_output_cache, intermediate_cache, activation_cache, output_cache)

    def backward(self, dout, cache, need_dx=True):
        """u goes into the MLP and past it, x into attention and past it: their two gradients add."""
        attention, attention_output, intermediate, output = self._parts()
        attention_cache, attention_output_cache, intermediate_cache, activation_cache, output_cache = cache
        below_attention_output = need_dx or attention.trains()  # each: is there anything to do below that layer?
        below_intermediate = below_attention_output or attention_output.trains()
        below_output = below_intermediate or intermediate.trains()
        dh, du, grads = output.backward(dout, output_cache, below_output)
        grads = prefixed("output", grads)
        if not below_output:
            return None, grads
        dh, _ = self.activation.backward(dh, activation_cache)
        du_mlp, own = intermediate.backward(dh, intermediate_cache, below_intermediate)
        grads |= prefixed("intermediate.dense", own)
        if not below_intermediate:
            return None, grads
        da, dx, own = attention_output.backward(du + du_mlp, attention_output_cache, below_attention_output)
        grads |= prefixed("attention.output", own)
        if not below_attention_output:
            return None, grads
        dx_attention, own = attention.backward(da, attention_cache, need_dx)
        if need_dx:
            dx_attention[:, : dx.shape[1], :] += dx
        return dx_attention, grads | prefixed("attention.self", own)


class PreNormBlock(Layer):
    """The block of GPT-2 and its successors: norms before each half, the residual stream untouched. x (B, T, d).

    u = x + output(attention(norm1(x)))
    y = u + down(gelu(up(norm2(u))))
    """

    def __init__(self, norm1, attention, output, norm2, up, down, activation="gelu_tanh"):
        super().__init__(
            children={"norm1": norm1, "attention": attention, "output": output, "norm2": norm2, "up": up, "down": down}
        )
        self.activation = Activation(activation, overwrite=True)

    @classmethod
    def random(cls, d, heads, d_mlp, rng, eps=1e-5):
        """A block with random weights."""
        query, key, value, output = (Linear.random(d, d, rng) for _ in range(4))
        up, down = Linear.random(d, d_mlp, rng), Linear.random(d_mlp, d, rng)
        return cls(
            LayerNorm.unit(d, eps), SelfAttention(query, key, value, heads), output, LayerNorm.unit(d, eps), up, down
        )

    def forward(self, x, rng=None, bias=None, keep=True):
        norm1, attention, output, norm2, up, down = self.children.values()
        n, norm1_cache = norm1.forward(x)
        a, attention_cache = attention.forward(n, rng, bias, keep=keep)
        u, output_cache = output.forward(a, rng)
        u += x
        n, norm2_cache = norm2.forward(u)
        h, up_cache = up.forward(n, rng)
        h, activation_cache = self.activation.forward(h, keep=keep)
        y, down_cache = down.forward(h, rng)
        y += u
        return y, (norm1_cache, attention_cache, output_cache, norm2_cache, up_cache, activation_cache, down_cache)

    def backward(self, dout, cache, need_dx=True):
        """y = u + f(u) gives du = dy + f'(u)^T dy: each half adds its gradient to the one that passes by."""
        norm1_cache, attention_cache, output_cache, norm2_cache, up_cache, activation_cache, down_cache = cache
        names, grads = list(self.children), {}
        lowest = -1 if need_dx else next((i for i, n in enumerate(names) if self.children[n].trains()), len(names))

        def through(name, d, layer_cache):
            """The gradient of the layer's input; None from where nothing below needs one."""
            if d is None or names.index(name) < lowest:
                return None
            d, own = self.children[name].backward(d, layer_cache, names.index(name) > lowest)
            grads.update(prefixed(name, own))
            return d

        dh = through("down", dout, down_cache)
        dh = None if dh is None else self.activation.backward(dh, activation_cache)[0]
        dn = through("norm2", through("up", dh, up_cache), norm2_cache)
        if dn is None:
            return None, grads
        du = dout + dn
        dn = through("attention", through("output", du, output_cache), attention_cache)
        dx = through("norm1", dn, norm1_cache)
        return (du + dx if need_dx else None), grads
