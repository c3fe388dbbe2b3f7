"""What every adapter does: it stands in the place of a frozen linear layer, which it holds as its child `base_layer`.

A variant says which effective weight it multiplies by, and what the gradient of that is for its parameters:

    W_eff, cache = adapter.effective(W)
    grads, dW    = adapter.effective_backward(dW_eff, cache)

One that changes the bias too, as a factor of the whole output does, sets `changes_bias` and says

    b_eff     = adapter.bias_of(b)
    grads, db = adapter.bias_backward(db_eff)

Everything else stands here once: forward and backward by the effective weight, dropout on the branch, merging, its
undoing, and the names in PEFT's files, which follow from the paths. A variant may override forward and backward by an
order of the products that costs less.
"""

import math
from typing import ClassVar

from .. import functional as F
from ..backend import asarray_like
from ..errors import InputError
from ..files import short
from ..layers import MERGED, RUN, Layer, Linear, add_grads, prefixed

BASE = "base_layer"


class Adapter(Layer):
    """A linear layer with an update: children `base_layer`; own parameters as the variant has them.

    Class attributes of a variant: `method`, its name in METHODS; `peft_type`, PEFT's name of it; `Config`, the class of
    its options; `tensors`, {parameter: its name in PEFT's files, below the layer's path}, of which a layer has some.
    config: the options that made it, where `inject` did. `merge` puts the effective weight in the place of the base's,
    for inference at the base model's cost; `unmerge` puts the very same layer back, so its bits are restored. Gradients
    belong to the unmerged state, and so does all writing into parameters.

    Over a base in 4 bits, what is merged is a dense weight, and takes the memory of one; its codes are kept aside for
    `unmerge`. PEFT rounds W_eff to 4 bits again, and so loses of the update whatever is less than half a gap.
    """

    method = peft_type = Config = config = None
    changes_bias = False
    dropout = 0.0  # of a variant that has it: its probability, in training, on the input of the update
    rests = frozenset()  # those of its parameters that do not train
    tensors: ClassVar[dict] = {}
    kept: ClassVar[dict] = {}  # the same of buffers, which are in the files, too
    shared: ClassVar[dict] = {}  # and of those that all layers of a model hold as one array: its name in the files

    def __init__(self, base, params):
        """base: a Linear layer, dense or not, which is frozen. params: the adapter's own, which all train."""
        if not isinstance(base, Linear):
            raise InputError(f"base must be a Linear layer; got {type(base).__name__}")
        super().__init__(params, {BASE: base})
        base.freeze()
        self._unmerged = None

    def start(self, **arrays):
        """Take these host arrays as the parameters, in the base's dtype and library; all but `rests` train."""
        self.params = {name: asarray_like(array, self.base_layer.like) for name, array in arrays.items()}
        self.trainable = self.params.keys() - self.rests

    def trained(self, grads):
        """The gradients of what trains."""
        return {name: grad for name, grad in grads.items() if name in self.trainable}

    @classmethod
    def is_peft(cls, options):
        """Whether PEFT's options, of an adapter_config.json, are of this variant."""
        return options.get("peft_type") == cls.peft_type

    @classmethod
    def is_neutral(cls, name, value):
        """Whether PEFT's option, which is not implemented here, does nothing at this value."""
        return name in cls.Config.neutral and cls.Config.neutral[name] == value

    @classmethod
    def shapes(cls, d_out, d_in, where="this layer", **options):
        """{parameter: shape} on a layer of this size. Raises InputError if the options do not fit it."""
        raise NotImplementedError

    @classmethod
    def check_base(cls, base, where="this layer", **options):
        """Raise InputError if the options need what this base layer, of a size that fits them, does not have."""

    @classmethod
    def kept_shapes(cls, d_out, d_in):
        """{buffer: shape} of those in `kept`."""
        return {}

    @classmethod
    def shared_shapes(cls, sizes, **options):
        """{buffer: shape} of those in `shared`. sizes: (d_out, d_in) of every layer that gets an adapter."""
        return {}

    @classmethod
    def draw_shared(cls, sizes, **options):
        """{buffer: host array} of the same, from the options alone. Each layer gets them as the keyword `shared`."""
        return {}

    def effective(self, W):
        """(W_eff (d_out, d_in), cache) from the base's weight W (d_out, d_in), which is not written to."""
        raise NotImplementedError

    def effective_backward(self, dW_eff, cache):
        """(grads, dW): the gradients of the trainable parameters and of W from that of the effective weight."""
        raise NotImplementedError

    def bias_of(self, b):
        """b_eff (d_out,) from the base's bias b (d_out,), which is not written to. Of a variant that changes it."""
        return b

    def bias_backward(self, db_eff):
        """(grads, db): the gradients of the trainable parameters by way of the bias, and of b, from that of b_eff."""
        return {}, db_eff

    @classmethod
    def scale(cls, **options):
        """The largest factor by which forward multiplies: one that the dtype cannot hold is refused on loading."""
        return 1.0

    @classmethod
    def update_of(cls, tensors, path, **options):
        """W_eff - W (d_out, d_in) in float64, from the parameters {name: array} in a file alone, where they tell it."""
        raise InputError(f"{path}: the update of the method {cls.method} depends on the base weights; give that model")

    # ---- the weight --------------------------------------------------------------------------------------------------

    @property
    def base_layer(self):
        """The layer under it."""
        return self.children[BASE]

    @property
    def weight(self):
        """The base's weight, with the update in it while merged."""
        return self.base_layer.weight

    @property
    def bias(self):
        """The base's bias, or None."""
        return self.base_layer.bias

    @property
    def effective_bias(self):
        """What forward adds, or None."""
        b = self.bias
        return b if b is None or self.merged or not self.changes_bias else self.bias_of(b)

    @property
    def shape(self):
        """(d_out, d_in)."""
        return self.base_layer.shape

    @property
    def merged(self):
        """Whether the base's weight contains the update at the moment."""
        return self._unmerged is not None

    def merge(self):
        """Put a Linear with the effective weight in the place of the base, kept aside. Twice changes nothing."""
        if not self.merged:
            base = self.base_layer
            merged = Linear(self.effective(base.weight)[0], self.effective_bias)
            merged.trainable = set(base.trainable)
            self.children[BASE], self._unmerged = merged, base

    def unmerge(self):
        """Put the base back: the same arrays, so the same bits."""
        if self.merged:
            self.children[BASE], self._unmerged = self._unmerged, None

    def change_arrays(self, change):
        super().change_arrays(change)
        if self.merged:
            self._unmerged.change_arrays(change)

    def has_weight(self, run):
        """Whether there is one effective weight for all rows of this pass."""
        return run.rng is None or not self.dropout

    def forms_weight(self, N, run):
        """Whether forward forms the effective weight for N rows, because that is the cheaper order."""
        return not self.merged and self.has_weight(run)

    def effective_weight(self, N, run=RUN):
        """(the matrix that forward multiplies N rows by, cache of `effective`); None if there is no such one matrix."""
        if self.merged:
            return self.weight, None
        if not self.has_weight(run):
            return None
        if (formed := run.weights.get(self)) is not None:
            return formed
        return self.effective(self.weight) if self.forms_weight(N, run) else None

    def grads_of_weight(self, dW_eff, dbias, cache):
        """{name: gradient} of what trains, from the gradients of the effective weight and of the bias."""
        grads, dW = self.effective_backward(dW_eff, cache)
        if self.changes_bias and self.bias is not None:
            more, dbias = self.bias_backward(dbias)
            grads = add_grads(dict(grads), more)
        return grads | prefixed(BASE, self.base_layer.grads_of_weight(dW, dbias, None))

    # ---- forward and backward ----------------------------------------------------------------------------------------

    def forward(self, x, run=RUN):
        if (found := self.effective_weight(math.prod(x.shape[:-1]), run)) is None:
            return self.forward_apart(x, run)
        W_eff, own = found
        return F.linear(x, W_eff, self.effective_bias)[0], None if self.merged else (x, W_eff, own)

    def forward_apart(self, x, run):
        """(y, cache) where there is no one weight for all rows: y = x W^T + b + xd (W_eff - W)^T, xd = x o M.

        As (x - xd) W^T + b + xd W_eff^T, it takes W_eff as it is.
        """
        M = self.dropout_mask(x, run)
        W_eff, own = self.effective(self.weight)
        xd = x * M
        y, cache = self.base_layer.forward(x - xd, run)
        y += F.linear(xd, W_eff)[0]
        return y, (xd, W_eff, own, cache, M)

    def dropout_mask(self, x, run):
        """M, the inverted-dropout mask of x: 0 with probability `dropout`, else 1 / (1 - dropout). None: all are 1."""
        if run.rng is None or not (drop := self.dropout):
            return None
        return asarray_like(run.rng.random(x.shape, dtype="f4") >= drop, x) * (1 / (1 - drop))

    def backward(self, dout, cache, need_dx=True):
        """y = x W_eff^T + b:  dx = dout W_eff,  dW_eff = dout^T x,  db = dout^T 1.

        And apart, y = (x - xd) W^T + b + xd W_eff^T:  dx = dout W + (dout W_eff - dout W) o M,  dW_eff = dout^T xd.
        """
        if cache is None:
            raise InputError(MERGED)
        if len(cache) > 3:
            return self._backward_apart(dout, cache, need_dx)
        x, W_eff, own = cache
        needs = {"weight"} | self.base_layer.trainable | ({"x"} if need_dx else set())
        needs |= {"bias"} if self.changes_bias and self.bias is not None else set()
        dx, dW_eff, dbias = F.linear_backward(dout, (x, W_eff), needs)
        return dx, self.grads_of_weight(dW_eff, dbias, own)

    def _backward_apart(self, dout, cache, need_dx):
        xd, W_eff, own, base_cache, M = cache
        down, also = self.base_layer.backward(dout, base_cache, need_dx)
        dxd, dW_eff, _ = F.linear_backward(dout, (xd, W_eff), {"weight"} | ({"x"} if need_dx else set()))
        grads, dW = self.effective_backward(dW_eff, own)
        grads = grads | prefixed(BASE, also)
        if "weight" in self.base_layer.trainable:
            grads[f"{BASE}.weight"] = grads[f"{BASE}.weight"] + dW
        return down + (dxd - down) * M if need_dx else None, grads


def whole(cls, tensors, path, d_out, d_in, **options):
    """The variant's {parameter: host float64 array} from a file; InputError unless all are there in their shapes.

    d_out, d_in: the sizes, or (parameter, axis) of the one that tells it.
    """
    sizes = []
    for size in (d_out, d_in):
        name, axis = size if isinstance(size, tuple) else (None, 0)
        array = tensors.get(name) if name else None
        sizes.append((array.shape[axis] if array is not None and array.ndim > axis else 0) if name else size)
    shapes = cls.shapes(*sizes, path, **options)
    came = {name: tuple(array.shape) for name, array in tensors.items()}
    if came != shapes or not all(sizes):
        raise InputError(f"{path} needs {short(shapes)}, as adapter_config.json says; got {short(came)}")
    return {name: tensors[name].astype("f8") for name in shapes}
