"""The transformer block: self-attention and an MLP, each with a residual connection and layer norm around or before it.

Every forward stands above its backward; both call the layers that they are made of, so LoRA may sit on any linear one.
"""

from ..layers import RUN, Activation, Layer, LayerNorm, Linear, prefixed
from .attention import SelfAttention

# What is in a block, in order, under the names of BERT's checkpoints; PostNormBlock takes others too.
BLOCK = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "output": "attention.output.dense",
    "norm1": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "norm2": "output.LayerNorm",
}


def at(layer, path):
    """The layer at a dotted path inside `layer`."""
    for name in path.split("."):
        layer = layer.children[name]
    return layer


def put(layer, path, child):
    """Set the child at a dotted path inside `layer`; what does not exist on the way there is made."""
    *above, last = path.split(".")
    for name in above:
        layer = layer.children.setdefault(name, Layer())
    layer.children[last] = child


class PostNormBlock(Layer):
    """BERT's block (Devlin et al. 2018, arXiv:1810.04805). x (B, T, d) -> (B, T, d).

    u = norm1(x + output(attention(x)))
    y = norm2(u + down(gelu(up(u))))

    With `run.first` y is computed for the first so many tokens only, (B, first, d): all that a head on the first reads.
    """

    def __init__(self, layers, heads, activation="gelu", names=BLOCK):
        """layers: {key of BLOCK: layer}. names: {the same: dotted name in this block}, here and in its checkpoints."""
        super().__init__()
        place, own = names["query"].rpartition(".")[0], [names[n].rpartition(".")[2] for n in ("query", "key", "value")]
        put(self, place, SelfAttention(layers["query"], layers["key"], layers["value"], heads, own))
        self.names = place, *(names[part] for part in ("output", "norm1", "up", "down", "norm2"))
        for part in ("output", "norm1", "up", "down", "norm2"):
            put(self, names[part], layers[part])
        self.activation = Activation(activation, overwrite=True)

    @classmethod
    def random(cls, d, heads, d_mlp, rng, eps=1e-12):
        """A block with random weights."""
        sizes = {part: (d, d) for part in ("query", "key", "value", "output")} | {"up": (d, d_mlp), "down": (d_mlp, d)}
        layers = {part: Linear.random(*size, rng) for part, size in sizes.items()}
        return cls(layers | {part: LayerNorm.unit(d, eps) for part in ("norm1", "norm2")}, heads)

    def forward(self, x, run=RUN):
        attention, output, norm1, up, down, norm2 = (at(self, name) for name in self.names)
        a, attention_cache = attention(x, run)
        z, output_cache = output(a, run)
        z += x[:, : a.shape[1], :]
        u, norm1_cache = norm1(z, run)
        h, up_cache = up(u, run)
        h, activation_cache = self.activation.forward(h, run)
        z, down_cache = down(h, run)
        z += u
        y, norm2_cache = norm2(z, run)
        return y, (attention_cache, output_cache, norm1_cache, up_cache, activation_cache, down_cache, norm2_cache)

    def backward(self, dout, cache, need_dx=True):
        """u goes into the MLP and past it, x into attention and past it: their two gradients add."""
        attention_cache, output_cache, norm1_cache, up_cache, activation_cache, down_cache, norm2_cache = cache
        parts, grads = {name: at(self, name) for name in self.names}, {}
        attention, output, norm1, up, down, norm2 = names = list(parts)
        trains = [any(p.trains() for p in parts[attention].projections), *(parts[name].trains() for name in names[1:])]
        lowest = -1 if need_dx else trains.index(True) if True in trains else len(names)

        def through(name, d, layer_cache):
            """The gradient of the layer's input; None from where nothing below needs one."""
            if d is None or names.index(name) < lowest:
                return None
            d, own = parts[name].backward(d, layer_cache, names.index(name) > lowest)
            grads.update(prefixed(name, own))
            return d

        dz2 = through(norm2, dout, norm2_cache)
        dh = through(down, dz2, down_cache)
        dh = None if dh is None else self.activation.backward(dh, activation_cache)[0]
        du = through(up, dh, up_cache)
        if du is None:
            return None, grads
        dz1 = through(norm1, du + dz2, norm1_cache)
        dx = through(attention, through(output, dz1, output_cache), attention_cache)
        if need_dx:
            dx[:, : dz1.shape[1], :] += dz1
        return dx, grads


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

    def forward(self, x, run=RUN):
        norm1, attention, output, norm2, up, down = self.children.values()
        n, norm1_cache = norm1(x, run)
        a, attention_cache = attention(n, run)
        u, output_cache = output(a, run)
        u += x
        n, norm2_cache = norm2(u, run)
        h, up_cache = up(n, run)
        h, activation_cache = self.activation.forward(h, run)
        y, down_cache = down(h, run)
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
