"""`lorabook notebooks`: rebuild the executed chapters from their sources."""

HELP = "rebuild executed chapters from notebooks/src (all, or those named)"
EXAMPLE = "lorabook notebooks 01 06"
SHARED = ()


def add_arguments(parser):
    """Options of the command."""
    parser.add_argument(
        "names", nargs="*", metavar="NN", help="chapters and their solutions, by number or name (default: all)"
    )


def run(args):
    """Build one after another."""
    from tqdm import tqdm

    from ..files import require

    require("book", "a chapter", "matplotlib", "PIL", "jupytext", "nbformat", "nbclient", "ipykernel")
    from ..book import chapters

    found = chapters.sources(args.names)
    paths = [str(chapters.build(source)) for source in tqdm(found, disable=None, unit="chapter", delay=2)]
    return {"notebooks": paths}, "\n".join(f"wrote {path}" for path in paths)
