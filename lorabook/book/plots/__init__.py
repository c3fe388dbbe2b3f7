"""Plots: rows in, Figure out. They never show and never save; `save` writes the same bytes for the same numbers."""

from .style import PALETTE, STYLE, save
from .sweeps import planted_bound, rank_vs_error, spectrum

__all__ = ["PALETTE", "STYLE", "planted_bound", "rank_vs_error", "save", "spectrum"]
