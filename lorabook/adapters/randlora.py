"""RandLoRA: a full-rank update from random factors that all layers share (Albert et al. 2025, arXiv:2502.00987)."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..backend import array_namespace
from ..errors import InputError
from .projections import ProjectedAdapter, ProjectionConfig, largest
from .rank_config import check_finite, check_probability, check_r, scaling_of


@dataclass(frozen=True, kw_only=True)
class RandLoRAConfig(ProjectionConfig):
    """Options of `inject` for RandLoRA; see `RandLoRALinear`, and `AdapterConfig` for which layers they select.

    The smaller r, the more parameters. The file always holds the matrices: PEFT draws them in a number format that the
    machine decides on. PEFT also writes them once more for each layer, and warns that these keys are missing where they
    are not. Its sparse matrices are not implemented here.

    >>> import lorabook as lb
    >>> from lorabook.adapters import RandLoRAConfig
    >>> model = lb.MLP((64, 32, 10))
    >>> lb.inject(model, RandLoRAConfig(r=10, target_modules=["fc1"]))
    ['fc1']
    >>> {name: array.shape for name, array in model.trainable_params().items()}
    {'fc1.randlora_lambda': (10, 4), 'fc1.randlora_gamma': (4, 32)}
    """

    method: ClassVar[str] = "randlora"
    same: ClassVar[tuple] = ("randlora_alpha", "randlora_dropout", "init_weights", "projection_prng_key")
    bias_word: ClassVar[str] = "randlora_only"
    absent: ClassVar[tuple] = ("exclude_modules", "rank_pattern")

    r: int = 32
    randlora_alpha: float = 640
    randlora_dropout: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        self._set(
            randlora_alpha=check_finite("randlora_alpha", self.randlora_alpha),
            randlora_dropout=check_probability("randlora_dropout", self.randlora_dropout),
        )
        if not self.save_projection:
            raise InputError("save_projection must be true in randlora: its matrices cannot be drawn again; got False")


class RandLoRALinear(ProjectedAdapter):
    """W_eff = W + s B U, s = alpha / r: B is random, U a random A in n copies, each scaled along both of its sides.

    With m the smaller side of the layer, M the larger, and n = m / r rounded up, U (r n, m) has the rows

        U_(i n + k) = L_ik a_i o G_k

    from randlora_lambda = L (r, n), zero at the start, and randlora_gamma = G (n, m) with rows G_k, 1 / m at the start.
    So r n >= m, and every rank is in reach. A with rows a_i is the first m columns of randlora_A (r, 1, m'), B (M, r n)
    is randlora_B[:M, :n] (M', n', r) laid out flat: both of mean 0 and variance 1, frozen, and one array in the model,
    as large as the largest layer. A layer with d_out < d_in is taken the other way round: its update is s (B U)^T.

    With H = d_delta, of such a layer its transpose, and K_ik = s (B^T H)_(i n + k) o a_i, the change of the loss is
    sum_ik <K_ik, dL_ik G_k + L_ik dG_k>:

        dL_ik = <K_ik, G_k>
        dG_k  = sum_i L_ik K_ik
    """

    method, peft_type, Config = "randlora", "RANDLORA", RandLoRAConfig
    tensors: ClassVar[dict] = {"randlora_lambda": "randlora_lambda", "randlora_gamma": "randlora_gamma"}
    shared: ClassVar[dict] = {"randlora_A": "randlora_A", "randlora_B": "randlora_B"}

    def __init__(
        self,
        base,
        r=32,
        randlora_alpha=640,
        *,
        randlora_dropout=0.0,
        init_weights=True,
        projection_prng_key=0,
        rng=None,
        shared=None,
    ):
        """Wrap the Linear `base`, sharing its arrays. `rng`: numpy Generator or seed of a random start (default 0).

        shared: the matrices, which other layers may hold too; of this layer's own size, unless given.
        """
        super().__init__(base, {})
        self.r, self.scaling = check_r(r), self.scale(r=r, randlora_alpha=randlora_alpha)
        self.dropout = check_probability("randlora_dropout", randlora_dropout)
        rng, (of_l, of_g) = np.random.default_rng(0 if rng is None else rng), self.shapes(*base.shape, r=r).values()
        lambda_ = np.zeros(of_l) if init_weights else rng.standard_normal(of_l)
        self.start(randlora_lambda=lambda_, randlora_gamma=np.full(of_g, 1 / of_g[1]))
        self.hold(shared, r=r, projection_prng_key=projection_prng_key)

    @classmethod
    def shapes(cls, d_out, d_in, where="this layer", *, r, **options):
        m = min(d_out, d_in)
        return {"randlora_lambda": (r, -(-m // r)), "randlora_gamma": (-(-m // r), m)}

    @classmethod
    def shared_shapes(cls, sizes, *, r, **options):
        m, M = sorted(largest(sizes))
        return {"randlora_A": (r, 1, m), "randlora_B": (M, -(-m // r), r)}

    @staticmethod
    def bound(shape):
        return 3**0.5

    @classmethod
    def scale(cls, *, r, randlora_alpha, **options):
        return scaling_of(r, randlora_alpha)

    def projections(self):
        """(A (r, 1, m), B (M, r n)), this layer's part of the matrices."""
        (A, B), (n, m), M = self.held(), self.params["randlora_gamma"].shape, max(self.shape)
        return A[:, :, :m], array_namespace(B).reshape(B[:M, :n, :], (M, n * self.r))

    def delta_weight(self):
        (A, B), (L, G) = self.projections(), (self.params[name] for name in self.tensors)
        U = array_namespace(A).reshape(self.scaling * L[:, :, None] * A * G, (-1, G.shape[1]))
        return B @ U if self.shape[0] >= self.shape[1] else U.T @ B.T

    def delta_backward(self, d_delta):
        (A, B), (L, G) = self.projections(), (self.params[name] for name in self.tensors)
        xp, H = array_namespace(A), d_delta if self.shape[0] >= self.shape[1] else d_delta.T
        K = self.scaling * A * xp.reshape(B.T @ H, (*L.shape, G.shape[1]))  # K_ik at (i, k)
        grads = {"randlora_lambda": xp.sum(K * G, axis=2), "randlora_gamma": xp.sum(K * L[:, :, None], axis=0)}
        return self.trained(grads)
