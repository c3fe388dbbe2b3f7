"""Llama's block: causal attention with rotary positions and shared key heads, a gated MLP, an RMS norm before each.

Every forward stands above its backward; both call the layers that they are made of, so LoRA may sit on any linear one.
Names are those of Hugging Face's checkpoints.
"""

from ..errors import InputError
from ..functional import (
    grouped_attention,
    grouped_attention_backward,
    rms_norm_again,
    rotary,
    rotary_backward,
    swiglu,
    swiglu_backward,
)
from ..layers import RUN, Again, Layer, prefixed, within, without

GATED, NORMED = Again(), Again()  # what the blocks do not keep for the backward pass, but make again


class GroupedAttention(Layer):
    """o_proj(attention(rotary(q_proj(x)), rotary(k_proj(x)), v_proj(x))), x (B, T, d); see `grouped_attention`.

    `run.spans` says which keys a query sees, `run.angles` what turns it. With `run.kv` the keys and values of what came
    before are read from there, and those of x are added to it.
    """

    def __init__(self, q_proj, k_proj, v_proj, o_proj, heads, kv_heads):
        super().__init__(children={"q_proj": q_proj, "k_proj": k_proj, "v_proj": v_proj, "o_proj": o_proj})
        if heads % kv_heads:
            raise InputError(f"the query heads must be a multiple of the key heads; got {heads} and {kv_heads}")
        self.heads, self.kv_heads = heads, kv_heads

    def forward(self, x, run=RUN):
        q_proj, k_proj, v_proj, o_proj = self.children.values()
        (q, q_cache), (k, k_cache), (v, v_cache) = q_proj(x, run), k_proj(x, run), v_proj(x, run)
        if run.watch is None:  # nobody else has q and k
            q, k = (rotary(x, *run.angles, overwrite=True) for x in (q, k))
        else:
            q, k = (rotary(x, *run.angles) for x in (q, k))
        if run.kv is not None:
            k, v = run.kv.extend(self, k, v)
        o, cache = grouped_attention(q, k, v, self.heads, self.kv_heads, run.spans, run.keep)
        y, o_cache = o_proj(o, run)
        return y, (q_cache, k_cache, v_cache, o_cache, cache, run.angles)

    def backward(self, dout, caches, need_dx=True):
        """x goes into all three projections, so its three gradients add."""
        *caches, o_cache, cache, angles = caches
        below = ("v_proj", "k_proj", "q_proj")
        inside = need_dx or any(self.children[name].trains() for name in below)
        do, grads = self.children["o_proj"].backward(dout, o_cache, inside)
        grads = prefixed("o_proj", grads)
        if not inside:
            return None, grads
        dq, dk, dv = grouped_attention_backward(do, cache)
        dx = None
        for name, d, own_cache in zip(below, (dv, dk, dq), reversed(caches), strict=True):
            child = self.children[name]
            if need_dx or child.trains():
                d, own = child.backward(
                    d if name == "v_proj" else rotary_backward(d, *angles, overwrite=True), own_cache, need_dx
                )
                grads |= prefixed(name, own)
                if need_dx:
                    dx = d if dx is None else _added(dx, d)
        return dx, grads


class GatedMLP(Layer):
    """down_proj(silu(gate_proj(x)) * up_proj(x)); see `functional.swiglu`."""

    def __init__(self, gate_proj, up_proj, down_proj):
        super().__init__(children={"gate_proj": gate_proj, "up_proj": up_proj, "down_proj": down_proj})

    def forward(self, x, run=RUN):
        gate_proj, up_proj, down_proj = self.children.values()
        (gate, gate_cache), (up, up_cache) = gate_proj(x, run), up_proj(x, run)
        h, cache = swiglu(gate, up)
        del gate, up  # without `run.keep` their memory is free for down_proj
        cache = cache if run.keep else None
        y, down_cache = down_proj(h, run)
        return y, (gate_cache, up_cache, without(down_cache, h, GATED) if run.spare else down_cache, cache)

    def backward(self, dout, caches, need_dx=True):
        """x goes into both projections, so its two gradients add."""
        gate_cache, up_cache, down_cache, cache = caches
        gate_proj, up_proj, down_proj = self.children.values()
        inside = need_dx or gate_proj.trains() or up_proj.trains()
        down_cache = within(down_cache, GATED, lambda: swiglu(*cache)[0])
        dh, grads = down_proj.backward(dout, down_cache, inside)
        del down_cache
        grads = prefixed("down_proj", grads)
        if not inside:
            return None, grads
        dgate, dup = swiglu_backward(dh, cache)
        dx = None
        for name, d, own_cache in (("up_proj", dup, up_cache), ("gate_proj", dgate, gate_cache)):
            if need_dx or self.children[name].trains():
                d, own = self.children[name].backward(d, own_cache, need_dx)
                grads |= prefixed(name, own)
                if need_dx:
                    dx = d if dx is None else _added(dx, d)
        return dx, grads


def _added(total, more):
    total += more
    return total


class DecoderBlock(Layer):
    """Llama's block (Touvron et al. 2023, arXiv:2302.13971). x (B, T, d) -> (B, T, d).

    u = x + self_attn(input_layernorm(x))
    y = u + mlp(post_attention_layernorm(u))
    """

    def __init__(self, self_attn, mlp, input_layernorm, post_attention_layernorm):
        super().__init__(
            children={
                "self_attn": self_attn,
                "mlp": mlp,
                "input_layernorm": input_layernorm,
                "post_attention_layernorm": post_attention_layernorm,
            }
        )

    def forward(self, x, run=RUN):
        self_attn, mlp, norm1, norm2 = self.children.values()
        n, norm1_cache = norm1(x, run)
        u, attention_cache = self_attn(n, run)
        attention_cache = without(attention_cache, n, NORMED) if run.spare else attention_cache
        u += x
        n, norm2_cache = norm2(u, run)
        y, mlp_cache = mlp(n, run)
        mlp_cache = without(mlp_cache, n, NORMED) if run.spare else mlp_cache
        y += u
        return y, (norm1_cache, attention_cache, norm2_cache, mlp_cache)

    def backward(self, dout, cache, need_dx=True):
        """y = u + f(u) gives du = dy + f'(u)^T dy: each half adds its gradient to the one that passes by."""
        norm1_cache, attention_cache, norm2_cache, mlp_cache = cache
        below_u = need_dx or self.children["input_layernorm"].trains() or self.children["self_attn"].trains()
        du, grads = self._half("mlp", "post_attention_layernorm", dout, mlp_cache, norm2_cache, below_u)
        if not below_u:
            return None, grads
        dx, own = self._half("self_attn", "input_layernorm", du, attention_cache, norm1_cache, need_dx)
        return dx, grads | own

    def _half(self, part, norm, dout, part_cache, norm_cache, need_dx):
        """(dx, grads) of y = x + part(norm(x)); what nothing needs is not computed."""
        part_layer, norm_layer = self.children[part], self.children[norm]
        through = need_dx or norm_layer.trains()
        if not (through or part_layer.trains()):
            return None, {}
        part_cache = within(part_cache, NORMED, lambda: rms_norm_again(norm_cache))
        dn, grads = part_layer.backward(dout, part_cache, through)
        grads = prefixed(part, grads)
        if not through:
            return None, grads
        dx, own = norm_layer.backward(dn, norm_cache, need_dx)
        return (_added(dx, dout) if need_dx else None), grads | prefixed(norm, own)
