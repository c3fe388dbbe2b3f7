"""Less memory for more time: what a block kept for its backward pass is computed again when that comes."""

import copy

from .base import RUN, Layer


class Recompute(Layer):
    """A block that keeps its input alone: backward runs its forward again (Chen et al. 2016, arXiv:1604.06174).

    A stack of L blocks then holds L inputs and the inside of one block, for one more forward pass. It stands in the
    place of the block, under the same names: parameters, buffers and children are the block's own. What dropout draws
    is drawn again from a copy of the generator in the state that it had.
    """

    def __init__(self, block):
        self.block = block

    @property
    def params(self):
        """The block's."""
        return self.block.params

    @params.setter
    def params(self, params):
        self.block.params = params

    @property
    def buffers(self):
        """The block's."""
        return self.block.buffers

    @buffers.setter
    def buffers(self, buffers):
        self.block.buffers = buffers

    @property
    def children(self):
        """The block's."""
        return self.block.children

    @property
    def trainable(self):
        """The block's."""
        return self.block.trainable

    @trainable.setter
    def trainable(self, names):
        self.block.trainable = names

    def change_arrays(self, change):
        self.block.change_arrays(change)

    def forward(self, x, run=RUN):
        """Without `run.keep` there is no cache."""
        rng = copy.deepcopy(run.rng) if run.keep else None  # before the block draws
        y, _ = self.block.forward(x, run.but(keep=False))
        return y, (x, run.but(rng=rng, watch=None)) if run.keep else None

    def backward(self, dout, cache, need_dx=True):
        """Nothing is run again where nothing inside trains and no dx is wanted."""
        if not (need_dx or self.block.trains()):
            return None, {}
        x, run = cache
        run = run.but(rng=copy.deepcopy(run.rng), spare=False)  # a second backward draws the same again
        _, cache = self.block.forward(x, run)
        return self.block.backward(dout, cache, need_dx)
