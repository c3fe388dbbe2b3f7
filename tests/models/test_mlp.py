import numpy as np
from checks import same_bits

from lorabook import MLP


def test_weights_come_from_a_generator_or_a_seed():
    def weight(**rng):
        return MLP((6, 5, 4), **rng).named_params()["fc2.weight"]

    assert same_bits(weight(), weight(rng=0)) and same_bits(weight(rng=3), weight(rng=np.random.default_rng(3)))
    assert not np.array_equal(weight(), weight(rng=3))
