"""Splitpoint: one neural network on two machines, the cut chosen by measurement."""

__version__ = "0.1.0"
