"""How much does each unit matter? One class per criterion, one interface, one catalogue."""

from niwaki.criteria import _gradient, _lrp, _plain  # noqa: F401  (they register themselves)
from niwaki.criteria._criterion import Criterion
from niwaki.criteria._importance import Importance
from niwaki.criteria._registry import create, describe, names, register
from niwaki.criteria._score import hidden_layers, score
from niwaki.criteria._scores import Scores

__all__ = [
    "Criterion",
    "Importance",
    "Scores",
    "create",
    "describe",
    "hidden_layers",
    "names",
    "register",
    "score",
]
