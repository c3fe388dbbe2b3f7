import numpy as np

from lorabook.quantization import int4_levels, nf4_levels

# Dettmers et al. 2023, arXiv:2305.14314, appendix E
PUBLISHED = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
    *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


def test_nf4_is_the_published_table():
    levels = nf4_levels()
    assert levels.dtype == np.float32 and levels.shape == (16,)
    assert np.abs(levels - np.array(PUBLISHED)).max() < 2e-7  # it was rounded from a float32 computation
    assert (levels[0], levels[7], levels[-1]) == (-1, 0, 1) and (np.diff(levels) > 0).all()


def test_nf4_uses_its_codes_more_evenly_than_int4(rng):
    """What makes it a NormalFloat: of normal weights, each code gets about as many."""
    W = rng.standard_normal((4096, 64)).astype("f4")
    scale = np.abs(W).max(axis=1, keepdims=True)

    def entropy(levels):
        codes = np.abs((W / scale)[..., None] - levels).argmin(axis=-1)
        p = np.bincount(codes.ravel(), minlength=16) / W.size
        return -np.sum(p[p > 0] * np.log2(p[p > 0]))

    assert entropy(nf4_levels()) > 3.85 > 3.55 > entropy(int4_levels() / 7)  # of 4 bits
