"""Random matrices that a whole model shares: their options, and the layers that hold them."""

import math
from dataclasses import dataclass

import numpy as np

from ..backend import array_namespace, asarray_like
from ..errors import InputError, check_integer
from .additive import AdditiveAdapter
from .pytorch import draws, uniform_of
from .rank_config import RankConfig, check_flag


@dataclass(frozen=True, kw_only=True)
class ProjectionConfig(RankConfig):
    """init_weights: whether the update starts at zero. projection_prng_key: the seed of the matrices. save_projection:
    whether the file holds them.

    Without them in the file they are drawn again, by PyTorch's generator, as PEFT draws them on a CPU.
    """

    init_weights: bool = True
    projection_prng_key: int = 0
    save_projection: bool = True

    def __post_init__(self):
        super().__post_init__()
        self._set(projection_prng_key=check_integer("projection_prng_key", self.projection_prng_key, 0))
        for name in ("init_weights", "save_projection"):
            check_flag(name, getattr(self, name))

    @property
    def saves_shared(self):
        return self.save_projection


class ProjectedAdapter(AdditiveAdapter):
    """An update of random, frozen matrices, one array in the model, which each layer takes its own part of.

    A variant says their shapes (`shared_shapes`), and the `bound` of the numbers in a matrix of this shape.
    """

    def hold(self, shared, **options):
        """Take the matrices that other layers hold too; without them, those of this layer's own size."""
        if not shared:
            drawn = self.draw_shared([self.shape], **options)
            shared = {name: asarray_like(array, self.base_layer.like) for name, array in drawn.items()}
        self.buffers = dict(shared)

    def held(self):
        """The matrices, in the dtype of the parameters: a buffer keeps its own where a model moves to another."""
        dtype = next(iter(self.params.values())).dtype
        return [array_namespace(M).astype(M, dtype, copy=False) for M in (self.buffers[name] for name in self.shared)]

    @classmethod
    def draw_shared(cls, sizes, *, projection_prng_key, **options):
        shapes = cls.shared_shapes(sizes, **options)
        sizes = [math.prod(shape) for shape in shapes.values()]
        drawn = np.split(draws(projection_prng_key, sum(sizes)), np.cumsum(sizes)[:-1])
        return {
            name: uniform_of(numbers, cls.bound(shape)).reshape(shape)
            for (name, shape), numbers in zip(shapes.items(), drawn, strict=True)
        }

    @classmethod
    def update_of(cls, tensors, path, **options):
        raise InputError(f"{path}: the update of {cls.method} is cut to the layer's size; give the model")


def largest(sizes):
    """(d_out, d_in), each the largest of all sizes."""
    return tuple(max(side) for side in zip(*sizes, strict=True))
