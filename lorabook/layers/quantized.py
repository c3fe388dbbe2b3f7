"""A linear layer whose weight is held in a few bits, as QLoRA's base (Dettmers et al. 2023, arXiv:2305.14314)."""

import threading

import numpy as np

from .. import functional as F
from ..backend import array_namespace
from ..errors import InputError
from ..quantization import Quantized, quantize_weight
from .base import RUN, Layer, distinct
from .basic import Linear

_MEMORY = threading.local()  # one buffer a thread and dtype, of the size of the largest weight so far


class QuantizedLinear(Linear):
    """y = x dq(W)^T + b: a Linear whose W is in `buffers`, as codes and scales, which never train.

    With dq(W) the numbers that the codes stand for, a constant:  dx = dout dq(W),  db = dout^T 1. No gradient reaches
    the codes. W is dequantised for each product into memory that the thread uses again for the next layer: nothing but
    the codes outlives the call, and backward dequantises once more rather than keep it. On other backends than NumPy
    the memory is new each time, from the library's own pool.

    >>> import numpy as np
    >>> from lorabook.layers import Linear, QuantizedLinear
    >>> layer = QuantizedLinear.of(Linear.random(64, 32, np.random.default_rng(0)), "nf4")
    >>> {name: (array.shape, str(array.dtype)) for name, array in layer.state().items()}
    {'bias': ((32,), 'float32'), 'codes': ((1024,), 'uint8'), 'scale': ((32,), 'float32')}
    """

    dense = False

    def __init__(self, quantized, bias=None):
        """quantized: the weight (d_out, d_in), a `quantization.Quantized`; bias (d_out,) or None."""
        array_namespace(*quantized.arrays.values(), bias)
        if bias is not None and tuple(bias.shape) != (quantized.shape[0],):
            raise InputError(f"expected bias ({quantized.shape[0]},); got {tuple(bias.shape)}")
        Layer.__init__(self, {} if bias is None else {"bias": bias})
        self.buffers = dict(quantized.arrays)
        self.format, self._shape = quantized.format, tuple(quantized.shape)

    @classmethod
    def of(cls, linear, format="nf4"):
        """The Linear with its weight rounded to this format, on the same backend; it shares the bias."""
        found, xp = quantize_weight(linear.weight, format), array_namespace(linear.weight)
        device = {"device": linear.weight.device} if xp.__name__ == "array_api_strict" else {}
        arrays = {name: xp.asarray(array, **device) for name, array in found.arrays.items()}
        layer = cls(Quantized(format, found.shape, arrays), linear.bias)
        layer.trainable = linear.trainable & set(layer.params)
        return layer

    @property
    def quantized(self):
        """The weight as a `Quantized`."""
        return Quantized(self.format, self._shape, self.buffers)

    @property
    def shape(self):
        """(d_out, d_in)."""
        return self._shape

    @property
    def like(self):
        return next(a for name, a in (*self.params.items(), *self.buffers.items()) if not name.endswith("codes"))

    @property
    def weight(self):
        """dq(W) (d_out, d_in), a new array."""
        return self.quantized.dequantize(dtype=_dtype(self.like))

    def forward(self, x, run=RUN):
        return F.linear(x, self._weight_for(x), self.bias)[0], None

    def backward(self, dout, cache, need_dx=True):
        needs = self.needs(need_dx)
        if not needs:
            return None, {}
        dx, _, dbias = F.linear_backward(dout, (None, self._weight_for(dout)), needs)
        return dx, {} if dbias is None else {"bias": dbias}

    def _weight_for(self, x):
        """dq(W) in the precision of x, in the thread's memory: valid until the thread asks for the next."""
        weight, dtype = self.quantized, _dtype(x)
        if array_namespace(x) is not np:
            return weight.dequantize(dtype=dtype)
        memory = _MEMORY.__dict__
        if dtype not in memory or memory[dtype].size < weight.size:
            memory[dtype] = np.empty(weight.size, dtype)
        return weight.dequantize(memory[dtype], dtype)


def _dtype(array):
    return "float64" if str(array.dtype).endswith(("float64", "complex128")) else "float32"


def quantize(model, format="nf4", target=None):
    """Put the weights of a model's linear layers into a few bits, in place; returns the paths of what was changed.

    target: names of layers, or the ends of their paths ("q_proj"). Default: all linear layers but the head's, and but
    those that share their weight with another layer, such as an output tied to the embedding: in QLoRA these stay as
    they are. A layer below an adapter counts under the adapter's path. The dense arrays are released, unless somebody
    else holds them. Adapters may be put in before or after.

    Raises InputError, with the model unchanged, if a target matches nothing, a weight cannot be in this format, or an
    adapter is merged.

    >>> import numpy as np, lorabook as lb
    >>> from lorabook.layers import quantize
    >>> model = lb.MLP((64, 32, 10))
    >>> quantize(model, "nf4")
    ['fc1', 'fc2']
    >>> lb.inject(model, lb.LoRAConfig(r=4))  # QLoRA: 4-bit base, factors in float32
    ['fc1', 'fc2']
    """
    model.refuse_merged(before="quantising")
    wanted = None if target is None else [target] if isinstance(target, str) else list(target)
    layers, names, alone = dict(model.named_layers()), _dense(model), _alone(model)
    if wanted is None:
        chosen = quantizable(model)
    else:
        for one in wanted:
            if not any(_ends(name, one) for name in names.values()):
                known = ", ".join(sorted({name.rpartition(".")[2] for name in names.values()})) or "none"
                raise InputError(f"target {one!r} matches no linear layer in full precision; there are: {known}")
        chosen = [path for path, name in names.items() if any(_ends(name, one) for one in wanted)]
    if shared := [path for path in chosen if f"{path}.weight" not in alone]:
        raise InputError(f"the weight of {names[shared[0]]} is another layer's too, and stays there; leave it out")
    new = {}
    for path in chosen:
        try:
            new[path] = QuantizedLinear.of(layers[path], format)
        except InputError as error:
            raise InputError(f"{names[path]}: {error}") from None
    for path, layer in new.items():
        parent, _, name = path.rpartition(".")
        layers[parent].children[name] = layer
    return [names[path] for path in chosen]


def dequantize(model):
    """Put a dense layer with the numbers that the codes stand for in the place of each quantised one, in place."""
    layers = dict(model.named_layers())
    for path, layer in layers.items():
        if isinstance(layer, QuantizedLinear) and path:
            parent, _, name = path.rpartition(".")
            layers[parent].children[name] = dense = Linear(layer.weight, layer.bias)
            dense.trainable = set(layer.trainable)


def quantizable(model):
    """The paths of the linear layers that `quantize` takes by default."""
    names, alone, outside = _dense(model), _alone(model), (*model.head_modules, *model.output_modules)
    heads = [path for path, name in names.items() if any(_ends(name, head) for head in outside)]
    return [path for path in names if path not in heads and f"{path}.weight" in alone]


def _dense(model):
    """{path: its name without the adapter around it} of the linear layers in full precision."""
    layers = dict(model.named_layers())
    return {path: path.removesuffix(".base_layer") for path, layer in layers.items() if type(layer) is Linear}


def _alone(model):
    """Names of the parameters that are no other layer's too."""
    params = model.named_params()
    return {name for name, array in distinct(params).items() if sum(a is array for a in params.values()) == 1}


def _ends(path, name):
    return path == name or path.endswith(f".{name}")
