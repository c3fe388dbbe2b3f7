"""Checks of the exercises of chapter 08."""

from pathlib import Path

import numpy as np

from ... import hub
from ...files import read_csv
from ...linalg import largest_cosines, subspace_similarity
from ...models import BertForSequenceClassification
from . import exercise, need

DATA = Path(__file__).parents[3] / "figures" / "data"
PATH = "bert.encoder.layer.3.attention.self.query"


@exercise
def count(answer):
    """How many numbers train at rank r, `adapted` attention matrices of each layer having an adapter."""
    need(callable(answer), "expected a function of r and adapted")
    for row in read_csv(DATA / "reviews_rank.csv"):
        r, adapted = row["r"], len(row["targets"].split())
        got = answer(r, adapted)
        side = "fewer" if got > row["params"] else "more"
        need(got == row["params"], f"r = {r} on {adapted} of the four matrices trains {side} numbers than {got:,}")


@exercise
def random_phi(answer):
    """Mean phi(i, j) of random subspaces of a space with d dimensions."""
    need(callable(answer), "expected a function of i, j and d")
    rng = np.random.default_rng(0)
    draws = [subspace_similarity(*rng.standard_normal((2, 64, 384))) for _ in range(40)]
    for i, j in ((1, 1), (1, 64), (8, 16), (64, 8), (64, 64)):
        mean, error = (f([phi[i - 1, j - 1] for phi in draws]) for f in (np.mean, np.std))
        got = float(answer(i, j, 384))
        need(abs(got - mean) < 4 * error / np.sqrt(len(draws)), f"phi({i}, {j}) is not {got:.3f} on average")


@exercise
def shared_A(answer):
    """dA of one A that the branches of query and value share."""
    need(callable(answer), "expected a function of dq, dv, x, A, B_q, B_v and s")
    rng = np.random.default_rng(0)
    N, d_in, d_out, r, s, h = 5, 7, 6, 3, 0.7, 1e-6
    x, A, dq, dv = (rng.standard_normal(shape) for shape in ((N, d_in), (r, d_in), (N, d_out), (N, d_out)))
    B_q, B_v = rng.standard_normal((2, d_out, r))

    def loss(A):
        return np.sum(dq * (s * x @ A.T @ B_q.T) + dv * (s * x @ A.T @ B_v.T))

    dA = np.asarray(answer(dq, dv, x, A, B_q, B_v, s))
    need(dA.shape == A.shape, f"expected the shape of A, {A.shape}; got {dA.shape}")
    for place in np.ndindex(A.shape):
        step = np.zeros_like(A)
        step[place] = h
        slope = (loss(A + step) - loss(A - step)) / (2 * h)
        need(abs(slope - dA[place]) < 1e-6, f"dA{list(place)} is not what a small change of A{list(place)} does")


@exercise
def louder(answer):
    """Intruders among the first ten directions of W + times * update for large `times`, the update of rank 8."""
    need(isinstance(answer, int), "expected an integer")
    model = BertForSequenceClassification.from_pretrained(hub.locate("minilm"), labels=2)
    W = model.named_params()[f"{PATH}.weight"].astype("f8")
    B, A = np.random.default_rng(0).standard_normal((2, 384, 8))
    louder = (0.001, 0.003, 0.01, 0.1, 1, 10)
    counts = {times: int(np.sum(largest_cosines(W, times * B @ A.T) < 0.5)) for times in louder}
    need(answer == counts[10], "not for large times; measure it, with intruders(W, times * update)")
    print(", ".join(f"times = {times:g}: {found}" for times, found in counts.items()))
