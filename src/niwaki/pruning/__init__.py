"""What is removed, in which steps, and what is left?"""

from niwaki.pruning._coupling import Group, couple
from niwaki.pruning._plan import Plan, Removal
from niwaki.pruning._prune import prune
from niwaki.pruning._pruned import Pruned, load
from niwaki.pruning._trajectory import Step, Trajectory

__all__ = [
    "Group",
    "Plan",
    "Pruned",
    "Removal",
    "Step",
    "Trajectory",
    "couple",
    "load",
    "prune",
]
