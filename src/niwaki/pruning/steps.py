"""What another search that goes step by step shares with pruning, such as that of `niwaki.car`."""

from niwaki.pruning._measure import Measure
from niwaki.pruning._saved import shapes
from niwaki.pruning.repair._fine_tune import run_loop
from niwaki.pruning.units._budget import ROUNDING
from niwaki.pruning.units._plain_copy import deep_copy
from niwaki.pruning.units._structure import Structure

__all__ = ["ROUNDING", "Measure", "Structure", "deep_copy", "run_loop", "shapes"]
