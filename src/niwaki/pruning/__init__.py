"""What is removed, in which steps, and what is left?"""

from niwaki.pruning._bundles import Limits, Run, Schedule
from niwaki.pruning._plan import Plan, Removal
from niwaki.pruning._prune import prune, usual_criterion
from niwaki.pruning._pruned import Pruned
from niwaki.pruning._resume import restore, tensors_of
from niwaki.pruning._saved import Saved, load
from niwaki.pruning._trajectory import Step, Trajectory, accuracy_at, area
from niwaki.pruning.comparison._choice import Choice, Trial
from niwaki.pruning.comparison._choose_rules import choose_rules
from niwaki.pruning.comparison._compare import compare
from niwaki.pruning.comparison._comparison import Agreement, Comparison, Summary
from niwaki.pruning.comparison._contenders import Contender, Outcome
from niwaki.pruning.repair._fine_tune import FineTune, fine_tune
from niwaki.pruning.repair._history import Epoch, Kept, Tuned
from niwaki.pruning.repair._norms_and_biases import compensate, recalibrate
from niwaki.pruning.repair._rebuild import Rebuilt, rebuild
from niwaki.pruning.units._coupling import Coupling, Group, Member, couple
from niwaki.pruning.units._surgery import operate, replay
from niwaki.pruning.units._torch_pruning import CUSTOMIZED_PRUNERS
from niwaki.pruning.weights._masks import mask_weights, select_weights
from niwaki.pruning.weights._prune_weights import prune_weights
from niwaki.pruning.weights._pruned_weights import (
    PrunedWeights,
    WeightStep,
    WeightTrajectory,
    load_masks,
)

__all__ = [
    "CUSTOMIZED_PRUNERS",
    "Agreement",
    "Choice",
    "Comparison",
    "Contender",
    "Coupling",
    "Epoch",
    "FineTune",
    "Group",
    "Kept",
    "Limits",
    "Member",
    "Outcome",
    "Plan",
    "Pruned",
    "PrunedWeights",
    "Removal",
    "Run",
    "Saved",
    "Schedule",
    "Step",
    "Summary",
    "Trajectory",
    "Trial",
    "Tuned",
    "WeightStep",
    "WeightTrajectory",
    "accuracy_at",
    "area",
    "choose_rules",
    "compare",
    "Rebuilt",
    "compensate",
    "rebuild",
    "couple",
    "fine_tune",
    "load",
    "load_masks",
    "mask_weights",
    "operate",
    "prune",
    "prune_weights",
    "recalibrate",
    "restore",
    "replay",
    "select_weights",
    "tensors_of",
    "usual_criterion",
]
