"""How much does each unit or weight matter? One interface, one catalogue."""

from niwaki.criteria import (  # noqa: F401  (they register themselves)
    _activations,
    _batch_norm,
    _data_free,
    _derivatives,
    _relevance,
    _single_weights,
    _weight_derivatives,
)
from niwaki.criteria._catalogue import describe, names, register, register_variant
from niwaki.criteria._combination import Combination
from niwaki.criteria._criterion import Criterion, Granularity
from niwaki.criteria._importance import Importance
from niwaki.criteria._rebuilt import RebuiltError
from niwaki.criteria._score import create, hidden_layers, score, score_weights
from niwaki.criteria._scores import Scores

__all__ = [
    "Combination",
    "Criterion",
    "Granularity",
    "Importance",
    "RebuiltError",
    "Scores",
    "create",
    "describe",
    "hidden_layers",
    "names",
    "register",
    "register_variant",
    "score",
    "score_weights",
]
