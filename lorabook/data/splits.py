"""Which texts are held out, so that rows appended to a file move no other row; and what a run remembers of the others.

Texts are told apart by the hash of their words, which no line end changes, nor the machine or the year.
"""

from collections import Counter

from ..files import DIGITS, word_hash

FOUR = 4  # one text of so many is held out


def held_out(texts, labels, salt=""):
    """[whether it is held out] of each text: of every four different texts of a class, as they come, exactly one.

    Of the first four the second, so that a class of two is on both sides; of later ones that which its hash chooses,
    each as likely. So of the first n texts of a class that shares none with another, t are held out with |t - n/4| < 1,
    both sides have some if n > 1, and what comes later changes nothing. Equal texts are on one side. A text with
    several labels is decided where it first stands and counts in each of its classes; the next texts of those make up
    for what that puts out of proportion.

    No rule that appended rows leave alone can promise more: where the first texts of a class are all texts of another,
    their sides are given already, and all of them may be the same. Such a class is all on one side until a text of its
    own comes, and farther from a quarter.
    """
    side, counted, n, t = {}, set(), Counter(), Counter()
    hashes = [word_hash(text, salt) for text in texts]
    for text, label in zip(hashes, labels, strict=True):
        if (text, label) not in counted:
            counted.add((text, label))
            n[label] += 1
            if text not in side:
                side[text] = _chosen(n[label], t[label], int(text, 16) / 16**DIGITS)
            t[label] += side[text]
    return [side[text] for text in hashes]


def _chosen(n, t, draw):
    """Whether the n-th text of a class is held out; t of those before it are. draw: 0 .. 1, from its hash."""
    least, most = (n // FOUR, -(-n // FOUR)) if n > FOUR else (int(n > 1), int(n > 1))
    places = 1 + -n % FOUR  # left in this four, with this one
    return t < least or (t < most and draw < 1 / places)
