"""The layer protocol: `y, cache = layer(x, run)` and `dx, grads = layer.backward(dout, cache)`.

Neither call stores anything on the layer, so several forwards can be in flight over one model, and gradients of shards
are summed by adding dictionaries. What holds for the pass, training or inference, is in the frozen `run`, which goes
down unchanged. `params` holds this layer's own arrays, `children` the layers inside it; dotted names
join the two. A parameter gets a gradient only if its name is in `trainable`.
"""

import difflib

import numpy as np

from ..backend import asarray_like, check_float, to_numpy
from ..errors import InputError
from .run import INFERENCE, Run

RUN = Run()
MERGED = "this layer was merged in the forward pass; call unmerge() before training"


class Layer:
    """Base of all layers: naming, freezing, moving and loading of parameters and buffers.

    params: {name: array} of floats that may train. buffers: {name: array} of any dtype that never do. One array in two
    places stays one: it moves, loads and trains under all of its names, and its gradients add.
    """

    merged = False  # of an adapter: whether its update is in the base's weight at the moment
    task_type = None  # of a model with a head: what PEFT calls its task
    head_modules = ()  # of a model with a head: what of it is trained in full, and "all-linear" leaves out
    encoder = None  # and the name of the child below, which alone may have been the model that an adapter was made for
    output_modules = ()  # of a language model: what leads to the vocabulary; "all-linear" leaves it out, too

    def __init__(self, params=None, children=None):
        self.params, self.buffers = dict(params or {}), {}
        self.children = dict(children or {})
        self.trainable = set(self.params)
        for name, array in self.params.items():
            check_float(array, name)

    def __call__(self, x, run=RUN):
        """(output, cache) of `forward`; a watcher of the run sees x and the output."""
        y, cache = self.forward(x, run)
        if run.watch:
            run.watch(self, x, y)
        return y, cache

    def forward(self, x, run=RUN):
        """Output and cache: exactly what backward needs. What of `run` concerns a layer, it reads."""
        raise NotImplementedError

    def backward(self, dout, cache, need_dx=True):
        """(dx, grads): dx is None unless `need_dx`; grads has the trainable parameters' names and shapes."""
        raise NotImplementedError

    def predict(self, x, run=INFERENCE):
        """The output alone."""
        return self(x, run)[0]

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
        """{dotted name: array} of the parameters that train; an array with several names under the first."""
        return distinct(dict(self._named(trainable_only=True)))

    def named_buffers(self):
        """{dotted name: array} of all buffers."""
        layers = self.named_layers()
        return {f"{path}.{n}" if path else n: a for path, layer in layers for n, a in layer.buffers.items()}

    def state(self):
        """{dotted name: array} of all that a file of the model holds: parameters and buffers."""
        return self.named_params() | self.named_buffers()

    def add_tied(self, grads):
        """The gradients with those of an array that has several names added up, under the first of them."""
        names = {}
        for name, array in self._named(trainable_only=True):
            names.setdefault(id(array), []).append(name)
        for first, *others in names.values():
            for name in others:
                if (more := grads.pop(name, None)) is not None:
                    grads[first] = grads[first] + more if first in grads else more
        return grads

    def trains(self):
        """Whether any parameter of this layer, or of one inside it, trains."""
        return bool(self.trainable) or any(child.trains() for child in self.children.values())

    def set_trainable(self, names):
        """Train exactly the parameters with these dotted names. Raises InputError for a name that does not exist.

        An array with several names trains under all of them.
        """
        names = {names} if isinstance(names, str) else set(names)
        if unknown := names - set(self.named_params()):
            name = min(unknown)
            close = difflib.get_close_matches(name, self.named_params(), n=3, cutoff=0.3)
            raise InputError(f"no parameter is called {name!r}; closest: {', '.join(close) or 'none'}")
        train = {id(array) for name, array in self.named_params().items() if name in names}
        for _, layer in self.named_layers():
            layer.trainable = {name for name, array in layer.params.items() if id(array) in train}

    def freeze(self):
        """Train nothing."""
        self.set_trainable(())

    def to(self, xp, dtype=None):
        """Move all arrays to the library `xp`, the parameters to `dtype` (a name: "float64"), in place; returns self.

        An adapter that is merged stays so.
        """
        moved = {}

        def change(array, dtype=dtype):
            if id(array) not in moved:
                host = to_numpy(array)
                new = xp.asarray(host, dtype=getattr(xp, dtype or str(host.dtype)))
                moved[id(array)] = array, new  # both: an id is free for others once its array is gone
            return moved[id(array)][1]

        for _, layer in self.named_layers():
            layer.change_arrays(change)
        for name, array in self.named_params().items():
            check_float(array, name)
        return self

    def change_arrays(self, change):
        """Put change(array) in the place of each of this layer's own parameters, change(array, None) of its buffers."""
        self.params = {name: change(array) for name, array in self.params.items()}
        self.buffers = {name: change(array, None) for name, array in self.buffers.items()}

    def refuse_merged(self, before):
        """Raise InputError if an adapter is merged: what is written to it, `unmerge` throws away or leaves out."""
        if merged := [path for path, layer in self.named_layers() if layer.merged]:
            how = f"call unmerge() before {before}, or unload() for a plain model with the merged weights"
            raise InputError(f"{merged[0] or 'this layer'} is merged; {how}")

    def load(self, arrays):
        """Copy {dotted name: host array} into parameters and buffers; if a name or shape does not fit, change nothing.

        Of an array with several names one is enough; under more, it must be the same.
        """
        self.check_fits(arrays)
        for name, array in self.state().items():  # in the model's order: the largest, embeddings, first of all
            if name in arrays:
                array[...] = asarray_like(arrays[name], array)

    def check_fits(self, arrays):
        """Raise InputError, by name, unless `load` can take {dotted name: host array}."""
        self.refuse_merged(before="loading parameters")
        own = self.state()
        names = {}  # {id of an array: the first of its names that is given}
        for name, array in own.items():
            if name in arrays:
                names.setdefault(id(array), name)
        wrong = [f"missing {n}" for n in sorted(own.keys() - arrays.keys()) if id(own[n]) not in names]
        wrong += [f"unexpected {n}" for n in sorted(arrays.keys() - own.keys())]
        wrong += [
            f"{n} has shape {tuple(arrays[n].shape)}, expected {tuple(own[n].shape)}"
            for n in sorted(own.keys() & arrays.keys())
            if tuple(arrays[n].shape) != tuple(own[n].shape)
        ]
        wrong = wrong or [
            f"{first} and {n} are one array in the model, and two different ones were given"
            for n in own.keys() & arrays.keys()
            if (first := names[id(own[n])]) != n
            and not np.array_equal(*(to_numpy(asarray_like(arrays[k], own[n])) for k in (first, n)), equal_nan=True)
        ]
        if wrong:
            more = f" (and {len(wrong) - 5} more)" if len(wrong) > 5 else ""
            raise InputError(f"parameters do not fit the model: {'; '.join(wrong[:5])}{more}")


def distinct(arrays):
    """{name: array} with each array once, under its first name."""
    first = {}
    for name, array in arrays.items():
        first.setdefault(id(array), name)
    return {name: arrays[name] for name in first.values()}


def add_grads(total, grads):
    """Add a gradient dictionary to `total` ({} to start with): gradients of shards, and of repeated uses, add up."""
    for name, grad in grads.items():
        total[name] = total[name] + grad if name in total else grad
    return total


def prefixed(prefix, grads):
    """{prefix.name: gradient}: the gradients of a child under their names in its parent."""
    return {f"{prefix}.{name}": grad for name, grad in grads.items()}
