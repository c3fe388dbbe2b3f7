"""Optimizers over {name: array}. Arrays are updated in place.

A LoRA model trains many small arrays. What is done to each number of them is done once, to all of them laid end to end:
on a GPU each operation takes the same time to start whatever its size, and NumPy's calls are not free either.

Bias corrections and rates are Python floats, so float32 parameters stay float32.
"""

import copy
import math

import numpy as np

from ..backend import BLOCK, array_namespace, asarray_like
from ..errors import InputError, check_number

MOST = 16 * BLOCK  # numbers laid end to end on a device: 4 MB in float32, of which a step makes two copies


def groups(arrays):
    """The names in order, in lists: arrays that are worth laying end to end, of one dtype and few numbers together.

    On NumPy as many as stay in the cache with all that is done to them, elsewhere more. A larger array is alone.
    """
    most = BLOCK if array_namespace(*arrays.values()) is np else MOST
    lists, room, dtype = [], 0, None
    for name in sorted(arrays):
        array = arrays[name]
        size = math.prod(array.shape)
        if size > room or array.dtype != dtype:
            lists.append([])
            room, dtype = most, array.dtype
        lists[-1].append(name)
        room -= size
    return lists


def flat(arrays):
    """The arrays end to end, (n,); a single one is not copied if it is contiguous."""
    xp = array_namespace(arrays[0])
    return xp.concat(arrays, axis=None) if len(arrays) > 1 else xp.reshape(arrays[0], (-1,))


def views(vector, arrays):
    """Views of `vector` (n,) in the shapes of the arrays, end to end."""
    xp, stop = array_namespace(vector), 0
    for array in arrays:
        start, stop = stop, stop + math.prod(array.shape)
        yield xp.reshape(vector[start:stop], array.shape)


class Optimizer:
    """Base class. An optimizer needs `update`, and the names of its `slots`, the arrays kept per parameter, if any.

    positive: those of the slots whose numbers are never below 0.
    state: {slot: {name: array}}, views of a few vectors. Write into them, or put others in their place: both count.
    step_count: steps so far.
    """

    slots = positive = ()

    def __init__(self, lr, weight_decay=0.0, rates=None):
        """rates: {end of a parameter's dotted name: factor of its learning rate}; the first that fits counts."""
        self.lr, self.weight_decay = check_number("lr", lr), check_number("weight_decay", weight_decay)
        self.rates = {end: check_number(f"the rate of {end}", factor) for end, factor in (rates or {}).items()}
        self.step_count = 0
        self.state = {slot: {} for slot in self.slots}
        self._packed, self._views = [], {}

    @property
    def options(self):
        """{name: value} of all that was set on it, `lr` among them: what a run that is resumed must have again."""
        own = ("state", "step_count") if self.rates else ("state", "step_count", "rates")
        return {name: value for name, value in vars(self).items() if name not in own and not name.startswith("_")}

    def rate_of(self, name):
        """The factor of the learning rate of the parameter with this dotted name."""
        return next((f for end, f in self.rates.items() if name == end or name.endswith(f".{end}")), 1.0)

    def check_rates(self, params):
        """Raise InputError if a rate is for none of these parameters {name: array}."""
        for end in self.rates:
            if not any(name == end or name.endswith(f".{end}") for name in params):
                some = ", ".join(sorted(params)[:4]) + " ..." * (len(params) > 4)
                raise InputError(f"rates: no parameter that trains ends in {end}; they are {some}")

    def __getstate__(self):
        return self.__dict__ | {"_packed": [], "_views": {}}  # in a copy, the views are arrays of their own

    def prepare(self, params):
        """Create the state of every parameter that has none yet, as zeros."""
        for slot in self.slots:
            self.zeros(slot, params)

    def zeros(self, slot, params):
        """Create this slot of every parameter that has none yet."""
        arrays = self.state[slot]
        for name, param in params.items():
            if name not in arrays:
                arrays[name] = array_namespace(param).zeros_like(param)
            elif arrays[name].shape != param.shape:
                raise InputError(f"{slot} of {name} has shape {arrays[name].shape}, the parameter {param.shape}")

    def step(self, params, grads, lr_factor=1.0, scale=None, alive=None):
        """Update each params[name] in place from grads[name], with learning rate lr * lr_factor.

        Two scalars may be given that the host does not know, since on a GPU it would have to wait for them. scale:
        multiplies the gradients. alive: where it is False, neither parameters nor state change.
        """
        if params.keys() != grads.keys():
            raise InputError(f"parameters and gradients differ: {sorted(params.keys() ^ grads.keys())}")
        if not self.step_count:
            self._try()
        self.prepare(params)
        for name, param in params.items():
            if (grad := grads[name]).shape != param.shape:
                raise InputError(f"gradient of {name} has shape {grad.shape}, expected {param.shape}")
            if grad.dtype != param.dtype:
                raise InputError(f"gradient of {name} has dtype {grad.dtype}, expected {param.dtype}")
        self.check_rates(params)
        self.step_count += 1
        self.apply(params, grads, self.lr * lr_factor, scale, alive)

    def apply(self, params, grads, lr, scale=None, alive=None):
        """A checked and counted step, with the learning rate `lr`. Override it to see more than one array at once."""
        for names, vectors in self._packs(params):
            own = [params[name] for name in names]
            p, g = flat(own), flat([grads[name] for name in names])
            if scale is not None:
                g = g * asarray_like(scale, g)
            xp, changing = array_namespace(p), (p, *vectors)
            before = [] if alive is None else [xp.astype(a, a.dtype) for a in changing]  # copies
            self.update(lr * self.rate_of(names[0]), p, g, *vectors)
            for now, then in zip(changing, before, strict=False):
                now[...] = xp.where(alive, now, then)
            for param, new in zip(own, views(p, own), strict=True):
                param[...] = new

    def _try(self):
        """Raise InputError if `update` changes nothing: `p = p - lr * g` gives a name to new numbers, `-=` writes."""
        trial = copy.copy(self)
        trial.state = {}
        trial = copy.deepcopy(trial)  # it may count, or keep things, as it likes
        trial.step_count = 1
        p, g, *state = (np.full(1, value) for value in (1.0, 1.0, *[0.0] * len(self.slots)))
        trial.update(0.5, p, g, *state)
        if p[0] == 1 and not any(state):
            raise InputError(f"{type(self).__name__}.update changes no number; write into p in place: p -= lr * g")

    def _packs(self, params):
        """[(names, a vector for each slot)] for exactly these parameters; the arrays of `state` are views of them."""
        known = {name for names, _ in self._packed for name in names} == params.keys()
        if not known or any(self.state[slot][name] is not view for (slot, name), view in self._views.items()):
            factors = sorted({self.rate_of(name) for name in params})
            alike = ({name: a for name, a in params.items() if self.rate_of(name) == factor} for factor in factors)
            self._views, self._packed = {}, [(names, []) for own in alike for names in groups(own)]
            for names, vectors in self._packed:
                for slot in self.slots:
                    arrays = self.state[slot]
                    own = [arrays[name] for name in names]
                    vectors.append(flat(own))
                    for name, view in zip(names, views(vectors[-1], own), strict=True):
                        self._views[slot, name] = arrays[name] = view
        return self._packed

    def update(self, lr, p, g, *state):
        """Change the parameters p (n,) and their state in place, given their gradient g."""
        raise NotImplementedError


class SGD(Optimizer):
    """v <- momentum v + (g + weight_decay p);  p <- p - lr v."""

    slots = ("velocity",)

    def __init__(self, lr, momentum=0.0, weight_decay=0.0, rates=None):
        super().__init__(lr, weight_decay, rates)
        self.momentum = check_number("momentum", momentum, below=1)

    def update(self, lr, p, g, v):
        v *= self.momentum
        v += g
        if self.weight_decay:
            v += self.weight_decay * p
        p -= lr * v


class AdamW(Optimizer):
    """Adam (Kingma and Ba 2015, arXiv:1412.6980) with decoupled weight decay (Loshchilov and Hutter, arXiv:1711.05101).

    m <- b1 m + (1 - b1) g        v <- b2 v + (1 - b2) g^2
    p <- p (1 - lr weight_decay) - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

    >>> import lorabook as lb
    >>> optimizer = lb.AdamW(1e-3, rates={"lora_B": 16})  # B learns faster than A, as in LoRA+
    >>> [optimizer.lr * optimizer.rate_of(name) for name in ("fc1.lora_A", "fc1.lora_B")]
    [0.001, 0.016]
    """

    slots, positive = ("m", "v"), ("v",)

    def __init__(self, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, rates=None):
        super().__init__(lr, weight_decay, rates)
        if not isinstance(betas, tuple | list) or len(betas) != 2:
            raise InputError(f"betas must be two numbers in [0, 1); got {betas!r}")
        self.betas = tuple(check_number("each of betas", beta, below=1) for beta in betas)
        self.eps = check_number("eps", eps)

    def update(self, lr, p, g, m, v):
        (b1, b2), t = self.betas, self.step_count
        m *= b1
        m += (1 - b1) * g
        v *= b2
        v += (1 - b2) * (g * g)
        if self.weight_decay:
            p *= 1 - lr * self.weight_decay
        root = array_namespace(v).sqrt(v)
        p -= (lr / (1 - b1**t)) * m / (root / math.sqrt(1 - b2**t) + self.eps)
