"""Optimizers over {name: array}, learning-rate schedules, gradient clipping. Arrays are updated in place.

Bias corrections and rates are Python floats, so float32 parameters stay float32.
"""

import math

import numpy as np

from .backend import array_namespace
from .errors import InputError, NonFiniteError


def check_number(name, value, below=math.inf):
    """Raise InputError unless `value` is a number with 0 <= value < below."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < below:
        expected = f"number in [0, {below})" if math.isfinite(below) else "finite number >= 0"
        raise InputError(f"{name} must be a {expected}; got {value!r}")


class Optimizer:
    """Base class. slots: the arrays kept per parameter; state: {slot: {name: array}}; step_count: steps so far."""

    slots = ()

    def __init__(self, lr, weight_decay=0.0):
        check_number("lr", lr)
        check_number("weight_decay", weight_decay)
        self.lr, self.weight_decay, self.step_count = lr, weight_decay, 0
        self.state = {slot: {} for slot in self.slots}

    def prepare(self, params):
        """Create the state of every parameter that has none yet, as zeros."""
        for slot in self.slots:
            for name, param in params.items():
                if name not in self.state[slot]:
                    self.state[slot][name] = array_namespace(param).zeros_like(param)

    def step(self, params, grads, lr_factor=1.0):
        """Update each params[name] in place from grads[name], with learning rate lr * lr_factor."""
        if params.keys() != grads.keys():
            raise InputError(f"parameters and gradients differ: {sorted(params.keys() ^ grads.keys())}")
        self.prepare(params)
        for name, param in params.items():
            if grads[name].shape != param.shape:
                raise InputError(f"gradient of {name} has shape {grads[name].shape}, expected {param.shape}")
        self.step_count += 1
        for name, param in params.items():
            self.update(name, param, grads[name], self.lr * lr_factor)

    def update(self, name, param, grad, lr):
        """Change `param` in place."""
        raise NotImplementedError


class SGD(Optimizer):
    """v <- momentum v + (g + weight_decay p);  p <- p - lr v."""

    slots = ("velocity",)

    def __init__(self, lr, momentum=0.0, weight_decay=0.0):
        super().__init__(lr, weight_decay)
        check_number("momentum", momentum, below=1)
        self.momentum = momentum

    def update(self, name, param, grad, lr):
        v = self.state["velocity"][name]
        v *= self.momentum
        v += grad
        if self.weight_decay:
            v += self.weight_decay * param
        param -= lr * v


class AdamW(Optimizer):
    """Adam (Kingma and Ba 2015, arXiv:1412.6980) with decoupled weight decay (Loshchilov and Hutter, arXiv:1711.05101).

    m <- b1 m + (1 - b1) g        v <- b2 v + (1 - b2) g^2
    p <- p (1 - lr weight_decay) - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)
    """

    slots = ("m", "v")

    def __init__(self, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
        super().__init__(lr, weight_decay)
        if not isinstance(betas, tuple | list) or len(betas) != 2:
            raise InputError(f"betas must be two numbers in [0, 1); got {betas!r}")
        for beta in betas:
            check_number("each of betas", beta, below=1)
        check_number("eps", eps)
        self.betas, self.eps = betas, eps

    def update(self, name, param, grad, lr):
        (b1, b2), t = self.betas, self.step_count
        m, v = self.state["m"][name], self.state["v"][name]
        m *= b1
        m += (1 - b1) * grad
        v *= b2
        v += (1 - b2) * (grad * grad)
        if self.weight_decay:
            param *= 1 - lr * self.weight_decay
        root = array_namespace(v).sqrt(v)
        param -= (lr / (1 - b1**t)) * m / (root / math.sqrt(1 - b2**t) + self.eps)


OPTIMIZERS = {"sgd": SGD, "adamw": AdamW}


# ---- schedules: factor of the learning rate at a step, 0 <= step < total ---------------------------------------------

SCHEDULES = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
}


def schedule(name, total, warmup=0):
    """The function step -> factor: up to 1 in `warmup` steps, then "constant", or "linear" or "cosine" down to 0."""
    if name not in SCHEDULES:
        raise InputError(f"unknown schedule {name!r}; expected one of {', '.join(SCHEDULES)}")
    if not isinstance(warmup, int) or not 0 <= warmup <= total:
        raise InputError(f"warmup must be an integer from 0 to the {total} steps of the run; got {warmup!r}")

    def factor(step):
        if step < warmup:
            return (step + 1) / warmup
        return SCHEDULES[name]((step - warmup) / max(1, total - warmup))

    return factor


# ---- gradients -------------------------------------------------------------------------------------------------------


def grad_norm(grads):
    """Euclidean norm over all gradients, a Python float. Raises NonFiniteError, naming a gradient that is not finite.

    Summed in the order of the names: the same bits whatever order the gradients come in.
    A gradient so large that its square overflows its dtype counts as not finite: AdamW could not store the square.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # reported below, by name
        squares = {name: array_namespace(g).sum(g * g) for name, g in sorted(grads.items())}
        total = float(sum(squares.values()))  # here the host waits for a GPU
    if not math.isfinite(total):
        for name, square in squares.items():
            if not math.isfinite(float(square)):
                raise NonFiniteError(f"the gradient of {name} is not finite (NaN, Inf, or too large to square)")
        total = sum(float(square) for square in squares.values())  # only their sum is too large for the dtype
    return math.sqrt(total)


def clip_grad_norm(grads, max_grad_norm):
    """Scale all gradients in place to a common norm of at most `max_grad_norm` (None: any); returns the norm before."""
    if max_grad_norm is not None and not max_grad_norm > 0:
        raise InputError(f"max_grad_norm must be above 0, or None; got {max_grad_norm!r}")
    norm = grad_norm(grads)
    if max_grad_norm is not None and norm > max_grad_norm:
        for grad in grads.values():
            grad *= max_grad_norm / norm
    return norm
