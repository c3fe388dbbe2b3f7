"""Pictures beside the numbers of a command: drawn where matplotlib is installed."""

from ..errors import note
from ..files import how_to_install, missing


def plotting_if_there():
    """The plots; without matplotlib None, with a note: numbers are worth writing without their picture."""
    if missing("matplotlib"):
        note(f"no picture, as matplotlib is not installed: {how_to_install('book')}")
        return None
    from ..book import plots

    return plots
