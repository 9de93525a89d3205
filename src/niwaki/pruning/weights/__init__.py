"""Unstructured pruning: single weights set to zero, under masks."""
