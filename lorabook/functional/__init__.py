"""Forward and backward pairs: `y, cache = f(x, ...)`, then `f_backward(dout, cache)` returns the gradients.

Each docstring derives its backward pass by differentials: write dL = <dout, dy>, insert dy, and read off the factor of
each differential. Arrays are real, or complex in a complex-step check: so `.T` never conjugates, and shifts that only
serve stability are taken from the real part. Sums run over the batch; only losses divide. `gradcheck` has the two ways
to check a gradient.
"""

from . import absorbed, attend, grouped
from .absorbed import absorbed_attention, absorbed_attention_backward, absorbing_is_cheaper
from .activations import ACTIVATIONS, VALUES, activation_backward, gelu_erf, gelu_erf_value, gelu_tanh, relu, silu, tanh
from .attend import attention, attention_backward, causal_bias, merge_heads, padding_bias, split_heads
from .gated import swiglu, swiglu_backward
from .gradcheck import CENTRAL_STEP, METHODS, SIDEWAYS_STEP, complex_step, finite_difference, relative_error
from .grouped import Spans, causal_spans, grouped_attention, grouped_attention_backward
from .language_loss import check_labels, chunks, cross_entropy_, language_loss, perplexity
from .linear import linear, linear_backward
from .losses import (
    LOSSES,
    mean_squared_error,
    mean_squared_error_backward,
    softmax_cross_entropy,
    softmax_cross_entropy_backward,
)
from .norms import layer_norm, layer_norm_backward, rms_norm, rms_norm_again, rms_norm_backward
from .reductions import row_means, row_sums, rows
from .rotary import SCALINGS, rotary, rotary_angles, rotary_backward, rotary_frequencies
from .softmax import shift, softmax, softmax_, softmax_backward

__all__ = [
    "ACTIVATIONS",
    "CENTRAL_STEP",
    "LOSSES",
    "METHODS",
    "SCALINGS",
    "SIDEWAYS_STEP",
    "VALUES",
    "Spans",
    "absorbed",
    "absorbed_attention",
    "absorbed_attention_backward",
    "absorbing_is_cheaper",
    "activation_backward",
    "attend",
    "attention",
    "attention_backward",
    "causal_bias",
    "causal_spans",
    "check_labels",
    "chunks",
    "complex_step",
    "cross_entropy_",
    "finite_difference",
    "gelu_erf",
    "gelu_erf_value",
    "gelu_tanh",
    "grouped",
    "grouped_attention",
    "grouped_attention_backward",
    "language_loss",
    "layer_norm",
    "layer_norm_backward",
    "linear",
    "linear_backward",
    "mean_squared_error",
    "mean_squared_error_backward",
    "merge_heads",
    "padding_bias",
    "perplexity",
    "relative_error",
    "relu",
    "rms_norm",
    "rms_norm_again",
    "rms_norm_backward",
    "rotary",
    "rotary_angles",
    "rotary_backward",
    "rotary_frequencies",
    "row_means",
    "row_sums",
    "rows",
    "shift",
    "silu",
    "softmax",
    "softmax_",
    "softmax_backward",
    "softmax_cross_entropy",
    "softmax_cross_entropy_backward",
    "split_heads",
    "swiglu",
    "swiglu_backward",
    "tanh",
]
