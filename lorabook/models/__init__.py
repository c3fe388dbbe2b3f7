"""Models: wiring only. The mathematics is in `functional`, the parameters in `layers`, the updates in `adapters`."""

from .mlp import MLP

__all__ = ["MLP"]
