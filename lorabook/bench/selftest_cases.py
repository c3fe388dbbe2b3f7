"""What the self-test of a backend runs: each public function with arrays, and each optimizer.

A case takes an `Arrays`, which draws the same numbers whatever the backend, and returns what is compared: an array or a
number, or several of them. Singular vectors have no sign, so what is compared are products in which it does not matter.
"""

import numpy as np

from .. import backend, training
from .. import functional as F
from ..functional import absorbed
from ..functional import attend as A
from ..linalg import low_rank, randomized, subspace
from ..quantization import FORMATS, Quantized, quantize_weight


class Arrays:
    """Draws arrays in one dtype for one backend. A case that runs again draws the same."""

    def __init__(self, put, dtype):
        """put: host array -> the array on the backend."""
        self.move, self.dtype, self.rng = put, dtype, np.random.default_rng(0)

    def __call__(self, *shape):
        """Standard normal numbers."""
        return self.put(self.rng.standard_normal(shape))

    def put(self, host):
        """Host numbers, in this dtype."""
        return self.move(np.asarray(host, self.dtype))

    def integers(self, low, high, *shape):
        """Integers from low to high - 1, as int64."""
        return self.move(self.rng.integers(low, high, shape))

    def mask(self, *shape):
        """True and False; in each row True first, and once at least."""
        return self.move(np.arange(shape[-1]) < self.rng.integers(1, shape[-1] + 1, (*shape[:-1], 1)))

    def decaying(self, m, n):
        """A matrix (m, n) whose singular values, from 1 down, are well apart: then its directions are well defined."""
        size = min(m, n)
        U, V = (np.linalg.qr(self.rng.standard_normal((side, size)))[0] for side in (m, n))
        return self.put(U * 0.7 ** np.arange(size) @ V.T)


def near(U, s, Vt):
    """The matrix of these factors, and its singular values."""
    return (U * s) @ Vt, s


def absorbed_pair(a, backward=False):
    """`absorbed_attention` of 2 queries in 3 texts of 6 tokens, 2 heads; or its backward pass."""
    mask = a.mask(3, 6)
    o, cache = absorbed.absorbed_attention(
        a(3, 2, 8), x := a(3, 6, 10), a(8, 10), a(8, 10), a(8), 2, A.padding_bias(mask, x)
    )
    return absorbed.absorbed_attention_backward(a(3, 2, 8), cache) if backward else o


def attention_pair(a, backward=False):
    """`attention` of 3 texts of 6 tokens, 2 heads, both biases; or its backward pass."""
    x = a(3, 6, 8)
    bias = A.causal_bias(6, x) + A.padding_bias(a.mask(3, 6), x)
    o, cache = A.attention(a(3, 6, 8), a(3, 6, 8), a(3, 6, 8), 2, bias)
    return A.attention_backward(a(3, 6, 8), cache) if backward else o


def grouped_pair(a, backward=False):
    """`grouped_attention` of 3 texts of 6 tokens, padded, packed, 4 heads over 2 of keys; or its backward pass."""
    segments = a.move(np.array([[1, 1, 1, 2, 2, 2]] * 3))
    spans = F.causal_spans(6, segments, a.mask(3, 6), segments)
    o, cache = F.grouped_attention(a(3, 6, 16), a(3, 6, 8), a(3, 6, 8), 4, 2, spans)
    return F.grouped_attention_backward(a(3, 6, 16), cache) if backward else o


def turned(a, turn):
    """`rotary`, or its backward pass, of 2 heads at positions far from the first."""
    angles = F.rotary_angles(a.integers(0, 5000, 6, 5), F.rotary_frequencies(4), a(1))
    return turn(a(6, 5, 8), *angles)


def dequantised(format):
    """The case of a format in 4 or 8 bits: the numbers of codes that were made on the host."""

    def case(a):
        found = quantize_weight(a.rng.standard_normal((30, 70)), format)
        arrays = {name: a.move(array) for name, array in found.arrays.items()}
        return Quantized(format, found.shape, arrays).dequantize(dtype=a.dtype)

    return case


def parts(a):
    """Arrays of several shapes by name, as gradients are."""
    return {"b": a(7), "W": a(5, 4), "A": a(2, 3)}


def steps(make):
    """The case of an optimizer: parameters and state after three steps, the last of which must change nothing."""

    def case(a):
        optimizer, params = make(), parts(a)
        for alive in (True, True, False):
            grads = parts(a)
            scale = training.clip_factor(training.squared_norm(grads), 0.5)
            xp = backend.array_namespace(scale)
            optimizer.step(params, grads, 0.5, scale, backend.asarray_like(np.asarray(alive), scale, xp.bool))
        return params, *optimizer.state.values()

    return case


def activation(name):
    """The case of an activation: y and the gradient by way of its slope."""

    def case(a):
        y, slope = F.ACTIVATIONS[name](a(30, 20))
        return y, F.activation_backward(a(30, 20), slope)

    return case


def clipped(a):
    """The norm before, and the gradients after."""
    grads = parts(a)
    return training.clip_grad_norm(grads, 0.5), grads


def in_groups(a):
    """The parts end to end and back again, in the groups in which an optimizer takes them."""
    arrays = parts(a)
    return [
        [*training.views(training.flat(own := [arrays[n] for n in names]), own)] for names in training.groups(arrays)
    ]


def scattered(a):
    """Rows that repeat are summed."""
    target = a(9, 4)
    backend.scatter_add(target, a.integers(0, 9, 40), a(40, 4))
    return target


def components(a):
    """PCA: the mean, the data within the components, the variances."""
    X = a.decaying(40, 8) + a(8)
    mean, V, variances = low_rank.pca(X, 3)
    return mean, (X - mean) @ V.T @ V, variances


def truncated(truncation):
    """Approximations of two ranks, and the errors of all."""
    return truncation.weight(1), truncation.weight(3), truncation.errors


def factor(a):
    """R^T R of the QR factor R, which has no sign."""
    R = low_rank.activation_factor([a(5, 7), a(2, 7), a(30, 7)])
    return R.T @ R


def projected(a):
    """What a range finder's Q keeps of W."""
    W = a.decaying(12, 10)
    Q = randomized.range_finder(W, 4, 2)
    return Q @ (Q.T @ W)


X, W = (6, 5, 8), (4, 8)  # shapes
FUNCTIONS = {
    "backend": {
        "normal_cdf": lambda a: backend.normal_cdf(a(30, 20)),
        "exp_": lambda a: backend.exp_(a(30, 20)),
        "bmm": lambda a: (backend.bmm(a(3, 2, 5, 4), a(3, 2, 6, 4).mT), backend.bmm(a(3, 2, 5, 4).mT, a(3, 2, 5, 6))),
        "scatter_add": scattered,
    },
    "functional": {
        "rows": lambda a: F.rows(a(*X)),
        "linear": lambda a: F.linear(a(*X), a(*W), a(4))[0],
        "linear_backward": lambda a: F.linear_backward(a(30, 4), F.linear(a(30, 8), a(*W), a(4))[1]),
        "relu": activation("relu"),
        "gelu_tanh": activation("gelu_tanh"),
        "gelu_erf": activation("gelu"),
        "gelu_erf_value": lambda a: F.gelu_erf_value(a(30, 20)),
        "silu": activation("silu"),
        "tanh": activation("tanh"),
        "activation_backward": lambda a: F.activation_backward(a(30, 20), a(30, 20)),
        "row_sums": lambda a: F.row_sums(a(*X)),
        "row_means": lambda a: F.row_means(a(*X)),
        "shift": lambda a: F.shift(a(*X)),
        "softmax": lambda a: F.softmax(a(*X))[0],
        "softmax_": lambda a: F.softmax_(a(*X)),
        "softmax_backward": lambda a: F.softmax_backward(a(*X), F.softmax(a(*X))[0]),
        "layer_norm": lambda a: F.layer_norm(a(*X), a(8), a(8))[0],
        "layer_norm_backward": lambda a: F.layer_norm_backward(a(*X), F.layer_norm(a(*X), a(8), a(8))[1]),
        "rms_norm": lambda a: F.rms_norm(a(*X), a(8))[0],
        "rms_norm_again": lambda a: F.rms_norm_again(F.rms_norm(a(*X), a(8))[1]),
        "rms_norm_backward": lambda a: F.rms_norm_backward(a(*X), F.rms_norm(a(*X), a(8))[1]),
        "swiglu": lambda a: F.swiglu(a(*X), a(*X))[0],
        "swiglu_backward": lambda a: F.swiglu_backward(a(*X), F.swiglu(a(*X), a(*X))[1]),
        "rotary_angles": lambda a: F.rotary_angles(a.integers(0, 5000, 6, 5), F.rotary_frequencies(8), a(1)),
        "rotary": lambda a: turned(a, F.rotary),
        "rotary_backward": lambda a: turned(a, F.rotary_backward),
        "cross_entropy_": lambda a: F.cross_entropy_(a(30, 7), a.integers(0, 7, 30), 0.7),
        "language_loss": lambda a: F.language_loss(a(30, 8), a(7, 8), a.integers(0, 7, 30), ("h", "weight"), 0.7),
        "softmax_cross_entropy": lambda a: F.softmax_cross_entropy(a(30, 7), a.integers(-1, 7, 30))[0],
        "softmax_cross_entropy_backward": lambda a: F.softmax_cross_entropy_backward(
            0.7, F.softmax_cross_entropy(a(30, 7), a.integers(-1, 7, 30))[1]
        ),
        "mean_squared_error": lambda a: F.mean_squared_error(a(*X), a(*X)),
        "mean_squared_error_backward": lambda a: F.mean_squared_error_backward(0.7, a(*X)),
    },
    "attention": {
        "split_heads": lambda a: A.split_heads(a(*X), 2),
        "merge_heads": lambda a: A.merge_heads(a(3, 2, 5, 4)),
        "causal_bias": lambda a: A.causal_bias(5, a(*X)),
        "padding_bias": lambda a: A.padding_bias(a.mask(6, 5), a(*X)),
        "attention": attention_pair,
        "attention_backward": lambda a: attention_pair(a, backward=True),
    },
    "grouped": {
        "causal_spans": lambda a: vars(F.causal_spans(6, a.integers(0, 2, 3, 6), None, a.integers(0, 2, 3, 6))),
        "grouped_attention": grouped_pair,
        "grouped_attention_backward": lambda a: grouped_pair(a, backward=True),
    },
    "quantization": {format: dequantised(format) for format in FORMATS},
    "absorbed": {
        "absorbed_attention": absorbed_pair,
        "absorbed_attention_backward": lambda a: absorbed_pair(a, backward=True),
    },
    "low_rank": {
        "check_matrix": lambda a: low_rank.check_matrix(a(9, 7)),
        "decomposable": lambda a: low_rank.decomposable(a(9, 7)),
        "frobenius": lambda a: low_rank.frobenius(a(9, 7)),
        "svd": lambda a: near(*low_rank.svd(a(9, 7))),
        "truncated_svd": lambda a: near(*low_rank.truncated_svd(a.decaying(9, 7), 3)),
        "truncate": lambda a: truncated(low_rank.truncate(a.decaying(9, 7))),
        "truncate_for_inputs": lambda a: truncated(low_rank.truncate_for_inputs(a.decaying(9, 7), a(5, 7))),
        "output_errors": lambda a: low_rank.output_errors(a.decaying(9, 7), a(5, 7)),
        "activation_factor": factor,
        "rank_errors": lambda a: (low_rank.rank_errors(a(7) ** 2), low_rank.rank_errors(a(7) ** 2, "spectral")),
        "pca": components,
        "stable_rank": lambda a: low_rank.stable_rank(a(7) ** 2),
        "energy_rank": lambda a: low_rank.energy_rank(a(7) ** 2, 0.9),
    },
    "randomized": {
        "range_finder": projected,
        "randomized_svd": lambda a: near(*randomized.randomized_svd(a.decaying(30, 20), 4, 3)),
        "range_finder_bound": lambda a: randomized.range_finder_bound(a(7) ** 2, 3, 2, 1),
    },
    "subspace": {
        "subspace_similarity": lambda a: subspace.subspace_similarity(a.decaying(4, 20), a.decaying(5, 20)),
        "norm_between": lambda a: subspace.norm_between(a(9, 7), a.decaying(9, 7), 2),
        "amplification": lambda a: subspace.amplification(a(9, 7), a.decaying(9, 7), 2),
        "largest_cosines": lambda a: subspace.largest_cosines(a.decaying(7, 6), a.decaying(7, 6), 3),
        "intruder_dimensions": lambda a: subspace.intruder_dimensions(a.decaying(9, 7), 10 * a.decaying(9, 7), 4, 0.9),
    },
    "optim": {
        "groups": in_groups,
        "flat": lambda a: training.flat([*parts(a).values()]),
        "views": lambda a: [*training.views(a(33), [a(5, 4), a(7), a(2, 3)])],
        "squared_norm": lambda a: training.squared_norm(parts(a)),
        "grad_norm": lambda a: training.grad_norm(parts(a)),
        "clip_grad_norm": clipped,
        "clip_factor": lambda a: training.clip_factor(training.squared_norm(parts(a)), 0.5),
        "SGD": steps(lambda: training.SGD(0.1, momentum=0.9, weight_decay=0.01)),
        "AdamW": steps(lambda: training.AdamW(0.1, weight_decay=0.01)),
    },
}
