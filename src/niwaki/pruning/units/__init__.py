"""Structured pruning of units: which channels go together, which go next, and how they are cut."""
