"""Remedies: what removes a bias from the data, or an artefact from a network."""
