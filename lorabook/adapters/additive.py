"""What variants share whose update is added to the weight: W_eff = W + delta_weight().

A variant says what it adds, and the gradients of that:

    delta = adapter.delta_weight()
    grads = adapter.delta_backward(d_delta)

It may have dropout on the update's branch, and an order of the products of its own, which does without W_eff.
"""

from ..errors import InputError
from ..files import short
from .base import Adapter

ORDERS = ("auto", "factored", "merged")


def merging_is_cheaper(N, d_in, d_out):
    """Whether x (W + s B A)^T costs fewer FLOPs than x W^T + s (x A^T) B^T.

    Beside the product with W they cost 2 r d_in d_out and 2 N r (d_in + d_out), so the rank cancels (Cherniuk et al.
    2023, RunLoRA, arXiv:2312.03415). The backward pass costs the same in both orders, provided that W + s B A is kept
    from the forward pass; so this threshold holds for the whole step.
    """
    return N * (d_in + d_out) > d_in * d_out


# As many times the FLOPs of merging the factored order must take, if merging is to pay: what it adds to is the output
# of a shard, in the cache, while W_eff is an array of the size of W, of which all layers' are in memory at once.
SAVED = 2


class AdditiveAdapter(Adapter):
    """y = x (W + delta)^T + b, or y = x W^T + b + (x o M) delta^T with dropout; see `dropout_mask`.

    order: "merged", by W_eff; "factored", by `forward_apart` where the variant has its own; or "auto", "merged" where
    what the other takes beside the product with W is more than SAVED times as much.
    """

    order = "merged"

    def delta_weight(self):
        """W_eff - W, a new array (d_out, d_in)."""
        raise NotImplementedError

    def delta_backward(self, d_delta):
        """{name: gradient} of the trainable parameters, from that of `delta_weight`."""
        raise NotImplementedError

    def effective(self, W):
        """W + delta, a new array."""
        W_eff = self.delta_weight()
        W_eff += W
        return W_eff, None

    def effective_backward(self, dW_eff, cache):
        """dW_eff = dW + d_delta: the same gradient for both."""
        return self.delta_backward(dW_eff), dW_eff

    def forms_weight(self, N, run):
        if not super().forms_weight(N, run):
            return False
        d_out, d_in = self.shape
        cheaper = self.base_layer.dense and merging_is_cheaper(N / SAVED, d_in, d_out)
        return self.order == "merged" or (self.order == "auto" and cheaper)


def check_order(order):
    """order, or InputError: one of ORDERS."""
    if order not in ORDERS:
        raise InputError(f"order must be auto, factored or merged; got {short(order)}")
    return order
