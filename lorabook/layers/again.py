"""Caches without an array that is cheap to make again: a gated product, a norm's output, each as large as any other.

The layer that made the array takes it out of the cache of the layer behind, which kept it as its input, and puts it
back, made again from what it keeps itself, right before that layer's backward. The same operations give the same bits.
"""


class Again:
    """Stands where an array was; each kind of array has one of its own."""


def without(cache, x, place):
    """The cache with `place`, an Again, where the array x is, however deep in tuples."""
    if cache is x:
        return place
    return tuple(without(part, x, place) for part in cache) if type(cache) is tuple else cache


def within(cache, place, make):
    """The cache with make() wherever `place` is; it is called once at most, and not if there is none."""
    made = []

    def filled(part):
        if part is place:
            made[:] = made or [make()]
            return made[0]
        return tuple(map(filled, part)) if type(part) is tuple else part

    return filled(cache)
