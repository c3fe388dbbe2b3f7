"""The layer protocol: `y, cache = layer.forward(x)` and `dx, grads = layer.backward(dout, cache)`.

Neither call stores anything on the layer, so several forwards can be in flight over one model, and gradients of shards
are summed by adding dictionaries. `params` holds this layer's own arrays, `children` the layers inside it; dotted names
join the two. A parameter gets a gradient only if its name is in `trainable`.
"""

import difflib

import numpy as np

from . import functional as F
from .backend import array_namespace, asarray_like, check_float, scatter_add, to_numpy
from .errors import InputError

MERGED = "this layer was merged in the forward pass; call unmerge() before training"


class Layer:
    """Base of all layers: naming, freezing, moving and loading of parameters."""

    merged = False  # of an adapter: whether its weight is W + s B A at the moment
    output_layer = None  # of a model with a head: the path of the layer that "all-linear" leaves out
    encoder = (
        None  # and the name of the child below it, which alone may have been the model that an adapter was made for
    )

    def __init__(self, params=None, children=None):
        self.params = dict(params or {})
        self.children = dict(children or {})
        self.trainable = set(self.params)
        for name, array in self.params.items():
            check_float(array, name)

    def forward(self, x, rng=None, keep=True):
        """Output and cache. A host `numpy.random.Generator` as `rng` means training: dropout draws from it.

        Without `keep` no backward pass follows, and the cache may be None.
        """
        raise NotImplementedError

    def backward(self, dout, cache, need_dx=True):
        """(dx, grads): dx is None unless `need_dx`; grads has the trainable parameters' names and shapes."""
        raise NotImplementedError

    def predict(self, x):
        """The output alone."""
        return self.forward(x)[0]

    def check_input(self, x):
        """Raise InputError if the host array x holds what this layer, or its first child, cannot take.

        For whoever moves data to a device: there, forward does not look at values, as it would have to wait for them.
        """
        if first := next(iter(self.children.values()), None):
            first.check_input(x)

    def needs(self, need_dx=True):
        """What backward has to compute: the trainable parameters' names, and "x" if wanted."""
        return self.trainable | {"x"} if need_dx else self.trainable

    def named_layers(self, prefix=""):
        """(dotted name, layer) for this layer and every layer inside it, in order."""
        yield prefix, self
        for name, child in self.children.items():
            yield from child.named_layers(f"{prefix}.{name}" if prefix else name)

    def _named(self, trainable_only):
        for prefix, layer in self.named_layers():
            for name, array in layer.params.items():
                if not trainable_only or name in layer.trainable:
                    yield f"{prefix}.{name}" if prefix else name, array

    def named_params(self):
        """{dotted name: array} of all parameters. The arrays are the layer's own: writing into them changes it."""
        return dict(self._named(trainable_only=False))

    def trainable_params(self):
        """{dotted name: array} of the parameters that train."""
        return dict(self._named(trainable_only=True))

    def trains(self):
        """Whether any parameter of this layer, or of one inside it, trains."""
        return bool(self.trainable) or any(child.trains() for child in self.children.values())

    def set_trainable(self, names):
        """Train exactly the parameters with these dotted names. Raises InputError for a name that does not exist."""
        names = {names} if isinstance(names, str) else set(names)
        if unknown := names - set(self.named_params()):
            name = min(unknown)
            close = difflib.get_close_matches(name, self.named_params(), n=3, cutoff=0.3)
            raise InputError(f"no parameter is called {name!r}; closest: {', '.join(close) or 'none'}")
        for prefix, layer in self.named_layers():
            layer.trainable = {n for n in layer.params if (f"{prefix}.{n}" if prefix else n) in names}

    def freeze(self):
        """Train nothing."""
        self.set_trainable(())

    def to(self, xp, dtype=None):
        """Move all parameters to the array library `xp`, and to `dtype` (a name: "float64"), in place; returns self."""
        for name, array in self.params.items():
            host = to_numpy(array)
            self.params[name] = xp.asarray(host, dtype=getattr(xp, dtype or str(host.dtype)))
            check_float(self.params[name], name)
        for child in self.children.values():
            child.to(xp, dtype)
        return self

    def refuse_merged(self, before):
        """Raise InputError if an adapter is merged: what is written to it, `unmerge` throws away or leaves out."""
        if merged := [path for path, layer in self.named_layers() if layer.merged]:
            how = f"call unmerge() before {before}, or unload() for a plain model with the merged weights"
            raise InputError(f"{merged[0] or 'this layer'} is merged; {how}")

    def load(self, arrays):
        """Copy {dotted name: host array} into the parameters; if a name or shape does not match, change nothing."""
        self.refuse_merged(before="loading parameters")
        own = self.named_params()
        wrong = [f"missing {n}" for n in sorted(own.keys() - arrays.keys())]
        wrong += [f"unexpected {n}" for n in sorted(arrays.keys() - own.keys())]
        wrong += [
            f"{n} has shape {tuple(arrays[n].shape)}, expected {tuple(own[n].shape)}"
            for n in sorted(own.keys() & arrays.keys())
            if tuple(arrays[n].shape) != tuple(own[n].shape)
        ]
        if wrong:
            more = f" (and {len(wrong) - 5} more)" if len(wrong) > 5 else ""
            raise InputError(f"parameters do not fit the model: {'; '.join(wrong[:5])}{more}")
        for name, array in own.items():
            array[...] = asarray_like(arrays[name], array)


def add_grads(total, grads):
    """Add a gradient dictionary to `total` ({} to start with): gradients of shards, and of repeated uses, add up."""
    for name, grad in grads.items():
        total[name] = total[name] + grad if name in total else grad
    return total


def prefixed(prefix, grads):
    """{prefix.name: gradient}: the gradients of a child under their names in its parent."""
    return {f"{prefix}.{name}": grad for name, grad in grads.items()}


class Linear(Layer):
    """y = x W^T + b. weight (d_out, d_in), bias (d_out,) or None; see `functional.linear` for the derivation."""

    def __init__(self, weight, bias=None):
        array_namespace(weight, bias)
        if weight.ndim != 2 or (bias is not None and tuple(bias.shape) != (weight.shape[0],)):
            shapes = f"{tuple(weight.shape)} and {None if bias is None else tuple(bias.shape)}"
            raise InputError(f"expected weight (d_out, d_in) and bias (d_out,); got {shapes}")
        super().__init__({"weight": weight} if bias is None else {"weight": weight, "bias": bias})

    @classmethod
    def random(cls, d_in, d_out, rng):
        """Weight and bias ~ U(+-1 / sqrt(d_in)) in float32, the field's default (He et al. 2015, arXiv:1502.01852)."""
        bound = d_in**-0.5
        return cls(
            rng.uniform(-bound, bound, (d_out, d_in)).astype("f4"), rng.uniform(-bound, bound, d_out).astype("f4")
        )

    def forward(self, x, rng=None, keep=True):
        y, (x, weight) = F.linear(x, self.params["weight"], self.params.get("bias"))
        return y, (x if "weight" in self.trainable else None, weight)  # for a frozen weight, x is needed no more

    def backward(self, dout, cache, need_dx=True):
        dx, dweight, dbias = F.linear_backward(dout, cache, self.needs(need_dx))
        return dx, {n: g for n, g in (("weight", dweight), ("bias", dbias)) if g is not None}

    def effective_weight(self, N, rng=None):
        """The matrix (d_out, d_in) that forward multiplies N rows by; None if there is no such one matrix."""
        return self.params["weight"]

    def grads_of_weight(self, dweight, dbias):
        """{name: gradient} of what trains, from the gradients of the effective weight and of the bias."""
        return {name: g for name, g in (("weight", dweight), ("bias", dbias)) if name in self.trainable}


class LayerNorm(Layer):
    """weight * (x - mean) / sqrt(var + eps) + bias along the last axis; see `functional.layer_norm`."""

    def __init__(self, weight, bias, eps=1e-5):
        super().__init__({"weight": weight, "bias": bias})
        self.eps = eps

    @classmethod
    def unit(cls, d, eps=1e-5):
        """weight 1, bias 0, in float32."""
        return cls(np.ones(d, "f4"), np.zeros(d, "f4"), eps)

    def forward(self, x, rng=None, keep=True):
        return F.layer_norm(x, self.params["weight"], self.params["bias"], self.eps)

    def backward(self, dout, cache, need_dx=True):
        dx, dweight, dbias = F.layer_norm_backward(dout, cache, self.needs(need_dx))
        return dx, {n: g for n, g in (("weight", dweight), ("bias", dbias)) if g is not None}


class Activation(Layer):
    """Elementwise y = g(x): "relu", "gelu" (erf), "gelu_tanh" or "silu".

    overwrite: it stands right behind a linear layer, and before nothing but one. Neither needs the array that it hands
    over, y or dx, so their memory is used again.
    """

    def __init__(self, name, overwrite=False):
        super().__init__()
        if name not in F.ACTIVATIONS:
            raise InputError(f"unknown activation {name!r}; expected one of {', '.join(F.ACTIVATIONS)}")
        self.name, self.overwrite = name, overwrite

    def forward(self, x, rng=None, keep=True):
        """Without `keep` there is no cache."""
        function = F.ACTIVATIONS[self.name] if keep else F.VALUES.get(self.name, F.ACTIVATIONS[self.name])
        y, *cache = function(x, self.overwrite)
        return y, cache[0] if keep else None

    def backward(self, dout, cache, need_dx=True):
        return (F.activation_backward(dout, cache, self.overwrite) if need_dx else None), {}


class Softmax(Layer):
    """Softmax along the last axis."""

    def forward(self, x, rng=None, keep=True):
        return F.softmax(x)

    def backward(self, dout, cache, need_dx=True):
        return (F.softmax_backward(dout, cache) if need_dx else None), {}


class Embedding(Layer):
    """y = weight[ids]. weight (n, d), ids (...) integers in 0 .. n - 1 -> y (..., d). Ids have no gradient."""

    def __init__(self, weight):
        super().__init__({"weight": weight})

    def check_input(self, ids):
        n = self.params["weight"].shape[0]
        if ids.size and not 0 <= ids.min() <= ids.max() < n:
            raise InputError(f"ids must be from 0 to {n - 1}; got {ids.min()} to {ids.max()}")

    def forward(self, ids, rng=None, keep=True):
        weight = self.params["weight"]
        xp = array_namespace(ids, weight)
        if xp is np:
            self.check_input(ids)
        return xp.reshape(xp.take(weight, xp.reshape(ids, (-1,)), axis=0), (*ids.shape, weight.shape[1])), ids

    def backward(self, dout, ids, need_dx=True):
        """dweight[i] = sum of dout where ids = i: each row of dout is added to the row it was taken from."""
        if "weight" not in self.trainable:
            return None, {}
        xp = array_namespace(dout, ids)
        dweight = xp.zeros_like(self.params["weight"])
        scatter_add(dweight, xp.reshape(ids, (-1,)), F.rows(dout))
        return None, {"weight": dweight}


class Sequential(Layer):
    """Children one after another. The backward pass stops below the lowest child that has anything to train.

    `context` (an attention bias, say) goes to every child's forward, `last` to the last child's only.
    Without `keep`, which the children are told too, there is no cache, and no backward: every child's memory is free
    for the next one.
    """

    def __init__(self, children):
        super().__init__(children=children)

    def forward(self, x, rng=None, last=None, keep=True, **context):
        caches = []
        if not keep:
            context["keep"] = False
        for i, child in enumerate(self.children.values(), 1):
            x, cache = child.forward(x, rng, **context, **((last or {}) if i == len(self.children) else {}))
            if keep:
                caches.append(cache)
        return x, caches

    def backward(self, dout, caches, need_dx=True):
        names = list(self.children)
        lowest = 0 if need_dx else next((i for i, n in enumerate(names) if self.children[n].trains()), len(names))
        grads = {}
        for i in range(len(names) - 1, lowest - 1, -1):
            dout, own = self.children[names[i]].backward(dout, caches[i], need_dx or i > lowest)
            grads |= prefixed(names[i], own)
        return (dout if need_dx else None), grads
