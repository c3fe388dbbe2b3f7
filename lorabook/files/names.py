"""Short names: what a model or a data set is called here, and the public repository by which other programs know it."""

import os

REPOSITORIES = {  # of all that `hub` can fetch; None: there is none
    "minilm": "sentence-transformers/all-MiniLM-L6-v2",
    "smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct",  # in 16 bits; here in 4
    "movie-reviews": None,
    "snippets": None,
    "shakespeare": None,
    "django": None,
    "wagtail": None,
    "sphinx": None,
}
ENCODERS = ("minilm",)  # those of them that can be trained to label texts; the first is the default where one is needed
CAUSAL_LMS = ("smollm2",)  # those that continue texts


def known_name(name, repositories=REPOSITORIES):
    """The short name of what a public repository holds: "minilm" for its own; any other name, or a path, as it is."""
    if name in repositories or os.path.exists(name):
        return name
    return next((known for known, repository in repositories.items() if repository == name), name)


def public_name(name, repositories=REPOSITORIES):
    """The public repository of a known name, as PEFT and transformers find it; any other name as it is."""
    return repositories.get(name) or name
