"""VeRA: random factors that all layers share, and two vectors for each (Kopiczko et al. 2023, arXiv:2310.11454)."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .projections import ProjectedAdapter, ProjectionConfig, largest
from .rank_config import check_finite, check_probability, check_r


@dataclass(frozen=True, kw_only=True)
class VeRAConfig(ProjectionConfig):
    """Options of `inject` for VeRA; see `VeRALinear`, and `AdapterConfig` for which layers they select.

    d_initial: where d starts, with b at zero; with init_weights False, b starts at 1 and d at random. r costs one
    number a layer, so it may be large.

    >>> import lorabook as lb
    >>> from lorabook.adapters import VeRAConfig
    >>> model = lb.MLP((64, 32, 10))
    >>> lb.inject(model, VeRAConfig(r=100, target_modules=["fc1"]))
    ['fc1']
    >>> {name: array.shape for name, array in model.trainable_params().items()}
    {'fc1.vera_lambda_b': (32,), 'fc1.vera_lambda_d': (100,)}
    """

    method: ClassVar[str] = "vera"
    same: ClassVar[tuple] = ("vera_dropout", "d_initial", "init_weights", "projection_prng_key")
    bias_word: ClassVar[str] = "vera_only"
    absent: ClassVar[tuple] = ("exclude_modules", "rank_pattern")

    r: int = 256
    vera_dropout: float = 0.0
    d_initial: float = 0.1

    def __post_init__(self):
        super().__post_init__()
        self._set(
            vera_dropout=check_probability("vera_dropout", self.vera_dropout),
            d_initial=check_finite("d_initial", self.d_initial),
        )


class VeRALinear(ProjectedAdapter):
    """W_eff = W + diag(b) B diag(d) A: A and B are random, frozen and the same in all layers; b and d train.

    vera_lambda_b = b (d_out,), zero at the start, and vera_lambda_d = d (r,). A (r, d_in) is the first columns of
    vera_A, B (d_out, r) the first rows of vera_B, which are as large as the largest layer, and one array in the model:
    both ~ U(+-sqrt(6 / n)), n their numbers of columns.

    dL = <d_delta, diag(db) B diag(d) A + diag(b) B diag(dd) A>. Entry (i, k) of Q = B o (d_delta A^T) is what
    b_i d_k stands beside in that sum:

        db = Q d      (d_out,)
        dd = Q^T b    (r,)
    """

    method, peft_type, Config = "vera", "VERA", VeRAConfig
    tensors: ClassVar[dict] = {"vera_lambda_b": "vera_lambda_b", "vera_lambda_d": "vera_lambda_d"}
    shared: ClassVar[dict] = {"vera_A": "vera_A", "vera_B": "vera_B"}

    def __init__(
        self,
        base,
        r=256,
        *,
        vera_dropout=0.0,
        d_initial=0.1,
        init_weights=True,
        projection_prng_key=0,
        rng=None,
        shared=None,
    ):
        """Wrap the Linear `base`, sharing its arrays. `rng`: numpy Generator or seed of a random start (default 0).

        shared: the matrices, which other layers may hold too; of this layer's own size, unless given.
        """
        super().__init__(base, {})
        rng = np.random.default_rng(0 if rng is None else rng)
        self.r, self.dropout, d_out = check_r(r), check_probability("vera_dropout", vera_dropout), base.shape[0]
        b, d = (np.zeros(d_out), np.full(r, d_initial)) if init_weights else (np.ones(d_out), rng.standard_normal(r))
        self.start(vera_lambda_b=b, vera_lambda_d=d)
        self.hold(shared, r=r, projection_prng_key=projection_prng_key)

    @classmethod
    def shapes(cls, d_out, d_in, where="this layer", *, r, **options):
        return {"vera_lambda_b": (d_out,), "vera_lambda_d": (r,)}

    @classmethod
    def shared_shapes(cls, sizes, *, r, **options):
        d_out, d_in = largest(sizes)
        return {"vera_A": (r, d_in), "vera_B": (d_out, r)}

    @staticmethod
    def bound(shape):
        return (6 / shape[1]) ** 0.5

    def projections(self):
        """(A (r, d_in), B (d_out, r)), this layer's part of the matrices."""
        (A, B), (d_out, d_in) = self.held(), self.shape
        return A[:, :d_in], B[:d_out, :]

    def delta_weight(self):
        (A, B), (b, d) = self.projections(), (self.params[name] for name in self.tensors)
        return (b[:, None] * B * d) @ A

    def delta_backward(self, d_delta):
        (A, B), (b, d) = self.projections(), (self.params[name] for name in self.tensors)
        Q = B * (d_delta @ A.T)
        return self.trained({"vera_lambda_b": Q @ d, "vera_lambda_d": Q.T @ b})
