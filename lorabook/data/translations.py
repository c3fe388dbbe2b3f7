"""How close translations are to a human's: chrF, by the library sacrebleu."""

from ..errors import InputError
from ..files import require


def chrf(translations, references):
    """chrF of translations against one reference each, 0 .. 100: an F score of n-grams of characters, n from 1 to 6.

    Recall counts twice as much as precision (beta = 2). It needs no words, so it does for languages that write none
    apart. Popovic, 2015: "chrF: character n-gram F-score for automatic MT evaluation". Extra: `translation`.
    """
    require("translation", "chrF", "sacrebleu")
    import sacrebleu

    translations, references = list(translations), list(references)
    if not translations or len(translations) != len(references):
        raise InputError(
            f"expected as many references as translations, one at least; got {len(references)} and {len(translations)}"
        )
    return float(sacrebleu.corpus_chrf(translations, [references]).score)
