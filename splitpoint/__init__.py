"""Splitpoint: one neural network on two machines, the cut chosen by measurement."""

from common.version import __version__

__all__ = ["__version__"]
