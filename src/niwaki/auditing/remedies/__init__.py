"""Remedies: what removes a bias from the data, or an artefact from a network."""

from niwaki.auditing.remedies._data_sets import Inpainted, Relabelled, Shifted, Spread, balanced
from niwaki.auditing.remedies._project_out import artefact_direction, project_out
from niwaki.auditing.remedies._prune_artefact import (
    PrunedArtefact,
    Trial,
    prune_artefact,
    specificity,
)

__all__ = [
    "Inpainted",
    "PrunedArtefact",
    "Relabelled",
    "Shifted",
    "Spread",
    "Trial",
    "artefact_direction",
    "balanced",
    "project_out",
    "prune_artefact",
    "specificity",
]
