"""What is left of a weight of which the first factors were taken out."""

from ...backend import asarray_like, to_numpy
from ...layers import Linear


class Residual(Linear):
    """W - s B0 A0 in the place of W: with the factors at their start, the layer still multiplies by W.

    A0 (r, d_in), B0 (d_out, r): the update's factors where it starts, kept as buffers, as only they tell what has been
    learnt since: s B A - s B0 A0. original: the Linear that holds W, for `unload`, which puts the same bits back; it
    costs the memory of one more weight. A bias is the same array in both.
    """

    def __init__(self, original, A0, B0, scaling):
        A, B = (to_numpy(factor).astype("f8") for factor in (A0, B0))  # as rounded to the base's dtype
        W = to_numpy(original.weight).astype("f8") - scaling * (B @ A)
        super().__init__(asarray_like(W, original.like), original.bias)
        self.buffers = {"start_A": asarray_like(A, original.like), "start_B": asarray_like(B, original.like)}
        self.original = original
        self.freeze()

    def change_arrays(self, change):
        super().change_arrays(change)
        self.original.change_arrays(change)


def original(base):
    """The layer that stood here before its first factors were taken out; another layer is itself."""
    return base.original if isinstance(base, Residual) else base
