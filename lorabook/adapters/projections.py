"""Random matrices that a whole model shares: options, layers that hold them, and numbers, PyTorch's bit for bit."""

import math
from dataclasses import dataclass

import numpy as np

from ..backend import array_namespace, asarray_like
from ..errors import InputError, check_integer
from .additive import AdditiveAdapter
from .rank_config import RankConfig, check_flag


@dataclass(frozen=True, kw_only=True)
class ProjectionConfig(RankConfig):
    """projection_prng_key: the seed of the matrices. save_projection: whether the file holds them.

    Without them in the file they are drawn again, by PyTorch's generator, as PEFT draws them on a CPU.
    """

    projection_prng_key: int = 0
    save_projection: bool = True

    def __post_init__(self):
        super().__post_init__()
        self._set(projection_prng_key=check_integer("projection_prng_key", self.projection_prng_key, 0))
        check_flag("save_projection", self.save_projection)

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
        drawn = zip(shapes.items(), draws(projection_prng_key, *map(math.prod, shapes.values())), strict=True)
        return {name: uniform_of(numbers, cls.bound(shape)).reshape(shape) for (name, shape), numbers in drawn}

    @classmethod
    def update_of(cls, tensors, path, **options):
        raise InputError(f"{path}: the update of {cls.method} is cut to the layer's size; give the model")


def largest(sizes):
    """(d_out, d_in), each the largest of all sizes."""
    return tuple(max(side) for side in zip(*sizes, strict=True))


def draws(seed, *counts):
    """An array of so many 32-bit numbers for each count, one after another by torch.manual_seed(seed) on a CPU."""
    drawn = np.random.RandomState(seed % 2**32)._bit_generator.random_raw(sum(counts))
    return np.split(drawn, np.cumsum(counts)[:-1])


def uniform_of(numbers, bound):
    """float32 ~ U(-bound, bound) as tensor.uniform_ makes it of these numbers: of the lowest 24 bits, rounded once."""
    low, high = np.float32(-bound), np.float32(bound)
    return (numbers % 2**24 * 2.0**-24 * float(high - low) + float(low)).astype("f4")
