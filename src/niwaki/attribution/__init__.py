"""Which pixels made the network say this? One class per method, one interface, one catalogue."""

from niwaki.attribution import (  # noqa: F401  (they register themselves)
    _averages,
    _grad_cam,
    _gradients,
    _innvestigate,
    _integrated_gradients,
    _lrp,
    _occlusion,
)
from niwaki.attribution._catalogue import (
    create,
    describe,
    explain,
    names,
    register,
    told_apart,
)
from niwaki.attribution._method import Method, Propagating
from niwaki.attribution._patterns import Patterns, fit_patterns
from niwaki.attribution._signal_quality import signal_quality
from niwaki.attribution._targets import ClassChoice, Target, check_choice, chosen_classes, select

__all__ = [
    "ClassChoice",
    "Method",
    "Patterns",
    "Propagating",
    "Target",
    "check_choice",
    "chosen_classes",
    "create",
    "describe",
    "explain",
    "fit_patterns",
    "names",
    "register",
    "select",
    "signal_quality",
    "told_apart",
]
