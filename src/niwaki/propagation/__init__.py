"""How a signal flows back through each operation, and which rule each operation gets."""

from niwaki.propagation import _handlers  # noqa: F401 (fills the table of operations)
from niwaki.propagation._names import WEIGHT_NAMES
from niwaki.propagation.binary import check_logit, per_class
from niwaki.propagation.composites import Assign, Composite, base_rows, first_rows
from niwaki.propagation.gates import BetaSmooth, Rescale
from niwaki.propagation.observers import Maps, Observer
from niwaki.propagation.operation import KINDS, Kind, Operation, Rule
from niwaki.propagation.pattern import Pattern, pattern_attribution, pattern_net
from niwaki.propagation.presets import (
    PRESETS,
    beta_smooth,
    deconvnet,
    epsilon,
    epsilon_alpha2_beta1,
    epsilon_alpha2_beta1_flat,
    epsilon_gamma_box,
    epsilon_plus,
    epsilon_plus_flat,
    excitation_backprop,
    gradient,
    guided_backprop,
    rescale,
)
from niwaki.propagation.propagate import Propagated, check_inputs, propagate
from niwaki.propagation.rules import (
    AlphaBeta,
    Deconvnet,
    Epsilon,
    Flat,
    Gradient,
    Guided,
    Pass,
    Ratio,
    ZBox,
    ZPlus,
)
from niwaki.propagation.text import (
    composite_named,
    composite_names,
    load_composite,
    save_composite,
)
from niwaki.propagation.trace import (
    Layer,
    observe,
    resolve,
    resolve_operations,
    trace,
    unit_dimension,
)
from niwaki.propagation.weight_rules import Gamma, Norm, WSquare

__all__ = [
    "PRESETS",
    "WEIGHT_NAMES",
    "BetaSmooth",
    "Gamma",
    "Norm",
    "Rescale",
    "WSquare",
    "base_rows",
    "beta_smooth",
    "check_inputs",
    "composite_named",
    "composite_names",
    "check_logit",
    "deconvnet",
    "epsilon_alpha2_beta1",
    "epsilon_alpha2_beta1_flat",
    "epsilon_gamma_box",
    "excitation_backprop",
    "first_rows",
    "guided_backprop",
    "load_composite",
    "per_class",
    "rescale",
    "resolve",
    "resolve_operations",
    "save_composite",
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
    "Ratio",
    "Pattern",
    "Propagated",
    "Rule",
    "ZBox",
    "ZPlus",
    "epsilon",
    "epsilon_plus",
    "epsilon_plus_flat",
    "gradient",
    "observe",
    "pattern_attribution",
    "pattern_net",
    "propagate",
    "trace",
    "unit_dimension",
]
