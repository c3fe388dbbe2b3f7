"""What a run remembers of the texts that it trained on: hashes of their words, which no line end changes."""

import hashlib
import re

DIGITS = 12  # of a text's hash, hexadecimal: two of a million texts are alike with a chance of 0.2 %
REMEMBERED = 4096  # texts of a record, at most: 48 kB
RECORD = re.compile(f"([0-9a-f]{{{DIGITS}}}){{0,{REMEMBERED}}}")


def word_hash(text, salt=""):
    """DIGITS hexadecimal digits, from the words of a text, or of a pair, alone. salt: for other hashes of the same."""
    text = text if isinstance(text, str) else "\x1e".join(text)  # a mark that separates records
    return hashlib.sha256(" ".join(f"{salt}{text}".split()).encode()).hexdigest()[:DIGITS]


def record(texts, before=""):
    """The hashes of these texts and of those of the record `before`, in one string; of many, the REMEMBERED smallest.

    Hashes know nothing of what a text says, so the smallest are a sample as good as any; and that of two records
    together follows from the two. (Who guesses a whole text can tell whether it was there; nobody can read one.)
    """
    return "".join(sorted({*map(word_hash, texts), *_hashes(before)})[:REMEMBERED])


def remembered(texts, known):
    """(how many of these texts a record holds, whether it holds all texts of its run)."""
    hashes = {*_hashes(known)}
    return sum(word_hash(text) in hashes for text in texts), len(hashes) < REMEMBERED


def _hashes(known):
    return [known[i : i + DIGITS] for i in range(0, len(known), DIGITS)]
