"""Explain, prune and audit convolutional networks with one engine."""

__version__ = "0.1.0"
