"""FourierFT: a few Fourier coefficients of the update (Gao et al. 2024, arXiv:2405.03003)."""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from ..backend import array_namespace, asarray_like, empty, put_rows
from ..errors import InputError, check_integer
from .additive import AdditiveAdapter
from .config import AdapterConfig
from .pytorch import draws
from .rank_config import check_finite, check_flag, check_r


@dataclass(frozen=True, kw_only=True)
class FourierFTConfig(AdapterConfig):
    """Options of `inject` for FourierFT; see `FourierFTLinear`, and `AdapterConfig` for which layers they select.

    n_frequency: coefficients of a layer; n_frequency_pattern overrides it for paths whose end matches. init_weights:
    whether they start at zero; PEFT's default, False, is a normal distribution, so the model changes before training.

    >>> import lorabook as lb
    >>> from lorabook.adapters import FourierFTConfig
    >>> model = lb.MLP((64, 32, 10))
    >>> lb.inject(model, FourierFTConfig(n_frequency=100, init_weights=True, target_modules=["fc1"]))
    ['fc1']
    >>> model.trainable_params()["fc1.fourierft_spectrum"].shape
    (100,)
    """

    method: ClassVar[str] = "fourierft"
    patterns: ClassVar[tuple] = ("n_frequency_pattern",)
    bias_word: ClassVar[str] = "fourier_only"

    n_frequency: int = 1000
    scaling: float = 150.0
    random_loc_seed: int = 777
    init_weights: bool = False
    n_frequency_pattern: dict[str, int] = field(default_factory=dict)

    def __post_init__(self):
        super().__post_init__()
        self._set(
            n_frequency=check_r(self.n_frequency, "n_frequency"),
            scaling=check_finite("scaling", self.scaling),
            random_loc_seed=check_integer("random_loc_seed", self.random_loc_seed, 0),
            n_frequency_pattern={p: check_r(n, "n_frequency") for p, n in self.n_frequency_pattern.items()},
        )
        check_flag("init_weights", self.init_weights)

    def options_for(self, paths):
        same = {name: getattr(self, name) for name in ("scaling", "random_loc_seed", "init_weights")}
        numbers = self._values("n_frequency_pattern", self.n_frequency, paths)
        return {path: {"n_frequency": n, **same} for path, n in numbers.items()}


class FourierFTLinear(AdditiveAdapter):
    """W_eff = W + s Re(ifft2(F)): F (d_out, d_in) is zero but at n_frequency places, drawn once, with coefficients c.

    fourierft_spectrum = c (n_frequency,). The rank is not limited. The places are the first of a permutation drawn
    from random_loc_seed, by PyTorch's generator, so that PEFT means the same ones.

    For real F, Re(ifft2(F)) is symmetric as a map of F: entry (j, k) of the output depends on entry (p, q) of F by
    cos(2 pi (j p / d_out + k q / d_in)) / (d_out d_in), and so the gradient takes the same way back:

        dc = s Re(ifft2(d_delta)) at the places
    """

    method, peft_type, Config = "fourierft", "FOURIERFT", FourierFTConfig
    tensors: ClassVar[dict] = {"fourierft_spectrum": "fourierft_spectrum"}

    def __init__(self, base, n_frequency=1000, *, scaling=150.0, random_loc_seed=777, init_weights=False, rng=None):
        """Wrap the Linear `base`, sharing its arrays. `rng`: numpy Generator or seed of a random start (default 0)."""
        super().__init__(base, {})
        (shape,) = self.shapes(*base.shape, n_frequency=n_frequency).values()
        rng = np.random.default_rng(0 if rng is None else rng)
        self.scaling, self.n_frequency, self.random_loc_seed = float(scaling), n_frequency, random_loc_seed
        self.places = places(*base.shape, n_frequency, random_loc_seed)
        self.start(fourierft_spectrum=np.zeros(shape) if init_weights else rng.standard_normal(shape))

    @classmethod
    def shapes(cls, d_out, d_in, where="this layer", *, n_frequency, **options):
        if n_frequency > d_out * d_in:
            raise InputError(f"n_frequency must be at most {d_out * d_in}, the entries of {where}; got {n_frequency}")
        return {"fourierft_spectrum": (n_frequency,)}

    @classmethod
    def scale(cls, *, scaling, **options):
        return scaling

    def delta_weight(self):
        c = self.params["fourierft_spectrum"]
        xp, (d_out, d_in) = array_namespace(c), self.shape
        F = xp.zeros_like(empty((d_out * d_in, 1), c))
        put_rows(F, asarray_like(self.places, c, xp.int64), xp.reshape(self.scaling * c, (-1, 1)))
        return real_ifft2(xp.reshape(F, (d_out, d_in)))

    def delta_backward(self, d_delta):
        xp = array_namespace(d_delta)
        seen = xp.reshape(real_ifft2(self.scaling * d_delta), (-1,))
        return self.trained({"fourierft_spectrum": xp.take(seen, asarray_like(self.places, d_delta, xp.int64))})


def real_ifft2(F):
    """Re(ifft2(F)) of a real F; of a complex one the same of both its parts, so that it stays a linear map."""
    xp = array_namespace(F)
    if xp.isdtype(F.dtype, "complex floating"):
        return real_ifft2(xp.real(F)) + 1j * real_ifft2(xp.imag(F))
    return xp.real(xp.fft.ifftn(xp.astype(F, xp.complex64 if F.dtype == xp.float32 else xp.complex128)))


def places(d_out, d_in, n, seed):
    """(n,) numbers of entries of a (d_out, d_in) matrix: the first n of torch.randperm(d_out d_in) with this seed.

    That is a Fisher-Yates shuffle by the Mersenne Twister; what comes behind the first n needs no drawing.
    """
    total, moved, found = d_out * d_in, {}, np.empty(n, np.int64)
    for i, z in enumerate(draws(seed, n).tolist()):
        j = i + z % (total - i)
        found[i], moved[j] = moved.get(j, j), moved.get(i, i)
    return found
