"""Steps for LoRA's factors A (r, d_in) and B (d_out, r) as a pair, since only their product counts.

A rule for single numbers, SGD or AdamW, does not know that (M^-1 A, B M) is the same layer as (A, B). What stands here
replaces the gradients of a pair by directions that look at both factors; `riemannian`, `lora_fa` and `lora_pro` say
which. Products of r x r matrices are in float64: the square of a condition number is too much for float32.
"""

from typing import Any, NamedTuple

from ..backend import array_namespace
from ..errors import InputError

FACTORS = ("lora_A", "lora_B")


def pairs(params):
    """{path: (name of its lora_A, name of its lora_B)} among the parameters {name: array}.

    Raises InputError, by name, if there is no pair, if half of one is missing, or if the two do not fit.
    """
    halves = {}
    for name in params:
        path, _, factor = name.rpartition(".")
        if factor in FACTORS:
            halves.setdefault(path, set()).add(factor)
    if not halves:
        some = ", ".join(sorted(params)[:4]) + " ..." * (len(params) > 4)
        raise InputError(f"it is made for LoRA's factors lora_A and lora_B, of which none trains; there are {some}")
    found = {path: tuple(f"{path}.{factor}".removeprefix(".") for factor in FACTORS) for path in sorted(halves)}
    for path, names in found.items():
        if len(halves[path]) == 1:
            one, other = names if names[0] in params else names[::-1]
            raise InputError(f"{one} trains without {other}; make both trainable, or take another optimizer")
        A, B = (params[name] for name in names)
        if not (A.ndim == B.ndim == 2 and A.shape[0] == B.shape[1] and A.dtype == B.dtype):
            came = " and ".join(
                f"{name} {param.shape} {param.dtype}" for name, param in zip(names, (A, B), strict=True)
            )
            raise InputError(f"expected A (r, d_in) and B (d_out, r) of one dtype; got {came}")
    return found


def without_factors(arrays):
    """{name: array} of what is no factor."""
    return {name: array for name, array in arrays.items() if name.rpartition(".")[2] not in FACTORS}


def gram(M):
    """M M^T (r, r) of M (r, n), in float64."""
    xp = array_namespace(M)
    M = xp.astype(M, xp.float64)
    return M @ M.T


class Spectrum(NamedTuple):
    """S = U diag(values) U^T, positive semidefinite, in float64."""

    values: Any  # (r,), none below 0
    U: Any  # (r, r), orthogonal

    def inverse(self, reg, like):
        """(S + reg I)^-1 (r, r), in the dtype of `like`."""
        return self.power(-1, reg, like)

    def power(self, exponent, reg, like):
        """(S + reg I)^exponent (r, r), in the dtype of `like`."""
        xp = array_namespace(like)
        return xp.astype((self.U * (self.values + reg) ** exponent) @ self.U.T, like.dtype)


def spectra(grams):
    """{name: Spectrum} of {name: S}; matrices of one size are decomposed together."""
    sizes = {}
    for name, S in grams.items():
        sizes.setdefault(S.shape, []).append(name)
    found = {}
    for names in sizes.values():
        xp = array_namespace(grams[names[0]])
        values, U = xp.linalg.eigh(xp.stack([grams[name] for name in names]))
        values = xp.where(values > 0, values, xp.zeros_like(values))  # below 0 by rounding only
        found |= {name: Spectrum(values[i, ...], U[i, ...]) for i, name in enumerate(names)}
    return found


class Paired:
    """What an optimizer over factors is, beside its rule: it asks for pairs before the first step."""

    def check_rates(self, params):
        """Raise InputError if there are no pairs to train, or a rate is for no parameter."""
        self.pairs(params)
        super().check_rates(params)

    def pairs(self, params):
        """`pairs`; an error says who needs them."""
        try:
            return pairs(params)
        except InputError as error:
            raise InputError(f"{type(self).__name__}: {error}") from None


class OverFactors(Paired):
    """What stands before a rule for single numbers, SGD or AdamW: it gives the rule other gradients of A and B.

    A class needs `directions`. It must be linear in the gradients, since a step may scale them (`scale`) afterwards.
    Parameters that are no factor, a head or a bias, keep their gradients.

    measured: the factors whose `Spectrum` it asks for. frozen: those that do not move; of them there is no state.
    """

    measured, frozen = FACTORS, ()

    def moving(self, arrays):
        """{name: array} without the frozen factors."""
        return {name: array for name, array in arrays.items() if name.rpartition(".")[2] not in self.frozen}

    def prepare(self, params):
        """Create the state of every parameter that moves and has none yet, as zeros."""
        super().prepare(self.moving(params))

    def apply(self, params, grads, lr, scale=None, alive=None):
        found, new = self.pairs(params), dict(grads)
        known = spectra({
            name: gram(params[name] if factor == "lora_A" else params[name].T)
            for names in found.values()
            for factor, name in zip(FACTORS, names, strict=True)
            if factor in self.measured
        })  # fmt: skip
        for a, b in found.values():
            new[a], new[b] = self.directions(params[a], params[b], grads[a], grads[b], known.get(a), known.get(b))
        super().apply(self.moving(params), self.moving(new), lr, scale, alive)

    def directions(self, A, B, g_A, g_B, AA, BB):
        """(a, b), in place of the gradients g_A, g_B. AA, BB: the `Spectrum` of A A^T and of B^T B, if measured."""
        raise NotImplementedError
