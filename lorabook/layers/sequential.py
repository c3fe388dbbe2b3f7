"""Layers one after another."""

from .base import RUN, Layer, prefixed


class Sequential(Layer):
    """Children one after another. The backward pass stops below the lowest child that has anything to train.

    `run.first` is for the last child only. Without `run.keep` there is no cache, and no backward: every child's memory
    is free for the next one.
    """

    def __init__(self, children):
        super().__init__(children=children)

    def forward(self, x, run=RUN):
        caches, inside = [], run if run.first is None else run.but(first=None)
        for i, child in enumerate(self.children.values(), 1):
            x, cache = child(x, run if i == len(self.children) else inside)
            if run.keep:
                caches.append(cache)
        return x, caches

    def backward(self, dout, caches, need_dx=True):
        names = list(self.children)
        lowest = 0 if need_dx else next((i for i, n in enumerate(names) if self.children[n].trains()), len(names))
        grads = {}
        for i in range(len(names) - 1, lowest - 1, -1):
            dout, own = self.children[names[i]].backward(dout, caches[i], need_dx or i > lowest)
            grads |= prefixed(names[i], own)
        return (dout if need_dx else None), grads
