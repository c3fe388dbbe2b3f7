"""Low rank: the best approximation of a matrix at every rank, and which directions two matrices share.

`low_rank`: SVD, PCA, truncation with regard to the inputs. `randomized`: the leading part alone, from a few products.
`subspace`: angles, amplification, intruders. `spectra`: how compressible the matrices of a model are.
"""

from . import low_rank, randomized, subspace
from .low_rank import (
    activation_factor,
    break_even_rank,
    energy_rank,
    pca,
    rank_errors,
    stable_rank,
    svd,
    truncate,
    truncate_for_inputs,
    truncated_svd,
)
from .randomized import randomized_svd
from .spectra import find_layers, most_compressible, spectrum
from .subspace import amplification, largest_cosines, norm_between, subspace_similarity

__all__ = [
    "activation_factor",
    "amplification",
    "break_even_rank",
    "energy_rank",
    "find_layers",
    "largest_cosines",
    "low_rank",
    "most_compressible",
    "norm_between",
    "pca",
    "randomized",
    "randomized_svd",
    "rank_errors",
    "spectrum",
    "stable_rank",
    "subspace",
    "subspace_similarity",
    "svd",
    "truncate",
    "truncate_for_inputs",
    "truncated_svd",
]
