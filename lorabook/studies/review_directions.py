"""Which directions did the encoder's runs find? Rows for the figures reviews_subspaces, _amplification, _spectrum and
_intruders, from the factors and updates that the runs of `reviews` left.

Everything is of the query and value matrices, in float64. Runs that are missing are computed first.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from ..adapters import adapters, load_adapter, unload
from ..files import read_safetensors
from ..linalg import amplification, largest_cosines, norm_between, subspace_similarity, svd
from . import reviews

MATRICES = ("query", "value")
SIZES = (1, 2, 4, 8, 16, 32, 64)  # of the subspaces that are compared
INDICES = (1, 2, 3, 4, 6, 8, 16, 32, 64, 128, 256, 384)  # of the singular values in the CSV
TOP = 10  # singular vectors that may be intruders, as in Shuttleworth et al. 2024


@dataclass(frozen=True)
class Where:
    """One matrix of the encoder, and its dotted path."""

    matrix: str
    layer: int
    path: str


class Runs:
    """The runs of a folder, opened: base weights, and what each run added to them."""

    def __init__(self, settings, folder, jobs=1, progress=False):
        task = reviews.ReviewsTask()
        reviews.run_all(settings, folder, jobs, progress, task)
        self.folder, self._model = Path(folder), task.job().model
        layers, path = range(self._model.sizes.num_hidden_layers), self._model.architecture.layer
        self.places = [Where(matrix, i, path(i, matrix)) for matrix in MATRICES for i in layers]
        params = self._model.named_params()
        self.base = {place: params[f"{place.path}.weight"].astype("f8") for place in self.places}

    def factors(self, setting):
        """{Where: (lora_A (r, d_in), scaling * lora_B (d_out, r))} of a LoRA run."""
        load_adapter(self.folder / setting.name, self._model)
        layers = adapters(self._model)
        unload(self._model)
        found = {}
        for place in self.places:
            layer = layers[place.path]
            A, B = (layer.params[name].astype("f8") for name in ("lora_A", "lora_B"))
            found[place] = A, layer.scaling * B
        return found

    def update(self, setting):
        """{Where: (d_out, d_in)}: scaling * lora_B @ lora_A, or the update of full fine-tuning."""
        if setting.method == "lora":
            return {place: B @ A for place, (A, B) in self.factors(setting).items()}
        arrays, _ = read_safetensors(self.folder / setting.name / "update.safetensors")
        return {place: arrays[f"{place.path}.weight"].astype("f8") for place in self.places}


def _of_query_and_value(ranks=reviews.RANKS):
    """The runs of Table 6 with LoRA on query and value."""
    return [s for s in reviews.which_rank() if s.targets == MATRICES and s.r in ranks]


@threadpool_limits.wrap(limits=1)
def subspaces(jobs=1, progress=False, folder=reviews.FOLDER):
    """Rows {kind, r1, r2, matrix, layer, seed1, seed2, i, j, phi}: lora_A of r = 8 against 64, and 64 against 64.

    phi of the first i and the first j directions, for i, j in SIZES (Hu et al. 2021, figures 3 and 4). The two runs
    have different seeds: with the same one, the first layer's two lora_A would start with the same rows. kind "random":
    Gaussian matrices of the same shapes.
    """
    settings = {(s.r, s.seed): s for s in _of_query_and_value((8, 64))}
    runs = Runs(settings.values(), folder, jobs, progress)
    A = {key: {place: a for place, (a, _) in runs.factors(s).items()} for key, s in settings.items()}
    seeds, rows = sorted({seed for _, seed in settings}), []
    d_in = runs.base[runs.places[0]].shape[1]
    for r1, r2 in ((8, 64), (64, 64)):
        for one, two in zip(seeds, seeds[1:] + seeds[:1], strict=True):
            key = {"kind": "trained", "r1": r1, "r2": r2, "matrix": None, "layer": None, "seed1": one, "seed2": two}
            for place in runs.places:
                phi = subspace_similarity(A[r1, one][place], A[r2, two][place])
                rows += _cells(key | {"matrix": place.matrix, "layer": place.layer}, phi)
            rng = np.random.default_rng([r1, r2, one, two])
            phi = subspace_similarity(rng.standard_normal((r1, d_in)), rng.standard_normal((r2, d_in)))
            rows += _cells(key | {"kind": "random"}, phi)
    return rows


def _cells(key, phi):
    sizes = ([n for n in SIZES if n <= side] for side in phi.shape)
    first, second = sizes
    return [key | {"i": i, "j": j, "phi": round(float(phi[i - 1, j - 1]), 4)} for i in first for j in second]


@threadpool_limits.wrap(limits=1)
def amplifications(jobs=1, progress=False, folder=reviews.FOLDER):
    """Rows of the LoRA paper's Table 7 for every matrix, layer, rank and seed.

    norm_weight ||W||, norm_update ||s B A||, and ||U^T W V|| with U, V of the update (from_update), of W (from_weight)
    and of a Gaussian matrix (random); amplification = norm_update / from_update. Frobenius norms.
    """
    settings = _of_query_and_value()
    runs = Runs(settings, folder, jobs, progress)
    fixed, rows = {}, []  # what does not depend on the run
    for i, (place, W) in enumerate(runs.base.items()):
        random = np.random.default_rng(i).standard_normal(W.shape)
        for r in {setting.r for setting in settings}:
            fixed[place, r] = {"from_weight": norm_between(W, W, r), "random": norm_between(W, random, r)}
    for setting in tqdm(settings, delay=2, disable=None if progress else True, unit="run"):
        for place, delta in runs.update(setting).items():
            W, r = runs.base[place], setting.r
            rows.append(
                {
                    "matrix": place.matrix,
                    "layer": place.layer,
                    "r": r,
                    "epochs": setting.epochs,
                    "seed": setting.seed,
                    "norm_weight": float(np.linalg.norm(W)),
                    "norm_update": float(np.linalg.norm(delta)),
                    "from_update": norm_between(W, delta, r),
                    **fixed[place, r],
                    "amplification": amplification(W, delta, r),
                }
            )
    return rows


@threadpool_limits.wrap(limits=1)
def spectra(jobs=1, progress=False, folder=reviews.FOLDER):
    """Rows {what, r, matrix, layer, seed, i, singular_value, energy}: of W, of the full update, of LoRA's, at INDICES.

    energy: the share of ||.||_F^2 in the first i singular values. The runs are those of the recipe.
    """
    settings = [s for s in reviews.recipe() if s.method in ("full", "lora")]
    runs = Runs(settings, folder, jobs, progress)
    updates = ((s, update) for s in settings for update in [runs.update(s)])
    found = [({"what": "weight", "r": None}, None, runs.base)]
    found += [({"what": s.method, "r": s.r}, s.seed, update) for s, update in updates]
    rows = []
    for key, seed, matrices in tqdm(found, delay=2, disable=None if progress else True, unit="run"):
        for place, delta in matrices.items():
            s = svd(delta)[1]
            energy = np.cumsum(s**2) / np.sum(s**2)
            where = key | {"matrix": place.matrix, "layer": place.layer, "seed": seed}
            indices = [i for i in INDICES if i <= min(key["r"] or len(s), len(s))]
            rows += [
                where | {"i": i, "singular_value": float(s[i - 1]), "energy": float(energy[i - 1])} for i in indices
            ]
    return rows


@threadpool_limits.wrap(limits=1)
def intruders(jobs=1, progress=False, folder=reviews.FOLDER):
    """Rows {method, r, epochs, matrix, layer, seed, intruders, smallest_cosine}.

    intruders: how many of the first TOP left singular vectors of W + update are no direction of W (largest cosine with
    W's below 0.5). smallest_cosine: the largest cosine of the one least like W's. The runs are those of the recipe, and
    those of Table 6 on query and value.
    """
    settings = [s for s in reviews.recipe() if s.method in ("full", "lora")] + _of_query_and_value()
    runs, rows = Runs(settings, folder, jobs, progress), []
    for setting in tqdm(settings, delay=2, disable=None if progress else True, unit="run"):
        for place, delta in runs.update(setting).items():
            cosines = largest_cosines(runs.base[place], delta, TOP)
            rows.append(
                {
                    "method": setting.method,
                    "r": setting.r,
                    "epochs": setting.epochs,
                    "matrix": place.matrix,
                    "layer": place.layer,
                    "seed": setting.seed,
                    "intruders": int(np.sum(cosines < 0.5)),
                    "smallest_cosine": float(cosines.min()),
                }
            )
    return rows
