"""Explain, prune and audit convolutional networks with one engine.

The main jobs are one call each: `explain` computes heatmaps, `score` says how much each unit
matters, `prune` removes those that matter least, `load` rebuilds what was saved, `audit` looks for
what a network should not be looking at. The rooms behind them are `niwaki.propagation`,
`attribution`, `criteria`, `pruning`, `car`, `filters`, `auditing`, `evaluation`, `models`, `data`,
`datasets`, `slides` and `report`. A room is imported when it is first used, because PyTorch alone
takes seconds. All of them share `niwaki.errors` and `niwaki.processes`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from niwaki import (
        attribution,
        auditing,
        car,
        criteria,
        data,
        datasets,
        errors,
        evaluation,
        filters,
        models,
        processes,
        propagation,
        pruning,
        report,
        slides,
    )
    from niwaki.attribution import explain
    from niwaki.auditing import Audit, audit
    from niwaki.criteria import Scores, score, score_weights
    from niwaki.pruning import Plan, Pruned, Trajectory, load, prune, prune_weights

__version__ = "0.1.0"

__all__ = [
    "Audit",
    "Plan",
    "Pruned",
    "Scores",
    "Trajectory",
    "__version__",
    "attribution",
    "audit",
    "auditing",
    "car",
    "criteria",
    "data",
    "datasets",
    "errors",
    "evaluation",
    "explain",
    "filters",
    "load",
    "models",
    "processes",
    "propagation",
    "prune",
    "prune_weights",
    "pruning",
    "report",
    "score",
    "score_weights",
    "slides",
]

# The room in which each name of the package itself lives; the other names are rooms.
_ROOMS = {
    "Audit": "auditing",
    "Plan": "pruning",
    "Pruned": "pruning",
    "Scores": "criteria",
    "Trajectory": "pruning",
    "audit": "auditing",
    "explain": "attribution",
    "load": "pruning",
    "prune": "pruning",
    "prune_weights": "pruning",
    "score": "criteria",
    "score_weights": "criteria",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'niwaki' has no attribute {name!r}")
    room = import_module(f"niwaki.{_ROOMS.get(name, name)}")
    return getattr(room, name) if name in _ROOMS else room


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
