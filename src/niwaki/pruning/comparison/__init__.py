"""Pruning repeated to decide something: which criterion is best, and which rules of relevance."""
