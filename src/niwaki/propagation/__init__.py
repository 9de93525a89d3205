"""How a signal flows back through each operation, and which rule each operation gets."""

from niwaki.propagation.composites import (
    Assign,
    Composite,
    epsilon,
    epsilon_plus,
    epsilon_plus_flat,
    gradient,
)
from niwaki.propagation.observers import Maps, Observer
from niwaki.propagation.operation import KINDS, Kind, Operation
from niwaki.propagation.propagate import Propagated, propagate
from niwaki.propagation.rules import (
    AlphaBeta,
    Deconvnet,
    Epsilon,
    Flat,
    Gradient,
    Guided,
    Pass,
    Rule,
    ZBox,
    ZPlus,
)
from niwaki.propagation.trace import Layer, observe, trace, unit_dimension

__all__ = [
    "KINDS",
    "AlphaBeta",
    "Assign",
    "Composite",
    "Deconvnet",
    "Epsilon",
    "Flat",
    "Gradient",
    "Guided",
    "Kind",
    "Layer",
    "Maps",
    "Observer",
    "Operation",
    "Pass",
    "Propagated",
    "Rule",
    "ZBox",
    "ZPlus",
    "epsilon",
    "epsilon_plus",
    "epsilon_plus_flat",
    "gradient",
    "observe",
    "propagate",
    "trace",
    "unit_dimension",
]
