"""Structured pruning: which channels belong together, which are next, and how they are cut."""
