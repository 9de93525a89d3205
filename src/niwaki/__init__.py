"""Explain, prune and audit convolutional networks with one engine.

The main jobs are one call each: `explain` computes heatmaps, `score` says how much each unit
matters, `prune` removes those that matter least, `load` rebuilds what was saved. The rooms behind
them are `niwaki.propagation`, `attribution`, `criteria`, `pruning`, `car`, `filters`, `audit`,
`evaluation`, `models`, `data` and `report`.
"""

from niwaki import (
    attribution,
    audit,
    car,
    criteria,
    data,
    evaluation,
    filters,
    models,
    propagation,
    pruning,
)
from niwaki.attribution import explain
from niwaki.criteria import Scores, score, score_weights
from niwaki.pruning import Plan, Pruned, Trajectory, load, prune, prune_weights

__version__ = "0.1.0"

__all__ = [
    "Plan",
    "Pruned",
    "Scores",
    "Trajectory",
    "__version__",
    "attribution",
    "audit",
    "car",
    "criteria",
    "data",
    "evaluation",
    "explain",
    "filters",
    "load",
    "models",
    "propagation",
    "prune",
    "prune_weights",
    "pruning",
    "score",
    "score_weights",
]
