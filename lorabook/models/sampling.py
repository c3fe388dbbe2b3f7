"""Which token comes next: the most probable, or one drawn from what the options leave of the distribution."""

import math
from dataclasses import dataclass

import numpy as np

from ..errors import InputError, NonFiniteError, check_integer
from ..files import short


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen from its logits; the order is that of the fields from the last to the first.

    temperature: 0 takes the most probable, of equals the first; else logits are divided by it and a token is drawn.
    min_p: tokens less probable than this share of the most probable are left out (Nguyen et al. 2024,
    arXiv:2407.01082). top_p: the fewest tokens whose probabilities together reach it are left (Holtzman et al. 2019,
    arXiv:1904.09751). top_k: so many of the most probable are left, 0 all (Fan et al. 2018, arXiv:1805.04833).
    repetition_penalty: logits of tokens that are there already are divided by it if positive, else multiplied (Keskar
    et al. 2019, arXiv:1909.05858). One that is most probable is always left.

    >>> import lorabook as lb
    >>> model, drawn = lb.load_model("runs/poet"), lb.Sampling(temperature=0.2, top_p=0.9)
    >>> lb.generate(model, ["Roses are"], max_new_tokens=10, sampling=drawn)
    [' red.']
    """

    min_p: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    temperature: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self):
        check_integer("top_k", self.top_k, 0)
        for name, least, most, open_below in (
            ("temperature", 0, math.inf, False),
            ("repetition_penalty", 0, math.inf, True),
            ("top_p", 0, 1, True),
            ("min_p", 0, 1, False),
        ):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if not number or not (least < value if open_below else least <= value) or value > most:
                bound = f"{'above' if open_below else 'at least'} {least}" + (
                    f" and at most {most}" if most == 1 else ""
                )
                raise InputError(f"{name} must be a number {bound}; got {short(value)}")

    def choose(self, logits, seen, rng):
        """The next token from logits (V,) on the host. seen: the tokens so far. rng: as of numpy, drawn from once."""
        if not np.isfinite(logits[(best := int(np.argmax(logits)))]):  # argmax finds a NaN, too
            raise NonFiniteError(f"the model gives token {best} the logit {logits[best]}: its weights are damaged")
        logits = self.penalised(np.asarray(logits, "f8"), seen)
        if self.temperature == 0:
            return int(np.argmax(logits))
        order, share = self.left(logits)
        ends = np.cumsum(share)
        return int(order[min(np.searchsorted(ends, rng.random() * ends[-1], side="right"), len(order) - 1)])

    def penalised(self, logits, seen):
        """The same, with less for tokens that are there already."""
        if self.repetition_penalty == 1 or not len(seen):
            return logits
        seen, logits = np.unique(seen), logits.copy()
        own = logits[seen]
        logits[seen] = np.where(own > 0, own / self.repetition_penalty, own * self.repetition_penalty)
        return logits

    def left(self, logits):
        """(tokens that are left, from the most probable on; their probabilities before the others were left out)."""
        order = np.argsort(-logits, kind="stable")
        if self.top_k:
            order = order[: self.top_k]
        with np.errstate(over="ignore"):  # a temperature close to 0: e^-inf = 0
            share = np.exp((logits[order] - logits[order[0]]) / self.temperature)
        share /= share.sum()
        if self.top_p < 1:  # a token stays while those before it have not reached it
            order, share = (x[: np.searchsorted(np.cumsum(share) - share, self.top_p)] for x in (order, share))
        kept = int((share >= self.min_p * share[0]).sum())
        return order[:kept], share[:kept]
