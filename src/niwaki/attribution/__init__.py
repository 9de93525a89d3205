"""Which pixels made the network say this? One class per method, one interface, one catalogue."""

from niwaki.attribution import _gradient, _lrp  # noqa: F401  (they register themselves)
from niwaki.attribution._explain import explain
from niwaki.attribution._method import Method, Propagating
from niwaki.attribution._registry import create, describe, names, register
from niwaki.attribution._targets import Target, select

__all__ = [
    "Method",
    "Propagating",
    "Target",
    "create",
    "describe",
    "explain",
    "names",
    "register",
    "select",
]
