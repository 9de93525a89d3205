"""How much does each unit matter? One class per criterion, one interface, one catalogue."""

from niwaki.criteria import (  # noqa: F401  (they register themselves)
    _activation,
    _batch_norm,
    _conductance,
    _fpgm,
    _gradient,
    _hessian,
    _lamp,
    _lrp,
    _pattern,
    _random,
    _taylor,
    _weight,
    _weight_taylor,
)
from niwaki.criteria._combination import Combination
from niwaki.criteria._create import create
from niwaki.criteria._criterion import Criterion
from niwaki.criteria._importance import Importance
from niwaki.criteria._rebuilt import RebuiltError
from niwaki.criteria._registry import describe, names, register, register_variant
from niwaki.criteria._score import hidden_layers, score
from niwaki.criteria._scores import Scores
from niwaki.criteria._weight_criteria import (
    WeightCriterion,
    create_weight_criterion,
    describe_weight_criterion,
    weight_criteria,
)
from niwaki.criteria._weights import score_weights

__all__ = [
    "Combination",
    "Criterion",
    "Importance",
    "RebuiltError",
    "Scores",
    "WeightCriterion",
    "create",
    "create_weight_criterion",
    "describe",
    "describe_weight_criterion",
    "hidden_layers",
    "names",
    "register",
    "register_variant",
    "score",
    "score_weights",
    "weight_criteria",
]
